"""docs/migration.md: its commands, in their order, on lists and videos laid out as the other projects have them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from jobs import label, prepare, train
from jobs.command import DONE, run
from pipeline.config import load_config
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from tests.official_layouts import write_lines, write_ucf101, write_video

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
COMMANDS = {"prepare": prepare.main, "label": label.main}
TINY = [
    "train.steps=2", "train.warmup_steps=1", "data.labeled_per_step=2", "data.decode_size=24", "scale.workers=0",
    "scale.torch_threads=1", "primary.network={arch: slow_resnet, depth: 10, width: 8}", "primary.clip.frames=2",
    "primary.clip.size=16", "auxiliary.network={arch: timesformer, width: 16, depth: 1, heads: 2, patch: 8}",
    "auxiliary.clip.frames=2", "auxiliary.clip.size=16", "evaluation.clips=1", "evaluation.crops=1",
]  # fmt: skip
NAMES = ("abseiling", "zumba")


def write_slowfast(root: Path) -> None:
    """train.csv and val.csv of paths below DATA.PATH_PREFIX."""
    for split, count in (("train", 4), ("val", 2)):
        files = [(f"{split}/{name}/v{i}.mp4", number) for number, name in enumerate(NAMES) for i in range(count)]
        write_lines(root / "kinetics" / f"{split}.csv", [f"{file} {number}" for file, number in files])
        for file, _ in files:
            write_video(root / "kinetics" / "videos" / file)


def write_mmaction2(root: Path) -> None:
    """Lists whose paths start from data_prefix, a label map, and raw frames with their number."""
    for split, count in (("train", 4), ("val", 2)):
        files = [(f"{name}/v{i}.mp4", number) for number, name in enumerate(NAMES) for i in range(count)]
        write_lines(root / f"kinetics400_{split}_list_videos.txt", [f"{file} {number}" for file, number in files])
        for file, _ in files:
            write_video(root / f"videos_{split}" / file)
    write_lines(root / "label_map_k400.txt", list(NAMES))
    for split, count in (("train", 4), ("val", 2)):
        folders = [(f"{split}_{name}_{i}", number) for number, name in enumerate(NAMES) for i in range(count)]
        write_lines(root / f"frames_{split}.txt", [f"{folder} 6 {number}" for folder, number in folders])
        for folder, _ in folders:
            write_frames(root / "rawframes" / folder)


def write_frames(folder: Path) -> None:
    """Six images as mmaction2 extracts them."""
    folder.mkdir(parents=True)
    for number in range(1, 7):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), format="rgb24")
        frame.to_image().save(folder / f"img_{number:05d}.jpg")


@pytest.mark.timeout(300)
def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write in (write_slowfast, write_mmaction2, write_ucf101):
        write(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    ((?:python|sed) .*)$", PAGE, flags=re.MULTILINE)
    for line in lines:
        if line.startswith("sed "):
            subprocess.run(line, shell=True, check=True, timeout=30)
            continue
        name, *words = shlex.split(line)[2:]
        assert run(COMMANDS[name.removeprefix("jobs.")], words) == DONE, line
    splits = {"slowfast": (8, 4), "mmaction": (8, 4), "frames": (8, 4), "ucf101": (12, 6)}
    for name, counts in splits.items():
        manifest = read_manifest(tmp_path / "data" / name / "manifest.parquet")
        assert tuple(len(manifest.find_usable_rows(split)) for split in ("train", "test")) == counts, name
    assert read_manifest(tmp_path / "data" / "mmaction" / "manifest.parquet").classes == NAMES
    frames = read_manifest(tmp_path / "data" / "frames" / "manifest.parquet").table
    assert set(frames["fps"].to_pylist()) == {30.0} and set(frames["frames"].to_pylist()) == {6}
    ucf101 = read_manifest(tmp_path / "data" / "ucf101" / "manifest.parquet")
    assert len(read_labels(tmp_path / "data" / "ucf101" / "labels_1.parquet", ucf101).rows) == 3


@pytest.mark.timeout(300)
def test_the_configuration_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slowfast(tmp_path)
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "slow.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "slow.yaml")
    assert config.train.steps == 196 * 240_000 // config.data.labeled_per_step and config.primary.clip.fps == 30 / 8
    words = ["list", "train=kinetics/train.csv", "test=kinetics/val.csv", "data/slowfast", "--root", "kinetics/videos"]
    assert run(prepare.main, words) == DONE
    assert run(train.main, ["--config", "slow.yaml", *TINY]) == DONE
    assert (tmp_path / "runs" / "slow_8x8" / "evaluation.json").is_file()
