"""Videos, folders, patterns, lists and manifests on object storage are predicted like files, without being downloaded whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import predict, train
from jobs.command import DONE, FAILED, USER_ERROR, run
from pipeline.manifest.schema import read_manifest
from tests.object_store import ObjectStore


@pytest.fixture(scope="module")
def s3(tiny: Path) -> Iterator[ObjectStore]:
    """A store with the bucket ``clips``: videos in folders, a broken one, and a list."""
    store = ObjectStore()
    store.put("clips")
    manifest = read_manifest(tiny / "manifest.parquet")
    for row, name in enumerate(("day/a.mp4", "day/b.mp4", "day/night/c.mp4")):
        store.put(f"clips/{name}", Path(manifest.locate(row)).read_bytes())
    store.put("clips/broken.mp4", b"no video")
    store.put("clips/list.csv", b"path,start,end\nday/b.mp4,0,0.5\nday/absent.mp4,,\n")
    with store.name_in_environment():
        yield store
    store.stop()


@pytest.fixture(scope="module")
def trained(s3: ObjectStore, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, whose processes that decode know the store from their beginning."""
    storage_path = tmp_path_factory.mktemp("uris")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage_path}", "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    return storage_path / "tiny"


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_uris_are_predicted_like_files_in_their_order(trained: Path, tiny: Path, tmp_path: Path, s3: ObjectStore) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    files = [manifest.locate(row) for row in range(3)]
    assert run(predict.main, [str(trained), *files, "--out", str(tmp_path / "files.parquet")]) == DONE
    words = [
        str(trained),
        "s3://clips/broken.mp4",
        "s3://clips/day/",
        "s3://clips/list.csv",
        "--out",
        str(tmp_path / "uris.parquet"),
    ]
    assert run(predict.main, words) == FAILED
    rows, expected = read_rows(tmp_path / "uris.parquet"), read_rows(tmp_path / "files.parquet")
    names = ["s3://clips/broken.mp4", *(f"s3://clips/day/{name}.mp4" for name in ("a", "b", "night/c"))]
    assert [row["file"] for row in rows] == [*names, "day/b.mp4", "day/absent.mp4"]  # those of a list as it names them
    assert [row["status"] == "ok" for row in rows] == [False, True, True, True, True, False]
    assert rows[-1]["status"] == "missing" and rows[0]["reason"]
    for row, of_file in zip(rows[1:4], expected, strict=True):
        assert row["mean"] == of_file["mean"] and row["primary"] == of_file["primary"]
    assert (rows[4]["start"], rows[4]["end"]) == (0, 0.5)


def test_patterns_and_manifests_on_object_storage(trained: Path, tiny: Path, tmp_path: Path, s3: ObjectStore) -> None:
    assert run(predict.main, [str(trained), "s3://clips/day/*.mp4", "--out", str(tmp_path / "pattern.parquet")]) == DONE
    files = [row["file"] for row in read_rows(tmp_path / "pattern.parquet")]
    assert files == ["s3://clips/day/a.mp4", "s3://clips/day/b.mp4"]
    manifest = read_manifest(tiny / "manifest.parquet")
    s3.put("clips/manifest.parquet", (tiny / "manifest.parquet").read_bytes())
    for uri in manifest.table["uri"].to_pylist():
        s3.put(f"clips/all/{uri}", (Path(manifest.root) / uri).read_bytes())
    words = [str(trained), "s3://clips/manifest.parquet", "--root", "s3://clips/all", "evaluation.clips=1"]
    assert run(predict.main, [*words, "--out", str(tmp_path / "there.parquet")]) == DONE
    words = [str(trained), str(tiny / "manifest.parquet"), "evaluation.clips=1"]
    assert run(predict.main, [*words, "--out", str(tmp_path / "here.parquet")]) == DONE
    there, here = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("there", "here"))
    assert there.num_rows == 32 and there.equals(here)


def test_nothing_there_is_said(trained: Path, s3: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("s3://clips/empty/", "s3://clips/*.avi", "s3://clips/absent.csv", "s3://nowhere/a.mp4"):
        assert run(predict.main, [str(trained), word]) == USER_ERROR
        assert word.removesuffix("/") in capsys.readouterr().err
