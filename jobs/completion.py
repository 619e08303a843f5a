"""``python -m jobs.completion bash|zsh``: print a file by which the shell completes ``actnetformer`` with the Tab key.

It knows commands, their options and choices, files, and the keys of configurations. It is made once, from all commands, so that
no Python starts when the key is pressed; make it again after an upgrade.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from unittest import mock

import shtab

from jobs.__main__ import COMMANDS
from jobs.command import DONE, PROJECT, make_parser, run
from pipeline.config.load import list_keys

SHELLS = ("bash", "zsh")
FUNCTION = f"_{PROJECT}_key"
PREAMBLE = {
    "bash": FUNCTION + '() { compopt -o nospace; compgen -S = -W \'KEYS\' -- "$1"; compgen -f -- "$1"; }\n',
    "zsh": FUNCTION + "() { compadd -S = -- KEYS; _files; }\n",
}
"""Shell functions that complete a key of the configuration, which stands for KEYS here, or a file."""


class _Found(Exception):
    """Carries a command's parser out of the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the file."""
    parser = make_parser("completion", __doc__, f"bash > ~/.local/share/bash-completion/completions/{PROJECT}")
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the file")
    print(write_completion(parser.parse_args(argv).shell))
    return DONE


def find_parser(command: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns the parser with which ``jobs.COMMAND`` would read ``words``. The command itself does nothing."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Found(parser)

    main = importlib.import_module(f"jobs.{command}").main
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main(list(words))
        except _Found as found:
            parser: argparse.ArgumentParser = found.args[0]
            return parser
    raise LookupError(f"jobs.{command} reads its arguments by no parser")


def write_completion(shell: str) -> str:
    """Writes the file for one of ``SHELLS``."""
    root = argparse.ArgumentParser(prog=PROJECT)
    commands = root.add_subparsers(dest="command")
    for name, about in COMMANDS.items():
        parser = commands.add_parser(name, parents=[find_parser(name)], add_help=False, help=about)
        _complete_values(parser)
    text: str = shtab.complete(root, shell, preamble=PREAMBLE[shell].replace("KEYS", " ".join(list_keys())))
    return text


def _complete_values(parser: argparse.ArgumentParser) -> None:
    """Says of each value what it may be: a key of the configuration where the help says so, else a file, unless it is a number
    or has choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                _complete_values(choice)
        elif isinstance(action.choices, dict):
            action.choices = list(action.choices)  # shtab takes a dictionary for commands
        elif action.choices is None and action.nargs != 0 and action.type not in (int, float):
            keys = action.metavar == "key=value"
            action.complete = {shell: FUNCTION for shell in SHELLS} if keys else shtab.FILE  # type: ignore[attr-defined]


if __name__ == "__main__":
    raise SystemExit(run(main))
