"""Every knob of a training step, at small size, by what it promises."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import Config, OptimizerSection, TrainSection, parse_config
from pipeline.errors import UserError
from pipeline.evaluation.predict import Scorer
from pipeline.methods import METHODS, STUDENTS, LossWeights, Views, build_method, make_views
from pipeline.methods.fixmatch import FixMatch
from pipeline.methods.parts.losses import supervised_loss
from pipeline.methods.parts.make_views import draw_mixup_shares, mix_clips
from pipeline.methods.parts.terms import Results
from pipeline.training.checkpoints import checkpoint
from pipeline.training.loop import TrainingRun, TrainWorker, divide_step, train
from pipeline.training.model_options import apply_train_options
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import compute_lr_factor
from pipeline.training.step import StepContext, split_batch, take_step
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config

HERE = StepContext(rank=0, device=torch.device("cpu"), weight=1.0)
BATCH_NORM = {"network": {"depth": 10, "width": 8}}


def config_of(**train: Any) -> Config:
    return small_config(train={"warmup_steps": 0, **train})


def state_of(config: Config) -> checkpoint.TrainState:
    torch.manual_seed(0)
    method = apply_train_options(build_method(config, CLASSES, VIDEOS, VIDEOS // 2), config.train)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, {})
    state.scaler = torch.amp.GradScaler("cpu") if config.train.precision == "fp16" else None
    return state


def steps(config: Config, number: int = 3) -> tuple[checkpoint.TrainState, list[Results]]:
    state = state_of(config)
    found = []
    for step in range(number):
        state.step = step
        found.append(take_step(state.method, state, batch_of(step), config, HERE))
    return state, found


def weights(state: checkpoint.TrainState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.students.parameters()])


@pytest.fixture
def plain() -> tuple[checkpoint.TrainState, list[Results]]:
    return steps(config_of())


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("method", METHODS)
def test_weighted_parts_add_up_to_the_loss(method: str, weight: float) -> None:
    """What the shares in the metrics are made of, for every method, while the supervised term rises to its weight too."""
    section = {"name": method, "supervised": {"weight": weight, "ramp": 2 if weight > 1 else 0}}
    for found in steps(small_config(method=section))[1]:
        parts = [value for name, value in found.items() if name.startswith("weighted/")]
        assert float(torch.stack(parts).sum()) == pytest.approx(float(found["loss"]), rel=1e-5)


class Watching(FixMatch):
    """A method that reports a part which no weight is named after."""

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        return super().forward(views, weights) | {"entropy_loss/primary": torch.ones(())}


def test_parts_that_no_weight_is_named_after_are_no_weighted_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "watching", Watching)
    _, (found,) = steps(small_config(method={"name": "watching"}), 1)
    assert found["entropy_loss/primary"] == 1
    assert {name for name in found if name.startswith("weighted/")} == {"weighted/pseudo_label", "weighted/supervised"}


def test_adamw_moves_by_the_rate_whatever_the_gradient() -> None:
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, OptimizerSection(algorithm="adamw", lr=0.01, weight_decay=0.0))
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 1e-3), torch.full((2,), 1e3)
    optimizer.step()
    assert (before - layer.weight).detach().flatten().tolist() == pytest.approx([0.01] * 6, rel=1e-3)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    decayed, free = build_optimizer(layer, OptimizerSection(algorithm="adamw", weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_adamw_state_survives_a_checkpoint(tmp_path: Path) -> None:
    config = small_config(primary={"network": {"depth": 10, "width": 8, "norm": "group"}, "optimizer": {"algorithm": "adamw"},
                                   "clip": {"frames": 4, "fps": 8, "size": 16}})  # fmt: skip
    state, _ = steps(config, 3)
    checkpoint.save(state, tmp_path)
    other = state_of(config)
    checkpoint.load(other, tmp_path / "checkpoint_000002")
    for one in (state, other):
        one.step = 3
        take_step(one.method, one, batch_of(3), config, HERE)
    assert torch.equal(weights(state), weights(other))


def test_rates_fall_at_milestones() -> None:
    section = TrainSection(steps=100, warmup_steps=10, schedule="step", milestones=(50, 80))
    assert [compute_lr_factor(step, section) for step in (4, 10, 49, 50, 79, 80, 99)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(("method", "passes"), [({}, 3), ({"pseudo_label": {"weight": 0.0}}, 2), ({"name": "supervised"}, 1)])
def test_views_that_no_loss_looks_at_are_not_made_nor_passed(method: dict[str, Any], passes: int) -> None:
    """Labeled, weak and strong ones of ActNetFormer; the contrast alone looks at weak ones; and labels need neither."""
    config = small_config(method=method)
    state = state_of(config)
    seen: list[int] = []
    state.students["primary"].register_forward_pre_hook(lambda module, clips: seen.append(len(clips[0])))
    results = take_step(state.method, state, batch_of(0), config, HERE)
    assert seen == [4, 8, 8][:passes]
    assert ("pseudo_label_loss/primary" in results) == (passes == 3)
    assert ("contrast_loss" in results) == (passes >= 2)
    assert float(results["loss"]) > 0


def test_compile_with_activation_checkpointing_is_refused_before_a_run_starts() -> None:
    with pytest.raises(UserError, match="compile=aot_eager and activation_checkpointing=true do not work together"):
        config_of(compile="aot_eager", activation_checkpointing=True)


@pytest.mark.parametrize("train", [{"schedule": "step"}, {"milestones": [5]}, {"schedule": "step", "milestones": [5, 3]}])
def test_milestones_that_make_no_schedule(train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="milestones"):
        parse_config({"train": train})


def test_accumulated_parts_equal_the_whole() -> None:
    """Without BatchNorm and contrast nothing depends on which clips go through together."""
    for method in ("supervised", "cmpl"):
        whole, one = steps(small_config(method={"name": method}, train={"warmup_steps": 0}))
        parted, other = steps(small_config(method={"name": method}, train={"warmup_steps": 0, "accumulation": 4}))
        assert torch.allclose(weights(whole), weights(parted), atol=1e-6)
        for mine, its in zip(one, other, strict=True):
            assert mine.keys() == its.keys()
            assert all(
                float(its[name]) == pytest.approx(float(mine[name]), rel=1e-3, abs=1e-6)
                for name in mine
                if mine[name].ndim == 0
            )


def test_parts_hold_every_row_once() -> None:
    batch = batch_of(0)
    parts = list(split_batch(batch, [3, 1]))
    assert [len(part.rows) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.rows for part in parts]), batch.rows)
    assert torch.equal(torch.cat([part.auxiliary for part in parts]), batch.auxiliary)


def test_parts_of_different_sizes_equal_the_whole() -> None:
    """Those of a worker that took over rows of another."""
    config = small_config(method={"name": "supervised"}, train={"warmup_steps": 0})
    whole, (one,) = steps(config, 1)
    parted = state_of(config)
    other = take_step(parted.method, parted, batch_of(0), config, replace(HERE, part_rows=[[3], [1]]))
    assert torch.allclose(weights(whole), weights(parted), atol=1e-6)
    assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)


def test_parts_must_fit_the_workers() -> None:
    class Rows:
        rows_per_step = 6

    plan: Any = Rows()

    def rows(world: int, accumulation: int = 1, workers: int = 2) -> list[list[int]]:
        config = small_config(train={"accumulation": accumulation}, scale={"workers": workers})
        return divide_step(plan, config, world)

    assert rows(2, accumulation=3) == [[1, 1]] * 3
    assert rows(4, workers=4) == [[2, 2, 1, 1]]
    with pytest.raises(UserError, match=r"train\.accumulation=2 must divide the rows of each worker"):
        rows(2, accumulation=2)
    # fewer workers than configured: as many rows at a time as before, and never a worker without any
    assert rows(1, accumulation=3) == [[1]] * 6
    assert rows(2, accumulation=2, workers=3) == [[1, 1]] * 3
    plan.rows_per_step = 8
    assert rows(3, accumulation=2, workers=4) == [[2, 2, 1], [1, 1, 1]]


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


@pytest.mark.parametrize("network", [BATCH_NORM["network"], {"arch": "r3d_18"}], ids=["slow_resnet", "r3d_18"])
def test_checkpointed_blocks_have_the_same_gradient_and_statistics(network: dict[str, Any]) -> None:
    clip = {"frames": 4, "fps": 8, "size": 16}
    found = []
    for switched in (False, True):
        config = small_config(primary={"network": network, "clip": clip}, train={"activation_checkpointing": switched})
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


def test_compiled_students_say_the_same(plain: tuple[checkpoint.TrainState, list[Results]]) -> None:
    """With the backend that traces and generates no code: Inductor on the CPU wants a C++ compiler, which tests must not."""
    torch._dynamo.reset()
    state, found = steps(config_of(compile="aot_eager"))
    assert [float(line["loss"]) for line in found] == pytest.approx([float(line["loss"]) for line in plain[1]], rel=1e-4)
    assert state.method.state_dict().keys() == plain[0].method.state_dict().keys()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["actnetformer", "tcl"])
def test_compiled_students_are_compiled_in_the_first_step_and_never_again(name: str) -> None:
    """One graph for each number of clips that a student sees, none for numbers in general; BatchNorm, whose running statistics
    strong views leave alone, included."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = small_config(method={"name": name}, primary=BATCH_NORM, train={"compile": "aot_eager"})
    state = state_of(config)
    graphs = []
    for step in range(3):
        take_step(state.method, state, batch_of(step), config, HERE)
        state.step += 1
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2] <= 8
    torch._dynamo.reset()


