"""Files in an S3 store that is busy or slow, or in which they are missing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import prepare
from jobs.command import DONE, USER_ERROR, run
from pipeline.clips.decode import DecodeError, Video, decode_clips
from pipeline.clips.isolated_decode import IsolatedDecoder
from pipeline.clips.source import open_source
from pipeline.config import ClipSection, load_config
from pipeline.errors import UserError
from pipeline.files import remote_stores, storage
from pipeline.manifest.schema import read_manifest
from pipeline.processes.isolation import ProcessLimits
from pipeline.stream.in_process import load_batches
from pipeline.video.probe import probe_file, probe_files
from tests.conftest import TINY
from tests.object_store import ObjectStore
from tests.videos import write_numbers

SLOW = ClipSection(frames=8, fps=8, size=16)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    store = ObjectStore()
    store.put("clips")
    yield store
    store.stop()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.02)
    with server.name_in_environment():
        yield server
    server.failures.clear()
    server.delays.clear()
    server.requests.clear()


def test_size_content_and_names_of_remote_files(s3: ObjectStore) -> None:
    s3.put("clips/a b/one.bin", bytes(range(256)) * 100)
    info = storage.get_file_info("s3://clips/a b/one.bin")
    assert info.bytes == 25_600 and abs(int(info.changed) / 1e9 - time.time()) < 100
    assert storage.read_bytes("s3://clips/a b/one.bin") == bytes(range(256)) * 100
    assert storage.list_names("s3://clips/a b") == ["one.bin"]
    with storage.open_file("s3://clips/a b/one.bin") as file:
        assert (file.seek(-10, os.SEEK_END), file.read()) == (25_590, bytes(range(246, 256)))


def test_requests_are_repeated_while_the_store_is_busy(s3: ObjectStore) -> None:
    s3.put("clips/busy.bin", b"content")
    s3.failures["busy.bin"] = storage.ATTEMPTS - 1
    assert storage.read_bytes("s3://clips/busy.bin") == b"content"
    assert s3.failures["busy.bin"] == 0


def test_an_error_names_the_file_where_the_store_stays_busy(s3: ObjectStore) -> None:
    s3.put("clips/always.bin", b"content")
    s3.failures["always.bin"] = 10_000
    with pytest.raises(storage.StorageError, match=rf"^s3://clips/always.bin: tried {storage.ATTEMPTS} times: ."):
        storage.read_bytes("s3://clips/always.bin")
    assert 10_000 - s3.failures["always.bin"] >= storage.ATTEMPTS


def test_a_slow_request_is_given_up_and_repeated(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_stores, "REQUEST_SECONDS", 0.5)
    s3.put("clips/slow.bin", b"content")
    s3.delays["slow.bin"] = 30.0
    start = time.monotonic()
    with pytest.raises(OSError, match=r"slow\.bin"):
        storage.get_file_info("s3://clips/slow.bin")
    assert time.monotonic() - start < 25
    s3.delays["slow.bin"] = 0.1
    assert storage.read_bytes("s3://clips/slow.bin") == b"content"


def test_a_missing_object_is_requested_twice_and_named(s3: ObjectStore) -> None:
    with pytest.raises(FileNotFoundError, match=r"^s3://clips/none.mp4: tried 2 times: no such file$"):
        storage.read_bytes("s3://clips/none.mp4")
    probe = probe_file("s3://clips/none.mp4")
    assert (probe.status, probe.reason) == ("missing", "s3://clips/none.mp4: tried 2 times: no such file")


def test_a_uri_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(OSError, match="no library reads nowhere://"):
        storage.read_bytes("nowhere://x/y.mp4")


def test_file_uris_are_local_paths(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    assert storage.get_file_info(path.as_uri()) == storage.get_file_info(str(path))
    assert probe_file(path.as_uri()).status == "ok"


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_remote_video_has_the_same_probe_and_pixels_as_a_local_one(s3: ObjectStore, tmp_path: Path, decoder: str) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    s3.put("clips/n.mp4", path.read_bytes())
    s3.failures["n.mp4"] = 1
    here, there = probe_file(str(path)), probe_files(["s3://clips/n.mp4"])[0]
    assert replace(here, stamp=None) == replace(there, stamp=None) and there.decoder == "decord"
    both = [
        decode_clips(Video(location, 50, 25.0, False, 160, 96, 0.0, 2.0, decoder), 0.4, 0.5, [SLOW], 48)[0]
        for location in (str(path), "s3://clips/n.mp4")
    ]
    assert np.array_equal(*both)


def test_large_objects_are_read_in_ranges(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    s3.put("clips/large.mp4", path.read_bytes())
    monkeypatch.setattr(storage, "MAX_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(storage, "RANGE_BYTES", 2000)
    s3.failures["large.mp4"] = 2
    probe = probe_file("s3://clips/large.mp4")
    assert (probe.status, probe.frames, probe.decoder) == ("ok", 50, "pyav")
    one = Video("s3://clips/large.mp4", 50, 25.0, False, 160, 96, 0.0, 2.0, "pyav")
    local = Video(str(path), 50, 25.0, False, 160, 96, 0.0, 2.0, "pyav")
    assert np.array_equal(*(decode_clips(video, 0.4, 0.5, [SLOW], 48)[0] for video in (one, local)))


def test_prepare_reads_everything_from_the_store(s3: ObjectStore, tmp_path: Path) -> None:
    """Class folders and a list are in the store; some requests fail, one object is missing, and one is always busy."""
    # two contents: copies of one video are drawn together, so that eight of them would leave no test video
    contents = [write_numbers(tmp_path / f"{frames}.mp4", frames=frames, size=(64, 64)).read_bytes() for frames in (6, 7)]
    content, names = contents[0], [f"{name}/{number}.mp4" for name in "ab" for number in range(4)]
    for number, name in enumerate(names):
        s3.put(f"clips/tree/{name}", contents[number % 2])
    s3.failures.update({"0.mp4": 2, "3.mp4": 1, "tree": 1})
    words = ["--labeled", "1/class", "--hash", "--processes", "1"]
    assert run(prepare.main, ["folder", "s3://clips/tree", str(tmp_path / "one"), *words]) == DONE
    one = read_manifest(tmp_path / "one" / "manifest.parquet")
    assert one.root == "s3://clips/tree" and one.table["id"].to_pylist() == names
    assert set(one.table["status"].to_pylist()) == {"ok"} and len(set(one.table["hash"].to_pylist())) == 2

    listed = "\n".join(f"{name} {'ab'.index(name[0])}" for name in [*names, "b/gone.mp4", "a/busy.mp4"])
    s3.put("clips/lists/train.txt", listed.encode())
    s3.put("clips/tree/a/busy.mp4", content)
    s3.failures.update({"lists/train.txt": 1, "busy.mp4": 10_000})
    words += ["--root", "s3://clips/tree"]
    assert run(prepare.main, ["list", "s3://clips/lists/train.txt", str(tmp_path / "two"), *words]) == DONE
    rows = {row["id"]: row for row in read_manifest(tmp_path / "two" / "manifest.parquet").table.to_pylist()}
    bad = {name: (row["status"], row["reason"]) for name, row in rows.items() if row["status"] != "ok"}
    assert bad["b/gone.mp4"] == ("missing", "s3://clips/tree/b/gone.mp4: tried 2 times: no such file") and len(bad) == 2
    assert bad["a/busy.mp4"][0] == "undecodable" and "a/busy.mp4: tried 5 times: " in str(bad["a/busy.mp4"][1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["list", "s3://clips/lists/none.txt", "OUT", "--root", "s3://clips/tree"],
            "list not found: s3://clips/lists/none.txt",
        ),
        (["folder", "s3://nobucket/tree", "OUT"], "s3://nobucket/tree: tried 5 times: "),
        (["hmdb51", "s3://clips/tree", "OUT"], "say with --lists DIR where the lists are"),
        (["hmdb51", "s3://clips/tree", "OUT", "--lists", "s3://clips/nowhere"], "s3://clips/nowhere holds no split files"),
        (["folder", "nowhere://x/y", "OUT"], "no library reads nowhere://"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_is_missing_in_a_store_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(prepare.main, [str(tmp_path / "out") if word == "OUT" else word for word in words]) == USER_ERROR
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_official_lists_in_the_store(s3: ObjectStore, tmp_path: Path) -> None:
    """HMDB51's split files are found by their names, which a store must list."""
    content = write_numbers(tmp_path / "n.mp4", frames=6, size=(64, 64)).read_bytes()
    for name in ("wave", "run"):
        clips = [f"{name}{i}_{name}_u_nm_np1_ba_goo_0.avi" for i in range(3)]
        s3.put(f"clips/splits/{name}_test_split1.txt", "\n".join(f"{clip} {i}" for i, clip in enumerate(clips)).encode())
        for clip in clips:
            s3.put(f"clips/hmdb/{name}/{clip}", content)
    words = ["--lists", "s3://clips/splits", "--labeled", "1/class", "--processes", "1"]
    assert run(prepare.main, ["hmdb51", "s3://clips/hmdb", str(tmp_path / "out"), *words]) == DONE
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert [len(manifest.find_usable_rows(split)) for split in ("train", "test", "unlabeled")] == [2, 2, 2]


