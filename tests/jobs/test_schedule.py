"""``jobs.schedule`` with a program of the test in crontab's place; tests/schedules/test_real_cron.py has the real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import schedule as command
from jobs.command import DONE, USER_ERROR, run
from pipeline.schedules import timers
from pipeline.schedules.nights import read_schedules
from pipeline.schedules.timers import build_crontab_line, build_units
from tests.cluster.rendered import render

CRONTAB = """#!{python}
import pathlib, sys
table = pathlib.Path({table!r})
if sys.argv[1] == "-l":
    if not table.exists():
        sys.exit("no crontab for ada")
    sys.stdout.write(table.read_text())
elif sys.argv[1] == "-r":
    table.unlink()
else:
    table.write_text(sys.stdin.read())
"""
FOREIGN = "MAILTO=ada\n\n# m h dom mon dow\n5 4 * * *  x 100\\%  # actnetformer-schedule of mine\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a crontab that has lines of others, on a machine without systemd for users."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "crontab"
    program.write_text(CRONTAB.format(python=sys.executable, table=str(tmp_path / "table")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(timers, "has_systemd", lambda: False)
    monkeypatch.setattr(command, "is_cron_running", lambda: True)
    (tmp_path / "table").write_text(FOREIGN)
    return tmp_path / "table"


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code, and what it printed on stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        return run(command.main, ["--folder", str(tmp_path / "schedules"), *words]), *capsys.readouterr()

    return call


def test_a_schedule_comes_and_goes_and_other_lines_stay(table: Path, call: Any, tmp_path: Path) -> None:
    search = ["search", "--config", "jobs/configs/demo.yaml", "--space", "rates", "--trials", "9", "--hours", "9"]
    code, out, _ = call("add", "every night at 22:00", "--name", "rates", "--", *search, f"run.storage_path={tmp_path}/runs")
    assert code == DONE
    assert out.startswith("rates: every night at 22:00 (0 22 * * *), by cron; first on ")
    *others, line = table.read_text().splitlines()
    assert "\n".join(others) + "\n" == FOREIGN
    assert line.startswith("0 22 * * * cd ")
    assert line.endswith(" >/dev/null 2>&1 # actnetformer-schedule rates")
    schedule = read_schedules(tmp_path / "schedules")["rates"]
    assert schedule.command[: len(search)] == tuple(search)
    assert (schedule.working_dir, schedule.results) == (str(Path.cwd()), f"{tmp_path}/runs/rates")
    assert call("add", "every minute", "--", "doctor")[0] == DONE
    assert [one["name"] for one in json.loads(call("list", "--json")[1])] == ["doctor", "rates"]
    code, _, err = call("add", "every minute", "--name", "rates", "--", "doctor")
    assert (code, "remove it first, or give another --name" in err) == (USER_ERROR, True)
    listed = call("list")[1]
    assert "every night at 22:00" in listed
    assert f"rates: {tmp_path}/schedules/rates/report.html" in listed
    assert call("next", "rates", "--count", "2")[1].count(" 22:00 ") == 2

    table.write_text(table.read_text().replace(line + "\n", ""))  # somebody else's doing
    assert "rates: Its timer is gone from cron: remove the schedule and add it again." in call("list")[1]
    assert call("remove", "rates")[0] == DONE
    assert call("remove", "doctor")[0] == DONE
    assert table.read_text() == FOREIGN
    assert "no schedule in" in call("list")[1]
    assert (tmp_path / "schedules" / "rates" / "report.html").is_file()
    code, _, err = call("remove", "rates")
    assert (code, "there is none" in err) == (USER_ERROR, True)


def test_a_crontab_that_nothing_reads(table: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: ``crontab`` is installed, and no cron runs."""
    monkeypatch.setattr(command, "is_cron_running", lambda: False)
    code, _, err = call("add", "every hour", "--", "doctor")
    assert code == DONE and "note: No cron runs on this machine, so nothing would start it: start cron" in err
    assert "doctor: No cron runs on this machine" in call("list")[1]


