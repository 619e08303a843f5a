"""Tables on disk: other programs can read them, in one file or in parts, and they are complete at every moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.files import parquet
from pipeline.files.parquet import METADATA_KEY, move_table, read_table, remove_table
from pipeline.manifest.schema import SCHEMA, read_manifest, write_manifest
from tests.manifest.tables import make_table

CLASSES = ("a", "b")
TABLE = make_table({"a": 7, "b": 5})


@pytest.fixture(params=[False, True], ids=["file", "parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(parquet, "ROWS_PER_PART", 5)
    return bool(request.param)


def test_pyarrow_duckdb_and_pandas_read_a_table(tmp_path: Path, parts: bool) -> None:
    path = tmp_path / "m.parquet"
    manifest = write_manifest(TABLE, path, CLASSES, "/videos", "folder", parts)
    files = sorted(path.glob("*.parquet")) if parts else [path]
    assert len(files) == (3 if parts else 1)
    assert pq.read_table(path).cast(SCHEMA).replace_schema_metadata(None) == manifest.table
    where = f"{path}/*.parquet" if parts else str(path)
    counts = duckdb.sql(f"select class, count(*), sum(frames) from '{where}' group by class order by class").fetchall()
    assert counts == [("a", 7, 350), ("b", 5, 250)]
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == SCHEMA.names and frame["id"].tolist() == manifest.table["id"].to_pylist()
    assert frame["duration"].sum() == 24
    stored = duckdb.sql(f"select value from parquet_kv_metadata('{where}') where key = 'actnetformer' limit 1").fetchall()
    assert manifest.fingerprint.encode() in stored[0][0]


def test_parts_and_file_are_the_same_manifest(tmp_path: Path, parts: bool) -> None:
    one = write_manifest(TABLE, tmp_path / "one.parquet", CLASSES, "/videos", "folder", parts)
    assert write_manifest(TABLE, tmp_path / "two.parquet", CLASSES, "/videos", "folder").fingerprint == one.fingerprint
    assert read_manifest(tmp_path / "one.parquet").table == read_manifest(tmp_path / "two.parquet").table


def test_a_file_and_a_folder_of_parts_replace_each_other_and_leave_nothing_behind(tmp_path: Path, parts: bool) -> None:
    path = tmp_path / "m.parquet"
    for number, kind in enumerate((parts, not parts, parts, parts)):
        table = TABLE.slice(0, 8 + number)
        write_manifest(table, tmp_path / "fresh.parquet", CLASSES, "/videos", "folder", kind)
        move_table(tmp_path / "fresh.parquet", path)
        assert len(read_manifest(path).table) == 8 + number
        hidden = [name.name for name in tmp_path.iterdir() if name != path]
        assert len(hidden) == (1 if kind else 0) and all(name.startswith(".m.parquet.") for name in hidden)
    remove_table(path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_changed_part_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_PART", 5)
    path = tmp_path / "m.parquet"
    write_manifest(TABLE, path, CLASSES, "/videos", "folder", True)
    (path / "part-00001.parquet").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="was changed after it was written"):
        read_manifest(path)
    pq.write_table(pa.table({"x": [1]}), path / "part-00001.parquet")
    with pytest.raises(UserError, match="not one that jobs"):
        read_manifest(path)


def test_a_table_of_an_older_version_is_refused(tmp_path: Path) -> None:
    pq.write_table(TABLE.replace_schema_metadata({METADATA_KEY: b'{"version": 1}'}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"has format 1; this program reads 2; write one"):
        read_manifest(tmp_path / "m.parquet")


def test_a_folder_that_is_no_table_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").mkdir()
    (tmp_path / "m.parquet" / "notes.txt").touch()
    with pytest.raises(UserError, match="did not write"):
        write_manifest(TABLE, tmp_path / "m.parquet", CLASSES, "/videos", "folder", True)
    with pytest.raises(UserError, match="is a folder; write one"):
        read_manifest(tmp_path / "m.parquet")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["m.parquet", "notes.txt"]


WRITER = """
import os, sys
import pyarrow as pa
from pipeline.files import parquet
parquet.ROWS_PER_PART = 500

def write(path, number):
    while True:
        number += 1
        table = pa.table({"number": pa.array([number] * 5000), "row": pa.array(range(5000))})
        parquet.write_table(table, path, {"version": parquet.VERSION, "number": number}, parts=bool(number % 3))
        print(os.getpid(), flush=True)

for line in sys.stdin:  # a fork need not import all this again
    child = os.fork() or write(sys.argv[1], int(line))
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def test_killed_at_any_moment_the_old_table_or_the_new_one_is_there(tmp_path: Path) -> None:
    """A writer that replaces parts by files and back is killed with SIGKILL, again and again, wherever it is."""
    path, random_ = tmp_path / "m.parquet", random.Random(0)
    last = 0
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdin and starter.stdout
        for _ in range(12):
            print(last, file=starter.stdin, flush=True)
            writer = int(starter.stdout.readline())
            time.sleep(0.2 * random_.random())
            os.kill(writer, signal.SIGKILL)
            while starter.stdout.readline() != "killed\n":
                assert starter.poll() is None
            table, metadata = read_table(path, "table", "")
            assert metadata["number"] > last and len(table) == 5000
            assert pc.unique(table["number"]).to_pylist() == [metadata["number"]]
            last = metadata["number"]
        starter.stdin.close()
