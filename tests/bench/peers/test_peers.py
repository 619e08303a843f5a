"""Peers do the work that they claim: the videos, seconds and views of this project's own loader. Speed is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import pipeline.bench.peers
from jobs import bench, prepare
from jobs.command import run
from pipeline.bench.figures import configure_bench
from pipeline.bench.peers import pyslowfast_loader, ray_data_loader, svformer_loader
from pipeline.bench.peers.accuracy import train_until
from pipeline.bench.peers.compare import LoaderComparison, run_in_new_process
from pipeline.bench.peers.compared_loaders import LeftOut, import_loader, list_loaders, measure_loader
from pipeline.bench.peers.process_tree import PeakMemory
from pipeline.bench.peers.requests import RowViews, TensorColumns
from pipeline.bench.peers.step_inputs import StepInput, build_step_input
from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import STUDENTS, Config, load_config
from pipeline.errors import RunFailed
from pipeline.methods import Views, make_views
from pipeline.stream.batches import to_batch
from tests.videos import read_number, write_numbers

Columnwise = Callable[[VideoSource, Config, int], TensorColumns]


def _data_set(make: Callable[..., TensorColumns]) -> Columnwise:
    return lambda source, config, row: RowViews(source, config, 100, make)[row]


def _torchcodec(source: VideoSource, config: Config, row: int) -> TensorColumns:
    pytest.importorskip("torchcodec")
    from pipeline.bench.peers import torchcodec_loader

    return _data_set(torchcodec_loader.make_torchcodec_views)(source, config, row)


def _ray_data(source: VideoSource, config: Config, row: int) -> TensorColumns:
    """What its two maps do, without Ray."""
    made = ray_data_loader.make_views_of_row(source, config, ray_data_loader.decode_row(source, config, row))
    return {name: torch.as_tensor(value) for name, value in made.items()}


PEERS = {
    "svformer": _data_set(svformer_loader.make_svformer_views),
    "pyslowfast": _data_set(pyslowfast_loader.make_pyslowfast_views),
    "ray_data": _ray_data,
    "torchcodec": _torchcodec,
}


def _load(name: str, source: VideoSource, config: Config, rows: list[int]) -> StepInput:
    return build_step_input(default_collate([PEERS[name](source, config, row) for row in rows]), torch.device("cpu"))


def _kinds(views: Views) -> dict[str, torch.Tensor]:
    assert views.unlabeled is not None
    kinds = {"labeled": views.labeled, "weak": views.unlabeled.weak, "strong": views.unlabeled.strong}
    return {f"{name}/{kind}": of[name] for kind, of in kinds.items() for name in of}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_delivers_the_views_of_our_own_loader(name: str, tiny: Path) -> None:
    """Of the same rows: numbers of videos and labels, kinds, shapes, types and normalization."""
    config = configure_bench(load_config(tiny / "tiny.yaml"), 8)
    source, _ = open_source(config)
    batch = to_batch(source.decode_rows(np.array([2, 3])))
    ours = make_views(batch, config, config.run.seed, "cpu")
    fed = _load(name, source, config, [2, 3])
    assert fed.views is not None
    for column in ("rows", "videos", "labels"):
        assert torch.equal(getattr(fed.batch, column), getattr(batch, column))
    assert fed.views.unlabeled is not None and ours.unlabeled is not None
    assert torch.equal(fed.views.labels, ours.labels)
    for column in ("hidden_labels", "videos"):
        assert torch.equal(getattr(fed.views.unlabeled, column), getattr(ours.unlabeled, column))
    theirs, own = _kinds(fed.views), _kinds(ours)
    assert set(theirs) == set(own) and len(own) == 6
    for view, values in own.items():
        assert theirs[view].shape == values.shape and theirs[view].dtype == values.dtype
        assert abs(float(theirs[view].mean() - values.mean())) < 0.5
        assert float(theirs[view].amin()) > -MEAN / STD - 0.01 and float(theirs[view].amax()) < (1 - MEAN) / STD + 0.01
        assert float(theirs[view].std()) > 0.2
    again = _load(name, source, config, [2, 3]).views
    assert again is not None and all(torch.equal(theirs[view], values) for view, values in _kinds(again).items())


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of videos whose frames say their number, with key frames far apart; in the views nothing moves."""
    folder = tmp_path_factory.mktemp("numbered")
    for kind in ("a", "b"):
        for number in range(4):
            name = folder / "videos" / kind / f"{number}.mp4"
            write_numbers(name, frames=60 + 7 * number, size=(128, 128), gop=40, fps="25" if number else "30000/1001")
    assert prepare.main(["folder", str(folder / "videos"), str(folder / "data"), "--labeled", "1/class"]) == 0
    return folder / "data" / "manifest.parquet"


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("sampling", ["window", "segments"])
def test_a_peer_shows_the_same_frames(name: str, sampling: str, numbered: Path, tiny: Path) -> None:
    words = [f"{student}.clip.sampling={sampling}" for student in STUDENTS]
    still = ["views.weak.min_scale=1", "views.weak.flip=0", "views.strong.ops=0", "views.strong.cutout=0"]
    sizes = ["data.decode_size=64", "primary.clip.size=64", "auxiliary.clip.size=64"]
    config = configure_bench(load_config(tiny / "tiny.yaml", [f"data.manifest={numbered}", *words, *still, *sizes]), 8)
    source, _ = open_source(config)
    rows = [0, 1, 5]
    ours = make_views(to_batch(source.decode_rows(np.array(rows))), config, config.run.seed, "cpu")
    theirs = _load(name, source, config, rows).views
    assert theirs is not None
    shown = [{view: _numbers(values) for view, values in _kinds(views).items()} for views in (theirs, ours)]
    assert shown[0] == shown[1]
    assert len({number for numbers in shown[1].values() for number in numbers}) > 20


