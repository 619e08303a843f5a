"""Memory-mapped manifests have the same rows, are checked once, and are shared by processes instead of copied."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels, read_labels, write_labels
from pipeline.manifest.memory_mapped import MappedManifest, open_manifest
from pipeline.manifest.schema import Manifest, write_manifest
from tests.manifest.tables import make_table


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def manifest_at(path: Path, parts: bool = False) -> Manifest:
    return write_manifest(make_table({"a": 20, "b": 20}), path, ("a", "b"), "/videos", "made", parts=parts)


@pytest.mark.parametrize("parts", [False, True])
def test_a_mapped_manifest_is_equal_to_the_manifest(tmp_path: Path, node: Path, parts: bool) -> None:
    written = manifest_at(tmp_path / "m.parquet", parts)
    mapped = open_manifest(str(tmp_path / "m.parquet"), None, 1)
    assert isinstance(mapped, MappedManifest)
    assert mapped.table.equals(written.table)
    assert (mapped.classes, mapped.root, mapped.source, mapped.fingerprint) == (
        written.classes, written.root, written.source, written.fingerprint
    )  # fmt: skip
    assert open_manifest(str(tmp_path / "m.parquet"), "/elsewhere", 1).locate(0).startswith("/elsewhere/")
    assert len(list(node.glob("*/*.arrow"))) == 1
    assert not isinstance(open_manifest(str(tmp_path / "m.parquet"), None, 41), MappedManifest)


def test_another_process_receives_the_path_and_not_the_rows(tmp_path: Path, node: Path) -> None:
    manifest_at(tmp_path / "m.parquet")
    mapped = open_manifest(str(tmp_path / "m.parquet"), None, 1)
    sent = pickle.dumps(mapped)
    assert len(sent) < 500
    code = "import pickle, sys; m = pickle.loads(sys.stdin.buffer.read()); print(m.table.num_rows, m.fingerprint)"
    environment = {"TMPDIR": str(node), "PYTHONPATH": ":".join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True, env=environment)
    assert told.stdout.decode().split() == ["40", mapped.fingerprint]


def test_files_of_killed_processes_are_removed_by_the_next_one(tmp_path: Path, node: Path) -> None:
    manifest_at(tmp_path / "m.parquet")
    open_manifest(str(tmp_path / "m.parquet"), None, 1)
    (arrow,) = node.glob("*/*.arrow")
    half = arrow.with_suffix(".12345")
    half.write_bytes(b"half")
    write_manifest(make_table({"a": 20, "b": 20}).slice(1), tmp_path / "m.parquet", ("a", "b"), "/videos", "made")
    open_manifest(str(tmp_path / "m.parquet"), None, 1)
    assert not half.exists() and not arrow.exists()


def test_a_changed_manifest_is_mapped_anew(tmp_path: Path, node: Path) -> None:
    manifest_at(tmp_path / "m.parquet")
    manifest_at(tmp_path / "other.parquet")
    open_manifest(str(tmp_path / "other.parquet"), None, 1)
    first = open_manifest(str(tmp_path / "m.parquet"), None, 1)
    write_manifest(make_table({"a": 20, "b": 20}).slice(0, 30), tmp_path / "m.parquet", ("a", "b"), "/videos", "made")
    assert open_manifest(str(tmp_path / "m.parquet"), None, 1).table.num_rows == 30
    assert first.table.num_rows == 40 and first.table.column("id")[39].as_py()  # still mapped
    assert len(list(node.glob("*/*.arrow"))) == 2  # the other manifest's, and one of this


def test_an_edited_manifest_is_refused_and_leaves_no_file(tmp_path: Path, node: Path) -> None:
    manifest_at(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    labels = pa.array(np.zeros(40, np.int32))
    edited = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), labels)
    pq.write_table(edited, tmp_path / "m.parquet")
    with pytest.raises(UserError, match="was changed after it was written"):
        open_manifest(str(tmp_path / "m.parquet"), None, 1)
    assert not [path for path in node.glob("*/*") if path.suffix != ".lock"]
    (tmp_path / "x.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_manifest(str(tmp_path / "x.parquet"), None, 1)
    with pytest.raises(UserError, match="not found"):
        open_manifest(str(tmp_path / "absent.parquet"), None, 1)


def test_labels_find_their_rows_in_a_mapped_manifest(tmp_path: Path) -> None:
    written = manifest_at(tmp_path / "m.parquet", parts=True)
    write_labels(draw_labels(written, "2/class", 0), written, tmp_path / "l.parquet")
    mapped = open_manifest(str(tmp_path / "m.parquet"), None, 1)
    np.testing.assert_array_equal(read_labels(tmp_path / "l.parquet", mapped).rows, draw_labels(written, "2/class", 0).rows)


def test_a_run_has_the_same_rows_whether_its_manifest_is_mapped_or_not(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(tiny / "tiny.yaml", ["data.isolate_decoder=false"])
    plain, _ = open_source(config)
    monkeypatch.setattr("pipeline.manifest.memory_mapped.open_manifest.__defaults__", (None, 1))
    mapped, _ = open_source(config)
    assert isinstance(mapped.manifest, MappedManifest) and not isinstance(plain.manifest, MappedManifest)
    again = pickle.loads(pickle.dumps(mapped))
    for source in (mapped, again):
        one, other = plain.decode_rows(np.arange(3)), source.decode_rows(np.arange(3))
        assert all(np.array_equal(one[name], other[name]) for name in one.keys() - {"seconds"})
