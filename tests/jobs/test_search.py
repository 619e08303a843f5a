"""The command: real runs of small students on real videos, killed and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import label, search
from jobs.command import run
from pipeline.config import load_config
from pipeline.files.folder_lock import LOCK, LockFile
from pipeline.lifecycle.train_and_evaluate import read_scores
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from pipeline.run_folder.contents import read_metrics, read_run
from pipeline.run_folder.study_folder import read_trials
from pipeline.search.optuna_search import SearchPlan
from pipeline.studies import run_trials
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import FILES
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run
from tests.two_processes import without_ray

pytestmark = pytest.mark.usefixtures("undrawn")

WORDS = ["train.steps=8", "train.checkpoint_every=8", "train.log_every=4", "--concurrent", "1"]


@pytest.fixture(scope="module")
def labels(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of ``tiny`` of which half are held out."""
    path = tmp_path_factory.mktemp("labels") / "held_out.parquet"
    words = [str(tiny / "manifest.parquet"), "--per-class", "4", "--hold-out", "50%", "--out", str(path)]
    assert label.main(words) == 0
    return path


@pytest.fixture
def command(tiny: Path, labels: Path, tmp_path: Path) -> Any:
    """``command(*words)`` -> exit code, in ``tmp_path``."""
    fixed = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", f"data.labels={labels}", *WORDS]
    return lambda *words: run(search.main, [*fixed, *words])


def test_labels_of_a_file_are_part_of_what_all_trials_share(tiny: Path, labels: Path, tmp_path: Path) -> None:
    manifest, settings = read_manifest(tiny / "manifest.parquet"), []
    ids = np.setdiff1d(manifest.find_training_rows(), read_labels(labels, manifest).rows)
    for name in manifest.classes[:2]:
        table = pa.table({"id": manifest.table["id"].take(pa.array(ids)), "class": [name] * len(ids)})
        pq.write_table(table, tmp_path / "file.parquet")
        words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", f"data.labels={labels}", *WORDS]
        words += ["method.name=fixmatch", "method.file_label.weight=1", f"method.file_label.file={tmp_path / 'file.parquet'}"]
        options = search.build_parser(["rates"]).parse_intermixed_args([*words, "--space", "rates", "--trials", "1"])
        settings.append(search.check_data(search.read_request(options, ["rates"])))
    one, other = settings
    assert one["file_labels"] != other["file_labels"]
    assert {**one, "file_labels": ""} == {**other, "file_labels": ""}


