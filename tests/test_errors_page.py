"""Every line of docs/errors.md is run as a user would: the command fails with exit code 2, and says what the line says."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jobs.command import USER_ERROR, run

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", flags=re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_the_test_reads_every_line_of_the_tables() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS) > 40


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page describes, as the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "one/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one" / "a" / "x.mp4").write_text("no video", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    texts = {"text": "text", "broken.yaml": "train: [", "list.yaml": "- a", "word.yaml": "train: {steps: many}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("command", "message", "remedy"), ROWS, ids=[row[0] for row in ROWS])
def test_the_command_says_what_the_page_says(
    command: str, message: str, remedy: str, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in broken.iterdir())
    name, *words = shlex.split(command)
    try:
        code: object = run(importlib.import_module(f"jobs.{name}").main, words)
    except SystemExit as end:  # of argparse
        code = end.code
    said = capsys.readouterr().err
    assert code == USER_ERROR, said
    assert message in " ".join(said.split()) and remedy
    assert "Traceback" not in said and "Errno" not in said
    made = set(path.name for path in broken.iterdir()) - set(before)
    assert not any(broken.joinpath(name).is_file() or list(broken.joinpath(name).glob("*.parquet")) for name in made)
