"""A step on a device: what is copied there, and that nothing waits for it.

The device is torch's meta device: tensors without values. Whatever would have to know a value of the device (``item``,
``tolist``, ``nonzero``, a boolean index, a copy to the host) fails on it by itself, and a dispatch mode sees every copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pipeline.clips.batch import Batch
from pipeline.config import STUDENTS, Config
from pipeline.methods import METHODS, build_method, make_views
from pipeline.training.checkpoints import checkpoint
from pipeline.training.model_options import apply_train_options
from pipeline.training.monitoring.metric_log import MetricLog
from pipeline.training.monitoring.score_log import ScoreLog
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import StepContext, take_step
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config

DEVICE = torch.device("meta")


class Watched(TorchDispatchMode):
    """Notes copies between the host and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.up: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor) and leaf.ndim}
        if devices == {"cpu", "meta"}:
            self.up.append(str(function))
        return result


class Autocast(TorchFunctionMode):
    """What autocast does to the networks' products, which torch does not offer for meta tensors."""

    PRODUCTS = (F.linear, F.conv3d, torch.conv3d, torch.matmul, torch.Tensor.matmul, F.scaled_dot_product_attention)

    def __init__(self, _: str, dtype: torch.dtype = torch.float32, enabled: bool = True) -> None:
        super().__init__()
        self.dtype, self.enabled = dtype, enabled

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.enabled and function in self.PRODUCTS:
            args = tree_map_only(torch.Tensor, lambda value: value.to(self.dtype), args)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch has for a GPU and not for its meta device."""
    monkeypatch.setattr(torch, "autocast", Autocast)
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_sample_dirichlet", lambda concentration, generator=None: torch.empty_like(concentration))
    yield
    library._destroy()


def _take(config: Config, steps: int = 1) -> list[str]:
    """Copies to the device in each step, all else of which happens there."""
    torch.manual_seed(0)
    method = apply_train_options(build_method(config, CLASSES, VIDEOS, VIDEOS // 2), config.train).to(DEVICE)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, {})
    scores = ScoreLog(1, None, 0, 0)  # type: ignore[arg-type]  # nothing is written
    log = MetricLog(config, None, None, VIDEOS, 0, 1, 0)  # type: ignore[arg-type]  # nothing is written
    copies: list[str] = []
    for step in range(steps):
        batch = batch_of(step)
        there = replace(batch, primary=batch.primary.to(DEVICE), auxiliary=batch.auxiliary.to(DEVICE))
        with Watched() as watched:
            log.add(scores.keep(step, take_step(method, state, there, config, StepContext(0, DEVICE, 1.0)), there), there)
        copies.append(", ".join(watched.up))
        state.step += 1
    return copies


ONE_COPY = ["aten._to_copy.default"]
"""Of everything that is random in a step's views and the numbers of its videos."""
FEW_LAYERS: dict[str, dict[str, Any]] = {
    "primary": {"network": {"arch": "plain_conv3d", "width": 8, "layers": 2}},
    "auxiliary": {"network": {"width": 32, "depth": 1, "heads": 2, "patch": 8}},
}
"""Every operation on the meta device runs Python, and what is looked at here is mostly what a step does beside the networks.
Options below have a residual network, too."""


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_copies_one_small_tensor_and_waits_for_nothing(name: str) -> None:
    assert _take(small_config(**FEW_LAYERS, method={"name": name}), steps=2) == ONE_COPY * 2


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nor_does_a_step_in_bf16_of_two_parts_with_means_of_weights(name: str) -> None:
    train = {"precision": "bf16", "ema_decay": 0.9, "accumulation": 2}
    assert _take(small_config(**FEW_LAYERS, method={"name": name}, train=train)) == ONE_COPY


OPTIONS: dict[str, dict[str, Any]] = {
    "flexmatch": {"method": {"labels": {"thresholds": "flexmatch"}}},
    "freematch": {"method": {"labels": {"thresholds": "freematch"}}},
    "softmatch": {"method": {"labels": {"thresholds": "softmatch", "distribution_alignment": "labeled"}}},
    "soft labels": {"method": {"labels": {"source": "mean", "hard": False, "distribution_alignment": "uniform"}}},
    "teachers": {"method": {"labels": {"source": "ema"}}},
    "mixup": {"method": {"supervised": {"mixup": 0.4, "label_smoothing": 0.1}}},
    "frames": {"method": {"contrast": {"level": "frame", "features": "projection"}}, "data": {"moments": "shared"}},
    "one pass": {"method": {"batch_norm": "joint"}, "primary": {"network": {"depth": 10, "width": 8, "norm": "batch"}}},
    "contrast alone": {"method": {"pseudo_label": {"weight": 0.0}}},
    "time": {"views": {"strong": {"time": {"warp": [2, 4], "reverse": 0.5, "slowest": 0.5}}}},
    "temporal gradient": {"auxiliary": {"clip": {"frames": 4, "fps": 8, "size": 16, "modality": "temporal_gradient"}}},
    "activation checkpointing": {
        "train": {"activation_checkpointing": True, "channels_last": True},
        "primary": {"network": {"depth": 10, "width": 8, "norm": "group"}},
    },
    "adamw": {"auxiliary": {"optimizer": {"algorithm": "adamw", "lr": 0.001, "clip_gradient_norm": 1.0}}},
}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_no_option_of_a_method_makes_a_step_wait(option: str) -> None:
    sections = OPTIONS[option]
    for student in STUDENTS:
        sections = {**sections, student: FEW_LAYERS[student] | sections.get(student, {})}
    assert _take(small_config(**sections)) == ONE_COPY


def test_this_device_tells_when_its_values_are_asked_for() -> None:
    value = torch.zeros(3, device=DEVICE)
    for ask in (lambda: value.sum().item(), lambda: value[value > 0], lambda: value.cpu(), lambda: value.tolist()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()
    with Watched() as watched:
        torch.zeros(3).to(DEVICE)
        torch.empty(3, device=DEVICE).copy_(torch.zeros(3))
    assert len(watched.up) == 2


# ------------------------------------------------------------------------------------------------- operator calls


class Calls(TorchDispatchMode):
    """Counts operator calls, without those that only look at memory in another way or reserve it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [argument.alias_info for argument in function._schema.arguments]
        looks = any(alias and not alias.is_write for alias in aliases)
        if not (looks or function.namespace != "aten" or "empty" in str(function)):
            self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def _calls(rows: int, first: int) -> int:
    """Of the views of 8 or 32 labeled and five times as many unlabeled videos."""
    clip = {"frames": 2, "fps": 8, "size": 16}
    config = small_config(data={"decode_size": 20, "labeled_per_step": rows, "unlabeled_per_labeled": 5},
                          primary={"clip": clip}, auxiliary={"clip": clip})  # fmt: skip
    clips = torch.randint(0, 256, (rows, 6, 2, 20, 20, 3), dtype=torch.uint8)
    numbers = torch.zeros(rows, 6, dtype=torch.int64)
    batch = Batch(torch.arange(first, first + rows), numbers, numbers, clips, clips)
    with Calls() as calls:
        make_views(batch, config, 0, DEVICE)
    return calls.names.total()


def test_operator_calls_of_views_do_not_grow_with_the_clips() -> None:
    """With few clips some operation may be drawn by none of them, which saves its calls."""
    few = [_calls(8, first) for first in range(0, 32, 8)]
    many = {_calls(32, first) for first in range(0, 96, 32)}
    assert len(many) == 1
    assert max(few) <= max(many) <= 400
