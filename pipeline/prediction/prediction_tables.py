"""Predictions as tables: Parquet, JSON lines or CSV, by the file's suffix; written completely or not at all."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY
from pipeline.prediction.predict_inputs import Prediction
from pipeline.run_folder.contents import PREDICTORS

FORMATS = (".parquet", ".jsonl", ".csv")
SCHEMA = pa.schema(
    [
        ("file", pa.string()),  # as it was given or listed
        ("start", pa.float64()),  # seconds of the file, where a list or manifest says them
        ("end", pa.float64()),
        ("status", pa.string()),  # ok, or why there is no prediction, in a word
        ("reason", pa.string()),  # the same in a sentence
        ("class", pa.string()),  # the most probable one, by the mean of both students
        ("probability", pa.float64()),
        ("calibrated", pa.bool_()),  # whether a temperature was applied to the probabilities of the mean
        ("rejected", pa.bool_()),  # whether it seems to show none of the known classes; null if that was not asked
        ("agree", pa.bool_()),  # whether both students find the same class most probable
        ("top_classes", pa.list_(pa.string())),  # the most probable ones, by the mean
        ("top_probabilities", pa.list_(pa.float64())),
        *((f"{name}_class", pa.string()) for name in STUDENTS),
        *((f"{name}_probability", pa.float64()) for name in STUDENTS),
        *((name, pa.list_(pa.float32())) for name in PREDICTORS),  # of all classes; in Parquet only
    ]
)


def check_out(path: Path, option: str = "--out") -> Path:
    """Returns the path of an output file. Raises UserError if its suffix is unknown or its folder does not exist."""
    path = path.expanduser().absolute()
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{option} {path.name}: the suffix says the format; write one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file")
    return path


def make_row(
    prediction: Prediction, classes: Sequence[str], top: int, is_calibrated: bool = False, threshold: float | None = None
) -> dict[str, Any]:
    """Makes the table's row of one prediction, with the ``top`` most probable classes. A video whose probability is below
    ``threshold`` is rejected; None: that is not asked."""
    video = prediction.video
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"file": video.name, "start": video.start, "end": video.end}
    row |= {"status": prediction.status, "reason": prediction.reason}
    if not prediction.is_ok:
        return row
    best = {name: int(scores.argmax()) for name, scores in prediction.scores.items()}
    order = np.argsort(-prediction.scores["mean"], kind="stable")[:top].tolist()
    row["top_classes"] = [classes[index] for index in order]
    row["top_probabilities"] = [float(prediction.scores["mean"][index]) for index in order]
    row["class"], row["probability"] = classes[best["mean"]], float(prediction.scores["mean"][best["mean"]])
    row["calibrated"] = is_calibrated
    row["rejected"] = None if threshold is None else row["probability"] < threshold
    row["agree"] = best["primary"] == best["auxiliary"]
    for name in STUDENTS:
        row[f"{name}_class"] = classes[best[name]]
        row[f"{name}_probability"] = float(prediction.scores[name][best[name]])
    return row | {name: prediction.scores[name].astype(np.float32) for name in PREDICTORS}


def write_predictions(tables: Iterable[pa.Table], path: Path, schema: pa.Schema, about: dict[str, Any], top: int) -> None:
    """Writes tables of ``schema``, one after the other, as one file; no more than one of them is in memory.

    ``about`` becomes the metadata of a Parquet file. A CSV file has the ``top`` classes side by side.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write = {".parquet": _write_parquet, ".jsonl": _write_json_lines, ".csv": _write_csv}[path.suffix.lower()]
        write(tables, scratch, schema.with_metadata({METADATA_KEY: json.dumps(about).encode()}), top)
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}; name another file") from None
    finally:
        scratch.unlink(missing_ok=True)


def _write_parquet(tables: Iterable[pa.Table], path: Path, schema: pa.Schema, top: int) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata))


def _write_json_lines(tables: Iterable[pa.Table], path: Path, schema: pa.Schema, top: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in _drop_full_scores(table).to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(tables: Iterable[pa.Table], path: Path, schema: pa.Schema, top: int) -> None:
    lists = [field.name for field in schema if field.name in ("top_classes", "top_probabilities")]
    plain = [name for name in schema.names if name not in (*PREDICTORS, *lists)]
    pairs = [f"{what}_{rank}" for rank in range(2, top + 1) for what in ("class", "probability")] if lists else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*plain, *pairs])
        for table in tables:
            for row in _drop_full_scores(table).to_pylist():
                names, values = (row.get(name) or [] for name in ("top_classes", "top_probabilities"))
                beside = [cell for pair in list(zip(names, values, strict=True))[1:] for cell in pair]
                cells = [row[name] for name in plain] + beside + [None] * (len(pairs) - len(beside))
                writer.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])  # None: empty


def _drop_full_scores(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in PREDICTORS if name in table.column_names])
