"""The long form of what a run survives, with few kills; and what counts as survived."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.command import run
from pipeline.errors import UserError
from tests.chaos import __main__ as chaos

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


def test_every_kind_comes_once_before_one_comes_twice_and_memory_only_where_there_is_enough() -> None:
    from tests.chaos.kills import KINDS, LEAST_MEMORY, next_kind, possible_kinds

    for free, kinds in ((LEAST_MEMORY, set(KINDS)), (LEAST_MEMORY - 1, set(KINDS) - {"full"})):
        ring, done = SimpleNamespace(random=random.Random(0), least_memory=free, kinds=list(KINDS)), list[str]()
        for _ in kinds:
            done.append(next_kind(ring, done))  # type: ignore[arg-type]
        assert set(done) == kinds and len(done) == len(kinds)
    poor = SimpleNamespace(least_memory=LEAST_MEMORY - 1, kinds=["full"])
    with pytest.raises(UserError, match="needs 10 GB of free memory"):
        possible_kinds(poor)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_survives_kills_of_several_kinds(tiny: Path, tmp_path: Path) -> None:
    words = [f"run.storage_path={tmp_path}", "scale.workers=2", "train.steps=240", "train.checkpoint_every=10"]
    words += ["primary.optimizer.lr=0.001", "auxiliary.optimizer.lr=0.001"]
    assert run(chaos.main, ["--config", str(tiny / "tiny.yaml"), "--kills", "4", "--seed", "8", *words]) == 0
    result = json.loads((tmp_path / "chaos-8.json").read_text())
    assert len(result["kills"]) == 4 and all(part["same_steps"] for part in result["runs"])


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_runs_too_short_for_a_kill_end_with_a_remedy(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not for ever: with one step, whoever has logged a line is at its end."""
    words = [f"run.storage_path={tmp_path}", "scale.workers=1", "train.steps=1", "method.supervised_steps=0"]
    assert run(chaos.main, ["--config", str(tiny / "tiny.yaml"), "--seed", "3", "--kinds", "worker", *words]) == 2
    told = capsys.readouterr()
    assert "3 runs ended before anything of worker could be killed: raise train.steps" in told.err
    assert told.out.count("the same bits in the last checkpoint") == 3


def test_a_kind_that_does_not_exist_is_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(chaos.main, ["--config", str(tiny / "tiny.yaml"), "--kinds", "worker,wrker", "scale.workers=2"]) == 2
    assert "there is no wrker, only worker, freeze" in capsys.readouterr().err
