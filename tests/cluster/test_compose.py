"""docker/compose.yaml: rights, health, secrets, and that its parts find each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import start

from tests.cluster.rendered import Tree, read_yaml

ONCE = "own-volumes"
"""The service that gives new volumes to their users and ends."""
NODES = ["head", "worker"]


@pytest.fixture(scope="module")
def compose(repository: Path) -> Tree:
    found: Tree = read_yaml(repository / "docker" / "compose.yaml")
    return found


def content(compose: Tree, name: str) -> Any:
    return yaml.safe_load(compose["configs"][name]["content"])


def test_services_have_no_rights_and_say_how_they_are(compose: Tree) -> None:
    assert set(compose["services"]) == {ONCE, *NODES, "store", "mlflow", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        if name == ONCE:
            assert (service["user"], service["network_mode"], service["cap_add"]) == ("0:0", "none", ["CHOWN"])
            continue
        assert int(service["user"].partition(":")[0]) > 0 and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_images_are_pinned_and_those_of_the_project_are_its_own(compose: Tree, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(line.split("==") for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines())
    for name, service in compose["services"].items():
        image, _, tag = service["image"].rpartition(":")
        assert re.fullmatch(r"v?\d+(\.\d+)+(-cpu)?", tag), name
        if name in (ONCE, *NODES):
            assert (image, tag) == (project["name"], f"{project['version']}-cpu")
    build = compose["services"][ONCE]["build"]
    dockerfile = repository / "docker" / build["context"] / build["dockerfile"]
    assert f" AS {build['target']}\n" in dockerfile.read_text(encoding="utf-8")
    assert all(f"ARG {name}\n" in dockerfile.read_text(encoding="utf-8") for name in build["args"])
    server_tag = compose["services"]["mlflow"]["image"].rpartition(":v")[2]
    assert server_tag.split(".")[:2] == pins["mlflow-skinny"].split(".")[:2]


def test_nodes_of_ray_start_by_commands_that_ray_knows_and_find_the_head(compose: Tree) -> None:
    found = {}
    for name in NODES:
        service = compose["services"][name]
        assert service["read_only"] is True and "/tmp" in service["volumes"]
        memory = service["deploy"]["resources"]["limits"]["memory"]
        assert 0.3 * float(memory.removesuffix("g")) < float(
            service["shm_size"].removesuffix("gb")
        )  # else it would be on a disk
        assert service["environment"]["HOME"] == "/tmp" and service["environment"]["RAY_AUTH_MODE"] == "token"
        program, command, *words = shlex.split(service["command"])
        assert (program, command) == ("ray", "start")
        found[name] = start.make_context("start", words).params
        assert found[name]["block"] and f":{found[name]['dashboard_agent_listen_port']}/" in service["healthcheck"]["test"][-1]
    assert found["head"]["head"] and not found["worker"]["head"] and found["head"]["num_cpus"] == 0
    assert found["worker"]["address"] == "head:6379" and found["head"]["port"] in (None, 6379)
    assert compose["services"]["worker"]["deploy"]["replicas"] == 2
    (job,) = content(compose, "prometheus")["scrape_configs"]
    (scraped,) = job["dns_sd_configs"]
    assert scraped["names"] == NODES
    assert {found[name]["metrics_export_port"] for name in NODES} == {scraped["port"]}
    with pytest.raises(click.NoSuchOption):
        start.make_context("start", ["--metric-export-port=8080"])


def test_the_health_check_of_a_node_is_python(compose: Tree) -> None:
    python, option, code = compose["services"]["head"]["healthcheck"]["test"][1:]
    assert (python, option) == ("python", "-c")
    compile(code, "healthcheck", "exec")


def test_mlflow_starts_by_options_that_it_knows_and_answers_to_its_name(compose: Tree) -> None:
    program, command, *words = shlex.split(compose["services"]["mlflow"]["command"])
    assert (program, command) == ("mlflow", "server")
    options = dict(zip(words[::2], words[1::2], strict=True))
    package = Path(str(distribution("mlflow-skinny").locate_file("mlflow")))
    code = "".join((package / file).read_text(encoding="utf-8") for file in ("cli/__init__.py", "utils/cli_args.py"))
    known = set(re.findall(r'^ *"(--[\w-]+)"', code, flags=re.MULTILINE))  # importing it takes seconds
    assert "--host" in known and options.keys() - known == set()
    assert f"mlflow:{options['--port']}" in options["--allowed-hosts"].split(",")


def test_grafana_finds_prometheus_and_the_dashboard(compose: Tree, repository: Path) -> None:
    (source,) = content(compose, "grafana-datasource")["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert any(published.endswith(f":{port}") for published in compose["services"][host]["ports"])
    (provider,) = content(compose, "grafana-dashboards")["providers"]
    file, target, mode = next(volume for volume in compose["services"]["grafana"]["volumes"] if ".json" in volume).split(":")
    assert mode == "ro" and (repository / "docker" / file).resolve() == repository / "cluster" / "grafana.json"
    assert target.startswith(provider["options"]["path"] + "/")
    used = {one["source"]: one["target"] for service in compose["services"].values() for one in service.get("configs", [])}
    assert used.keys() == compose["configs"].keys()
    assert all(used[f"grafana-{name}s"].startswith(f"/etc/grafana/provisioning/{name}s/") for name in ("dashboard",))


def test_volumes_are_declared_and_belong_to_who_writes_to_them(compose: Tree) -> None:
    named = {}
    for name, service in compose["services"].items():
        mounts = [volume.split(":") for volume in service["volumes"] if ":" in volume and not volume.startswith(".")]
        named[name] = {volume: path for volume, path, *_ in mounts}
    assert {volume for volumes in named.values() for volume in volumes} == compose["volumes"].keys()
    command, owner, *paths = compose["services"][ONCE]["command"]
    assert command == "chown" and set(paths) == set(named[ONCE].values())
    written = {volume for name in named if compose["services"][name]["user"] == owner for volume in named[name]}
    assert written == named[ONCE].keys()


def test_secrets_are_variables_that_the_readme_makes(compose: Tree, repository: Path) -> None:
    text = (repository / "docker" / "compose.yaml").read_text(encoding="utf-8")
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {"RAY_AUTH_TOKEN", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert value.startswith("${") or not re.search("TOKEN|SECRET|PASSWORD|KEY", name), name
    readme = (repository / "cluster" / "README.md").read_text(encoding="utf-8")
    made = re.search(r"for name in ([A-Z0-9_ ]+); do", readme)
    assert made and set(made[1].split()) == required
    assert "docker/.env" in (repository / ".gitignore").read_text(encoding="utf-8")
