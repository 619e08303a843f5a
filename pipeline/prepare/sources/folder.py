"""The source ``folder``: videos as ``DIR/<class>/<video files>`` or ``DIR/<split>/<class>/<video files>``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import is_video_name, list_files_below, list_subfolders, match_names, resolve_root
from pipeline.prepare.sources.listing import Listing, validate_listing
from pipeline.prepare.sources.synonyms import (
    COMPANIONS,
    SPLIT_WORDS,
    find_splits,
    parse_folder_split,
    parse_split,
    remove_split_words,
)

NON_VIDEO_SUFFIXES = {
    ".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".pdf", ".html", ".doc", ".docx", ".xls", ".xlsx", ".log",
    ".py", ".ipynb", ".m", ".mat", ".npy", ".npz", ".pkl", ".h5", ".zip", ".rar", ".tar", ".gz", ".7z", ".jpg", ".jpeg", ".png",
    ".bmp", ".webp",
}  # fmt: skip
"""Suffixes of files that are surely not videos; whether other files are videos is for the probe to find out."""


@dataclass(frozen=True)
class FolderLayout:
    """What the user says about the folders below DIR; each field has a command-line option of the same name."""

    splits: str | None = None
    """``train=FOLDER,test=FOLDER``: only these are read; ``none``: all folders are classes; None: guessed from their names."""
    skip: tuple[str, ...] = ()
    """Names of folders to leave out, wherever a class or split may be."""


@dataclass(frozen=True)
class ClassFolder:
    """A folder with the videos of one class, or with unlabeled videos."""

    path: str
    """Path relative to the root."""
    class_name: str | None
    """Name of the class; None where the videos are unlabeled."""
    split: Split | None
    """The split that the folder above it names; None where there is none."""


def list_folder(folder: str | Path, layout: FolderLayout | None = None) -> Listing:
    """Lists the files of class folders, with or without folders of splits above them. Raises UserError for other layouts."""
    root = resolve_root(folder)
    rows: list[tuple[str, str | None, Split | None]] = []
    empty: list[str] = []
    folders, notes = find_class_folders(root, "<video files>", is_video_name, layout or FolderLayout())
    for class_folder in folders:
        files = list_files_below(root, class_folder.path)
        rows += [(uri, class_folder.class_name, class_folder.split) for uri in files]
        if all(PurePosixPath(uri).suffix.lower() in NON_VIDEO_SUFFIXES for uri in files):
            empty.append(f"{root}/{class_folder.path}")
    if empty:
        remedy = "add videos, remove them, or leave them out with --skip FOLDER"
        raise UserError(f"class folders without a video; {remedy}:", list_first(empty))
    uris, labels, splits = zip(*rows, strict=True)
    known_splits = None if None in splits else splits
    return validate_listing(Listing(root, "folder", uris, labels, (None,) * len(uris), known_splits, notes=notes))


def find_class_folders(
    root: str, content: str, is_data: Callable[[str], bool], layout: FolderLayout
) -> tuple[list[ClassFolder], tuple[str, ...]]:
    """Finds the class folders below the root; returns them, and notes on what lies beside them and is left out.

    ``content`` is what a class folder should hold, for messages; ``is_data`` recognizes a file of such content by its name.
    Raises UserError where a folder may be a class or a split, and the user has not said which.
    """
    notes: list[str] = []

    def list_candidates(folder: str) -> list[str]:
        """The folders that may be classes or splits; adds notes on everything else."""
        names, left_out = _separate_companions(root, folder, is_data, layout.skip)
        loose = [name for name in match_names(f"{root}/{folder}".rstrip("/"), "*") if is_data(name) and name not in names]
        where = f"{root}/{folder}".rstrip("/")
        notes.extend([f"{where}: without a video and left out: {', '.join(left_out)}"] if left_out else [])
        beside = f"{len(loose)} videos beside the folders are left out, the first: {loose[0]}" if loose and names else ""
        notes.extend([f"{where}: {beside}"] if beside else [])
        return names

    tops = list_candidates("")
    if not tops:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/{content}")
    splits = _find_split_folders(root, tops, layout.splits)
    if splits is None:
        return [ClassFolder(name, name, None) for name in tops], tuple(notes)
    if unnamed := [top for top in tops if top not in splits]:
        notes.append(f"{root}: not named by --splits and left out: {', '.join(unnamed)}")
    folders: list[ClassFolder] = []
    for top, split in splits.items():
        names = list_candidates(top)
        if not names and split == "unlabeled":
            folders.append(ClassFolder(top, None, split))
        elif not names:
            raise UserError(f"{root}/{top} holds no class folders; expected {root}/{top}/<class>/{content}")
        folders += [ClassFolder(f"{top}/{name}", name, split) for name in names]
    return folders, tuple(notes)


def _separate_companions(
    root: str, folder: str, is_data: Callable[[str], bool], skip: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The folders in a folder, and those among them that data sets put beside their videos and that hold no video."""
    names = [name for name in list_subfolders(f"{root}/{folder}".rstrip("/")) if name not in skip]
    companions = [
        name for name in names
        if name.lower() in COMPANIONS
        and not any(is_data(PurePosixPath(uri).name) for uri in list_files_below(root, f"{folder}/{name}".lstrip("/")))
    ]  # fmt: skip
    return [name for name in names if name not in companions], companions


