"""Videos -> OUT/manifest.parquet and OUT/labels.parquet: ``python -m jobs.prepare folder|list|synthetic ...``."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.command import DONE, run
from pipeline.errors import UserError
from pipeline.manifest.build import MANIFEST, build
from pipeline.manifest.labels import LabelSubset, labels_per_class, parse_share
from pipeline.manifest.schema import SPLITS, Manifest, read_manifest
from pipeline.manifest.sources import COLUMNS, SHOWN, Listing, list_csv, list_folder
from pipeline.manifest.synthetic import MOTIONS, Difficulty, render_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three sources; all share probe, split, label subset and writing."""
    words = _parser().parse_args(argv)
    labels_per_class(words.labeled, 1)  # a mistake in these two must not wait for the probe
    test_share = parse_share(words.test, "--test")
    if words.seed < 0:
        raise UserError(f"--seed {words.seed} must not be negative")
    listing = SOURCES[words.source](words)
    out = Path(words.out).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; OUT must be a folder")
    manifest, labels = build(listing, out, words.labeled, test_share, words.seed, words.processes, words.hash)
    print(summary(manifest, labels, listing.notes))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    sources = parser.add_subparsers(dest="source", required=True, metavar="folder|list|synthetic")
    folder = sources.add_parser("folder", help="class folders of videos, with or without train/ and test/ above them")
    folder.add_argument("dir", metavar="DIR", help="folder of class folders")
    listed = sources.add_parser("list", help="a CSV file with the columns path,label and perhaps group,split")
    listed.add_argument("csv", metavar="CSV")
    synthetic = sources.add_parser("synthetic", help="made-up actions that only motion can tell apart, rendered into OUT/videos")
    for source in (folder, listed, synthetic):
        source.add_argument("out", metavar="OUT", help="folder for manifest.parquet and labels.parquet")
        _add_common(source, labeled="4/class" if source is synthetic else "10%")
    listed.add_argument("--root", required=True, metavar="DIR", help="folder that the paths start from")
    listed.add_argument("--columns", default="", metavar="path=...,label=...", help="names of the file's columns")
    _add_synthetic(synthetic)
    return parser


def _add_common(parser: argparse.ArgumentParser, labeled: str) -> None:
    parser.add_argument("--labeled", default=labeled, metavar="10%|4/class", help="train videos that keep their label (default: %(default)s)")
    parser.add_argument("--test", default="25%", metavar="25%", help="test videos of each class, where no split is given (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of splits and label subset (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="worker processes (default: one a core)")
    parser.add_argument("--hash", action="store_true", help="store the SHA-256 of every file, so that damage is found later")


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=int, default=320, help="in all (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=8, help=f"2 to {len(MOTIONS)} (default: %(default)s)")
    parser.add_argument("--difficulty", type=float, default=0.5, metavar="LEVEL", help="0 easy, 0.5 default, 1 hard, and between")
    for field in dataclasses.fields(Difficulty):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, metavar=kind.__name__, help=f"replaces the level's {field.name}")


def _folder(words: argparse.Namespace) -> Listing:
    return list_folder(words.dir)


def _list(words: argparse.Namespace) -> Listing:
    pairs = dict(word.partition("=")[::2] for word in words.columns.split(",") if word)
    if wrong := [name for name, column in pairs.items() if name not in COLUMNS or not column]:
        raise UserError(f"--columns {words.columns}: {', '.join(wrong)} is not understood; write {'=...,'.join(COLUMNS)}=...")
    return list_csv(words.csv, words.root, pairs)


def _synthetic(words: argparse.Namespace) -> Listing:
    if not 2 <= words.classes <= len(MOTIONS):
        raise UserError(f"--classes {words.classes} must lie between 2 and {len(MOTIONS)}")
    if words.videos < 2 * words.classes:
        raise UserError(f"--videos {words.videos} is too few for {words.classes} classes; at least {2 * words.classes} are needed")
    out = Path(words.out).expanduser().absolute()
    _check_replaceable(out)
    fresh = out / ".videos.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        render_folder(fresh, words.videos, words.classes, words.seed, _difficulty(words), words.processes)
        shutil.rmtree(out / "videos", ignore_errors=True)
        fresh.rename(out / "videos")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return replace(list_folder(out / "videos"), source="synthetic")


def _check_replaceable(out: Path) -> None:
    """Only videos of our own making are replaced."""
    if (out / "videos").exists() and ((out / MANIFEST).exists() is False or read_manifest(out / MANIFEST).source != "synthetic"):
        raise UserError(f"{out / 'videos'} exists and was not made by this command; choose another OUT")


def _difficulty(words: argparse.Namespace) -> Difficulty:
    given = {f.name: getattr(words, f.name) for f in dataclasses.fields(Difficulty) if getattr(words, f.name) is not None}
    return replace(Difficulty.at(words.difficulty), **given)


SOURCES = {"folder": _folder, "list": _list, "synthetic": _synthetic}


def summary(manifest: Manifest, labels: LabelSubset, notes: Sequence[str] = ()) -> str:
    """What was found and drawn, as text of a few lines, ending with the next command."""
    lines = [*_unusable(manifest), *(f"note: {note}" for note in notes), "", *_counts(manifest, labels), ""]
    lines += [
        f"manifest {manifest.fingerprint}  {manifest.path}",
        f"labels   {labels.fingerprint}  {len(labels.ids)} videos ({labels.spec}, seed {labels.seed})",
        f"next     python -m jobs.train data.manifest={manifest.path}",
    ]
    return "\n".join(lines)


def _unusable(manifest: Manifest) -> list[str]:
    rows = [row for row in manifest.table.select(["uri", "status", "reason"]).to_pylist() if row["status"] != "ok"]
    if not rows:
        return []
    more = [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    head = f"{len(rows)} of {len(manifest.table)} files cannot be used:"
    return [head, *(f"  {row['uri']}: {row['status']}, {row['reason']}" for row in rows[:SHOWN]), *more]


def _counts(manifest: Manifest, labels: LabelSubset) -> list[str]:
    names, labeled = manifest.table["class"].to_pylist(), set(labels.rows.tolist())
    counts = {split: Counter(names[row] for row in manifest.rows(split)) for split in SPLITS}
    counts = {split: count for split, count in counts.items() if count or split != "val"}
    marked = Counter(names[row] for row in labeled)
    classes: list[str | None] = [*manifest.classes, *([None] if None in counts["train"] else [])]
    shown = classes if len(classes) <= 30 else []
    width = max(len(str(name or "unknown")) for name in [*shown, "all", "class"])
    lines = [f"{'class':{width}}" + "".join(f"{split:>8}" for split in counts) + f"{'labeled':>9}"]
    for name in shown:
        lines.append(f"{name or 'unknown':{width}}" + "".join(f"{count[name]:8}" for count in counts.values()) + f"{marked[name]:9}")
    total = "".join(f"{count.total():8}" for count in counts.values()) + f"{marked.total():9}"
    return [*lines, f"{'all':{width}}{total}" + (f"  ({len(classes)} classes)" if not shown else "")]


if __name__ == "__main__":
    raise SystemExit(run(main))