def _numbers(views_NCTHW: torch.Tensor) -> list[int]:
    frames = ((views_NCTHW * STD + MEAN) * 255).permute(0, 2, 3, 4, 1).flatten(0, 1).numpy()
    return [read_number(frame) for frame in frames]


@pytest.mark.parametrize("name", ["ours", pytest.param("svformer", marks=pytest.mark.long)])
def test_a_loader_is_measured_in_a_process_of_its_own(name: str, tiny: Path) -> None:
    """Alone, and with training; with the memory of its processes."""
    config = load_config(tiny / "tiny.yaml")
    found = run_in_new_process(measure_loader, name, config.model_dump_json(), 4, 1)
    assert found["steps_alone"] > 0 and found["steps"] > 0 and found["first"] > 0
    assert found["resident"] > found["proportional"] > 100e6
    assert found["processes"] >= (2 if name == "svformer" else 1)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_quick_comparison(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all loaders, Ray's among them; torchcodec is compared or said to be missing."""
    assert run(bench.main, ["peers", "--json", "--quick", "--config", str(tiny / "tiny.yaml")]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out.strip().splitlines()[-1])
    compared = {"svformer", "pyslowfast", "ray_data", "torchcodec"} - set(figures["left_out"])
    assert compared >= {"svformer", "pyslowfast", "ray_data"}
    assert set(figures["ours_over"]) == compared and set(figures["loaders"]) == {"ours", *compared}
    assert (figures["views_per_step"], figures["videos_per_step"], figures["steps"]) == (20, 6, 4)
    for loader in figures["loaders"].values():
        for name in ("views_per_second", "steps_per_second", "peak_memory_mb", "peak_rss_mb"):
            assert loader[name]["n"] == 1 and loader[name]["spread"][0] <= loader[name]["median"] <= loader[name]["spread"][1]
    for ratios in figures["ours_over"].values():
        assert ratios["views_per_second"]["views_per_second_ratio"] > 0 and ratios["peak_memory"]["n"] == 1


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_our_stream_is_measured_as_it_trains(tiny: Path) -> None:
    """With a Ray of its own."""
    config = load_config(tiny / "tiny.yaml", ["scale.workers=1", "data.clips_per_block=6"])
    assert list_loaders(config)[:2] == ["ours", "ours_in_one_process"]
    found = run_in_new_process(measure_loader, "ours", config.model_dump_json(), 16, 16)
    assert found["steps_alone"] > 0 and found["steps"] > 0 and found["processes"] > 5


def _forget_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is imported anew, where it is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec" or name.endswith(".torchcodec_loader")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(pipeline.bench.peers, "torchcodec_loader", raising=False)


def test_a_missing_torchcodec_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_torchcodec(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(LeftOut, match=r"torchcodec is not installed: pip install -e .\[torchcodec\]"):
        import_loader("torchcodec", load_config(tiny / "tiny.yaml"))


def test_a_torchcodec_without_ffmpeg_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It raises at import, with a page of text."""
    (tmp_path / "torchcodec").mkdir()
    text = 'raise RuntimeError("\\nCould not load libtorchcodec.\\n" + 30 * "line\\n")'
    (tmp_path / "torchcodec" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    _forget_torchcodec(monkeypatch)
    with pytest.raises(LeftOut, match=r"does not load: Could not load libtorchcodec. It needs FFmpeg's shared") as caught:
        import_loader("torchcodec", load_config(tiny / "tiny.yaml"))
    assert "\n" not in str(caught.value)


def test_a_peer_that_fails_is_left_out_and_said_but_ours_ends_the_comparison(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = LoaderComparison(load_config(tiny / "tiny.yaml"))
    assert comparison.list_names() == ["ours", "svformer", "pyslowfast", "ray_data", "torchcodec"]
    comparison.measure("svformer", os._exit, 3)
    comparison.measure("pyslowfast", int, "no number")  # type: ignore[arg-type]
    assert comparison.list_names() == ["ours", "ray_data", "torchcodec"]
    turns = [(name, repeat) for repeat in (0, 1) for name in ("ours", "ray_data", "torchcodec")]
    assert list(comparison.iterate_turns(2)) == turns
    assert comparison.left_out["svformer"] == "it failed: its process ended with exit code 3 and said nothing"
    assert "ValueError: invalid literal" in comparison.left_out["pyslowfast"]
    assert capsys.readouterr().err.count(" is left out: ") == 2
    with pytest.raises(RunFailed, match="exit code 4"):
        comparison.measure("ours", os._exit, 4)


def test_memory_is_that_of_the_process_and_its_children() -> None:
    code = (
        "import subprocess, sys; block = b'1' * 60_000_000\n"
        "child = subprocess.Popen([sys.executable, '-c', \"block = b'1' * 90_000_000; print('there', flush=True); input()\"])\n"
        "child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        peak = PeakMemory()
        peak.update(process.pid, closely=True)
        process.communicate("\n")
    assert peak.processes == 2
    assert 150e6 < peak.proportional <= peak.resident < 250e6
    peak.update(process.pid, closely=True)  # they have ended: what was seen stays
    assert peak.processes == 2 and peak.resident > 150e6


@pytest.mark.parametrize("name", ["ours", pytest.param("svformer", marks=pytest.mark.long)])
def test_training_stops_at_the_accuracy_or_at_the_last_step(name: str, tiny: Path) -> None:
    words = ["method.name=supervised", "train.checkpoint_every=2", "train.steps=4"]
    tree = load_config(tiny / "tiny.yaml", words).model_dump_json()
    soon, never = (run_in_new_process(train_until, name, tree, percent) for percent in (0.001, 101))
    assert never["steps"] == 4 and never["reached"] == 0
    assert 0 <= never["accuracy"] <= 100 and never["seconds"] > never["checks"] > 0
    assert soon["steps"] in (2, 4) and soon["reached"] == (soon["accuracy"] > 0)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_seconds_to_an_accuracy_are_compared(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--to-accuracy", "1", "--repeats", "1", "--config", str(tiny / "tiny.yaml"), "train.checkpoint_every=6"]
    assert run(bench.main, ["peers", "--json", *words]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (figures["most_steps"], figures["checked_every"], figures["to_accuracy"]) == (12, 6, 1)
    for name, loader in figures["loaders"].items():
        assert loader["reached"] in ("1 of 1", "0 of 1") and loader["seconds"]["n"] == 1, name
    assert {"ours", "svformer", "pyslowfast", "ray_data"} <= set(figures["loaders"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to-accuracy", "0"], "--to-accuracy 0: a percentage above 0"),
        (["--to-accuracy", "50", "--steps", "9"], "leave --steps out, or write train.steps=N"),
        (["views.strong.time.reverse=0.5"], "the peers know no views.strong.time"),
        (["method.supervised.mixup=0.2"], "the peers know no method.supervised.mixup"),
        (["auxiliary.clip.modality=temporal_gradient"], "the peers know no auxiliary.clip.modality"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: list[str], reason: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench.main, ["peers", "--config", str(tiny / "tiny.yaml"), *words]) == 2
    assert reason in capsys.readouterr().err


def test_another_benchmark_takes_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["stream", "--to-accuracy", "50"]) == 2
    assert "bench stream takes no --to-accuracy" in capsys.readouterr().err
