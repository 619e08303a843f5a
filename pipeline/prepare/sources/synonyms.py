"""Synonyms in the folders and lists of the field's data sets: words for splits, for columns, and for an unknown class.

A word that is none of these, but might be meant as one, is refused. ``docs/manifest.md`` lists the synonyms for users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.manifest.schema import Split

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trainlist", "labeled", "labelled"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "testlist"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "vallist", "eval", "evaluation"), "val"),
    **dict.fromkeys(("unlabel", "unlabeled", "unlabelled"), "unlabeled"),
}  # fmt: skip
FILLERS = {
    "video", "videos", "clip", "clips", "frame", "frames", "rawframe", "rawframes", "image", "images", "img", "imgs", "rgb",
    "data", "dataset", "set", "split", "splits", "list", "part",
}  # fmt: skip
"""Words that may stand beside a split's word in the name of its folder, as in ``videos_train``."""
COMPANIONS = {
    "annotation", "annotations", "anno", "labels", "list", "lists", "split", "splits", "meta", "metadata", "docs", "doc",
    "code", "scripts", "tools", "ucftraintestlist", "testtrainmulti_7030_splits", "__macosx", "@eadir", "lost+found",
    "$recycle.bin", "__pycache__",
}  # fmt: skip
"""Folders that data sets and operating systems put beside the videos; they are left out unless they hold videos."""

COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path",),
        ("file_path", "filepath", "video_path", "videopath", "clip_path", "rel_path", "relative_path", "uri"),
        ("file", "file_name", "filename", "video", "video_name", "videoname", "video_file", "clip", "clip_name"),
        ("id", "video_id", "youtube_id", "clip_id", "name"),
    ),
    "label": (
        ("label",),
        ("class", "class_name", "classname", "label_name", "action", "action_name", "activity", "category", "tag", "target"),
        ("class_id", "label_id", "action_id", "category_id", "class_index", "class_idx", "label_idx"),
    ),
    "group": (("group",), ("subject", "subject_id", "person", "person_id", "actor", "actor_id", "recording", "recording_id",
                           "source_video", "group_id")),
    "split": (("split",), ("subset", "partition", "set", "usage")),
    "start": (("start",), ("start_time", "time_start", "start_seconds", "start_sec", "t_start", "begin")),
    "end": (("end",), ("end_time", "time_end", "end_seconds", "end_sec", "t_end", "stop")),
    "frames": (("frames",), ("num_frames", "n_frames", "total_frames", "frame_count")),
    "offset": (("offset",), ("start_frame", "first_frame", "start_index")),
}  # fmt: skip
"""Words for each column of a list in several ranks, the surest first: of several fields that could be a column, the surest is
taken for it."""

UNLABELED = ("", "-1", "unlabeled", "unlabelled", "nan", "null", "n/a", "?")
"""Labels, in upper or lower case, that mark videos of unknown class."""
DOUBTFUL = ("none", "unknown", "unk", "na", "-")
"""Labels that mark videos of unknown class in some lists and are classes in others: refused until the user says which."""
NO_GROUP = (*UNLABELED, *DOUBTFUL)
"""Values in the column group that mark videos without a group."""


def split_words(name: str) -> list[str]:
    """Splits a name into its words, in lower case and without digits: ``videosTrain_256`` into videos and train."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def parse_split(text: str) -> Split | None:
    """Returns the split that a text names, such as a field of a list or the word before ``=``; None if it names none."""
    return SPLIT_WORDS.get(text.strip().lower())


def find_splits(name: str) -> set[Split]:
    """Finds the splits that the words of a file's or folder's name stand for; train and unlabeled together are unlabeled."""
    splits = {SPLIT_WORDS[word] for word in split_words(name) if word in SPLIT_WORDS}
    return splits - {"train"} if "unlabeled" in splits else splits


def parse_folder_split(name: str) -> Split | None:
    """Returns the split that a folder's name says, if it says one split and has no other words than ``FILLERS``."""
    splits = find_splits(name)
    return splits.pop() if len(splits) == 1 and set(split_words(name)) <= FILLERS | SPLIT_WORDS.keys() else None


def remove_split_words(name: str) -> tuple[str, ...]:
    """Returns the words of a folder's name that say no split; they are the same for ``kinetics_train`` and ``kinetics_val``."""
    return tuple(word for word in split_words(name) if word not in SPLIT_WORDS)


def normalize_column_name(name: str) -> str:
    """Converts a field of a header to the form in which ``COLUMNS`` has it: ``# Video Name`` to video_name."""
    return re.sub(r"[\s.\-]+", "_", name.strip().lstrip("#").strip().strip("\"'").lower())


def is_header(fields: Sequence[str]) -> bool:
    """Whether a line's fields name columns: one is a known word for path or label, and none is a number or a path."""
    known = {word for column in ("path", "label") for rank in COLUMNS[column] for word in rank}
    values = [field for field in fields if re.search(r"/|\.\w{2,4}$|^\s*-?\d+(\.\d+)?\s*$", field)]
    return not values and not known.isdisjoint(map(normalize_column_name, fields))


def match_columns(fields: Sequence[str], assigned: Iterable[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Finds the columns that the fields of a header name.

    Returns the field of each column, and a sentence for each column that several fields could name. ``assigned`` are fields
    whose meaning the user has given.
    """
    words = {field: normalize_column_name(field) for field in fields if field not in set(assigned)}
    columns: dict[str, str] = {}
    ambiguous: list[str] = []
    for column, ranks in COLUMNS.items():
        fits = next((fit for rank in ranks if (fit := [field for field, word in words.items() if word in rank])), [])
        if len(fits) == 1:
            columns[column] = fits[0]
        elif fits:
            ambiguous.append(f"{' and '.join(fits)} could each be the {column}")
    return columns, ambiguous


def parse_label(text: str, classes: Mapping[str, str] | None, unlabeled: Sequence[str] | None) -> str | None:
    """Returns the class name or number that a list has as a label, or None where the label says that the class is unknown.

    ``classes`` are the class names by label; ``unlabeled`` are the labels that mean an unknown class, if the user has given
    them. Raises ValueError for a label that may be a class or mean an unknown one, and for negative numbers.
    """
    if re.fullmatch(r"-?\d+\.0+", text):  # as pandas writes a column of numbers in which some are missing
        text = text.partition(".")[0]
    if classes is not None and (text in classes or text in classes.values()):
        return classes.get(text, text)
    if text.lower() in (UNLABELED if unlabeled is None else ("", *unlabeled)):
        return None
    if unlabeled is None and text.lower() in DOUBTFUL:
        remedy = f"say --unlabeled {text} if it is such a mark, or name all classes with --classes FILE"
        raise ValueError(f"label {text!r} is a class in some lists and marks unlabeled videos in others: {remedy}")
    if re.fullmatch(r"-\d+", text):
        raise ValueError(f"label {text} is a negative number; leave it empty, or write -1, where the class is unknown")
    return text
