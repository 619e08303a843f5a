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
from pipeline.manifest import label_file
from pipeline.manifest.label_file import read_file_labels
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import Manifest, compute_fingerprint, write_manifest
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


def read(path: str, manifest: Manifest, hard: bool = False) -> dict[int, tuple[int, float, list[float] | None]]:
    """Reads the labels of all videos: class, confidence and probabilities by row."""
    found = read_file_labels(path, manifest, np.arange(6), hard)
    many = [None] * found.count if found.probabilities is None else found.probabilities.astype(float).round(3).tolist()
    columns = (found.rows.tolist(), found.classes.tolist(), found.confidence.astype(float).round(6).tolist(), many)
    return {row: (label, sure, each) for row, label, sure, each in zip(*columns, strict=True)}


def test_columns_of_classes_in_any_order(manifest: Manifest, tmp_path: Path) -> None:
    path = write(tmp_path, id=ids(manifest, 4, 0), b=[0.9, 0.25], a=[0.1, 0.75])
    assert read(path, manifest) == {0: (0, 0.75, [0.75, 0.25]), 4: (1, 0.9, [0.1, 0.9])}
    assert read(path, manifest, hard=True) == {0: (0, 0.75, None), 4: (1, 0.9, None)}
    prints = set()
    for order, last in (((0, 1), 0.9), ((1, 0), 0.9), ((0, 1), 0.8)):
        columns = {"id": ids(manifest, 4, 0), "a": [1 - last, 0.75], "b": [last, 0.25]}
        path = write(tmp_path, **{name: [values[index] for index in order] for name, values in columns.items()})
        for hard in (False, True):
            prints.add((last, read_file_labels(path, manifest, np.arange(6), hard).fingerprint))
    assert len(prints) == len({one for _, one in prints}) == 2  # of the content, not of the order


def test_one_class_a_video(manifest: Manifest, tmp_path: Path) -> None:
    path = write(tmp_path, id=ids(manifest, 1, 2), **{"class": ["b", "a"]})
    assert read(path, manifest) == {1: (1, 1.0, None), 2: (0, 1.0, None)}
    one = read_file_labels(path, manifest, np.arange(6)).fingerprint
    path = write(tmp_path, id=ids(manifest, 1, 2), confidence=[0.25, 1.0], **{"class": ["b", "a"]})
    assert read(path, manifest, hard=True) == {1: (1, 0.25, None), 2: (0, 1.0, None)}
    assert read_file_labels(path, manifest, np.arange(6)).fingerprint != one


@pytest.mark.parametrize("hard", [True, False])
def test_mean_probabilities_are_those_of_unlabeled_videos(manifest: Manifest, tmp_path: Path, hard: bool) -> None:
    """A named class leaves its rest to the others, hard or not."""
    path = write(tmp_path, id=ids(manifest, 5, 0, 1), a=[1.0, 0.75, 0.25], b=[0.0, 0.25, 0.75])
    assert read_file_labels(path, manifest, np.arange(5), hard).class_means.tolist() == [0.5, 0.5]
    assert read_file_labels(path, manifest, np.arange(6), hard).class_means.tolist() == pytest.approx([2 / 3, 1 / 3])
    path = write(tmp_path, id=ids(manifest, 5, 0, 1), confidence=[1.0, 0.75, 1.0], **{"class": ["a", "b", "b"]})
    assert read_file_labels(path, manifest, np.arange(5), hard).class_means.tolist() == [0.125, 0.875]


def test_a_class_may_be_named_like_a_column(tmp_path: Path) -> None:
    table = make_table({"class": 2, "id": 2}).sort_by("id")
    manifest = Manifest(table, ("class", "id"), "/videos", "folder", "0" * 16, "m.parquet")
    path = write(tmp_path, id=ids(manifest, 1), **{"class": ["id"]})
    found = read_file_labels(path, manifest, np.arange(4))
    assert (found.rows.tolist(), found.classes.tolist()) == ([1], [1])


