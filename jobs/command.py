"""Helpers that all commands share: exit codes, how a mistake is shown, and common options."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import re
import select
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import RunFailed, Stopped, UserError, suggest

DONE, FAILED, USER_ERROR, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where nothing more can be written, whichever file it is: a full or read-only disk, a limit."""
CONFIGS = Path(__file__).parent / "configs"
"""The configurations that are installed with the commands."""
PROJECT = "actnetformer"
"""The name by which pip knows this project, and of the program that runs all commands."""


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's ``main`` and returns the exit code.

    UserError and RunFailed become a message on stderr and exit code 2 or 1; Stopped becomes one and exit code 130 or 143. A
    full disk becomes one and exit code 2.
    Characters that standard output cannot encode are written as escapes: a name must not end a command whose work is done.
    A command whose output nobody reads anymore, as behind ``| head``, ends without a message and with exit code 141, as if
    by SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks put others in their place
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call_main(main, mark_files(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)  # here, and not when the interpreter ends, which would complain
        return code
    except BrokenPipeError:
        if not _discard_unread_output():
            raise  # it was another pipe
        return UNREAD


def _call_main(main: Callable[[Sequence[str] | None], int], words: Sequence[str]) -> int:
    """Calls ``main`` and turns the exceptions that are meant for the user into messages and exit codes."""
    try:
        return main(words)
    except SystemExit as end:  # argparse has said what is wrong; with such a word it may be wrong about it
        odd = [word for word in words if word[:1] == "-" and not OPTION.fullmatch(word)]
        if end.code == USER_ERROR and odd:
            print(f"if {odd[0]} is a file: write a name that begins with - as ./-name", file=sys.stderr)
        print(end="", flush=True)
        raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        print(f"error: {where}: {os.strerror(error.errno)}; make room, and give the same command again", file=sys.stderr)
        return USER_ERROR
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # as pathlib tells it, of whatever path a command was given
            raise
        print(f"error: {error}: the symbolic link leads back to itself; remove it, or give another path", file=sys.stderr)
        return USER_ERROR
    except Stopped as stop:
        print(f"{stop.signal_name}: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _discard_unread_output() -> bool:
    """Redirects standard output and standard error to nowhere if they are pipes whose reader has gone.

    Returns whether one was.
    """
    unread = [number for number in (1, 2) if _has_no_reader(number)]
    with open(os.devnull, "wb") as nowhere:
        for number in unread:
            os.dup2(nowhere.fileno(), number)
    return bool(unread)


def _has_no_reader(number: int) -> bool:
    """Whether the file descriptor is a pipe or socket whose other end was closed."""
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


OPTION = re.compile(r"--[A-Za-z][A-Za-z-]*(=.*)?|--|-h|-[0-9.]+", re.DOTALL)
"""What may be an option of a command, or a negative number."""


def mark_files(argv: Sequence[str]) -> list[str]:
    """Writes ``./-abc.mp4`` for the word ``-abc.mp4`` of a command line if there is such a file or folder, so that it is no
    option.

    A word that may be an option remains one: a file named ``--hash`` must be given as ``./--hash``, or behind ``--``.
    """
    return [f"./{word}" if word[:1] == "-" and not OPTION.fullmatch(word) and os.path.lexists(word) else word for word in argv]


def make_parser(command: str, description: str | None, example: str, allow_abbrev: bool = True) -> argparse.ArgumentParser:
    """Makes the parser of a command, whose help ends with an example: the words behind the command.

    The help calls the command as its user did, ``actnetformer COMMAND`` or ``python -m jobs.COMMAND``, which are the same.
    """
    paragraphs = [textwrap.fill(text, 100) for text in (description or "").strip().split("\n\n")]
    program = f"{PROJECT} {command}" if Path(sys.argv[0]).name == PROJECT else f"python -m jobs.{command}"
    return argparse.ArgumentParser(
        prog=program,
        description="\n\n".join(paragraphs).replace("``", ""),
        epilog=f"example:\n  {program} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def add_config(arguments: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds the option that names configuration files, of which a later one may change parts of an earlier one."""
    about = "YAML file of overrides, or the name of an installed one, such as demo; repeated: each changes the keys that it has"
    default = "" if required else " (default: the paper's setting)"
    arguments.add_argument(
        "--config", metavar="FILE", type=find_config, action="append", required=required, help=about + default
    )


def find_config(word: str) -> str:
    """Finds the file that ``--config`` names: one of the user's, or an installed one by its name.

    ``demo`` and ``jobs/configs/demo.yaml``, as the manuals write it, name the same installed file in every folder, unless the
    folder has such a file itself. Raises argparse.ArgumentTypeError for a mere word that names neither.
    """
    installed = CONFIGS / f"{word.removeprefix('jobs/configs/').removesuffix('.yaml')}.yaml"
    if Path(word).exists():
        return word
    if installed.is_file():
        return str(installed)
    if re.fullmatch(r"[\w-]+", word):
        names = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
        hint = suggest(word, names) or f"; installed are {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"there is no file {word}, and no configuration of this name is installed{hint}")
    return word


def find_version() -> str:
    """Returns the version of this project, or ``not installed`` where it runs from its folder only."""
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "not installed"


def parse_folder(text: str) -> Path:
    """Parses the path of a folder of this machine. Refuses a URI, which would be taken for a path."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is a URI, and a folder of this machine is needed here: copy the one to or from the other"
        )
    return Path(text)


def parse_positive(text: str) -> int:
    """Parses an option that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def check_hours(hours: float | None) -> None:
    """Raises UserError for a ``--hours`` that is no time limit; nan, for instance, passes any comparison that asks for a
    mistake."""
    if hours is not None and not 0 < 3600 * hours < math.inf:
        raise UserError(f"--hours {hours:g} must be a number above 0, for example 0.5; without --hours there is no limit")
