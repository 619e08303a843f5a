"""Programs of torch.export and ONNX: they compute what the networks do, or are not written."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import save_file

from jobs import export, predict
from jobs.command import DONE, USER_ERROR, run
from pipeline.config import STUDENTS, parse_config
from pipeline.evaluation.score_videos import score_all_views
from pipeline.export.check_clips import decode_test_clips
from pipeline.export.network_programs import (
    PROGRAMS,
    build_networks,
    compute_probabilities,
    measure_difference,
    select_frames,
    trace_networks,
)
from pipeline.export.onnx_programs import load_onnx_program, write_onnx_programs
from pipeline.manifest.schema import read_manifest
from pipeline.methods import build_students
from pipeline.model_folder.read_folder import CHECKSUMS
from pipeline.saved_models.saved_model import open_model
from pipeline.saved_models.saved_run import open_run_source
from tests.model_folders import read, video_of

pytestmark = pytest.mark.xdist_group("exported")  # whoever exports imports torch's exporter and onnxscript, in seconds


def test_a_folder_with_programs_is_whole_and_used_as_before(programs: Path, tiny: Path) -> None:
    names = [f"{name}{end}" for end in ("_program.pt2", ".onnx") for name in PROGRAMS]
    int8 = [f"{name}_int8.onnx" for name in PROGRAMS]
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=programs, capture_output=True, text=True, check=True)
    assert all(f"{name}: OK" in done.stdout for name in (*names, *int8, "programs.json"))
    measured = read(programs, "programs.json")
    assert measured["compared_on_clips"] == 8 and list(measured["largest_difference"]) == names
    assert all(0 <= value < 1e-5 for value in measured["largest_difference"].values())
    assert list(measured["int8"]["programs"]) == int8
    card = (programs / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in card for name in names) and all(f"- {name}: top-1 " in card for name in int8)
    assert run(predict.main, [str(programs), video_of(tiny)]) == DONE


def test_torch_programs_compute_probabilities_of_any_number_of_clips(programs: Path) -> None:
    program = torch.export.load(programs / "mean_program.pt2").module()
    frames = torch.randint(0, 256, (5, 4, 40, 40, 3), dtype=torch.uint8)
    probabilities = program(frames, frames)
    assert probabilities.shape == (5, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def test_onnx_files_compute_evaluations_scores_for_any_number_of_real_clips(programs: Path, tiny: Path) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    saved = open_model(programs, [f"data.manifest={tiny}/manifest.parquet", "evaluation.clips=1"], ("data.", "evaluation."))
    source = open_run_source(saved)
    rows = manifest.find_usable_rows("test")
    block = score_all_views(source, saved.config, saved.weights, rows, None)
    clips = {name: values.numpy() for name, values in decode_test_clips(source, rows.tolist()).items()}
    for name in ("primary", "auxiliary", "mean"):
        session = onnxruntime.InferenceSession(programs / f"{name}.onnx")
        names = [one.name for one in session.get_inputs()]
        assert names == [f"{one}_frames" for one in (("primary", "auxiliary") if name == "mean" else (name,))]
        assert session.get_inputs()[0].shape == ["batch", 4, 40, 40, 3] and session.get_outputs()[0].shape == ["batch", 4]
        wanted = (block["primary"] + block["auxiliary"]) / 2 if name == "mean" else block[name]
        for size in (1, 2, 5, 8):
            frames = {one: clips[one.removesuffix("_frames")][:size] for one in names}
            np.testing.assert_allclose(session.run(None, frames)[0], wanted[:size], rtol=0, atol=1e-5)


def test_the_example_of_the_manual_classifies_a_video(
    programs: Path, tiny: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository / "docs/models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import av.*?)```", page, re.DOTALL)
    assert code.count("models/mine") == 2 and code.count("clip.mp4") == 1
    names: dict[str, Any] = {}
    exec(code.replace("models/mine", str(programs)).replace("clip.mp4", video_of(tiny)), names)
    printed, probability = capsys.readouterr().out.split()
    inputs, labels = names["inputs"], read(programs, "labels.json")
    assert {name: frames.shape for name, frames in inputs.items()} == dict.fromkeys(inputs, (1, 4, 40, 40, 3))
    assert len(np.unique(inputs["primary_frames"], axis=1)[0]) > 1  # different frames of a video that moves
    program = torch.export.load(programs / "mean_program.pt2").module()
    with torch.inference_mode():
        (wanted,) = program(*(torch.from_numpy(frames) for frames in inputs.values()))
    assert printed == labels[wanted.argmax()] and float(probability) == pytest.approx(float(wanted.max()), abs=1e-5)


def test_programs_name_no_folder_of_this_machine(programs: Path) -> None:
    """What traces networks notes the file and line of every operation."""
    here = [str(Path(export.__file__).parent.parent).encode(), str(Path(torch.__file__).parent.parent).encode()]
    for path in (*programs.glob("*.onnx"), *programs.glob("*.pt2")):
        parts = [path.read_bytes()]
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        assert not any(folder in part for folder in here for part in parts), path.name


NETWORKS = {
    "batch norm and joint attention": """
        primary: {network: {depth: 14, width: 8}, clip: {frames: 4, size: 32, modality: temporal_gradient}}
        auxiliary: {network: {width: 32, depth: 1, heads: 2, patch: 8, tubelet: 2, attention: joint, stem: convolutions},
                    clip: {frames: 4, size: 32}}""",
    "plain convolutions and attention in space": """
        primary: {network: {arch: plain_conv3d, width: 8}, clip: {frames: 8, size: 32}}
        auxiliary: {network: {width: 32, depth: 1, heads: 2, patch: 8, attention: space}, clip: {frames: 4, size: 40}}""",
}


SHADES = torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0])[:, None, None, None, None]


@pytest.mark.parametrize("networks", NETWORKS)
def test_other_networks_are_the_same_in_onnx(networks: str, tmp_path: Path) -> None:
    config = parse_config({"data": {"manifest": "none.parquet", "decode_size": 40}, **yaml.safe_load(NETWORKS[networks])})
    torch.manual_seed(0)
    students = build_students(config, 3)
    for student in students.values():
        torch.nn.init.normal_(student.head.weight, std=0.1)  # near 0, as before training, it would hide any difference
    save_file({f"students.{name}": value for name, value in students.state_dict().items()}, tmp_path / "weights")
    built = build_networks(config, 3, tmp_path / "weights")
    shapes = {name: (5, getattr(config, name).clip.frames, 40, 40, 3) for name in STUDENTS}
    clips = {name: (torch.rand(shape) * 255 * SHADES).to(torch.uint8) for name, shape in shapes.items()}
    expected = compute_probabilities(built, config, clips)
    for name, path in write_onnx_programs(trace_networks(built, config, STUDENTS), tmp_path).items():
        assert expected[name].std(dim=0).max() > 0.001
        assert measure_difference(load_onnx_program(path), select_frames(clips, name), expected[name]) < 1e-5


@pytest.mark.parametrize("option", ["--torch-export", "--onnx"])
def test_a_program_that_computes_something_else_is_not_written(
    option: str, trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.export.network_programs.MEAN", 0.0)  # another normalization than evaluation's
    monkeypatch.setattr("pipeline.export.programs.PROGRAMS", ("primary",))  # of torch.export; one is enough
    words = [str(trained), str(tmp_path / "model"), option, "--check-on", video_of(tiny)]
    assert run(export.main, words) == USER_ERROR
    said = capsys.readouterr().err
    assert "differs by" in said and f"export without {option}" in said and not (tmp_path / "model").exists()


def test_what_programs_are_compared_on_is_there_and_wanted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained), str(tmp_path / "model"), "--check-on", str(tmp_path / "absent.mp4")]
    assert run(export.main, words) == USER_ERROR
    assert "give one of them" in capsys.readouterr().err
    assert run(export.main, [*words, "--onnx"]) == USER_ERROR
    assert "--check-on" in capsys.readouterr().err


def test_without_its_packages_onnx_is_refused_with_the_remedy(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert run(export.main, [str(trained), str(tmp_path / "model"), "--onnx"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "--onnx needs onnxruntime: pip install 'actnetformer[onnx]'" in said and not (tmp_path / "model").exists()
