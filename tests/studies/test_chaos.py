"""The long form of what a run survives, with few kills; and what counts as survived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import chaos
from jobs.command import run

KILL = {"back": True, "equal": True}
RUN = {"same_weights": True}


@pytest.mark.parametrize(
    ("kills", "runs", "survived"),
    [
        ([KILL], [RUN], True),
        ([KILL, {**KILL, "equal": False}], [RUN], False),
        ([{**KILL, "back": False}, KILL], [RUN], False),  # also if the next kill set it free
        ([KILL], [RUN, {"same_weights": False}], False),
    ],
)
def test_what_is_survived(kills: list[dict[str, bool]], runs: list[dict[str, bool]], survived: bool) -> None:
    assert chaos.survived({"kills": kills, "runs": runs}) is survived


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_survives_kills_of_several_kinds(tiny: Path, tmp_path: Path) -> None:
    words = [f"run.storage_path={tmp_path}", "scale.workers=2", "train.steps=240", "train.checkpoint_every=10"]
    words += ["primary.optimizer.lr=0.001", "auxiliary.optimizer.lr=0.001"]
    assert run(chaos.main, ["--config", str(tiny / "tiny.yaml"), "--kills", "4", "--seed", "8", *words]) == 0
    result = json.loads((tmp_path / "chaos-8.json").read_text())
    assert len(result["kills"]) == 4 and all(part["same_steps"] for part in result["runs"])
