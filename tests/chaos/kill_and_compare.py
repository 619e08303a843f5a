"""Kills at random moments: a run on a cluster of real raylets that loses workers, decoders, nodes and its driver, against
the same run left alone.

Everything that is killed is a process of its own, started here; what recovers is the ordinary ``jobs.train``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run_folder.contents import read_metrics
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import FILES
from tests.chaos.kills import KINDS, STORE_BYTES, Ring, next_kind, possible_kinds

NODES = 2
SETTLE_SECONDS = 1.0
"""After a kill: a worker that has not noticed yet still logs the step that it had done."""
START_SECONDS = 300.0
"""For a run to log its first line."""
MOST_IDLE = 3
"""Runs in a row without a kill."""
ROUNDING = 1e-6
"""Relative difference of a line that a stop cut: the workers' sums until then are added up earlier. Weights must be equal."""
CLOCK = ("seconds", "clips_per_second", "memory", "eta")
"""Beginnings of metrics that a clock or the machine determines."""


@dataclass
class Kill:
    """One row of the table."""

    number: int
    kind: str
    step: int
    """The last line of metrics before it."""
    after: float
    """Seconds after the first new line since the recovery before."""
    recovery: float = float("nan")
    """Seconds until a line of a later step than those logged in its first second."""
    outcome: str = ""
    back: bool = False
    """Whether such a line came."""
    equal: bool | None = None
    """Whether all lines until the next kill are those of the run left alone."""


def survive(
    config: Config, words: Sequence[str], kills: int, seed: int, kinds: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run once without and as often as needed with kills, until ``kills`` were made; returns what ``tests.chaos`` prints."""
    folder = Path(config.run.storage_path)
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    ring = Ring(config, words, cluster, random.Random(seed), kinds, folder / f"chaos-{seed}.log")
    try:
        possible_kinds(ring)
        for _ in range(NODES):
            ring.add_node()
        reference = f"chaos-{seed}-reference"
        say(f"without kills: {reference}")
        ring.start(reference)
        assert ring.driver is not None
        if code := ring.driver.wait():
            raise UserError(f"the run without kills ended with exit code {code}: see {ring.log}")
        table: list[Kill] = []
        runs: list[dict[str, Any]] = []
        while len(table) < kills:
            name = f"chaos-{seed}-{len(runs) + 1}"
            made = _round(ring, name, kills, table, say)
            runs.append(_compare(folder / reference, folder / name, made))
            say(f"{name}: {runs[-1]['outcome']}")
            if len(runs) >= MOST_IDLE and not any(run["kills"] for run in runs[-MOST_IDLE:]):
                raise UserError(
                    f"{MOST_IDLE} runs ended before anything of {', '.join(kinds)} could be killed: raise train.steps (filling "
                    "memory takes half a minute), or choose other --kinds"
                )
    finally:
        if ring.driver is not None and ring.driver.poll() is None:
            ring.driver.kill()
        cluster.shutdown()
    rows = [{**asdict(kill), "recovery": round(kill.recovery, 1), "after": round(kill.after, 2)} for kill in table]
    return {"seed": seed, "workers": config.scale.workers, "steps": config.train.steps, "kills": rows, "runs": runs}


def _round(ring: Ring, name: str, kills: int, table: list[Kill], say: Callable[[str], None]) -> list[Kill]:
    """One run to its end; its kills are added to ``table``."""
    made: list[Kill] = []
    ring.start(name)
    ring.wait(name, lambda: bool(ring.lines(name)), START_SECONDS)
    while not ring.over():
        if len(table) >= kills:
            ring.wait(name, lambda: False, START_SECONDS)
            continue
        began, moment = time.monotonic(), ring.random.uniform(0, 6)
        ring.wait(name, lambda: time.monotonic() - began > moment, moment)  # noqa: B023
        step = _last(ring.lines(name))
        if ring.over() or step >= ring.config.train.steps:
            continue
        kind = next_kind(ring, [kill.kind for kill in table])
        kill = Kill(len(table) + 1, kind, step, moment)
        killed = time.monotonic()
        kill.outcome = KINDS[kind](ring, name)
        if not kill.outcome:  # nothing of the kind was there
            continue
        time.sleep(SETTLE_SECONDS)
        step = kill.step = _last(ring.lines(name))  # what was logged until it took effect
        table.append(kill)
        made.append(kill)
        kill.back = ring.wait(name, lambda: _last(ring.lines(name)) > step or ring.over(), START_SECONDS)  # noqa: B023
        kill.recovery = time.monotonic() - killed
        kill.outcome += "" if kill.back else ", did not come back"
        say(f"{kill.number:3} {kind:10} at step {step:5}  back after {kill.recovery:6.1f} s  {kill.outcome}")
    return made


def _last(lines: Sequence[Mapping[str, Any]]) -> int:
    return int(lines[-1]["step"]) if lines else 0


# --------------------------------------------------------------------------------------------------- the comparison


def _compare(reference: Path, folder: Path, kills: Sequence[Kill]) -> dict[str, Any]:
    """Lines of metrics and final weights against those of the run left alone."""
    found = compare_folders(reference, folder)
    steps, differences = found.pop("steps"), found.pop("differences")
    for place, kill in enumerate(kills):
        until = kills[place + 1].step if place + 1 < len(kills) else steps[-1]
        kill.equal = found["same_steps"] and all(differences[step] <= ROUNDING for step in steps if kill.step < step <= until)
    gaps = "no line is missing or double" if found["same_steps"] else f"LINES DIFFER: {steps}"
    same = "the same bits" if found["same_weights"] else "OTHER WEIGHTS"
    largest = found["largest_relative_difference"]
    outcome = f"{gaps}; largest relative difference of a metric {largest:.1e}; {same} in the last checkpoint"
    return {"run": folder.name, "kills": len(kills), "lines": len(steps), **found, "outcome": outcome}


def compare_folders(reference: Path, folder: Path) -> dict[str, Any]:
    """Compares two run folders: ``same_steps``, ``same_weights`` (bit for bit, of the last checkpoint),
    ``largest_relative_difference`` of a metric, the ``steps`` of the second's lines and their ``differences``."""
    wanted, found = read_metrics(reference), read_metrics(folder)
    steps = [line["step"] for line in found]
    differences = {line["step"]: _difference(line, other) for line, other in zip(wanted, found, strict=False)}
    weights, others = (load_file(_final(path) / FILES[0]) for path in (reference, folder))
    return {
        "same_steps": steps == [line["step"] for line in wanted],
        "same_weights": weights.keys() == others.keys() and all(bool((weights[key] == others[key]).all()) for key in weights),
        "largest_relative_difference": max(differences.values(), default=float("nan")),
        "steps": steps,
        "differences": differences,
    }


def _difference(line: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest relative difference of two lines' values, clocks excepted; infinite if one lacks a value."""
    names = [name for name in {*line, *other} if not name.startswith(CLOCK)]
    if any(name not in line or name not in other for name in names):
        return float("inf")
    pairs = [(line[name], other[name]) for name in names]
    numbers = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float) and (a == a or b == b)]
    if any(a != b for a, b in pairs if (a, b) not in numbers and a == a):
        return float("inf")
    return max((abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in numbers), default=0.0)


def _final(folder: Path) -> Path:
    newest, problems = checkpoint.find_newest(folder)
    if newest is None:
        raise UserError(f"{folder} holds no whole checkpoint", problems)
    return newest