def test_a_search_is_of_ordinary_runs_on_validation_videos(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--space", "rates", "--algorithm", "asha", "--min-steps", "4", "--reduction", "2"]
    assert command(*words, "--trials", "3", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "3 trials by asha, scored at 4, 8" in text
    assert "24 steps are left" in text
    assert not (tmp_path / "rates").exists()

    assert command(*words, "--trials", "2") == 0
    assert "2 of 2 trials" in capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rates/*/metrics.jsonl")}
    assert command(*words, "--trials", "3") == 0
    text = capsys.readouterr().out
    assert "rates: 2 trials are begun" in text
    assert "3 of 3 trials" in text
    assert "run.name=best primary.optimizer.lr=" in text
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())

    listed = read_trials(tmp_path / "rates")
    assert [trial["run_folder"] for trial in listed] == ["trial-00000", "trial-00001", "trial-00002"]
    assert {trial["state"] for trial in listed} <= {"complete", "pruned"}
    for trial in listed:
        folder = tmp_path / "rates" / trial["run_folder"]
        config, _ = read_run(folder)
        assert config.primary.optimizer.lr == trial["params"]["primary.optimizer.lr"]
        assert trial["seconds"] > 0
        scored = read_scores(folder)
        assert [line["step"] for line in scored] == [4, 8][: 1 + (trial["state"] == "complete")]
        assert trial["values"]["mean"] == scored[-1]["mean"]
        if trial["state"] == "complete":
            assert json.loads((folder / "evaluation.json").read_text())["split"] == "validation"
    about = json.loads((tmp_path / "rates" / "study.json").read_text(encoding="utf-8"))
    assert (about["algorithm"], about["question"]) == ("asha", "Which learning rates let both students learn?")
    assert command(*words, "--trials", "3", "--dry-run") == 0
    assert "nothing is left to train" in capsys.readouterr().out  # whatever was stopped early
    with without_ray():
        assert command(*words, "--trials", "3", "--concurrent", "2") == 0
        assert "3 trials are begun, nothing is left to run" in capsys.readouterr().out
        with pytest.raises(AssertionError, match="Ray"):
            command(*words, "--trials", "4", "--concurrent", "2")
    assert command(*words, "--trials", "4", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "8 steps are left" in text and "the median of 3 runs of this study" in text
    assert command(*words, "--trials", "3", "train.steps=9", "--dry-run") == 2
    assert "train.steps: the study has 8, now 9" in capsys.readouterr().err
    assert "trial-00002" in (tmp_path / "rates" / "report.html").read_text(encoding="utf-8")
    assert command(*words, "--trials", "3", "train.steps=9") == 2
    assert "train.steps: the study has 8, now 9" in capsys.readouterr().err


def weights(folder: Path) -> list[bytes]:
    return [(folder / "checkpoint_000008" / name).read_bytes() for name in FILES]


class Killed(BaseException):
    """As a kill would, passes everything that catches errors."""


def test_a_population_killed_twice_comes_to_the_same_end(
    command: Any, tiny: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--space", "rates_and_losses", "--algorithm", "pbt", "--trials", "3", "--interval", "4", "run.seed=1"]
    assert command(*words, "--name", "whole") == 0
    phrase = "2 clips x 1 crop, mean of probabilities, last checkpoint, 8 fps and 16 fps, 32 px, validation split"
    assert f"top-1 of mean: {phrase}\nthe knobs of" in capsys.readouterr().out
    decisions = json.loads((tmp_path / "whole" / "population.json").read_text(encoding="utf-8"))
    assert command(*words, "--name", "whole", "--dry-run") == 0
    assert "nothing is left to train" in capsys.readouterr().out
    with without_ray():
        assert command(*words, "--name", "whole", "--concurrent", "2") == 0
        assert "nothing is left to run" in capsys.readouterr().out
    copies = [one for one in decisions["4"] if one["copies"]]
    assert copies, "no member was better than another one: choose another seed"

    advance, calls = run_trials.advance, []

    def dies(prepared: Any, step: int) -> Any:
        calls.append(step)
        if len(calls) in (2, 6):  # in the first generation, and in the second one after its copies were made
            raise Killed
        return advance(prepared, step)

    monkeypatch.setattr(run_trials, "advance", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            command(*words, "--name", "cut")
    monkeypatch.undo()
    assert [trial["state"] for trial in read_trials(tmp_path / "cut")] == ["pruned"] * len(copies)  # who was replaced at step 4
    assert command(*words, "--name", "cut") == 0
    assert json.loads((tmp_path / "cut" / "population.json").read_text(encoding="utf-8")) == decisions
    for one in decisions["8"]:
        assert weights(tmp_path / "cut" / one["run"]) == weights(tmp_path / "whole" / one["run"])

    # and the lineage, trained again by hand, gives the same bits: both students, both optimizers
    child = tmp_path / "whole" / copies[0]["next"]
    lineage = read_run(child)[1]["lineage"]
    assert [part["run"] for part in lineage] == [copies[0]["copies"], copies[0]["next"]]
    assert (lineage[0]["until"], lineage[1]["from"]) == (4, 4)
    parent, again = (read_run(tmp_path / "whole" / part["run"])[0] for part in lineage)
    at = {"storage_path": str(tmp_path / "again")}
    first, second = (
        prepare_run(config.model_copy(update={"run": config.run.model_copy(update=at)})) for config in (parent, again)
    )
    first.create_folder()
    fit_in_process(first.stop_at(4))
    second.create_folder()
    checkpoint.fork(first.run.folder / "checkpoint_000004", second.run.folder, second.run.fingerprints.as_dict())
    fit_in_process(second)
    assert weights(second.run.folder) == weights(child)
    state = json.loads((second.run.folder / "checkpoint_000004" / "state.json").read_text(encoding="utf-8"))
    assert state["forked_from"]["run"] == parent.run.name


def test_the_file_of_a_killed_search_has_what_had_ended(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, calls = run_trials.advance, []

    def dies(prepared: Any, step: int) -> Any:
        calls.append(step)
        if len(calls) == 2:
            raise Killed
        return advance(prepared, step)

    monkeypatch.setattr(run_trials, "advance", dies)
    with pytest.raises(Killed):
        command("--space", "rates", "--algorithm", "random", "--trials", "2", "train.steps=2")
    assert [trial["state"] for trial in read_trials(tmp_path / "rates")] == ["complete"]


def test_a_damaged_parent_is_named(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = ["--space", "rates_and_losses", "--algorithm", "pbt", "--trials", "3", "--interval", "4", "run.seed=1"]
    advance, calls = run_trials.advance, []

    def dies(prepared: Any, step: int) -> Any:
        calls.append(step)
        if len(calls) == 4:
            raise Killed
        return advance(prepared, step)

    monkeypatch.setattr(run_trials, "advance", dies)
    with pytest.raises(Killed):
        command(*words)
    folder = tmp_path / "rates_and_losses_pbt"
    (copy,) = folder.glob("*_from-*")
    decisions = json.loads((folder / "population.json").read_text(encoding="utf-8"))
    parent = next(one["copies"] for one in decisions["4"] if one["copies"])
    shutil.rmtree(copy)
    (folder / parent / "checkpoint_000004" / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.undo()
    assert command(*words) == 2
    assert f"{copy.name} cannot start from {parent}" in capsys.readouterr().err


def test_mistakes(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    for words, message in (
        (["--space", "raets", "--trials", "2"], "did you mean rates?"),
        (["--space", "rates", "--trials", "0"], "--trials must be above 0"),
        (["--space", "rates", "--trials", "2", "--objectives", "time"], "--objectives must begin with accuracy"),
        (["--space", "rates", "--trials", "2", "--algorithm", "asha", "--objectives", "accuracy", "time"], "tpe or random"),
        (["--space", "rates", "--trials", "1", "--algorithm", "pbt"], "population of two"),
        (["--space", "policies", "--trials", "4", "--algorithm", "pbt"], "which method.labels.source, "),
        (["--space", "rates", "--trials", "2", "--storage", "nonsense"], "not a database URL"),
        (["--space", "rates", "--trials", "2", "--warm-start", "none"], "no folder of a search"),
        (["--space", "rates", "--trials", "2", f"data.labels={tiny}/labels.parquet"], "jobs.label --hold-out 10%"),
    ):
        assert command(*words) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*/metrics.jsonl"))


def test_a_run_stopped_on_its_way_equals_one_that_was_not(tiny: Path, tmp_path: Path) -> None:
    """To be judged at a step on the way changes no bit of the run, nor the number of its streamed steps."""
    words = [f"run.storage_path={tmp_path}", "train.steps=8", "train.checkpoint_every=8"]
    whole, cut = (prepare_run(load_config(tiny / "tiny.yaml", [*words, f"run.name={name}"])) for name in ("whole", "cut"))
    whole.create_folder()
    fit_in_process(whole)
    cut.create_folder()
    for step in (3, 5):
        fit_in_process(cut.stop_at(step))
        newest, _ = checkpoint.find_newest(cut.run.folder)
        assert newest is not None and newest.name == f"checkpoint_{step:06d}"
    fit_in_process(cut)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert replace(cut.run, stop_step=99).end == 8


# ------------------------------------------------------------------------------------------------------- by Ray Tune

RANDOM = ["--space", "rates", "--algorithm", "random", "--concurrent", "2"]


class SecondIsWorst(optuna.pruners.BasePruner):
    """Stops the second trial at its first rung, whatever chance made of so small students."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1


@pytest.mark.long  # 40 s on 2 busy cores
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_asha_by_tune(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(SearchPlan, "make_pruner", lambda self, steps: SecondIsWorst())
    words = ["--space", "rates", "--algorithm", "asha", "--min-steps", "2", "--reduction", "2", "train.steps=4"]
    assert command(*words, "--concurrent", "2", "--trials", "2") == 0
    assert "0 trials are begun, 2 at once" in capfd.readouterr().out
    listed = read_trials(tmp_path / "rates")
    assert [trial["state"] for trial in listed] == ["complete", "pruned"]
    scored = [read_scores(tmp_path / "rates" / trial["run_folder"]) for trial in listed]
    assert [[line["step"] for line in lines] for lines in scored] == [[2, 4], [2]]
    assert not (tmp_path / "rates" / "trial-00001" / "evaluation.json").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_trial_process_is_continued(command: Any, tmp_path: Path) -> None:
    """By Tune, from the newest checkpoint, to the bits of a trial that nobody killed."""
    folder, killed = tmp_path / "killed" / "trial-00000", []

    def kill() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not any(line["step"] >= 8 for line in read_metrics(folder)):
            time.sleep(0.05)
        if holder := LockFile(folder / LOCK).get_holder():
            os.kill(holder.pid, signal.SIGKILL)
            killed.append(holder.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    long = ["train.steps=60", "train.checkpoint_every=4", "--trials", "2"]
    assert command(*RANDOM, "--name", "killed", *long) == 0
    killer.join()
    assert killed and killed[0] != os.getpid()
    assert {trial["state"] for trial in read_trials(tmp_path / "killed")} == {"complete"}
    assert [line["step"] for line in read_metrics(folder)] == list(range(4, 61, 4))
    assert command(*RANDOM, "--name", "whole", *long) == 0
    whole = tmp_path / "whole" / "trial-00000" / "checkpoint_000060" / "model.safetensors"
    assert (folder / "checkpoint_000060" / "model.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_a_population_by_tune_decides_as_one_in_this_process(command: Any, tmp_path: Path) -> None:
    words = ["--space", "rates_and_losses", "--algorithm", "pbt", "--trials", "3", "--interval", "4", "run.seed=1"]
    assert command(*words, "--name", "here") == 0
    assert command(*words, "--name", "tune", "--concurrent", "2") == 0
    here, tune = (json.loads((tmp_path / name / "population.json").read_text(encoding="utf-8")) for name in ("here", "tune"))
    assert tune == here
    assert [trial["run_folder"] for trial in read_trials(tmp_path / "tune")] == [
        trial["run_folder"] for trial in read_trials(tmp_path / "here")]  # fmt: skip


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Tune leaves its logs open when it cuts off
@pytest.mark.usefixtures("ray_cluster")
def test_the_budget_ends_a_search_by_tune_and_the_same_command_continues(
    command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*RANDOM, "--trials", "2", "train.steps=8000", "train.checkpoint_every=4"]
    reached = [0]
    for seconds in (45, 90):  # on a busy machine processes take half a minute to start
        assert command(*words, "--hours", str(seconds / 3600)) == 0
        text = capfd.readouterr().out
        assert "2 of 2 trials: 0 complete, 0 stopped early, 2 under way or cut off" in text
        reached.append(read_metrics(tmp_path / "rates" / "trial-00000")[-1]["step"])
    assert 0 < reached[1] < reached[2]
    steps = [line["step"] for line in read_metrics(tmp_path / "rates" / "trial-00000")]
    assert steps == list(range(4, steps[-1] + 1, 4))  # none twice, none left out
