"""What happens to a run on several machines when one of them fails?
``python -m tests.multinode [--short] [--cases A,B] [--json]``

Makes the machines (namespaces of this one: root and iproute2 are needed), a Ray cluster with token and object storage on them,
trains once undisturbed and once for each case, and prints a table. The exit code is 1 if a run did not come back or ended
with other weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs.command import DONE, FAILED, run
from pipeline.errors import UserError
from tests.multinode.machines import find_missing


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases and prints the table."""
    from tests.multinode.cases import FAULTS, OTHERS, SHORT, Outcome, run_cases
    from tests.multinode.cluster import Cluster
    from tests.multinode.training import prepare

    parser = argparse.ArgumentParser(prog="python -m tests.multinode", description=__doc__)
    everything = [*OTHERS, *FAULTS]
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--cases", metavar="A,B", help=f"of {', '.join(everything)}; by default all")
    parser.add_argument("--json", action="store_true", help="the table as JSON, last")
    options = parser.parse_args(argv)
    if missing := find_missing():
        raise UserError(f"tests.multinode makes machines of namespaces: {missing}")
    names = list(SHORT) if options.short else options.cases.split(",") if options.cases else everything
    if unknown := [name for name in names if name not in everything]:
        raise UserError(f"--cases: there is no {', '.join(unknown)}, only {', '.join(everything)}")
    folder = Path(tempfile.mkdtemp(prefix="multinode-", dir="/var/tmp"))  # /tmp is another one on each machine

    def report(outcome: Outcome) -> None:
        print(format_row(outcome), flush=True)

    print("| case | what | back after s | equal | note |\n| --- | --- | --- | --- | --- |", flush=True)
    with Cluster(folder) as cluster:
        prepare(cluster)
        outcomes = run_cases(cluster, names, report)
    failed = [outcome for outcome in outcomes if outcome.problems]
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    if failed:
        print(f"logs: {folder}")
        return FAILED
    shutil.rmtree(folder)
    return DONE


def format_row(outcome: object) -> str:
    """Formats an outcome as a row of Markdown."""
    from tests.multinode.cases import Outcome

    assert isinstance(outcome, Outcome)
    back = "" if outcome.back != outcome.back else f"{outcome.back:.0f}"
    equal = "NO: " + "; ".join(outcome.problems) if outcome.problems else "yes"
    return f"| {outcome.case} | {outcome.what} | {back} | {equal} | {outcome.note} |"


if __name__ == "__main__":
    raise SystemExit(run(main))
