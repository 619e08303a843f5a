"""Where a command will leave its run or study, found from its words alone, before it is started or sent elsewhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import load_config
from pipeline.errors import UserError


def find_results(command: str, arguments: Sequence[str], folder: Path) -> str | None:
    """Finds the folder of the run or study that a command will write: a path that may be relative, or a URI.

    Returns None for commands that write none, and for mistakes, which the command itself explains. ``folder`` is the folder
    that relative paths of configuration files begin at.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    for name in ("--name", "--space", "--algorithm"):
        parser.add_argument(name)
    try:
        known, others = parser.parse_known_args(arguments)
        words = [word for word in others if re.match(r"[a-z_.]+=", word)]
        config = load_config([folder / file for file in known.config], words)
    except (argparse.ArgumentError, UserError):
        return None
    study = {
        "train": config.run.name,
        "search": known.name or (known.space and Path(known.space).stem + ("_pbt" if known.algorithm == "pbt" else "")),
        "ablate": known.name or (others and not others[0].startswith("-") and Path(others[0]).stem),
    }.get(command)
    return f"{config.run.storage_path.rstrip('/')}/{study}" if study else None
