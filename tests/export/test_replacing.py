"""A model folder is replaced by one command at a time, and whatever fails, what was there is still there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.export.model_folder_writer import locking, replacing
from pipeline.files.folder_lock import FolderInUse

LEFT = "0" * 32


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "drift[1]").mkdir()
    (tmp_path / "drift[1]" / "model").write_text("old")
    return tmp_path / "drift[1]"


def test_a_second_export_to_the_same_folder_is_refused_and_leaves_the_first_alone(out: Path) -> None:
    (out.parent / "link").symlink_to(out)
    with locking(out) as resolved, replacing(resolved) as scratch:
        (scratch / "model").write_text("new")
        for same in (out, out.parent / "link"):
            with pytest.raises(FolderInUse, match="choose another OUT"), locking(same):
                raise AssertionError("both have it")
    with locking(out.parent / "link") as resolved:
        assert resolved == out
    assert (out / "model").read_text() == "new"
    assert sorted(path.name for path in out.parent.iterdir()) == ["drift[1]", "link"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (left := out.parent / f".{out.name}.{LEFT}").mkdir()
    move = os.replace

    def fail_with_the_new_one(source: Path, target: Path) -> None:
        if target == out and (source / "model").read_text() == "new":
            raise OSError(5, "Input/output error")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail_with_the_new_one)
        with pytest.raises(UserError, match="cannot be written: Input/output error"), replacing(out) as scratch:
            (scratch / "model").write_text("new")
    assert (out / "model").read_text() == "old"
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([left.name, out.name])


def test_what_killed_exports_left_is_deleted_after_the_next_one(out: Path) -> None:
    (left := out.parent / f".{out.name}.{LEFT}").mkdir()
    (others := out.parent / f".drift1.{LEFT}").mkdir()
    with replacing(out) as scratch:
        assert left.is_dir()
        (scratch / "model").write_text("new")
    assert not left.exists() and others.is_dir() and (out / "model").read_text() == "new"
