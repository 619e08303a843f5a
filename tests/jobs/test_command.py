"""What the options of commands accept."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs import ablate, cluster, prepare, schedule, search
from jobs.__main__ import COMMANDS
from jobs.command import USER_ERROR, check_hours, find_config, run
from jobs.completion import find_parser


def test_hours() -> None:
    for hours in (None, 9.0, 0.5, 1e-3):
        check_hours(hours)


@pytest.mark.parametrize("main", [ablate.main, search.main])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e306"])
def test_a_time_limit_that_is_none_is_refused(
    main: Callable[[Sequence[str] | None], int], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold"] if main is ablate.main else ["--space", "rates", "--trials", "2"]
    assert run(main, [*words, "--config", "none.yaml", "--hours", text]) == USER_ERROR
    error = capsys.readouterr().err
    assert f"error: --hours {float(text):g} must be a number above 0, for example 0.5; without --hours there is no" in error


@pytest.mark.parametrize("option", ["--seeds", "--concurrent"])
def test_a_study_has_one_seed_and_one_trial_at_once_at_least(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ablate.main, ["threshold", "--config", "none.yaml", option, "0"]) == USER_ERROR
    assert "--seeds and --concurrent must be at least 1" in capsys.readouterr().err


def test_a_configuration_is_found_by_its_name_and_as_manuals_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = str(repository / "jobs" / "configs" / "demo.yaml")
    assert find_config("demo") == find_config("jobs/configs/demo.yaml") == find_config(demo) == demo
    assert find_config("gpus/4") == str(repository / "jobs" / "configs" / "gpus" / "4.yaml")
    assert find_config("mine.yaml") == "mine.yaml"  # what reads it says that there is no such file
    Path("demo").touch()
    assert find_config("demo") == "demo"
    for word, hint in (("dmeo", "; did you mean demo?"), ("unlike", "; installed are actions, demo, ")):
        with pytest.raises(SystemExit, match="2"):
            importlib.import_module("jobs.train").main(["--config", word])
        refused = f"there is no file {word}, and no configuration of this name is installed{hint}"
        assert refused in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "Read-only file system; name another file or folder, or change who may read and write it"),
        (errno.EACCES, "Permission denied; name another file or folder, or change who may read and write it"),
        (errno.ENOSPC, "No space left on device; make room, and run the same command again"),
    ],
)
def test_a_file_that_the_system_refuses_is_named_with_the_remedy(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Sequence[str] | None) -> int:
        raise OSError(number, os.strerror(number), "/data/x")

    assert run(fail, []) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: /data/x") and error.endswith(f": {remedy}\n")


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    def fail(_: Sequence[str] | None) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/x")

    with pytest.raises(OSError, match="/data/x"):
        run(fail, [])


COMMAND = """
import argparse, os, sys
from jobs.command import run
from pipeline.errors import UserError
def main(argv):
    what = argv[0]
    if what == "many lines":
        for number in range(100_000):
            print(number)
    elif what == "few lines":
        print("first")
        print("second")
    elif what == "help":
        argparse.ArgumentParser().parse_args(["--help"])
    elif what == "mistake":
        raise UserError("it is not there")
    elif what == "another pipe":
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"text")
    return 0
raise SystemExit(run(main))
"""


MAX_LOOSE = 4
"""So many options a command may have that are in no group with a title."""


def _run_unread(what: str, unread: str) -> tuple[int, str]:
    """Runs a command that ``what`` describes with its output, ``stdout`` or ``stderr``, in a pipe that nobody reads.

    Returns the exit code and what it wrote into the other one.
    """
    other = {"stdout": "stderr", "stderr": "stdout"}[unread]
    streams = {unread: subprocess.PIPE, other: subprocess.PIPE}
    command = [sys.executable, "-c", f"import sys; sys.stdin.readline()\n{COMMAND}", what]  # until the reader has gone
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=buffered, **streams) as process:  # type: ignore[call-overload]
        getattr(process, unread).close()
        process.stdin.write("\n")
        process.stdin.close()
        text = getattr(process, other).read()
        return process.wait(30), text


@pytest.mark.parametrize(
    ("what", "unread"), [("many lines", "stdout"), ("few lines", "stdout"), ("help", "stdout"), ("mistake", "stderr")]
)
def test_a_command_whose_output_is_not_read_ends_quietly(what: str, unread: str) -> None:
    """Whether it finds that out on its way or at its end."""
    assert _run_unread(what, unread) == (141, "")


def test_a_mistake_is_shown_although_standard_output_is_not_read() -> None:
    assert _run_unread("mistake", "stdout") == (USER_ERROR, "error: it is not there\n")


def test_what_breaks_inside_a_command_is_no_quiet_end() -> None:
    code, text = _run_unread("another pipe", "stderr")
    assert (code, text) == (141, "")  # its traceback has no reader either
    done = subprocess.run([sys.executable, "-c", COMMAND, "another pipe"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_inspect_and_head(tiny: Path) -> None:
    """As users do it, by the real commands in a shell."""
    for command in (f"-m jobs.inspect {tiny}/manifest.parquet", "-m jobs --help"):
        script = f"{sys.executable} {command} | true; echo ${{PIPESTATUS[0]}}"
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=100, env=buffered)
        assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_of_what_exists(command: str, capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"jobs.{command}").main(["--help"])
    assert end.value.code in (None, 0)
    before, _, examples = re.split(r"^(examples?):\n", capsys.readouterr().out, flags=re.MULTILINE)
    program = f"python -m jobs.{command}"
    for line in examples.replace("\\\n", " ").strip().splitlines():
        assert line.strip().startswith(program)
        words = shlex.split(line.strip().removeprefix(program))
        behind = {"submit": "train", "prepare": "folder", "schedule": "--", "cluster": "status"}.get(command)
        behind = words[0] if command == "inspect" else behind  # a command with its own options
        own = words[: words.index(behind)] if behind in words else words
        assert all(word in before for word in own if word.startswith("--")), own
        assert all((repository / word).is_file() for word in words if word.startswith("jobs/configs/"))


PARSERS = [
    *((command, ()) for command in COMMANDS),
    *(("prepare", (source,)) for source in prepare.HELP),
    *(("cluster", (action,)) for action in cluster.ACTIONS),
    *(("schedule", (action,)) for action in schedule.ACTIONS),
    ("inspect", ("clips",)),
    ("inspect", ("labels",)),
]


@pytest.mark.parametrize("columns", [80, 128, 300])
@pytest.mark.parametrize(("command", "words"), PARSERS, ids=lambda given: given if isinstance(given, str) else " ".join(given))
def test_help_explains_every_argument_and_fits_the_terminal(
    command: str, words: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = find_parser(command, words)
    for one in words if command != "inspect" else ():
        (actions,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = actions.choices[one]
    lines = parser.format_help().splitlines()
    assert [line for line in lines if len(line) > min(columns, 128)] == []
    assert lines[0].startswith(f"usage: python -m jobs.{' '.join((command, *words))}")
    assert {"example:", "examples:"} & set(lines)
    shown = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    assert [action.dest for action in shown if not action.help and not isinstance(action, argparse._SubParsersAction)] == []
    loose = [action.dest for action in parser._optionals._group_actions if action.help != argparse.SUPPRESS]
    assert len(loose) <= MAX_LOOSE, f"{loose} belong into groups with titles"
