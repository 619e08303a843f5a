"""A network that was trained elsewhere becomes a model folder, which every command takes like one of a run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from jobs import compare, evaluate, export, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.config import ClipSection, SlowResNetSection
from pipeline.export.trained_elsewhere import read_class_file
from pipeline.manifest.schema import read_manifest
from pipeline.model_folder.read_folder import read_model_folder
from pipeline.saved_models.saved_model import open_model
from pipeline.students import build_student
from tests.students.test_weights import mmaction2_keys, slowfast_keys

NETWORK = {"arch": "slow_resnet", "depth": 50, "width": 8}
CLIP = {"frames": 4, "fps": 8.0, "size": 48}


@pytest.fixture(scope="module")
def files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a checkpoint with SlowFast's keys, its class names, and a configuration that describes it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(5)
    public = build_student(SlowResNetSection(depth=50, width=8), ClipSection(**CLIP), 4)
    torch.nn.init.normal_(public.head.weight)
    tensors = public.state_dict()
    torch.save(
        {"epoch": 9, "model_state": {slowfast_keys(name): value for name, value in tensors.items()}}, folder / "slow.pyth"
    )
    torch.save({"state_dict": {mmaction2_keys(name): value for name, value in tensors.items()}}, folder / "mm.pth")
    names = list(read_manifest(tiny / "manifest.parquet").classes)
    (folder / "classes.txt").write_text("\n".join(names[::-1]) + "\n", encoding="utf-8")  # its own order
    (folder / "classes.json").write_text(json.dumps({f'"{name}"': number for number, name in enumerate(names[::-1])}))
    sections = {"network": NETWORK, "clip": CLIP}
    content = {"primary": sections, "auxiliary": {"clip": {"size": 48}}, "data": {"decode_size": 48}}
    content["evaluation"] = {"clips": 2, "crops": 1}
    (folder / "slow.yaml").write_text(yaml.safe_dump(content))
    return folder


def words_of(files: Path, out: Path, *more: str) -> list[str]:
    given = ["--from-checkpoint", str(files / "slow.pyth"), "--config", str(files / "slow.yaml")]
    return [*given, "--classes", str(files / "classes.txt"), str(out), *more]


@pytest.fixture(scope="module")
def model(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "slow"
    assert run(export.main, words_of(files, out, "--trained-by", "some authors, on some videos")) == DONE
    return out


def test_the_folder_is_the_network_and_says_where_it_is_from(model: Path, files: Path) -> None:
    folder = read_model_folder(model)
    assert folder.classes == tuple((files / "classes.txt").read_text().split())
    assert folder.training["trained_elsewhere"]["by"] == "some authors, on some videos"
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "not trained by this program, but elsewhere: some authors, on some videos. Both networks are the one" in card
    assert "`slow.pyth`, SHA-256 `" in card and "started from" not in card
    assert str(files) not in card + (model / "training.json").read_text()


@pytest.mark.timeout(200)
def test_predict_evaluate_compare_and_fine_tune_take_it(
    model: Path, files: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    video, out = manifest.locate(int(manifest.find_usable_rows("test")[0])), tmp_path / "scores.parquet"
    assert run(predict.main, [str(model), video, "--out", str(out)]) == DONE
    row = pq.read_table(out).to_pylist()[0]
    assert row["agree"] and row["primary"] == row["auxiliary"] == row["mean"]
    results = [tmp_path / "slow", tmp_path / "mm"]
    assert run(evaluate.main, [str(model), "--manifest", str(tiny / "manifest.parquet"), "--out", str(results[0])]) == DONE
    said = capsys.readouterr().out
    assert "2 clips x 1 crop, mean of probabilities, weights trained elsewhere, 8 fps, 48 px, test split" in said
    mm = words_of(files, tmp_path / "other", "primary.network.weights_pixels=slowfast")
    mm[1] = f"auxiliary={files / 'mm.pth'}"
    mm += ["--from-checkpoint", f"primary={files / 'slow.pyth'}", "auxiliary.network.arch=slow_resnet"]
    mm += [
        f"auxiliary.{part}.{key}={value}"
        for part, keys in (("network", NETWORK), ("clip", CLIP))
        for key, value in keys.items()
    ]
    mm += ["auxiliary.network.weights_pixels=slowfast", "--classes", str(files / "classes.json")]
    assert run(export.main, mm) == DONE
    words = ["--manifest", str(tiny / "manifest.parquet"), "--out", str(results[1])]
    assert run(evaluate.main, [str(tmp_path / "other"), *words]) == DONE
    tables = [pq.read_table(next(folder.glob("predictions_on_*.parquet"))) for folder in results]
    for name in ("primary", "auxiliary", "mean"):  # the same network by two projects' keys
        np.testing.assert_allclose(*(np.stack(table[name].to_numpy()) for table in tables), rtol=1e-5)
    assert run(compare.main, [str(next(folder.glob("predictions_on_*.parquet"))) for folder in results]) == DONE
    tuned = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=1", "train.warmup_steps=0"]
    tuned += ["primary.network.norm=batch", *(f"primary.network.{key}={value}" for key, value in NETWORK.items())]
    capsys.readouterr()
    assert run(train.main, [*tuned, f"primary.network.weights={model}"]) == DONE
    assert "starts at random" not in capsys.readouterr().err


def test_a_classifier_of_other_classes_is_dropped_and_that_is_said(
    files: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = torch.load(files / "slow.pyth", weights_only=True)
    content["model_state"] |= {
        f"head.projection.{name}": torch.zeros(7, *more) for name, more in (("weight", (256,)), ("bias", ()))
    }
    torch.save(content, tmp_path / "seven.pyth")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=1", "train.warmup_steps=0"]
    words += ["primary.network.norm=batch", *(f"primary.network.{key}={value}" for key, value in NETWORK.items())]
    assert run(train.main, [*words, f"primary.network.weights={tmp_path / 'seven.pyth'}", "--dry-run"]) == DONE
    said = capsys.readouterr().err
    assert "primary.network.weights has a classifier of 7 classes, the data 4 classes: the classifier starts at random" in said


def refuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(export.main, words) == USER_ERROR
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\nb\n", "has a classifier of 4 classes, and --classes names 2; to train one, start from the file: primary.network"),
        ("a\nb\na\n", "'a' is named twice"),
        ("a\n\nb\n", "class 2 has no name"),
        ("a\n", "at least 2 classes are needed"),
    ],
)
def test_class_names_that_are_not_its_own_are_refused(
    names: str, message: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text(names)
    words = [*words_of(files, tmp_path / "out"), "--classes", str(tmp_path / "names.txt")]
    assert message in refuse(words, capsys) and not (tmp_path / "out").exists()


def test_what_cannot_become_a_model_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.json").write_text('{"a": 0, "b": 2}')
    words = words_of(files, tmp_path / "out")
    assert "must be 0 to 1, each one once" in refuse([*words, "--classes", str(tmp_path / "names.json")], capsys)
    assert "cannot be read: No such file" in refuse([*words, "--classes", str(tmp_path / "absent.txt")], capsys)
    assert "needs --config FILE" in refuse([*words[:2], str(tmp_path / "out")], capsys)
    assert "is for --from-checkpoint" in refuse([str(files), str(tmp_path / "out"), "--trained-by", "me"], capsys)
    assert "give one FILE, which becomes both" in refuse([*words, "--from-checkpoint", "primary=x.pth"], capsys)
    assert "compare width and depth" in refuse([*words, "primary.network.width=4"], capsys)
    words[1] = str(files)
    assert "is a folder; give a file, such as model.safetensors" in refuse(words, capsys)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": {"a": Path}}))
    words[1] = str(tmp_path / "evil.pth")
    assert "code in it is not run" in refuse(words, capsys)
    assert not (tmp_path / "out").exists()


def test_class_names_may_begin_with_the_mark_of_windows(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufefffirst\r\nzweite, größere\r\n".encode())
    assert read_class_file(tmp_path / "names.txt") == ("first", "zweite, größere")


def test_another_checkpoint_does_not_replace_it(model: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(export.main, words_of(files, model, "evaluation.clips=1")) == DONE
    assert "note: replaced the export of the same weights" in capsys.readouterr().out
    assert open_model(model).config.evaluation.clips == 1
    words = words_of(files, model, "primary.network.weights_pixels=slowfast")
    words[1] = str(files / "mm.pth")
    assert "is the model of another run (slow.pyth)" in refuse(words, capsys)
