"""Probing on a cluster gives the same table as on one machine, bad files and crashes included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import prepare
from pipeline.manifest.schema import read_manifest
from pipeline.prepare import probe_on_ray as on_ray
from pipeline.prepare.probe_on_ray import probe_on_ray
from pipeline.video.probe import ProbeOptions, probe_files
from tests.videos import write_numbers


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_returns_the_same_probes_as_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_numbers(tmp_path / "videos" / "ab"[number % 2] / f"{number}.mp4", frames=5 + number, size=(64, 64))
    (tmp_path / "videos" / "a" / "bad.mp4").write_bytes(b"bad")
    paths = [str(path) for path in sorted((tmp_path / "videos").rglob("*.mp4"))] + [str(tmp_path / "none.mp4")]
    options = ProbeOptions(hash=True)
    here = probe_files(paths, options)
    assert probe_on_ray(paths, options, lambda location: None, chunk=3) == here
    # what is known and has not changed is not looked at again: such a number cannot come from the file
    told = dict(zip(paths, here, strict=True))
    told[paths[0]] = replace(here[0], frames=999)
    assert [probe.frames for probe in probe_on_ray(paths, options, told.get, chunk=3)] == [999, *(p.frames for p in here[1:])]

    calls: list[int] = []
    monkeypatch.setattr(on_ray, "probe_on_ray", lambda *words, **more: calls.append(1) or probe_on_ray(*words, **more))
    assert prepare.main(["folder", str(tmp_path / "videos"), str(tmp_path / "one"), "--labeled", "1/class", "--ray"]) == 0
    assert calls == [1]
    assert prepare.main(["folder", str(tmp_path / "videos"), str(tmp_path / "two"), "--labeled", "1/class", "--no-ray"]) == 0
    one, two = (read_manifest(tmp_path / name / "manifest.parquet") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
