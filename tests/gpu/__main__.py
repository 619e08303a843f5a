"""``python3 -m tests.gpu``: what only a GPU can show. Every part is a process of its own, with a time limit of its own, and all
parts together have one too."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tests.gpu.table import Row, lines

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 480
"""All parts together."""
PARTS: dict[str, tuple[str, str, int]] = {
    "environment": ("environment", "describe", 45),
    "correctness": ("correctness", "check_correctness", 180),
    "speed": ("speed", "check_speed", 240),
    "learning": ("learning", "check_learning", 150),
    "compile": ("speed", "check_compiled", SECONDS),
}
"""Module, function, and seconds after which it is ended, however much of ``SECONDS`` is left; in the order in which they run,
the most important ones first. Compilation takes what the others leave, or a call of its own."""
MARGIN = 4
"""Seconds before its end at which a part begins nothing new."""
VARIABLES = {"correctness": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}}
"""Environment by part. cuBLAS reads it once in a process; without it torch 2.8 and 2.9 refuse deterministic products."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts. Exit code 1 if something is wrong, 2 if it cannot run here; missed goals of speed are only told."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; all by default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself")
    parser.add_argument("--small", action="store_true", help="small students and clips: to try the check itself")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON of all rows (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:  # its seconds are those at which its part ends, by the clock that all processes share
        _run_part(given.child, torch.device(given.device), given.small, given.seconds, given.out)
        return 0
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}, only {', '.join(PARTS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: see its warning above; --device cpu --small tries the check itself", file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        results = _run_all(parts, given)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _conclude(results, given.out)


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that the part that runs is ended and its rows are kept


def _run_all(parts: Sequence[str], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows, seconds and problems by part. The file has them after every part, and also if this process is told to stop."""
    end = time.monotonic() + given.seconds
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        begun = time.monotonic()
        limit = min(PARTS[part][2], round(end - begun))
        print(f"{part} (at most {max(0, limit)} s)", flush=True)
        result = results[part] = {"seconds": 0.0, "problem": "stopped from outside", "out_of_time": False, "rows": []}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            try:
                result |= _in_child(part, given, out, limit)
            finally:
                result["rows"] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
                result["seconds"] = round(time.monotonic() - begun, 1)
                everything = {"command": "python3 -m tests.gpu", "device": given.device, "small": given.small, "parts": results}
                _write(given.out, everything)
        print("\n".join(lines(Row(**row) for row in result["rows"])))
        print(f"  {result['seconds']} s" + (f"; BROKE OFF: {result['problem']}" if result["problem"] else ""), flush=True)
    return results


def _in_child(part: str, given: argparse.Namespace, out: Path, limit: float) -> dict[str, Any]:
    """The part's problem, if it has one."""
    if limit <= MARGIN:
        return {"problem": f"not begun: {max(0, limit)} s were left", "out_of_time": True}
    end = time.monotonic() + limit
    command = [sys.executable, "-m", "tests.gpu", "--child", part, "--device", given.device, "--seconds", str(end - MARGIN)]
    command += ["--out", str(out), *(["--small"] if given.small else [])]
    log = out.parent / "log"
    code = run_alone(command, end - time.monotonic(), os.environ | VARIABLES.get(part, {}), log)
    if code is None:
        return {"problem": f"not done within {limit} s", "out_of_time": True}
    told = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:] if code else ""
    return {"problem": f"exit code {code}: {told}" if code else ""}


def run_alone(command: Sequence[str], seconds: float, environment: Mapping[str, str], log: Path) -> int | None:
    """The command's exit code, or None if it was ended after so many seconds. Processes that it started end with it."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _run_part(part: str, device: torch.device, small: bool, end: float, out: Path) -> None:
    module, name, _ = PARTS[part]
    check: Callable[[torch.device, bool, float], Iterator[Row]] = getattr(importlib.import_module(f"tests.gpu.{module}"), name)
    rows: list[dict[str, Any]] = []
    for row in check(device, small, end):
        rows.append(row.as_dict())
        _write(out, rows)  # after each of them: it may be the last one before the part is ended


def _write(path: Path, value: Any) -> None:
    """The file is always whole: the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def _conclude(results: dict[str, dict[str, Any]], out: Path) -> int:
    rows = [row for result in results.values() for row in result["rows"]]
    wrong = [row["name"] for row in rows if row["correctness"] and row["met"] is False]
    broken = [part for part, result in results.items() if result["problem"]]
    if "compile" in broken and results["compile"]["out_of_time"] and len(results) > 1:
        broken.remove("compile")  # which the parts before it leave too little time for: no fault of the code
        print(f"compile needs a call of its own ({SECONDS} s): python3 -m tests.gpu --parts compile --out gpu-compile.json")
    missed = sum(row["met"] is False and not row["correctness"] for row in rows)
    print(f"{len(rows)} rows, {missed} goals missed, {len(wrong)} wrong, parts that broke off: {', '.join(broken) or 'none'}")
    print("".join(f"wrong: {name}\n" for name in wrong) + f"written to {out}")
    return 1 if wrong or broken else 0


if __name__ == "__main__":
    sys.exit(main())
