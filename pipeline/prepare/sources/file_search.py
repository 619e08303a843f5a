"""Reading list files and looking for videos: one listing of a folder instead of a question for every file."""

from __future__ import annotations

import fnmatch
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.errors import UserError, first_few
from pipeline.files import storage


def open_root(folder: str | Path, option: str = "folder") -> str:
    """Absolute path of a readable folder; URIs pass. Raises UserError."""
    if storage.is_remote(str(folder)):
        return str(folder).rstrip("/")
    root = Path(storage.local_path(str(folder))).expanduser().absolute()
    if not root.exists():
        raise UserError(f"{option} not found: {root}")
    if not root.is_dir():
        raise UserError(f"{option}: {root} is not a folder")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise UserError(f"{option} {root} cannot be read: {error.strerror}") from None
    return str(root)


def read_text(file: str | Path) -> str:
    """A UTF-8 text on disk or in an object store. Raises UserError."""
    try:
        return storage.read_bytes(str(file)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"list not found: {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {file} cannot be read as UTF-8 text: {error}") from None


def read_lines(file: str | Path) -> list[tuple[int, str]]:
    """Lines of a UTF-8 text that are not blank, with their numbers from 1. Raises UserError."""
    text = read_text(file)
    # not splitlines(): it also cuts at characters that may stand in a name
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def find_folder(given: str | None, root: str, names: Sequence[str], sign: str) -> str:
    """The folder of list files: the given one, or the first of ``names`` in the root or beside it that holds a ``sign``."""
    if given is not None:
        return open_root(given, "--lists")
    places = [os.path.normpath(f"{base}/{name}") for name in names for base in (root, os.path.dirname(root))]
    found = None if storage.is_remote(root) else next((place for place in places if names_like(place, sign)), None)
    if found is None:
        raise UserError(f"no {sign} in {root} or in {names[0]} there or beside it; say with --lists DIR where the lists are")
    return found


def names_like(folder: str, sign: str) -> list[str]:
    """Names in a folder that fit a pattern with ``*``, sorted; none where there is no such folder. Raises UserError."""
    try:
        return fnmatch.filter(storage.list_names(folder), sign)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error}") from None


VIDEO_SUFFIXES = {
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv", ".mts", ".m2ts",
    ".vob", ".asf",
}  # fmt: skip


def is_video_name(name: str) -> bool:
    """Whether a file's name ends as those of videos do."""
    return video_stem(name) != name.rpartition("/")[2]


def video_stem(name: str) -> str:
    """A file's name without the suffix of a video; any other dot belongs to the name: ``jump.v0`` is not ``jump``."""
    name = name.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in VIDEO_SUFFIXES else name


def find_files(root: str, uris: Sequence[str], ignore_case: bool = False) -> list[str | None]:
    """Where each listed file is, None where it is missing; another video suffix will do where the listed one is absent.

    So will another Unicode form of the same letters: macOS writes an e and an accent where other systems have one letter.
    ``ignore_case`` is for lists whose spelling is known to differ from the files'.
    URIs, and everything below a root that is one, are taken as listed, without the ``./`` and ``//`` that object stores would
    take for parts of a name: whether they are there is found when they are opened.
    Raises UserError where a listed name fits several files.
    """
    folders: dict[str, tuple[str, _Folder]] = {}
    found: list[str | None] = []
    unclear: list[str] = []
    for uri in map(plain_path, uris):
        if "://" in uri or "://" in root:
            found.append(uri)
            continue
        folder, _, name = uri.rpartition("/")
        if folder not in folders:
            above = existing_folder(root, folder) if folder or not uri.startswith("/") else "/"
            folders[folder] = above, _Folder(os.path.join(root, above))
        above, files = folders[folder]
        names = files.files_of(name, ignore_case)
        unclear += [f"{uri}: {' and '.join(names)}"] if len(names) > 1 else []
        here = names[0] if names else None
        found.append(None if here is None else f"{above.rstrip('/')}/{here}" if above else here)
    refuse_unclear(unclear)
    return found


def existing_folder(root: str, folder: str) -> str:
    """A folder below the root, or an absolute one, as it is on the disk where only its Unicode form differs."""
    if folder.isascii() or os.path.isdir(os.path.join(root, folder)):
        return folder
    here = "/" if folder.startswith("/") else ""
    for part in folder.strip("/").split("/"):
        try:
            names = os.listdir(os.path.join(root, here) or ".")
        except OSError:
            return folder
        fits = [part] if part in names else [name for name in names if composed(name) == composed(part)]
        if len(fits) != 1:
            return folder
        here = os.path.join(here, fits[0])
    return here


