"""Which videos of a run can be suggested at all: unlabeled ones with scores, but for those that the user leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.clips.source import VideoSource
from pipeline.errors import UserError, list_first
from pipeline.labeling.opinions import MIN_CLIPS, Opinions, Scores
from pipeline.labeling.strategies import Strategy
from pipeline.manifest.label_subset import LabelSubset, find_rows
from pipeline.manifest.labeling_answers import merge_answers, read_answers
from pipeline.manifest.schema import Manifest
from pipeline.seeds import Ints


@dataclass(frozen=True)
class Wish:
    """What the user asks for."""

    count: int
    strategy: Strategy = "mixed"
    seed: int = 0
    balanced: bool = False
    """Equally many of each predicted class."""
    skip_groups: bool = False
    """Leave out videos of a group (recording or person) that has a label already."""
    skip_duplicates: bool = False
    """Leave out videos that look like a labeled or a chosen one."""
    without: tuple[Path, ...] = ()
    """Files of answers whose videos are left out."""


def find_answered(manifest: Manifest, paths: Sequence[Path]) -> Ints:
    """Finds the rows of the videos that files of answers answer; skipped videos are not among them. Raises UserError."""
    rows = [np.empty(0, np.int64)]
    for path in paths:
        answers = [answer for answer in merge_answers(read_answers(path, manifest)).values() if answer.status != "skipped"]
        found = find_rows(pa.chunked_array([[answer.id for answer in answers]], pa.string()), manifest)
        unknown = [f"video {one.id} is not in it" for one, row in zip(answers, found.tolist(), strict=True) if row < 0]
        unknown += [f"they are about manifest {one}" for one in {a.manifest for a in answers} - {"", manifest.fingerprint}]
        if unknown:
            raise UserError(f"--without {path} has answers of another manifest than {manifest.path}:", list_first(unknown))
        rows.append(found)
    return np.unique(np.concatenate(rows))


def find_candidates(
    source: VideoSource, labels: LabelSubset, opinions: Opinions, wish: Wish, scores: Scores, answered: Ints
) -> tuple[Ints, list[str]]:
    """Finds the unlabeled videos of which there are scores. Raises UserError if there are none."""
    unlabeled = source.plan.unlabeled
    seen = unlabeled[opinions.clips[unlabeled] > 0]
    notes = []
    if len(seen) < len(unlabeled):
        missing = len(unlabeled) - len(seen)
        notes.append(
            f"{missing:,} of {len(unlabeled):,} unlabeled videos have no scores in {scores.what} and cannot be suggested; for "
            f"all: jobs.predict RUN {source.manifest.path} --out scores.parquet, and then --predictions scores.parquet"
        )

    def keep(is_kept: NDArray[np.bool_], why: str) -> None:
        nonlocal seen
        left_out = int((~is_kept).sum())
        notes.extend([f"{left_out:,} videos {why}, and left out"] if left_out else [])
        seen = seen[is_kept]

    keep(_is_of_no_group_of(source, seen, labels.held_out), "are of a group of which videos are held out for validation")
    keep(~np.isin(seen, answered), "are answered by the files of --without")
    if wish.strategy == "unstable":
        keep(opinions.clips[seen] >= MIN_CLIPS, f"have less than {MIN_CLIPS} scored clips")
    if wish.skip_groups:
        if source.manifest.table["group"].null_count == source.manifest.table.num_rows:
            notes.append("the manifest has no groups (recordings or persons), so --skip-groups leaves out nothing")
        keep(_is_of_no_group_of(source, seen, np.union1d(labels.rows, labels.held_out)), "are of a group that has a label")
    if len(seen) == 0:
        raise UserError(f"no unlabeled video is left to suggest: {'; '.join(notes) or 'all videos have a label'}")
    return seen, notes


def _is_of_no_group_of(source: VideoSource, rows: Ints, others: Ints) -> NDArray[np.bool_]:
    """Whether each row has no group, or another one than all ``others``."""
    groups = source.manifest.table["group"]
    known = pc.unique(groups.take(pa.array(others))).drop_null()
    return ~np.asarray(pc.is_in(groups.take(pa.array(rows)), value_set=known), np.bool_)
