"""Files wherever they lie: local paths, and URIs of s3, gs, hdfs and file by pyarrow or of whatever fsspec knows.

Object stores answer 503 when they are busy, and sometimes not at all. So every access has time limits and is tried again
with growing pauses before it fails with an OSError that names the file. Where a store is, and who may read it, is said by
its own environment variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS and so on.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

T = TypeVar("T")

ATTEMPTS = 5
"""Of one access before it fails."""
ATTEMPTS_MISSING = 2
"""Where the store says that there is no such file, which a store that was just written to may say too early."""
FIRST_PAUSE_SECONDS = 0.2
"""Before the second attempt; doubled before each further one: 3 s in all."""
REQUEST_SECONDS = 20.0
"""Time limit of one request to S3 without any data."""
WHOLE_BYTES = 64 * 2**20
"""Larger remote files are read in ranges by decoders that can, smaller ones in one request into memory."""
RANGE_BYTES = 2 * 2**20
"""Of one request of such a range."""
PART_BYTES = 16 * 2**20
"""Of a copy between a store and the disk, at once in memory."""


@dataclass(frozen=True)
class FileInfo:
    """What a store knows of a file without reading it."""

    bytes: int
    changed: str
    """Time of the last change, in nanoseconds; the same time and size: the same content."""


def is_remote(location: str) -> bool:
    """Whether it is a URI that the operating system cannot open."""
    return "://" in location and not location.startswith("file://")


def local_path(location: str) -> str:
    """The path of a local location, which may be a file:// URI."""
    return fs.FileSystem.from_uri(location)[1] if location.startswith("file://") else location


def get_file_info(location: str) -> FileInfo:
    """Size and time of change. Raises FileNotFoundError, IsADirectoryError for anything that is no file, or OSError."""
    if not is_remote(location):
        status = os.stat(local_path(location))
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(f"{location} is not a file")
        return FileInfo(status.st_size, str(status.st_mtime_ns))

    def ask() -> FileInfo:
        store, path = _store(location)
        (info,) = store.get_file_info([path])
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(location)
        if info.type == fs.FileType.Directory:
            raise IsADirectoryError(f"{location} is not a file")
        return FileInfo(info.size, str(info.mtime_ns or 0))

    return retry(ask, location)


def read_bytes(location: str) -> bytes:
    """The whole file. Raises FileNotFoundError or OSError that names it."""
    if not is_remote(location):
        with open(local_path(location), "rb") as file:
            return file.read()

    def read() -> bytes:
        store, path = _store(location)
        with store.open_input_file(path) as file:
            return bytes(file.read())

    return retry(read, location)


def write_bytes(location: str, content: bytes) -> None:
    """Replace a remote file by ``content``, whole or not at all. Raises OSError that names it."""

    def write() -> None:
        store, path = _store(location)
        with store.open_output_stream(path) as file:  # a store shows the object when the stream is closed, not before
            file.write(content)

    retry(write, location)


def upload(path: Path, location: str) -> None:
    """Copy a local file to a remote one, whole or not at all. Raises OSError that names it."""

    def write() -> None:
        store, target = _store(location)
        with path.open("rb") as source, store.open_output_stream(target) as file:
            while part := source.read(PART_BYTES):
                file.write(part)

    retry(write, location)


def download(location: str, path: Path) -> None:
    """Copy a remote file to a local one. Raises FileNotFoundError or OSError that names the remote one."""

    def read() -> None:
        store, source = _store(location)
        with store.open_input_stream(source) as stream, path.open("wb") as file:
            while part := stream.read(PART_BYTES):
                file.write(part)

    retry(read, location)


def delete(location: str) -> None:
    """Delete a remote file or folder, if it is there. Raises OSError that names it."""

    def remove() -> None:
        store, path = _store(location)
        (info,) = store.get_file_info([path])
        if info.type == fs.FileType.Directory:
            store.delete_dir(path)
        elif info.type != fs.FileType.NotFound:
            store.delete_file(path)

    retry(remove, location)


def open_file(location: str) -> io.BufferedIOBase:
    """A seekable file for reading; remote ones are read in ranges. Raises FileNotFoundError or OSError that names it."""
    if not is_remote(location):
        return open(local_path(location), "rb")
    return io.BufferedReader(_Ranges(location), RANGE_BYTES)


