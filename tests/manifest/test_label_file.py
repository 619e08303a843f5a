"""Files of class probabilities: every form that is understood, and every mistake, said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY
from pipeline.manifest.label_file import read_file_labels
from pipeline.manifest.schema import Manifest, compute_fingerprint
from tests.manifest.tables import make_table


@pytest.fixture
def manifest() -> Manifest:
    table = make_table({"a": 3, "b": 3}).sort_by("id")
    return Manifest(table, ("a", "b"), "/videos", "folder", compute_fingerprint(table, ("a", "b")), "m.parquet")


def write(folder: Path, metadata: Any = None, **columns: Any) -> str:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    pq.write_table(table, folder / "labels.parquet")
    return str(folder / "labels.parquet")


def ids(manifest: Manifest, *rows: int) -> list[str]:
    return [manifest.table["id"][row].as_py() for row in rows]


def test_columns_of_classes_in_any_order(manifest: Manifest, tmp_path: Path) -> None:
    path = write(tmp_path, id=ids(manifest, 4, 0), b=[0.9, 0.25], a=[0.1, 0.75])
    found = read_file_labels(path, manifest, np.arange(6))
    np.testing.assert_allclose(found.probabilities[[0, 4]], [[0.75, 0.25], [0.1, 0.9]])
    assert found.count == 2 and found.probabilities[[1, 2, 3, 5]].sum() == 0
    again = read_file_labels(write(tmp_path, id=ids(manifest, 0, 4), a=[0.75, 0.1], b=[0.25, 0.9]), manifest, np.arange(6))
    assert again.fingerprint == found.fingerprint  # of the content, not of the order
    other = read_file_labels(write(tmp_path, id=ids(manifest, 0, 4), a=[0.75, 0.2], b=[0.25, 0.8]), manifest, np.arange(6))
    assert other.fingerprint != found.fingerprint


def test_one_class_a_video(manifest: Manifest, tmp_path: Path) -> None:
    path = write(tmp_path, id=ids(manifest, 1, 2), **{"class": ["b", "a"]})
    assert read_file_labels(path, manifest, np.arange(6)).probabilities[[1, 2]].tolist() == [[0, 1], [1, 0]]
    path = write(tmp_path, id=ids(manifest, 1), confidence=[0.75], **{"class": ["b"]})
    assert read_file_labels(path, manifest, np.arange(6)).probabilities[1].tolist() == [0.25, 0.75]


def test_a_table_of_predictions(manifest: Manifest, tmp_path: Path) -> None:
    uris = [manifest.table["uri"][row].as_py() for row in (0, 5)]
    columns = {"file": [f"/videos/{uris[0]}", uris[1], "gone.mp4"], "status": ["ok", "ok", "missing"]}
    columns["mean"] = [[0.5, 0.5], [0.0, 1.0], None]  # type: ignore[list-item]
    found = read_file_labels(write(tmp_path, {"classes": ["a", "b"]}, **columns), manifest, np.arange(6))
    assert found.probabilities[[0, 5]].tolist() == [[0.5, 0.5], [0, 1]]
    with pytest.raises(UserError, match="other classes"):
        read_file_labels(write(tmp_path, {"classes": ["b", "a"]}, **columns), manifest, np.arange(6))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"id": ["x/nowhere"], "a": [1.0], "b": [0.0]}, "video x/nowhere is not in the manifest"),
        ({"id": [0, 0], "a": [1.0, 1.0], "b": [0.0, 0.0]}, "is there 2 times"),
        ({"id": [0], "a": [0.9], "b": [0.9]}, "sum to 1.8, not 1"),
        ({"id": [0], "a": [float("nan")], "b": [1.0]}, "sum to nan"),
        ({"id": [0], "a": [-0.5], "b": [1.5]}, "not 1"),
        ({"id": [0], "a": [1.0], "bb": [0.0]}, "there is no class bb; did you mean b"),
        ({"id": [0], "a": [1.0]}, "class b has no column"),
        ({"id": [0], "class": ["c"]}, "there is no class c"),
        ({"id": [0], "class": ["a"], "confidence": [1.5]}, "from 0 to 1"),
        ({"name": ["x"], "a": [1.0]}, "no column id"),
    ],
)
def test_mistakes(manifest: Manifest, tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    named = (
        {**columns, "id": [ids(manifest, one)[0] if one == 0 else one for one in columns["id"]]} if "id" in columns else columns
    )
    with pytest.raises(UserError) as caught:
        read_file_labels(write(tmp_path, **named), manifest, np.arange(6))
    assert problem in str(caught.value) and str(caught.value).startswith("method.file_label.file=")


def test_no_parquet_and_nothing_about_training_videos(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("id,class\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_file_labels(str(tmp_path / "x.parquet"), manifest, np.arange(6))
    with pytest.raises(UserError, match="says nothing about any unlabeled video"):
        read_file_labels(write(tmp_path, id=ids(manifest, 5), a=[1.0], b=[0.0]), manifest, np.arange(3))