def test_a_table_of_predictions(manifest: Manifest, tmp_path: Path) -> None:
    uris = [manifest.table["uri"][row].as_py() for row in (0, 5)]
    columns = {"file": [f"/videos/{uris[0]}", uris[1], "gone.mp4"], "status": ["ok", "ok", "missing"]}
    columns["mean"] = [[0.5, 0.5], [0.0, 1.0], None]  # type: ignore[list-item]
    path = write(tmp_path, {"classes": ["a", "b"]}, **columns)
    assert read(path, manifest) == {0: (0, 0.5, [0.5, 0.5]), 5: (1, 1.0, [0.0, 1.0])}
    with pytest.raises(UserError, match="other classes"):
        read(write(tmp_path, {"classes": ["b", "a"]}, **columns), manifest)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"id": ["x/nowhere"], "a": [1.0], "b": [0.0]}, "video x/nowhere is not in the manifest"),
        ({"id": [0, 0], "a": [1.0, 1.0], "b": [0.0, 0.0]}, "is there 2 times"),
        ({"id": [0], "a": [0.9], "b": [0.9]}, "sum to 1.8, not 1"),
        ({"id": [0], "a": [float("nan")], "b": [1.0]}, "sum to nan"),
        ({"id": [0], "a": [None], "b": [1.0]}, "a holds null, not numbers"),
        ({"id": [0], "a": [-0.5], "b": [1.5]}, "a/0.mp4: a probability is below 0"),
        ({"id": [0], "a": [1.0], "bb": [0.0]}, "there is no class bb; did you mean b"),
        ({"id": [0], "a": [1.0]}, "class b has no column"),
        ({"id": [0], "a": ["x"], "b": ["y"]}, "column a holds string, not numbers"),
        ({"id": [0], "class": ["c"]}, "video a/0.mp4: there is no class c"),
        ({"id": [0], "class": pa.array([None], pa.string())}, "video a/0.mp4: no class"),
        ({"id": [0], "class": [1]}, "column class holds int64: write the names of the classes"),
        ({"id": [0], "class": ["a"], "confidence": [1.5]}, "video a/0.mp4: confidence 1.5 must be from 0 to 1"),
        ({"id": [0], "class": ["a"], "confidence": ["high"]}, "column confidence holds string, not numbers"),
        ({"id": [0], "class": ["b"], "confidence": [0.4]}, "video a/0.mp4: confidence 0.4 is less than 1 of 2 classes"),
        ({"id": [0], "class": ["b"], "a": [0.9], "b": [0.1]}, "probabilities of the classes a, b: leave one out"),
        ({"id": [["x"]], "a": [1.0], "b": [0.0]}, "column id holds list<"),
        ({"name": ["x"], "a": [1.0]}, "no column id"),
    ],
)  # fmt: skip
def test_mistakes(manifest: Manifest, tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    named = (
        {**columns, "id": [ids(manifest, one)[0] if one == 0 else one for one in columns["id"]]} if "id" in columns else columns
    )
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, **named), manifest)
    assert problem in str(caught.value) and str(caught.value).startswith("method.file_label.file=")


def test_all_mistakes_are_said_at_once(manifest: Manifest, tmp_path: Path) -> None:
    names = ["x/nowhere", *ids(manifest, 0, 1, 1)]
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, id=names, confidence=[1.0, 7.0, 1.0, 1.0], **{"class": ["a", "a", "zz", "b"]}), manifest)
    for part in ("x/nowhere is not in", "confidence 7", "a/1.mp4: there is no class zz", "a/1.mp4 is there 2 times"):
        assert part in str(caught.value)
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, id=names, a=[1.0] * 4, c=[0.0] * 4), manifest)
    for part in ("x/nowhere is not in", "no class c", "class b has no column", "is there 2 times"):
        assert part in str(caught.value)


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    manifest = write_manifest(make_table({"a": 3, "b": 3}), tmp_path / "m.parquet", ("a", "b"), "/videos", "folder")
    write_labels(draw_labels(manifest, "1/class", 0), manifest, tmp_path / "labels.parquet")
    with pytest.raises(UserError, match=r"m.parquet is a manifest"):
        read(manifest.path, manifest)
    with pytest.raises(UserError, match=r"is a label subset: name it with data.labels"):
        read(str(tmp_path / "labels.parquet"), manifest)
    twice = pa.table([ids(manifest, 0), [0.9], [0.1], [0.5]], names=["id", "a", "b", "b"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"has the column b more than once"):
        read(str(tmp_path / "twice.parquet"), manifest)
    columns = {"file": ids(manifest, 0), "status": ["ok"], "mean": [[0.5, 0.25, 0.25]]}
    with pytest.raises(UserError, match=r"column mean has lists of another length than 2 classes"):
        read(write(tmp_path, {"classes": ["a", "b"]}, **columns), manifest)


def test_a_large_file_is_read_in_pieces_to_the_same_labels(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, id=ids(manifest, 5, 1, 4, 0, 2), a=[0.1, 0.2, 0.3, 0.4, 0.5], b=[0.9, 0.8, 0.7, 0.6, 0.5])
    whole, one = read(path, manifest), read_file_labels(path, manifest, np.arange(6), False).fingerprint
    monkeypatch.setattr(label_file, "PIECE", 4)  # 2 videos
    label_file._read_last.clear()
    assert read(path, manifest) == whole and len(whole) == 5
    assert read_file_labels(path, manifest, np.arange(6), False).fingerprint == one


def test_a_file_is_read_once_unless_it_changes(manifest: Manifest, tmp_path: Path) -> None:
    path = write(tmp_path, id=ids(manifest, 1), **{"class": ["b"]})
    first = read_file_labels(path, manifest, np.arange(6))
    assert read_file_labels(path, manifest, np.arange(6)) is first
    assert read_file_labels(path, manifest, np.arange(5)) is not first
    write(tmp_path, id=ids(manifest, 1, 2), **{"class": ["b", "a"]})
    assert read_file_labels(path, manifest, np.arange(6)).count == 2


def test_no_parquet_and_nothing_about_training_videos(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("id,class\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_file_labels(str(tmp_path / "x.parquet"), manifest, np.arange(6))
    with pytest.raises(UserError, match="says nothing about any unlabeled video"):
        read_file_labels(write(tmp_path, id=ids(manifest, 5), a=[1.0], b=[0.0]), manifest, np.arange(3))
