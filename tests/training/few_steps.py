"""A few training steps of a small method, for the tests of the knobs of a step."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config import STUDENTS, Config
from pipeline.methods import build_method
from pipeline.methods.parts.terms import Results
from pipeline.training.checkpoints import checkpoint
from pipeline.training.model_options import apply_train_options
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import StepContext, take_step
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
