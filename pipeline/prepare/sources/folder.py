"""``folder``: ``DIR/<class>/<video files>``, or ``DIR/<split>/<class>/<video files>``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import files_below, is_video_name, names_like, open_root, subfolders
from pipeline.prepare.sources.listing import Listing, checked
from pipeline.prepare.sources.synonyms import COMPANIONS, SPLITS, rest_of, split_of, split_of_folder, splits_in

NO_VIDEO = {
    ".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".pdf", ".html", ".doc", ".docx", ".xls", ".xlsx", ".log",
    ".py", ".ipynb", ".m", ".mat", ".npy", ".npz", ".pkl", ".h5", ".zip", ".rar", ".tar", ".gz", ".7z", ".jpg", ".jpeg", ".png",
    ".bmp", ".webp",
}  # fmt: skip
"""Files that are surely none; of other suffixes the probe finds out."""


@dataclass(frozen=True)
class Layout:
    """What the user says of the folders below DIR; each field has a command-line option of its name."""

    splits: str | None = None
    """``train=FOLDER,test=FOLDER``: only these are read; ``none``: all are classes. None: found out by their names."""
    skip: tuple[str, ...] = ()
    """Folders to leave out, at any place where a class or split may be."""


@dataclass(frozen=True)
class ClassFolder:
    """A folder of videos."""

    path: str
    """Below the root."""
    name: str | None
    """Class; None where its videos are unlabeled."""
    split: Split | None


def list_folder(folder: str | Path, layout: Layout | None = None) -> Listing:
    """Files of class folders, with or without folders of splits above. Raises UserError for a layout that is neither."""
    root = open_root(folder)
    rows: list[tuple[str, str | None, Split | None]] = []
    empty: list[str] = []
    folders, notes = class_folders(root, "<video files>", is_video_name, layout or Layout())
    for one in folders:
        found = files_below(root, one.path)
        rows += [(uri, one.name, one.split) for uri in found]
        empty += [] if any(PurePosixPath(uri).suffix.lower() not in NO_VIDEO for uri in found) else [f"{root}/{one.path}"]
    if empty:
        remedy = "add videos, remove them, or leave them out with --skip FOLDER"
        raise UserError(f"class folders without a video; {remedy}:", first_few(empty))
    uris, labels, splits = zip(*rows, strict=True)
    return checked(Listing(root, "folder", uris, labels, (None,) * len(uris), None if None in splits else splits, notes=notes))


def class_folders(
    root: str, content: str, is_data: Callable[[str], bool], layout: Layout
) -> tuple[list[ClassFolder], tuple[str, ...]]:
    """The class folders below the root, and notes on what lies beside them and is left out.

    ``content`` is what a class folder should hold, for messages; ``is_data`` tells a file of it by its name. Raises UserError
    where a folder may be a class or a split, and the user has not said which.
    """
    notes: list[str] = []

    def below(folder: str) -> list[str]:
        """Folders that may be classes or splits, the notes on all else added."""
        names, lost = _without_companions(root, folder, is_data, layout.skip)
        loose = [name for name in names_like(f"{root}/{folder}".rstrip("/"), "*") if is_data(name) and name not in names]
        where = f"{root}/{folder}".rstrip("/")
        notes.extend([f"{where}: without a video and left out: {', '.join(lost)}"] if lost else [])
        beside = f"{len(loose)} videos beside the folders are left out, the first: {loose[0]}" if loose and names else ""
        notes.extend([f"{where}: {beside}"] if beside else [])
        return names

    tops = below("")
    if not tops:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/{content}")
    splits = _splits(root, tops, layout.splits)
    if splits is None:
        return [ClassFolder(name, name, None) for name in tops], tuple(notes)
    if lost := [top for top in tops if top not in splits]:
        notes.append(f"{root}: not named by --splits and left out: {', '.join(lost)}")
    found: list[ClassFolder] = []
    for top, split in splits.items():
        names = below(top)
        if not names and split == "unlabeled":
            found.append(ClassFolder(top, None, split))
        elif not names:
            raise UserError(f"{root}/{top} holds no class folders; expected {root}/{top}/<class>/{content}")
        found += [ClassFolder(f"{top}/{name}", name, split) for name in names]
    return found, tuple(notes)


def _without_companions(
    root: str, folder: str, is_data: Callable[[str], bool], skip: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Folders in a folder, and the names of those that data sets put beside videos and that hold none."""
    names = [name for name in subfolders(f"{root}/{folder}".rstrip("/")) if name not in skip]
    lost = [
        name for name in names
        if name.lower() in COMPANIONS
        and not any(is_data(PurePosixPath(uri).name) for uri in files_below(root, f"{folder}/{name}".lstrip("/")))
    ]  # fmt: skip
    return [name for name in names if name not in lost], lost


def _splits(root: str, tops: Sequence[str], given: str | None) -> dict[str, Split] | None:
    """Folder -> split, or None where all are classes."""
    if given is not None:
        return None if given.lower() == "none" else _parse_splits(root, tops, given)
    found = {top: split for top in tops if (split := split_of_folder(top))}
    if not found and len(tops) > 1 and len({rest_of(top) for top in tops}) == 1 and all(len(splits_in(t)) == 1 for t in tops):
        found = {top: next(iter(splits_in(top))) for top in tops}  # kinetics_train, kinetics_val
    if not found:
        return None
    example = ",".join(f"{split}={top}" for top, split in found.items())
    remedy = f"say --splits {example} for the folders of the splits, or --splits none if all are classes"
    names = ", ".join(found)
    if len(found) < len(tops):
        others = [top for top in tops if top not in found]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(f"{root}: {names} may be a split or a class, for beside it lie {', '.join(others[:3])}{more}; {remedy}")
    if "train" not in found.values():
        raise UserError(f"{root}: {names} are names of splits, and none of them is train; {remedy}")
    if len(set(found.values())) < len(found):
        first = {split: top for top, split in reversed(found.items())}.values()  # of each split
        fewer = ",".join(f"{split}={top}" for top, split in found.items() if top in first)
        raise UserError(
            f"{root}: of {names} several are the same split, which may hold the same videos twice; say which to read, "
            f"--splits {fewer}, or, if no video is there twice, all: --splits {example}"
        )
    return found


def _parse_splits(root: str, tops: Sequence[str], given: str) -> dict[str, Split]:
    pairs = [word.partition("=")[::2] for word in given.split(",")]
    known = ", ".join(SPLITS)
    wrong = [f"{split}={top}: there is no split {split}; known are {known}" for split, top in pairs if not split_of(split)]
    there = [pair for pair in pairs if split_of(pair[0])]
    wrong += [f"there is no folder {top} in {root}; there are {', '.join(tops)}" for _, top in there if top not in tops]
    if wrong:
        raise UserError("--splits must be none, or name folders as train=FOLDER,test=FOLDER:", first_few(wrong))
    return {top: said for split, top in pairs if (said := split_of(split))}
