"""Checks whether both students can overfit a handful of videos. If not, something is broken that more videos would only
hide."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan
from pipeline.clips.source import Columns, VideoSource
from pipeline.config import STUDENTS, Config
from pipeline.errors import UserError
from pipeline.evaluation.scorer import Scorer
from pipeline.files.folder_lock import is_lock_file
from pipeline.hardware import choose_device
from pipeline.run_folder.contents import lock_run, read_metrics, read_run
from pipeline.seeds import Ints
from pipeline.training.checkpoints import checkpoint
from pipeline.training.gpu_memory import check_training
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import PreparedRun, prepare_run

STEPS = 200
"""The maximum number of training steps; ``train.steps`` may ask for fewer."""
MIN_ACCURACY, MAX_LOSS_SHARE = 0.9, 0.5
"""A student has learned the videos if its accuracy is at least MIN_ACCURACY and its loss at most MAX_LOSS_SHARE times ln K, the
loss of guessing."""


@dataclass(frozen=True)
class OverfitResult:
    """How well each student learned the videos, by student."""

    videos: int
    steps: int
    guessing: float
    """The loss of guessing, ln K."""
    first: dict[str, float]
    """The supervised loss of the first line of metrics."""
    last: dict[str, float]
    """The supervised loss of the last line of metrics."""
    accuracy: dict[str, float]
    """The accuracy, 0..1, on the same clips that were trained on."""

    @property
    def has_learned(self) -> bool:
        """Whether both students have learned the videos."""
        return all(self._has_learned(name) for name in STUDENTS)

    def _has_learned(self, name: str) -> bool:
        return self.accuracy[name] >= MIN_ACCURACY and self.last[name] <= MAX_LOSS_SHARE * self.guessing

    def format_lines(self) -> list[str]:
        """Formats the result for the terminal, a line for each student."""
        return [
            f"{name}: loss {self.first[name]:.3f} -> {self.last[name]:.3f} (guessing: {self.guessing:.3f}), "
            f"{self.accuracy[name]:.0%} of {self.videos} videos classified correctly after {self.steps} steps: "
            + ("learned" if self._has_learned(name) else "NOT learned")
            for name in STUDENTS
        ]


def overfit(config: Config, videos: int) -> OverfitResult:
    """Trains from scratch, in this process, on one clip of each of ``videos`` labeled videos: the middle in time and space.

    Labels, students, optimizers and precision come from the configuration; there are no unlabeled videos, and no augmentation,
    dropout or label smoothing. The run folder is NAME-overfit-N; an earlier check there is replaced. Raises UserError if there
    are fewer labeled videos, if one of them cannot be decoded, or if the folder belongs to another run.
    """
    config = make_overfit_config(config, videos)
    choose_device(config)  # raises before anything is replaced
    with lock_run(config):
        return _overfit(config, videos)


def _overfit(config: Config, videos: int) -> OverfitResult:
    _clear_folder(config.run_folder)
    prepared = prepare_run(config)
    chosen = choose_videos(prepared.run.source, videos)
    plan = replace(prepared.run.plan, labeled=chosen)
    prepared = replace(prepared, run=replace(prepared.run, plan=plan), facts={**prepared.facts, "overfit": videos})
    columns = _decode_middle_clips(prepared.run.source, chosen)
    check_training(prepared.run, None)
    prepared.create_folder()
    fit_in_process(prepared, partial(_yield_batches, plan, columns, prepared.run.config.train.steps))
    return _measure_result(prepared, columns)


def make_overfit_config(config: Config, videos: int) -> Config:
    """Makes a configuration of the same students without what keeps them from overfitting."""
    tree: dict[str, Any] = config.model_dump()
    steps = min(config.train.steps, STEPS)
    tree["run"] |= {"name": f"{config.run.name}-overfit-{videos}", "storage_path": str(config.run_folder.parent)}
    tree["data"] |= {"labeled_per_step": min(videos, config.data.labeled_per_step), "unlabeled_per_labeled": 0}
    tree["method"] |= {"name": "supervised"}
    tree["method"]["supervised"] |= {"start": 0, "ramp": 0, "label_smoothing": 0.0, "mixup": 0.0}
    tree["views"] = {"weak": {"min_scale": 1.0, "flip": 0.0}}
    for name in STUDENTS:
        tree[name]["network"] |= {key: 0.0 for key in ("dropout", "drop_path") if key in tree[name]["network"]}
    tree["train"] |= {
        "steps": steps, "warmup_steps": min(config.train.warmup_steps, steps // 10), "schedule": "cosine", "milestones": (),
        "accumulation": 1, "ema_decay": None, "log_every": max(1, steps // 20), "checkpoint_every": steps, "keep_best": 0,
    }  # fmt: skip
    tree["scale"] |= {"workers": 0, "min_workers": None}
    return Config.model_validate(tree)


def _clear_folder(folder: Path) -> None:
    """Removes what an earlier check left, because the code may have changed. Raises UserError for another run's folder."""
    paths = [path for path in folder.iterdir() if not is_lock_file(path)]
    if paths and "overfit" not in read_run(folder)[1]:
        raise UserError(f"{folder} is another run's folder: choose another run.name")
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def choose_videos(source: VideoSource, videos: int) -> Ints:
    """Chooses manifest rows: one of each class in turn, until there are enough. Raises UserError if there are too few."""
    labeled = source.plan.labeled
    if not 2 <= videos <= len(labeled):
        raise UserError(f"--overfit {videos}: give 2 to {len(labeled)}, the labeled training videos")
    labels = source.columns["label"][labeled]
    rank_in_class = np.array([np.count_nonzero(labels[:index] == label) for index, label in enumerate(labels)])
    return labeled[np.lexsort((labels, rank_in_class))[:videos]]