def existing_file(path: str) -> str:
    """A local path as it is on the disk, where only its Unicode form differs from that of one file there."""
    if path.isascii() or "://" in path or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    folder = existing_folder("", folder)
    try:
        fits = [other for other in os.listdir(folder or ".") if composed(other) == composed(name)]
    except OSError:
        return path
    return os.path.join(folder, fits[0]) if len(fits) == 1 else path


def composed(name: str) -> str:
    """A name in the Unicode form (NFC) in which names that look the same are the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain_path(path: str) -> str:
    """A path or URI without ``./`` and doubled slashes: ``./b//a.mp4`` is ``b/a.mp4``."""
    if "//" not in path and "./" not in path:
        return path
    scheme, found, rest = path.partition("://") if "://" in path else ("", "", path)
    start = "/" if rest.startswith("/") else ""
    return f"{scheme}{found}{start}" + "/".join(part for part in rest.split("/") if part not in ("", "."))


def refuse_unclear(unclear: Sequence[str]) -> None:
    """Raises UserError naming the files where one listed video may be any of several."""
    if unclear:
        remedy = "remove or rename all but one, or list it with its suffix"
        raise UserError(f"listed videos that fit several files; {remedy}:", first_few(unclear))


def one_of_each(paths: Sequence[str]) -> list[str]:
    """The first of the paths that lead to one file, which hard and symbolic links do."""
    return list({_number(path): path for path in reversed(paths)}.values())[::-1]


def _number(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:  # also a name in an object store
        return path
    return status.st_dev, status.st_ino


class _Folder:
    """Names in a folder, by which listed videos are found; none where there is no such folder. Raises UserError."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.names = {name for name in os.listdir(path) if not name.startswith(".")}
        except (FileNotFoundError, NotADirectoryError):
            self.names = set()
        except OSError as error:
            raise UserError(f"folder {path} cannot be read: {error.strerror}") from None

    def files_of(self, name: str, ignore_case: bool) -> list[str]:
        """The file of that very name; else the videos of its stem, which may be several, or none."""
        stem = video_stem(name)
        if name in self.names and (stem != name or stem not in self._by_stem or os.path.isfile(os.path.join(self.path, name))):
            return [name]
        if not name.isascii() and (names := self._by_composed_name.get(composed(name))):
            return names
        stem = composed(stem)
        names = self._by_stem.get(stem) or (self._by_small_stem.get(stem.casefold()) if ignore_case else None) or []
        return names if len(names) < 2 else [os.path.basename(p) for p in one_of_each([f"{self.path}/{n}" for n in names])]

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((composed(video_stem(name)), name) for name in sorted(self.names) if is_video_name(name))

    @functools.cached_property
    def _by_composed_name(self) -> dict[str, list[str]]:
        return _grouped((composed(name), name) for name in sorted(self.names))

    @functools.cached_property
    def _by_small_stem(self) -> dict[str, list[str]]:
        return _grouped((stem.casefold(), name) for stem, names in self._by_stem.items() for name in names)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def files_below(root: str, folder: str = "") -> list[str]:
    """Files below ``root/folder`` at any depth, relative to the root, sorted by folder; hidden ones are left out."""
    if storage.is_remote(root):
        names = _remote(storage.list_files_below, f"{root}/{folder}".rstrip("/"))
        return [f"{folder}/{name}" if folder else name for name in names if not f"/{name}".count("/.")]
    found = []
    for path, folders, names in os.walk(os.path.join(root, folder), followlinks=True, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(path).relative_to(root).as_posix()
        prefix = "" if base == "." else f"{base}/"
        found += [prefix + name for name in sorted(names) if not name.startswith(".")]
    return found


def subfolders(folder: str) -> list[str]:
    """Names of folders, sorted; hidden ones are left out."""
    if storage.is_remote(folder):
        return [name for name in _remote(storage.list_folders, folder) if not name.startswith(".")]
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _remote(ask: Callable[[str], list[str]], folder: str) -> list[str]:
    try:
        return ask(folder)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error}") from None


def _unreadable(error: OSError) -> None:
    raise UserError(f"folder {error.filename} cannot be read: {error.strerror}")
