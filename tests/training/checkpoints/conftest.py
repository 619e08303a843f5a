"""An S3 store for the tests of runs that lie on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.files import storage, store_lock
from tests.object_store import ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    store = ObjectStore()
    store.put("runs")
    yield store
    store.stop()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(store_lock, "SETTLE_SECONDS", 0.1)
    with server.name_in_environment():
        yield server
    server.failures.clear()
