"""What is done to a run on several machines, and what must come of it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.run_folder.contents import read_metrics
from tests.chaos.kill_and_compare import ROUNDING, compare_folders
from tests.multinode.cluster import BUCKET, Cluster
from tests.multinode.training import Run

BREAK_AT = 25
"""The step at which something is broken: behind two checkpoints."""
STEPS = 60
"""The length of a run in which something is broken."""
LONG_STEPS = 200
"""The length of one during which another worker has time to come."""
BACK_SECONDS = 240.0
"""The time within which the next step must be done, or the message be there."""
END_SECONDS = 600.0
SHORT_STEPS = 40
"""The length of the short form's run."""
SAME_STEPS = 20
"""Steps over which the losses of different numbers of workers are equal but for rounding."""


@dataclass
class Outcome:
    """One row of the table."""

    case: str
    what: str
    back: float = float("nan")
    """Seconds from the fault to the next step, or to the message."""
    problems: list[str] = field(default_factory=list)
    note: str = ""


Fault = Callable[[Cluster, Run], str]
"""Breaks something; returns what."""


def lose_train_node(cluster: Cluster, run: Run) -> str:
    cluster.kill("train-2")
    cluster.start_node("train-2")
    return "a node that trains was lost, another came"


def lose_decode_node(cluster: Cluster, run: Run) -> str:
    cluster.kill("decode-1")
    cluster.start_node("decode-1")
    return "the node that decodes was lost, another came"


def cut_network(seconds: float) -> Fault:
    def cut(cluster: Cluster, run: Run) -> str:
        machine = cluster.network.machines["train-2"]
        machine.cut()
        end = time.monotonic() + seconds
        cluster.wait(lambda: time.monotonic() > end, seconds + 5, "")
        machine.join()
        return f"a node that trains was off the network for {seconds:.0f} s"

    return cut


def fill_disk(cluster: Cluster, run: Run) -> str:
    machine = cluster.network.machines["decode-1"]
    machine.fill_tmp()
    end = time.monotonic() + 20
    cluster.wait(lambda: time.monotonic() > end, 30, "")
    machine.free_tmp()
    return "the disk of the node that decodes was full for 20 s"


def slow_down(cluster: Cluster, run: Run) -> str:
    cluster.network.machines["decode-1"].limit_rate(3)
    return "the node that decodes has 3 Mbit/s from then on"


def restart_head(cluster: Cluster, run: Run) -> str:
    cluster.kill("head")
    cluster.network.add("head")
    cluster.start_head()
    for name in cluster.nodes:
        cluster.kill(name)  # a raylet whose head is gone ends by itself, but only after a minute
        cluster.start_node(name)
    run.start()
    return "the head was lost with the command; both were started again"


def fail_storage(cluster: Cluster, run: Run) -> str:
    cluster.command_store("fail", f"{BUCKET}/runs", 12)
    cluster.command_store("fail", f"{BUCKET}/data", 12)
    return "the storage answered 24 requests with 503"


def slow_storage(cluster: Cluster, run: Run) -> str:
    for key in ("data", "runs"):
        cluster.command_store("delay", f"{BUCKET}/{key}", 2)
    end = time.monotonic() + 20
    cluster.wait(lambda: time.monotonic() > end, 30, "")
    cluster.restore_storage()
    return "the storage took 2 s a request for 20 s"


FAULTS: dict[str, Fault] = {
    "train-node": lose_train_node,
    "decode-node": lose_decode_node,
    "storage-503": fail_storage,
    "storage-slow": slow_storage,
    "disk-full": fill_disk,
    "slow-node": slow_down,
    "head": restart_head,
    "network-30-s": cut_network(30),
    "network-5-min": cut_network(300),
}
SHORT = ("short",)
"""The form that takes two minutes: a run of few steps loses a node that trains."""
OTHERS = ("same-bits", "elastic", "token", *SHORT)
"""What is not a fault in a run of ``STEPS`` steps: see ``run_cases``."""
ALONE = ("token", "short")
"""What needs no undisturbed run to compare with."""


def run_cases(cluster: Cluster, names: Sequence[str], report: Callable[[Outcome], None]) -> list[Outcome]:
    """Trains undisturbed, and then once for each case; ``report`` is called with each outcome as it comes."""
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        report(outcome)

    cases = {name: _break for name in FAULTS} | {
        "same-bits": _compare_with_one_process, "elastic": _add_node, "token": _use_wrong_token, "short": _break_early
    }  # fmt: skip
    lengths = {name: LONG_STEPS if name == "elastic" else STEPS for name in names}
    references: dict[int, Path] = {}
    for name, steps in lengths.items():
        try:
            cluster.restore()
            if steps not in references and name not in ALONE:
                outcome, references[steps] = _train_undisturbed(cluster, steps)
                note(outcome)
        except (RuntimeError, TimeoutError) as error:
            note(Outcome("undisturbed", "", problems=[str(error)]))
            return outcomes
        try:
            note(cases[name](cluster, name, references.get(steps, Path())))
        except (RuntimeError, TimeoutError) as error:
            note(Outcome(name, "", problems=[str(error)]))
    return outcomes


def _train_undisturbed(cluster: Cluster, steps: int) -> tuple[Outcome, Path]:
    run, began = Run(cluster, f"undisturbed-{steps}", [f"train.steps={steps}"]), time.monotonic()
    run.start()
    run.wait_for_step(1, BACK_SECONDS)
    outcome = Outcome("undisturbed", "two train workers on two machines, decoding on a third", time.monotonic() - began)
    outcome.note = f"seconds to the first of {steps} steps"
    return outcome, run.finish(END_SECONDS)


