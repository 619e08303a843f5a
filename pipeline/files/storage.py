"""Local and remote files: paths, URIs of s3, gs, hdfs and file, which pyarrow reads, and URIs that fsspec knows.

Object stores answer 503 when they are busy, and sometimes not at all. So every access has time limits and is tried again
with growing pauses before it fails with an OSError that names the file. The address of a store and the credentials for it
come from its usual environment variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS
and so on.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pyarrow import fs

T = TypeVar("T")

ATTEMPTS = 5
"""How often an access is tried before it fails."""
ATTEMPTS_MISSING = 2
"""The same where a store says that there is no such file: a store may say so wrongly just after the file was written."""
FIRST_PAUSE_SECONDS = 0.2
"""Pause before the second attempt. It is doubled before each further one, to 3 s in all."""
OUTAGE_SECONDS = 240.0
"""How long ``wait_for_store`` goes on asking a store that does not answer; less than data.decode_timeout_seconds, after which
the stream ends."""
OUTAGE_PAUSE_SECONDS = 5.0
"""Its pause before it asks again."""
MAX_BYTES_IN_MEMORY = 64 * 2**20
"""Size up to which decoders get a remote file in memory, by one request; larger ones are read in ranges."""
RANGE_BYTES = 2 * 2**20
"""Size of the range that one request reads."""
COPY_CHUNK_BYTES = 16 * 2**20
"""Size of the part that is in memory while a file is copied to or from a store."""


REMEDY = "check the network, the store's address (AWS_ENDPOINT_URL for one of your own) and the credentials"
"""What the user can do where a store does not answer or refuses; the end of messages on URIs."""
LASTING = re.compile(r"ACCESS_DENIED|INVALID_|NO_SUCH_|SIGNATURE|HTTP status 4(?!08|29)")
"""What a store says of a file that it will not give out later either."""
logger = logging.getLogger(__name__)


class StorageError(OSError):
    """A store did not answer, or answered that it cannot now (503, a lost connection): nothing is known about the file."""


@dataclass(frozen=True)
class FileInfo:
    """The size and the time of the last change of a file. If both are the same, so is the content."""

    bytes: int
    changed: str
    """Time of the last change in nanoseconds."""


def is_remote(location: str) -> bool:
    """Whether a location is a URI that the operating system cannot open."""
    return "://" in location and not location.startswith("file://")


def to_local_path(location: str) -> str:
    """Converts a local location, which may be a file:// URI, to a path."""
    if not location.startswith("file://"):
        return location
    from pyarrow import fs

    return str(fs.FileSystem.from_uri(location)[1])


def get_file_info(location: str) -> FileInfo:
    """Returns the size and the time of the last change of a file, without reading it.

    Raises FileNotFoundError, IsADirectoryError if the location is not a file, or OSError.
    """
    if not is_remote(location):
        status = os.stat(to_local_path(location))
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(f"{location} is not a file")
        return FileInfo(status.st_size, str(status.st_mtime_ns))

    def request() -> FileInfo:
        store, path = _open_store(location)
        (info,) = store.get_file_info([path])
        if info.type.name == "NotFound":
            raise FileNotFoundError(location)
        if info.type.name == "Directory":
            raise IsADirectoryError(f"{location} is not a file")
        return FileInfo(info.size, str(info.mtime_ns or 0))

    return retry(request, location)


def read_bytes(location: str) -> bytes:
    """Reads a whole file. Raises FileNotFoundError or OSError that names it."""
    if not is_remote(location):
        with open(to_local_path(location), "rb") as file:
            return file.read()

    def read() -> bytes:
        store, path = _open_store(location)
        with store.open_input_file(path) as file:
            return bytes(file.read())

    return retry(read, location)


def write_bytes(location: str, content: bytes) -> None:
    """Writes ``content`` to a remote file, completely or not at all. Raises OSError that names it."""

    def write() -> None:
        store, path = _open_store(location)
        with store.open_output_stream(path) as file:  # a store shows the object when the stream is closed, not before
            file.write(content)

    retry(write, location)


def upload(path: Path, location: str) -> None:
    """Copies a local file to a remote one, completely or not at all. Raises OSError that names the remote one."""

    def write() -> None:
        store, target = _open_store(location)
        with path.open("rb") as source, store.open_output_stream(target) as file:
            while part := source.read(COPY_CHUNK_BYTES):
                file.write(part)

    retry(write, location)


def download(location: str, path: Path) -> None:
    """Copies a remote file to a local one. Raises FileNotFoundError or OSError that names the remote one."""

    def read() -> None:
        store, source = _open_store(location)
        with store.open_input_stream(source) as stream, path.open("wb") as file:
            while part := stream.read(COPY_CHUNK_BYTES):
                file.write(part)

    retry(read, location)


def delete(location: str) -> None:
    """Deletes a remote file or folder, if it exists. Raises OSError that names it."""

    def remove() -> None:
        store, path = _open_store(location)
        (info,) = store.get_file_info([path])
        if info.type.name == "Directory":
            store.delete_dir(path)
        elif info.type.name != "NotFound":
            store.delete_file(path)

    retry(remove, location)


