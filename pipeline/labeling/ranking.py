"""Ranks the videos of a run that can be suggested, and chooses among them by a strategy; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.clips.source import VideoSource, open_source
from pipeline.config import override
from pipeline.errors import UserError
from pipeline.labeling.candidates import Wish, find_answered, find_candidates
from pipeline.labeling.measures import Floats
from pipeline.labeling.opinions import Opinions, PredictedScores, Scores, TrainingScores, read_opinions, read_probabilities
from pipeline.labeling.strategies import DIVERSE, choose_balanced, choose_diverse, count_pool, rank_videos
from pipeline.manifest.label_subset import LabelSubset
from pipeline.run_folder.contents import read_run
from pipeline.saved_models.saved_run import check_inputs
from pipeline.seeds import Ints

MAX_READ = 20_000
"""Largest number of videos whose probabilities of all classes are in memory at once."""


@dataclass(frozen=True)
class Ranking:
    """The videos of a run that can be suggested, as a strategy ranks them."""

    wish: Wish
    scores: Scores
    opinions: Opinions
    rows: Ints
    """[C] rows of the manifest, best first."""
    measures: Floats
    """[C] the strategy's measure of each, 0..1."""
    source: VideoSource
    labels: LabelSubset
    labels_path: str
    """The label subset that the run was trained with."""
    notes: tuple[str, ...]
    """What the user should know about the choice."""

    def choose(self, count: int) -> tuple[Ints, Floats, Floats]:
        """Chooses ``count`` videos by the strategy, fewer if there are not as many.

        Returns their rows, best first, their measures, and both students' class probabilities [count, 2, K]. Near-duplicates
        are not left out.
        """
        strategy, balanced = self.wish.strategy, self.wish.balanced
        pool = min(count_pool(strategy, count, balanced), len(self.rows), MAX_READ)
        indices = np.arange(len(self.rows))
        if balanced:  # the pool has as many of each class, too
            indices = choose_balanced(self.opinions.classes[self.rows], pool)
        rows, measures = self.rows[indices[:pool]], self.measures[indices[:pool]]
        probabilities = read_probabilities(self.scores, rows, len(self.opinions.classes))
        predicted = probabilities.mean(axis=1).argmax(axis=1) if balanced else np.zeros(pool, np.int64)
        chosen = np.arange(pool)
        if strategy in DIVERSE:
            weights = measures if strategy == "mixed" else np.ones(pool)
            groups = [np.flatnonzero(predicted == label) for label in np.unique(predicted)]
            best = [group[choose_diverse(probabilities[group], weights[group], count, self.wish.seed)] for group in groups]
            chosen = np.concatenate(best)
        if balanced:
            chosen = chosen[choose_balanced(predicted[chosen], count)]
        chosen = chosen[:count]
        return rows[chosen], measures[chosen], probabilities[chosen]


def rank_candidates(folder: Path, wish: Wish, predictions: Path | None = None, overrides: Sequence[str] = ()) -> Ranking:
    """Ranks the videos that a run can suggest, by its saved scores or a table of ``predictions``. Raises UserError."""
    folder = folder.expanduser().resolve()
    trained, _ = read_run(folder)
    config = override(trained.model_dump(mode="json"), overrides, source=f"{folder / 'config.yaml'}")
    check_inputs(folder / "config.yaml", config)
    source, labels = open_source(config)
    answered = find_answered(source.manifest, wish.without)
    scores: Scores = TrainingScores(folder) if predictions is None else PredictedScores(predictions, source.manifest)
    if predictions is not None and wish.strategy == "unstable":
        raise UserError("--strategy unstable needs the scores that training saved; leave out --predictions")
    opinions = read_opinions(scores, source.manifest.table.num_rows)
    candidates, notes = find_candidates(source, labels, opinions, wish, scores, answered)
    ranked = rank_videos(wish.strategy, opinions, candidates, wish.seed)
    return Ranking(wish, scores, opinions, *ranked, source, labels, config.labels_path, tuple(notes))
