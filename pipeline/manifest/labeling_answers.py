"""Answers of people who labeled videos: a CSV file that the labeling page or a spreadsheet wrote, added to a label subset."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError, list_first, suggest
from pipeline.manifest.label_subset import LabelSubset, Rows, build_subset, find_rows
from pipeline.manifest.schema import Manifest

COLUMNS = ("id", "status", "class", "by", "at", "run", "manifest")
"""Columns of a file of answers. Only ``id`` and ``class`` are needed."""
STATUSES = ("class", "no_action", "bad_video", "skipped")
"""What was answered: a class; that the video shows none of them; that it cannot be used; nothing."""
EXCLUDING = ("no_action", "bad_video")
"""Answers by which a video is not trained on anymore."""


@dataclass(frozen=True)
class Answer:
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


def read_answers(path: Path) -> list[Answer]:
    """Reads a file of answers. Raises UserError that lists all its mistakes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"answers {path} cannot be read as text: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"answers {path}, line {reader.line_num}: {error}") from None
    names = reader.fieldnames or []
    if missing := [name for name in ("id", "class") if name not in names]:
        raise UserError(f"answers {path} lack the column {' and '.join(missing)}; the first line names the columns: id,class")
    answers: dict[str, Answer] = {}
    mistakes = []
    for line, row in enumerate(rows, start=2):
        if None in row:
            mistakes.append(f"line {line} has more cells than the first line")
            continue
        words = {name: (row.get(name) or "").strip() for name in COLUMNS}
        status = words["status"] or ("class" if words["class"] else "")
        problem = _find_mistake(words, status)
        answer = Answer(words["id"], status, words["class"], *(words[name] for name in COLUMNS[3:]))
        earlier = answers.setdefault(answer.id, answer)
        if not problem and (earlier.status, earlier.label) != (answer.status, answer.label):
            problem = f"video {answer.id} has another answer on an earlier line"
        mistakes += [f"line {line}: {problem}"] if problem else []
    if mistakes:
        raise UserError(f"answers {path} are not understood; correct these lines:", list_first(mistakes))
    return list(answers.values())


def _find_mistake(words: dict[str, str], status: str) -> str:
    if not words["id"]:
        return "no id"
    if not status:
        return f"video {words['id']} has neither a class nor a status ({', '.join(STATUSES[1:])})"
    if status not in STATUSES:
        return f"status {status} is not known{suggest(status, STATUSES) or '; write one of ' + ', '.join(STATUSES)}"
    if (status == "class") != bool(words["class"]):
        return f"status {status} {'without a' if status == 'class' else 'with the'} class {words['class']}".rstrip()
    return ""


@dataclass(frozen=True)
class AddedAnswers:
    """A label subset with answers, and what became of them."""

    subset: LabelSubset
    added: int
    """Videos that have a label now and had none."""
    repeated: int
    """Answers that say what was known."""
    relabeled: tuple[str, ...]
    """Contradictions to labels or to the manifest, which were taken."""
    excluded: tuple[str, ...]
    """Ids of the videos that are not trained on anymore, with the reason."""
    skipped: int


def add_answers(manifest: Manifest, before: LabelSubset, path: Path, relabel: bool = False) -> AddedAnswers:
    """Adds the answers of a file to a label subset of the manifest, which stays as it is. Raises UserError that lists all
    mistakes.

    Mistakes are videos that the manifest does not have, or that are no training videos; unknown classes; answers about another
    manifest; and, unless ``relabel``, classes that contradict what the manifest or the subset says.
    """
    answers = read_answers(path)
    rows = find_rows(pa.chunked_array([[answer.id for answer in answers]], pa.string()), manifest)
    known = before.read_classes(manifest)
    mistakes, contradictions = _check(manifest, answers, rows, known)
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
    held_out = _sort(held - excluded.keys())
    out = _sort(set(before.excluded.tolist()) - labels.keys() | excluded.keys())
    given = {row: label for row, label in (before.given | labels).items() if row not in excluded}
    step = _describe_step(path, answers, before, len(labels), len(excluded))
    subset = build_subset(manifest, labeled, held_out, before.spec, before.seed, given, out)
    subset = replace(subset, spec=f"{before.spec} + {path.name} {step['sha256'][:8]}", lineage=(*before.lineage, step))
    names = [f"{a.id} ({a.status.replace('_', ' ')})" for a in excluded.values()]
    repeated = sum(row in had for row in labels)
    skipped = sum(answer.status == "skipped" for answer in answers)
    return AddedAnswers(subset, len(labels) - repeated, repeated, tuple(contradictions), tuple(names), skipped)


def _sort(rows: Iterable[int]) -> Rows:
    return np.array(sorted(rows), np.int64)


def _check(manifest: Manifest, answers: Sequence[Answer], rows: Rows, known: dict[int, int]) -> tuple[list[str], list[str]]:
    """Lists the mistakes, and the classes that contradict what is known."""
    trained = set(manifest.find_training_rows()[np.isin(manifest.find_training_rows(), rows)].tolist())
    hidden = manifest.table["label"].take(pa.array(np.maximum(rows, 0), pa.int64())).to_pylist()
    mistakes, contradictions = [], []
    if foreign := sorted({answer.manifest for answer in answers} - {"", manifest.fingerprint}):
        mistakes.append(f"they are about another manifest, {', '.join(foreign)}; this has fingerprint {manifest.fingerprint}")
    for answer, row, label in zip(answers, rows.tolist(), hidden, strict=True):
        if row < 0:
            mistakes.append(f"video {answer.id} is not in the manifest")
            continue
        if row not in trained:
            mistakes.append(f"video {answer.id} is no usable training video; only these can have labels to train on")
        if answer.status != "class":
            continue
        if answer.label not in manifest.classes:
            mistakes.append(f"video {answer.id}: class {answer.label} is not known{suggest(answer.label, manifest.classes)}")
            continue
        before = known.get(row, int(label))
        if before >= 0 and manifest.classes[before] != answer.label:
            where = "its label" if row in known else "the manifest"
            contradictions.append(f"video {answer.id}: {answer.label}, but {where} says {manifest.classes[before]}")
    return mistakes, contradictions


def _describe_step(path: Path, answers: Sequence[Answer], before: LabelSubset, added: int, excluded: int) -> dict[str, Any]:
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
