from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import bench, prepare
from jobs.command import run
from pipeline.bench.figures import compute_steady_rate
from pipeline.bench.manifest_sizes import measure_sizes
from pipeline.bench.peers import loader
from pipeline.bench.views import VIEW_KINDS
from pipeline.clips.plan import BlockLayout
from tests.videos import write_numbers

SMALL = "data.clips_per_block=3"


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_quick_benchmark_of_the_stream_prints_one_json_object_last(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real stream, real floor; how fast they are is printed, not tested. Its blocks would be too few by the configuration's own
    size of a block."""
    assert run(bench.main, ["stream", "--json", "--quick", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["clips_per_repeat"] == bench.QUICK_STEPS * 2 * 3
    assert figures["clips_per_second"] > 0
    assert figures["stream_ratio"] == pytest.approx(figures["clips_per_second"] / figures["floor_clips_per_second"], rel=1e-3)
    assert figures["spread"][0] <= figures["stream_ratio"] == figures["median"] <= figures["spread"][1] and figures["n"] == 1


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_the_loader_and_the_stream_give_the_same_number_of_views(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "PROCESSES", 1)  # each imports torch and timm
    words = ["loader", "--json", "--steps", "8", "--repeats", "1", "--config", str(tiny / "tiny.yaml"), SMALL]
    assert run(bench.main, words) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["loader_ratio"] == figures["median"] > 0 and figures["n"] == 1
    assert (figures["views_per_step"], figures["videos_per_repeat"]) == (2 * 2 * (1 + 2 * 2), 8 * 2 * 3)


@cache
def measure_once(what: str, tiny: Path) -> tuple[dict[str, Any], str]:
    """The figures of one repeat of a benchmark, and what it said beside them."""
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
        assert run(bench.main, [what, "--json", "--config", str(tiny / "tiny.yaml"), "--repeats", "1"]) == 0
    return json.loads(printed.getvalue().strip().splitlines()[-1]), said.getvalue()


def test_decode_compares_an_open_per_view_with_one(tiny: Path) -> None:
    figures, _ = measure_once("decode", tiny)
    took = figures["milliseconds_per_video"]
    assert figures["decode_once_ratio"] == pytest.approx(took["an open per view"] / took["once"], rel=0.05)
    assert figures["decode_once_ratio"] > 1.5  # four opens over one; how much more is the machine's
    assert all(any("ratio" in key for key in measure) and measure["n"] == 1 for measure in figures["measures"].values())


def test_copies_are_decoded_beside_their_originals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same videos and moments; a copy of an original that is small already keeps its size."""
    for kind in ("a", "b"):
        for number in range(4):
            write_numbers(tmp_path / "videos" / kind / f"{number}.mp4", frames=60, size=(128, 96), gop=60)
    assert run(prepare.main, ["folder", str(tmp_path / "videos"), str(tmp_path / "data"), "--labeled", "1/class"]) == 0
    words = [f"data.manifest={tmp_path / 'data' / 'manifest.parquet'}", "data.decode_size=224"]
    capsys.readouterr()
    assert run(bench.main, ["copies", "--json", "--repeats", "2", "--sides", "48,96", *words]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    originals, copies = figures["originals"], figures["copies of 48"]
    unlike = figures["copies of 96"]
    assert [kind["frames"] for kind in (originals, copies, unlike)] == ["128x96 (4)", "64x48 (4)", "128x96 (4)"]
    assert [kind["decode_size"] for kind in (originals, copies, unlike)] == [224, 48, 96]
    assert figures["copies_48"]["n"] == 2 and figures["copies_48"]["copies_48_ratio"] > 0
    for kind in (originals, copies):
        assert kind["spread"][0] <= kind["cpu_milliseconds_per_video"] <= kind["spread"][1]
        assert kind["decoders"] == {"decord": 4}
        needed = kind["cores_for_120_videos_per_second"]
        assert needed == pytest.approx(0.12 * kind["cpu_milliseconds_per_video"], abs=0.06)
        assert kind["videos_per_core_second"] == pytest.approx(1000 / kind["cpu_milliseconds_per_video"], rel=0.01)
    bytes_each = [path.stat().st_size for path in (tmp_path / "videos").rglob("*.mp4")]
    assert originals["kilobytes_per_video"] == pytest.approx(np.mean(bytes_each) / 1000, abs=1)
    assert copies["copying_cpu_seconds_per_video"] > 0 and "copying_cpu_seconds_per_video" not in originals
    assert run(bench.main, ["copies", "--sides", "8", *words]) == 2
    assert "--sides 8: at least 16 pixels" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(600)
def test_runs_over_generated_manifests_of_two_sizes(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a process with a Ray of its own, over real files; the larger one is mapped."""
    words = ["scale", "--json", "--rows", "1000,300000", "--steps", "16", "--config", str(tiny / "tiny.yaml"), SMALL]
    assert run(bench.main, words) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    small, large = figures["sizes"]
    assert (small["rows"], large["rows"]) == (1000, 300_000) and figures["n"] == 1
    assert figures["scale_ratio"] == pytest.approx(large["seconds_per_clip"] / small["seconds_per_clip"], rel=0.05)
    assert large["driver_private_mb"] < small["driver_private_mb"] + 200  # MB


def keys(figures: object) -> object:
    """Names of all figures, without their values."""
    if isinstance(figures, dict):
        return {name: keys(value) for name, value in figures.items() if name not in ("decoders", "frames")}
    return [keys(value) for value in figures] if isinstance(figures, list) else None


@pytest.mark.parametrize("what", ["decode", "views", "copies"])
def test_a_quick_benchmark_has_the_same_figures_with_their_spread(
    what: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, said = measure_once(what, tiny)
    capsys.readouterr()
    assert run(bench.main, [what, "--json", "--config", str(tiny / "tiny.yaml"), "--quick"]) == 0
    printed = capsys.readouterr()
    quick = json.loads(printed.out.strip().splitlines()[-1])
    for text in (said, printed.err):
        assert text.startswith(f"bench {what} ") and "minute" in text.splitlines()[0]
    assert keys(quick) == keys(whole)
    assert '"n": 2' in json.dumps(quick) and '"n": 2' not in json.dumps(whole)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("what", ["step", "scale"])
def test_a_quick_benchmark_of_whole_steps(what: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As configured it would train on two workers."""
    words = ["--config", str(tiny / "tiny.yaml"), "scale.workers=2"]
    assert run(bench.main, [what, "--json", "--quick", *words]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (figures["end_to_end_over_ideal"] if what == "step" else figures)["median"] > 0
    assert (figures["end_to_end_over_ideal"] if what == "step" else figures)["n"] == (2 if what == "step" else 1)


@pytest.mark.parametrize("what", bench.BENCHMARKS)
def test_what_is_given_counts_more_than_quick_and_quick_more_than_the_defaults(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = bench.BENCHMARKS[what]
    asked: list[argparse.Namespace] = []

    def measure(options: argparse.Namespace) -> dict[str, int]:
        asked.append(options)
        return {"nothing": 0}

    monkeypatch.setitem(bench.BENCHMARKS, what, replace(one, measure=measure))
    name = next(iter(one.defaults))
    for words in ([], ["--quick"], ["--quick", f"--{name}", "7"]):
        assert run(bench.main, [what, *words]) == 0
    for options, values in zip(asked, (one.defaults, one.quick), strict=False):
        assert {name: getattr(options, name) for name in one.defaults} == values
    assert str(getattr(asked[2], name)) == "7"
    assert set(one.quick) == set(one.defaults) and one.quick != one.defaults
    # Ray's workers of an earlier test may still print
    first, second, third = (line for line in capsys.readouterr().err.splitlines() if line.startswith(f"bench {what} "))
    assert "--quick takes less than one" in first and "min" in first
    assert "less than a minute" in second and "less than a minute" in third and f"--{name} 7" in third


@pytest.mark.parametrize("rows", ["1000", "10,2000"])
def test_one_size_or_small_ones_are_not_compared(rows: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["scale", "--rows", rows, "--config", str(tiny / "tiny.yaml")]) == 2
    assert "at least two sizes of 1000 rows or more" in capsys.readouterr().err


def test_evaluate_compares_a_decode_a_view_with_one_a_video(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), "evaluation.clips=3", "evaluation.crops=3"]
    assert run(bench.main, ["evaluate", "--json", "--repeats", "1", *words]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (figures["videos"], figures["views"]) == (8, 72) and figures["largest_difference"] == 0
    before, after = (figures["ways"][f"a decode a {what}"] for what in ("view", "video"))
    assert (before["decodes"], after["decodes"]) == (72, 8)
    assert figures["decode_once_ratio"] == pytest.approx(before["seconds"] / after["seconds"], rel=0.1)
    assert figures["n"] == figures["cpu"]["n"] == 1 and figures["cpu"]["cpu_ratio"] > 0


def test_decode_needs_unlabeled_videos(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["decode", "--config", str(tiny / "tiny.yaml"), "method.name=supervised"]) == 2
    assert "bench decode measures unlabeled videos" in capsys.readouterr().err


def test_too_short_a_run_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["stream", "--steps", "3", "--config", str(tiny / "tiny.yaml")]) == 2
    assert "at least 32, 8 blocks" in capsys.readouterr().err


def test_an_option_of_another_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--steps", "8"]) == 2
    assert "bench manifest takes no --steps" in capsys.readouterr().err


def test_views_are_measured_in_the_units_of_the_floor(tiny: Path) -> None:
    figures, _ = measure_once("views", tiny)
    views = figures["views"]
    assert set(views) == {"floor, resize alone", *VIEW_KINDS}
    assert views["floor, resize alone"]["floor_ratio"] == 1
    assert all(view["milliseconds_per_clip"] > 0 for view in views.values())
    floor = views["floor, resize alone"]["milliseconds_per_clip"]
    assert views["strong"]["floor_ratio"] == pytest.approx(views["strong"]["milliseconds_per_clip"] / floor, rel=0.05)


def test_manifest_prints_a_column_for_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--rows", "4000,8000", "--json"]) == 0
    small, large = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["sizes"]
    assert (small["rows"], large["rows"]) == (4000, 8000)
    stages = {"generate", "split", "table", "write", "fingerprint", "label", "open", "summarize"}
    assert stages < set(small) and small["peak_mb"] > 50


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_million_rows_take_bounded_memory_and_linear_time() -> None:
    small, large = measure_sizes([100_000, 1_000_000])
    assert large["peak_mb"] < 1500
    assert large["seconds"] < 40 * small["seconds"]  # 11 on a quiet machine, 20 on a busy one; quadratic would be 100


@pytest.mark.parametrize("rows", ["many", "100", "10000,"])
def test_sizes_that_cannot_be_measured(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--rows", rows]) == 2
    assert f"--rows {rows}" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", [8, 9, 16])
@pytest.mark.parametrize("together", [1, 2, 3])
def test_the_rate_is_that_of_whole_waves(blocks: int, together: int) -> None:
    """Blocks of 2 steps that come ``together`` at a time, a second between: one after the other in no time."""
    layout = BlockLayout(0, 2 * blocks, 4, 1, 2)
    times = [
        10.0 + turn // together
        for turn, start in enumerate(layout.find_first_batches(2 * blocks))
        for _ in range(2 if turn else 1)
    ]
    rate = compute_steady_rate([times[: 2 * blocks], times[: 2 * blocks]], 12, layout)
    assert rate == pytest.approx(2 * 12 * 2 * together, rel=0.15)
