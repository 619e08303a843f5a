"""What is in a manifest: counts by class, split and status, histograms, and videos that are there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.manifest.schema import SPLITS, Manifest

BINS = 8
TOP = 8
"""Bars of a histogram; kinds of sizes, rates and codecs that are told apart."""
COUNTED = ["class", "split", "duration", "fps", "width", "height", "codec"]


@dataclass(frozen=True)
class Histogram:
    """Counts of usable videos."""

    title: str
    bars: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Summary:
    """All of it, as plain values for text and page."""

    columns: tuple[str, ...]
    """Splits of usable videos that occur, then statuses and splits of those that are not: ``missing (train)``."""
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    """(class, count in each column), in the order of the labels; the unknown class last."""
    histograms: tuple[Histogram, ...]
    duplicates: tuple[tuple[str, ...], ...]
    """Ids (and splits) of files with the same content, where hashes are stored."""
    hashed: int
    """Rows with a content hash."""
    bad: tuple[tuple[str, str, str], ...]
    """(uri, status, reason) of every unusable file."""

    @property
    def totals(self) -> tuple[int, ...]:
        """Sums of the columns."""
        return tuple(map(sum, zip(*(values for _, values in self.counts), strict=True)))


def summarize(manifest: Manifest) -> Summary:
    """Counts and histograms of a manifest."""
    table = manifest.table
    # only the columns that are needed: a filtered copy of all of them is 300 MB of a million rows
    usable = table.select(COUNTED).filter(pc.equal(table["status"], "ok"))
    broken = table.select(["class", "split", "uri", "status", "reason"]).filter(pc.not_equal(table["status"], "ok"))
    counted: Counter[tuple[str | None, str]] = Counter()
    for row in _counted(usable, ["class", "split"]):
        counted[row["class"], row["split"]] = row["count_all"]
    for row in _counted(broken, ["class", "split", "status"]):
        counted[row["class"], f"{row['status'].replace('_', ' ')} ({row['split']})"] = row["count_all"]
    present = {column for _, column in counted}
    columns = [split for split in SPLITS if split in present] + sorted(present - set(SPLITS))
    names: list[str | None] = [*manifest.classes, *([None] if any(name is None for name, _ in counted) else [])]
    counts = [(name or "unknown", tuple(counted[name, column] for column in columns)) for name in names]
    bad = tuple(zip(*(broken[name].to_pylist() for name in ("uri", "status", "reason")), strict=True))
    hashed = table.num_rows - table["hash"].null_count
    return Summary(tuple(columns), tuple(counts), tuple(_histograms(usable)), tuple(_duplicates(manifest)), hashed, bad)


def _histograms(usable: pa.Table) -> list[Histogram]:
    if not len(usable):
        return []
    sizes = _counted(usable, ["width", "height"])
    return [
        _binned("duration in seconds", usable["duration"].to_numpy()),
        _kinds("frames per second", _summed((f"{row['fps']:.5g}", row["count_all"]) for row in _counted(usable, ["fps"]))),
        _kinds("width x height", Counter({f"{row['width']} x {row['height']}": row["count_all"] for row in sizes})),
        _kinds("codec", Counter({str(row["codec"]): row["count_all"] for row in _counted(usable, ["codec"])})),
    ]


def _summed(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, count in pairs:  # rates that look alike are one
        counts[name] += count
    return counts


def _counted(table: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.group_by(columns).aggregate([([], "count_all")]).to_pylist()
    return rows


def _binned(title: str, values: NDArray[np.float64]) -> Histogram:
    counts, edges = np.histogram(values, bins=BINS)
    bars = [(f"{low:.4g} to {high:.4g}", int(n)) for low, high, n in zip(edges, edges[1:], counts, strict=False)]
    return Histogram(title, tuple(bars))


def _kinds(title: str, counts: Counter[str]) -> Histogram:
    """The most frequent kinds, and how many the others are together."""
    shown = counts.most_common(TOP)
    rest = counts.total() - sum(count for _, count in shown)
    others = [(f"{len(counts) - TOP} others", rest)] if rest else []
    return Histogram(title, (*shown, *others))


def _duplicates(manifest: Manifest) -> list[tuple[str, ...]]:
    table = manifest.table.select(["id", "split", "hash"]).filter(pc.is_valid(manifest.table["hash"]))
    counts = pc.value_counts(table["hash"])
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    groups: dict[str, list[str]] = {}
    for row in table.filter(pc.is_in(table["hash"], value_set=several)).to_pylist():
        groups.setdefault(row["hash"], []).append(f"{row['id']} ({row['split']})")
    return [tuple(names) for names in groups.values()]


def as_text(manifest: Manifest, summary: Summary) -> str:
    """The summary for a terminal."""
    width = max(len(name) for name, _ in summary.counts) + 1
    lines = [f"{manifest.path}  {manifest.source}  {manifest.table.num_rows} videos  fingerprint {manifest.fingerprint}", ""]
    widths = [max(len(column) + 2, 8) for column in summary.columns]
    lines.append(f"{'class':{width}}" + "".join(f"{c:>{w}}" for c, w in zip(summary.columns, widths, strict=True)))
    for name, values in (*summary.counts, (f"{len(manifest.classes)} classes", summary.totals)):
        lines.append(f"{name:{width}}" + "".join(f"{v:{w}}" for v, w in zip(values, widths, strict=True)))
    for histogram in summary.histograms:
        lines += ["", histogram.title, *_bars(histogram)]
    if summary.hashed:
        lines += ["", f"{len(summary.duplicates)} contents lie in several files" + (":" if summary.duplicates else "")]
        lines += [f"  {', '.join(names)}" for names in summary.duplicates[:TOP]]
        lines += [f"  and {len(summary.duplicates) - TOP} more"] if len(summary.duplicates) > TOP else []
    else:
        lines += ["", "no hashes are stored, so duplicates and damage cannot be found; jobs.prepare --hash stores them"]
    return "\n".join(lines)


def _bars(histogram: Histogram) -> Sequence[str]:
    most = max(count for _, count in histogram.bars)
    width = max(len(name) for name, _ in histogram.bars)
    return [f"  {name:>{width}} {count:8}  {'█' * round(40 * count / most)}" for name, count in histogram.bars]
