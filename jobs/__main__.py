"""``actnetformer COMMAND ...``, the same as ``python -m jobs.COMMAND ...``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jobs.command import USER_ERROR, run
from pipeline.errors import suggest

COMMANDS = {
    "doctor": "what works on this machine, and what to do about what does not",
    "prepare": "videos -> Parquet manifest and label subset",
    "label": "manifest -> label subset: drawn, or imported from a published list",
    "inspect": "manifest -> counts, duplicates, damaged files, contact sheets; the views of a training step",
    "train": "manifest -> trained and evaluated run (the same command again continues it)",
    "evaluate": "run or model -> predictions and accuracy on the test split",
    "export": "run -> model folder, which is all that a model's users need",
    "predict": "run or model, and videos -> their classes",
    "serve": "run or model -> web service and page that classify uploaded videos",
    "runs": "folder -> its runs and studies: state, accuracy, age, size",
    "info": "any file or folder of these commands -> what it is, and whether it is whole",
    "watch": "runs or studies that are under way -> their report in a browser, which follows them",
    "report": "runs, ablations, searches -> tables and one self-contained HTML page",
    "compare": "two runs, or both students of one -> which is right where, and which classes favor which",
    "label_quality": "run -> how good cross, self and mean pseudo-labels were, at every threshold",
    "suggest": "run -> which unlabeled videos people should label next, and a page to label them on",
    "ablate": "one question, many runs: grids over configuration keys with Ray Tune",
    "rounds": "simulated rounds of labeling: which strategy needs the fewest labels",
    "search": "knobs chosen on held-out labels, night after night: random, TPE, ASHA, HyperBand, PBT",
    "submit": "any of these commands on a Ray cluster",
    "cluster": "a Ray cluster -> its nodes and jobs; their logs, and stopping them",
    "bench": "speed, as ratios against a stated floor",
}


def main() -> int:
    """Runs ``jobs.COMMAND``."""
    command, argv = "".join(sys.argv[1:2]), sys.argv[2:]
    return run(importlib.import_module(f"jobs.{command}").main if command in COMMANDS else _show_usage, argv)


def _show_usage(_: Sequence[str] | None) -> int:
    usage = "usage: actnetformer COMMAND [...]\n\n" + "\n".join(f"  {name:15}{what}" for name, what in COMMANDS.items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage)
        return 0 if len(sys.argv) > 1 else USER_ERROR
    command = sys.argv[1]
    print(f"error: unknown command {command}{suggest(command, COMMANDS)}\n\n{usage}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    raise SystemExit(main())
