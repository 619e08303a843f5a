"""Clips of segments: which times, drawn by which numbers, and that exactly these frames come out of real files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import prepare
from pipeline.clips.plan import Plan
from pipeline.clips.sampling import SLACK, compute_clip_times, compute_frame_starts, describe_clip, find_frames, select_moment
from pipeline.clips.source import VideoSource, open_source, read_quarantine_records
from pipeline.clips.whole_videos import decode_videos
from pipeline.config import ClipSection, load_config
from pipeline.evaluation.protocol import compute_clip_moments
from pipeline.seeds import draw_uniform
from tests.video.reference import every_frame, read_index
from tests.videos import read_number, write_numbers

WINDOW = ClipSection(frames=8, fps=8, size=16)
SEED = 3


def segments(frames: int, size: int = 16) -> ClipSection:
    return ClipSection(sampling="segments", frames=frames, size=size)


lengths = {"start": st.floats(0, 500), "length": st.floats(0.01, 5000), "frames": st.integers(1, 64)}


# ------------------------------------------------------------------------------------------------------------- times


def test_a_pinned_example() -> None:
    """4 parts of 2.5 s of the ten seconds from 10 to 20: at random times, in their middles, and at a quarter of them."""
    drawn = ((0.0, 0.5, 0.9, 0.25),)
    assert compute_clip_times(drawn, 10, 20, [segments(4)])[0] == pytest.approx([10, 13.75, 17.25, 18.125])
    assert compute_clip_times(0.5, 10, 20, [segments(4)])[0] == pytest.approx([11.25, 13.75, 16.25, 18.75])
    assert compute_clip_times(0.25, 10, 20, [segments(4)])[0] == pytest.approx([10.625, 13.125, 15.625, 18.125])


@given(**lengths, data=st.data())
def test_each_time_lies_in_its_part_and_they_ascend(start: float, length: float, frames: int, data: st.DataObject) -> None:
    places = st.floats(0, 1, exclude_max=True)
    drawn = tuple(data.draw(st.lists(places, min_size=frames, max_size=frames)))
    (times,) = compute_clip_times((drawn,), start, start + length, [segments(frames)])
    edges = start + np.arange(frames + 1) * length / frames
    rounding = 1e-12 * (start + length)
    assert (times >= edges[:-1] - 2 * SLACK - rounding).all() and (times <= edges[1:] + rounding).all()
    assert (np.diff(times) >= 0).all() and start <= times[0] and times[-1] < start + length


@given(**lengths, clips=st.integers(1, 10))
def test_evaluation_takes_the_middle_or_clips_evenly_within_each_part(
    start: float, length: float, frames: int, clips: int
) -> None:
    part = length / frames
    for number, moment in enumerate(compute_clip_moments(clips).tolist()):
        (times,) = compute_clip_times(moment, start, start + length, [segments(frames)])
        wanted = start + part * (np.arange(frames) + (number + 0.5) / clips)
        assert times == pytest.approx(np.minimum(wanted, start + length - 2 * SLACK), rel=1e-9)
    assert compute_clip_moments(1).tolist() == [0.5]


def test_students_have_segments_and_windows_of_their_own() -> None:
    """A window lies where it lies without the other student's segments, which do not move it."""
    own = compute_clip_times(((0.25, 0.5), 0.3), 0, 10, [segments(2), WINDOW])
    assert own[0] == pytest.approx([1.25, 7.5]) and np.array_equal(own[1], compute_clip_times(0.3, 0, 10, [WINDOW])[0])
    shared = compute_clip_times(0.3, 0, 10, [WINDOW, segments(16)])
    assert np.array_equal(shared[0], own[1]) and len(shared[1]) == 16
    assert select_moment(((0.25, 0.5), 0.3), 0) == ((0.25, 0.5),) and select_moment(0.3, 1) == 0.3


def test_of_a_short_video_frames_repeat() -> None:
    starts = compute_frame_starts(3, 25.0)
    (times,) = compute_clip_times(0.5, 0.0, 3 / 25, [segments(8)])
    assert find_frames(times, starts).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    (times,) = compute_clip_times(0.5, 0.0, 1 / 25, [segments(8)])
    assert find_frames(times, compute_frame_starts(1, 25.0)).tolist() == [0] * 8


