"""Views become videos as they come in: by hand, in any batches, with clips that could not be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.clips.source import Columns
from pipeline.config import Config, load_config
from pipeline.evaluation import evaluation_parts as parts
from pipeline.evaluation.video_scores import VideoScores, gather_videos, join_video_scores, read_video_scores
from pipeline.run_folder.contents import PREDICTORS

CLIPS, CROPS, CLASSES = 4, 3, 5
FAILED = {11: (1, 3), 12: (0, 1, 2, 3)}
"""By manifest row, the clips that could not be decoded."""


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=[f"evaluation.clips={CLIPS}", f"evaluation.crops={CROPS}"])


def make_views(videos: int = 9) -> Columns:
    """Softmax scores of all views of the videos 10, 11, ...; blank views have scores too, which must not count."""
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(10, 10 + videos), CLIPS * CROPS)
    logits = generator.normal(size=(2, len(rows), CLASSES)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    clips = np.tile(np.repeat(np.arange(CLIPS), CROPS), videos)
    reasons = ["lost" if clip in FAILED.get(row, ()) else "" for row, clip in zip(rows.tolist(), clips.tolist(), strict=True)]
    return {"video": rows, "reason": np.array(reasons), "primary": probabilities[0], "auxiliary": probabilities[1]}


def cut(columns: Columns, size: int) -> Iterator[Columns]:
    for start in range(0, len(columns["video"]), size):
        yield {name: values[start : start + size] for name, values in columns.items()}


def assert_same(one: VideoScores, other: VideoScores) -> None:
    """To the last bit; NaN is equal to NaN here."""
    assert one.reasons == other.reasons
    for mine, theirs in zip(one.to_table().drop_columns("reason"), other.to_table().drop_columns("reason"), strict=True):
        np.testing.assert_array_equal(np.array(mine.to_pylist()), np.array(theirs.to_pylist()))


def test_scores_and_spreads_are_those_of_a_loop_over_clips(config: Config) -> None:
    columns = make_views()
    found = join_video_scores(list(gather_videos(cut(columns, 7), config)))
    for index, row in enumerate(range(10, 19)):
        good = [clip for clip in range(CLIPS) if clip not in FAILED.get(row, ())]
        assert (found.videos[index], found.decoded[index]) == (row, len(good))
        assert found.reasons[index] == ("lost" if row in FAILED else "")
        by_clip = {name: columns[name].reshape(9, CLIPS, CROPS, CLASSES)[index, good].mean(axis=1) for name in PREDICTORS[:2]}
        by_clip["mean"] = (by_clip["primary"] + by_clip["auxiliary"]) / 2
        for name in PREDICTORS:
            if not good:
                assert np.isnan(found.scores[name][index]).all() and np.isnan(found.spreads[name][index])
                continue
            score = by_clip[name].mean(axis=0)
            np.testing.assert_allclose(found.scores[name][index], score, rtol=1e-6)
            assert found.spreads[name][index] == pytest.approx(by_clip[name][:, score.argmax()].std(ddof=1), rel=1e-5)


@pytest.mark.parametrize("size", [1, 5, 12, 64, 1000])
def test_batches_of_any_size_give_the_same_bits(config: Config, size: int) -> None:
    whole = join_video_scores(list(gather_videos(cut(make_views(), 12), config)))
    assert_same(join_video_scores(list(gather_videos(cut(make_views(), size), config))), whole)


def test_a_video_is_handed_on_before_the_next_batch_is_taken(config: Config) -> None:
    """So that no more than one batch and the rest of a video are in memory."""
    taken: list[int] = []

    def watch() -> Iterator[Columns]:
        for batch in cut(make_views(), 8):
            taken.append(len(batch["video"]))
            yield batch

    done = 0
    for scores in gather_videos(watch(), config):
        done += len(scores)
        assert 0 <= sum(taken) - done * CLIPS * CROPS < 12
    assert done == 9


def test_parts_keep_every_bit(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = join_video_scores(list(gather_videos(cut(make_views(), 12), config)))
    pq.write_table(whole.to_table(), tmp_path / "x.parquet")
    assert_same(read_video_scores(pq.read_table(tmp_path / "x.parquet")), whole)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    parts.keep_parts(gather_videos(cut(make_views(), 12), config), tmp_path, 0, unit=2)
    names = sorted(path.name for path in tmp_path.glob("0*.parquet"))
    assert names == [f"{start:09d}.parquet" for start in (0, 2, 4, 6)]  # the ninth video is no multiple of two
    assert_same(join_video_scores(parts.read_parts(tmp_path, whole.videos)), whole.select(slice(0, 8)))
    (tmp_path / names[1]).unlink()
    assert [len(part) for part in parts.read_parts(tmp_path, whole.videos)] == [2]
    assert parts.read_parts(tmp_path, whole.videos[1:]) == []  # of other videos


@pytest.mark.parametrize(("batch", "views", "block", "unit"), [(8, 30, 1, 4), (64, 30, 2, 32), (64, 10, 6, 96), (8, 1, 8, 8)])
def test_parts_end_where_batches_and_blocks_do(batch: int, views: int, block: int, unit: int) -> None:
    assert parts.choose_unit(batch, views, block) == unit
    assert unit * views % batch == 0 and unit % block == 0
