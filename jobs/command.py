"""What all commands share: exit codes and the way a mistake is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from pipeline.errors import RunFailed, Stopped, UserError

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Call a command's ``main``; UserError and RunFailed become one message on stderr and exit code 2 or 1, Stopped one
    and 130 or 143."""
    try:
        return main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    except Stopped as stop:
        print(f"{stop.signal_name}: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def add_config(arguments: argparse.ArgumentParser, required: bool = False) -> None:
    """The option that names configuration files, which a later file may change in part."""
    about = "YAML file of overrides; repeated: each changes the keys that it has (default: the paper's setting)"
    arguments.add_argument("--config", metavar="FILE", action="append", required=required, help=about)


def positive(text: str) -> int:
    """Type of an option that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)
