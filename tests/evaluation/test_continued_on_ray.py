"""An evaluation on Ray that was broken off goes on there; ``tests/jobs/test_evaluation_figures.py`` kills one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from jobs.command import DONE, run
from pipeline.clips.source import Columns, VideoSource
from pipeline.evaluation import evaluation_parts, on_ray, score_videos
from pipeline.seeds import Ints


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_model_that_two_workers_evaluate_continues_to_the_same_bits(
    model: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken off at the sixth of eight videos: those of the parts are not scored again, and a single worker scores the others.
    Without ``scale.workers`` no Ray is used, whatever the number of views."""
    monkeypatch.setattr(score_videos, "FEW_VIEWS", 0)
    monkeypatch.setattr(evaluation_parts, "SECONDS", 0.0)
    begun: list[list[int]] = []
    score = on_ray.score_on_ray

    def break_off(source: VideoSource, resources: Any, scorer: Any, videos: Ints, *words: Any) -> Iterator[Columns]:
        begun.append(videos.tolist())
        for number, part in enumerate(score(source, resources, scorer, videos, *words)):
            if len(begun) == 1 and number == 5:
                raise InterruptedError
            yield part

    monkeypatch.setattr(on_ray, "score_on_ray", break_off)
    words = [str(model), "--manifest", str(tiny / "manifest.parquet"), "evaluation.batch_views=2", "--out"]
    assert run(evaluate.main, [*words, str(tmp_path / "here")]) == DONE and not begun
    words.insert(1, "scale.workers=2")
    with pytest.raises(InterruptedError):
        run(evaluate.main, [*words, str(tmp_path / "cut")])
    written = sorted((tmp_path / "cut" / evaluation_parts.FOLDER).rglob("*.parquet"))
    done = sum(pq.read_metadata(path).num_rows for path in written)
    assert 2 <= done <= 5 and not (tmp_path / "cut" / "predictions.parquet").exists()
    capsys.readouterr()
    words[1] = "scale.workers=1"
    assert run(evaluate.main, [*words, str(tmp_path / "cut")]) == DONE
    assert f"{done} of 8 videos were scored before the evaluation was interrupted" in capsys.readouterr().err
    assert len(begun[0]) == 8 and begun == [begun[0], begun[0][done:]]
    assert not (tmp_path / "cut" / evaluation_parts.FOLDER).exists()
    here, cut = (pq.read_table(tmp_path / name / "predictions.parquet") for name in ("here", "cut"))
    assert cut.equals(here)
