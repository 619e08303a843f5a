"""The upload that docs/models.md documents: what was exported goes to the hub, and what other commands wrote does not."""

from __future__ import annotations

import argparse
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

from jobs import evaluate, report
from jobs.command import DONE, run
from pipeline.evaluation.evaluation_parts import FOLDER
from pipeline.files.folder_lock import LOCK
from pipeline.manifest.schema import read_manifest, write_manifest


def read_documented_upload(repository: Path) -> argparse.Namespace:
    """Parses the command as huggingface_hub does: an option takes one pattern and may be repeated. A word too many ends the
    test."""
    text = (repository / "docs/models.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    hf upload (.+)$", text, flags=re.MULTILINE)
    parser = argparse.ArgumentParser()
    for name in ("repository", "folder", "place"):
        parser.add_argument(name)
    parser.add_argument("--exclude", action="append")
    return parser.parse_args(shlex.split(command))


def test_the_documented_upload_has_what_was_exported_and_nothing_else(
    model: Path, tiny: Path, tmp_path: Path, repository: Path
) -> None:
    exported = {path.name for path in model.iterdir()}
    own = read_manifest(tiny / "manifest.parquet")
    other = write_manifest(own.table.slice(1), tmp_path / "other.parquet", own.classes, own.root, "other data")
    for path in (own.path, other.path):
        assert run(evaluate.main, [str(model), "--manifest", path]) == DONE
    assert run(report.main, [str(model)]) == DONE
    (model / FOLDER / "part").mkdir(parents=True)  # what a killed evaluation leaves
    (model / FOLDER / "part" / "00000000.parquet").touch()
    (model / LOCK).touch()
    excluded = read_documented_upload(repository).exclude
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert len(files) >= len(exported) + 2 + 2 + 4 + 2
    assert {name for name in files if not any(fnmatchcase(name, pattern) for pattern in excluded)} == exported
