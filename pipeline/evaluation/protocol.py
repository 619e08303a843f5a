"""The test protocol: K clips evenly spaced in time x C crops, with averaged scores; and what it is called beside a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.seeds import Floats, Ints

CROP_POSITIONS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
"""By number of crops, where they lie along the frame's longer side, from 0 to 1."""


def compute_clip_moments(clips: int) -> Floats:
    """Computes where in time the clips of a video lie, from 0 to 1."""
    return np.asarray((np.arange(clips) + 0.5) / clips)


def list_views(videos: Ints, clips: int, crops: int) -> tuple[Ints, Floats, Floats]:
    """Computes manifest row, moment and crop position of every view: each video's ``clips * crops`` views in a row."""
    crop_positions = np.array(CROP_POSITIONS[crops])
    grid = np.stack(np.meshgrid(compute_clip_moments(clips), crop_positions, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.repeat(videos, len(grid)), np.tile(grid[:, 0], len(videos)), np.tile(grid[:, 1], len(videos))


def average_views(videos: Ints, scores_NK: Floats, usable: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Ints, Floats]:
    """Averages the scores of each video's usable views; videos without any are left out. Returns (videos [V], scores [V,
    K])."""
    usable_videos, indices = np.unique(videos[usable], return_inverse=True)
    sums = np.zeros((len(usable_videos), scores_NK.shape[1]))
    np.add.at(sums, indices, scores_NK[usable])
    return usable_videos, sums / np.bincount(indices, minlength=len(usable_videos))[:, None]


def compute_softmax(logits: Floats) -> Floats:
    """Computes the softmax over the last axis, of logits or of log-probabilities."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def combine_views(
    videos: Ints, scores_NK: Floats, usable: np.ndarray[tuple[int], np.dtype[np.bool_]], average: str
) -> tuple[Ints, Floats]:
    """Computes each video's probabilities from the scores of its usable views by ``evaluation.average``.

    The scores are probabilities, or their logarithms for ``logits``: these differ from a view's logits by a number that is the
    same for all classes, which the softmax of the mean does not see. Returns (videos [V], probabilities [V, K]).
    """
    rows, means = average_views(videos, scores_NK, usable)
    return rows, compute_softmax(means) if average == "logits" else means


def collect_protocol(config: Config) -> dict[str, Any]:
    """Collects what the scores of given weights and videos depend on, for evaluation.json."""
    knobs = config.evaluation
    clips = {name: getattr(config, name).clip.model_dump(mode="json") for name in ("primary", "auxiliary")}
    return {
        "clips": knobs.clips, "crops": knobs.crops, "average": knobs.average, "checkpoint": knobs.checkpoint,
        "split": knobs.split, "decode_size": config.data.decode_size, "precision": config.train.precision, **clips,
    }  # fmt: skip


def describe_protocol(evaluation: Mapping[str, Any]) -> str:
    """Describes the protocol of an evaluation.json in one phrase, as far as the file tells; earlier versions wrote less.

    For example ``10 clips x 3 crops, mean of probabilities, last checkpoint (step 1000), 8 and 16 fps, 224 px, test split``.
    """
    knobs = evaluation.get("protocol") or evaluation
    if "clips" not in knobs:
        return ""
    views = [f"{knobs[name]} {name if knobs[name] != 1 else name[:-1]}" for name in ("clips", "crops")]
    parts = [" x ".join(views), f"mean of {knobs.get('average', 'probabilities')}", describe_checkpoint(evaluation)]
    clips = [knobs[name] for name in ("primary", "auxiliary") if name in knobs and knobs is not evaluation]
    if clips:
        rates = dict.fromkeys("whole video" if clip["fps"] is None else f"{clip['fps']:g} fps" for clip in clips)
        sizes = dict.fromkeys(f"{clip['size']} px" for clip in clips)
        parts += [" and ".join(rates), " and ".join(sizes)]
    return ", ".join([*parts, f"{knobs.get('split', 'test')} split"])


def describe_checkpoint(evaluation: Mapping[str, Any]) -> str:
    """Describes the weights of an evaluation.json, for example ``last checkpoint (step 1000)``, as far as the file tells; ""
    if it tells no protocol."""
    knobs, step = evaluation.get("protocol") or evaluation, evaluation.get("step")
    if "clips" not in knobs:
        return ""
    if step == 0:
        return "weights trained elsewhere"
    which = "last checkpoint" if knobs.get("checkpoint", "last") == "last" else "checkpoint best on held-out videos"
    return which if step is None else f"{which} (step {step})"


def describe_protocols(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str]:
    """Describes the protocols of two evaluation.json, each in one phrase, by what both files tell, and without the step.

    Two equal phrases mean that as far as the files tell, the protocols are the same. "" means that a file tells none.
    """
    told = [_read_protocol(first), _read_protocol(second)]
    common = told[0].keys() & told[1].keys()
    if "clips" in common:
        told = [{name: knobs[name] for name in common} for knobs in told]
    steps = [0 if evaluation.get("step") == 0 else None for evaluation in (first, second)]  # 0: weights trained elsewhere
    one, other = (describe_protocol({"protocol": knobs, "step": step}) for knobs, step in zip(told, steps, strict=True))
    return one, other


def _read_protocol(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the protocol of an evaluation.json; files of earlier versions have some of its entries among their figures."""
    knobs = evaluation.get("protocol")
    if not knobs:
        names = ("clips", "crops", "average", "checkpoint", "split")
        knobs = {name: evaluation[name] for name in names if name in evaluation}
    return {"average": "probabilities", "checkpoint": "last", **knobs} if "clips" in knobs else {}


def is_of_finished_run(evaluation: Mapping[str, Any], config: Config) -> bool:
    """Returns whether an evaluation.json is of a run that was trained to its end, by the protocol of the configuration."""
    knobs, wanted = evaluation.get("protocol") or evaluation, config.evaluation
    earlier = {"average": "probabilities", "checkpoint": "last"}
    is_same = all(
        knobs.get(name, earlier.get(name)) == getattr(wanted, name)
        for name in ("clips", "crops", "split", "average", "checkpoint")
    )
    return is_same and is_of_trained_run(evaluation, config.train.steps)


def is_of_trained_run(evaluation: Mapping[str, Any], steps: int) -> bool:
    """Returns whether an evaluation.json is of a run that was trained for ``steps``; what it evaluates may be older weights."""
    return bool(evaluation.get("trained_steps", evaluation.get("step")) == steps)
