"""What is said of a folder that is not a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run_folder.contents import read_run


def test_of_a_folder_of_runs_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder .*: there is no config.yaml in it$"):
        read_run(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    with pytest.raises(UserError, match=rf"is not a run folder .*: it has 2 runs; name one, such as {tmp_path}/a$"):
        read_run(tmp_path)