def test_what_a_clip_covers_is_said() -> None:
    assert describe_clip(segments(16)) == "the whole video in 16 parts, a frame of each"
    assert describe_clip(WINDOW) == "8 frames at 8 fps (1 s)"


# -------------------------------------------------------------------------------------------------------------- plan


def plan(seed: int = SEED) -> Plan:
    return Plan(np.arange(4), np.arange(4, 24), 2, 2, seed)


@given(rows=st.lists(st.integers(0, 10**9), min_size=1, max_size=9), frames=st.integers(1, 32), student=st.integers(0, 1))
def test_a_number_depends_on_seed_row_slot_student_and_frame_alone(rows: list[int], frames: int, student: int) -> None:
    together = plan().draw_segment_moments(rows, student, frames)
    assert together.shape == (len(rows), 3, frames) and together.min() >= 0 and together.max() < 1
    for place, row in enumerate(rows):
        assert np.array_equal(plan().draw_segment_moments([row], student, frames)[0], together[place])
    of_more_parts = plan().draw_segment_moments(rows, student, frames + 1)
    assert np.array_equal(of_more_parts[..., :frames], together)
    for other_plan, other_student in ((plan(), 1 - student), (plan(SEED + 1), student)):
        other = other_plan.draw_segment_moments(rows, other_student, frames)
        assert not (other == together).any()
    assert len(np.unique(together)) == len(set(rows)) * 3 * frames


def test_the_numbers_do_not_change_between_versions() -> None:
    """Runs are continued by later versions."""
    drawn = plan().draw_segment_moments([5], 1, 2)[0].tolist()
    assert drawn == [
        [0.35957715838343574, 0.990021070503096],
        [0.5958738041030929, 0.5823500890778749],
        [0.6927067313684353, 0.9089574733263079],
    ]


