"""``python -m tests.gpu``: what only a GPU can show. Every part is a process of its own with a time limit of its own."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.gpu.table import Row, lines

ROOT = Path(__file__).resolve().parents[2]
PARTS: dict[str, tuple[str, str, int]] = {
    "environment": ("environment", "describe", 30),
    "correctness": ("correctness", "check_correctness", 120),
    "speed": ("speed", "check_speed", 140),
    "learning": ("learning", "check_learning", 100),
    "compile": ("speed", "check_compiled", 90),
}
"""Module, function, and seconds after which it is ended; in the order in which they run, compilation last."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts. Exit code 1 if something is wrong, 2 if it cannot run here; missed goals of speed are only said."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; all by default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself")
    parser.add_argument("--small", action="store_true", help="small students and clips: to try the check itself")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON of all rows (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        _run_part(given.child, torch.device(given.device), given.small, given.out)
        return 0
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}, only {', '.join(PARTS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: see its warning above; --device cpu --small tries the check itself", file=sys.stderr)
        return 2
    found = {part: _in_child(part, given) for part in parts}
    everything = {"command": "python -m tests.gpu", "device": given.device, "small": given.small, "parts": found}
    given.out.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    rows = [row for part in found.values() for row in part["rows"]]
    wrong = [row["name"] for row in rows if row["correctness"] and row["met"] is False]
    broken = [part for part, result in found.items() if result["problem"] and part != "compile"]
    missed = sum(row["met"] is False and not row["correctness"] for row in rows)
    print(f"{len(rows)} rows, {missed} goals missed, {len(wrong)} wrong, parts that broke off: {', '.join(broken) or 'none'}")
    print(f"written to {given.out}")
    return 1 if wrong or broken else 0


def _in_child(part: str, given: argparse.Namespace) -> dict[str, Any]:
    limit, begun = PARTS[part][2], time.perf_counter()
    print(f"{part} (at most {limit} s)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "tests.gpu", "--child", part, "--device", given.device, "--out", str(out)]
        try:
            done = subprocess.run(
                [*command, *(["--small"] if given.small else [])], cwd=ROOT, capture_output=True, text=True, timeout=limit
            )
            problem = "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())[-2000:]
        except subprocess.TimeoutExpired:
            problem = f"not done within {limit} s"
        rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    print("\n".join(lines(Row(**row) for row in rows)))
    seconds = round(time.perf_counter() - begun, 1)
    print(f"  {seconds} s" + (f"; BROKE OFF: {problem}" if problem else ""), flush=True)
    return {"seconds": seconds, "problem": problem, "rows": rows}


def _run_part(part: str, device: torch.device, small: bool, out: Path) -> None:
    module, name, _ = PARTS[part]
    check: Callable[[torch.device, bool], list[Row]] = getattr(importlib.import_module(f"tests.gpu.{module}"), name)
    rows = check(device, small)
    out.write_text(json.dumps([row.as_dict() for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
