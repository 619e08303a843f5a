"""``hmdb51``: class folders and the official 70/30 split files (Kuehne et al., 2011), one for each class and split.

    brush_hair_test_split1.txt   April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1

1 is train, 2 is test, and 0 is unused: those clips become unlabeled training videos (1,666 in split 1, so that the
training pool counts 5,236). Their class is known here and stays hidden from every draw of labels. Clips of a class from the
same video are a group, but for the 177 videos that split 1 itself has on both sides.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import find_files, find_folder, names_like, open_root, read_lines
from pipeline.prepare.sources.listing import Listing, agree, checked, missing_note, recordings, refuse, some

FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "annotations", "splits", ".")
USES: dict[str, Split] = {"1": "train", "2": "test", "0": "unlabeled"}


def list_hmdb51(folder: str | Path, lists: str | None = None, fold: int = 1) -> Listing:
    """One of the three official splits. Raises UserError for lines that do not fit and files that disagree."""
    root = open_root(folder)
    where = find_folder(lists, root, FOLDERS, "*_test_split*.txt")
    ending = f"_test_split{fold}.txt"
    names = names_like(where, f"*{ending}")
    if not names:
        raise UserError(f"{where} holds no split files; expected <class>{ending}")
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    for file in names:
        name = file.removesuffix(ending)
        for number, line in read_lines(f"{where}/{file}"):
            if match := re.fullmatch(r"(\S.*\.\w+)\s+([012])", line.strip()):
                rows.append((f"{name}/{match[1]}", name, USES[match[2]], f"{file}:{number}"))
            else:
                mistakes.append(f"{where}/{file}:{number}: expected a file and 0, 1 or 2, found {line!r}")
    refuse(mistakes, where)
    some(rows, where)
    agree([(uri, split, place) for uri, _, split, place in rows], f"the lists in {where}")
    uris, labels, splits, places = zip(*rows, strict=True)
    found = find_files(root, uris)
    notes = missing_note(root, splits, [uri is not None for uri in found], where)
    at = tuple(here or uri for here, uri in zip(found, uris, strict=True))
    classes = tuple(sorted(set(labels)))
    groups, torn = recordings([_recording(uri, name) for uri, name in zip(uris, labels, strict=True)], splits)
    source, notes = f"hmdb51 split {fold}", (*notes, *torn)
    return checked(Listing(root, source, at, labels, groups, splits, notes, ids=uris, class_list=classes, places=places))


def _recording(uri: str, name: str) -> str:
    """``brush_hair/April_09`` of the file above: the clips of a class from one video, be it a film."""
    return uri.rpartition(f"_{name}_")[0] or uri