def test_the_first_and_the_last_line_of_a_crontab(table: Path, call: Any) -> None:
    table.unlink()
    assert call("add", "every hour", "--", "doctor")[0] == DONE
    assert len(table.read_text().splitlines()) == 1
    assert call("remove", "doctor")[0] == DONE
    assert not table.exists()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["add", "every nihgt at 22:00", "--", "doctor"], "did you mean 'night'"),
        (["add", "every night at 22:00"], "name the command to be started, behind --"),
        (["add", "every night at 22:00", "--", "serve"], "serve is not a command that can be scheduled"),
        (["add", "every night at 22:00", "--name", "a b", "--", "doctor"], "small letters"),
        (["add", "every night at 22:00", "--by", "systemd", "--", "doctor"], "systemctl --user does not answer"),
        (["add", "every minute", "--", "search", "--storage", "postgresql://a:pl4nted@b/c"], "has a password.*pgpass"),
        (["add", "every minute", "--print", "cronjob", "--", "submit", "search"], "give the command itself and not submit"),
        (["list", "--", "doctor"], "takes no command"),
        (["night", "x"], "no schedule x"),
        (["next", "every night"], "for example 'every night at 22:00'"),
    ],
)
def test_mistakes_leave_nothing(table: Path, call: Any, tmp_path: Path, words: list[str], remedy: str) -> None:
    code, _, err = call(*words)
    assert code == USER_ERROR
    assert re.search(remedy, err)
    assert "pl4nted" not in err
    assert table.read_text() == FOREIGN
    assert not (tmp_path / "schedules").exists()


def test_odd_paths_survive_cron_and_systemd(tmp_path: Path, table: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "it's 100% $HOME"
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert call("add", "every night at 22:00", "--", "doctor")[0] == DONE
    schedule = read_schedules(tmp_path / "schedules")["doctor"]
    line = build_crontab_line(odd, schedule)
    shell = line.removeprefix("0 22 * * * ").replace(r"\%", "%")
    words = shlex.split(shell, comments=True)
    assert words[:2] == ["cd", str(odd)]
    assert words[words.index("--folder") + 1] == str(odd)
    assert "%" not in line.replace(r"\%", "")
    service, timer = build_units(odd, schedule).values()
    assert f'"{str(odd).replace("%", "%%").replace("$", "$$")}"' in service
    assert "OnCalendar=*-*-* 22:00:00\n" in timer


def test_units_are_what_systemd_takes(tmp_path: Path, table: Path, call: Any) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    call("add", "every weekday at 22:00", "--", "doctor")
    schedule = read_schedules(tmp_path / "schedules")["doctor"]
    for path, text in build_units(tmp_path, schedule).items():
        (tmp_path / path.name).write_text(text)
    units = [str(tmp_path / path.name) for path in build_units(tmp_path, schedule)]
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    assert [one for one in said.stderr.splitlines() if "actnetformer" in one] == []


@pytest.mark.parametrize(("kind", "made"), [("raycronjob", "RayCronJob"), ("cronjob", "CronJob")])
def test_a_file_for_kubernetes_is_printed(call: Any, tmp_path: Path, repository: Path, kind: str, made: str) -> None:
    shutil.copytree(repository / "cluster", tmp_path / "cluster")
    words = ["--name", "mine", "--time-zone", "Europe/Berlin", "--print", kind, "--", "search", "--space", "a b", "x=1"]
    code, out, _ = call("add", "every weekday at 22:00", *words)
    assert code == DONE
    assert not (tmp_path / "schedules").exists()
    head = out.splitlines()[0]
    file = tmp_path / head.split(" to ")[1].split(";")[0]
    file.parent.mkdir()
    file.write_text(out)
    assert head.endswith(f"kubectl apply -k {file.parent.relative_to(tmp_path)}")
    found = {one["kind"]: one for one in yaml.safe_load_all(render(file.parent))}
    spec = found[made]["spec"]
    assert found[made]["metadata"]["name"] == "actnetformer-mine"
    assert (spec["schedule"], spec["timeZone"]) == ("0 22 * * 1-5", "Europe/Berlin")
    if made == "CronJob":
        (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["command"][:3] == ["python", "-m", "jobs.submit"]
        assert container["args"] == ["search", "--space", "a b", "x=1"]
        assert spec["concurrencyPolicy"] == "Forbid"
    else:
        assert shlex.split(spec["jobTemplate"]["entrypoint"]) == ["python", "-m", "jobs.search", "--space", "a b", "x=1"]
