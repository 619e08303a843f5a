"""The setting of runs in words: what was trained on what, how long, with which keys changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.analysis.comparison import BASELINE, Group, manifest_fingerprint
from pipeline.analysis.comparison import setting as setting_of
from pipeline.analysis.run_reader import Run, flatten
from pipeline.clips.sampling import describe_clip
from pipeline.config import ClipSection, Config, load_config
from pipeline.config.text import format_word
from pipeline.errors import UserError


def setting_table(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """(property, one text per group, or a single text where all groups agree); rows that say nothing are left out."""
    table = []
    for name, describe in PROPERTIES.items():
        texts = [_join([describe(run) for run in group.runs]) for group in groups]
        if any(texts):
            table.append((name, texts[:1] if len(set(texts)) == 1 else [text or "–" for text in texts]))
    return table


def changed_keys(run: Run) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of every key that is not at its default; another network is held against its own defaults."""
    defaults = flatten(Config().model_dump(mode="json"))
    archs = {key: value for key, value in run.config.items() if key.endswith(".network.arch")}
    try:
        reference = load_config(overrides=[f"{key}={value}" for key, value in archs.items()])
        defaults = flatten(reference.model_dump(mode="json")) | {key: defaults[key] for key in archs}
    except UserError:
        pass  # an architecture of another version: the usual defaults must do
    return [(key, value, defaults.get(key, "–")) for key, value in run.config.items() if value != defaults.get(key, "–")]


def differing_keys(run: Run, base: Run) -> list[tuple[str, Any, Any]]:
    """(key, value, the other run's value) of the setting; what one method does not use has a dash."""
    own, other = setting_of(run), setting_of(base)
    keys = dict.fromkeys([*own, *other])
    return [(key, own.get(key, "–"), other.get(key, "–")) for key in keys if own.get(key, "–") != other.get(key, "–")]


def command(run: Run) -> str:
    """The ``jobs.train`` command that makes the run, ready for a shell: the recorded one, or, of a run that a study or a search
    made, its changed keys. Empty for a copied member of a population, which no command makes alone."""
    recorded = str(run.facts.get("command") or "")
    if {"jobs.train", "train"} & set(recorded.split()[:4]):
        return recorded
    if len(run.facts.get("lineage") or ()) > 1:
        return ""
    return shlex.join(["python", "-m", "jobs.train", *(f"{key}={format_word(value)}" for key, value, _ in changed_keys(run))])


def labels_text(run: Run) -> str:
    """``10% (1,010), seed 0``, as far as known."""
    spec, count, seed = run.labels.get("spec"), run.labels.get("count"), run.labels.get("seed")
    text = f"{spec or '?'}" + (f" ({count:,})" if count else "")
    return text + (f", seed {seed}" if seed is not None else "")


def steps_text(run: Run) -> str:
    """``1,000``, or ``300 of 1,000`` for a run that has not come to its end."""
    planned = run.config.get("train.steps")
    return f"{run.last_step:,} of {planned:,}" if run.unfinished else f"{planned or run.last_step:,}"


def _join(texts: Sequence[str]) -> str:
    found = dict.fromkeys(text for text in texts if text)
    return ("; " if any("," in text for text in found) else ", ").join(found)


def _method(run: Run) -> str:
    knobs = {key.removeprefix("method."): value for key, value in run.config.items() if key.startswith("method.")}
    if run.method == BASELINE or "contrast.temperature" not in knobs:
        return "labels only" if run.method == BASELINE else run.method
    return (
        "threshold {confidence_threshold}, pseudo-labels × {pseudo_label_weight}, "
        "contrast × {contrast_weight} of {contrast_features} at temperature {contrast_temperature}"
    ).format_map({key.replace(".", "_"): f"{value:.4g}" if isinstance(value, float) else value for key, value in knobs.items()})


def _network(student: str) -> Callable[[Run], str]:
    def describe(run: Run) -> str:
        net = {key.rsplit(".", 1)[1]: value for key, value in run.config.items() if key.startswith(f"{student}.network.")}
        count = (run.facts.get("parameters") or {}).get(student)
        known = [f"{key} {net[key]}" for key in ("depth", "width", "heads", "patch", "attention") if key in net]
        size = [f"{count / 1e6:.1f} M parameters" if count >= 1e5 else f"{count:,} parameters"] if count else []
        return ", ".join([*([net["arch"]] if "arch" in net else []), *known, *size])

    return describe


def _clip(student: str) -> Callable[[Run], str]:
    def describe(run: Run) -> str:
        known = {key: run.config.get(f"{student}.clip.{key}") for key in ("sampling", "frames", "fps", "size")}
        try:
            clip = ClipSection.model_validate({key: value for key, value in known.items() if value is not None})
        except ValueError:  # of another version
            return ""
        told = known["frames"] and known["size"] and (known["fps"] or clip.sampling == "segments")
        return f"{describe_clip(clip)}, {clip.size} × {clip.size} px" if told else ""

    return describe


def _labels(run: Run) -> str:
    mark = run.labels.get("fingerprint")
    return labels_text(run) + (f", fingerprint {mark}" if mark else "") if run.labels else ""


def _videos(run: Run) -> str:
    found, mark = run.facts.get("manifest"), manifest_fingerprint(run)
    count = found.get("videos") if isinstance(found, dict) else None
    return ", ".join([*([f"{count:,} in the manifest"] if count else []), *([f"fingerprint {mark}"] if mark else [])])


def _batch(run: Run) -> str:
    labeled, ratio = run.config.get("data.labeled_per_step"), run.config.get("data.unlabeled_per_labeled", 0)
    if labeled is None:
        return ""
    return f"{labeled} labeled" + ("" if run.method == BASELINE else f" + {labeled * ratio} unlabeled") + " videos"


def _optimizer(run: Run) -> str:
    rates = [run.config.get(f"{student}.optimizer.lr") for student in ("primary", "auxiliary")]
    warmup = run.config.get("train.warmup_steps")
    return "" if None in (*rates, warmup) else f"SGD, peak {rates[0]:.4g} and {rates[1]:.4g}, warm-up {warmup:,} steps, cosine"


def _protocol(run: Run) -> str:
    counts = [run.evaluation.get(key) or run.config.get(f"evaluation.{key}") for key in ("clips", "crops")]
    videos = run.evaluation.get("videos")
    return "" if None in counts else f"{counts[0]} clips × {counts[1]} crops" + (f", {videos:,} videos" if videos else "")


def _versions(run: Run) -> str:
    versions: Mapping[str, str] = run.facts.get("versions") or {}
    python = [f"python {run.facts['python']}"] if "python" in run.facts else []
    return ", ".join(python + [f"{name} {number}" for name, number in versions.items()])


PROPERTIES: dict[str, Callable[[Run], str]] = {
    "Method": _method,
    "Primary student": _network("primary"),
    "Primary's clip": _clip("primary"),
    "Auxiliary student": _network("auxiliary"),
    "Auxiliary's clip": _clip("auxiliary"),
    "Videos": _videos,
    "Labels": _labels,
    "Optimizer step": _batch,
    "Optimizer": _optimizer,
    "Steps": lambda run: steps_text(run) if run.last_step or "train.steps" in run.config else "",
    "Seeds": lambda run: "" if run.seed is None else str(run.seed),
    "Precision": lambda run: str(run.config.get("train.precision", "")),
    "Test": _protocol,
    "Versions": _versions,
    "Cores": lambda run: str(run.facts.get("cores", "")),
    "Created": lambda run: str(run.facts.get("created", "")),
}
