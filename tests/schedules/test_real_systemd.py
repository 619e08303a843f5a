"""Nights that a real systemd starts for a user, every minute: one that runs for long, one that is killed, one that is stopped.

No login and no booted systemd are needed: ``systemd --user`` runs here with folders of its own instead of /run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.schedules.real_nights import RealNights, wait_until

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if os.path.exists(path)), None)
CONTROL_GROUPS = [Path("/sys/fs/cgroup") / name for name in ("systemd", "unified", "")]
BEGIN = """mount -t tmpfs tmpfs /run || exit 1
mkdir -m 700 -p /run/systemd/system "$XDG_RUNTIME_DIR"
for group in {groups}; do mkdir $group && echo $$ > $group/cgroup.procs; done
exec {systemd} --user --unit=basic.target"""


@pytest.fixture
def systemd(tmp_path: Path, tiny: Path, repository: Path) -> Iterator[RealNights]:
    """A systemd for this user."""
    if SYSTEMD is None or os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs systemd, unshare and nsenter, and root to use them")
    groups = [folder / f"test-{os.getpid()}" for folder in CONTROL_GROUPS if (folder / "cgroup.procs").exists()]
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": "/run/user/0",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "RAY_ADDRESS": "",
    }
    script = BEGIN.format(groups=" ".join(map(str, groups)), systemd=SYSTEMD)
    with (tmp_path / "systemd.log").open("wb") as log:
        manager = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env=environment, stdout=log, stderr=log)
    enter = ["nsenter", f"--target={manager.pid}", "--mount", f"--wd={repository}"]
    ask = [*enter, "systemctl", "--user", "show-environment"]
    try:
        for _ in range(100):
            if manager.poll() is None and subprocess.run(ask, env=environment, capture_output=True).returncode == 0:
                break
        else:
            pytest.skip(f"systemd does not run here: {(tmp_path / 'systemd.log').read_text()}")
        yield RealNights(tiny, tmp_path / "schedules", repository, enter, environment)
    finally:
        manager.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            manager.wait(timeout=100)
        manager.kill()
        manager.wait()
        for group in groups:
            remove_group(group)


def remove_group(group: Path) -> None:
    """Kills what is left in a control group, and removes it."""
    for processes in group.rglob("cgroup.procs"):
        for pid in processes.read_text().split():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()
    wait_until(lambda: not any(processes.read_text() for processes in group.rglob("cgroup.procs")), 120)
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
        folder.rmdir()
    group.rmdir()


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_nights_every_minute(systemd: RealNights, tmp_path: Path) -> None:
    def ask(*words: str) -> str:
        line = [*systemd.enter, "systemctl", "--user", *words]
        return subprocess.run(line, env=systemd.environment, capture_output=True, text=True, timeout=300, check=True).stdout

    systemd.add("systemd")
    units = tmp_path / "config" / "systemd" / "user"
    assert sorted(path.name for path in units.glob("*.*")) == [
        "actnetformer-tiny.service", "actnetformer-tiny.timer", "timers.target.wants",
    ]  # fmt: skip
    assert "actnetformer-tiny.timer" in ask("list-timers")
    first = wait_until(lambda: systemd.read_lines("begun"), 400)[0]
    wait_until(systemd.find_newest_checkpoint, 400)
    # two minutes must pass until a night counts as missed
    wait_until(lambda: "left out" in systemd.call("list", "--json"), 600)
    assert len(systemd.read_lines("begun")) == 1
    assert systemd.find_states(first["night"]) == ["running"]
    assert "missed" not in systemd.call("list", "--json")
    command = systemd.find_command(first["pid"])
    psutil.Process(first["pid"]).kill()
    wait_until(lambda: not command.is_running(), 120)  # systemd ends what is left of a service
    reached = systemd.find_newest_checkpoint()

    second = wait_until(lambda: systemd.read_lines("begun")[1:], 400)[0]
    assert systemd.find_states(first["night"]) == ["killed"]
    wait_until(lambda: systemd.find_newest_checkpoint() > reached, 400)
    ask("stop", "actnetformer-tiny.service")  # as when the user logs out, or the machine is shut down
    ended = systemd.read_lines("ended")[0]
    assert (ended["night"], ended["code"]) == (second["night"], 143)
    assert "stopped with a checkpoint" in (systemd.folder / "tiny" / second["log"]).read_text()

    assert "is removed" in systemd.call("remove", "tiny")
    assert "actnetformer" not in ask("list-timers", "--all")
    assert list(units.glob("*.service")) == list(units.glob("*.timer")) == []
    with contextlib.suppress(
        subprocess.CalledProcessError
    ):  # the unit is forgotten, unless a third night runs, as a minute may
        ask("stop", "actnetformer-tiny.service")  # have passed: ``remove`` lets a night end that has begun
    assert not systemd.is_running()
    begun = len(systemd.read_lines("begun"))
    time.sleep(75)
    assert len(systemd.read_lines("begun")) == begun  # no night begins anymore
