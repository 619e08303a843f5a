"""The objects of cluster/overlays against the schemas of those who read them, and what all pods must have."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from click.testing import CliRunner
from ray.scripts.scripts import drain_node
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

from tests.cluster.rendered import OVERLAYS, Tree, find_cluster, list_nodes, read_yaml, render

Rendered = dict[str, dict[str, Tree]]
KUBERAY = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
}
OBJECTS = [(name, kind) for name, kinds in OVERLAYS.items() for kind in kinds]
CUSTOM = [(name, kind) for name, kind in OBJECTS if kind in KUBERAY]
CORE = [(name, kind) for name, kind in OBJECTS if kind not in KUBERAY]
KUBERNETES = ["1.30", "1.37"]
"""The oldest and the newest version of Kubernetes whose schemas the objects are compared with."""


@pytest.fixture(scope="session")
def schemas(repository: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """Strict validators of the KubeRay operator's custom resources."""
    folder = repository.parent / "shared" / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"no custom resource definitions at {folder}")
    return {kind: jsonschema.Draft202012Validator(strict(_v1(read_yaml(folder / crd)))) for kind, crd in KUBERAY.items()}


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


def test_overlays_make_these_objects_and_no_others(repository: Path, rendered: Rendered) -> None:
    assert {name: sorted(objects) for name, objects in rendered.items()} == OVERLAYS
    folder = repository / "cluster" / "overlays"
    found = {str(path.parent.relative_to(folder)) for path in folder.rglob("kustomization.yaml")}
    assert found - OVERLAYS.keys() == {"kind/settings", "gpu/settings"}
    assert render(folder / "gpu" / "settings") == ""


@pytest.mark.parametrize(("name", "kind"), CUSTOM)
def test_kuberay_knows_every_field(name: str, kind: str, rendered: Rendered, schemas: dict[str, Any]) -> None:
    assert [f"{error.json_path}: {error.message}" for error in schemas[kind].iter_errors(rendered[name][kind])] == []
    assert rendered[name][kind]["apiVersion"] == "ray.io/v1"


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(("name", "kind"), CORE)
def test_kubernetes_knows_every_field(name: str, kind: str, version: str, rendered: Rendered) -> None:
    kubernetes_validate.validate(rendered[name][kind], version, strict=True)


MISTAKES = [
    ("headGroupSpecs", ["headGroupSpecs"], {}),
    ("replica", ["workerGroupSpecs", 0, "replica"], 1),
    ("'two'", ["workerGroupSpecs", 0, "replicas"], "two"),
    ("volumeMount", ["workerGroupSpecs", 1, "template", "spec", "containers", 0, "volumeMount"], []),
    ("sizelimit", ["headGroupSpec", "template", "spec", "volumes", 0, "emptyDir", "sizelimit"], "1Gi"),
    ("tokens", ["authOptions", "mode"], "tokens"),
]


def put(tree: Any, keys: list[Any], value: Any) -> None:
    """Sets what is at the place ``keys`` in a tree of mappings and lists."""
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


