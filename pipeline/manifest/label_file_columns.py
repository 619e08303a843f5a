"""Which columns of a file of labels say what, and their values as arrays."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError, list_first, suggest
from pipeline.files.parquet import METADATA_KEY
from pipeline.manifest.predicted_videos import check_predicted
from pipeline.manifest.schema import Manifest

FIELD = "method.file_label.file"
NAMES = ("id", "file", "status", "reason", "class", "confidence", "start", "end")
"""Columns that are not classes, unless the manifest has a class of that name."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read. Either ``label`` names the class, or ``scores`` have the probabilities."""

    video: str
    """``id`` or ``file``."""
    label: str | None
    confidence: str | None
    scores: tuple[str, ...]
    """One column of lists, or a column for each class, in the order of the manifest's classes."""
    status: str | None
    mistakes: tuple[str, ...]
    """What is wrong with the columns; the values of such a table are not read."""

    def list_names(self) -> list[str]:
        """Lists the columns to be read."""
        values = () if self.mistakes else (self.label, self.confidence, *self.scores)
        return [name for name in (self.video, self.status, *values) if name is not None]

    def read_probabilities(self, table: pa.Table, num_classes: int) -> NDArray[np.float32]:
        """Reads [N, K] probabilities, NaN where there are none. Raises UserError for lists of another length."""
        if len(self.scores) == 1 and _is_list(table.schema.field(self.scores[0]).type):
            lists = table[self.scores[0]].combine_chunks()
            if (np.asarray(pc.fill_null(pc.list_value_length(lists), 0)) != num_classes).any():
                raise UserError(f"{FIELD}: column {self.scores[0]} has lists of another length than {num_classes} classes")
            return np.asarray(lists.flatten(), np.float32).reshape(len(lists), num_classes)
        return np.stack([_to_floats(table[name]) for name in self.scores], axis=1)

    def read_labels(self, table: pa.Table, classes: tuple[str, ...]) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
        """Reads [N] classes, and what is wrong with some of them by their place."""
        assert self.label is not None
        known = {name: index for index, name in enumerate(classes)}
        names = table[self.label].to_pylist()
        labels = np.array([known.get(name, -1) for name in names], np.int32)
        wrong = []
        for index in np.flatnonzero(labels < 0).tolist():
            name = names[index]
            wrong.append((index, "no class" if name is None else f"there is no class {name}{suggest(name, classes)}"))
        return labels, wrong

    def read_confidence(self, table: pa.Table) -> NDArray[np.float32]:
        """Reads [N] confidence, NaN where a cell is empty."""
        return np.ones(table.num_rows, np.float32) if self.confidence is None else _to_floats(table[self.confidence])


def choose_columns(schema: pa.Schema, path: str, manifest: Manifest) -> Columns:
    """Chooses the columns of a file that say what the videos show.

    Raises UserError if it is a table of something else; mistakes that need not stop the search for others are in the result.
    """
    names, classes = schema.names, manifest.classes
    about = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    for mark, what in (("manifest_fingerprint", "a label subset: name it with data.labels"), ("root", "a manifest")):
        if mark in about:
            raise UserError(f"{FIELD}={path} is {what}; write what another model or a crowd says of unlabeled videos")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{FIELD}={path} has the column {', '.join(twice)} more than once")
    if "id" not in names and "file" not in names:
        raise UserError(f"{FIELD}={path} has no column id: it needs id and a column for each class, or id and class")
    video = "id" if "id" in names else "file"
    status = "status" if video == "file" and "status" in names else None
    mistakes: list[str] = []
    if not _is_name(schema.field(video).type):
        raise UserError(f"{FIELD}={path}: column {video} holds {schema.field(video).type}, not names of videos")
    if "file" in names and "mean" in names and _is_list(schema.field("mean").type):
        check_predicted(schema, f"{FIELD}={path}", manifest)
        return Columns(video, None, None, ("mean",), status, tuple(mistakes))
    own = [name for name in names if name not in NAMES or (name in classes and _is_number(schema.field(name).type))]
    if "class" in names and "class" not in own:
        if not _is_text(schema.field("class").type):
            mistakes.append(f"column class holds {schema.field('class').type}: write the names of the classes")
        if both := [name for name in own if name in classes]:
            mistakes.append(f"it has a column class, and probabilities of the classes {', '.join(both[:3])}: leave one out")
        confidence = "confidence" if "confidence" in names else None
        if confidence and not _is_number(schema.field(confidence).type):
            mistakes.append(f"column confidence holds {schema.field(confidence).type}, not numbers")
        return Columns(video, "class", confidence, (), status, tuple(mistakes))
    wrong = [f"there is no class {name}{suggest(name, classes)}" for name in own if name not in classes]
    wrong += [f"class {name} has no column" for name in classes if name not in own]
    wrong += [f"column {name} holds {schema.field(name).type}, not numbers"
              for name in own if name in classes and not _is_number(schema.field(name).type)]  # fmt: skip
    return Columns(video, None, None, classes, status, (*mistakes, *list_first(wrong)))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_name(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _to_floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of numbers, NaN for null."""
    return np.asarray(column.to_numpy(), np.float32)
