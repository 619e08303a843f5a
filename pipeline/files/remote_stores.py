"""Connections to object stores and other remote file systems, for ``pipeline.files.storage``.

This is a module of its own because pyarrow takes 70 ms to import, for which processes that decode local files need not wait.
"""

from __future__ import annotations

import functools
import os

from pyarrow import fs

REQUEST_SECONDS = 20.0
"""Time limit of one request to S3 without any data."""


@functools.lru_cache(maxsize=64)
def connect_to_store(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    """Connects to a store; returns it, and the prefix to ``authority/path`` that its paths need.

    Raises OSError if no library knows the scheme.
    """
    if scheme in ("s3", "s3a"):
        return _connect_s3(authority), ""
    if scheme in ("gs", "gcs"):
        return fs.GcsFileSystem(), ""
    if scheme in ("hdfs", "viewfs"):
        return fs.FileSystem.from_uri(f"{scheme}://{authority}/")[0], "/"
    import fsspec  # a third of a second that the others need not wait for

    try:
        store = fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise OSError(f"no library reads {scheme}:// ({error})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(store)), f"{scheme}://" if scheme in ("http", "https") else ""


def _connect_s3(bucket: str) -> fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    # one attempt each: ``retry`` makes the pauses between attempts
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        request_timeout=REQUEST_SECONDS,
        connect_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
