"""The cluster files against the schemas of those who read them, and their commands against this project's own parsers."""

from __future__ import annotations

import copy
import importlib
import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from jobs import search, serve, submit, train
from jobs.__main__ import COMMANDS
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.ray_cluster.resources import plan_resources
from pipeline.serving.access import TOKEN_VARIABLE

Tree = dict[str, Any]
KUBERAY = {
    "raycluster.yaml": "ray.io_rayclusters.yaml",
    "rayjob.yaml": "ray.io_rayjobs.yaml",
    "raycronjob.yaml": "ray.io_raycronjobs.yaml",
    "rayservice.yaml": "ray.io_rayservices.yaml",
}


def _read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # the CRDs have a megabyte: 20 times faster


@pytest.fixture(scope="session")
def cluster_files(repository: Path) -> dict[str, Tree]:
    return {path.name: _read(path) for path in sorted((repository / "cluster").glob("*.yaml"))}


@pytest.fixture(scope="session")
def schemas(repository: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """Strict validators of the KubeRay operator's custom resources."""
    folder = repository.parent / "shared" / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"no custom resource definitions at {folder}")
    return {name: jsonschema.Draft202012Validator(strict(_v1(_read(folder / crd)))) for name, crd in KUBERAY.items()}


def _v1(definition: Tree) -> Tree:
    return next(v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")


def strict(schema: Any) -> Any:
    """JSON schema of an OpenAPI one, where a field that is not named is an error, as with ``kubectl --validate=strict``."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_knows_every_field(name: str, cluster_files: dict[str, Tree], schemas: dict[str, Any]) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in schemas[name].iter_errors(cluster_files[name])]
    assert not errors
    assert cluster_files[name]["apiVersion"] == "ray.io/v1"


MISTAKES = [
    ("headGroupSpecs", ["headGroupSpecs"], {}),
    ("replica", ["workerGroupSpecs", 0, "replica"], 1),
    ("'two'", ["workerGroupSpecs", 0, "replicas"], "two"),
    ("volumeMount", ["workerGroupSpecs", 1, "template", "spec", "containers", 0, "volumeMount"], []),
    ("claimname", ["headGroupSpec", "template", "spec", "volumes", 0, "persistentVolumeClaim", "claimname"], "x"),
    ("tokens", ["authOptions", "mode"], "tokens"),
]


@pytest.mark.parametrize(("shown", "keys", "value"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
@pytest.mark.parametrize("name", KUBERAY)
def test_a_misspelled_field_is_found(
    name: str, shown: str, keys: list[Any], value: Any, cluster_files: dict[str, Tree], schemas: dict[str, Any]
) -> None:
    wrong = copy.deepcopy(cluster_files[name])
    target: Any = _cluster(wrong)
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    assert any(shown in error.message for error in schemas[name].iter_errors(wrong))


def _cluster(manifest: Tree) -> Tree:
    """The RayCluster spec of any of the files."""
    spec: Tree = manifest["spec"].get("jobTemplate", manifest["spec"])
    cluster: Tree = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


def _pods(manifest: Tree) -> Iterator[Tree]:
    cluster = _cluster(manifest)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_all_files_of_training_hold_the_same_cluster(cluster_files: dict[str, Tree]) -> None:
    for name in KUBERAY.keys() - {"rayservice.yaml"}:
        assert _cluster(cluster_files[name]) == _cluster(cluster_files["raycluster.yaml"])


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_get_what_they_ask_for_and_share_the_volume(name: str, cluster_files: dict[str, Tree]) -> None:
    claim = cluster_files["storage.yaml"]["metadata"]["name"]
    for pod in _pods(cluster_files[name]):
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]


def test_images_and_versions_are_the_projects_own(repository: Path, cluster_files: dict[str, Tree]) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image = f"{project['name']}:{project['version']}"
    pins = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in KUBERAY:
        assert {pod["containers"][0]["image"] for pod in _pods(cluster_files[name])} == {image}
        assert f"ray=={_cluster(cluster_files[name])['rayVersion']}" in pins
    assert cluster_files["ray-up.yaml"]["docker"]["image"] == image
    assert f"-t {image} " in (repository / "cluster" / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- the commands in them


def run_config(entrypoint: str, repository: Path) -> Config:
    """Configuration of a ``python -m jobs.train`` line, read as the command itself reads it."""
    python, option, module, *words = shlex.split(entrypoint)
    assert (python, option) == ("python", "-m")
    assert module in {f"jobs.{command}" for command in COMMANDS}
    options = train.build_parser().parse_args(words)
    return load_config([repository / file for file in options.config], options.overrides)


def _totals(manifest: Tree) -> tuple[float, float]:
    """CPUs and GPUs that are there before the first job asks for any."""
    cpus = gpus = 0.0
    for group in _cluster(manifest)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["minReplicas"] * float(limits["cpu"])
        gpus += group["minReplicas"] * float(limits.get("nvidia.com/gpu", 0))
    return cpus, gpus


def test_the_rayjob_runs_a_command_that_fits_its_cluster(repository: Path, cluster_files: dict[str, Tree]) -> None:
    job = cluster_files["rayjob.yaml"]
    config = run_config(job["spec"]["entrypoint"], repository)
    resources = plan_resources(config, *_totals(job))
    assert resources.gpu
    assert resources.workers == _totals(job)[1]
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
    old: str, new: str, error: type[BaseException], shown: str, repository: Path, cluster_files: dict[str, Tree]
) -> None:
    entrypoint = cluster_files["rayjob.yaml"]["spec"]["entrypoint"]
    assert old in entrypoint
    with pytest.raises(error, match=shown):
        run_config(entrypoint.replace(old, new), repository)


# ------------------------------------------------------------------------------------------------------------ a service


def test_the_service_runs_a_command_that_fits_its_cluster(
    cluster_files: dict[str, Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Serve reads the configuration, and the command is read as the command itself does, up to where a model is opened."""
    service = cluster_files["rayservice.yaml"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.proxy_location == "Disabled"
    (application,) = config.applications
    module, _, function = application.import_path.partition(":")
    options = serve.build_parser().parse_intermixed_args(shlex.split(application.args["command"]))
    assert getattr(importlib.import_module(module), function) is serve.build_application
    cpus, gpus = _totals(service)
    assert options.replicas == gpus and cpus > options.replicas
    head, *workers = _pods(service)
    ports = {port["name"]: port["containerPort"] for port in head["containers"][0]["ports"]}
    assert options.host == "0.0.0.0" and options.port == ports["serve"]
    assert str(options.folder).startswith("/shared/") and "scale.gpu=true" in options.overrides
    for pod in (head, *workers):  # wherever the application is built, and its web server runs
        (variable,) = pod["containers"][0]["env"]
        assert variable["name"] == TOKEN_VARIABLE and "secretKeyRef" in variable["valueFrom"]
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


def test_nightly_searches_are_one_command_that_fits_the_cluster(repository: Path, cluster_files: dict[str, Tree]) -> None:
    cron, job = cluster_files["nightly.yaml"]["spec"], cluster_files["raycronjob.yaml"]["spec"]["jobTemplate"]
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "jobs.submit"]
    sent = submit._parse_arguments([*container["command"][3:], *container["args"]])
    python, option, module, *words = shlex.split(job["entrypoint"])
    assert (python, option, module, sent.command) == ("python", "-m", "jobs.search", "search")
    orders = [order_of(words, repository), order_of(sent.arguments, repository)]
    assert orders[0].base.compute_fingerprint() == orders[1].base.compute_fingerprint()
    assert orders[0].name == orders[1].name
    limits = [cron["jobTemplate"]["spec"]["activeDeadlineSeconds"], job["activeDeadlineSeconds"]]
    for order, limit in zip(orders, limits, strict=True):
        assert order.folder.is_relative_to("/shared")
        assert 3600 * order.options.hours < limit < 24 * 3600
        assert plan_resources(order.base, *_totals(cluster_files["raycluster.yaml"])).gpu


def test_the_nightly_pod_finds_the_cluster_that_stays(cluster_files: dict[str, Tree]) -> None:
    (container,) = cluster_files["nightly.yaml"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    name = cluster_files["raycluster.yaml"]["metadata"]["name"]
    assert f"http://{name}-head-svc:8265" in container["command"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "auth_token"}
    assert container["image"] == _pods_image(cluster_files)
    assert cluster_files["nightly.yaml"]["spec"]["concurrencyPolicy"] == "Forbid"


def _pods_image(cluster_files: dict[str, Tree]) -> str:
    return str(next(_pods(cluster_files["raycluster.yaml"]))["containers"][0]["image"])


# -------------------------------------------------------------------------------------------- the cluster launcher


def test_the_launcher_accepts_its_file(cluster_files: dict[str, Tree]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster_files["ray-up.yaml"], schema)
    prepared = prepare_config(copy.deepcopy(cluster_files["ray-up.yaml"]))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == ["pip install boto3"]
    workers = [kind for name, kind in prepared["available_node_types"].items() if name != "head"]
    assert prepared["max_workers"] == sum(kind["max_workers"] for kind in workers)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["max_worker"], 1),
        (["docker", "images"], "x"),
        (["available_node_types", "train", "min_worker"], 1),
        (["idle_timeout_minutes"], "ten"),
    ],
)
def test_the_launcher_refuses_a_misspelled_field(keys: list[str], value: Any, cluster_files: dict[str, Tree]) -> None:
    wrong = copy.deepcopy(cluster_files["ray-up.yaml"])
    target = wrong
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_the_launchers_cluster_fits_the_same_run(repository: Path, cluster_files: dict[str, Tree]) -> None:
    kinds = cluster_files["ray-up.yaml"]["available_node_types"].values()
    cpus, gpus = (sum(kind.get("min_workers", 0) * kind["resources"].get(name, 0) for kind in kinds) for name in ("CPU", "GPU"))
    assert plan_resources(run_config(cluster_files["rayjob.yaml"]["spec"]["entrypoint"], repository), cpus, gpus).gpu
