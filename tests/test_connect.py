"""Which Ray cluster a command joins, when what it is told is out of date."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.errors import UserError


@pytest.fixture
def dead_address() -> str:
    """A port of this machine at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which ``ray start`` leaves its address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_without_a_cluster_ray_chooses(note: Path) -> None:
    assert cluster._address() is None


def test_a_cluster_that_was_killed_is_not_waited_for(note: Path, dead_address: str, caplog: pytest.LogCaptureFixture) -> None:
    note.write_text(dead_address)
    assert cluster._address() == "local"
    assert not note.exists()
    assert dead_address.rpartition(":")[2] in caplog.text


def test_a_cluster_that_listens_is_joined(note: Path) -> None:
    with socket.create_server(("", 0)) as server:
        note.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster._address() is None


def test_a_cluster_of_another_machine_is_not_forgotten(note: Path) -> None:
    note.write_text("unknown.invalid:6379")
    with pytest.raises(ConnectionError, match="ray stop"):
        cluster._address()
    assert note.exists()


def test_a_named_cluster_that_does_not_listen_is_an_error(monkeypatch: pytest.MonkeyPatch, dead_address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead_address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"no Ray cluster answers .*unset RAY_ADDRESS"):
        cluster.connect()
