"""Computes a line of metrics.jsonl from sums over steps and workers, and what the terminal shows of it. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = list[float]


def compute_line(totals: Mapping[str, Values], counts: Mapping[str, int]) -> dict[str, Any]:
    """Computes means over the steps that had a value, and quotients of sums; None stands for a quotient by 0.

    ``pseudo_label_accuracy`` of kept clips, ``pseudo_label_other``, the share of them that show none of the classes (left out
    if it is 0), ``kept_classes`` [K] and the ``largest_class``'s share of them, ``confidence`` [10], ``loss_share`` of
    each term in the weighted loss, ``gradient_share`` of each term at each student's outputs.
    """
    line: dict[str, Any] = {}
    for name, total in totals.items():
        head, _, tail = name.partition("/")
        if head == "kept_correct":
            known = totals[f"kept/{tail}"][0]
            line[f"pseudo_label_accuracy/{tail}"] = total[0] / known if known else None
        elif head == "kept_other":
            if total[0]:
                line[f"pseudo_label_other/{tail}"] = total[0] / (total[0] + totals[f"kept/{tail}"][0])
        elif head == "kept_classes":
            line[name] = [round(value, 2) for value in total]
            line[f"largest_class/{tail}"] = max(total) / sum(total) if sum(total) else None
        elif head == "confidence":
            line[name] = [round(value / counts[name], 4) for value in total]
        elif head not in ("kept", "weighted", "output_gradient"):
            line[name] = total[0] / counts[name]
    weighted = {name.partition("/")[2]: total[0] for name, total in totals.items() if name.startswith("weighted/")}
    whole = sum(weighted.values())
    line |= {f"loss_share/{term}": value / whole if whole else None for term, value in weighted.items()}
    return line | _compute_gradient_shares(totals)


def _compute_gradient_shares(totals: Mapping[str, Values]) -> dict[str, float | None]:
    norms = {name.split("/", 1)[1]: total[0] for name, total in totals.items() if name.startswith("output_gradient/")}
    shares: dict[str, float | None] = {}
    for key, norm in norms.items():
        student = key.split("/")[1]
        whole = sum(value for other, value in norms.items() if other.split("/")[1] == student)
        shares[f"gradient_share/{key}"] = norm / whole if whole else None
    return shares


def format_line(line: Mapping[str, Any], steps: int) -> str:
    """Formats a line of metrics for the terminal."""
    parts = [f"step {line['step']}/{steps}", f"loss {line['loss']:.3f}"]
    parts += _describe_pseudo_labels(line)
    wait = line["seconds/data"] / max(line["seconds/step"], 1e-9)
    parts += [f"{line['clips_per_second']:.0f} videos/s", f"data wait {wait:.0%}"]
    if line["quarantined"]:
        parts.append(f"{line['quarantined']} decodes failed")
    left = int(line["eta_seconds"])
    return "  ".join([*parts, f"{left // 60}:{left % 60:02d} left"])


def _describe_pseudo_labels(line: Mapping[str, Any]) -> list[str]:
    """Describes for each labeler how many unlabeled clips got its pseudo-label, and how many of these labels were right."""
    described = []
    for name in sorted((name for name in line if name.startswith("mask_rate/")), reverse=True):
        direction = name.partition("/")[2]
        accuracy = line.get(f"pseudo_label_accuracy/{direction}")
        right = "" if accuracy is None else f" ({accuracy:.0%} right)"
        described.append(f"{direction.replace('_to_', ' to ')} {line[name]:.0%}{right}")
    return [f"pseudo-labels: {', '.join(described)}"] if described else []