@pytest.fixture
def free() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


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
    worker = TrainWorker(0, 1, torch.device("cpu"), lambda method: method)
    from pipeline.run_folder.contents import Fingerprints

    for switched in (True, False):
        run = TrainingRun(config_of(deterministic=switched), plan, CLASSES, VIDEOS, Fingerprints("", "", ""), tmp_path)
        with pytest.raises(InterruptedError):
            train(run, batches, worker)
    assert seen == [(True, ":4096:8"), (False, None)]


def test_smoothed_labels() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    spread = 0.9 * torch.nn.functional.one_hot(labels, 4) + 0.1 / 4
    wanted = -(spread * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(supervised_loss(logits, labels, 0.1)) == pytest.approx(float(wanted), rel=1e-5)
    plain, smoothed = (steps(small_config(method={"supervised": {"label_smoothing": value}}), 1)[1][0] for value in (0.0, 0.1))
    assert float(smoothed["supervised_loss/primary"]) != pytest.approx(float(plain["supervised_loss/primary"]), abs=1e-5)


def test_mixed_clips_and_their_labels() -> None:
    logits, labels, shares = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.25, 0.5])
    said = logits.log_softmax(dim=1)
    wanted = -(said[0, 0] + 0.25 * said[1, 1] + 0.75 * said[1, 0] + 0.5 * said[2, 2] + 0.5 * said[2, 1]) / 3
    assert float(supervised_loss(logits, labels, shares_B=shares)) == pytest.approx(float(wanted), rel=1e-5)

    clips = torch.randn(3, 3, 2, 4, 4)
    mixed = mix_clips(clips, shares)
    assert torch.allclose(mixed[0], clips[0])
    assert torch.allclose(mixed[1], 0.25 * clips[1] + 0.75 * clips[0], atol=1e-6)

    config = small_config(method={"supervised": {"mixup": 0.4}})
    plain, mixing = (make_views(batch_of(0), each, 0, "cpu") for each in (small_config(), config))
    assert plain.mixed_shares is None and mixing.mixed_shares is not None
    rows = batch_of(0).rows.numpy()
    assert torch.equal(mixing.mixed_shares, torch.from_numpy(draw_mixup_shares(0, rows, 0.4)).float())
    for name in STUDENTS:
        assert torch.equal(mixing.labeled[name], mix_clips(plain.labeled[name], mixing.mixed_shares))
        assert plain.unlabeled is not None and mixing.unlabeled is not None
        assert torch.equal(mixing.unlabeled.strong[name], plain.unlabeled.strong[name])
    _, found = steps(config, 2)
    assert torch.isfinite(found[-1]["loss"])


def test_a_step_does_not_depend_on_what_was_drawn_before() -> None:
    config = small_config(auxiliary={"network": {"width": 32, "depth": 2, "heads": 2, "patch": 8, "dropout": 0.5},
                                     "clip": {"frames": 4, "fps": 8, "size": 16}})  # fmt: skip
    one = state_of(config)
    other = replace(one, method=copy.deepcopy(one.method))
    torch.rand(7)
    first = float(take_step(one.method, one, batch_of(0), config, HERE)["loss"])
    torch.rand(3)
    other_students: Any = other.method
    other.students = other_students.students
    assert float(take_step(other.method, other, batch_of(0), config, HERE)["loss"]) == first
