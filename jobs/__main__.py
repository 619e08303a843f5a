"""``actnetformer COMMAND ...``, the same as ``python -m jobs.COMMAND ...``."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence

from jobs.command import DONE, PROJECT, USER_ERROR, find_version, run
from pipeline.errors import suggest

GROUPS = {
    "data": {
        "prepare": "videos -> Parquet manifest and label subset",
        "label": "manifest -> label subset: drawn, or imported from a published list",
        "inspect": "manifest -> counts, duplicates, damaged files, contact sheets; the views of a training step",
    },
    "train": {
        "train": "manifest -> trained and evaluated run (the same command again continues it)",
        "evaluate": "run or model -> predictions and accuracy on the test split",
        "suggest": "run -> which unlabeled videos people should label next, and a page to label them on",
    },
    "studies": {
        "ablate": "one question, many runs: grids over configuration keys with Ray Tune",
        "search": "knobs chosen on held-out labels, night after night: random, TPE, ASHA, HyperBand, PBT",
        "schedule": "a command at set times, for example every night, and what became of each",
        "rounds": "simulated rounds of labeling: which strategy needs the fewest labels",
        "runs": "folder -> its runs and studies: state, accuracy, age, size",
        "watch": "runs or studies that are under way -> their report in a browser, which follows them",
        "report": "runs, ablations, searches -> tables and one self-contained HTML page",
        "compare": "two runs, or both students of one -> which is right where, and which classes favor which",
        "label_quality": "run -> how good cross, self and mean pseudo-labels were, at every threshold",
    },
    "use": {
        "export": "run -> model folder, which is all that a model's users need",
        "predict": "run or model, and videos -> their classes",
        "serve": "run or model -> web service and page that classify uploaded videos",
    },
    "clusters": {
        "submit": "any of these commands on a Ray cluster",
        "cluster": "a Ray cluster -> its nodes and jobs; their logs, and stopping them",
    },
    "develop": {
        "doctor": "what works on this machine, and what to do about what does not",
        "info": "any file or folder of these commands -> what it is, and whether it is whole",
        "completion": "shell -> a file that completes these commands with the Tab key",
        "bench": "speed, as ratios against a stated floor",
    },
}
"""The commands by what they are for, in the order in which they are needed, each with what it is given and what it makes."""
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}


def main() -> int:
    """Runs ``jobs.COMMAND``."""
    command, argv = "".join(sys.argv[1:2]), sys.argv[2:]
    gc.disable()  # until `run` has the imports of the command behind it
    return run(importlib.import_module(f"jobs.{command}").main if command in COMMANDS else _show_usage, argv)


def _show_usage(_: Sequence[str] | None) -> int:
    word = "".join(sys.argv[1:2])
    if word == "--version":
        print(f"{PROJECT} {find_version()}")
        return DONE
    if word in ("-h", "--help", ""):
        print(_format_usage())
        return DONE if word else USER_ERROR
    print(f"error: unknown command {word}{suggest(word, COMMANDS)}\n\n{_format_usage()}", file=sys.stderr)
    return USER_ERROR


def _format_usage() -> str:
    """Formats all commands in their groups."""
    lines = [f"usage: {PROJECT} COMMAND [...]     the same as python -m jobs.COMMAND [...]"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:15}{what}" for name, what in commands.items())]
    return "\n".join([*lines, "", f"{PROJECT} COMMAND --help lists a command's options and ends with an example"])


if __name__ == "__main__":
    raise SystemExit(main())
