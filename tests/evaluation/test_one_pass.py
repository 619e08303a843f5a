"""A test video is opened once for all of its views, and its scores are those of a plain loop over views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.clips import decode
from pipeline.clips.evaluation_views import batch_views, convert_to_tensors, unpack_videos
from pipeline.clips.source import Columns, VideoSource, open_source
from pipeline.clips.whole_videos import decode_videos
from pipeline.config import STUDENTS, Config, load_config, parse_config, translate_old_names
from pipeline.errors import UserError
from pipeline.evaluation import scorer as scorer_module
from pipeline.evaluation.protocol import CROP_POSITIONS, compute_clip_moments, list_views
from pipeline.evaluation.score_videos import is_worth_cluster, score_all_views
from pipeline.evaluation.scorer import Scorer
from pipeline.methods import build_students
from pipeline.prediction.file_manifest import make_manifest
from pipeline.prediction.input_videos import InputVideo
from pipeline.ray_cluster.resources import Resources
from pipeline.video import container as frames_module
from tests.videos import write_numbers

CPU = torch.device("cpu")


def configured(tiny: Path, *words: str) -> Config:
    base = ["data.isolate_decoder=false", "evaluation.clips=4", "evaluation.crops=3"]
    return load_config(tiny / "tiny.yaml", [*base, *words])


def weights_of(config: Config, classes: int, folder: Path) -> Path:
    """Students that were never trained: their scores differ from video to video all the same."""
    torch.manual_seed(0)
    path = folder / "model.safetensors"
    students = build_students(config, classes).state_dict()
    save_file({f"students.{key}": value.contiguous() for key, value in students.items()}, path)
    return path


def source_of_files(tiny: Path, config: Config, files: list[Path]) -> VideoSource:
    source = open_source(config)[0]
    inputs = [InputVideo(str(path), str(path)) for path in files]
    return replace(source, manifest=make_manifest(inputs, source.manifest.classes))


def view_by_view(source: VideoSource, config: Config, weights: Path, videos: Any, batch: int = 8) -> Columns:
    """What evaluation did before: every view opens the file, ``batch`` of them go through the students at once."""
    rows, moments, windows = list_views(np.asarray(videos), config.evaluation.clips, config.evaluation.crops)
    scorer = Scorer(config.model_dump(mode="json"), len(source.manifest.classes), str(weights))
    parts = [slice(start, start + batch) for start in range(0, len(rows), batch)]
    found = [scorer.score_clips(source.decode_views(rows[part], moments[part], windows[part])) for part in parts]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def same(one: Columns, other: Columns) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype.kind == other[name].dtype.kind and np.array_equal(one[name], other[name]), name


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often decord and PyAV opened each file, by the decoders' own calls."""
    counted: Counter[tuple[str, str]] = Counter()

    def counting(kind: str, open_file: Callable[..., Any]) -> Callable[..., Any]:
        def open_and_count(location: Any, *words: Any, **more: Any) -> Any:
            counted[kind, Path(str(location)).name] += 1
            return open_file(location, *words, **more)

        return open_and_count

    monkeypatch.setattr(frames_module.av, "open", counting("pyav", frames_module.av.open))
    if decode.decord is not None:
        monkeypatch.setattr(decode.decord, "VideoReader", counting("decord", decode.decord.VideoReader))
    return counted


@pytest.mark.parametrize("batch", [8, 5, 64])
def test_scores_are_those_of_a_loop_over_views_bit_by_bit(tiny: Path, tmp_path: Path, batch: int) -> None:
    """Batches hold views of several videos, as they did; so even the rounding is the same."""
    config = configured(tiny, *([] if batch == 8 else [f"evaluation.batch_views={batch}"]))
    source = open_source(config)[0]
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")[:5]
    found = score_all_views(source, config, weights, videos, None)
    assert len(found["video"]) == 5 * 4 * 3 and len(np.unique(found["primary"], axis=0)) > 5
    same(found, view_by_view(source, config, weights, videos, batch))


def test_each_file_is_opened_once(tiny: Path, tmp_path: Path, opens: Counter[tuple[str, str]]) -> None:
    """decord opens a file once, PyAV twice: its packets are read before its frames. 12 views opened it 12 and 24 times."""
    files = [write_numbers(tmp_path / f"{name}.mp4", size=(96, 64)) for name in "ab"]
    files.append(write_numbers(tmp_path / "c.avi", size=(96, 64)))
    config = configured(tiny)
    source = source_of_files(tiny, config, files)
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")
    decoders = {Path(source.manifest.locate(row)).name: source.describe_video(int(row)).decoder for row in videos}
    opens.clear()
    found = score_all_views(source, config, weights, videos, None)
    assert opens == {(decoder, name): 2 if decoder == "pyav" else 1 for name, decoder in decoders.items()}
    opens.clear()
    same(found, view_by_view(source, config, weights, videos))
    assert opens == {(decoder, name): 24 if decoder == "pyav" else 12 for name, decoder in decoders.items()}


