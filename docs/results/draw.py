"""Draws docs/results/methods_few_labels.svg from the scores beside it: ``python docs/results/draw.py``."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
STUDY = HERE / "methods_few_labels"
METHODS = {
    "supervised": ("supervised", "0.45"),
    "cmpl": ("CMPL", "tab:orange"),
    "fixmatch": ("FixMatch", "tab:green"),
    "svformer": ("SVFormer", "tab:brown"),
    "mvpl": ("MvPL", "tab:olive"),
    "tcl": ("TCL", "tab:pink"),
    "ltg": ("LTG, gradients", "tab:purple"),
    "actnetformer-softmax": ("ActNetFormer, softmax", "tab:red"),
    "actnetformer-no-contrast": ("ActNetFormer, no contrast", "navy"),
    "actnetformer": ("ActNetFormer, projections", "tab:blue"),
    "supervised-temporal-gradient": ("supervised, gradients", "0.75"),
    "actnetformer-temporal-gradient": ("ActNetFormer, gradients", "tab:cyan"),
}
DIRECTIONS = ("primary_to_auxiliary", "auxiliary_to_primary")


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_accuracy(axes: Axes) -> None:
    """Top-1 of the mean of both students for each seed, which draws the labels."""
    for method, (name, color) in METHODS.items():
        runs = sorted(STUDY.glob(f"{method}_seed-*"))
        results = [json.loads((run / "evaluation.json").read_text(encoding="utf-8")) for run in runs]
        axes.plot(range(len(runs)), [100 * one["mean"]["top1"] for one in results], "o", color=color, label=name)
    axes.set_xticks(range(5))
    axes.set(xlabel="seed (another draw of labels)", ylabel="top-1, %", title="On people never seen")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.55 * (high - low))  # room for the legend
    axes.legend(frameon=False, fontsize=7, loc="upper right", ncols=2, columnspacing=1, handletextpad=0)


def draw_labels(axes: Axes) -> None:
    """Share of right ones among the kept labels, and how often the students agree, over the steps: means over seeds."""
    for method in ("cmpl", "actnetformer-softmax", "actnetformer"):
        name, color = METHODS[method]
        right: dict[int, list[float]] = defaultdict(list)
        agreement: dict[int, list[float]] = defaultdict(list)
        for run in sorted(STUDY.glob(f"{method}_seed-*")):
            for line in read_lines(run):
                accuracies = [line.get(f"pseudo_label_accuracy/{direction}") for direction in DIRECTIONS]
                right[line["step"]] += [100 * accuracy for accuracy in accuracies if accuracy is not None]
                if line.get("agreement") is not None:
                    agreement[line["step"]].append(100 * line["agreement"])
        for values, style, what in ((right, "-", "kept labels that are right"), (agreement, ":", "students agree")):
            steps = [step for step in sorted(values) if values[step]]
            axes.plot(steps, [mean(values[step]) for step in steps], style, color=color, label=f"{name}: {what}")
    axes.set(xlabel="step", ylabel="%", ylim=(0, 101), title="During training")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def main() -> None:
    """Write the picture."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "few_labels"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    draw_accuracy(left)
    draw_labels(right)
    figure.savefig(HERE / "methods_few_labels.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
