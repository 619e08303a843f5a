"""The source ``ucf101``: class folders and the official ``ucfTrainTestlist`` (Soomro, Zamir & Shah, 2012).

classInd.txt      1 ApplyEyeMakeup
trainlist01.txt   ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
testlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import find_files, find_lists_folder, read_lines, resolve_root
from pipeline.prepare.sources.listing import (
    Listing,
    describe_missing_files,
    describe_unknown_label,
    raise_for_mistakes,
    require_agreement,
    require_videos,
    validate_listing,
)

LIST_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "annotations", ".")
GROUP = re.compile(r"(v_.+_g\d+)_c\d+$")


def list_ucf101(folder: str | Path, lists: str | None = None, fold: int = 1) -> Listing:
    """Lists one of the three official splits (``fold``). Groups are the recordings g01 to g25 of each class.

    Raises UserError for malformed lines, a class index that is not that of the folder's class, and lists that disagree.
    """
    root = resolve_root(folder)
    lists_folder = find_lists_folder(lists, root, LIST_FOLDERS, "classInd.txt")
    classes = _read_classes(f"{lists_folder}/classInd.txt")
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    parts: tuple[tuple[Split, str], ...] = (("train", f"trainlist{fold:02d}.txt"), ("test", f"testlist{fold:02d}.txt"))
    for split, name in parts:
        for number, line in read_lines(f"{lists_folder}/{name}"):
            problem = _find_problem(line, classes, split)
            uri = line.split()[0]
            rows.append((uri, uri.split("/")[0], split, f"{name}:{number}"))
            mistakes += [f"{lists_folder}/{name}:{number}: {problem}"] if problem else []
    raise_for_mistakes(mistakes, lists_folder)
    require_videos(rows, lists_folder)
    require_agreement([(uri, split, line) for uri, _, split, line in rows], f"the lists in {lists_folder}")
    ids, labels, splits, listed_at = zip(*rows, strict=True)
    files_found = find_files(root, ids, ignore_case=True)  # HandstandPushups has v_HandStandPushups or v_HandstandPushups
    return validate_listing(Listing(
        root=root,
        source=f"ucf101 split {fold}",
        uris=tuple(uri or video_id for uri, video_id in zip(files_found, ids, strict=True)),
        labels=labels,
        groups=tuple(match[1] if (match := GROUP.match(Path(video_id).stem)) else None for video_id in ids),
        splits=splits,
        notes=describe_missing_files(root, splits, [uri is not None for uri in files_found], lists_folder),
        ids=ids,
        class_list=tuple(classes.values()),
        listed_at=listed_at,
    ))  # fmt: skip


def _read_classes(file: str) -> dict[str, str]:
    """The class names by index, as it is written in the file."""
    lines = read_lines(file)
    malformed = [(number, line) for number, line in lines if not re.fullmatch(r"\d+ \S+", line.strip())]
    raise_for_mistakes([f"{file}:{number}: expected '1 ApplyEyeMakeup', found {line!r}" for number, line in malformed], file)
    classes = dict(line.split() for _, line in lines)
    if [int(index) for index in classes] != list(range(1, len(lines) + 1)):
        raise UserError(f"{file}: the indices must run from 1 to {len(lines)}")
    return classes


def _find_problem(line: str, classes: dict[str, str], split: Split) -> str | None:
    match = re.match(r"([^/\s]+)/\S+\.\w+(?:\s+(\d+))?$", line.strip())
    if not match:
        return f"expected 'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi{' 1' * (split == 'train')}', found {line!r}"
    class_name, index = match.groups()
    if class_name not in classes.values():
        return f"class {class_name} is not in classInd.txt"
    if index is None:
        return "the class index is missing" if split == "train" else None
    if index not in classes:
        return describe_unknown_label(index, classes)
    if classes[index] != class_name:
        return f"class {index} is {classes[index]} in classInd.txt, but the file lies in {class_name}"
    return None
