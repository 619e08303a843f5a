"""The setting of runs in words."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.analysis.comparison import group_runs
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.analysis.run_description import build_setting_table

ADAMW = "primary.optimizer.algorithm=adamw", "auxiliary.optimizer.algorithm=adamw"
STEPS = "train.schedule=step", "train.milestones=[6, 9]", "train.steps=12", "train.warmup_steps=2"


@pytest.mark.parametrize(
    ("overrides", "algorithms", "decay"),
    [
        ((), "SGD", "cosine"),
        (ADAMW, "AdamW", "cosine"),
        (ADAMW[1:], "SGD and AdamW", "cosine"),
        (STEPS, "SGD", "× 0.1 at steps 6, 9"),
    ],
)
def test_the_optimizer_is_that_of_the_run(make_run: Any, overrides: tuple[str, ...], algorithms: str, decay: str) -> None:
    told = dict(build_setting_table(group_runs([read_run_record(make_run(overrides=overrides))])))
    (text,) = told["Optimizer"]
    assert text.startswith(f"{algorithms}, peak ") and text.endswith(f" steps, {decay}")
