"""What is printed of a new manifest: files that cannot be used, notes, the videos of each class and split, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.errors import list_first
from pipeline.manifest.label_subset import LabelSubset
from pipeline.manifest.schema import SPLITS, Manifest
from pipeline.prepare.build import find_empty_classes
from pipeline.prepare.next_run import suggest_training

OTHERS = "none of these"
"""The line of the printed table that counts the videos of other classes."""


def describe_manifest(manifest: Manifest, labels: LabelSubset, notes: Sequence[str] = ()) -> str:
    """Returns a few lines of text that say what was found and drawn, and end with the next command."""
    every_note = (*notes, *_note_untested_classes(manifest))
    lines = [
        *_describe_unusable(manifest),
        *(f"note: {note}" for note in every_note),
        "",
        *_build_count_table(manifest, labels),
        "",
        f"manifest {manifest.fingerprint}  {manifest.path}",
        f"labels   {labels.fingerprint}  {len(labels.ids)} videos ({labels.spec}, seed {labels.seed})",
        suggest_training(manifest),
    ]
    return "\n".join(lines)


def _note_untested_classes(manifest: Manifest) -> list[str]:
    """Returns a note that names the classes without a usable test video, or nothing if there are none."""
    empty = find_empty_classes(manifest, "test")
    many = f"{len(empty)} of {len(manifest.classes)} classes have no usable test video"
    return [f"{many}, so that no accuracy says anything of them: {', '.join(list_first(empty))}"] if empty else []


def _describe_unusable(manifest: Manifest) -> list[str]:
    rows = [row for row in manifest.table.select(["uri", "status", "reason"]).to_pylist() if row["status"] != "ok"]
    if not rows:
        return []
    head = f"{len(rows)} of {len(manifest.table)} files cannot be used:"
    return [head, *(f"  {line}" for line in list_first([f"{row['uri']}: {row['status']}, {row['reason']}" for row in rows]))]


def _build_count_table(manifest: Manifest, labels: LabelSubset) -> list[str]:
    """A table of classes by split; only its sums beyond 30 classes."""
    names = manifest.table["class"].to_pylist()
    counts = {split: Counter(names[row] for row in manifest.find_usable_rows(split)) for split in SPLITS}
    always = ("train", "test")
    columns: dict[str, Counter[str | None]] = {split: count for split, count in counts.items() if count or split in always}
    columns["labeled"] = Counter(names[row] for row in labels.rows)
    found = {name for count in columns.values() for name in count}
    others = sorted(name for name in found if name is not None and name not in manifest.classes)
    classes: list[str | None] = [*manifest.classes, *([None] if None in found else [])]
    shown = classes if len(classes) <= 30 else []
    total = f"{len(manifest.classes)} classes"
    width = max(len(name or "unknown") for name in [*shown, *([OTHERS] if others else []), total])
    lines = [f"{'class':{width}}" + "".join(f"{column:>10}" for column in columns)]
    for name in shown:
        lines.append(f"{name or 'unknown':{width}}" + "".join(f"{count[name]:10}" for count in columns.values()))
    if others:
        sums = [sum(count[name] for name in others) for count in columns.values()]
        lines.append(f"{OTHERS:{width}}" + "".join(f"{number:10}" for number in sums))
    return [*lines, f"{total:{width}}" + "".join(f"{count.total():10}" for count in columns.values())]
