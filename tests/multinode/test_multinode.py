"""Machines that are namespaces, and a cluster of them: the loss of one, and all that can happen to them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobs.command import run
from tests.multinode import __main__ as multinode
from tests.multinode.cases import FAULTS, OTHERS, Outcome
from tests.multinode.machines import Network, find_missing

needs_machines = pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "machines can be made")


def test_a_case_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multinode, "find_missing", lambda: "")
    assert run(multinode.main, ["--cases", "train-nod"]) == 2
    assert "there is no train-nod, only same-bits, elastic" in capsys.readouterr().err
    monkeypatch.setattr(multinode, "find_missing", lambda: "root is needed for namespaces")
    assert run(multinode.main, []) == 2
    assert "machines of namespaces: root is needed" in capsys.readouterr().err


def test_a_row_says_what_came_of_a_case() -> None:
    good = Outcome("head", "the head was lost", 12.4)
    assert multinode.format_row(good) == "| head | the head was lost | 12 | yes |  |"
    bad = Outcome("head", "the head was lost", problems=["other weights", "metrics differ by 1.0e-01"])
    assert multinode.format_row(bad) == "| head | the head was lost |  | NO: other weights; metrics differ by 1.0e-01 |  |"


@needs_machines
def test_machines_reach_each_other_and_nobody_when_they_are_cut_off() -> None:
    listen = "import socket\nserver = socket.create_server(('', 5555))\nprint('up', flush=True)\nwhile True: server.accept()"
    with Network() as network:
        one, other = network.add("one"), network.add("other")
        server = subprocess.Popen(other.enter(sys.executable, "-c", listen), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        connect = f"import socket; socket.create_connection(('{other.address}', 5555), 2)"

        def reaches() -> bool:
            return subprocess.run(one.enter(sys.executable, "-c", connect), capture_output=True, timeout=30).returncode == 0

        assert reaches()
        other.cut()
        assert not reaches()
        other.join()
        assert reaches()
        other.limit_rate(1)
        assert reaches()
        other.fill_tmp()
        write = ["sh", "-c", "echo x > /tmp/one"]
        assert subprocess.run(other.enter(*write), capture_output=True).returncode != 0
        assert subprocess.run(one.enter(*write), capture_output=True).returncode == 0
        other.free_tmp()
        assert subprocess.run(other.enter(*write), capture_output=True).returncode == 0
        other.kill()
        server.communicate(timeout=10)
        assert server.returncode != 0
        again = network.add("other")
        assert again.address == other.address and subprocess.run(again.enter("test", "!", "-e", "/tmp/one")).returncode == 0


@needs_machines
@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_on_several_machines_survives_the_loss_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(multinode.main, ["--short", "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(outcome["case"], outcome["problems"]) for outcome in outcomes] == [("short", [])]


@needs_machines
@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_a_run_on_several_machines_survives_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(multinode.main, ["--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {outcome["case"] for outcome in outcomes} == {"undisturbed", *OTHERS, *FAULTS}