def _decode_middle_clips(source: VideoSource, rows: Ints) -> Columns:
    middle = np.full(len(rows), 0.5)
    columns = source.decode_views(rows, middle, middle)
    reasons = zip(rows, columns["reason"], strict=True)
    failed = [f"{source.manifest.locate(int(row))}: {reason}" for row, reason in reasons if reason]
    if failed:
        raise UserError("--overfit needs videos that can be decoded:", failed)
    return {**columns, "label": source.columns["label"][rows].astype(np.int64)}


def _yield_batches(plan: Plan, columns: Columns, steps: int, first_step: int) -> Iterator[Batch]:
    """Yields the plan's batches from ``first_step`` on, of clips that were decoded once."""
    index_of = {int(video): index for index, video in enumerate(columns["video"])}
    for step in range(first_step, steps):
        rows = np.arange(step * plan.rows_per_step, (step + 1) * plan.rows_per_step)
        videos = plan.choose_videos(rows)
        indices = [index_of[int(video)] for video in videos[:, 0]]
        labels, primary, auxiliary = (torch.from_numpy(columns[name][indices][:, None]) for name in ("label", *STUDENTS))
        yield Batch(torch.from_numpy(rows), torch.from_numpy(videos), labels, primary, auxiliary)


def _measure_result(prepared: PreparedRun, columns: Columns) -> OverfitResult:
    run = prepared.run
    newest, _ = checkpoint.find_newest(run.folder, run.store)
    assert newest is not None
    scorer = Scorer(run.config.model_dump(mode="json"), run.num_classes, str(newest / "model.safetensors"))
    scores = scorer.score_clips({name: columns[name] for name in ("video", "reason", *STUDENTS)})
    lines = read_metrics(run.folder)
    first, last = ({name: line[f"supervised_loss/{name}"] for name in STUDENTS} for line in (lines[0], lines[-1]))
    accuracy = {name: float((scores[name].argmax(axis=1) == columns["label"]).mean()) for name in STUDENTS}
    return OverfitResult(len(columns["label"]), run.config.train.steps, math.log(run.num_classes), first, last, accuracy)
