"""Summarizing a manifest: counts by class, split and status, histograms, and files with the same content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.manifest.schema import SPLITS, Manifest

BINS = 8
"""Bars of a histogram of numbers."""
MAX_SHOWN = 8
"""Frame sizes, frame rates, codecs and duplicates that are listed one by one."""
SUMMARIZED_COLUMNS = ["class", "split", "duration", "fps", "width", "height", "codec"]


@dataclass(frozen=True)
class Histogram:
    """Counts of usable videos by a property, such as their duration."""

    title: str
    """Name and unit of the property."""
    bars: tuple[tuple[str, int], ...]
    """(value or range, number of videos)"""


@dataclass(frozen=True)
class Summary:
    """The summary of a manifest as plain values, from which a text or a page is made."""

    columns: tuple[str, ...]
    """Columns of the table of counts: splits of usable videos, then statuses and splits of others, as ``missing (train)``."""
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    """(class, count in each column) in the order of the labels; then what videos of other classes show, and last those of
    unknown class."""
    histograms: tuple[Histogram, ...]
    duplicates: tuple[tuple[str, ...], ...]
    """Ids (and splits) of each set of files with the same content, where hashes are stored."""
    hashed: int
    """Number of rows with a content hash."""
    unusable: tuple[tuple[str, str, str], ...]
    """(uri, status, reason) of every unusable file."""

    @property
    def totals(self) -> tuple[int, ...]:
        """The sum of each column of ``counts``."""
        return tuple(map(sum, zip(*(values for _, values in self.counts), strict=True)))


def summarize_manifest(manifest: Manifest) -> Summary:
    """Counts the videos of a manifest by class, split, status and other properties."""
    table = manifest.table
    # only the columns that are needed: a filtered copy of all of them is 300 MB of a million rows
    usable = table.select(SUMMARIZED_COLUMNS).filter(pc.equal(table["status"], "ok"))
    broken = table.select(["class", "split", "uri", "status", "reason"]).filter(pc.not_equal(table["status"], "ok"))
    counts_by_key: Counter[tuple[str | None, str]] = Counter()
    for row in _count(usable, ["class", "split"]):
        counts_by_key[row["class"], row["split"]] = row["count_all"]
    for row in _count(broken, ["class", "split", "status"]):
        counts_by_key[row["class"], f"{row['status'].replace('_', ' ')} ({row['split']})"] = row["count_all"]
    present = {column for _, column in counts_by_key}
    columns = [split for split in SPLITS if split in present] + sorted(present - set(SPLITS))
    found = {name for name, _ in counts_by_key}
    others = sorted(name for name in found if name is not None and name not in manifest.classes)
    names: list[str | None] = [*manifest.classes, *others, *([None] if None in found else [])]
    counts = [(name or "unknown", tuple(counts_by_key[name, column] for column in columns)) for name in names]
    unusable = tuple(zip(*(broken[name].to_pylist() for name in ("uri", "status", "reason")), strict=True))
    hashed = table.num_rows - table["hash"].null_count
    histograms, duplicates = tuple(_make_histograms(usable)), tuple(_find_duplicates(manifest))
    return Summary(tuple(columns), tuple(counts), histograms, duplicates, hashed, unusable)


def _make_histograms(usable: pa.Table) -> list[Histogram]:
    if not len(usable):
        return []
    rates: Counter[str] = Counter()
    for row in _count(usable, ["fps"]):
        rates[f"{row['fps']:.5g}"] += row["count_all"]  # rates that look alike are counted together
    sizes = Counter({f"{row['width']} x {row['height']}": row["count_all"] for row in _count(usable, ["width", "height"])})
    codecs = Counter({str(row["codec"]): row["count_all"] for row in _count(usable, ["codec"])})
    return [
        _make_binned_histogram("duration in seconds", usable["duration"].to_numpy()),
        _make_value_histogram("frames per second", rates),
        _make_value_histogram("width x height", sizes),
        _make_value_histogram("codec", codecs),
    ]


def _count(table: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    """The number of rows, ``count_all``, with each combination of values in these columns."""
    rows: list[dict[str, Any]] = table.group_by(columns).aggregate([([], "count_all")]).to_pylist()
    return rows


def _make_binned_histogram(title: str, values: NDArray[np.float64]) -> Histogram:
    counts, edges = np.histogram(values, bins=BINS)
    bars = [(f"{low:.4g} to {high:.4g}", int(n)) for low, high, n in zip(edges, edges[1:], counts, strict=False)]
    return Histogram(title, tuple(bars))


def _make_value_histogram(title: str, counts: Counter[str]) -> Histogram:
    """The most frequent values, and the sum of the others."""
    shown = counts.most_common(MAX_SHOWN)
    rest = counts.total() - sum(count for _, count in shown)
    others = [(f"{len(counts) - MAX_SHOWN} others", rest)] if rest else []
    return Histogram(title, (*shown, *others))


def _find_duplicates(manifest: Manifest) -> list[tuple[str, ...]]:
    table = manifest.table.select(["id", "split", "hash"]).filter(pc.is_valid(manifest.table["hash"]))
    counts = pc.value_counts(table["hash"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    groups: dict[str, list[str]] = {}
    for row in table.filter(pc.is_in(table["hash"], value_set=repeated)).to_pylist():
        groups.setdefault(row["hash"], []).append(f"{row['id']} ({row['split']})")
    return [tuple(names) for names in groups.values()]


def format_summary(manifest: Manifest, summary: Summary) -> str:
    """Formats the summary as a text for a terminal."""
    width = max(len(name) for name, _ in summary.counts) + 1
    lines = [f"{manifest.path}  {manifest.source}  {manifest.table.num_rows} videos  fingerprint {manifest.fingerprint}"]
    lines += [f"{', '.join(step['new_classes'])} added to the classes of {step['before']}" for step in manifest.lineage]
    lines.append("")
    widths = [max(len(column) + 2, 8) for column in summary.columns]
    lines.append(f"{'class':{width}}" + "".join(f"{c:>{w}}" for c, w in zip(summary.columns, widths, strict=True)))
    for name, values in (*summary.counts, (f"{len(manifest.classes)} classes", summary.totals)):
        lines.append(f"{name:{width}}" + "".join(f"{v:{w}}" for v, w in zip(values, widths, strict=True)))
    for histogram in summary.histograms:
        lines += ["", histogram.title, *_draw_bars(histogram)]
    if summary.hashed:
        lines += ["", f"sets of files with the same content: {len(summary.duplicates)}"]
        lines += [f"  {', '.join(names)}" for names in summary.duplicates[:MAX_SHOWN]]
        lines += [f"  and {len(summary.duplicates) - MAX_SHOWN} more"] if len(summary.duplicates) > MAX_SHOWN else []
    else:
        lines += ["", "no hashes are stored, so that duplicates and damage cannot be found; jobs.prepare --hash stores them"]
    return "\n".join(lines)


def _draw_bars(histogram: Histogram) -> Sequence[str]:
    most = max(count for _, count in histogram.bars)
    width = max(len(name) for name, _ in histogram.bars)
    return [f"  {name:>{width}} {count:8}  {'█' * round(40 * count / most)}" for name, count in histogram.bars]
