from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.ray_cluster.resources import Node, Resources, count_workers, plan_resources, plan_resources_on_nodes


def fit(*words: str, cpus: float = 2, gpus: float = 0) -> object:
    return plan_resources(load_config(overrides=["data.labeled_per_step=8", *words]), cpus, gpus)


@given(workers=st.sampled_from([1, 2, 4, 8]), cpus=st.integers(1, 256), gpus=st.integers(0, 8))
def test_what_is_given_out_fits_and_leaves_room_to_decode(workers: int, cpus: int, gpus: int) -> None:
    config = load_config(overrides=[f"scale.workers={workers}", "data.labeled_per_step=8"])
    if cpus / 2 / workers < 0.1 or 0 < gpus < workers:
        with pytest.raises(UserError):
            plan_resources(config, cpus, gpus)
        return
    resources = plan_resources(config, cpus, gpus)
    assert resources.workers * resources.cpus_per_worker + resources.cpus_per_decoder <= cpus + 1e-9
    assert 0.1 <= resources.cpus_per_worker <= (2 if resources.gpu else 1)
    assert resources.workers * resources.cpus_per_worker <= cpus / 2 + 1e-9  # the other half decodes
    assert resources.gpu == (gpus >= workers)


def test_two_workers_share_two_cpus_with_two_decoders() -> None:
    resources = fit("scale.workers=2")
    assert (resources.cpus_per_worker, resources.cpus_per_decoder) == (0.5, 0.5)  # type: ignore[attr-defined]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match=r"the cluster has 2 CPUs.*lower scale\.workers"):
        fit("scale.workers=2", "scale.cpus_per_worker=1")
    with pytest.raises(UserError, match=r"scale\.workers=0 needs no cluster"):
        fit(cpus=0)
    with pytest.raises(UserError, match=r"needs 2 GPUs .* the cluster has 1"):
        fit("scale.workers=2", "scale.gpu=true", gpus=1)


def test_fewer_gpus_than_workers_are_not_left_unused_in_silence() -> None:
    with pytest.raises(UserError, match=r"scale\.workers=8 needs 8 GPUs, the cluster has 4: lower .*scale\.gpu=false"):
        fit("scale.workers=8", cpus=64, gpus=4)
    assert fit("scale.workers=8", "scale.gpus_per_worker=0.5", cpus=64, gpus=4).gpu  # type: ignore[attr-defined]
    assert not fit("scale.workers=8", "scale.gpu=false", cpus=64, gpus=4).gpu  # type: ignore[attr-defined]


TRAIN, DECODE = Node(8, 4, {"role": "train"}), Node(32, 0, {"role": "decode", "zone": "a"})


def test_decode_tasks_on_machines_of_their_own_leave_the_others_to_the_workers() -> None:
    words = ["scale.workers=4", "scale.train_labels={role: train}", "scale.decode_labels={role: decode}"]
    resources = plan_resources_on_nodes(load_config(overrides=words), [TRAIN, DECODE])
    assert (resources.gpu, resources.cpus_per_worker, resources.cpus_per_decoder) == (True, 2, 0.5)
    assert (resources.train_labels, resources.decode_labels) == ({"role": "train"}, {"role": "decode"})
    with pytest.raises(
        UserError, match=r"the cluster has 8 CPUs that may train and 32 that may decode; 4 .* \(4 x 3 \+ 0\.5\)"
    ):
        plan_resources_on_nodes(load_config(overrides=[*words, "scale.cpus_per_worker=3"]), [TRAIN, DECODE])


def test_without_labels_all_machines_count() -> None:
    resources = plan_resources_on_nodes(load_config(overrides=["scale.workers=4"]), [TRAIN, DECODE])
    assert resources == fit("scale.workers=4", cpus=40, gpus=4)


@pytest.mark.parametrize(
    ("cpus", "gpus", "each"),
    [(16, 1, 2), (8, 1, 2), (6, 1, 1.5), (4, 1, 1), (2, 1, 1), (1, 1, 0.5), (96, 8, 2), (16, 8, 1)],
)
def test_a_worker_with_a_gpu_has_two_cpus_where_a_quarter_of_them_is_that(cpus: int, gpus: int, each: float) -> None:
    """What they leave decodes: see the table of docs/stream.md."""

    def own(*words: str) -> float:
        config = load_config(overrides=["data.labeled_per_step=8", f"scale.workers={gpus}", *words])
        return plan_resources(config, cpus, gpus).cpus_per_worker

    assert own() == own("scale.gpu=true") == each
    assert own("scale.gpu=false") == min(1, cpus / gpus / 2)
    assert own("scale.cpus_per_worker=0.3") == 0.3


