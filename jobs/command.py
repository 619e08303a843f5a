"""Helpers that all commands share: exit codes, how a mistake is shown, and common options."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import io
import math
import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import RunFailed, Stopped, UserError, suggest

DONE, FAILED, USER_ERROR, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written, whichever file it is: a full disk, a limit."""
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says where this user may not read a file, or not write it: a read-only disk, other people's folders."""
CONFIGS = Path(__file__).parent / "configs"
"""The configurations that are installed with the commands."""
PROJECT = "actnetformer"
"""The name by which pip knows this project, and of the program that runs all commands."""
MAX_COLUMNS = 128
"""Help is no wider than this, however wide the terminal is."""


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's ``main`` and returns the exit code.

    UserError and RunFailed become a message on stderr and exit code 2 or 1; Stopped becomes one and exit code 130 or 143. A
    full disk, and a file that this user may not read or write, become one and exit code 2.
    Characters that standard output cannot encode are written as escapes: a name must not end a command whose work is done.
    A command whose output nobody reads anymore, as behind ``| head``, ends without a message and with exit code 141, as if
    by SIGPIPE.
    """
    if not gc.isenabled():  # for the imports, which are done; see pipeline/processes/garbage.py
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)  # Python searches once more at its end, which frees nothing that does not end anyway
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
        if end.code == USER_ERROR and (hint := _explain_foreign_option(words)):
            print(hint, file=sys.stderr)
        elif end.code == USER_ERROR and odd:
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
        message = _describe_refused_file(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
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


def _explain_foreign_option(words: Sequence[str]) -> str | None:
    """Explains how an option that other trainers have is written here; None if there is none."""
    for word in words:
        if KEY_AS_OPTION.match(word):
            return f"keys of the configuration have no dashes before them: {word.lstrip('-')}"
        if word in ("--resume", "--continue"):
            return f"leave {word} out: the same command, run again, continues what it began"
    return None


def _describe_refused_file(error: OSError) -> str | None:
    """Describes a file that the system let nobody write, or not this user, with the remedy; None for every other error."""
    if error.errno in NO_ROOM:
        where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        return f"{where}: {os.strerror(error.errno)}; make room, and run the same command again"
    if error.errno in NOT_ALLOWED and error.filename:
        remedy = "name another file or folder, or change who may read and write it"
        return f"{error.filename}: {os.strerror(error.errno)}; {remedy}"
    return None


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


KEY_AS_OPTION = re.compile(r"--?[a-z_]+\.[a-z_.]+(=|$)")
"""A key of the configuration that was written as an option."""
OPTION = re.compile(r"--[A-Za-z][A-Za-z-]*(=.*)?|--|-h|-[0-9.]+", re.DOTALL)
"""What may be an option of a command, or a negative number."""


def mark_files(argv: Sequence[str]) -> list[str]:
    """Writes ``./-abc.mp4`` for the word ``-abc.mp4`` of a command line if there is such a file or folder, so that it is no
    option.

    A word that may be an option remains one: a file named ``--hash`` must be given as ``./--hash``, or behind ``--``.
    """
    return [f"./{word}" if word[:1] == "-" and not OPTION.fullmatch(word) and os.path.lexists(word) else word for word in argv]


class HelpFormatter(argparse.HelpFormatter):
    """Formats help to the terminal's width, up to 128 columns: paragraphs stay apart, and so do examples, which may be copied.

    The usage line names what must be given; the options are listed below it, with what they are for.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, MAX_COLUMNS) - 2)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Adds the usage line, in which ``[options]`` stands for all that may be left out."""
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        shown = [action for action in actions if action.required or not action.option_strings]
        if len(shown) < len(actions):
            shown.insert(0, argparse.Action(["options"], "options", nargs=0))
        super().add_usage(usage, shown, groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join("\n".join(_wrap_paragraph(paragraph, width)) for paragraph in text.split("\n"))


def _wrap_paragraph(text: str, width: int) -> list[str]:
    """Wraps a line of text; an indented one is the line of a list, or a command, whose parts end in backslashes for a shell."""
    if not text.startswith("  "):
        return textwrap.wrap(text, width) or [""]
    if not text.startswith(("  python ", f"  {PROJECT} ")):
        return textwrap.wrap(text, width, subsequent_indent=12 * " ")
    # textwrap breaks no line at \xa0: not inside quotes, and not between an option and its value
    whole = re.sub(r'"[^"]*"|(?<= )--[\w-]+ (?=[^-\s])', lambda kept: kept[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(whole, width - 2, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    return [*(f"{line} \\".replace("\xa0", " ") for line in lines[:-1]), lines[-1].replace("\xa0", " ")]


def make_parser(command: str, description: str | None, *examples: str, allow_abbrev: bool = True) -> argparse.ArgumentParser:
    """Makes the parser of a command, whose help ends with examples: the words behind the command.

    The help calls the command as its user did, ``actnetformer COMMAND`` or ``python -m jobs.COMMAND``, which are the same.
    """
    program = f"{PROJECT} {command}" if Path(sys.argv[0]).name == PROJECT else f"python -m jobs.{command}"
    parser = argparse.ArgumentParser(
        prog=program, allow_abbrev=allow_abbrev, **describe_command(program, description or "", *examples)
    )
    return name_arguments(parser)


def describe_command(program: str, description: str, *examples: str) -> dict[str, Any]:
    """Returns the words of a parser that say what a command does, and how it is given; also for a command of a command.

    Of a module's docstring the first words, the command itself, are left out. A paragraph whose lines are indented is a list.
    """
    text = re.sub(r"^``[^`]*``: ", "", description.strip())
    paragraphs = [
        paragraph if paragraph.startswith("  ") else " ".join(paragraph.split())
        for paragraph in text.replace("``", "").split("\n\n")
    ]
    shown = "\n".join(f"  {program} {example}".rstrip() for example in examples)
    return {
        "description": "\n\n".join([paragraphs[0][:1].upper() + paragraphs[0][1:], *paragraphs[1:]]),
        "epilog": f"example{'s' * (len(examples) > 1)}:\n{shown}",
        "formatter_class": HelpFormatter,
    }


def name_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Gives a parser's groups titles that everybody understands, and leaves ``--help`` itself out of the help."""
    parser._positionals.title = "arguments"
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            action.help = argparse.SUPPRESS
    return parser


def add_config(arguments: argparse._ActionsContainer, required: bool = False) -> None:
    """Adds the option that names configuration files, of which a later one may change parts of an earlier one."""
    about = "YAML file of overrides, or the name of an installed one, such as demo; repeated: each changes the keys that it has"
    default = "" if required else " (default: the paper's setting)"
    arguments.add_argument(
        "--config", metavar="FILE", type=find_config, action="append", required=required, help=about + default
    )


def add_configuration(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds the group of arguments that name the configuration: ``--config``, and keys with values that change it."""
    group = parser.add_argument_group("configuration (docs/configuration.md has every key)")
    add_config(group, required)
    about = "changes of single keys, for example train.steps=100"
    group.add_argument("overrides", nargs="*", metavar="key=value", help=about)


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def check_hours(hours: float | None) -> None:
    """Raises UserError for a ``--hours`` that is not a time limit; nan, for instance, passes any comparison that asks for a
    mistake."""
    if hours is not None and not 0 < 3600 * hours < math.inf:
        raise UserError(f"--hours {hours:g} must be a number above 0, for example 0.5; without --hours there is no limit")
