"""What ``train`` changes of the students: precision, running means, activation checkpoints, compilation, determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluation.scorer import Scorer
from pipeline.training.checkpoints import checkpoint
from pipeline.training.loop import TrainingRun, TrainWorker, train
from pipeline.training.step import take_step
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config
from tests.training.few_steps import BATCH_NORM, HERE, config_of, state_of, steps, weights


def test_compile_with_activation_checkpointing_is_refused_before_a_run_starts() -> None:
    with pytest.raises(UserError, match="compile=aot_eager and activation_checkpointing=true do not work together"):
        config_of(compile="aot_eager", activation_checkpointing=True)


def test_half_precision_scales_and_its_scale_survives(tmp_path: Path) -> None:
    config = config_of(precision="fp16")
    state, found = steps(config)
    assert all(torch.isfinite(value).all() for value in found[-1].values())
    assert float(found[-1]["skipped/primary"]) == 0
    state.scaler.update(1234.0)
    state.step = 3
    checkpoint.save(state, tmp_path)
    other = state_of(config)
    checkpoint.load(other, tmp_path / "checkpoint_000003")
    assert other.scaler.get_scale() == 1234.0


def test_overflow_leaves_the_weights_alone_and_lowers_the_scale() -> None:
    config = config_of(precision="fp16")
    state = state_of(config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = weights(state).clone()
    found = take_step(state.method, state, batch_of(0), config, HERE)
    assert (float(found["skipped/primary"]), float(found["skipped/auxiliary"])) == (1, 1)
    assert torch.equal(before, weights(state))
    assert state.scaler.get_scale() == 2.0**119


def test_running_means_follow_the_students() -> None:
    config = config_of(ema_decay=0.5)
    state = state_of(config)
    method: Any = state.method
    mean = weights(state).clone()
    for step in range(4):
        state.step = step
        take_step(state.method, state, batch_of(step), config, HERE)
        share = min(0.5, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * weights(state)
    averages = torch.cat([parameter.flatten() for parameter in method.averages.parameters()])
    assert torch.allclose(averages, mean, atol=1e-6)
    assert not torch.allclose(averages, weights(state), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in method.averages.parameters())


def test_running_means_are_what_is_evaluated(tmp_path: Path) -> None:
    config = config_of(ema_decay=0.9)
    state, _ = steps(config)
    file = checkpoint.save(state, tmp_path) / "model.safetensors"
    method: Any = state.method
    for wanted, tree in ((method.averages, config), (state.students, config_of())):
        scorer = Scorer(tree.model_dump(mode="json"), CLASSES, str(file))
        assert torch.equal(scorer.students["primary"].head.weight, wanted["primary"].head.weight)


@pytest.mark.parametrize(
    ("network", "method"), [(BATCH_NORM["network"], "actnetformer"), ({"arch": "r3d_18"}, "supervised")], ids=["slow", "r3d_18"]
)
def test_checkpointed_blocks_have_the_same_gradient_and_statistics(network: dict[str, Any], method: str) -> None:
    """r3d_18 has 33 million parameters: it is passed once a step, not three times."""
    clip, found = {"frames": 4, "fps": 8, "size": 16}, []
    for switched in (False, True):
        config = small_config(
            method={"name": method}, primary={"network": network, "clip": clip}, train={"activation_checkpointing": switched}
        )
        state, results = steps(config, 2)
        found.append((dict(state.method.state_dict()), results))
    (one, results_one), (other, results_other) = found
    for name in one:
        if not name.endswith("num_batches_tracked"):  # counts the second computation too, and nothing reads it
            assert torch.allclose(one[name], other[name], atol=1e-6), name
    assert float(results_one[1]["loss"]) == pytest.approx(float(results_other[1]["loss"]), rel=1e-6)


def test_checkpointed_blocks_keep_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that the backward pass holds on to after a forward pass."""
    kept = []
    for switched in (False, True):
        config = small_config(primary=BATCH_NORM, train={"activation_checkpointing": switched})
        student = state_of(config).students["auxiliary"]
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            student(torch.randn(4, 3, 4, 16, 16))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    ("name", "network"), [("actnetformer", BATCH_NORM["network"]), ("tcl", {"arch": "plain_conv3d", "width": 8, "layers": 2})]
)
def test_compiled_students_say_the_same_and_are_compiled_in_the_first_step_alone(name: str, network: dict[str, Any]) -> None:
    """One graph for each number of clips that a student sees, none for numbers in general; BatchNorm, whose running statistics
    strong views leave alone, included. With the backend that traces and generates no code: Inductor on the CPU wants a C++
    compiler, which tests must not."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    auxiliary = {"network": {"width": 32, "depth": 1, "heads": 2, "patch": 8}}  # tracing takes its time for every layer
    plain, config = (
        small_config(
            method={"name": name}, primary={"network": network}, auxiliary=auxiliary,
            train={"warmup_steps": 0, "compile": compile},
        )
        for compile in ("off", "aot_eager")
    )  # fmt: skip
    wanted_state, wanted = steps(plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    state = state_of(config)
    graphs, losses = [], []
    for step in range(3):
        state.step = step
        losses.append(float(take_step(state.method, state, batch_of(step), config, HERE)["loss"]))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert losses == pytest.approx([float(line["loss"]) for line in wanted], rel=1e-4)
    assert state.method.state_dict().keys() == wanted_state.method.state_dict().keys()
    assert 0 < graphs[0] == graphs[1] == graphs[2] <= 8
    torch._dynamo.reset()


@pytest.mark.usefixtures("free")
def test_deterministic_mode_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And cuBLAS's, which is asked for by the environment, before its first product."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def batches(step: int) -> Iterator[Any]:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)))
        raise InterruptedError
        yield

    class Plan:
        rows_per_step, sizes = 4, (VIDEOS, VIDEOS // 2)

    plan: Any = Plan()
    source: Any = None  # nothing is evaluated
    worker = TrainWorker(0, 1, torch.device("cpu"), lambda method: method)
    from pipeline.run_folder.contents import Fingerprints

    for switched in (True, False):
        config, nothing = config_of(deterministic=switched), Fingerprints("", "", "")
        run = TrainingRun(config, source, plan, CLASSES, VIDEOS, nothing, tmp_path)
        with pytest.raises(InterruptedError):
            train(run, batches, worker)
    assert seen == [(True, ":4096:8"), (False, None)]