def open_for_decoder(location: str) -> str | io.BufferedIOBase:
    """What decoders open: a local path, the content in memory, or for large remote files one that reads in ranges."""
    if not is_remote(location):
        return local_path(location)
    return io.BytesIO(read_bytes(location)) if get_file_info(location).bytes <= WHOLE_BYTES else open_file(location)


def is_read_in_ranges(source: str | io.BufferedIOBase) -> bool:
    """Whether ``open_for_decoder`` left it where it is."""
    return isinstance(source, io.BufferedReader) and isinstance(source.raw, _Ranges)


def list_names(folder: str) -> list[str]:
    """Names of what lies in a folder, sorted. Raises FileNotFoundError or OSError."""
    if not is_remote(folder):
        return sorted(os.listdir(local_path(folder)))

    def ask() -> list[str]:
        store, path = _store(folder)
        return sorted(info.base_name for info in store.get_file_info(fs.FileSelector(path)))

    return retry(ask, folder)


def list_folders(folder: str) -> list[str]:
    """Names of the folders in a remote folder, sorted. Raises FileNotFoundError or OSError."""

    def ask() -> list[str]:
        store, path = _store(folder)
        found = store.get_file_info(fs.FileSelector(path))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    return retry(ask, folder)


def list_files_below(folder: str) -> list[str]:
    """Files in a remote folder at any depth, relative to it, sorted. Raises FileNotFoundError or OSError."""

    def ask() -> list[str]:
        store, path = _store(folder)
        found = store.get_file_info(fs.FileSelector(path, recursive=True))
        skip = len(path.strip("/")) + 1  # some stores answer with a slash before the path, some without
        return sorted(info.path.lstrip("/")[skip:] for info in found if info.type == fs.FileType.File)

    return retry(ask, folder)


def retry(action: Callable[[], T], location: str) -> T:
    """``action()``, tried again after OSErrors. Raises FileNotFoundError or OSError that names the location."""
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            if isinstance(error, IsADirectoryError):
                raise
            if attempt >= (ATTEMPTS_MISSING if missing else ATTEMPTS):
                kind = FileNotFoundError if missing else OSError
                text = "no such file" if missing else _first_line(error)
                raise kind(f"{location}: tried {attempt} times: {text}") from None
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


class _Ranges(io.RawIOBase):
    """A remote file, each read of which is a request of its own that is retried."""

    def __init__(self, location: str) -> None:
        super().__init__()
        self.location, self.place, self.length = location, 0, get_file_info(location).bytes
        self.file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.length}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.length - self.place))
        content = retry(lambda: self._read(wanted), self.location) if wanted else b""
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def _read(self, count: int) -> bytes:
        try:
            if self.file is None:
                store, path = _store(self.location)
                self.file = store.open_input_file(path)
            return bytes(self.file.read_at(count, self.place))
        except OSError:
            self.file = None
            raise


def _store(location: str) -> tuple[fs.FileSystem, str]:
    """The store of a URI and the path in it. Raises OSError for one that nobody knows."""
    scheme, _, rest = location.partition("://")
    authority = rest.partition("/")[0]
    store, prefix = _connect(scheme, authority)
    return store, prefix + rest


@functools.lru_cache(maxsize=64)
def _connect(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    """The store, and what goes before ``authority/path`` in its paths."""
    if scheme in ("s3", "s3a"):
        return _connect_s3(authority), ""
    if scheme in ("gs", "gcs"):
        return fs.GcsFileSystem(), ""
    if scheme in ("hdfs", "viewfs"):
        return fs.FileSystem.from_uri(f"{scheme}://{authority}/")[0], "/"
    import fsspec  # a third of a second that local files need not wait for

    try:
        store = fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise OSError(f"no library reads {scheme}:// ({_first_line(error)})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(store)), f"{scheme}://" if scheme in ("http", "https") else ""


def _connect_s3(bucket: str) -> fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    # one attempt each: the pauses and the message between attempts are ours
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        request_timeout=REQUEST_SECONDS,
        connect_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
