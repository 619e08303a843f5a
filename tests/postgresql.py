"""A real PostgreSQL server for tests, in a folder of its own, gone afterward."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """Folder of the server's programs, None without any."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


@contextmanager
def serve(programs: Path) -> Iterator[str]:
    """Yields the SQLAlchemy URL of an empty database. The server refuses to be root: then its own user, or nobody, runs it."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    words: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    if os.geteuid() == 0:
        users = {entry.pw_name: entry for entry in pwd.getpwall()}
        owner = users.get("postgres") or users["nobody"]
        shutil.chown(folder, owner.pw_uid, owner.pw_gid)
        words |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    data = str(folder / "data")
    initialize = [str(programs / "initdb"), "-D", data, "-U", "tester", "--auth=trust", "--encoding=UTF8", "--no-sync"]
    subprocess.run(initialize, check=True, capture_output=True, timeout=60, **words)
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([str(programs / "postgres"), "-D", data, *options], stdout=log, stderr=log, **words)
        try:
            _wait(port, server)
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: clients are not waited for
            server.wait(20)
            shutil.rmtree(folder, ignore_errors=True)


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
