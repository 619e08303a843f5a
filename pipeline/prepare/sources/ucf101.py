"""``ucf101``: class folders and the official ``ucfTrainTestlist`` (Soomro, Zamir & Shah, 2012), as the site ships them.

classInd.txt      1 ApplyEyeMakeup
trainlist01.txt   ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
testlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import find_files, find_folder, open_root, read_lines
from pipeline.prepare.sources.listing import Listing, agree, checked, missing_note, outside, refuse, some

FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "annotations", ".")
GROUP = re.compile(r"(v_.+_g\d+)_c\d+$")


def list_ucf101(folder: str | Path, lists: str | None = None, fold: int = 1) -> Listing:
    """One of the three official splits. Groups are the recordings g01 to g25 of each class.

    Raises UserError for lines that do not fit, a class index that is not the folder's class, and lists that disagree.
    """
    root = open_root(folder)
    where = find_folder(lists, root, FOLDERS, "classInd.txt")
    classes = _read_classes(f"{where}/classInd.txt")
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    parts: tuple[tuple[Split, str], ...] = (("train", f"trainlist{fold:02d}.txt"), ("test", f"testlist{fold:02d}.txt"))
    for split, name in parts:
        for number, line in read_lines(f"{where}/{name}"):
            problem = _check(line, classes, split)
            uri = line.split()[0]
            rows.append((uri, uri.split("/")[0], split, f"{name}:{number}"))
            mistakes += [f"{where}/{name}:{number}: {problem}"] if problem else []
    refuse(mistakes, where)
    some(rows, where)
    agree([(uri, split, place) for uri, _, split, place in rows], f"the lists in {where}")
    uris, labels, splits, places = zip(*rows, strict=True)
    found = find_files(root, uris, ignore_case=True)  # HandstandPushups holds v_HandStandPushups or v_HandstandPushups
    notes = missing_note(root, splits, [uri is not None for uri in found], where)
    groups = tuple(match[1] if (match := GROUP.match(Path(uri).stem)) else None for uri in uris)
    at = tuple(here or uri for here, uri in zip(found, uris, strict=True))
    names = tuple(classes.values())
    source = f"ucf101 split {fold}"
    return checked(Listing(root, source, at, labels, groups, splits, notes, ids=uris, class_list=names, places=places))


def _read_classes(file: str) -> dict[str, str]:
    """Index, as written, -> class name."""
    lines = read_lines(file)
    odd = [(number, line) for number, line in lines if not re.fullmatch(r"\d+ \S+", line.strip())]
    wrong = [f"{file}:{number}: expected '1 ApplyEyeMakeup', found {line!r}" for number, line in odd]
    refuse(wrong, file)
    classes = dict(line.split() for _, line in lines)
    if [int(index) for index in classes] != list(range(1, len(lines) + 1)):
        raise UserError(f"{file}: the indices must run from 1 to {len(lines)}")
    return classes


def _check(line: str, classes: dict[str, str], split: Split) -> str | None:
    match = re.match(r"([^/\s]+)/\S+\.\w+(?:\s+(\d+))?$", line.strip())
    if not match:
        return f"expected 'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi{' 1' * (split == 'train')}', found {line!r}"
    name, index = match.groups()
    if name not in classes.values():
        return f"class {name} is not in classInd.txt"
    if index is None:
        return "the class index is missing" if split == "train" else None
    if index not in classes:
        return outside(index, classes)
    return None if classes[index] == name else f"class {index} is {classes[index]} in classInd.txt, but the file lies in {name}"
