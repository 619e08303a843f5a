"""Names of files and classes that a command line or a terminal finds hard: a dash in front, letters it cannot show."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import label, predict, prepare
from jobs.command import DONE, mark_files, run
from pipeline.errors import UserError
from pipeline.manifest.schema import read_manifest
from pipeline.prediction.input_videos import check_words
from tests.videos import write_numbers

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("naïve", "走る", "×±")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose names need more than Latin letters."""
    folder = tmp_path_factory.mktemp("names") / "-vidéos.d"
    for name in CLASSES:
        for number in range(3):
            write_numbers(folder / name / f"-{number}é.mp4", frames=4 + number, size=(32, 32))
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_terminal_cannot_show_ends_no_command(videos: Path, tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    for words in (["jobs.prepare", "folder", str(videos), str(tmp_path / "out"), "--processes", "1", "--labeled", "1/class"],
                  ["jobs", "inspect", str(tmp_path / "out" / "manifest.parquet")]):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        assert "\\u8d70\\u308b" in text
        assert ("naïve" if encoding == "latin-1" else "na\\xefve") in text
    assert set(read_manifest(tmp_path / "out" / "manifest.parquet").classes) == set(CLASSES)


def test_every_command_writes_what_its_output_cannot_encode_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    def main(argv: Sequence[str] | None) -> int:
        print("走 \udcff")  # the second is a byte of a file name that is not UTF-8
        return DONE

    assert run(main, []) == DONE
    sys.stdout.flush()
    assert written.getvalue() == b"\\u8d70 \\udcff\n"


def test_words_with_a_dash_are_files_where_they_can_be_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-abc.mp4", "-d", "--x.mp4", "--hash", "-1", "-h"):
        Path(name).touch()
    words = ["a.mp4", "-abc.mp4", "--x.mp4", "-d", "--hash", "-1", "-h", "--out=b", "-none.mp4", "--"]
    assert mark_files(words) == ["a.mp4", "./-abc.mp4", "./--x.mp4", "./-d", *words[4:]]


def test_commands_take_files_whose_names_begin_with_a_dash(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(videos.parent)
    out = str(tmp_path / "out")
    assert run(prepare.main, ["folder", videos.name, out, "--labeled", "1/class"]) == DONE
    manifest = read_manifest(f"{out}/manifest.parquet")
    names = [manifest.table["id"][int(row)].as_py() for row in manifest.find_usable_rows("train")]
    Path("-list.txt").write_text("\n".join(names), encoding="utf-8")
    assert run(label.main, [f"{out}/manifest.parquet", "--import", "list", "-list.txt"]) == DONE
    assert f"labeled    {len(names)} videos" in capsys.readouterr().out
    monkeypatch.chdir(videos / CLASSES[0])
    with pytest.raises(SystemExit):
        run(predict.main, ["runs/none", "-none.mp4"])  # neither an option nor a file
    assert "a name that begins with - as ./-name" in capsys.readouterr().err
    assert run(predict.main, ["runs/none", "-0é.mp4"]) == 2  # a file: what is missing is the run
    assert "runs/none is not a run folder" in capsys.readouterr().err.replace(str(Path.cwd()) + "/", "")


def test_words_of_predict_that_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.x=1.mp4").touch()
    Path(unicodedata.normalize("NFD", "é")).mkdir()
    stored = unicodedata.normalize("NFD", "é/ü.mp4")
    Path(stored).touch()
    assert check_words(["a=b.mp4", "data.x=1.mp4", "s3://b/x.y=z.mp4", unicodedata.normalize("NFC", stored)]) == [
        "a=b.mp4", "data.x=1.mp4", "s3://b/x.y=z.mp4", stored,
    ]  # fmt: skip
    assert "another Unicode form on the disk" in capsys.readouterr().err
    for words, message in (
        (["a.mp4", "evalution.clips=1", "data.root=/x"], "no such files, and only evaluation"),
        (["a\udcff.mp4"], "not UTF-8"),
        ([], "at least one"),
    ):
        with pytest.raises(UserError, match=message):
            check_words(words)
