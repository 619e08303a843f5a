"""Whether anything on a machine would read a crontab."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.schedules.timers import is_cron_running


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"1": "systemd", "20": "bash", "self": "cron"}, False),
        ({"1": "tini", "20": "cron"}, True),
        ({"1": "crond"}, True),
        ({"20": "bash"}, True),  # the first process belongs to another user, and is hidden as cron would be
    ],
)
def test_cron_is_found_by_the_name_of_its_process(tmp_path: Path, names: dict[str, str], expected: bool) -> None:
    for process, name in names.items():
        (tmp_path / process).mkdir()
        (tmp_path / process / "comm").write_text(name + "\n")
    assert is_cron_running(tmp_path) is expected