def open_file(location: str) -> io.BufferedIOBase:
    """Opens a file for reading and seeking; remote ones are read in ranges.

    Raises FileNotFoundError or OSError that names the file.
    """
    if not is_remote(location):
        return open(to_local_path(location), "rb")
    return io.BufferedReader(_RangeReader(location), RANGE_BYTES)


def open_for_decoder(location: str) -> str | io.BufferedIOBase:
    """Returns what a decoder can open: a local path, a remote file's content in memory, or a file that is read in ranges.

    Raises FileNotFoundError or OSError for a remote file that cannot be read.
    """
    if not is_remote(location):
        return to_local_path(location)
    return io.BytesIO(read_bytes(location)) if get_file_info(location).bytes <= MAX_BYTES_IN_MEMORY else open_file(location)


def is_read_in_ranges(source: str | io.BufferedIOBase) -> bool:
    """Whether ``open_for_decoder`` returned a large remote file, each part of which is requested from the store."""
    return isinstance(source, io.BufferedReader) and isinstance(source.raw, _RangeReader)


def list_names(folder: str) -> list[str]:
    """Lists the names of the files and folders in a folder, sorted. Raises FileNotFoundError or OSError."""
    if not is_remote(folder):
        return sorted(os.listdir(to_local_path(folder)))

    def request() -> list[str]:
        return sorted(info.base_name for info in _list_infos(folder)[0])

    return retry(request, folder)


def list_folders(folder: str) -> list[str]:
    """Lists the names of the folders in a remote folder, sorted. Raises FileNotFoundError or OSError."""

    def request() -> list[str]:
        return sorted(info.base_name for info in _list_infos(folder)[0] if info.type.name == "Directory")

    return retry(request, folder)


def list_remote_files(folder: str) -> list[str]:
    """Lists the files in a remote folder at any depth, relative to it and sorted. Raises FileNotFoundError or OSError."""

    def request() -> list[str]:
        infos, path = _list_infos(folder, recursive=True)
        skip = len(path.strip("/")) + 1  # some stores answer with a slash before the path, some without
        return sorted(info.path.lstrip("/")[skip:] for info in infos if info.type.name == "File")

    return retry(request, folder)


def retry(action: Callable[[], T], location: str) -> T:
    """Returns ``action()``, which is tried again after an error.

    Raises FileNotFoundError, StorageError, or an OSError for what will not change; they name the location.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # pyarrow's stores raise OSError, those of fsspec what their libraries do
            missing = isinstance(error, FileNotFoundError)
            if isinstance(error, IsADirectoryError | AssertionError):
                raise
            if attempt >= (ATTEMPTS_MISSING if missing else ATTEMPTS):
                text = "no such file" if missing else _summarize_error(error)
                lasts = isinstance(error, PermissionError) or LASTING.search(text)
                kind = FileNotFoundError if missing else OSError if lasts or not is_remote(location) else StorageError
                raise kind(f"{location}: tried {attempt} times: {text}") from None
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def wait_for_store(action: Callable[[], T]) -> T:
    """Returns ``action()``, which is tried again for four minutes while it raises StorageError.

    Raises UserError if the store has not come back by then.
    """
    end, was_told = time.monotonic() + OUTAGE_SECONDS, False
    while True:
        try:
            return action()
        except StorageError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"the storage has not answered for {OUTAGE_SECONDS:.0f} s: {error}; {REMEDY}, and run the same command "
                    "again, which continues"
                ) from None
            if not was_told:
                logger.warning("the storage does not answer, and is asked again for %.0f s: %s", OUTAGE_SECONDS, error)
            was_told = True
        time.sleep(OUTAGE_PAUSE_SECONDS)


class _RangeReader(io.RawIOBase):
    """A remote file. Each read is a request of its own, which is tried again if it fails."""

    def __init__(self, location: str) -> None:
        super().__init__()
        self.location, self.position, self.length = location, 0, get_file_info(location).bytes
        self.file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.length - self.position))
        content = retry(lambda: self._read(wanted), self.location) if wanted else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def _read(self, count: int) -> bytes:
        try:
            if self.file is None:
                store, path = _open_store(self.location)
                self.file = store.open_input_file(path)
            return bytes(self.file.read_at(count, self.position))
        except OSError:
            self.file = None
            raise


def _open_store(location: str) -> tuple[fs.FileSystem, str]:
    """The store of a URI, and the path in it. Raises OSError if no library knows the scheme."""
    from pipeline.files.remote_stores import connect_to_store  # 70 ms that local files need not wait for

    scheme, _, rest = location.partition("://")
    store, prefix = connect_to_store(scheme, rest.partition("/")[0])
    return store, prefix + rest


def _list_infos(folder: str, recursive: bool = False) -> tuple[list[fs.FileInfo], str]:
    """What a store says of each file and folder in a remote folder, and the folder's path in the store."""
    from pyarrow import fs

    store, path = _open_store(folder)
    return store.get_file_info(fs.FileSelector(path, recursive=recursive)), path


def _summarize_error(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^\[Errno -?\d+\] ", "", lines[0])[:300] if lines else type(error).__name__
