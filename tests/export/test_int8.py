"""int8 ONNX files: made by training videos, and measured on others, with figures that are right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from jobs import export, label, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.errors import UserError
from pipeline.export.check_clips import decode_test_clips
from pipeline.export.int8_figures import Int8Figures, describe_int8, measure_int8
from pipeline.export.int8_videos import find_int8_videos
from pipeline.export.network_programs import PROGRAMS
from pipeline.saved_models.saved_run import open_run_source, open_saved_run
from tests.model_folders import read, video_of


def test_the_figures_are_those_of_the_files(programs: Path, trained: Path) -> None:
    source = open_run_source(open_saved_run(trained))
    rows = source.find_evaluation_rows("test")
    clips = {name: frames.numpy() for name, frames in decode_test_clips(source, rows.tolist()).items()}
    labels = source.columns["label"][rows].astype(int)
    measured = read(programs, "programs.json")["int8"]
    assert (measured["videos"], measured["labeled_videos"], measured["undecodable_videos"]) == (8, 8, 0)
    assert measured["measured_on"]["split"] == "test" and measured["calibrated_on"]["videos"] == 24
    for name in ("primary", "auxiliary", "mean"):
        shown = {f"{one}_frames": clips[one] for one in (("primary", "auxiliary") if name == "mean" else (name,))}
        floats, ints = (
            onnxruntime.InferenceSession(programs / f"{name}{end}.onnx").run(None, shown)[0] for end in ("", "_int8")
        )
        assert 1e-7 < np.abs(floats - ints).max() < 0.2
        before, after, figures = floats.argmax(axis=1), ints.argmax(axis=1), measured["programs"][f"{name}_int8.onnx"]
        assert figures["float_top1"] == (before == labels).mean() and figures["int8_top1"] == (after == labels).mean()
        assert figures["agreement"] == (before == after).mean()
        assert figures["only_float_right"] == ((before == labels) & (after != labels)).sum()
        assert figures["int8_megabytes"] == (programs / f"{name}_int8.onnx").stat().st_size / 1e6
        assert figures["time_ratio"] > 0


def test_all_but_what_sees_the_pixels_computes_with_integers(programs: Path) -> None:
    for name, inner in (("primary", "Conv"), ("auxiliary", "MatMul")):
        graph = onnx.load(programs / f"{name}_int8.onnx").graph
        made_by = {output: node for node in graph.node for output in node.output}
        kinds = [
            {made_by[value].op_type for value in node.input if value in made_by} for node in graph.node if node.op_type == inner
        ]
        if inner == "Conv":
            assert "DequantizeLinear" not in kinds.pop(0)
        assert len(kinds) > 5 and all(kind == {"DequantizeLinear"} for kind in kinds)
        assert {one.data_type for one in graph.initializer if one.name.endswith("_quantized")} <= {
            onnx.TensorProto.INT8,
            onnx.TensorProto.INT32,  # biases
        }


def test_no_video_that_is_measured_on_was_calibrated_by(tiny: Path, tmp_path: Path) -> None:
    """Neither a test video, nor a held-out one where those are evaluated."""
    labels = tmp_path / "labels.parquet"
    words = [str(tiny / "manifest.parquet"), "--per-class", "2", "--hold-out", "25%", "--out", str(labels)]
    assert run(label.main, words) == DONE
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", f"data.labels={labels}"]
    assert run(train.main, [*words, "train.steps=1", "train.warmup_steps=0", "method.name=supervised"]) == DONE
    for split in ("test", "validation"):
        chosen = find_int8_videos(open_saved_run(tmp_path / "tiny", [f"evaluation.split={split}"], ("evaluation.",)), ())
        phrase = "1 clip x 1 crop, mean of probabilities, last checkpoint (step 1), 8 fps and 16 fps, 32 px"
        assert chosen.about["protocol"] == f"{phrase}, {split} split"
        assert len(chosen.rows) and not set(chosen.rows) & set(chosen.calibration_rows)
        splits = chosen.calibration.manifest.table["split"].to_pylist()
        assert {splits[row] for row in chosen.calibration_rows} <= {"train", "unlabeled"}


def test_accuracy_is_measured_on_a_manifest_with_labels_and_on_nothing_else(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained), str(tmp_path / "model"), "--onnx-int8", "--check-on"]
    assert run(export.main, [*words, video_of(tiny)]) == USER_ERROR
    assert "--check-on must be one manifest" in capsys.readouterr().err
    chosen = find_int8_videos(open_saved_run(trained), [str(tiny / "manifest.parquet")])
    assert len(chosen.rows) == 8
    assert run(export.main, [*words[:-1], f"data.manifest={tmp_path}/gone.parquet"]) == USER_ERROR
    assert "--onnx-int8 finds the ranges of activations on the run's training videos" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_useless_programs_are_refused(programs: Path, trained: Path, tmp_path: Path) -> None:
    """A network whose last layer has the wrong sign."""
    spoiled = onnx.load(programs / "primary_int8.onnx")
    (last,) = (node for node in spoiled.graph.node if node.op_type == "Gemm")
    (alpha,) = (attribute for attribute in last.attribute if attribute.name == "alpha")
    alpha.f = -alpha.f
    onnx.save(spoiled, tmp_path / "primary_int8.onnx")
    floats, int8s = ({name: programs / f"{name}{end}.onnx" for name in PROGRAMS} for end in ("", "_int8"))
    videos = find_int8_videos(open_saved_run(trained), ())
    with pytest.raises(UserError, match="are useless, so nothing is written: export without --onnx-int8") as raised:
        measure_int8(floats, {**int8s, "primary": tmp_path / "primary_int8.onnx"}, videos)
    assert "primary: the same class for" in str(raised.value) and "of 8 videos" in str(raised.value)


def test_a_loss_that_matters_is_said() -> None:
    worse = Int8Figures(0.39, 0.37, 9, 1, 0.9, 4.0, 1.0, 0.5)
    same = Int8Figures(0.39, 0.38, 9, 5, 0.9, 4.0, 1.0, 0.5)
    content = {
        "programs": {"primary_int8.onnx": asdict(worse), "mean_int8.onnx": asdict(same)},
        "measured_on": {"split": "test", "source": "list", "chosen_from": 430, "protocol": "1 clip x 1 crop"},
        "labeled_videos": 400, "calibrated_on": {"videos": 64},
    }  # fmt: skip
    lines = describe_int8(content)
    assert "measured on 400 labeled test videos of list (of 430); protocol: 1 clip x 1 crop; ranges found on" in lines[2]
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert "primary_int8.onnx loses 2.0 points of top-1, more than 1 (9 videos only float gets right, 1 only int8)" in note