def test_a_run_reads_manifest_labels_and_videos_from_the_store(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are uploaded, ``data.root`` names the store, and a video that is deleted later is replaced and recorded. One
    that the store cannot give now is waited for, and after too long a time the run ends."""
    monkeypatch.setattr(storage, "OUTAGE_PAUSE_SECONDS", 0.1)
    for name in ("a", "b"):
        for number in range(4):
            write_numbers(tmp_path / "videos" / name / f"{number}.mp4", frames=12, size=(48, 48))
    words = ["folder", str(tmp_path / "videos"), str(tmp_path), "--labeled", "1/class", "--processes", "1"]
    assert prepare.main(words) == 0
    for path in [*tmp_path.rglob("*.mp4"), *tmp_path.glob("*.parquet")]:
        s3.put(f"clips/run/{path.relative_to(tmp_path)}", path.read_bytes())
    s3.failures.update({"manifest.parquet": 1, "0.mp4": 3, "1.mp4": 2})
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path), encoding="utf-8")
    remote = [
        "data.manifest=s3://clips/run/manifest.parquet",
        "data.root=s3://clips/run/videos",
        "data.max_quarantined_share=1",
    ]
    config = load_config(tmp_path / "tiny.yaml", [*remote, "train.steps=6"])
    assert config.labels_path == "s3://clips/run/labels.parquet"
    source, labels = open_source(config)
    assert len(labels.ids) == 2 and source.manifest.locate(0) == "s3://clips/run/videos/a/0.mp4"
    lost, busy = (source.manifest.locate(int(row)) for row in source.plan.unlabeled[:2])
    s3.remove(lost.removeprefix("s3://"))
    s3.failures[busy.rpartition("videos/")[2]] = 2 * storage.ATTEMPTS  # a store that answers 503 says nothing about a video
    batches = list(load_batches(source, config, 0))
    records = [record for batch in batches for record in batch.quarantined]
    assert len(batches) == 6 and {record["uri"] for record in records} == {lost}
    assert {"no such file" in str(record["reason"]) for record in records} == {True}, records[0]
    assert s3.failures[busy.rpartition("videos/")[2]] == 0
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 1.0)
    s3.failures[busy.rpartition("videos/")[2]] = 10_000
    with pytest.raises(UserError, match=rf"has not answered for 1 s: {busy}.*run the same command again"):
        list(load_batches(source, config, 0))
    with pytest.raises(UserError, match=r"manifest not found: s3://clips/none\.parquet"):
        read_manifest("s3://clips/none.parquet")


def test_a_decoder_that_hangs_because_of_the_store_does_not_cost_the_video(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "OUTAGE_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(remote_stores, "REQUEST_SECONDS", 0.3)
    s3.put("clips/hang/n.mp4", write_numbers(tmp_path / "n.mp4").read_bytes())
    video = Video("s3://clips/hang/n.mp4", 50, 25.0, False, 160, 96, 0.0, 2.0, "pyav")
    decoder, out = IsolatedDecoder(ProcessLimits(6.0)), [np.zeros((8, 48, 48, 3), np.uint8)]
    decoder.decode_clips(video, 0.4, 0.5, [SLOW], 48, out)
    expected, _ = out[0].copy(), out[0].fill(0)
    s3.delays["hang/n.mp4"] = 30.0  # the process has its own, longer limit of a request
    threading.Timer(8.0, s3.delays.clear).start()
    storage.wait_for_store(lambda: decoder.decode_clips(video, 0.4, 0.5, [SLOW], 48, out))
    assert np.array_equal(out[0], expected)


def test_a_video_that_hangs_and_is_gone_from_the_store_cannot_be_decoded(s3: ObjectStore, tmp_path: Path) -> None:
    """And does not end the run: the store has answered."""
    video = Video("s3://clips/gone/n.mp4", 50, 25.0, False, 160, 96, 0.0, 2.0, "pyav")
    s3.put("clips/gone/n.mp4", write_numbers(tmp_path / "n.mp4").read_bytes())
    s3.delays["gone/n.mp4"] = 3.0
    threading.Timer(0.5, s3.remove, ["clips/gone/n.mp4"]).start()
    with pytest.raises(DecodeError, match=r"no result after 1 s|no such file"):
        IsolatedDecoder(ProcessLimits(1.0)).decode_clips(video, 0.4, 0.5, [SLOW], 48, [np.zeros((8, 48, 48, 3), np.uint8)])
