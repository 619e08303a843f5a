"""Draws which labels the auxiliary gives the primary, by kinds of thresholds, from the runs of a study.

    python docs/results/draw_thresholds.py runs/threshold_policy docs/zero_mask.svg

The study is that of docs/results_synthetic.md, "The zero-mask failure"; its runs are not kept in the repository.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib import pyplot as plt

CELLS = {
    "fixed": ("fixed 0.8, warm-up", "0.5", "-"),
    "freematch": ("FreeMatch, warm-up", "tab:blue", "-"),
    "softmatch-aligned": ("SoftMatch aligned, warm-up", "tab:green", "-"),
    "flexmatch": ("FlexMatch, warm-up", "tab:orange", "-"),
    "freematch-no-warm-up": ("FreeMatch, no warm-up", "tab:blue", ":"),
    "fixed-no-warm-up": ("fixed 0.8, no warm-up", "0.5", ":"),
}
"""Cells of the study that are drawn: their names in the picture, color and style."""
KEPT, RIGHT = "mask_rate/auxiliary_to_primary", "pseudo_label_accuracy/auxiliary_to_primary"
LEAST_KEPT = 2.0
"""Percent of kept labels, above which the share of right ones is drawn."""


def read_curves(study: Path, cell: str) -> dict[str, dict[int, float]]:
    """Percent of labels that are kept, and of these that are right, by step: means over the seeds of a cell."""
    values: dict[str, dict[int, list[float]]] = {KEPT: defaultdict(list), RIGHT: defaultdict(list)}
    for run in sorted(study.glob(f"{cell}_seed-*/metrics.jsonl")):
        for line in map(json.loads, run.read_text(encoding="utf-8").splitlines()):
            for name in values:
                if line.get(name) is not None:
                    values[name][line["step"]].append(100 * line[name])
    means = {name: {step: mean(found) for step, found in sorted(steps.items())} for name, steps in values.items()}
    kept = means[KEPT]
    return {KEPT: kept, RIGHT: {step: one for step, one in means[RIGHT].items() if kept.get(step, 0) > LEAST_KEPT}}


def draw(study: Path, out: Path) -> None:
    """Writes the picture. Raises FileNotFoundError if the folder has no run of a cell."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "thresholds"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for cell, (name, color, style) in CELLS.items():
        curves = read_curves(study, cell)
        if not curves[KEPT]:
            raise FileNotFoundError(f"{study} has no run {cell}_seed-*")
        for axes, values in ((left, curves[KEPT]), (right, curves[RIGHT])):
            axes.plot(list(values), list(values.values()), style, color=color, label=name)
    left.set(title="labels kept, auxiliary to primary, %", xlabel="step", xlim=(0, None), ylim=(-3, 103))
    right.set(
        title=f"of them right, % (where more than {LEAST_KEPT:g} % are kept)", xlabel="step", xlim=(0, None), ylim=(-3, 103)
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the study of a folder."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2:
        print("usage: python docs/results/draw_thresholds.py STUDY_FOLDER PICTURE.svg", file=sys.stderr)
        return 2
    try:
        draw(Path(words[0]), Path(words[1]))
    except FileNotFoundError as error:
        print(f"error: {error}; the study is made by: python -m jobs.ablate threshold_policy", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
