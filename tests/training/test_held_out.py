"""train.keep_best: checkpoints are held against videos that were kept from training, and the best one stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import label, train
from jobs.command import run
from pipeline.config import STUDENTS, Config, load_config
from pipeline.errors import UserError
from pipeline.evaluation.score_videos import score_all_views
from pipeline.lifecycle.train_and_evaluate import complete_run, read_evaluation
from pipeline.manifest.label_subset import read_labels
from pipeline.methods import build_students
from pipeline.run_folder.contents import read_metrics
from pipeline.saved_models.saved_run import open_saved_run
from pipeline.training import held_out, loop
from pipeline.training.checkpoints.checkpoint_facts import read_facts
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run
from tests.training.test_loop import comparable, weights

WORDS = ("train.keep_best=1", "train.keep_checkpoints=1", "train.checkpoint_every=3")


@pytest.fixture(scope="module")
def held(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label subset, one labeled video of every class of which is held out."""
    path = tmp_path_factory.mktemp("held") / "labels.parquet"
    words = ["--per-class", "4", "--seed", "0", "--hold-out", "25%", "--out", str(path)]
    assert run(label.main, [str(tiny / "manifest.parquet"), *words]) == 0
    return path


def config_of(tiny: Path, tmp_path: Path, held: Path, *words: str) -> Config:
    return load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", f"data.labels={held}", *WORDS, *words])


def test_the_best_checkpoint_stays(tiny: Path, tmp_path: Path, held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are made up so that the second of four checkpoints is best."""
    made_up = iter([0.25, 0.75, 0.5, 0.5])
    monkeypatch.setattr(loop, "measure_accuracies", lambda *_: dict.fromkeys(STUDENTS, next(made_up)))
    prepared = prepare_run(config_of(tiny, tmp_path, held))
    prepared.create_folder()
    fit_in_process(prepared)
    folder = prepared.run.folder
    assert sorted(path.name for path in folder.glob("checkpoint_*")) == ["checkpoint_000006", "checkpoint_000012"]
    told = {line["step"]: line.get("held_out_accuracy/primary") for line in read_metrics(folder)}
    assert {step: score for step, score in told.items() if score is not None} == {3: 0.25, 6: 0.75, 9: 0.5, 12: 0.5}
    by = {word: open_saved_run(folder, [f"evaluation.checkpoint={word}"], ("evaluation.",)) for word in ("last", "best")}
    assert {word: (saved.step, saved.trained_steps) for word, saved in by.items()} == {"last": (12, 12), "best": (6, 12)}
    assert by["best"].weights.parent.name == "checkpoint_000006"
    summary = complete_run(prepare_run(config_of(tiny, tmp_path, held, "evaluation.checkpoint=best")))
    assert (summary["step"], summary["trained_steps"]) == (6, 12)
    by_best, by_last = (
        read_evaluation(prepare_run(config_of(tiny, tmp_path, held, f"evaluation.checkpoint={which}")))
        for which in ("best", "last")
    )
    assert (by_best or {})["mean"]["top1"] == summary["mean"]["top1"] and by_last is None
    by["best"].weights.write_bytes(b"damaged")  # the second best does not take its place
    with pytest.raises(UserError, match=r"checkpoint_000006/model\.safetensors is missing or damaged"):
        open_saved_run(folder, ["evaluation.checkpoint=best"], ("evaluation.",))
    with pytest.raises(UserError, match=r"set train\.keep_best=1 before training"):
        load_config(tiny / "tiny.yaml", ["evaluation.checkpoint=best"])


def test_scores_are_those_of_evaluation_and_change_nothing(
    tiny: Path, tmp_path: Path, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 7, with dropout and BatchNorm: the same scores, lines and bits as uninterrupted, and the same bits as
    a run that scores nothing. The scores are what ``predict`` says of the checkpoint's file."""
    noisy = ["auxiliary.network.dropout=0.2", "primary.network.norm=batch", "train.keep_checkpoints=4"]
    for name, best in (("whole", 1), ("unscored", 0)):
        prepared = prepare_run(config_of(tiny, tmp_path, held, *noisy, f"run.name={name}", f"train.keep_best={best}"))
        prepared.create_folder()
        fit_in_process(prepared)
    prepared = prepare_run(config_of(tiny, tmp_path, held, *noisy, "run.name=cut"))
    step, calls = loop.take_step, []

    def dying(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            raise InterruptedError
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "take_step", dying)
    prepared.create_folder()
    with pytest.raises(InterruptedError):
        fit_in_process(prepared)
    monkeypatch.undo()
    fit_in_process(prepared)
    last = {name: tmp_path / name / "checkpoint_000012" for name in ("whole", "cut", "unscored")}
    assert weights(last["whole"]) == weights(last["cut"]) == weights(last["unscored"])
    scores = {name: read_facts(folder)["scores"] for name, folder in last.items()}
    assert list(scores["whole"]) == ["3", "6", "9", "12"] and scores["unscored"] == {}
    assert scores["cut"] == scores["whole"]
    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")
    assert not any("held_out" in name for line in read_metrics(tmp_path / "unscored") for name in line)

    config = config_of(tiny, tmp_path, held, *noisy, "evaluation.clips=1")
    videos = held_out.find_held_out_videos(prepared.run.source)
    assert videos.tolist() == read_labels(str(held), prepared.run.source.manifest).held_out.tolist() and len(videos) == 4
    said = score_all_views(prepared.run.source, config, last["cut"] / "model.safetensors", videos, None)
    labels = np.array([prepared.run.source.columns["label"][video] for video in said["video"].tolist()])
    for name in STUDENTS:
        accuracy = float((said[name].argmax(axis=1) == labels).mean())
        assert read_metrics(tmp_path / "cut")[-1][f"held_out_accuracy/{name}"] == accuracy


def test_modes_come_back(tiny: Path, tmp_path: Path, held: Path) -> None:
    """What a method keeps in another mode than its students stays in it."""
    prepared = prepare_run(config_of(tiny, tmp_path, held))
    method: Any = torch.nn.Module()
    method.averages = None
    method.students = build_students(prepared.run.config, 4)
    method.students["primary"].blocks[0].eval()
    before = [module.training for module in method.students.modules()]
    alive: list[int] = []
    found = held_out.measure_accuracies(method, prepared.run.source, prepared.run.config, lambda: alive.append(1))
    assert [module.training for module in method.students.modules()] == before
    assert set(found) == set(STUDENTS) and alive == [1]


def test_without_held_out_videos_it_is_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.keep_best=1"]
    assert run(train.main, words) == 2
    text = capsys.readouterr().err
    assert "train.keep_best=1 needs held-out videos" in text and "jobs.label --hold-out" in text
    assert not (tmp_path / "tiny").exists()