@pytest.mark.parametrize(("shown", "keys", "value"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
@pytest.mark.parametrize(("name", "kind"), [one for one in CUSTOM if one[0].startswith("gpu")])
def test_a_misspelled_field_is_found(
    name: str, kind: str, shown: str, keys: list[Any], value: Any, rendered: Rendered, schemas: dict[str, Any]
) -> None:
    wrong = copy.deepcopy(rendered[name][kind])
    put(find_cluster(wrong), keys, value)
    assert any(shown in error.message for error in schemas[kind].iter_errors(wrong))


@pytest.mark.parametrize(
    ("name", "kind", "keys", "value"),
    [
        ("gpu", "NetworkPolicy", ["spec", "podSelectors"], {}),
        ("gpu", "NetworkPolicy", ["spec", "ingress", 0, "from", 0, "podSelector", "matchLabel"], {}),
        ("gpu", "PersistentVolumeClaim", ["spec", "accessModes"], "ReadWriteMany"),
        ("gpu/nightly", "CronJob", ["spec", "jobTemplate", "spec", "template", "spec", "containers", 0, "argument"], []),
    ],
)
def test_a_misspelled_field_of_kubernetes_is_found(
    name: str, kind: str, keys: list[Any], value: Any, rendered: Rendered
) -> None:
    wrong = copy.deepcopy(rendered[name][kind])
    put(wrong, keys, value)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_numbers_are_not_given_to_another_group(repository: Path, tmp_path: Path) -> None:
    """The patches count groups; if somebody puts them in another order, Kustomize refuses."""
    copied = shutil.copytree(repository / "cluster", tmp_path / "cluster")
    file = copied / "base" / "raycluster.yaml"
    file.write_text(
        re.sub(r"groupName: (decode|train)", "groupName: other", file.read_text(encoding="utf-8")), encoding="utf-8"
    )
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(copied / "overlays" / "gpu")
    assert "/spec/workerGroupSpecs/0/groupName" in refused.value.stderr


# ---------------------------------------------------------------------------------------------------------- the pods


def list_pods(objects: dict[str, Tree]) -> Iterator[Tree]:
    """All pod templates of the objects: nodes of Ray clusters and pods that submit."""
    for kind, one in objects.items():
        if kind in KUBERAY:
            yield from list_nodes(one)
            job = one["spec"].get("jobTemplate", one["spec"])
            yield from [job["submitterPodTemplate"]] if "submitterPodTemplate" in job else []
        elif kind == "CronJob":
            yield one["spec"]["jobTemplate"]["spec"]["template"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_no_rights_and_write_to_volumes_only(name: str, rendered: Rendered) -> None:
    """As the Pod Security Standard "restricted" asks, with a read-only root; HOME and TMPDIR are in a volume of the pod."""
    for template in list_pods(rendered[name]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
        assert {key for volume in volumes.values() for key in volume} <= {"emptyDir", "persistentVolumeClaim"}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        variables = {one["name"]: one.get("value") for one in container["env"]}
        assert variables["HOME"] == "/tmp" and not {"TMPDIR", "RAY_TMPDIR"} & variables.keys()
        assert mounts["/tmp"]["emptyDir"].keys() == {"sizeLimit"}  # on a disk: Ray spills objects there
        autoscaler = find_cluster(next(iter(rendered[name].values())))
        for one in (container, autoscaler.get("autoscalerOptions", container)):
            rights = one["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert {mount["mountPath"] for mount in one["volumeMounts"]} >= {"/tmp"}


@pytest.mark.parametrize(("name", "kind"), CUSTOM)
def test_nodes_get_what_they_ask_for_and_share_the_volume(name: str, kind: str, rendered: Rendered) -> None:
    claim = rendered[f"{name.partition('/')[0]}/shared"]["PersistentVolumeClaim"]["metadata"]["name"]
    for template in list_nodes(rendered[name][kind]):
        (container,) = template["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"] == {"claimName": claim}
        memory = mounts["/dev/shm"]["emptyDir"]
        assert memory["medium"] == "Memory"
        wanted, there = (
            int(text.removesuffix("Gi")) for text in (container["resources"]["limits"]["memory"], memory["sizeLimit"])
        )
        assert 0.3 * wanted <= there < wanted  # Ray's object store takes 30 %


@pytest.mark.parametrize(("name", "kind"), CUSTOM)
def test_nodes_are_probed_and_scraped_where_something_answers(name: str, kind: str, rendered: Rendered) -> None:
    for place, template in enumerate(list_nodes(rendered[name][kind])):
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
        agent = {"path": "/api/healthz", "port": 52365}  # the port that KubeRay gives to Ray's agent
        web = {"path": "/readyz", "port": ports.get("serve")}
        asked = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")]
        assert asked == [agent, agent, web if kind == "RayService" and place else agent]


@pytest.mark.parametrize("name", [name for name, kinds in OVERLAYS.items() if "NetworkPolicy" in kinds])
def test_only_known_peers_reach_the_pods_and_at_ports_that_they_have(name: str, rendered: Rendered) -> None:
    policy = rendered[name]["NetworkPolicy"]["spec"]
    wanted = policy["podSelector"]["matchLabels"]
    side = [objects for other, objects in rendered.items() if other.partition("/")[0] == name.partition("/")[0]]
    pods = [template for objects in side for template in list_pods(objects)]
    assert len(pods) >= 10
    assert all(wanted.items() <= template["metadata"]["labels"].items() for template in pods)
    within, *others = policy["ingress"]
    assert within == {"from": [{"podSelector": {"matchLabels": wanted}}]}
    listening = {port["containerPort"] for pod in pods for port in pod["spec"]["containers"][0].get("ports", [])}
    named = [port["port"] for rule in others for port in rule["ports"]]
    assert set(named) <= listening and 6379 not in named
    assert [port for rule in others if "from" not in rule for port in rule["ports"]] == [{"protocol": "TCP", "port": 8000}]


def test_images_and_versions_are_the_projects_own(repository: Path, rendered: Rendered) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image = f"{project['name']}:{project['version']}"
    images = {"gpu": image, "kind": f"{image}-cpu"}
    pins = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    readme = (repository / "cluster" / "README.md").read_text(encoding="utf-8")
    for name, objects in rendered.items():
        assert {pod["spec"]["containers"][0]["image"] for pod in list_pods(objects)} <= {images[name.partition("/")[0]]}
        for kind in objects.keys() & KUBERAY.keys():
            assert f"ray=={find_cluster(objects[kind])['rayVersion']}" in pins
    assert read_yaml(repository / "cluster" / "ray-up.yaml")["docker"]["image"] == image
    assert all(f"-t {one} " in readme for one in images.values())


def test_what_all_pods_have_is_written_once(repository: Path) -> None:
    folders = [repository / "cluster" / name for name in ("base", "assemble", "overlays")]
    text = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.yaml")))
    for line in ("image: ", "workingDir: ", "runAsUser: ", "claimName: ", "rayVersion: ", "medium: Memory"):
        assert len(re.findall(rf"^ *(?:\w+: )?.*\b{line}", text, flags=re.MULTILINE)) == 1, line


def test_all_that_trains_has_the_same_cluster(rendered: Rendered) -> None:
    gpu = find_cluster(rendered["gpu"]["RayCluster"])
    assert find_cluster(rendered["gpu/job"]["RayJob"]) == gpu == find_cluster(rendered["gpu/raycronjob"]["RayCronJob"])
    assert find_cluster(rendered["kind/job"]["RayJob"]) == find_cluster(rendered["kind"]["RayCluster"]) != gpu
    decode, train = gpu["workerGroupSpecs"]
    assert gpu["enableInTreeAutoscaling"] and decode["minReplicas"] < decode["maxReplicas"]
    assert train["minReplicas"] == train["replicas"] == train["maxReplicas"]


def test_a_spot_machine_is_drained_before_it_goes(rendered: Rendered) -> None:
    """The hook's options are read by Ray itself, and it waits for processes that have the name of Ray Train's workers."""
    _, _, train = list_nodes(rendered["gpu"]["RayCluster"])
    shell, option, script = train["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    subprocess.run([shell, "-n", option, script], check=True)
    line = script.replace("\\\n", "").splitlines()[0].partition(" ||")[0]
    limit = int(re.match(r"timeout --signal=KILL (\d+) ray drain-node ", line)[1])  # type: ignore[index]
    options = re.findall(r'(--[\w-]+) ("[^"]+"|\S+)', line.partition("drain-node ")[2])
    seconds = int(dict(options)["--deadline-remaining-seconds"])
    assert f"{{1..{seconds}}}" in script and train["spec"]["terminationGracePeriodSeconds"] >= limit + seconds + 30
    with drain_node.make_context("drain-node", [word for pair in options for word in pair]) as context:
        assert context.params["deadline_remaining_seconds"] == seconds
        assert context.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    misspelled = CliRunner().invoke(drain_node, ["--reasons", "x"])
    assert misspelled.exit_code == 2
    (pattern,) = re.findall(r"grep -aqs '(.+)'", script)
    assert re.search(pattern, f"ray::{RayTrainWorker.__name__}.poll_status")
