"""The doctor finds what is wrong, says what to do, and has nothing to say where all is well."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest

from jobs import doctor
from jobs.command import DONE, FAILED, USER_ERROR, run
from pipeline.doctor import cluster, decoders, machine, packages
from pipeline.doctor.findings import Finding, format_findings
from pipeline.hardware import Hardware


def test_every_codec_is_made_and_decoded() -> None:
    found = {finding.subject: finding for finding in decoders.check_decoders()}
    assert found["h264"].state == found["mpeg4"].state == "ok" and "pyav and decord" in found["h264"].found
    assert set(found) <= {*decoders.CODECS, "decoding"} and all(one.state != "problem" for one in found.values())


def test_a_decoder_that_finds_other_frames_is_named() -> None:
    assert decoders.describe_codec("av1", {"pyav": 12, "decord": "Error: no"}).state == "note"
    broken = decoders.describe_codec("av1", {"pyav": 11, "decord": "Error: no"})
    assert broken.state == "problem" and broken.found == "pyav: 11 frames; decord: Error: no"
    assert decoders.count_frames("pyav", __file__) != 12 and "Error" in str(decoders.count_frames("decord", __file__))


def test_packages_that_are_missing_or_do_not_fit_are_named() -> None:
    found = packages.check_packages(["numpy>=1", "numpy<1", "no-such-package>=2", "decord-of-nobody; extra == 'dev'", "ray>=1"])
    assert [(one.state, one.found.split(",")[0]) for one in found[1:]] == [
        ("problem", f"numpy {__import__('numpy').__version__}"), ("problem", "no-such-package is missing"),
    ]  # fmt: skip
    assert found[2].remedy == 'pip install "no-such-package>=2"' and "2 of 4" in found[0].found


def test_a_torchvision_that_torch_was_not_made_for_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.check_torchvision().state == "ok"

    def import_module(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(packages.importlib, "import_module", import_module)  # as beside a torch without CUDA
    found = packages.check_torchvision()
    assert found.state == "problem" and found.found.endswith(": operator torchvision::nms does not exist")
    assert "from the same index" in found.remedy


def test_gpus_that_cannot_be_used_are_problems_and_none_is_a_note() -> None:
    assert machine.check_gpu(Hardware(("H200",), 2**37, True)).state == "ok"
    assert machine.check_gpu(Hardware(problem="the driver is too old", unusable_gpu=True)).state == "problem"
    assert machine.check_gpu(Hardware(problem="torch finds no GPU")).state == "note"


def test_limits_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 65536))
    assert machine.check_files().state == "problem" and "ulimit -n 65536" in machine.check_files().remedy
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    assert machine.check_files().state == "ok"
    assert machine.check_shared_memory(tmp_path / "gone").state == "problem"
    monkeypatch.setattr(machine, "MIN_SHARED_GB", 1e9)
    assert "--shm-size" in machine.check_shared_memory(tmp_path).remedy
    monkeypatch.setattr(machine, "MIN_DISK_GB", 1e9)
    (found,) = machine.check_disk({"runs": tmp_path / "later" / "runs"})
    assert found.state == "problem" and str(tmp_path) in found.found


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"HTTPS_PROXY": "http://p:3128"}, "problem"),
        ({"https_proxy": "http://p:3128", "no_proxy": "localhost,.lan"}, "ok"),
    ],
)
def test_a_proxy_for_local_addresses_is_a_problem(environment: dict[str, str], state: str) -> None:
    assert machine.check_proxies(environment).state == state


def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "token"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    assert cluster.check_token({}).state == "note"
    assert cluster.check_token(environment).state == "problem"
    path.write_text("secret-of-a-cluster")
    path.chmod(0o644)
    found = cluster.check_token(environment)
    assert found.state == "problem" and "chmod 600" in found.remedy and "secret" not in found.found
    path.chmod(0o600)
    assert cluster.check_token(environment).state == "ok"


def test_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    assert cluster.check_storage(str(tmp_path)).state == "ok" and list(tmp_path.iterdir()) == []
    assert cluster.check_storage(str(tmp_path / "gone")).state == "problem"


def test_the_command_reports_in_json_and_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoders, "check_decoders", lambda: [Finding("h264", "ok", "decoded by pyav")])
    monkeypatch.setattr(cluster, "check_ray", lambda: [])
    assert run(doctor.main, ["--json", "--storage", str(tmp_path), "scale.workers=0"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == 0 and {"python", "storage", "configuration"} <= {one["subject"] for one in report["findings"]}
    assert run(doctor.main, ["--storage", str(tmp_path / "gone")]) == FAILED
    said = capsys.readouterr().out
    assert "problem  storage" in said and said.endswith("1 problem\n")
    assert run(doctor.main, ["scale.worker=0"]) == USER_ERROR
    assert "scale.workers" in capsys.readouterr().err
    assert sys.version.split()[0] in format_findings([packages.check_python()])[0]
