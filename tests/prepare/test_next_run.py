"""The next command: it names the files that are there and a configuration that fits them, and it can be run as it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import label, prepare, train
from jobs.command import DONE, run
from pipeline.manifest.schema import Manifest, write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.next_run import suggest_training
from pipeline.video.probe import Probe
from tests.manifest.tables import make_listing
from tests.videos import write_numbers


def make_manifest(path: Path, seconds: float, source: str) -> Manifest:
    probes = [Probe(50, 25.0, False, seconds, 160, 120, "h264", 1000, None, "decord")] * 19
    probes += [Probe(9000, 25.0, False, 360.0, 160, 120, "h264", 1000, None, "decord")]  # a long one among short ones
    table = build_table(make_listing({"a": 10, "b": 10}), probes)
    path.parent.mkdir(exist_ok=True)
    return write_manifest(table, path, ("a", "b"), "/videos", source)


@pytest.mark.parametrize(
    ("seconds", "source", "words"),
    [
        (2.0, "synthetic", ["demo", "run.name=mine", "data.manifest={}"]),
        (2.0, "folder", ["actions", "run.name=mine", "data.manifest={}"]),
        (5.1, "ucf101 split 1", ["demo", "run.name=mine", "data.manifest={}", "views.weak.flip=0.5"]),
    ],
)
def test_the_configuration_fits_the_videos(tmp_path: Path, seconds: float, source: str, words: list[str]) -> None:
    path = tmp_path / "mine" / "manifest.parquet"
    command, why = suggest_training(make_manifest(path, seconds, source)).splitlines()
    expected = ["next", "python", "-m", "jobs.train", "--config", *(word.format(path) for word in words)]
    assert shlex.split(command) == expected
    assert ("flip" in why) == ("views.weak.flip=0.5" in words)


def test_parts_of_long_files_are_short_videos(tmp_path: Path) -> None:
    whole = make_manifest(tmp_path / "whole" / "manifest.parquet", 360.0, "list")
    number = whole.table.schema.get_field_index("end")
    table = whole.table.set_column(number, "end", pa.array([4.0] * len(whole.table)))
    part = write_manifest(table, tmp_path / "manifest.parquet", ("a", "b"), "/videos", "list")
    assert "--config demo " in suggest_training(whole) and "--config actions " in suggest_training(part)


def test_names_and_paths(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "my videos" / "manifest_2.parquet", 2.0, "folder")
    words = shlex.split(suggest_training(manifest, tmp_path / "labels_3.parquet").splitlines()[0])
    assert words[-3:] == [
        "run.name=my_videos_manifest_2_labels_3",
        f"data.manifest={tmp_path}/my videos/manifest_2.parquet",
        f"data.labels={tmp_path}/labels_3.parquet",
    ]


def test_what_prepare_and_label_print_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are given a folder with a space in its name, and what they print is given to ``jobs.train``."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for number in range(6):
            write_numbers(tmp_path / "videos" / name / f"{number}.mp4", frames=8, size=(32, 32))
    words = ["folder", "videos", "my data", "--labeled", "2/class", "--processes", "1"]
    assert run(prepare.main, words) == DONE
    prepared = capsys.readouterr().out
    manifest = str(tmp_path / "my data" / "manifest.parquet")
    assert run(label.main, [manifest, "--per-class", "1", "--out", "my data/labels_1.parquet"]) == DONE
    for out, name in ((prepared, "my_data"), (capsys.readouterr().out, "my_data_labels_1")):
        (line,) = [line for line in out.splitlines() if line.startswith("next")]
        assert run(train.main, [*shlex.split(line)[4:], "--dry-run"]) == DONE
        assert name in capsys.readouterr().out
