"""Reading list files and finding listed videos on disk, with one listing per folder instead of one look-up per file."""

from __future__ import annotations

import fnmatch
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.errors import UserError, list_first
from pipeline.files import storage


def resolve_root(folder: str | Path, option: str = "folder") -> str:
    """Returns the absolute path of a folder, or a URI as it is. Raises UserError if the folder cannot be read."""
    if storage.is_remote(str(folder)):
        return str(folder).rstrip("/")
    root = Path(storage.to_local_path(str(folder))).expanduser().absolute()
    if not root.exists():
        raise UserError(f"{option} not found: {root}")
    if not root.is_dir():
        raise UserError(f"{option}: {root} is a file; name the folder that it is in, or one above")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise UserError(f"{option} {root} cannot be read: {error.strerror}") from None
    return str(root)


def read_text(file: str | Path) -> str:
    """Reads a UTF-8 text from disk or from an object store. Raises UserError if it cannot be read."""
    try:
        return storage.read_bytes(str(file)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"list not found: {file}") from None
    except IsADirectoryError:
        raise UserError(f"list {file} is a folder; name a file with a line for each video, or take the source folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {file} cannot be read as UTF-8 text: {error}") from None


def read_lines(file: str | Path) -> list[tuple[int, str]]:
    """Reads the lines of a UTF-8 text that are not blank, with their numbers from 1. Raises UserError as ``read_text`` does."""
    text = read_text(file)
    # not splitlines(): it also cuts at characters that may stand in a name
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def find_lists_folder(given: str | None, root: str, names: Sequence[str], pattern: str) -> str:
    """Finds the folder of the list files: the ``given`` one, or the first of ``names`` with a file that fits ``pattern``.

    ``names`` are looked for in the root and beside it. Raises UserError if there is no such folder.
    """
    if given is not None:
        return resolve_root(given, "--lists")
    candidates = [os.path.normpath(f"{base}/{name}") for name in names for base in (root, os.path.dirname(root))]
    folder = None if storage.is_remote(root) else next((name for name in candidates if match_names(name, pattern)), None)
    if folder is None:
        raise UserError(f"no {pattern} in {root} or in {names[0]} there or beside it; say with --lists DIR where the lists are")
    return folder


def match_names(folder: str, pattern: str) -> list[str]:
    """Returns the names in a folder that fit a pattern with ``*``, sorted; none if there is no such folder.

    Raises UserError if the folder cannot be read.
    """
    try:
        return fnmatch.filter(storage.list_names(folder), pattern)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error}") from None


VIDEO_SUFFIXES = {
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv", ".mts", ".m2ts",
    ".vob", ".asf",
}  # fmt: skip


def is_video_name(name: str) -> bool:
    """Whether a file's name has the suffix of a video."""
    return remove_video_suffix(name) != name.rpartition("/")[2]


def remove_video_suffix(name: str) -> str:
    """Returns a path's file name without a video suffix. Any other suffix stays: ``jump.v0`` does not become ``jump``."""
    name = name.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in VIDEO_SUFFIXES else name


def find_files(root: str, uris: Sequence[str], ignore_case: bool = False) -> list[str | None]:
    """Finds each listed file and returns its uri, or None where it is missing.

    Where the listed file is absent, one with another video suffix, or with another Unicode form of the same letters, takes its
    place: macOS writes an e and an accent where other systems have one letter. ``ignore_case`` is for lists that are known to
    spell names in another case than the files.
    URIs, and everything below a root that is one, are returned as listed, but without ``./`` and ``//``, which object stores
    would take for parts of a name. Whether such files exist shows only when they are opened.
    Raises UserError where a listed name fits several files.
    """
    folders: dict[str, tuple[str, _Folder]] = {}
    files: list[str | None] = []
    ambiguous: list[str] = []
    for uri in map(simplify_path, uris):
        if "://" in uri or "://" in root:
            files.append(uri)
            continue
        folder, _, name = uri.rpartition("/")
        if folder not in folders:
            existing = find_existing_folder(root, folder) if folder or not uri.startswith("/") else "/"
            folders[folder] = existing, _Folder(os.path.join(root, existing))
        existing, content = folders[folder]
        names = content.find(name, ignore_case)
        ambiguous += [f"{uri}: {' and '.join(names)}"] if len(names) > 1 else []
        if not names:
            files.append(None)
        else:
            files.append(f"{existing.rstrip('/')}/{names[0]}" if existing else names[0])
    raise_for_ambiguous(ambiguous)
    return files


def find_existing_folder(root: str, folder: str) -> str:
    """Returns a folder below the root, or an absolute one, as it is spelled on disk if only its Unicode form differs."""
    if folder.isascii() or os.path.isdir(os.path.join(root, folder)):
        return folder
    existing = "/" if folder.startswith("/") else ""
    for part in folder.strip("/").split("/"):
        try:
            names = os.listdir(os.path.join(root, existing) or ".")
        except OSError:
            return folder
        fits = [part] if part in names else [name for name in names if to_nfc(name) == to_nfc(part)]
        if len(fits) != 1:
            return folder
        existing = os.path.join(existing, fits[0])
    return existing


