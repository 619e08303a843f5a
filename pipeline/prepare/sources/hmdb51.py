"""The source ``hmdb51``: class folders and the official 70/30 split files (Kuehne et al., 2011), one per class and split.

    brush_hair_test_split1.txt   April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1

1 is train, 2 is test, and 0 is unused: such clips become unlabeled training videos (1,666 in split 1, so that there are
5,236 training videos). Their classes are known here, but no label is ever drawn among them. Clips of a class from the same
recording are a group, but for the 177 recordings that split 1 itself has on both sides.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import find_files, find_lists_folder, match_names, read_lines, resolve_root
from pipeline.prepare.sources.listing import (
    Listing,
    describe_missing_files,
    group_recordings,
    raise_for_mistakes,
    require_agreement,
    require_videos,
    validate_listing,
)

LIST_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "annotations", "splits", ".")
SPLIT_OF_NUMBER: dict[str, Split] = {"1": "train", "2": "test", "0": "unlabeled"}


def list_hmdb51(folder: str | Path, lists: str | None = None, fold: int = 1) -> Listing:
    """Lists one of the three official splits (``fold``). Raises UserError for malformed lines and lists that disagree."""
    root = resolve_root(folder)
    lists_folder = find_lists_folder(lists, root, LIST_FOLDERS, "*_test_split*.txt")
    ending = f"_test_split{fold}.txt"
    files = match_names(lists_folder, f"*{ending}")
    if not files:
        raise UserError(f"{lists_folder} holds no split files; expected <class>{ending}")
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    for file in files:
        class_name = file.removesuffix(ending)
        for number, line in read_lines(f"{lists_folder}/{file}"):
            if match := re.fullmatch(r"(\S.*\.\w+)\s+([012])", line.strip()):
                rows.append((f"{class_name}/{match[1]}", class_name, SPLIT_OF_NUMBER[match[2]], f"{file}:{number}"))
            else:
                mistakes.append(f"{lists_folder}/{file}:{number}: expected a file and 0, 1 or 2, found {line!r}")
    raise_for_mistakes(mistakes, lists_folder)
    require_videos(rows, lists_folder)
    require_agreement([(uri, split, line) for uri, _, split, line in rows], f"the lists in {lists_folder}")
    ids, labels, splits, listed_at = zip(*rows, strict=True)
    files_found = find_files(root, ids)
    notes = describe_missing_files(root, splits, [uri is not None for uri in files_found], lists_folder)
    groups, straddling = group_recordings([_get_recording(uri, name) for uri, name in zip(ids, labels, strict=True)], splits)
    return validate_listing(Listing(
        root=root,
        source=f"hmdb51 split {fold}",
        uris=tuple(uri or video_id for uri, video_id in zip(files_found, ids, strict=True)),
        labels=labels,
        groups=groups,
        splits=splits,
        notes=(*notes, *straddling),
        ids=ids,
        class_list=tuple(sorted(set(labels))),
        listed_at=listed_at,
    ))  # fmt: skip


def _get_recording(video_id: str, class_name: str) -> str:
    """The recording that a clip is from, for example ``brush_hair/April_09`` for the clip above."""
    return video_id.rpartition(f"_{class_name}_")[0] or video_id
