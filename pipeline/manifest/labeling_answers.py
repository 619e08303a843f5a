"""Answers of people who labeled videos: a CSV file that the labeling page or a spreadsheet wrote, added to a label subset."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError, list_first, suggest
from pipeline.manifest.label_subset import LabelSubset, Rows, build_subset, find_rows
from pipeline.manifest.new_classes import add_classes, find_name_mistakes
from pipeline.manifest.schema import Manifest

COLUMNS = ("id", "status", "class", "by", "at", "run", "manifest")
"""Columns of a file of answers. Only ``id`` and ``class`` are needed."""
STATUSES = ("class", "no_action", "bad_video", "skipped")
"""What was answered: a class; that the video shows none of them; that it cannot be used; nothing."""
EXCLUDING = ("no_action", "bad_video")
"""Answers by which a video is not trained on anymore."""


@dataclass(frozen=True)
class LabelAnswer:
    """What a person says of one video."""

    id: str
    status: str
    """One of ``STATUSES``."""
    label: str
    """The name of the class; "" with another status than ``class``."""
    by: str = ""
    """Who answered."""
    at: str = ""
    """When, as ISO 8601."""
    run: str = ""
    """The run that suggested the video."""
    manifest: str = ""
    """The fingerprint of the manifest; "" if the file does not say it."""


def read_answers(path: Path, manifest: Manifest | None = None) -> list[LabelAnswer]:
    """Reads all lines of a file of answers. Raises UserError that lists all its mistakes.

    Spaces around an id or a class are dropped, unless the manifest has that very name. Several lines about one video must say
    the same, or that it was skipped.
    """
    answers, mistakes = _read_lines(path, manifest)
    if mistakes:
        raise UserError(f"answers {path} are not understood; correct these lines:", list_first(mistakes))
    return answers


def _read_lines(path: Path, manifest: Manifest | None) -> tuple[list[LabelAnswer], list[str]]:
    """Reads the lines, and lists what is wrong with some; of those only the id counts, as of a skipped video.

    Raises UserError if the file is not a table of answers.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"answers {path} cannot be read as text: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
    lines: list[int] = []
    answers, mistakes = [], []
    try:
        _check_head(path, reader.fieldnames or [])
        for row in reader:
            lines.append(reader.line_num)
            if None in row:
                mistakes.append(f"line {lines.pop()} has more cells than the first line")
                continue
            answers.append(_parse_answer(row))
    except csv.Error as error:
        raise UserError(f"answers {path}, line {reader.line_num}: {error}") from None
    answers = _match_names(answers, manifest)
    collected: dict[str, LabelAnswer] = {}
    understood = []
    for line, answer in zip(lines, answers, strict=True):
        problem = _find_mistake(answer)
        if not problem and answer.status != "skipped":
            earlier = collected.setdefault(answer.id, answer)
            if (earlier.status, earlier.label) != (answer.status, answer.label):
                problem = f"video {answer.id} has another answer on an earlier line"
        mistakes += [f"line {line}: {problem}"] if problem else []
        understood += [replace(answer, status="skipped", label="") if problem else answer] if answer.id else []
    return understood, mistakes


def merge_answers(answers: Iterable[LabelAnswer]) -> dict[str, LabelAnswer]:
    """Returns one answer for each video, by id: the first that is more than ``skipped``, if there is one."""
    merged: dict[str, LabelAnswer] = {}
    for answer in answers:
        if answer.id not in merged or merged[answer.id].status == "skipped":
            merged[answer.id] = answer
    return merged


