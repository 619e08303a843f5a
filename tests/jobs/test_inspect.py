"""The inspect command: what it counts, the damage it finds, and the pages it writes."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import inspect, label, prepare
from jobs.command import DONE, FAILED, USER_ERROR, run
from pipeline.manifest.schema import read_manifest
from tests.videos import write_numbers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2 x 4 videos, one of them twice and one broken, and its manifest with hashes."""
    root = tmp_path_factory.mktemp("inspected")
    for name, fps in (("a", "25"), ("b", "30")):
        for number in range(4):
            write_numbers(root / "videos" / name / f"{number}.mp4", frames=10 + number, fps=fps, size=(64, 48))
    shutil.copy(root / "videos" / "a" / "0.mp4", root / "videos" / "a" / "copy.mp4")
    (root / "videos" / "b" / "broken.mp4").write_bytes(b"junk" * 100)
    # the copy must be on the same side as its original, or it is refused as a leak
    listed = ["path,label,split", "a/copy.mp4,a,train"]
    listed += [f"{name}/{n}.mp4,{name},{'test' if n == 3 else 'train'}" for name in "ab" for n in range(4)]
    (root / "list.csv").write_text("\n".join([*listed, "b/broken.mp4,b,train"]), encoding="utf-8")
    words = ["list", str(root / "list.csv"), str(root), "--root", str(root / "videos"), "--labeled", "1/class", "--hash"]
    assert run(prepare.main, [*words, "--processes", "1"]) == DONE
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def call(folder: Path, *words: str | Path) -> int:
    return run(inspect.main, [str(folder / "manifest.parquet"), "--root", str(folder / "videos"), *map(str, words)])


def test_counts_histograms_and_duplicates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder) == DONE
    out = capsys.readouterr().out
    assert re.search(r"class +train +test +not a video \(train\)\na +4 +1 +0\nb +3 +1 +1\n2 classes +7 +2 +1\n", out)
    assert re.search(r"frames per second\n +25 +5 +█+\n +30 +4 +█+\n", out)
    assert re.search(r"width x height\n +64 x 48 +9 ", out) and "duration in seconds" in out and "h264" in out
    assert "sets of files with the same content: 1\n  a/0.mp4 (train), a/copy.mp4 (train)" in out


def test_the_labels_beside_a_manifest_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder) == DONE
    assert "\nlabels beside it: 2 videos (1/class, seed 0)\n" in capsys.readouterr().out
    assert run(label.main, [str(folder / "manifest.parquet"), "--per-class", "2", "--hold-out", "50%"]) == DONE
    capsys.readouterr()
    assert call(folder) == DONE
    assert "\nlabels beside it: 2 videos (2/class, 50% held out, seed 0); 2 more are held out\n" in capsys.readouterr().out
    (folder / "labels.parquet").unlink()
    assert call(folder) == DONE
    assert re.search(r"\nlabels beside it: .*draw one with python -m jobs\.label\n", capsys.readouterr().out)


def test_verify_finds_every_changed_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "--verify") == DONE
    assert "0 files are not what they were" in capsys.readouterr().out
    generator = np.random.default_rng(0)
    for name in ("a/0.mp4", "a/1.mp4", "b/2.mp4", "b/3.mp4"):
        content = bytearray((folder / "videos" / name).read_bytes())
        place = int(generator.integers(len(content)))
        content[place] ^= 1 << int(generator.integers(8))  # one bit
        (folder / "videos" / name).write_bytes(content)
    (folder / "videos" / "a" / "2.mp4").unlink()
    with (folder / "videos" / "b" / "0.mp4").open("ab") as file:
        file.write(b"\0")
    assert call(folder, "--verify", "--html", folder / "page.html") == FAILED
    out = capsys.readouterr().out
    assert "6 files are not what they were" in out
    for line in ("a/0.mp4: changed, at the same size", "a/2.mp4: missing", "b/0.mp4: changed, "):
        assert line in out
    assert "changed, at the same size" in (folder / "page.html").read_text(encoding="utf-8")


def test_page_with_contact_sheets(folder: Path) -> None:
    assert call(folder, "--html", folder / "page.html", "--per-class", "3") == DONE
    page = (folder / "page.html").read_text(encoding="utf-8")
    captions = re.findall(r'<figcaption title="([^"]+)">([^<]+)<br>(\w+), at ([\d.]+) s</figcaption>', page)
    manifest = read_manifest(folder / "manifest.parquet")
    rows = {row["id"]: row for row in manifest.table.to_pylist()}
    assert len(captions) == page.count("<img src=")
    for name, file, split, seconds in captions:
        assert (file, split) == (name.rpartition("/")[2], rows[name]["split"])
        assert float(seconds) == pytest.approx(rows[name]["duration"] / 2, abs=0.051)
    assert page.count("<img src=") == 6 and "b/broken.mp4" in page and "1 files that cannot be used" in page
    assert "not_a_video" in page and "a/copy.mp4 (train)" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == [] and "<script" not in page
    first = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)[0]
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (112, 112)
    again = folder / "again.html"
    assert call(folder, "--html", again, "--per-class", "3") == DONE
    assert again.read_text(encoding="utf-8") == page


@pytest.mark.usefixtures("in_child_processes")
def test_a_video_that_is_gone_since_is_named_on_the_page(folder: Path) -> None:
    (folder / "videos" / "a" / "1.mp4").unlink()
    assert call(folder, "--html", folder / "page.html") == DONE
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 8 and page.count('<div class="gone">') == 1


def test_mistakes(folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "--per-class", "0") == USER_ERROR
    assert call(folder, "--html", folder) == USER_ERROR
    assert "is a folder; name a file" in capsys.readouterr().err
    assert run(inspect.main, [str(tiny / "manifest.parquet"), "--verify"]) == USER_ERROR
    assert "holds no hashes to compare with; write them with jobs.prepare --hash" in capsys.readouterr().err
    assert run(inspect.main, ["none.parquet"]) == USER_ERROR
    assert run(inspect.main, ["clips", "--config", str(tiny / "tiny.yaml"), "--step", "12"]) == USER_ERROR
    assert "--step 12 must lie between 0 and 11" in capsys.readouterr().err
