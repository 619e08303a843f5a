"""Draws docs/results/few_labels.svg from the scores beside it: ``python docs/results/draw_few_labels.py``.

One and four labels a class are from the study ``few_labels``, two from the same seeds of ``methods_few_labels``.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
METHODS = {
    "supervised": ("supervised", "0.45"),
    "cmpl": ("CMPL", "tab:orange"),
    "actnetformer": ("ActNetFormer, projections", "tab:blue"),
}
PER_CLASS = (1, 2, 4)
SEEDS = (0, 1, 2)
DIRECTIONS = {"primary_to_auxiliary": ("-", "by the primary"), "auxiliary_to_primary": (":", "by the auxiliary")}


def find_run(method: str, per_class: int, seed: int) -> Path:
    """The folder of a run's scores."""
    if per_class == 2:
        return HERE / "methods_few_labels" / f"{method}_seed-{seed}"
    return HERE / "few_labels" / f"labels-{per_class}-per-class_name-{method}_seed-{seed}"


def read_top1(method: str, per_class: int) -> list[float]:
    """Top-1 of the mean of both students in percent, by seed."""
    files = [find_run(method, per_class, seed) / "evaluation.json" for seed in SEEDS]
    return [100 * float(json.loads(file.read_text(encoding="utf-8"))["mean"]["top1"]) for file in files]


def read_last_line(method: str, per_class: int, seed: int) -> dict[str, Any]:
    """The last line of a run's metrics."""
    text = (find_run(method, per_class, seed) / "metrics.jsonl").read_text(encoding="utf-8")
    line: dict[str, Any] = json.loads(text.splitlines()[-1])
    return line


def draw_accuracy(axes: Axes) -> None:
    """Top-1 over the number of labels: single seeds, and a line through their means."""
    for index, (method, (name, color)) in enumerate(METHODS.items()):
        values = [read_top1(method, per_class) for per_class in PER_CLASS]
        axes.plot(PER_CLASS, [mean(one) for one in values], color=color, label=name)
        for per_class, of_seeds in zip(PER_CLASS, values, strict=True):
            shift = 1 + 0.03 * (index - 1)
            axes.plot([per_class * shift] * len(of_seeds), of_seeds, "o", color=color, markersize=3.5, alpha=0.7)
    axes.set(title="Top-1 of both students' mean, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw_labels(axes: Axes, key: str, title: str) -> None:
    """A metric of the kept labels at the last step, mean of the seeds, in each direction."""
    for method, (name, color) in list(METHODS.items())[1:]:
        for direction, (style, whose) in DIRECTIONS.items():
            lines = [[read_last_line(method, per_class, seed) for seed in SEEDS] for per_class in PER_CLASS]
            means = [mean(100 * line[f"{key}/{direction}"] for line in of_seeds) for of_seeds in lines]
            axes.plot(PER_CLASS, means, style, marker="o", markersize=3.5, color=color, label=f"{name}, {whose}")
    axes.set(title=title, ylim=(0, 101))


def main() -> None:
    """Write the picture."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "few_labels"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    draw_accuracy(left)
    draw_labels(middle, "mask_rate", "Labels kept at the end, %")
    draw_labels(right, "pseudo_label_accuracy", "Of these right, %")
    right.legend(frameon=False, fontsize=7, loc="lower right")
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_xticks(PER_CLASS, [f"{27 * per_class}" for per_class in PER_CLASS])
        axes.minorticks_off()
        axes.set_xlabel("labels")
    figure.savefig(HERE / "few_labels.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
