"""Does a run survive everything?
``python -m tests.chaos --config FILE --kills 20 [--seed S] [--kinds A,B] [--json] [key=value ...]``

Starts a cluster of three raylets on this machine, trains once without kills and once with them, at moments and of kinds
that the seed chooses, and prints a table: what was killed, when, how long until the next step, and whether all is equal.
"""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, add_config, run
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.run_folder.contents import write_text

SETTING = ("train.max_failures=10", "train.step_timeout_seconds=30", "scale.start_timeout_seconds=30")
"""Before the user's words: kills come faster than new checkpoints, and a frozen worker should be found soon."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write the table; exit code 1 if something was not equal or a kill was not recovered from."""
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    add_config(arguments, required=True)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--seed", type=int, help="of kinds and moments; printed, and at random by default")
    arguments.add_argument("--kinds", metavar="A,B", help="what may be killed; by default everything")
    arguments.add_argument("--json", action="store_true", help="the table as one JSON object, last")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    words = [*SETTING, *options.overrides]
    config = load_config(options.config, words).with_absolute_paths()
    if config.scale.workers == 0 or config.run_store is not None or options.kills < 1:
        raise UserError("tests.chaos needs --kills of at least 1, scale.workers of at least 1 and a local run.storage_path")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    from tests.chaos.kill_and_compare import survive  # Ray and its test cluster, only when it is needed
    from tests.chaos.kills import KINDS

    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--kinds: there is no {', '.join(unknown)}, only {', '.join(KINDS)}")
    given = [*(word for file in options.config for word in ("--config", file)), *words]
    result = survive(config, given, options.kills, seed, kinds, lambda text: print(text, flush=True))
    path = Path(config.run.storage_path) / f"chaos-{seed}.json"
    write_text(path, json.dumps(result, indent=1))
    print(table(result), flush=True)
    print(f"{path}")
    if options.json:
        print(json.dumps(result))
    return DONE if survived(result) else FAILED


def survived(result: dict[str, Any]) -> bool:
    """Whether each kill was recovered from, to the same lines of metrics and the same weights."""
    return all(kill["back"] and kill["equal"] for kill in result["kills"]) and all(r["same_weights"] for r in result["runs"])


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = ["| kill | what | at step | seconds after a line | back after s | equal |", "| --- | --- | --- | --- | --- | --- |"]
    for kill in result["kills"]:
        words = [kill[name] for name in ("number", "outcome", "step", "after", "recovery")]
        words.append("yes" if kill["equal"] else "NO")
        lines.append("| " + " | ".join(str(word) for word in words) + " |")
    return "\n".join([*lines, *(f"{part['run']}: {part['outcome']}" for part in result["runs"])])


if __name__ == "__main__":
    raise SystemExit(run(main))
