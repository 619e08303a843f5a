"""Labels from a file: what they add to a method's loss, against the students' own labels and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from jobs import predict, prepare, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.config import STUDENTS, LabelSection, parse_config
from pipeline.errors import UserError
from pipeline.manifest.label_file import FileLabels
from pipeline.methods import LossWeights, compute_loss_weights
from pipeline.methods.parts.thresholds import LabelPolicy, weigh_file_labels
from pipeline.run_folder.contents import read_metrics
from pipeline.training.checkpoints.checkpoint_facts import FILES
from tests.conftest import TINY
from tests.methods.built_methods import built, config_of, views_of
from tests.methods.traces import CLASSES, VIDEOS

FILE = {"weight": 2.0, "file": "labels.parquet", "threshold": 0.3}
METHODS = ("fixmatch", "cmpl", "mvpl", "tcl", "ltg", "svformer", "actnetformer")


def build(name: str, table: torch.Tensor, labels: dict[str, Any] | None = None, **file_label: Any) -> Any:
    method = built(name, labels, file_label={**FILE, **file_label})
    method.take_file_labels(make_file_labels(table, soft=not method.section.file_label.hard), CLASSES, VIDEOS)
    return method


def make_file_labels(table: torch.Tensor, soft: bool) -> FileLabels:
    """Makes labels of the videos whose probabilities are not all 0, in the rows of ``table`` [V, K]."""
    rows = np.flatnonzero(table.sum(dim=1).numpy() > 0)
    known = table[rows]
    confidence, classes = known.max(dim=1)
    probabilities = known.numpy().astype(np.float16) if soft else None
    means = known.mean(dim=0).numpy()
    return FileLabels(rows, classes.numpy().astype(np.int32), confidence.numpy(), probabilities, means, "0" * 16)


def draw_table(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(VIDEOS, CLASSES, generator=generator).mul(4).softmax(dim=1)


def test_a_file_of_the_students_own_mean_labels_gives_the_same_bits_as_these_labels() -> None:
    own = built("fixmatch", {"source": "mean"})
    views = views_of(config_of("fixmatch"))
    wanted = own(views, LossWeights(pseudo_label=2.0))
    logs = [wanted[f"scores/{name}"].clamp(min=1e-30).log() for name in ("primary", "auxiliary")]
    table = torch.zeros(VIDEOS, CLASSES)
    table[views.unlabeled.videos] = torch.stack(logs).mean(dim=0).softmax(dim=1)
    method = build("fixmatch", table)
    found = method(views, LossWeights(file_label=2.0))
    assert wanted["kept/mean_to_primary"] > 0
    assert torch.equal(found["loss"], wanted["loss"])
    for name in ("primary", "auxiliary"):
        assert torch.equal(found[f"file_label_loss/{name}"], wanted[f"pseudo_label_loss/{name}"])
    found["loss"].backward()
    wanted["loss"].backward()
    for one, other in zip(method.students.parameters(), own.students.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_adds_the_loss_to_its_own(name: str) -> None:
    views, table = views_of(config_of(name)), draw_table()
    weights = dict(compute_loss_weights(config_of(name).method, 1000)) | {"supervised": 1.0}
    plain = built(name)(views, LossWeights(**weights))
    found = build(name, table)(views, LossWeights(**{**weights, "file_label": 2.0}))
    added = found["file_label_loss/primary"] + found["file_label_loss/auxiliary"]
    assert added > 0
    torch.testing.assert_close(found["loss"], plain["loss"] + 2 * added, rtol=1e-5, atol=1e-5)
    assert {key for key in plain} < {key for key in found}


@pytest.mark.parametrize("hard", [True, False])
def test_only_sure_labels_of_videos_that_the_file_knows_count(hard: bool) -> None:
    views, table = views_of(config_of("fixmatch")), draw_table()
    videos = views.unlabeled.videos
    table[videos[0]] = 0
    method = build("fixmatch", table, threshold=0.0, hard=hard)
    found = method(views, LossWeights(file_label=1.0))
    method.eval()
    method.train()
    _, _, strong = method.run_students(views, LossWeights(file_label=1.0))
    for name in ("primary", "auxiliary"):
        logs = strong[name].logits.log_softmax(dim=1)
        targets = table[videos] if not hard else torch.nn.functional.one_hot(table[videos].argmax(dim=1), CLASSES).float()
        each = -(targets * logs).sum(dim=1)
        torch.testing.assert_close(found[f"file_label_loss/{name}"], each[1:].sum() / len(videos), rtol=1e-3, atol=1e-5)
    assert found["mask_rate/file_to_both"] == pytest.approx(1 - 1 / len(videos))
    sure = build("fixmatch", table, threshold=1.0)(views, LossWeights(file_label=1.0))
    assert sure["file_label_loss/primary"] == 0


@pytest.mark.parametrize("hard", [True, False])
def test_a_named_class_is_what_is_learned_however_unsure_it_is(hard: bool) -> None:
    """Its loss is that of the class, or, soft, of its confidence and an even rest; 0.1 of 5 classes taught the four others."""
    views = views_of(config_of("fixmatch"))
    videos = views.unlabeled.videos
    rows = np.unique(videos.numpy())
    sure = np.where(np.arange(len(rows)) % 2, 0.3, 0.1).astype(np.float32)
    labels = FileLabels(rows, np.full(len(rows), 2, np.int32), sure, None, np.zeros(CLASSES, np.float32), "0" * 16)
    method = built("fixmatch", None, file_label={**FILE, "threshold": 0.0 if hard else 0.2, "hard": hard})
    method.take_file_labels(labels, CLASSES, VIDEOS)
    found = method(views, LossWeights(file_label=1.0))
    method.eval()
    method.train()
    _, _, strong = method.run_students(views, LossWeights(file_label=1.0))
    confidence = torch.from_numpy(sure)[np.searchsorted(rows, videos.numpy())]
    for name in ("primary", "auxiliary"):
        logs = strong[name].logits.log_softmax(dim=1)
        if hard:
            each = -logs[:, 2]
        else:
            targets = ((1 - confidence) / (CLASSES - 1))[:, None].repeat(1, CLASSES)
            targets[:, 2] = confidence
            each = -(targets * logs).sum(dim=1) * (confidence > 0.2)
        torch.testing.assert_close(found[f"file_label_loss/{name}"], each.mean(), rtol=1e-4, atol=1e-5)
    assert found["kept_classes/file_to_both"].nonzero().ravel().tolist() == [2]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("policy", ["fixed", "freematch", "softmatch"])
def test_thresholds_are_their_papers_for_the_whole_file(policy: str, hard: bool) -> None:
    """Weights by hand, of the videos that the file knows alone, and what both students learn with them."""
    views, table = views_of(config_of("fixmatch")), draw_table()
    videos = views.unlabeled.videos
    table[videos[0]] = 0
    rows = [row for row in table.double().tolist() if any(row)]
    tops = [max(row) for row in rows]
    mean, columns = sum(tops) / len(tops), [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    variance = sum((top - mean) ** 2 for top in tops) / len(tops)

    def weigh(row: list[float]) -> float:
        top, limit = max(row), {"fixed": 0.5, "freematch": mean * columns[row.index(max(row))] / max(columns)}
        return math.exp(-(min(top - mean, 0) ** 2) / (variance / 2)) if policy == "softmatch" else float(top >= limit[policy])

    wanted = [weigh(row) if any(row) else 0.0 for row in table[videos].double().tolist()]
    method = build("fixmatch", table, threshold=0.5, thresholds=policy, hard=hard)
    found = method(views, LossWeights(file_label=1.0))
    assert 0 < sum(wanted) < len(wanted) - 1
    assert found["mask_rate/file_to_both"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    _, _, strong = method.run_students(views, LossWeights(file_label=1.0))
    for name in ("primary", "auxiliary"):
        logs = strong[name].logits.log_softmax(dim=1)
        targets = table[videos] if not hard else torch.nn.functional.one_hot(table[videos].argmax(dim=1), CLASSES).float()
        each = -(targets * logs).sum(dim=1) * torch.tensor(wanted)
        torch.testing.assert_close(found[f"file_label_loss/{name}"], each.mean(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["freematch", "softmatch"])
def test_running_means_of_a_student_that_never_changes_come_to_the_weights_of_a_file(policy: str) -> None:
    table = draw_table()
    labels = make_file_labels(table, soft=True)
    running = LabelPolicy(LabelSection(thresholds=policy, momentum=0.5), 0.8, CLASSES, VIDEOS, VIDEOS)
    for _ in range(60):
        _, weights, _ = running(table, torch.arange(VIDEOS), torch.zeros(1, dtype=torch.int64))
    section = config_of("fixmatch", file_label={**FILE, "thresholds": policy}).method.file_label
    torch.testing.assert_close(weigh_file_labels(section, labels), weights, rtol=0, atol=0.02)  # variance over N, over N - 1
    assert 0 < weights.mean() < 1


@pytest.mark.parametrize("policy", ["freematch", "softmatch"])
def test_labels_of_equal_confidence_count_alike(policy: str) -> None:
    """The mean of 37 times 0.7 must not come out above 0.7, nor a variance of 0 divide by it."""
    sure, classes = np.full(37, 0.7, np.float32), np.arange(37, dtype=np.int32) % CLASSES
    labels = FileLabels(np.arange(37), classes, sure, None, np.full(CLASSES, 0.25, np.float32), "0" * 16)
    section = config_of("fixmatch", file_label={**FILE, "thresholds": policy}).method.file_label
    assert weigh_file_labels(section, labels).tolist() == [1.0] * 37
    assert weigh_file_labels(section, replace(labels, confidence=np.zeros(37, np.float32))).tolist() == [0.0] * 37


def test_the_labels_are_neither_in_a_checkpoint_nor_broadcast_by_ddp() -> None:
    plain = built("fixmatch", None)
    method = build("fixmatch", draw_table())
    assert method.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in method.named_buffers()] == [name for name, _ in plain.named_buffers()]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"file_label": {"weight": 1.0}}, "go together"),
        ({"file_label": {"file": "x"}}, "go together"),
        ({"name": "supervised", "file_label": {"weight": 1.0, "file": "x"}}, "take name=fixmatch"),
        ({"file_label": {**FILE, "thresholds": "flexmatch"}}, "method.file_label.thresholds: flexmatch raises thresholds as"),
        ({"file_label": {**FILE, "thresholds": "freemach"}}, "method.file_label.thresholds"),
    ],
)
def test_what_does_nothing_is_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_config({"method": section})


@pytest.mark.parametrize("how", [["threshold=0.2"], ["thresholds=softmatch", "hard=false"]])
def test_a_larger_models_predictions_teach_a_run_that_continues_to_the_same_bits(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    base = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.log_every=1", "train.warmup_steps=0"]
    assert run(train.main, [*base, "run.name=teacher", "train.steps=2"]) == DONE
    table = tmp_path / "scores.parquet"
    assert run(predict.main, [str(tmp_path / "teacher"), str(tiny / "manifest.parquet"), "--out", str(table)]) == DONE
    words = [*base, "train.steps=4", "method.name=fixmatch", "method.pseudo_label.weight=0", "method.supervised_steps=0"]
    words += [f"method.file_label.{word}" for word in (f"file={table}", "weight=1", *how)]
    assert run(train.main, [*words, "run.name=whole"]) == DONE
    assert "has labels of 8 of 8 unlabeled videos" in capsys.readouterr().err
    assert run(train.main, [*words, "run.name=stopped", "--max-steps", "2"]) == DONE
    assert run(train.main, [*words, "run.name=stopped"]) == DONE
    weights = [(tmp_path / name / "checkpoint_000004" / FILES[0]).read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    line = read_metrics(tmp_path / "whole")[-1]
    assert line["file_label_loss/primary"] > 0 and line["mask_rate/file_to_both"] > 0
    moved = table.rename(tmp_path / "moved.parquet")
    elsewhere = [word.replace(str(table), str(moved)) for word in words]
    assert run(train.main, [*elsewhere, "run.name=whole"]) == DONE  # it is known by its content
    other = pq.read_table(moved)
    turned = pa.array([row[::-1] for row in other["mean"].to_pylist()], pa.list_(pa.float32()))
    pq.write_table(other.set_column(other.column_names.index("mean"), "mean", turned), moved)
    assert run(train.main, [*elsewhere, "run.name=whole"]) == USER_ERROR
    assert "method.file_label.file: the run's has fingerprint" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_a_frozen_teacher_and_its_predictions_in_a_file_train_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weak views are the clip that ``jobs.predict`` sees: the videos are square, no longer than a clip, and never cropped or
    mirrored. Strong views are random as ever."""
    monkeypatch.setattr("pipeline.video.synthetic.SIZES", ((64, 64),))
    words = ["--videos", "24", "--classes", "4", "--labeled", "2/class", "--difficulty", "0"]
    assert run(prepare.main, ["synthetic", str(tmp_path), *words]) == DONE
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path), encoding="utf-8")
    base = ["--config", str(tmp_path / "tiny.yaml"), "primary.clip.fps=1", "views.weak.min_scale=1", "views.weak.flip=0"]
    base += ["train.warmup_steps=0", "train.log_every=1", "evaluation.clips=1"]
    words = ["run.name=teacher", "method.name=supervised", "train.steps=20", "data.labeled_per_step=8"]
    assert run(train.main, [*base, *words, "primary.optimizer.lr=0.02"]) == DONE
    teacher, out = tmp_path / "runs" / "teacher", tmp_path / "predictions.parquet"
    assert run(predict.main, [str(teacher), str(tmp_path / "manifest.parquet"), "--out", str(out)]) == DONE
    predictions = pq.read_table(out)
    tables = {name: np.array(predictions[name].to_pylist()) for name in STUDENTS}
    thresholds = {name: float(np.median(table.max(axis=1))) for name, table in tables.items()}  # between two videos

    base += [f"{name}.network.weights={teacher / 'checkpoint_000020' / FILES[0]}" for name in STUDENTS]
    base += ["method.name=fixmatch", "train.steps=6"]
    words = ["run.name=frozen", "method.labels.source=ema", "method.labels.ema_decay=1"]
    words += [f"method.labels.{name}_threshold={threshold}" for name, threshold in thresholds.items()]
    assert run(train.main, [*base, *words]) == DONE
    for name in STUDENTS:  # whose teachers are different networks
        own = predictions.set_column(predictions.column_names.index("mean"), "mean", predictions[name])
        pq.write_table(own, tmp_path / f"{name}.parquet")
        words = [f"run.name={name}", "method.pseudo_label.weight=0", "method.file_label.weight=2"]
        words += [f"method.file_label.file={tmp_path / name}.parquet", f"method.file_label.threshold={thresholds[name]}"]
        assert run(train.main, [*base, *words]) == DONE
        theirs, its = (load_file(tmp_path / "runs" / one / "checkpoint_000006" / FILES[0]) for one in ("frozen", name))
        weights = [key for key in its if key.startswith(f"students.{name}.")]
        assert [key for key in weights if not torch.equal(theirs[key], its[key])] == []
        lines = zip(*(read_metrics(tmp_path / "runs" / one) for one in ("frozen", name)), strict=True)
        kept = [(one[f"mask_rate/{name}_ema_to_{name}"], other["mask_rate/file_to_both"]) for one, other in lines]
        assert all(one == other for one, other in kept) and 0 < sum(one for one, _ in kept) < len(kept) == 6
        start = load_file(teacher / "checkpoint_000020" / FILES[0])
        assert all(torch.equal(theirs[f"labels.teachers.{key.removeprefix('students.')}"], start[key]) for key in weights)
        assert not all(torch.equal(its[key], start[key]) for key in weights)
