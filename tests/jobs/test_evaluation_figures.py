"""What an evaluation of a small run writes: figures that other programs confirm, both countings, temperatures, and the same
scores after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, log_loss
from torch.nn import functional as F

from jobs import evaluate, export, label, prepare, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.clips.source import VideoSource
from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.evaluation import evaluation_parts, score_videos
from pipeline.evaluation.protocol import list_views
from pipeline.manifest.schema import SCHEMA, read_manifest, resolve_uri, write_manifest
from pipeline.methods import build_students
from pipeline.saved_models.saved_run import SavedRun, open_other_data, open_run_source, open_saved_run

PREDICTORS = (*STUDENTS, "mean")


@pytest.fixture(scope="module")
def master(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with four held-out videos, evaluated on the test videos."""
    folder = tmp_path_factory.mktemp("figures")
    words = ["--per-class", "4", "--hold-out", "25%", "--out", str(folder / "labels.parquet")]
    assert run(label.main, [str(tiny / "manifest.parquet"), *words]) == DONE
    config = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={folder}", f"data.labels={folder}/labels.parquet"]
    assert run(train.main, [*config, "train.steps=1", "train.warmup_steps=0"]) == DONE
    return folder / "tiny"


@pytest.fixture
def one(master: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may write into."""
    return Path(shutil.copytree(master, tmp_path / "tiny"))


def read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return summary, pq.read_table(folder / "predictions.parquet").to_pylist()


def score_by_plain_loop(saved: SavedRun, source: VideoSource) -> list[dict[str, Any]]:
    """Scores of the test videos: for every view one decode, and plain torch."""
    knobs = saved.config.evaluation
    students = build_students(saved.config, len(saved.classes))
    weights = {key.removeprefix("students."): value for key, value in load_file(saved.weights).items()}
    students.load_state_dict({key: weights[key] for key in students.state_dict()})
    students.eval()
    scores = []
    for video in source.find_evaluation_rows("test"):
        columns = source.decode_views(*list_views(np.array([video]), knobs.clips, knobs.crops))
        own = {}
        for name in STUDENTS:
            clips = torch.from_numpy(columns[name]).permute(0, 1, 4, 2, 3).float() / 255
            size = getattr(saved.config, name).clip.size
            views = torch.stack([F.interpolate(frames, (size, size), mode="bilinear") for frames in clips])
            with torch.inference_mode():
                logits = students[name]((views.transpose(1, 2) - 0.45) / 0.225)[0]
            is_logits = knobs.average == "logits"
            own[name] = (logits.mean(dim=0).softmax(dim=0) if is_logits else logits.softmax(dim=1).mean(dim=0)).numpy()
        scores.append({**own, "mean": (own["primary"] + own["auxiliary"]) / 2})
    return scores


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_scores_are_those_of_a_plain_loop_and_figures_those_of_scikit_learn(
    one: Path, tmp_path: Path, average: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"evaluation.average={average}", "evaluation.clips=3", "evaluation.crops=3"]
    assert run(evaluate.main, [str(one), *words, "--out", str(out)]) == DONE
    phrase = f"3 clips x 3 crops, mean of {average}, last checkpoint (step 1), 8 fps and 16 fps, 32 px, test split"
    assert f"protocol: {phrase}" in capsys.readouterr().out
    summary, rows = read_results(out)
    saved = open_saved_run(one, words, ("evaluation.",))
    plain = score_by_plain_loop(saved, open_run_source(saved))
    labels = np.array([row["label"] for row in rows])
    for name in PREDICTORS:
        scores = np.array([row[name] for row in rows])
        np.testing.assert_allclose(scores, [own[name] for own in plain], atol=1e-5)
        figures = summary[name]
        assert figures["top1"] == pytest.approx((scores.argmax(axis=1) == labels).mean(), abs=1e-5)
        assert figures["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)), abs=1e-5)
        exact = scores.astype(np.float64) / scores.sum(axis=1, dtype=np.float64, keepdims=True)
        assert figures["nll"] == pytest.approx(log_loss(labels, exact, labels=range(4)), abs=1e-5)
        assert figures["top5"] is None and len(figures["reliability"]) == 15 and 0 <= figures["ece"] <= 1
        low, high = figures["interval"]["top1"]
        assert low <= figures["top1"] <= high
        assert all(row["clips"] == 3 and 0 <= row[f"{name}_spread"] < 0.5 for row in rows)


def test_scores_of_real_videos_are_those_of_a_plain_loop(one: Path, tmp_path: Path, shared_data: Path) -> None:
    """Clips of fights, listed as test videos, through the same weights."""
    files = sorted((shared_data / "fights").rglob("*.mp4"))[:4]
    if not files:
        pytest.skip("no clips of fights")
    for index, file in enumerate(files):
        target = tmp_path / "videos" / ("train", "test")[index % 2] / ("drift_up", "drift_down")[index // 2] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    words = ["folder", str(tmp_path / "videos"), str(tmp_path / "data"), "--processes", "1", "--group", "none"]
    assert run(prepare.main, words) == DONE
    out = tmp_path / "out"
    assert run(evaluate.main, [str(one), "--other-data", str(tmp_path / "data/manifest.parquet"), "--out", str(out)]) == DONE
    (path,) = out.glob("predictions_on_*.parquet")
    rows = pq.read_table(path).to_pylist()
    saved = open_saved_run(one, [f"data.manifest={tmp_path}/data/manifest.parquet"], ("data.",))
    plain = score_by_plain_loop(saved, open_other_data(saved).source)
    assert len(rows) == 2
    for row, own in zip(rows, plain, strict=True):
        for name in STUDENTS:
            np.testing.assert_allclose(row[name], own[name], atol=1e-5)


def test_videos_without_scores_are_listed_and_counted_both_ways(
    one: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = Path(shutil.copytree(tiny / "videos", tmp_path / "videos")), tmp_path / "out"
    source = open_run_source(open_saved_run(one))
    lost = root / source.manifest.table["uri"][int(source.find_evaluation_rows("test")[0])].as_py()
    lost.unlink()
    before, _ = read_results(one)
    assert run(evaluate.main, [str(one), f"data.root={root}", "--out", str(out)]) == DONE
    summary, rows = read_results(out)
    assert list(summary["undecodable"]) == [str(lost)] and summary["partly_decoded"] == {} == summary["unusable"]
    assert (summary["videos"], summary["labeled_without_scores"], len(rows)) == (7, 1, 7)
    for name in PREDICTORS:
        assert summary[name]["top1_with_undecodable"] == pytest.approx(summary[name]["top1"] * 7 / 8)
        assert before[name]["top1_with_undecodable"] == before[name]["top1"]
    said = capsys.readouterr().out
    assert "1 videos could not be decoded and are left out of these accuracies" in said
    assert "with the labeled videos that have no scores (1) counted as wrong, top-1 is:" in said


def test_videos_that_were_unusable_when_prepared_are_counted_as_wrong_too(
    one: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two parts of one file among them, which is gone."""
    old = read_manifest(tiny / "manifest.parquet")
    rows = old.table.to_pylist()
    truncated, *parts_of_file = [row for row in rows if row["split"] == "test"][:3]
    truncated |= {"status": "truncated", "reason": "it ends early"}
    for number, row in enumerate(parts_of_file):
        row |= {"uri": "gone.mp4", "start": number / 4, "end": number / 4 + 0.25}
    other = write_manifest(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "m.parquet", old.classes, old.root, "again")
    assert run(evaluate.main, [str(one), "--other-data", other.path, "--out", str(tmp_path / "out")]) == DONE
    summary = json.loads((tmp_path / "out" / f"evaluation_on_{other.fingerprint}.json").read_text(encoding="utf-8"))
    assert summary["unusable"] == {resolve_uri(old.root, truncated["uri"]): "truncated: it ends early"}
    gone = resolve_uri(old.root, "gone.mp4")
    assert list(summary["undecodable"]) == [f"{gone} (0 s to 0.25 s)", f"{gone} (0.25 s to 0.5 s)"]
    assert (summary["videos"], summary["labeled_without_scores"]) == (5, 3)
    for name in PREDICTORS:
        assert summary[name]["top1_with_undecodable"] == pytest.approx(summary[name]["top1"] * 5 / 8)
    assert "1 videos of this split were found unusable by jobs.prepare" in capsys.readouterr().out


def test_temperatures_are_found_on_held_out_videos_and_shown_on_test_videos(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (one / "evaluation.json").read_bytes()
    assert run(evaluate.main, [str(one), "--calibrate"]) == DONE
    said = capsys.readouterr().out
    content = json.loads((one / "calibration.json").read_text(encoding="utf-8"))
    assert (content["videos"], content["step"], content["protocol"]["split"]) == (4, 1, "validation")
    assert content["weights_sha256"] == json.loads(before)["weights_sha256"] and len(content["weights_sha256"]) == 64
    for name in PREDICTORS:
        temperature = content[name]["temperature"]
        assert content[name]["before"]["nll"] > 0
        if temperature is not None:
            assert content[name]["after"]["nll"] <= content[name]["before"]["nll"]
            assert f"{name:10} temperature {temperature:.3f}  NLL " in said
    assert "on 4 held-out videos" in said and "on 8 test videos, which had no part in that:" in said
    assert "a temperature of 4 held-out videos is rough" in said
    assert (one / "evaluation.json").read_bytes() == before and not (one / evaluation_parts.FOLDER).exists()
    assert run(export.main, [str(one), str(tmp_path / "model")]) == DONE
    assert json.loads((tmp_path / "model" / "calibration.json").read_text(encoding="utf-8")) == content
    (one / "calibration.json").write_text(json.dumps(content | {"weights_sha256": "0" * 64}), encoding="utf-8")
    assert run(export.main, [str(one), str(tmp_path / "without")]) == DONE
    assert not (tmp_path / "without" / "calibration.json").exists()
    assert run(evaluate.main, [str(one), "--calibrate", "evaluation.clips=1"]) == DONE  # of another protocol than the test's
    assert "on test videos: evaluate them by this protocol" in capsys.readouterr().out


def test_test_videos_never_give_a_temperature(
    one: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(evaluate.main, [str(one), "--calibrate", "evaluation.split=test"]) == USER_ERROR
    assert "never test videos: leave evaluation.split=test out" in capsys.readouterr().err
    assert run(evaluate.main, [str(one), "--calibrate", "--other-data", "x.parquet"]) == USER_ERROR
    assert "leave --other-data out" in capsys.readouterr().err
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "run.name=all", "train.steps=1"]
    assert run(train.main, [*words, "train.warmup_steps=0", "evaluation.clips=1"]) == DONE
    phrase = "(1 clip x 1 crop, mean of probabilities, last checkpoint (step 1), 8 fps and 16 fps, 32 px, test split)"
    assert phrase in capsys.readouterr().out
    assert run(evaluate.main, [str(tmp_path / "all"), "--calibrate"]) == USER_ERROR
    error = capsys.readouterr().err
    assert "there are none" in error and "train again" in error and "jobs.label --hold-out 10%" in error
    assert not (tmp_path / "all" / "calibration.json").exists()


def test_an_interrupted_evaluation_continues_to_the_same_bits(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken off at the sixth of eight videos, with a part that a kill cut off; a finished one leaves no parts."""
    words = [str(one), "evaluation.batch_views=2"]
    assert run(evaluate.main, [*words, "--out", str(tmp_path / "whole")]) == DONE
    whole = pq.read_table(tmp_path / "whole" / "predictions.parquet")
    (one / "predictions.parquet").unlink()
    monkeypatch.setattr(evaluation_parts, "SECONDS", 0.0)
    monkeypatch.setattr(score_videos, "count_cores", lambda: 1)
    decoded: list[int] = []
    decode = score_videos.decode_videos

    def break_off(source: VideoSource, videos: Any, moments: Any) -> Any:
        decoded.extend(videos.tolist())
        if len(decoded) == 6:
            raise InterruptedError
        return decode(source, videos, moments)

    monkeypatch.setattr(score_videos, "decode_videos", break_off)
    with pytest.raises(InterruptedError):
        run(evaluate.main, words)
    written = sorted((one / evaluation_parts.FOLDER).rglob("*.parquet"))
    assert len(written) >= 2 and [path.name for path in written] == [f"{index:09d}.parquet" for index in range(len(written))]
    written[-1].write_bytes(written[-1].read_bytes()[:100])
    done, first = len(written) - 1, list(decoded)
    decoded.clear()
    decoded.extend([-1] * 10)  # never six of them again
    assert run(evaluate.main, words) == DONE
    assert len(decoded) - 10 == 8 - done and decoded[10] == first[done]
    assert f"{done} of 8 videos were scored before the evaluation was interrupted" in capsys.readouterr().err
    assert not (one / evaluation_parts.FOLDER).exists()
    assert pq.read_table(one / "predictions.parquet").equals(whole)


def test_parts_of_another_protocol_or_of_other_weights_are_not_continued(one: Path) -> None:
    saved = open_saved_run(one)
    source, videos = open_run_source(saved), np.arange(3)
    folder = evaluation_parts.choose_parts_folder(source, saved.config, saved.weights, videos, one)
    folder.mkdir(parents=True)
    other = saved.config.model_copy(update={"evaluation": saved.config.evaluation.model_copy(update={"average": "logits"})})
    assert evaluation_parts.choose_parts_folder(source, other, saved.weights, videos, one) != folder
    assert evaluation_parts.choose_parts_folder(source, saved.config, saved.weights, videos[:2], one) != folder
    assert evaluation_parts.choose_parts_folder(source, saved.config, saved.weights, videos, one) == folder and folder.is_dir()
    changed = one / "model.safetensors"
    changed.write_bytes(saved.weights.read_bytes() + b"\0")
    assert evaluation_parts.choose_parts_folder(source, saved.config, changed, videos, one) != folder and folder.is_dir()


def test_parts_of_other_weights_are_deleted_only_with_the_own(tmp_path: Path) -> None:
    own, other = (tmp_path / evaluation_parts.FOLDER / (digit * 16) / ("c" * 16) for digit in "ab")
    foreign, outside = tmp_path / evaluation_parts.FOLDER / "notes", tmp_path / "outside"
    for folder in (own, other, foreign, outside):
        folder.mkdir(parents=True)
        (folder / "file").write_text("kept")
    (tmp_path / evaluation_parts.FOLDER / ("d" * 16)).symlink_to(outside)
    evaluation_parts.delete_parts(own)
    assert not own.exists() and other.exists()
    evaluation_parts.delete_parts(own, with_other_weights=True)
    assert not other.parent.exists() and (foreign / "file").exists() and (outside / "file").exists()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_link_in_the_place_of_the_parts_is_refused_and_its_target_kept(one: Path, tmp_path: Path, depth: int) -> None:
    saved = open_saved_run(one)
    source, videos = open_run_source(saved), np.arange(3)
    folder = evaluation_parts.choose_parts_folder(source, saved.config, saved.weights, videos, one)
    link = (folder.parent.parent, folder.parent, folder)[depth]
    target = tmp_path / "target"
    (target / ("a" * 16)).mkdir(parents=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match=r"is a symbolic link.*delete the link"):
        evaluation_parts.choose_parts_folder(source, saved.config, saved.weights, videos, one)
    with pytest.raises(UserError, match="is a symbolic link"):
        evaluation_parts.delete_parts(folder, with_other_weights=True)
    assert (target / ("a" * 16)).is_dir()


def test_results_of_another_run_or_model_are_neither_replaced_nor_calibrated(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, two = tmp_path / "out", Path(shutil.copytree(one, tmp_path / "two"))
    out.mkdir()
    for name in ("evaluation.json", "calibration.json"):
        for content, reason in (({"run": str(two)}, f"holds results of the run {two}"), ({}, "does not tell of which run")):
            (out / name).write_text(json.dumps(content))
            assert run(evaluate.main, [str(one), "--calibrate", "--out", str(out)]) == USER_ERROR
            assert f"{out / name} {reason}" in capsys.readouterr().err
            assert json.loads((out / name).read_text()) == content
            (out / name).unlink()
    (out / "evaluation.json").write_text("{}")
    assert run(evaluate.main, [str(one), "--out", str(out)]) == USER_ERROR
    assert "does not tell of which run it is: choose another --out" in capsys.readouterr().err
    (out / "config.json").write_text("{}")
    assert run(evaluate.main, [str(one), "--out", str(out)]) == USER_ERROR
    assert "is the folder of another model, whose results would be replaced" in capsys.readouterr().err
    assert (out / "evaluation.json").read_text() == "{}" and len(list(out.iterdir())) == 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_evaluation_continues_to_the_same_bits(one: Path) -> None:
    words = [str(one), "evaluation.clips=40", "evaluation.batch_views=8"]
    assert run(evaluate.main, words) == DONE
    whole = (one / "predictions.parquet").read_bytes()
    (one / "predictions.parquet").unlink()
    program = "import pipeline.evaluation.evaluation_parts as p; p.SECONDS = 0.0\nfrom jobs.evaluate import *\nrun(main)"
    child = subprocess.Popen([sys.executable, "-c", program, *words], start_new_session=True)
    deadline = time.monotonic() + 300
    while not any((one / evaluation_parts.FOLDER).rglob("0*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert any((one / evaluation_parts.FOLDER).rglob("0*.parquet")) and not (one / "predictions.parquet").exists()
    assert run(evaluate.main, words) == DONE
    assert (one / "predictions.parquet").read_bytes() == whole
