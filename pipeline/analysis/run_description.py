"""Describes the setting of runs in words: what was trained on what, for how long, and which keys were changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.analysis.comparison import BASELINE, Group, read_setting
from pipeline.analysis.records.run_record import RunRecord
from pipeline.clips.sampling import describe_clip
from pipeline.config import ClipSection, Config, load_config
from pipeline.config.text import format_word
from pipeline.errors import UserError
from pipeline.run_folder.contents import flatten

ALGORITHMS = {"sgd": "SGD", "adamw": "AdamW"}
"""How optimizers are written, by ``optimizer.algorithm``."""


def build_setting_table(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Builds a table of properties: the name, and one text for each group, or a single text if all groups agree.

    Properties about which no run says anything are left out.
    """
    table = []
    for name, describe in PROPERTIES.items():
        texts = [_join_distinct([describe(run) for run in group.runs]) for group in groups]
        if any(texts):
            table.append((name, texts[:1] if len(set(texts)) == 1 else [text or "–" for text in texts]))
    return table


def find_changed_keys(run: RunRecord) -> list[tuple[str, Any, Any]]:
    """Finds every key that is not at its default, as (key, value, default).

    If the run has another network, its keys are compared with the defaults of that network.
    """
    defaults = flatten(Config().model_dump(mode="json"))
    archs = {key: value for key, value in run.config.items() if key.endswith(".network.arch")}
    try:
        reference = load_config(overrides=[f"{key}={value}" for key, value in archs.items()])
        defaults = flatten(reference.model_dump(mode="json")) | {key: defaults[key] for key in archs}
    except UserError:
        pass  # an architecture of another version: the usual defaults must do
    return [(key, value, defaults.get(key, "–")) for key, value in run.config.items() if value != defaults.get(key, "–")]


def find_differing_keys(run: RunRecord, base: RunRecord) -> list[tuple[str, Any, Any]]:
    """Finds the keys of the setting in which two runs differ, as (key, value, the other run's value).

    A dash stands for a key that a method does not use.
    """
    own, other = read_setting(run), read_setting(base)
    keys = dict.fromkeys([*own, *other])
    return [(key, own.get(key, "–"), other.get(key, "–")) for key in keys if own.get(key, "–") != other.get(key, "–")]


def build_command(run: RunRecord) -> str:
    """Returns the ``jobs.train`` command that makes the run, ready for a shell.

    It is the recorded command or, for a run that a study or a search made, one with its changed keys. It is empty for a copied
    member of a population, which no single command makes.
    """
    recorded = str(run.facts.get("command") or "")
    if {"jobs.train", "train"} & set(recorded.split()[:4]):
        return recorded
    if len(run.facts.get("lineage") or ()) > 1:
        return ""
    words = [f"{key}={format_word(value)}" for key, value, _ in find_changed_keys(run)]
    return shlex.join(["python", "-m", "jobs.train", *words])


def describe_labels(run: RunRecord) -> str:
    """Describes the label subset, as far as it is known: ``10% (1,010), seed 0``."""
    spec, count, seed = run.labels.get("spec"), run.labels.get("count"), run.labels.get("seed")
    text = f"{spec or '?'}" + (f" ({count:,})" if count else "")
    return text + (f", seed {seed}" if seed is not None else "")


def describe_steps(run: RunRecord) -> str:
    """Returns ``1,000``, or ``300 of 1,000`` for a run that has not come to its end."""
    planned = run.config.get("train.steps")
    return f"{run.last_step:,} of {planned:,}" if run.is_unfinished else f"{planned or run.last_step:,}"


def _join_distinct(texts: Sequence[str]) -> str:
    distinct = dict.fromkeys(text for text in texts if text)
    return ("; " if any("," in text for text in distinct) else ", ").join(distinct)


def _describe_method(run: RunRecord) -> str:
    knobs = {key.removeprefix("method."): value for key, value in run.config.items() if key.startswith("method.")}
    if run.method == BASELINE or "contrast.temperature" not in knobs:
        return "labels only" if run.method == BASELINE else run.method
    return (
        "threshold {confidence_threshold}, pseudo-labels × {pseudo_label_weight}, "
        "contrast × {contrast_weight} of {contrast_features} at temperature {contrast_temperature}"
    ).format_map({key.replace(".", "_"): f"{value:.4g}" if isinstance(value, float) else value for key, value in knobs.items()})


