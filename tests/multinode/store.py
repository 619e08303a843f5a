"""The cluster's object storage, a machine of its own: ``python -m tests.multinode.store ADDRESS PORT``.

It obeys lines on its standard input, each answered by ``done``: ``load FOLDER BUCKET``, ``save BUCKET/PREFIX FOLDER``, ``fail
KEY COUNT`` (that many requests whose path has the key are answered 503) and ``delay KEY SECONDS``.
"""

from __future__ import annotations

import re
import sys
import urllib.parse
from pathlib import Path

from tests.object_store import ObjectStore


def obey(store: ObjectStore, command: str, first: str, second: str) -> None:
    """Does what a line says."""
    match command:
        case "load":
            store.put(second)
            for path in sorted(path for path in Path(first).rglob("*") if path.is_file()):
                store.put(f"{second}/{path.relative_to(first)}", path.read_bytes())
        case "save":
            bucket, _, prefix = first.partition("/")
            listing = store.read(f"{bucket}?list-type=2&max-keys=10000&prefix={urllib.parse.quote(prefix)}").decode()
            for key in re.findall(r"<Key>([^<]*[^/<])</Key>", listing):
                path = Path(second, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.read(f"{bucket}/{urllib.parse.quote(key)}"))
        case "fail":
            store.failures[first] = int(second)
        case "delay":
            store.delays[first] = float(second)
        case _:
            raise ValueError(f"unknown command: {command}")


def main(address: str, port: int) -> None:
    """Serves until standard input ends."""
    store = ObjectStore(address, port)
    print("ready", flush=True)
    for line in sys.stdin:
        obey(store, *line.split())
        print("done", flush=True)
    store.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
