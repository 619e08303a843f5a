"""Ray where TMPDIR is a long path, as in a job of a batch system."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.ray_cluster import connect, sockets

START = """
    import json, os, stat, sys, time
    from pathlib import Path
    import ray
    from pipeline.ray_cluster.connect import connect

    def work():
        print("a line that concerns the user")
        print("Progress bars disabled. To enable, set `ray.data.DataContext", flush=True)
        return 42

    if __name__ == "__main__":
        connect()
        folder = Path(ray._private.worker._global_node.get_sockets_dir_path()).parents[1]
        own = folder.parent.lstat()
        answer = ray.get(ray.remote(num_cpus=1)(work).remote())
        hidden = folder.resolve() / "session_latest" / "logs" / f"actnetformer-{os.getpid()}.log"
        begun = time.monotonic()
        while time.monotonic() < begun + 30 and not hidden.exists():
            time.sleep(0.1)  # lines come some time after they are printed
        print(json.dumps({
            "answer": answer,
            "hidden": hidden.read_text(),
            "name": str(folder),
            "is": str(folder.resolve()),
            "mode": stat.S_IMODE(own.st_mode),
            "mine": own.st_uid == os.getuid(),
        }), flush=True)
        if sys.argv[1:] == ["die"]:
            os.kill(os.getpid(), 9)
"""


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """Twice as long as any socket's path may be."""
    folder = tmp_path.joinpath(*["a folder of a job with a long name"] * 6)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 2 * sockets.SOCKET_BYTES
    return folder


def start(tmp_path: Path, temporary: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "start.py"
    script.write_text(textwrap.dedent(START), encoding="utf-8")
    unset = ("RAY_ADDRESS", "RAY_TMPDIR", "XDG_RUNTIME_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, str(script), *words], env={**environment, "TMPDIR": str(temporary)}, capture_output=True, text=True,
        check=False, timeout=110,
    )  # fmt: skip


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"answer"'))))


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_ray_starts_where_the_temporary_folder_has_a_long_path(tmp_path: Path, long_folder: Path) -> None:
    done = start(tmp_path, long_folder)
    assert done.returncode == 0, done.stderr
    said = answer(done)
    assert said["answer"] == 42
    assert said["is"] == str((long_folder / "ray").resolve())  # files stay where they were to be
    assert said["mine"] and said["mode"] == 0o700
    assert said["name"] in done.stderr and str(long_folder) in done.stderr
    # and what Ray's processes say is sorted, see test_output.py
    terminal = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith('{"answer"')]
    assert not any("dashboard" in line for line in terminal)  # it has started
    assert "Progress bars disabled" in said["hidden"]
    assert not any("Progress bars disabled" in line for line in terminal)
    assert any("a line that concerns the user" in line for line in terminal)
    assert not os.path.lexists(said["name"]) and not Path(said["name"]).parent.exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path: Path, long_folder: Path) -> None:
    killed = start(tmp_path, long_folder, "die")
    assert killed.returncode == -signal.SIGKILL
    left = Path(answer(killed)["name"]).parent
    assert left.is_dir()
    assert start(tmp_path, long_folder).returncode == 0
    assert not left.exists()


def test_a_short_folder_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert sockets.make_short_temporary_folder(connect.find_temporary_folder()) is None


LISTEN = """
import os
from multiprocessing.connection import Listener
print(os.environ['TMPDIR'], Listener(family='AF_UNIX').address)
"""


def test_processes_that_hand_over_tensors_find_a_short_folder(long_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As workers of a DataLoader do: each listens at a socket of its own."""
    monkeypatch.setenv("TMPDIR", str(long_folder))
    monkeypatch.setattr("tempfile.tempdir", None)  # asked anew
    listen = [sys.executable, "-c", LISTEN]
    assert "AF_UNIX path too long" in subprocess.run(listen, capture_output=True, text=True, check=False).stderr
    with sockets.shorten_temporary_folder_of_children():
        folder, address = subprocess.run(listen, capture_output=True, text=True, check=True).stdout.split()
    assert Path(folder).resolve() == long_folder.resolve() and address.startswith(folder)
    assert os.environ["TMPDIR"] == str(long_folder)
    sockets._remove(Path(folder).parent)


@pytest.mark.parametrize("name", ["é" * 40, "a" * 80])
def test_bytes_count_not_letters(name: str) -> None:
    assert not sockets.is_short_enough(Path("/") / name)
    assert sockets.is_short_enough(Path("/tmp/ray"))


@pytest.fixture
def short_parent() -> Path:
    """A folder with a short path, of this user alone."""
    import tempfile

    return Path(tempfile.mkdtemp(dir="/tmp", prefix="s"))


def test_the_link_lies_in_a_folder_of_this_user_alone(short_parent: Path, long_folder: Path) -> None:
    link = sockets.make_link(long_folder, ["", "/absent", str(short_parent)])
    assert link.resolve() == long_folder.resolve() and link.parent.parent == short_parent
    facts = link.parent.lstat()
    assert stat.S_IMODE(facts.st_mode) == 0o700 and facts.st_uid == os.getuid()
    sockets._remove(link.parent)
    short_parent.rmdir()


def test_a_place_where_others_could_exchange_the_link_is_not_used(short_parent: Path, long_folder: Path) -> None:
    """Writable for all, without the bit that keeps others' files from being renamed."""
    short_parent.chmod(0o777)
    with pytest.raises(UserError, match="set RAY_TMPDIR to a folder with a short path"):
        sockets.make_link(long_folder, [str(short_parent)])
    assert not list(short_parent.iterdir())
    short_parent.rmdir()


def test_what_is_left_over_is_removed_and_nothing_else(short_parent: Path, long_folder: Path) -> None:
    for name in ("left", "used", "other"):
        (short_parent / f"{sockets.PREFIX}{name}").mkdir()
        (short_parent / f"{sockets.PREFIX}{name}" / sockets.LINK).symlink_to(long_folder)
    (short_parent / f"{sockets.PREFIX}other" / "something").touch()
    (short_parent / f"{sockets.PREFIX}link").symlink_to(long_folder)
    lock = sockets._lock(short_parent / f"{sockets.PREFIX}used")
    assert lock is not None
    sockets.remove_left_over(short_parent)
    kept = {path.name.removeprefix(sockets.PREFIX) for path in short_parent.iterdir()}
    assert kept == {"used", "other", "link"} and long_folder.is_dir()
    os.close(lock)
