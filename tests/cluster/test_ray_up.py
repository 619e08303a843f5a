"""cluster/ray-up.yaml as Ray's cluster launcher reads it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.ray_cluster.resources import plan_resources
from tests.cluster.rendered import Tree, read_yaml, run_config


@pytest.fixture(scope="module")
def ray_up(repository: Path) -> Tree:
    found: Tree = read_yaml(repository / "cluster" / "ray-up.yaml")
    return found


def test_the_launcher_accepts_its_file(ray_up: Tree) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(ray_up, schema)
    prepared = prepare_config(copy.deepcopy(ray_up))
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
def test_the_launcher_refuses_a_misspelled_field(keys: list[str], value: Any, ray_up: Tree) -> None:
    wrong = copy.deepcopy(ray_up)
    target = wrong
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_the_launchers_cluster_fits_the_same_run(repository: Path, ray_up: Tree, rendered: dict[str, dict[str, Tree]]) -> None:
    kinds = ray_up["available_node_types"].values()
    cpus, gpus = (sum(kind.get("min_workers", 0) * kind["resources"].get(name, 0) for kind in kinds) for name in ("CPU", "GPU"))
    assert plan_resources(run_config(rendered["gpu/job"]["RayJob"]["spec"]["entrypoint"], repository), cpus, gpus).gpu