def find_existing_file(path: str) -> str:
    """Returns a local path as it is spelled on disk, if only its Unicode form differs from that of one file there."""
    if path.isascii() or "://" in path or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    folder = find_existing_folder("", folder)
    try:
        fits = [existing for existing in os.listdir(folder or ".") if to_nfc(existing) == to_nfc(name)]
    except OSError:
        return path
    return os.path.join(folder, fits[0]) if len(fits) == 1 else path


def to_nfc(name: str) -> str:
    """Converts a name to the Unicode form NFC, in which names that look the same are the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def simplify_path(path: str) -> str:
    """Removes ``./`` and doubled slashes from a path or URI: ``./b//a.mp4`` becomes ``b/a.mp4``."""
    if "//" not in path and "./" not in path:
        return path
    scheme, separator, rest = path.partition("://") if "://" in path else ("", "", path)
    start = "/" if rest.startswith("/") else ""
    return f"{scheme}{separator}{start}" + "/".join(part for part in rest.split("/") if part not in ("", "."))


def raise_for_ambiguous(ambiguous: Sequence[str]) -> None:
    """Raises UserError if there are listed videos that fit several files; each text names one and its files."""
    if ambiguous:
        remedy = "remove or rename all but one, or list it with its suffix"
        raise UserError(f"listed videos that fit several files; {remedy}:", list_first(ambiguous))


def drop_repeated_files(paths: Sequence[str]) -> list[str]:
    """Returns the paths without those that lead to the same file as an earlier one, as hard and symbolic links do."""
    return list({_identify(path): path for path in reversed(paths)}.values())[::-1]


def _identify(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:  # also a name in an object store
        return path
    return status.st_dev, status.st_ino


class _Folder:
    """The names in a folder, in which listed videos are found; none where there is no such folder."""

    def __init__(self, path: str) -> None:
        """Raises UserError if the folder cannot be read."""
        self.path = path
        try:
            self.names = {name for name in os.listdir(path) if not name.startswith(".")}
        except (FileNotFoundError, NotADirectoryError):
            self.names = set()
        except OSError as error:
            raise UserError(f"folder {path} cannot be read: {error.strerror}") from None

    def find(self, name: str, ignore_case: bool) -> list[str]:
        """The file of that very name, or else the videos of that name with another suffix, which may be several."""
        stem = remove_video_suffix(name)
        if name in self.names and (stem != name or stem not in self._by_stem or os.path.isfile(os.path.join(self.path, name))):
            return [name]
        if not name.isascii() and (names := self._by_nfc_name.get(to_nfc(name))):
            return names
        stem = to_nfc(stem)
        names = self._by_stem.get(stem) or (self._by_casefolded_stem.get(stem.casefold()) if ignore_case else None) or []
        if len(names) < 2:
            return names
        return [os.path.basename(path) for path in drop_repeated_files([f"{self.path}/{name}" for name in names])]

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _group_by_key((to_nfc(remove_video_suffix(name)), name) for name in sorted(self.names) if is_video_name(name))

    @functools.cached_property
    def _by_nfc_name(self) -> dict[str, list[str]]:
        return _group_by_key((to_nfc(name), name) for name in sorted(self.names))

    @functools.cached_property
    def _by_casefolded_stem(self) -> dict[str, list[str]]:
        return _group_by_key((stem.casefold(), name) for stem, names in self._by_stem.items() for name in names)


def _group_by_key(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def list_files_below(root: str, folder: str = "") -> list[str]:
    """Lists the files below ``root/folder`` at any depth, relative to the root and sorted by folder, without hidden ones.

    Raises UserError if a folder cannot be read.
    """
    if storage.is_remote(root):
        names = _list_remote(storage.list_remote_files, f"{root}/{folder}".rstrip("/"))
        return [f"{folder}/{name}" if folder else name for name in names if not f"/{name}".count("/.")]
    files = []
    for path, folders, names in os.walk(os.path.join(root, folder), followlinks=True, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(path).relative_to(root).as_posix()
        prefix = "" if base == "." else f"{base}/"
        files += [prefix + name for name in sorted(names) if not name.startswith(".")]
    return files


def list_subfolders(folder: str) -> list[str]:
    """Lists the names of the folders in a folder, sorted, without hidden ones."""
    if storage.is_remote(folder):
        return [name for name in _list_remote(storage.list_folders, folder) if not name.startswith(".")]
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list_remote(list_content: Callable[[str], list[str]], folder: str) -> list[str]:
    try:
        return list_content(folder)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error}") from None


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"folder {error.filename} cannot be read: {error.strerror}")