def _find_split_folders(root: str, tops: Sequence[str], given: str | None) -> dict[str, Split] | None:
    """The splits by folder, or None where all folders are classes."""
    if given is not None:
        return None if given.lower() == "none" else _parse_splits(root, tops, given)
    by_folder = {top: split for top in tops if (split := parse_folder_split(top))}
    only_splits_differ = len(tops) > 1 and len({remove_split_words(top) for top in tops}) == 1
    if not by_folder and only_splits_differ and all(len(find_splits(top)) == 1 for top in tops):
        by_folder = {top: next(iter(find_splits(top))) for top in tops}  # kinetics_train, kinetics_val
    if not by_folder:
        return None
    example = ",".join(f"{split}={top}" for top, split in by_folder.items())
    remedy = f"say --splits {example} for the folders of the splits, or --splits none if all are classes"
    names = ", ".join(by_folder)
    if len(by_folder) < len(tops):
        others = [top for top in tops if top not in by_folder]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(f"{root}: {names} may be a split or a class, for beside it lie {', '.join(others[:3])}{more}; {remedy}")
    if "train" not in by_folder.values():
        raise UserError(f"{root}: {names} are names of splits, and none of them is train; {remedy}")
    if len(set(by_folder.values())) < len(by_folder):
        first = {split: top for top, split in reversed(by_folder.items())}.values()  # of each split
        fewer = ",".join(f"{split}={top}" for top, split in by_folder.items() if top in first)
        raise UserError(
            f"{root}: of {names} several are the same split, which may hold the same videos twice; say which to read, "
            f"--splits {fewer}, or, if no video is there twice, all: --splits {example}"
        )
    return by_folder


def _parse_splits(root: str, tops: Sequence[str], given: str) -> dict[str, Split]:
    pairs = [word.partition("=")[::2] for word in given.split(",")]
    known = ", ".join(SPLIT_WORDS)
    unknown = [(split, top) for split, top in pairs if not parse_split(split)]
    mistakes = [f"{split}={top}: there is no split {split}; known are {known}" for split, top in unknown]
    named = [top for split, top in pairs if parse_split(split)]
    mistakes += [f"there is no folder {top} in {root}; there are {', '.join(tops)}" for top in named if top not in tops]
    if mistakes:
        raise UserError("--splits must be none, or name folders as train=FOLDER,test=FOLDER:", list_first(mistakes))
    return {top: split for name, top in pairs if (split := parse_split(name))}
