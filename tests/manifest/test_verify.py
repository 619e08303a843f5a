"""A sample of a manifest's files is checked before a command starts: for missing files, and for changed ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs import prepare
from jobs.command import DONE, run
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.manifest.verify import SAMPLED_HASHES, find_changed_files, find_missing_files, sample_evenly


def prepared(tiny: Path, tmp_path: Path, *words: str) -> Manifest:
    shutil.copytree(tiny / "videos", tmp_path / "videos")
    command = ["folder", tmp_path / "videos", tmp_path / "out", "--labeled", "1/class", "--processes", 1, *words]
    assert run(prepare.main, list(map(str, command))) == DONE
    return read_manifest(tmp_path / "out" / "manifest.parquet")


def test_a_sample_is_evenly_spread_and_always_the_same() -> None:
    rows = np.arange(100, 1100, dtype=np.int64)
    sample = sample_evenly(rows)
    assert len(sample) == 64 and sample[0] == 100 and sample[-1] == 1099 and np.array_equal(sample, sample_evenly(rows))
    assert set(np.diff(sample)) <= {15, 16, 17}
    assert np.array_equal(sample_evenly(rows[:5]), rows[:5]) and len(sample_evenly(rows[:0])) == 0


def test_changed_files_are_found_by_size_or_content_and_missing_ones_are_not_among_them(tiny: Path, tmp_path: Path) -> None:
    manifest = prepared(tiny, tmp_path, "--hash")
    rows = manifest.find_usable_rows("test")
    assert len(rows) >= SAMPLED_HASHES and find_changed_files(manifest, rows) == [] == find_missing_files(manifest, rows)
    first, second, last = (Path(manifest.locate(int(row))) for row in rows[[0, 1, -1]])
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)  # of the same size
    second.write_bytes(second.read_bytes()[:-7])
    last.unlink()
    uris = manifest.table["uri"].take(pa.array(rows)).to_pylist()
    size = second.stat().st_size
    assert find_changed_files(manifest, rows) == [
        f"{uris[0]}: another content (SHA-256) of the same {len(content)} bytes found at {first}",
        f"{uris[1]}: {size + 7} bytes in the manifest, {size} bytes found at {second}",
    ]
    assert find_missing_files(manifest, rows) == [str(last)]


def test_a_frame_folder_is_present_as_long_as_it_has_an_image(tmp_path: Path) -> None:
    for name in ("00001.jpg", "00002.jpg"):
        (tmp_path / name).write_bytes(b"12345")
    table = pa.table({"uri": ["%05d.jpg", "gone_%05d.jpg"], "bytes": [10, 10], "hash": pa.nulls(2, pa.string())})
    manifest = Manifest(table, (), str(tmp_path), "", "", "")
    rows = np.arange(2, dtype=np.int64)
    assert find_missing_files(manifest, rows) == [f"{tmp_path}/gone_%05d.jpg"] and find_changed_files(manifest, rows) == []
    (tmp_path / "00002.jpg").write_bytes(b"123")
    assert find_changed_files(manifest, rows) == [f"%05d.jpg: 10 bytes in the manifest, 8 bytes found at {tmp_path}/%05d.jpg"]
