"""What several tests of a training step start from, and what they must leave as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.methods.parts.terms import Results
from pipeline.training.checkpoints import checkpoint
from tests.training.few_steps import config_of, steps


@pytest.fixture
def plain() -> tuple[checkpoint.TrainState, list[Results]]:
    return steps(config_of())


@pytest.fixture
def free() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
