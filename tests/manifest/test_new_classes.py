"""Classes that are added to a manifest: names are checked, all others keep their numbers, and the file says where from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest.memory_mapped import open_manifest
from pipeline.manifest.new_classes import add_classes, find_name_mistakes
from pipeline.manifest.schema import Manifest, read_manifest, write_manifest
from pipeline.manifest.summary import format_summary, summarize_manifest
from tests.manifest.tables import make_table


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    classes = ("Hand stand", "sit", "walk")
    table = make_table(dict.fromkeys(classes, 2))
    return write_manifest(table, tmp_path / "manifest.parquet", classes, "/videos", "folder")


def test_all_other_classes_keep_their_numbers_and_a_file_says_where_the_new_ones_came_from(
    manifest: Manifest, tmp_path: Path
) -> None:
    more = add_classes(manifest, ["wave"])
    assert more.classes == (*manifest.classes, "wave") and more.fingerprint != manifest.fingerprint
    again = add_classes(more, ["clap"])
    path = tmp_path / "more.parquet"
    written = write_manifest(again.table, path, again.classes, again.root, again.source, lineage=again.lineage)
    for read in (read_manifest(path), open_manifest(str(path), None, 1)):  # the second one is memory-mapped
        assert read.fingerprint == again.fingerprint == written.fingerprint and read.classes[-2:] == ("wave", "clap")
        assert read.table.equals(manifest.table) and read.lineage == written.lineage == again.lineage
        assert [step["before"] for step in read.lineage] == [manifest.fingerprint, more.fingerprint]
    assert f"wave added to the classes of {manifest.fingerprint}\n" in format_summary(read, summarize_manifest(read))
    assert np.bincount(np.asarray(read.table["label"]), minlength=5).tolist() == [2, 2, 2, 0, 0]
    assert add_classes(manifest, []) is manifest and manifest.lineage == ()


def test_names_that_cannot_be_new_classes_are_all_listed(manifest: Manifest) -> None:
    names = ["sit", "handstand", "Walk!", " wave", "", "wave\n", "clap", "Clap", "clap", "run"]
    mistakes = find_name_mistakes(manifest, names, {"clap", "Clap", "runs", "sit"})
    assert mistakes == [
        "--new-class sit is a class already: leave the option out",
        "--new-class handstand differs from class Hand stand only in case, spaces or punctuation: "
        "write Hand stand in the answers",
        "--new-class Walk! differs from class walk only in case, spaces or punctuation: write walk in the answers",
        "--new-class ' wave' is not a name: write one line without spaces around it",
        "--new-class '' is not a name: write one line without spaces around it",
        "--new-class 'wave\\n' is not a name: write one line without spaces around it",
        "--new-class Clap differs from class clap only in case, spaces or punctuation: write clap in the answers",
        "--new-class clap is given twice",
        "--new-class run is the class of no answer; did you mean runs?",
    ]
    assert find_name_mistakes(manifest, ["sit up", "+", "-"], {"sit up", "+", "-"}) == []
