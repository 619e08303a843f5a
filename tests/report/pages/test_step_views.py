"""The page of a training step's views: they are those of training, and the page shows them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from jobs import inspect
from jobs.command import DONE, run
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.methods import make_views
from pipeline.report.pages.step_views import GAP, arrange_frames, make_step_views
from pipeline.stream.in_process import load_batches


def test_the_views_of_a_step_are_those_of_training(tiny: Path) -> None:
    config = load_config(tiny / "tiny.yaml")
    source = open_source(config)[0]
    batch, *_ = load_batches(source, config, 5)  # the loop's first batch when it goes on at step 5
    trained = make_views(batch, config, config.run.seed, "cpu")
    shown = list(make_step_views(config, source, 5))
    assert [int(columns["row"][0]) for columns, _ in shown] == batch.rows.tolist() == [10, 11]
    for number, (columns, views) in enumerate(shown):
        assert columns["video"][0].tolist() == batch.videos[number].tolist()
        for student in ("primary", "auxiliary"):
            assert views.labeled[student][0].equal(trained.labeled[student][number])
            for kind in ("weak", "strong"):
                mine, theirs = getattr(views.unlabeled, kind)[student], getattr(trained.unlabeled, kind)[student]
                assert mine.equal(theirs[2 * number : 2 * number + 2])


def test_page_of_a_step(tiny: Path, tmp_path: Path) -> None:
    words = ["clips", "--config", str(tiny / "tiny.yaml"), "--step", "5", "--out", str(tmp_path / "step.html")]
    assert run(inspect.main, words) == DONE
    page = (tmp_path / "step.html").read_text(encoding="utf-8")
    images = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(images) == 2 * (2 + 2 * 4)  # 2 rows of a labeled video and 2 unlabeled ones
    assert "primary, strong view of" in page and "auxiliary, weak view of" in page and "Row 10" in page
    config = load_config(tiny / "tiny.yaml")
    _, views = next(iter(make_step_views(config, open_source(config)[0], 5)))
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0][0]))))
    expected = arrange_frames(views.labeled["primary"][0])
    assert seen.shape == expected.shape == (32, 4 * 32 + 3 * GAP, 3)
    assert (expected[:, 32 : 32 + GAP] == 255).all() and 'width="402"' in page  # the frames are apart, and three times as high
    assert np.abs(seen.astype(float) - expected).mean() < 4  # JPEG
    assert not np.array_equal(expected[:, :32], expected[:, 32 + GAP : 64 + GAP])


def test_steps_without_unlabeled_videos_show_labeled_ones_only(tiny: Path, tmp_path: Path) -> None:
    words = ["clips", "--config", str(tiny / "tiny.yaml"), "--step", "3", "--out", str(tmp_path / "s.html")]
    assert run(inspect.main, [*words, "method.supervised_steps=6"]) == DONE
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 4 and "No loss uses unlabeled videos here" in page