def _describe_network(student: str) -> Callable[[RunRecord], str]:
    def describe(run: RunRecord) -> str:
        net = {key.rsplit(".", 1)[1]: value for key, value in run.config.items() if key.startswith(f"{student}.network.")}
        count = (run.facts.get("parameters") or {}).get(student)
        sizes = [f"{key} {net[key]}" for key in ("depth", "width", "heads", "patch", "attention") if key in net]
        parameters = [f"{count / 1e6:.1f} M parameters" if count >= 1e5 else f"{count:,} parameters"] if count else []
        return ", ".join([*([net["arch"]] if "arch" in net else []), *sizes, *parameters])

    return describe


def _describe_clip_of(student: str) -> Callable[[RunRecord], str]:
    def describe(run: RunRecord) -> str:
        known = {key: run.config.get(f"{student}.clip.{key}") for key in ("sampling", "frames", "fps", "size")}
        try:
            clip = ClipSection.model_validate({key: value for key, value in known.items() if value is not None})
        except ValueError:  # of another version
            return ""
        is_known = known["frames"] and known["size"] and (known["fps"] or clip.sampling == "segments")
        return f"{describe_clip(clip)}, {clip.size} × {clip.size} px" if is_known else ""

    return describe


def _describe_label_subset(run: RunRecord) -> str:
    fingerprint = run.labels.get("fingerprint")
    return describe_labels(run) + (f", fingerprint {fingerprint}" if fingerprint else "") if run.labels else ""


def _describe_videos(run: RunRecord) -> str:
    facts, fingerprint = run.facts.get("manifest"), run.manifest_fingerprint
    count = facts.get("videos") if isinstance(facts, dict) else None
    texts = [f"{count:,} in the manifest" if count else "", f"fingerprint {fingerprint}" if fingerprint else ""]
    return ", ".join(text for text in texts if text)


def _describe_batch(run: RunRecord) -> str:
    labeled, ratio = run.config.get("data.labeled_per_step"), run.config.get("data.unlabeled_per_labeled", 0)
    if labeled is None:
        return ""
    return f"{labeled} labeled" + ("" if run.method == BASELINE else f" + {labeled * ratio} unlabeled") + " videos"


def _describe_optimizer(run: RunRecord) -> str:
    rates = [run.config.get(f"{student}.optimizer.lr") for student in ("primary", "auxiliary")]
    algorithms = [run.config.get(f"{student}.optimizer.algorithm") for student in ("primary", "auxiliary")]
    warmup, milestones = run.config.get("train.warmup_steps"), run.config.get("train.milestones")
    if None in (*rates, *algorithms, warmup):
        return ""
    names = [ALGORITHMS.get(str(algorithm), str(algorithm)) for algorithm in dict.fromkeys(algorithms)]
    decay = f"× 0.1 at steps {', '.join(f'{step:,}' for step in milestones)}" if milestones else "cosine"
    return f"{' and '.join(names)}, peak {rates[0]:.4g} and {rates[1]:.4g}, warm-up {warmup:,} steps, {decay}"


def _describe_protocol(run: RunRecord) -> str:
    counts = [run.evaluation.get(key) or run.config.get(f"evaluation.{key}") for key in ("clips", "crops")]
    videos = run.evaluation.get("videos")
    return "" if None in counts else f"{counts[0]} clips × {counts[1]} crops" + (f", {videos:,} videos" if videos else "")


def _describe_versions(run: RunRecord) -> str:
    versions: Mapping[str, str] = run.facts.get("versions") or {}
    python = [f"python {run.facts['python']}"] if "python" in run.facts else []
    return ", ".join(python + [f"{name} {number}" for name, number in versions.items()])


PROPERTIES: dict[str, Callable[[RunRecord], str]] = {
    "Method": _describe_method,
    "Primary student": _describe_network("primary"),
    "Primary's clip": _describe_clip_of("primary"),
    "Auxiliary student": _describe_network("auxiliary"),
    "Auxiliary's clip": _describe_clip_of("auxiliary"),
    "Videos": _describe_videos,
    "Labels": _describe_label_subset,
    "Optimizer step": _describe_batch,
    "Optimizer": _describe_optimizer,
    "Steps": lambda run: describe_steps(run) if run.last_step or "train.steps" in run.config else "",
    "Seeds": lambda run: "" if run.seed is None else str(run.seed),
    "Precision": lambda run: str(run.config.get("train.precision", "")),
    "Test": _describe_protocol,
    "Versions": _describe_versions,
    "Cores": lambda run: str(run.facts.get("cores", "")),
    "Created": lambda run: str(run.facts.get("created", "")),
}