def test_workers_fit_beside_the_gpus_of_the_machine_with_fewest_cpus() -> None:
    """Ray places a worker on one machine: CPUs of others do not help it."""
    nodes = [Node(8, 8), Node(64, 8), Node(128, 0)]
    assert plan_resources_on_nodes(load_config(overrides=["scale.workers=8"]), nodes).cpus_per_worker == 1
    assert (
        plan_resources_on_nodes(load_config(overrides=["scale.workers=8", "scale.gpus_per_worker=0.5"]), nodes).cpus_per_worker
        == 0.5
    )
    assert plan_resources_on_nodes(load_config(overrides=["scale.workers=8"]), nodes[1:]).cpus_per_worker == 2


def test_labels_that_no_node_has_are_named() -> None:
    with pytest.raises(UserError, match=r"scale\.decode_labels=\{'role': 'cpu'\}.*role=decode, role=train, zone=a"):
        plan_resources_on_nodes(load_config(overrides=["scale.decode_labels={role: cpu}"]), [TRAIN, DECODE])


def test_workers_without_a_row_are_refused() -> None:
    assert fit("scale.workers=3", cpus=16).workers == 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"scale\.workers=9 is more than data\.labeled_per_step=8"):
        fit("scale.workers=9", cpus=32)


def test_an_elastic_run_starts_with_what_there_is() -> None:
    elastic = ["scale.workers=4", "scale.min_workers=2", "scale.cpus_per_worker=1", "scale.cpus_per_decoder=0.5"]
    assert [fit(*elastic, cpus=cpus).workers for cpus in (2.5, 3.5, 4, 9)] == [2, 3, 3, 4]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"2 train workers and at least one decode task need 2\.5"):
        fit(*elastic, cpus=2)
    assert fit(*elastic[:2], "scale.gpu=true", cpus=8, gpus=3).workers == 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"needs 2 GPUs for scale.workers=4, the cluster has 1"):
        fit(*elastic[:2], "scale.gpu=true", cpus=8, gpus=1)
    with pytest.raises(UserError, match=r"min_workers=5 is more than workers=4"):
        fit("scale.workers=4", "scale.min_workers=5")


@pytest.mark.parametrize(
    ("nodes", "labels", "per_worker", "workers"),
    [
        ([(2, "train"), (2, "train"), (2, "decode")], True, 2.0, 2),
        ([(2, "train"), (2, "decode")], True, 2.0, 1),  # Ray's own count takes the node that decodes for one that trains
        ([(2, "train")], True, 2.0, 0),  # nowhere to decode
        ([(2, "any")], False, 1.0, 1),  # the other CPU decodes
        ([(2, "any"), (2, "any")], False, 1.0, 3),
        ([(2, "any"), (2, "any")], False, 2.0, 1),
        ([(1, "any")] * 3, False, 2.0, 0),  # a worker is on one machine
        ([(8, "any")] * 2, False, 0.1, 4),  # as many as the run wants
    ],
)
def test_an_elastic_run_has_as_many_workers_as_fit_beside_a_decode_task(
    nodes: list[tuple[float, str]], labels: bool, per_worker: float, workers: int
) -> None:
    machines = [Node(cpus, 0, {"role": role}) for cpus, role in nodes]
    apart = ({"role": "train"}, {"role": "decode"}) if labels else ({}, {})
    assert count_workers(machines, Resources(4, per_worker, 0.5, False, *apart), most=4) == workers


def test_workers_of_an_elastic_run_share_gpus_as_the_run_says() -> None:
    machines = [Node(16, 2), Node(16, 1), Node(16, 0)]
    assert count_workers(machines, Resources(8, 1.0, 0.5, True), most=8) == 3
    assert count_workers(machines, Resources(8, 1.0, 0.5, True, gpus_per_worker=0.5), most=8) == 6
    assert count_workers(machines, Resources(8, 16.0, 0.5, True), most=8) == 2  # the third machine decodes
