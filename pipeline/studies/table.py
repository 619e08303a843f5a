"""The table of results: one row a run, then the settings with several seeds, then the gains. For terminal and page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.evaluation.metrics import MeanSd
from pipeline.studies.comparison import BASELINE, Group, gains
from pipeline.studies.runs import VIEWS, Run

HEADER = ("run", "method", "labels", "steps", "seed", "primary %", "auxiliary %", "mean %")
NUM_TEXT_COLUMNS = 3
Row = tuple[str, ...]


def sections(groups: Sequence[Group]) -> list[list[Row]]:
    """Runs; mean and sd over the seeds of a setting; gains over the baseline. Without the empty ones.

    Each row has the eight cells of ``HEADER``: top-1 in percent, gains in percentage points.
    """
    runs = [_run_row(run) for group in groups for run in group.runs]
    return [part for part in (runs, _mean_rows(groups), _gain_rows(groups)) if part]


def as_text(parts: Sequence[Sequence[Row]]) -> str:
    """The table for a terminal: words to the left, numbers to the right, an empty line between the parts."""
    rows = [HEADER, *(row for part in parts for row in part)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    head = [_line(HEADER, widths), "  ".join("-" * width for width in widths)]
    return "\n\n".join(
        "\n".join([*(head if index == 0 else ()), *(_line(row, widths) for row in part)]) for index, part in enumerate(parts)
    )


def labels_text(run: Run) -> str:
    """``10% (1,010), seed 0``, as far as known."""
    spec, count, seed = run.labels.get("spec"), run.labels.get("count"), run.labels.get("seed")
    text = f"{spec or '?'}" + (f" ({count:,})" if count else "")
    return text + (f", seed {seed}" if seed is not None else "")


def steps_text(run: Run) -> str:
    """``1,000``, or ``300 of 1,000`` for a run that has not come to its end."""
    planned = run.config.get("train.steps")
    return f"{run.last_step:,} of {planned:,}" if run.unfinished else f"{planned or run.last_step:,}"


def signed(points: float) -> str:
    """One decimal, always with a sign, for differences; never ``-0.0``."""
    return f"{round(points, 1) + 0.0:+.1f}"


def with_sd(value: MeanSd | None, difference: bool = False) -> str:
    """``71.2 ± 1.1 (3)``; no spread for a single run, a dash for none."""
    if value is None:
        return "-"
    mean = signed(value.mean) if difference else f"{value.mean:.1f}"
    return mean + ("" if value.sd is None else f" ± {value.sd:.1f}") + f" ({value.n})"


def _run_row(run: Run) -> Row:
    scores = ("-" if (value := run.top1(view)) is None else f"{value:.1f}" for view in VIEWS)
    return (run.name, run.method, labels_text(run), steps_text(run), "?" if run.seed is None else str(run.seed), *scores)


def _mean_rows(groups: Iterable[Group]) -> list[Row]:
    return [
        ("mean ± sd (n)", group.label, _shared(map(labels_text, group.runs)), _shared(map(steps_text, group.runs)), "",
         *(with_sd(group.top1(view)) for view in VIEWS))
        for group in groups if len(group.runs) > 1
    ]  # fmt: skip


def _gain_rows(groups: Sequence[Group]) -> list[Row]:
    rows: list[Row] = []
    for gain in gains(groups):
        over = f"{gain.group.label} over {BASELINE}"
        for seed, points in gain.by_seed.items():
            rows.append(("gain in points", over, "", "", str(seed), *(signed(points[view]) for view in VIEWS)))
        if len(gain.by_seed) > 1:
            rows.append(("gain ± sd (n)", over, "", "", "", *(with_sd(gain.mean(view), difference=True) for view in VIEWS)))
    return rows


def _shared(texts: Iterable[str]) -> str:
    found = set(texts)
    return found.pop() if len(found) == 1 else ""


def _line(row: Row, widths: Sequence[int]) -> str:
    words = [text.ljust(width) for text, width in zip(row[:NUM_TEXT_COLUMNS], widths, strict=False)]
    numbers = [text.rjust(width) for text, width in zip(row[NUM_TEXT_COLUMNS:], widths[NUM_TEXT_COLUMNS:], strict=True)]
    return "  ".join(words + numbers).rstrip()
