"""Words that the field's folders and lists use for the same things: splits, columns, and labels of videos without one.

What is not among them is refused where it could be meant as one of them. ``docs/manifest.md`` lists them for users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.manifest.schema import Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trainlist", "labeled", "labelled"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "testlist"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "vallist", "eval", "evaluation"), "val"),
    **dict.fromkeys(("unlabel", "unlabeled", "unlabelled"), "unlabeled"),
}  # fmt: skip
FILLERS = {
    "video", "videos", "clip", "clips", "frame", "frames", "rawframe", "rawframes", "image", "images", "img", "imgs", "rgb",
    "data", "dataset", "set", "split", "splits", "list", "part",
}  # fmt: skip
"""Words beside a split's in the name of its folder: ``videos_train``."""
COMPANIONS = {
    "annotation", "annotations", "anno", "labels", "list", "lists", "split", "splits", "meta", "metadata", "docs", "doc",
    "code", "scripts", "tools", "ucftraintestlist", "testtrainmulti_7030_splits", "__macosx", "@eadir", "lost+found",
    "$recycle.bin", "__pycache__",
}  # fmt: skip
"""Folders that data sets and systems put beside the videos; left out where no video is in them."""

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
"""Words for each column of a list, the surer ones first: of several columns that could be one, the surest is it."""

UNLABELED = ("", "-1", "unlabeled", "unlabelled", "nan", "null", "n/a", "?")
"""Labels, in any case, of videos whose class is unknown."""
DOUBTFUL = ("none", "unknown", "unk", "na", "-")
"""Labels that mark such videos in some lists and are classes in others: refused until the user says which."""
NO_GROUP = (*UNLABELED, *DOUBTFUL)
"""Groups of videos that have none."""


def words_of(name: str) -> list[str]:
    """``videosTrain_256`` as videos, train: letters only, small."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def split_of(text: str) -> Split | None:
    """The split that a field of a list, or the word before ``=``, names."""
    return SPLITS.get(text.strip().lower())


def splits_in(name: str) -> set[Split]:
    """Splits that the words of a file's or folder's name say; train and unlabeled together are unlabeled."""
    found = {SPLITS[word] for word in words_of(name) if word in SPLITS}
    return found - {"train"} if "unlabeled" in found else found


def split_of_folder(name: str) -> Split | None:
    """The split whose videos a folder of this name holds: it says one split and else only what videos are called."""
    found = splits_in(name)
    return found.pop() if len(found) == 1 and set(words_of(name)) <= FILLERS | SPLITS.keys() else None


def rest_of(name: str) -> tuple[str, ...]:
    """Words of a folder's name that say no split: the same ones in ``kinetics_train`` and ``kinetics_val``."""
    return tuple(word for word in words_of(name) if word not in SPLITS)


def column_word(name: str) -> str:
    """A header's field as the words above are written: ``# Video Name`` is video_name."""
    return re.sub(r"[\s.\-]+", "_", name.strip().lstrip("#").strip().strip("\"'").lower())


def is_header(fields: Sequence[str]) -> bool:
    """Whether a line names columns: a known word for path or label is there, and nothing that is a number or a path."""
    known = {word for column in ("path", "label") for rank in COLUMNS[column] for word in rank}
    values = [field for field in fields if re.search(r"/|\.\w{2,4}$|^\s*-?\d+(\.\d+)?\s*$", field)]
    return not values and not known.isdisjoint(map(column_word, fields))


def columns_of(fields: Sequence[str], taken: Iterable[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Column -> field of a header that is it, and a sentence for each column that could be any of several fields.

    ``taken`` are fields that were given another meaning on purpose.
    """
    words = {field: column_word(field) for field in fields if field not in set(taken)}
    found: dict[str, str] = {}
    unclear: list[str] = []
    for column, ranks in COLUMNS.items():
        fits = next((fit for rank in ranks if (fit := [field for field, word in words.items() if word in rank])), [])
        if len(fits) == 1:
            found[column] = fits[0]
        elif fits:
            unclear.append(f"{' and '.join(fits)} could each be the {column}")
    return found, unclear


def label_of(text: str, classes: Mapping[str, str] | None, marks: Sequence[str] | None) -> str | None:
    """A class's name or number as a list has it, None where it says that the class is unknown.

    ``classes`` is the class list, by label; ``marks`` what the user said marks unlabeled videos. Raises ValueError for what may
    be a class or such a mark, and for negative numbers.
    """
    if re.fullmatch(r"-?\d+\.0+", text):  # as pandas writes a column of numbers in which some are missing
        text = text.partition(".")[0]
    if classes is not None and (text in classes or text in classes.values()):
        return classes.get(text, text)
    if text.lower() in (UNLABELED if marks is None else ("", *marks)):
        return None
    if marks is None and text.lower() in DOUBTFUL:
        remedy = f"say --unlabeled {text} if it is such a mark, or name all classes with --classes FILE"
        raise ValueError(f"label {text!r} is a class in some lists and marks unlabeled videos in others: {remedy}")
    if re.fullmatch(r"-\d+", text):
        raise ValueError(f"label {text} is a negative number; leave it empty, or write -1, where the class is unknown")
    return text