def _break(cluster: Cluster, name: str, reference: Path) -> Outcome:
    run = Run(cluster, name, [f"train.steps={STEPS}"])
    run.start()
    run.wait_for_step(BREAK_AT, BACK_SECONDS)
    broken, began = run.step, time.monotonic()
    outcome = Outcome(name, FAULTS[name](cluster, run))
    run.wait_for_step(broken + 2, BACK_SECONDS + (300 if "5-min" in name else 0))  # one more may have been under way
    outcome.back = time.monotonic() - began
    outcome.problems = _compare(reference, run.finish(END_SECONDS))
    return outcome


def _compare(reference: Path, folder: Path) -> list[str]:
    """Lists how a run differs from the undisturbed one: it must have its lines, and the bits of its weights."""
    found = compare_folders(reference, folder)
    problems = [] if found["same_steps"] else ["a line of metrics is missing or double"]
    problems += [] if found["same_weights"] else ["other weights"]
    if found["largest_relative_difference"] > ROUNDING:
        problems.append(f"metrics differ by {found['largest_relative_difference']:.1e}")
    return problems


def _compare_losses(reference: Path, folder: Path, same_steps: int = SAME_STEPS) -> list[str]:
    """Lists how a run of another number of workers differs: sums are rounded differently, and that grows from step to step."""
    lines = list(zip(read_metrics(reference), read_metrics(folder), strict=True))
    differences = [abs(one["loss"] - other["loss"]) / one["loss"] for one, other in lines]
    problems = [] if all(one["step"] == other["step"] for one, other in lines) else ["a line of metrics is missing or double"]
    if max(differences[:same_steps]) > ROUNDING:
        problems.append(f"a loss of the first {same_steps} steps differs by {max(differences[:same_steps]):.1e}")
    if max(differences) > 0.01:
        problems.append(f"a loss differs by {max(differences):.1e}")
    return problems


def _compare_with_one_process(cluster: Cluster, name: str, reference: Path) -> Outcome:
    """One process rounds sums differently than two workers; the rows of each step are the same."""
    run = Run(cluster, name, ["scale.workers=0", "scale.train_labels={}", "scale.decode_labels={}", f"train.steps={STEPS}"])
    run.start()
    folder = run.finish(END_SECONDS)
    return Outcome(name, "one process on the head alone", problems=_compare_losses(reference, folder),
                   note="losses equal to 1e-6 for 20 steps, to 1 % for all")  # fmt: skip


def _break_early(cluster: Cluster, name: str, reference: Path) -> Outcome:
    """Loses a node that trains in a run that learns so slowly that rounding does not grow: all losses equal one process's."""
    rates = [f"{student}.optimizer.lr=1e-6" for student in ("primary", "auxiliary")]
    words = [f"train.steps={SHORT_STEPS}", "train.checkpoint_every=4", *rates]
    alone = Run(cluster, "alone", ["scale.workers=0", "scale.train_labels={}", "scale.decode_labels={}", *words])
    alone.start()
    reference = alone.finish(END_SECONDS)
    run = Run(cluster, name, words)
    run.start()
    run.wait_for_step(14, BACK_SECONDS)
    broken, began = run.step, time.monotonic()
    outcome = Outcome(name, lose_train_node(cluster, run), note="losses equal to one process's to 1e-6")
    run.wait_for_step(broken + 2, BACK_SECONDS)
    outcome.back = time.monotonic() - began
    outcome.problems = _compare_losses(reference, run.finish(END_SECONDS), SHORT_STEPS)
    if not re.search(r"starting again from step [1-9]", run.text):
        outcome.problems.append("it did not go on from a checkpoint")
    return outcome


def _add_node(cluster: Cluster, name: str, reference: Path) -> Outcome:
    """Begins with one node that trains, and gets a second one."""
    cluster.kill("train-2")
    run = Run(cluster, name, ["scale.min_workers=1", "scale.resize_seconds=5", f"train.steps={LONG_STEPS}"])
    run.start()
    run.wait_for_step(1, BACK_SECONDS)
    began = time.monotonic()
    cluster.start_node("train-2")
    cluster.wait(lambda: "with 2 workers" in run.text or run.has_ended(), BACK_SECONDS, "the second worker did not join")
    outcome = Outcome(name, "began with one worker, a second node came", time.monotonic() - began)
    outcome.problems = _compare_losses(reference, run.finish(END_SECONDS))
    if "with 2 workers" not in run.text:
        outcome.problems.append("it ended with one worker")
    return outcome


def _use_wrong_token(cluster: Cluster, name: str, reference: Path) -> Outcome:
    """What who comes with an old token is told."""
    config = str(cluster.folder / "config.yaml")
    began = time.monotonic()
    told = cluster.run_on_head(
        [sys.executable, "-m", "jobs.train", "--config", config, "run.name=token"],
        {"RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": cluster.head_address},
    )
    outcome = Outcome(name, "the command had a token that is not the cluster's", time.monotonic() - began)
    if told.returncode != 2 or "RAY_AUTH_TOKEN" not in told.stderr:
        outcome.problems.append(f"exit code {told.returncode}: {told.stderr[-300:]}")
    outcome.note = "exit code 2"
    return outcome
