"""The folder of uploads: full, removed, or not where the owner said."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.serving.in_process import InProcess
from pipeline.serving.requests.fetch_uri import UriRules, parse_prefix
from pipeline.serving.requests.scratch import Scratch
from tests.serving.conftest import LIMITS, Running, run_service
from tests.serving.requests.test_fetch_uri import ask_for
from tests.serving.requests.test_fetch_uri import files as files
from tests.serving.test_predictions import make_form
from tests.serving.web.test_service import Slow, wait_until


def test_a_folder_that_was_removed_is_made_again(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    with run_service(model, tmp_path / "uploads") as running:
        shutil.rmtree(tmp_path / "uploads")
        assert running.post(clip).status == 200
        assert running.list_scratch() == [] and (tmp_path / "uploads").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_told_and_the_server_recovers(
    model: InProcess, clip: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with run_service(model, tmp_path / "uploads") as running:
        shutil.rmtree(tmp_path / "uploads")
        (tmp_path / "uploads").write_text("a file in its place", encoding="utf-8")
        reply = running.post(clip)
        assert (reply.status, reply.json["error"]) == (503, "no_scratch") and reply.headers["retry-after"] == "30"
        assert str(tmp_path) not in reply.json["detail"] and f"{tmp_path / 'uploads'}: Not a directory" in caplog.text
        (tmp_path / "uploads").unlink()
        assert running.post(clip).status == 200


class FullFile:
    """A file on a disk without room."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", ["raw", "form", "uri"])
def test_a_full_disk_is_told_and_the_server_recovers(
    model: InProcess,
    clip: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: str,
    kind: str,
) -> None:
    def ask(running: Running) -> Any:
        if kind == "uri":
            return ask_for(running, files + "good.mp4")
        body, content_type = make_form(clip) if kind == "form" else (clip, "video/mp4")
        return running.post(body, kind=content_type)

    rules = UriRules((parse_prefix(files),), private=True)
    with run_service(model, tmp_path / "uploads", LIMITS, rules) as running:
        with monkeypatch.context() as full:
            opens = Path.open
            full.setattr(
                Path, "open", lambda path, *words, **more: FullFile(path) if path.name == "upload" and words == ("wb",)
                else opens(path, *words, **more)
            )  # fmt: skip
            reply = ask(running)
        assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (507, "no_space", "30"), reply.body
        assert ask(running).status == 200
        assert running.list_scratch() == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_a_disk_that_is_really_full(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    """A file system of 100 KB in memory."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with run_service(model, disk / "uploads") as running:
            for body, content_type in ((bytes(10**6), "video/mp4"), make_form(bytes(10**6))):
                reply = running.post(body, kind=content_type)
                assert (reply.status, reply.json["error"]) == (507, "no_space")
            assert running.post(clip).status == 200 and running.list_scratch() == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_upload_that_is_removed_while_it_waits_may_be_sent_again(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    slow = Slow(model)
    with run_service(slow, tmp_path / "uploads") as running, ThreadPoolExecutor(1) as threads:
        future = threads.submit(running.post, clip)
        wait_until(lambda: slow.begun == 1)
        shutil.rmtree(tmp_path / "uploads")
        slow.may_go.set()
        reply = future.result()
        assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (503, "upload_lost", "1")
        assert running.post(clip).status == 200
    slow._threads.shutdown()


def test_a_form_is_kept_nowhere_else(model: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's temporary folder may be small, or in memory; that is why there is --scratch."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with run_service(model, tmp_path / "uploads") as running:
        body, kind = make_form(b"no video " * 200_000)
        reply = running.post(body, kind=kind)
        assert (reply.status, reply.json["error"]) == (415, "not_a_video"), reply.body


def test_a_replica_keeps_uploads_where_the_owner_said(saved: Any, clip: bytes, tmp_path: Path) -> None:
    import asyncio
    import time

    from pipeline.serving.model.answers import RequestOptions
    from pipeline.serving.model.served_model import identify_model
    from pipeline.serving.on_ray.replicas import Replica

    replica = Replica(saved, LIMITS, identify_model(saved), tmp_path)
    try:
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith("actnetformer-replica-")
        shutil.rmtree(folder)  # it comes back
        assert asyncio.run(replica.answer(clip, RequestOptions(), 60.0)).classes
        assert list(folder.iterdir()) == []
        folder.rmdir()
        folder.write_text("in its place", encoding="utf-8")
        begun = time.monotonic()
        assert asyncio.run(replica.answer(clip, RequestOptions(), 60.0)).status == 503
        assert time.monotonic() - begun < 5
    finally:
        replica.model.stop()


def test_a_replica_that_ends_leaves_no_folder(saved: Any, tmp_path: Path) -> None:
    from pipeline.serving.model.served_model import identify_model
    from pipeline.serving.on_ray.replicas import Replica

    replica = Replica(saved, LIMITS, identify_model(saved), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    replica.__del__()  # as Ray Serve does
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--scratch .*none: no folder for uploads: No such file"):
        Scratch.make("uploads-", tmp_path / "none")
