"""The commands in the objects of cluster/overlays against this project's own parsers, and against the clusters they run on."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs import search, serve, submit
from pipeline.errors import UserError
from pipeline.ray_cluster.resources import plan_resources
from pipeline.serving.web.access import TOKEN_VARIABLE
from tests.cluster.rendered import Tree, count_resources, list_nodes, run_config

Rendered = dict[str, dict[str, Tree]]
SIDES = ["kind", "gpu"]


@pytest.mark.parametrize("side", SIDES)
def test_the_rayjob_runs_a_command_that_fits_its_cluster(side: str, repository: Path, rendered: Rendered) -> None:
    job = rendered[f"{side}/job"]["RayJob"]
    config = run_config(job["spec"]["entrypoint"], repository)
    resources = plan_resources(config, *count_resources(job))
    assert resources.gpu == (side == "gpu")
    assert resources.workers == (count_resources(job)[1] or 1)
    assert (config.scale.min_workers or config.scale.workers) == 1
    assert config.run.storage_path.startswith("/shared/")
    assert config.data.manifest.startswith("/shared/")


@pytest.mark.parametrize(
    ("old", "new", "error", "shown"),
    [
        ("scale.workers", "scale.worker", UserError, "did you mean scale.workers"),
        ("demo.yaml", "dmo.yaml", UserError, r"did you mean .*demo\.yaml"),
        ("jobs.train", "jobs.trian", AssertionError, "trian"),
        ("--config", "--confg", SystemExit, "2"),
    ],
)
def test_a_misspelled_command_is_found(
    old: str, new: str, error: type[BaseException], shown: str, repository: Path, rendered: Rendered
) -> None:
    entrypoint = rendered["gpu/job"]["RayJob"]["spec"]["entrypoint"]
    assert old in entrypoint
    with pytest.raises(error, match=shown):
        run_config(entrypoint.replace(old, new), repository)


@pytest.mark.parametrize("side", SIDES)
def test_the_service_runs_a_command_that_fits_its_cluster(
    side: str, rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Serve reads the configuration, and the command is read as the command itself does, up to where a model is opened."""
    service = rendered[f"{side}/service"]["RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.proxy_location == "Disabled"
    (application,) = config.applications
    module, _, function = application.import_path.partition(":")
    options = serve.build_parser().parse_intermixed_args(shlex.split(application.args["command"]))
    assert getattr(importlib.import_module(module), function) is serve.build_application
    cpus, gpus = count_resources(service)
    assert options.replicas == (gpus or 1) and cpus > options.replicas
    ports = {port["name"]: port["containerPort"] for port in next(list_nodes(service))["spec"]["containers"][0]["ports"]}
    assert options.host == "0.0.0.0" and options.port == ports["serve"]
    assert str(options.folder).startswith("/shared/") and f"scale.gpu={str(gpus > 0).lower()}" in options.overrides
    for template in list_nodes(service):  # wherever the application is built, and its web server runs
        variables = {one["name"]: one for one in template["spec"]["containers"][0]["env"]}
        assert "secretKeyRef" in variables[TOKEN_VARIABLE]["valueFrom"]
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(UserError, match=TOKEN_VARIABLE):
        serve.build_application(application.args)
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-of-this-test")
    with pytest.raises(UserError, match="/shared/models/mine"):
        serve.build_application(application.args)


# ------------------------------------------------------------------------------------------------------- every night


def order_of(words: list[str], repository: Path) -> search.SearchRequest:
    """A ``jobs.search`` command, checked as the command itself does before it looks at the data."""
    names = [path.stem for path in search.SPACES.glob("*.yaml")]
    options = search.build_parser(names).parse_intermixed_args(words)
    options.config = [str(repository / file) for file in options.config]
    return search.read_request(options, names)


def test_nightly_searches_are_one_command_that_fits_the_cluster(repository: Path, rendered: Rendered) -> None:
    cron = rendered["gpu/nightly"]["CronJob"]["spec"]["jobTemplate"]["spec"]
    job = rendered["gpu/raycronjob"]["RayCronJob"]["spec"]["jobTemplate"]
    (container,) = cron["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "jobs.submit"]
    sent = submit._parse_arguments([*container["command"][3:], *container["args"]])
    python, option, module, *words = shlex.split(job["entrypoint"])
    assert (python, option, module, sent.command) == ("python", "-m", "jobs.search", "search")
    orders = [order_of(words, repository), order_of(sent.arguments, repository)]
    assert orders[0].base.compute_fingerprint() == orders[1].base.compute_fingerprint()
    assert orders[0].name == orders[1].name
    limits = [cron["activeDeadlineSeconds"], job["activeDeadlineSeconds"]]
    for order, limit in zip(orders, limits, strict=True):
        assert order.folder.is_relative_to("/shared")
        assert 3600 * order.options.hours < limit < 24 * 3600
        assert plan_resources(order.base, *count_resources(rendered["gpu"]["RayCluster"])).gpu


def test_the_nightly_pod_finds_the_cluster_that_stays(rendered: Rendered) -> None:
    cron = rendered["gpu/nightly"]["CronJob"]["spec"]
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    name = rendered["gpu"]["RayCluster"]["metadata"]["name"]
    assert f"http://{name}-head-svc:8265" in container["command"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "auth_token"}
    assert cron["concurrencyPolicy"] == "Forbid"
