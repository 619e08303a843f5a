"""Says what a file or folder is: ``python -m jobs.info PATH``, for whatever the other commands wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.command import DONE, make_parser, parse_folder, run
from pipeline.analysis.path_description import KNOWN, describe_path


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the facts, a line each, or with ``--json`` as objects."""
    about = f"Say what a file or folder is: {KNOWN}. Models and checkpoints are compared with their checksums."
    parser = make_parser("info", about, "runs/first data/mine/manifest.parquet")
    parser.add_argument("paths", nargs="+", type=parse_folder, metavar="PATH", help="a file or folder")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    options = parser.parse_args(argv)
    described = [{"path": str(path), **describe_path(path)} for path in options.paths]
    if options.json:
        print(json.dumps(described, indent=1))
    else:
        print("\n\n".join("\n".join(format_facts(facts)) for facts in described))
    return DONE


def format_facts(facts: Mapping[str, Any]) -> list[str]:
    """Formats facts, a line each, but for those that are None."""
    shown = {name: _format_value(value) for name, value in facts.items() if value is not None}
    width = max(map(len, shown))
    return [f"{name.ljust(width)}  {text}" for name, text in shown.items()]


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    raise SystemExit(run(main))
