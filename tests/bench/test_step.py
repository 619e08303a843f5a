from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs import bench
from jobs.command import run
from pipeline.bench import end_to_end
from pipeline.bench.end_to_end import SeparateProcesses, bench_end_to_end, choose_num_steps
from pipeline.bench.timed_step import build_timed_step, prepare_bench_run
from pipeline.config import load_config
from pipeline.training.step import StepContext, take_step

RATIOS = {
    "step_over_bare",
    "step_over_bare_cpu",
    "concatenated_over_separate",
    "views_of_step",
    "end_to_end_over_ideal",
    "end_to_end_over_alone",
    "checkpoint_cost",
    "logging_cost",
}


def test_step_prints_one_json_object_last(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How fast is printed, not tested; a core and a few steps are enough for that."""
    monkeypatch.setattr(end_to_end, "count_cores", lambda: 1)
    monkeypatch.setattr(end_to_end, "MIN_STEPS", 4)
    words = ["step", "--json", "--steps", "2", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]
    assert run(bench.main, words) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(figures) > RATIOS and figures["videos_per_step"] == 6
    for name in RATIOS:
        measured = figures[name]
        assert measured[f"{name}_ratio"] == measured["median"] > 0
        assert measured["spread"][0] <= measured["median"] <= measured["spread"][1] and measured["n"] == 1
    took = figures["milliseconds"]
    assert figures["step_over_bare"]["median"] == pytest.approx(took["step"] / took["bare"], rel=0.01)
    assert not (tiny / "runs" / "bench").exists()


def test_views_made_beforehand_change_no_result(tiny: Path, tmp_path: Path) -> None:
    """What is timed is the step that training takes."""
    config = load_config(tiny / "tiny.yaml")
    one, other = (build_timed_step(prepare_bench_run(config, str(tmp_path / name), 2)) for name in ("one", "other"))
    results = one.take(reuse_views=True)
    usual = take_step(other.state.method, other.state, other.batch, other.config, StepContext(0, torch.device("cpu"), 1.0))
    assert set(results) == set(usual)
    assert float(results["loss"]) == float(usual["loss"])


def test_the_bare_passes_are_those_of_the_step(tiny: Path, tmp_path: Path) -> None:
    """They give every parameter a gradient, from as many clips."""
    timed = build_timed_step(prepare_bench_run(load_config(tiny / "tiny.yaml"), str(tmp_path), 2))
    seen: dict[str, list[int]] = {"bare": [], "step": []}
    for name, work in (("bare", lambda: timed.pass_networks("separate")), ("step", lambda: timed.take(reuse_views=True))):
        hooks = [
            student.register_forward_pre_hook(lambda _, clips, name=name: seen[name].append(len(clips[0])))
            for student in timed.state.students.values()
        ]
        work()
        for hook in hooks:
            hook.remove()
        assert all(parameter.grad is not None for parameter in timed.state.students.parameters())
    assert seen["bare"] == seen["step"] == [2, 4, 4, 2, 4, 4]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_end_to_end_is_measured_with_the_runs_own_workers(tiny: Path, tmp_path: Path) -> None:
    """A real fit of one worker, and as many processes that only compute beside those that only decode."""
    config = load_config(tiny / "tiny.yaml", ["scale.workers=1", f"run.storage_path={tmp_path}"])
    figures = bench_end_to_end(config, steps=4, repeats=1)
    for name, measured in figures.items():
        assert measured[f"{name}_ratio"] > 0 and measured["n"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.timeout(200)
def test_what_only_computes_does_so_as_workers_do_with_unequal_shares_too(tiny: Path) -> None:
    config = load_config(tiny / "tiny.yaml", ["scale.workers=2", "data.labeled_per_step=3", "method.contrast.weight=1"])
    with SeparateProcesses(config) as processes:
        assert processes.measure(2, 0, steps=2) > 0 and processes.measure(0, 1, steps=2) > 0


def test_lengths_leave_decoding_to_do_until_the_end(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    here, one, two = (choose_num_steps(load_config(tiny / "tiny.yaml", [f"scale.workers={number}"]), 4) for number in (0, 1, 2))
    assert here == (16, 4)
    assert one == (16 * 2, 10 * 2)  # blocks of 12 videos are 2 steps of one worker, and 4 steps of each of two
    assert two == (16 * 4, 10 * 4)
