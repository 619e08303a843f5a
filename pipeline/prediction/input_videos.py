"""Which videos the words of a command name: files, folders, patterns, lists, manifests, and URIs of all of these."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, list_first
from pipeline.files import storage
from pipeline.manifest.memory_mapped import open_manifest
from pipeline.manifest.schema import Manifest, resolve_uri
from pipeline.prepare.sources.file_search import find_existing_file, is_video_name, list_files_below
from pipeline.prepare.sources.video_list import list_paths

KEY = re.compile(r"[a-z_]+(?:\.[a-z_]+)+(?==)")
"""Matches the beginning of a word that overrides a key of the configuration."""
LISTS = (".txt", ".csv", ".tsv")
WILDCARDS = "*?["


@dataclass(frozen=True, slots=True)
class InputVideo:
    """One video to classify."""

    name: str
    """How the output names it: as it was given, or as its folder, list or manifest lists it."""
    location: str
    """Absolute path or URI."""
    start: float | None = None
    end: float | None = None
    """Seconds of the file at which the video begins and ends; None: at the file's."""
    manifest: Manifest | None = None
    """The manifest that lists it and knows what is in its file."""
    row: int = -1
    """Its row there."""


def list_inputs(words: Sequence[str], root: str | None = None) -> list[InputVideo]:
    """Lists the videos that the words name, in their order.

    ``root`` is the folder or URI that relative paths in lists and manifests start from; by default a list's own folder, and
    what a manifest says. Raises UserError for words that name nothing, and for videos that are named twice.
    """
    inputs = [video for word in check_words(words) for video in _expand(word, root)]
    seen: set[tuple[str, float | None, float | None]] = set()
    twice = []
    for video in inputs:
        key = video.location, video.start, video.end
        twice += [video.name] if key in seen else []
        seen.add(key)
    if twice:
        raise UserError("videos are named twice:", list_first(sorted(set(twice))))
    return inputs


def check_words(words: Sequence[str]) -> list[str]:
    """Returns the words, names of files as they are on the disk. Raises UserError for words that cannot name a video."""
    keys = [word for word in words if KEY.match(word) and not os.path.lexists(word)]
    if keys:
        raise UserError("no such files, and only evaluation.* and scale.* can be overridden here:", keys)
    if wrong := [repr(word) for word in words if not _is_utf8(word)]:
        raise UserError("file names that are not UTF-8 cannot be stored; rename:", list_first(wrong))
    if not words:
        raise UserError("name at least one video file")
    files = [find_existing_file(word) for word in words]
    if renamed := [file for file, word in zip(files, words, strict=True) if file != word]:
        print(f"note: {len(renamed)} names have another Unicode form on the disk, the first: {renamed[0]}", file=sys.stderr)
    return files


def compute_digest(inputs: Iterable[InputVideo]) -> str:
    """Computes a hash of which videos these are, in their order; the files themselves are not read."""
    digest = hashlib.sha256()
    for video in inputs:
        fingerprint = video.manifest.fingerprint if video.manifest else ""
        digest.update(repr((video.name, video.location, video.start, video.end, fingerprint)).encode())
    return digest.hexdigest()


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expand(word: str, root: str | None) -> list[InputVideo]:
    """Lists the videos that one word names."""
    suffix = os.path.splitext(word)[1].lower()
    if suffix == ".parquet":
        return _list_manifest(open_manifest(word, root))
    if suffix in LISTS:
        folder = root or (word.rpartition("/")[0] if "://" in word else os.path.dirname(os.path.abspath(word)))
        return [InputVideo(path, resolve_uri(base, path), start, end)
                for base, path, start, end in list_paths(word, folder)]  # fmt: skip
    if any(mark in word for mark in WILDCARDS) and not os.path.lexists(word):
        return [video for name in _match_pattern(word) for video in _expand_file(name)]
    return _expand_file(word)


def _expand_file(word: str) -> list[InputVideo]:
    """Lists the videos of a folder, or the one that is a file; a file that does not exist is found out when it is probed."""
    if not _is_folder(word):
        return [InputVideo(word, word if "://" in word else os.path.abspath(word))]
    folder = word.rstrip("/") if len(word) > 1 else word
    names = [name for name in list_files_below(folder) if is_video_name(name)]
    if not names:
        raise UserError(
            f"the folder {word} holds no video files (a folder of images is not a video here: make a manifest of it)"
        )
    return [InputVideo(f"{folder}/{name}", resolve_uri(_to_root(folder), name)) for name in names]


def _to_root(folder: str) -> str:
    return folder if "://" in folder else os.path.abspath(folder)


def _is_folder(word: str) -> bool:
    if not storage.is_remote(word):
        return Path(storage.to_local_path(word)).is_dir()
    if is_video_name(word):
        return False
    try:
        storage.get_file_info(word.rstrip("/"))
        return False
    except IsADirectoryError:
        return True
    except OSError:
        return word.endswith("/")


def _match_pattern(word: str) -> list[str]:
    """Lists what a pattern with ``*``, ``?``, ``[...]`` or ``**`` matches, sorted. Raises UserError if that is nothing."""
    if storage.is_remote(word):
        first = min(word.find(mark) for mark in WILDCARDS if mark in word)
        folder = word[:first].rpartition("/")[0]
        names = [f"{folder}/{name}" for name in list_files_below(folder)]
        same_depth = [name for name in names if "**" in word or name.count("/") == word.count("/")]
        matches = fnmatch.filter(same_depth, word)
    else:
        matches = sorted(glob.glob(word, recursive=True))
    if not matches:
        raise UserError(f"no file matches {word}")
    return matches


def _list_manifest(manifest: Manifest) -> list[InputVideo]:
    columns = manifest.table.select(["id", "uri", "start", "end"]).to_pydict()
    rows = zip(columns["id"], columns["uri"], columns["start"], columns["end"], strict=True)
    return [
        InputVideo(name, resolve_uri(manifest.root, uri), start, end, manifest, row)
        for row, (name, uri, start, end) in enumerate(rows)
    ]