def _check_head(path: Path, names: Sequence[str]) -> None:
    """Raises UserError unless the first line names the columns that are needed, and each once."""
    if missing := [name for name in ("id", "class") if name not in names]:
        hint = "; its cells are separated by semicolons: save it with commas" if any(";" in name for name in names) else ""
        what = f"answers {path} lack the column {' and '.join(missing)}"
        raise UserError(f"{what}; the first line names the columns: id,class{hint}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"answers {path} have the column {' and '.join(twice)} more than once")


def _parse_answer(row: dict[str, str]) -> LabelAnswer:
    cells = {name: row.get(name) or "" for name in COLUMNS}
    label = cells["class"] if cells["class"].strip() else ""
    status = cells["status"].strip() or ("class" if label else "")
    return LabelAnswer(cells["id"], status, label, *(cells[name].strip() for name in COLUMNS[3:]))


FORMULA = ("=", "+", "-", "@")
"""Letters with which a cell begins that a spreadsheet would compute."""


def guard(text: str) -> str:
    """Returns the text of a cell, with an apostrophe before it if a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _clean(name: str) -> str:
    name = name.strip()
    return name[1:] if name.startswith("'") and name[1:].startswith(FORMULA) else name


def _match_names(answers: Sequence[LabelAnswer], manifest: Manifest | None) -> list[LabelAnswer]:
    """Drops the spaces around ids and classes that the manifest does not have, and the apostrophe of ``guard``."""
    ids = [answer.id for answer in answers]
    rows = np.full(len(ids), -1) if manifest is None else find_rows(pa.chunked_array([ids], pa.string()), manifest)
    classes = () if manifest is None else manifest.classes
    return [
        replace(
            answer,
            id=answer.id if row >= 0 else _clean(answer.id),
            label=answer.label if answer.label in classes else _clean(answer.label),
        )
        for answer, row in zip(answers, rows.tolist(), strict=True)
    ]


def _find_mistake(answer: LabelAnswer) -> str:
    if not answer.id:
        return "no id"
    if not answer.status:
        return f"video {answer.id} has neither a class nor a status ({', '.join(STATUSES[1:])})"
    if answer.status not in STATUSES:
        nearest = suggest(answer.status, STATUSES)
        return f"status {answer.status} is not known{nearest or '; write one of ' + ', '.join(STATUSES)}"
    if (answer.status == "class") != bool(answer.label):
        return f"status {answer.status} {'without a' if answer.status == 'class' else 'with the'} class {answer.label}".rstrip()
    return ""


@dataclass(frozen=True)
class AddedAnswers:
    """A label subset with answers, and what became of them."""

    subset: LabelSubset
    manifest: Manifest
    """The manifest that the subset belongs to: with new classes another one, which is only in memory."""
    added: int
    """Videos that have a label now and had none."""
    repeated: int
    """Answers that say what was known."""
    relabeled: tuple[str, ...]
    """Contradictions to labels or to the manifest, which were taken."""
    excluded: tuple[str, ...]
    """Ids of the videos that are not trained on anymore, with the reason."""
    skipped: int


def add_answers(
    manifest: Manifest, before: LabelSubset, path: Path, relabel: bool = False, new_classes: Sequence[str] = ()
) -> AddedAnswers:
    """Adds the answers of a file to a label subset of the manifest, which stays as it is. Raises UserError that lists all
    mistakes.

    Mistakes are lines that are not understood or contradict each other; videos that the manifest does not have, that are no
    training videos, or of whose group others are held out; unknown classes that are not among ``new_classes``; answers about
    another manifest; and, unless ``relabel``, answers that contradict what the manifest or the subset says.
    """
    known, manifest = manifest, add_classes(manifest, new_classes)
    lines, not_understood = _read_lines(path, manifest)
    answers = list(merge_answers(lines).values())
    if not answers and not not_understood:
        raise UserError(f"answers {path} hold no answer")
    rows = find_rows(pa.chunked_array([[answer.id for answer in answers]], pa.string()), manifest)
    mistakes, contradictions = _check(manifest, answers, rows, before, known.fingerprint)
    mistakes = [*find_name_mistakes(known, new_classes, {answer.label for answer in answers}), *not_understood, *mistakes]
    if contradictions and not relabel:
        mistakes += [f"{text}; --relabel takes the answer" for text in contradictions]
    if mistakes:
        what = f"answers {path} cannot be added to labels of {manifest.path}; nothing was written:"
        raise UserError(what, list_first(mistakes))
    labels = {int(row): manifest.classes.index(a.label) for row, a in zip(rows, answers, strict=True) if a.status == "class"}
    excluded = {int(row): a for row, a in zip(rows, answers, strict=True) if a.status in EXCLUDING}
    held = set(before.held_out.tolist())
    had = held | set(before.rows.tolist())
    labeled = _sort((had - held | labels.keys() - held) - excluded.keys())
    if not len(labeled):
        raise UserError(f"answers {path} leave no labeled video to train on; nothing was written")
    held_out = _sort(held - excluded.keys())
    out = _sort(set(before.excluded.tolist()) - labels.keys() | excluded.keys())
    given = {row: label for row, label in (before.given | labels).items() if row not in excluded}
    step = _describe_step(path, lines, before, len(labels), len(excluded))
    step |= {"new_classes": list(new_classes)} if new_classes else {}
    subset = build_subset(manifest, labeled, held_out, before.spec, before.seed, given, out)
    subset = replace(subset, spec=f"{before.spec} + {path.name} {step['sha256'][:8]}", lineage=(*before.lineage, step))
    names = [f"{a.id} ({a.status.replace('_', ' ')})" for a in excluded.values()]
    repeated = sum(row in had for row in labels)
    skipped = sum(answer.status == "skipped" for answer in answers)
    return AddedAnswers(subset, manifest, len(labels) - repeated, repeated, tuple(contradictions), tuple(names), skipped)


def _sort(rows: Iterable[int]) -> Rows:
    return np.array(sorted(rows), np.int64)


def _check(
    manifest: Manifest, answers: Sequence[LabelAnswer], rows: Rows, before: LabelSubset, about: str
) -> tuple[list[str], list[str]]:
    """Lists the mistakes, and the answers that contradict what is known. ``about`` is the fingerprint that answers may name."""
    trained = set(np.intersect1d(manifest.find_training_rows(), rows).tolist())
    indices = pa.array(np.maximum(rows, 0), pa.int64())
    labels, groups = (manifest.table[name].take(indices).to_pylist() for name in ("label", "group"))
    unusable = {row for row, answer in zip(rows.tolist(), answers, strict=True) if answer.status in EXCLUDING}
    held = [row for row in before.held_out.tolist() if row not in unusable]
    held_groups = set(manifest.table["group"].take(pa.array(held, pa.int64())).to_pylist()) - {None}
    known = before.read_classes(manifest)
    mistakes, contradictions = [], []
    if foreign := sorted({answer.manifest for answer in answers} - {"", about}):
        mistakes.append(f"they are about another manifest, {', '.join(foreign)}; this has fingerprint {about}")
    for answer, row, label, group in zip(answers, rows.tolist(), labels, groups, strict=True):
        if row < 0:
            mistakes.append(f"video {answer.id} is not in the manifest")
            continue
        if row not in trained:
            mistakes.append(f"video {answer.id} is not a usable training video; only these can have labels to train on")
        if answer.status == "class" and answer.label not in manifest.classes:
            what = f"video {answer.id}: class {answer.label} is not known{suggest(answer.label, manifest.classes)}"
            mistakes.append(f"{what}; --new-class '{answer.label}' would add it")
            continue
        if answer.status == "class" and group in held_groups and row not in held:
            what = f"video {answer.id} is of group {group}, of which other videos are held out"
            mistakes.append(f"{what}: it cannot be learned from")
        if contradiction := _find_contradiction(manifest, answer, known.get(row), int(label), row in before.excluded):
            contradictions.append(f"video {answer.id}: {contradiction}")
    return mistakes, contradictions


def _find_contradiction(manifest: Manifest, answer: LabelAnswer, known: int | None, label: int, was_excluded: bool) -> str:
    """Says what an answer contradicts: a label that is ``known``, or the manifest's ``label``; "" if nothing."""
    if answer.status == "skipped":
        return ""
    answered = answer.label if answer.status == "class" else answer.status.replace("_", " ")
    before = label if known is None else known
    differs = before >= 0 and (answer.status != "class" or manifest.classes[before] != answered)
    if was_excluded:
        return f"{answered}, but an earlier answer says that it is not to be trained on" if answer.status == "class" else ""
    if differs and (known is not None or answer.status != "bad_video"):
        return f"{answered}, but {'the manifest' if known is None else 'its label'} says {manifest.classes[before]}"
    return ""


def _describe_step(
    path: Path, answers: Sequence[LabelAnswer], before: LabelSubset, added: int, excluded: int
) -> dict[str, Any]:
    """Describes where labels came from: the file, who answered and when, the run that suggested, and the subset before."""
    times = sorted(answer.at for answer in answers if answer.at)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "by": sorted({answer.by for answer in answers if answer.by}),
        "first": times[0] if times else "",
        "last": times[-1] if times else "",
        "runs": sorted({answer.run for answer in answers if answer.run}),
        "labels": added,
        "excluded": excluded,
        "before": before.fingerprint,
    }