def test_only_frames_that_views_show_are_kept(tiny: Path, tmp_path: Path) -> None:
    """Of 3,000 frames 4 moments x 2 students x 4 frames at most, however many crops."""
    path = write_numbers(tmp_path / "long.mp4", frames=3000, size=(64, 48), gop=250)
    config = configured(tiny)
    source = source_of_files(tiny, config, [path])
    columns = decode_videos(source, source.manifest.find_usable_rows("test"), compute_clip_moments(4))
    number, height, width = columns["shape"][0]
    assert 16 < number <= 32 and min(height, width) == 40
    assert columns["pixels"].nbytes == number * height * width * 3


SEGMENTS = ("primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", "auxiliary.clip.frames=6")


def test_segments_of_the_whole_video_are_decoded_once_for_ten_clips_and_three_crops(
    tiny: Path, tmp_path: Path, opens: Counter[tuple[str, str]]
) -> None:
    """Every clip spans the file, and still it is one pass; scores are those of a loop over views."""
    path = write_numbers(tmp_path / "long.mp4", frames=500, size=(64, 48), gop=250)
    config = configured(tiny, *SEGMENTS, "evaluation.clips=10")
    source = source_of_files(tiny, config, [path])
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")
    opens.clear()
    found = score_all_views(source, config, weights, videos, None)
    assert opens == {("decord", "long.mp4"): 1} and len(found["video"]) == 30
    same(found, view_by_view(source, config, weights, videos))
    shown = decode_videos(source, videos, compute_clip_moments(10))
    assert len(np.unique(np.concatenate([shown[name].reshape(-1) for name in STUDENTS]))) == shown["shape"][0, 0] > 80


@pytest.mark.parametrize("isolate", ["false", "true"])
def test_a_file_that_lost_its_end_keeps_the_views_that_decode(tiny: Path, tmp_path: Path, isolate: str) -> None:
    """The reasons too are those of a loop over views, in the words of the decoder."""
    config = configured(tiny, f"data.isolate_decoder={isolate}")
    files = [write_numbers(tmp_path / name, frames=200, size=(96, 64), gop=10) for name in ("cut.ts", "gone.ts", "whole.ts")]
    source = source_of_files(tiny, config, files)
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) * 6 // 10])
    files[1].unlink()
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")
    found = score_all_views(source, config, weights, videos, None)
    same(found, view_by_view(source, config, weights, videos))
    usable = Counter(Path(source.manifest.locate(row)).name for row in found["video"][found["reason"] == ""].tolist())
    assert usable == {"cut.ts": 6, "whole.ts": 12}
    assert any("cannot be decoded" in reason for reason in found["reason"])


REAL = (
    "h264_vfr.mp4", "h264_vfr.mkv", "h264_opengop_b3.mp4", "h264_closed_b3.mp4", "h264_rot90.mp4", "h264_editlist.mp4",
    "h264_odd_321x241.mp4", "portrait.mp4", "vp9.webm", "mpeg2.mpg", "xvid_b2.avi", "h264.flv",
)  # fmt: skip


def test_views_of_real_files_are_the_same_bytes_alone_and_together(tiny: Path, tmp_path: Path, shared_data: Path) -> None:
    """Odd files of many formats and one of a fight: their clips, and through students their scores."""
    config = configured(tiny, "data.decode_size=64", "evaluation.clips=2")
    fights = sorted((shared_data / "fights").rglob("*.mp4"))[:1]
    source = source_of_files(tiny, config, [*(shared_data / "odd" / name for name in REAL), *fights])
    videos = source.manifest.find_usable_rows("test")
    assert len(videos) >= 13 and {source.describe_video(int(row)).decoder for row in videos} == {"decord", "pyav"}
    weights = weights_of(config, len(source.manifest.classes), tmp_path)
    found = score_all_views(source, config, weights, videos, None)
    assert (found["reason"] == "").all()
    same(found, view_by_view(source, config, weights, videos))


