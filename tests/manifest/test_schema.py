"""The manifest file: order, fingerprint, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY, VERSION
from pipeline.manifest import schema
from pipeline.manifest.schema import SCHEMA, Manifest, compute_fingerprint, read_manifest, write_manifest
from tests.manifest.tables import BROKEN, GOOD, make_table

CLASSES = ("a", "b")
TABLE = make_table({"a": 7, "b": 5})


def change(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    column_index = SCHEMA.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(column_index, SCHEMA.field(column_index), pa.array(values, SCHEMA.field(column_index).type))


@given(st.permutations(range(len(TABLE))))
def test_fingerprint_ignores_order(order: list[int]) -> None:
    assert compute_fingerprint(TABLE.take(order), CLASSES) == compute_fingerprint(TABLE, CLASSES)


def test_fingerprint_is_the_same_on_every_platform_and_library_version() -> None:
    # written down once: a change here refuses every manifest and label subset that was written before
    assert compute_fingerprint(TABLE, CLASSES) == "bb80529b05fdc27e"


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_fingerprint_ignores_how_a_table_is_cut(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SLICE", chunks)
    cut = pa.concat_tables([TABLE.slice(start, chunks) for start in range(0, len(TABLE), chunks)])
    assert compute_fingerprint(cut, CLASSES) == "bb80529b05fdc27e"


@pytest.mark.parametrize(
    ("column", "value"),
    [("split", "test"), ("label", 1), ("group", "g"), ("frames", 51), ("fps", 25.1), ("hash", "x"), ("decoder", "pyav")],
)
def test_fingerprint_depends_on_content(column: str, value: object) -> None:
    assert compute_fingerprint(change(TABLE, column, 3, value), CLASSES) != compute_fingerprint(TABLE, CLASSES)


def test_fingerprint_depends_on_classes_but_not_on_the_location() -> None:
    assert compute_fingerprint(TABLE, ("b", "a")) != compute_fingerprint(TABLE, CLASSES)
    assert compute_fingerprint(change(TABLE, "uri", 0, "s3://elsewhere/0.mp4"), CLASSES) == compute_fingerprint(TABLE, CLASSES)


def test_a_written_manifest_is_read_in_the_order_of_ids(tmp_path: Path) -> None:
    written = write_manifest(TABLE.take(list(range(len(TABLE)))[::-1]), tmp_path / "m.parquet", CLASSES, "/videos", "folder")
    read = read_manifest(tmp_path / "m.parquet")
    assert read == written
    assert read.table["id"].to_pylist() == sorted(TABLE["id"].to_pylist())
    assert (read.classes, read.root, read.source) == (CLASSES, "/videos", "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


def test_root_can_be_replaced_and_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    first = write_manifest(TABLE, tmp_path / "m.parquet", CLASSES, "/videos", "folder")
    second = write_manifest(TABLE, tmp_path / "n.parquet", CLASSES, "/elsewhere", "folder")
    assert first.fingerprint == second.fingerprint
    assert first.locate(0) == "/videos/a/0.mp4"
    assert read_manifest(tmp_path / "m.parquet", root="/moved/here").locate(0) == "/moved/here/a/0.mp4"
    assert read_manifest(tmp_path / "m.parquet", root="s3://bucket/videos/").locate(0) == "s3://bucket/videos/a/0.mp4"


def test_absolute_uris_are_not_changed(tmp_path: Path) -> None:
    table = change(change(TABLE, "uri", 0, "/far/0.mp4"), "uri", 1, "s3://bucket/1.mp4")
    manifest = write_manifest(table, tmp_path / "m.parquet", CLASSES, "/videos", "list")
    assert [manifest.locate(row) for row in (0, 1)] == ["/far/0.mp4", "s3://bucket/1.mp4"]


def test_rows_are_usable_rows_of_a_split(tmp_path: Path) -> None:
    table = change(make_table({"a": 4, "b": 1}, probes=[GOOD, BROKEN, GOOD, GOOD, GOOD]), "split", 3, "test")
    manifest = write_manifest(table, tmp_path / "m.parquet", CLASSES, "/videos", "folder")
    np.testing.assert_array_equal(manifest.find_usable_rows("train"), [0, 2, 4])
    np.testing.assert_array_equal(manifest.find_usable_rows("test"), [3])
    assert manifest.find_usable_rows("val").dtype == np.int64 and len(manifest.find_usable_rows("val")) == 0


def test_the_manual_describes_every_column(repository: Path) -> None:
    section = (repository / "docs/manifest.md").read_text(encoding="utf-8").split("## Columns\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)] == SCHEMA.names


def rewrite(path: Path, table: pa.Table, **metadata: object) -> None:
    stored = json.loads(pq.read_schema(path).metadata[METADATA_KEY])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps({**stored, **metadata}).encode()}), path)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_refuses_missing_foreign_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    assert "not found" in refused(path) and "jobs.prepare" in refused(path)
    path.write_text("path,label\n", encoding="utf-8")
    assert "not a readable Parquet file" in refused(path)
    pq.write_table(pa.table({"x": [1]}), path)
    assert "not one that jobs.prepare or jobs.label wrote" in refused(path)
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({METADATA_KEY: b"{}"}), path)
    assert "holds something else, such as predictions" in refused(path)


def test_refuses_newer_version_other_columns_and_edits(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    manifest: Manifest = write_manifest(TABLE, path, CLASSES, "/videos", "folder")
    rewrite(path, manifest.table, version=VERSION + 1)
    assert f"was written by a newer version of this program (format {VERSION + 1}" in refused(path)
    rewrite(path, manifest.table.drop_columns(["fps"]), version=VERSION)
    assert "its columns are id, uri" in refused(path)
    rewrite(path, change(manifest.table, "label", 0, 1))
    assert "was changed after it was written" in refused(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    manifest = write_manifest(TABLE, path, CLASSES, "/videos", "folder")
    with pytest.raises(AssertionError, match="unique"):
        write_manifest(pa.concat_tables([TABLE, TABLE]), path, CLASSES, "/videos", "folder")
    assert read_manifest(path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