# ------------------------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of files whose frames say their number: long, short, of variable rate, and two parts of one file."""
    folder = tmp_path_factory.mktemp("numbered")
    write_numbers(folder / "long.mp4", frames=200, size=(96, 96), gop=250)
    write_numbers(folder / "short.mp4", frames=5, size=(96, 96))
    write_numbers(folder / "variable.mp4", frames=41, size=(96, 96), steps=np.cumsum([0] + [20, 20, 20, 200] * 10).tolist())
    write_numbers(folder / "parts.avi", frames=100, fps="30000/1001", size=(96, 96))
    lines = ["path,label,split,start,end", "long.mp4,a,train,,", "short.mp4,b,train,,", "variable.mp4,a,train,,"]
    lines += ["parts.avi,b,train,0.5,1.25", "parts.avi,a,train,2,", "other.mp4,b,test,,"]
    write_numbers(folder / "other.mp4", frames=60, size=(96, 96))
    (folder / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ["list", str(folder / "list.csv"), str(folder / "data"), "--root", str(folder), "--labeled", "1/class"]
    assert prepare.main(words) == 0
    return folder / "data" / "manifest.parquet"


def source_of(manifest: Path, *words: str) -> VideoSource:
    fixed = [f"data.manifest={manifest}", f"run.seed={SEED}", "data.labeled_per_step=2", "data.unlabeled_per_labeled=2"]
    fixed += ["data.decode_size=64", "primary.clip.size=64", "auxiliary.clip.size=64", "data.isolate_decoder=false"]
    return open_source(load_config(overrides=[*fixed, *words]))[0]


BOTH = ("primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", "auxiliary.clip.frames=16")


def frame_starts(source: VideoSource, row: int) -> np.ndarray:
    video = source.describe_video(row)
    if video.variable_fps:
        return np.asarray(read_index(video.location).times)
    return np.arange(video.frames) / video.fps


def wanted_numbers(source: VideoSource, row: int, slot: int, video: int, student: int) -> list[int]:
    """By a plain loop over the parts."""
    of, frames = source.describe_video(video), source.clips[student].frames
    numbers = []
    for part in range(frames):
        chance = float(draw_uniform(SEED, "segment", row, slot, student, part))
        time = of.start + (of.end - of.start) * (part + chance) / frames
        numbers.append(max(number for number, begins in enumerate(frame_starts(source, video)) if begins <= time + 1e-6))
    return numbers


@pytest.mark.parametrize("isolate", ["false", "true"])
def test_training_shows_the_frame_on_screen_at_a_random_time_of_each_part(numbered: Path, isolate: str) -> None:
    source = source_of(numbered, *BOTH, f"data.isolate_decoder={isolate}")
    columns = source.decode_rows(np.arange(6))
    assert columns["primary"].shape[2] == 8 and columns["auxiliary"].shape[2] == 16 and read_quarantine_records(columns) == ()
    seen = set()
    for row in range(6):
        for slot, video in enumerate(columns["video"][row].tolist()):
            for student, name in enumerate(("primary", "auxiliary")):
                shown = [read_number(frame) for frame in columns[name][row, slot]]
                assert shown == wanted_numbers(source, row, slot, video, student), (row, slot, name)
            seen.add(Path(source.manifest.locate(video)).name)
    assert seen == {"long.mp4", "short.mp4", "variable.mp4", "parts.avi"}
    again = source.decode_rows(np.array([4]))
    assert all(np.array_equal(again[name][0], columns[name][4]) for name in ("primary", "auxiliary"))


def test_one_student_may_see_segments_and_the_other_a_window(numbered: Path) -> None:
    """The window lies where it lies when both students see one, of the same length."""
    windows = source_of(numbered, "auxiliary.clip.fps=8").decode_rows(np.arange(3))
    mixed = source_of(numbered, "auxiliary.clip.sampling=segments", "auxiliary.clip.frames=3").decode_rows(np.arange(3))
    assert np.array_equal(mixed["primary"], windows["primary"]) and mixed["auxiliary"].shape[2] == 3
    other = source_of(numbered, "auxiliary.clip.fps=8", "primary.clip.sampling=segments").decode_rows(np.arange(3))
    assert np.array_equal(other["auxiliary"], windows["auxiliary"])
    assert not np.array_equal(other["primary"], windows["primary"])


def test_evaluation_shows_the_middles_and_a_part_of_a_file_nothing_else(numbered: Path) -> None:
    source = source_of(numbered, *BOTH)
    videos = np.arange(source.manifest.table.num_rows)
    for clips in (1, 3):
        moments = compute_clip_moments(clips)
        for video in videos.tolist():
            of, starts = source.describe_video(video), frame_starts(source, video)
            columns = decode_videos(source, np.array([video]), moments)
            assert columns["reason"].tolist() == [""] * clips
            frames = columns["pixels"].reshape(*columns["shape"][0], 3)
            for student, name in enumerate(("primary", "auxiliary")):
                count = source.clips[student].frames
                for clip in range(clips):
                    times = [of.start + (of.end - of.start) * (k + (clip + 0.5) / clips) / count for k in range(count)]
                    shown = [read_number(frames[place]) for place in columns[name][0, clip]]
                    assert shown == [max(n for n, begins in enumerate(starts) if begins <= t + 1e-6) for t in times]


def test_real_actions_show_their_whole_length(tmp_path: Path, shared_data: Path) -> None:
    """Depth clips of 41 to 125 frames: 16 parts of each, against a decode of every frame."""
    folder = shared_data / "utd_mhad_depth"
    if not folder.is_dir():
        pytest.skip(f"no real actions at {folder}")
    with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    labels = sorted({line["label"] for line in lines})[::9]
    chosen = [line for label in labels for line in lines if line["label"] == label and line["group"] in ("s1", "s2")]
    with (tmp_path / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    words = ["list", str(tmp_path / "clips.csv"), str(tmp_path / "data"), "--root", str(folder), "--labeled", "1/class"]
    assert prepare.main(words) == 0
    source = source_of(tmp_path / "data" / "manifest.parquet", *BOTH)
    columns = source.decode_rows(np.arange(2))
    for row, slot in np.ndindex(2, 3):
        video = int(columns["video"][row, slot])
        truth = np.stack(every_frame(source.manifest.locate(video), 64, 64)).astype(np.int16)
        for student, name in enumerate(("primary", "auxiliary")):
            wanted = wanted_numbers(source, row, slot, video, student)
            count, parts = len(truth), source.clips[student].frames
            assert all(k * count // parts <= n <= (k + 1) * count // parts for k, n in enumerate(wanted))
            for image, number in zip(columns[name][row, slot], wanted, strict=True):
                near = {n: float(np.abs(truth[n] - image).mean()) for n in range(number - 3, number + 4) if 0 <= n < count}
                assert near[number] <= min(near.values()) + 0.5 and near[number] < 6, (number, near)