def test_cut_views_are_the_decoded_clips(tiny: Path, tmp_path: Path) -> None:
    """By their bytes, also of several videos of other sizes in one block, and from memory that cannot be written to."""
    files = [write_numbers(tmp_path / f"{w}x{h}.mp4", size=(w, h)) for w, h in ((96, 64), (64, 96), (160, 48))]
    config = configured(tiny)
    source = source_of_files(tiny, config, files)
    videos = source.manifest.find_usable_rows("test")
    columns = decode_videos(source, videos, compute_clip_moments(4))
    for array in columns.values():
        array.setflags(write=False)
    batches = list(batch_views(unpack_videos(columns, convert_to_tensors(columns), CPU), CROP_POSITIONS[3], source.size, 7))
    assert [len(batch.videos) for batch in batches] == [7, 7, 7, 7, 7, 1]
    rows, moments, windows = list_views(videos, 4, 3)
    expected = source.decode_views(rows, moments, windows)
    assert np.concatenate([batch.videos for batch in batches]).tolist() == rows.tolist()
    for name in STUDENTS:
        assert np.array_equal(torch.cat([batch.clips[name] for batch in batches]).numpy(), expected[name])


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_scoring_actors_give_the_same_scores_of_videos_of_all_sizes(tiny: Path, tmp_path: Path) -> None:
    files = [write_numbers(tmp_path / f"{w}x{h}.mp4", size=(w, h)) for w, h in ((96, 64), (64, 96), (160, 48), (96, 96))]
    config = configured(tiny, "evaluation.clips=25", "data.isolate_decoder=true")
    source = source_of_files(tiny, config, files)
    files[1].unlink()
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")
    mine = score_all_views(source, config, weights, videos, None)
    theirs = score_all_views(source, config, weights, videos, Resources(2, 0.5, 0.5, gpu=False))
    assert len(mine["video"]) == 300 and sorted(set(mine["reason"] == "")) == [False, True]
    for name in ("video", "reason"):
        assert mine[name].tolist() == theirs[name].tolist()
    usable = mine["reason"] == ""
    for name in STUDENTS:
        np.testing.assert_allclose(mine[name][usable], theirs[name][usable], rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_are_computed_in_the_precision_of_the_run(tiny: Path, tmp_path: Path, precision: str) -> None:
    exact, rounded = configured(tiny), configured(tiny, f"train.precision={precision}")
    source = open_source(exact)[0]
    weights, videos = weights_of(exact, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")[:2]
    one, other = (score_all_views(source, config, weights, videos, None) for config in (exact, rounded))
    for name in STUDENTS:
        assert one[name].dtype == other[name].dtype == np.float32
        assert not np.array_equal(one[name], other[name])
        np.testing.assert_allclose(one[name], other[name], atol=0.02)


def test_batches_become_as_small_as_the_memory_wants(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tiny, "evaluation.batch_views=64")
    source = open_source(config)[0]
    weights, videos = weights_of(config, len(source.manifest.classes), tmp_path), source.manifest.find_usable_rows("test")[:6]
    expected = score_all_views(source, config, weights, videos, None)
    center_logits, tried = scorer_module.center_logits, []

    def small_memory(student: Any, clips: torch.Tensor, *words: Any) -> torch.Tensor:
        tried.append(len(clips))
        if len(clips) > most:
            raise torch.OutOfMemoryError("no memory is left")
        return center_logits(student, clips, *words)

    monkeypatch.setattr(scorer_module, "center_logits", small_memory)
    most = 20
    found = score_all_views(source, config, weights, videos, None)
    assert tried[:2] == [64, 32] and max(tried[2:]) == 16  # what did not fit once is not tried again
    assert [record.message for record in caplog.records if "do not fit" in record.message] == [
        "64 test views do not fit into the GPU's memory: going on with 32 at once",
        "32 test views do not fit into the GPU's memory: going on with 16 at once",
    ]
    assert np.array_equal(found["video"], expected["video"])
    for name in STUDENTS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
    most = 0
    with pytest.raises(UserError, match="one test view does not fit"):
        score_all_views(source, config, weights, videos, None)


def test_a_cluster_is_for_many_views_and_for_gpus(tiny: Path) -> None:
    """4 clips x 3 crops of 21 videos are 252 views, of 22 they are 264."""
    assert not is_worth_cluster(configured(tiny), 10**6)  # tiny.yaml has scale.workers=0
    ray = configured(tiny, "scale.workers=2")
    assert [is_worth_cluster(ray, videos) for videos in (1, 21, 22)] == [False, False, True]
    gpu = configured(tiny, "scale.workers=2", "scale.gpu=true")
    assert is_worth_cluster(gpu, 1) == (not torch.cuda.is_available())
    assert not is_worth_cluster(configured(tiny, "scale.workers=2", "scale.gpu=false"), 1)


def test_run_folders_of_before_are_read(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.batch_videos is now evaluation.batch_views"):
        configured(tiny, "evaluation.batch_videos=4")
    recorded = {"evaluation": {"batch_videos": 4}}
    assert parse_config(translate_old_names(recorded)).evaluation.batch_views == 4
