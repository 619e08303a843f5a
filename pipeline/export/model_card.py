"""Writes the model card: what a stranger should know before using a model. It is README.md of the model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.evaluation.evaluation_summary import describe_lost_videos
from pipeline.evaluation.protocol import describe_protocol
from pipeline.export.int8_figures import describe_int8
from pipeline.saved_models.saved_run import SavedRun

DISPLAY_NAMES = {"primary": "primary", "auxiliary": "auxiliary", "mean": "mean of both"}
LISTED_CLASSES = 100
CITATION = """\
```bibtex
@inproceedings{dass2024actnetformer,
  title     = {{ActNetFormer}: Transformer-{ResNet} Hybrid Method for Semi-Supervised Action Recognition in Videos},
  author    = {Dass, Sharana Dharshikgan Suresh and Barua, Hrishav Bakul and Krishnasamy, Ganesh and
               Paramesran, Raveendran and Phan, Rapha\\"el C.-W.},
  booktitle = {International Conference on Pattern Recognition (ICPR)},
  year      = {2024},
  note      = {arXiv:2404.06243}
}
```"""


def write_card(
    name: str,
    run: SavedRun,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    calibration: Mapping[str, Any],
    programs: Mapping[str, Any],
) -> str:
    """Writes the card's text.

    ``training`` is the content of training.json, ``evaluation`` that of the run's evaluation.json, or empty; ``calibration``
    and ``programs`` are those of the folder's calibration.json and programs.json, or empty.
    """
    parts = [
        f"---\n{yaml.safe_dump(_make_front_matter(name, evaluation), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _describe_task(run),
        "## Figures",
        _write_figures(evaluation),
        *([_describe_temperatures(calibration)] if calibration else []),
        "## Protocol",
        _describe_protocol(run.config),
        "## Training data",
        _describe_data(run, training),
        "## Limits",
        "\n".join(f"- {line}" for line in _list_limits(evaluation, bool(calibration))),
        "## Use",
        _describe_use(),
        *(["## Programs without this project", describe_programs(programs)] if programs else []),
        "## Citation",
        "The method is that of ActNetFormer; this implementation is not the authors'.",
        CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _make_front_matter(name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that model hubs read. There is no license: whoever publishes the model adds theirs."""
    front: dict[str, Any] = {
        "library_name": "actnetformer",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "action-recognition", "semi-supervised", "actnetformer"],
        "metrics": ["accuracy"],
    }
    how = f"n = {evaluation['videos']}; {describe_protocol(evaluation)}" if evaluation else ""
    metrics = [
        {"type": "accuracy", "name": f"top-1, {title} ({how})", "value": round(100 * top1, 2)}
        for student, title in DISPLAY_NAMES.items()
        if (top1 := evaluation.get(student, {}).get("top1")) is not None
    ]
    if metrics:
        data = evaluation.get("data", {})
        dataset = {"name": data.get("source", "unknown"), "type": "video", "split": evaluation.get("split", "test")}
        task = {"type": "video-classification"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return front


def _describe_task(run: SavedRun) -> str:
    names = [f"`{name}`" for name in run.classes[:LISTED_CLASSES]]
    more = f", and {len(run.classes) - LISTED_CLASSES} more (labels.json)" if len(run.classes) > LISTED_CLASSES else ""
    networks = " and ".join(f"a {getattr(run.config, name).network.arch} ({name})" for name in ("primary", "auxiliary"))
    return (
        f"Video classification: which of {len(run.classes)} actions a video shows. There are two networks, {networks}, whose "
        f"probabilities can be used alone or averaged.\n\nClasses: {', '.join(names)}{more}."
    )


def _write_figures(evaluation: Mapping[str, Any]) -> str:
    if not evaluation or not evaluation.get("videos"):
        return "The run has no evaluation of these weights on labeled videos, so there are none."
    rows = []
    for student, title in DISPLAY_NAMES.items():
        figures = evaluation.get(student, {})
        intervals = figures.get("interval") or {}
        cells = [title]
        for key in ("top1", "top5", "mean_class_accuracy"):
            value, interval = figures.get(key), intervals.get(key)
            cells.append("–" if value is None else f"{100 * value:.1f}{_write_interval(interval)}")
        cells += [_write_number(figures.get("nll"), "{:.3f}"), _write_number(figures.get("ece"), "{:.1%}").rstrip("%")]
        rows.append(f"| {' | '.join(cells)} |")
    data = evaluation.get("data", {})
    videos = f"{evaluation['videos']} videos of split {evaluation.get('split', 'test')} of {data.get('source', 'unknown data')}"
    lost = len(evaluation.get("undecodable", {})) + len(evaluation.get("unusable", {}))
    where = f"{videos} (fingerprint {data.get('fingerprint', 'unknown')})"
    notes = [f"In %, but for NLL in nats; of n = {where}; {describe_protocol(evaluation)}."]
    notes += ["In brackets: the 95 % interval over videos."] if any("(" in row.partition("|")[2] for row in rows) else []
    notes += [f"{lost} more videos could not be decoded and are not counted."] if lost else []
    notes += [f"{counted[0].upper()}{counted[1:]}."] if (counted := describe_lost_videos(evaluation)) else []
    notes.append("They are of one training run: how much they vary from seed to seed is not known from them.")
    notes.append("NLL (negative log-likelihood) and ECE (expected calibration error) are of uncalibrated probabilities.")
    head = "| network | top-1 | top-5 | mean class accuracy | NLL | ECE |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    return "\n".join([head, *rows]) + "\n\n" + " ".join(notes)


def _describe_temperatures(calibration: Mapping[str, Any]) -> str:
    """Describes the temperatures, and what they change on the held-out videos by which they were found."""
    parts = []
    for student, title in DISPLAY_NAMES.items():
        one = calibration.get(student) or {}
        before, after = one.get("before") or {}, one.get("after") or {}
        changes = [
            f"{key.upper()} {_write_number(before.get(key), style)} before and {_write_number(after.get(key), style)} after"
            for key, style in (("nll", "{:.3f}"), ("ece", "{:.1%}"))
        ]
        value = one.get("temperature")
        parts.append(f"{title}: none" if value is None else f"{title}: {value:.3f} ({', '.join(changes)})")
    where = f"on {calibration.get('videos', 'some')} held-out videos, by {describe_protocol(calibration)}"
    return f"Temperatures (calibration.json), found {where}: {'; '.join(parts)}."


def _write_number(value: float | None, style: str) -> str:
    return "–" if value is None else style.format(value)


def _write_interval(interval: Sequence[float] | None) -> str:
    return "" if not interval else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _describe_protocol(config: Config) -> str:
    views = config.evaluation
    clips = []
    for name in ("primary", "auxiliary"):
        clip = getattr(config, name).clip
        rate = "spread over the whole video" if clip.fps is None else f"at {clip.fps:g} frames a second"
        clips.append(f"- {name}: {clip.frames} frames {rate}, {clip.size} x {clip.size} pixels, {clip.modality}")
    many = f"{views.clips} clip{'s' * (views.clips > 1)} x {views.crops} crop{'s' * (views.crops > 1)}"
    return (
        f"Scores of a video are the mean of {views.average} over {many}. Frames are scaled to a shorter side of "
        f"{config.data.decode_size} pixels.\n\n" + "\n".join(clips)
    )


def _describe_data(run: SavedRun, training: Mapping[str, Any]) -> str:
    if elsewhere := training.get("trained_elsewhere"):
        files = [f"- {name}: `{file['file']}`, SHA-256 `{file['sha256']}`" for name, file in elsewhere["files"].items()]
        both = "Both networks are the one of this file:" if len(files) == 1 else "The networks are those of these files:"
        by = elsewhere["by"] or "by whom and on which videos was not said"
        return "\n".join([f"These weights were not trained by this program, but elsewhere: {by}. {both}", "", *files])
    labels, prints = training["labels"], training["fingerprints"]
    lines = [
        f"- manifest `{prints['manifest']}`: {run.videos} videos",
        f"- labels `{prints['labels']}`: {labels.get('count')} videos ({labels.get('spec')}, seed {labels.get('seed')})",
        f"- configuration `{prints['config']}`: method {training['method']}, step {training['step']} of {training['steps']}, "
        f"seed {training['seed']}",
    ]
    for name, where in training["started_from"].items():
        lines.append(f"- {name} started from {where or 'random weights'}")
    return "\n".join(lines)


def _list_limits(evaluation: Mapping[str, Any], is_calibrated: bool) -> list[str]:
    limits = [
        "Every video gets one of the classes above, also a video that shows none of them.",
        "The figures hold for videos like those that they were measured on; on others measure again (`jobs.evaluate`).",
        "The labels and videos decide what was learned, their biases included; whom and what they show is not checked.",
    ]
    calibrated = "`jobs.predict` calibrates probabilities by calibration.json; the programs in this folder do not"
    uncalibrated = "Probabilities are not calibrated: 0.9 need not mean that nine of ten such predictions are right"
    limits.append(f"{calibrated if is_calibrated else uncalibrated}.")
    if not evaluation:
        limits.append("These weights were not evaluated.")
    return limits


def _describe_use() -> str:
    return (
        "    python -m jobs.predict FOLDER VIDEO ... --out scores.parquet\n"
        "    python -m jobs.evaluate FOLDER --manifest MANIFEST\n"
        "    python -m jobs.train ... primary.network.weights=FOLDER auxiliary.network.weights=FOLDER\n\n"
        "`FOLDER` is the folder of this file; docs/models.md of the program explains its files. These commands "
        "read data only, and execute nothing of the folder. `sha256sum -c SHA256SUMS` checks that they are whole."
    )


def describe_programs(programs: Mapping[str, Any]) -> str:
    """Describes the programs of a model folder by the content of its programs.json."""
    rows = [f"| `{name}` | {difference:.1e} |" for name, difference in programs["largest_difference"].items()]
    what = (
        "They take uint8 frames [N, T, S, S, 3], RGB, of squares of S pixels (T is `frames`, and S `shortest_edge` of "
        "preprocessor_config.json), and compute probabilities [N, K] in the order of labels.json. The `mean` ones take the "
        "primary's and the auxiliary's frames. `.onnx` files hold no code; `.pt2` files can, and torch.export.load executes it."
    )
    head = f"| file | largest difference of a probability from the networks, on {programs['compared_on_clips']} clips |"
    parts = ["\n".join([what, "", head, "| --- | ---: |", *rows])]
    if "int8" in programs:
        quantized = "`_int8` files compute with 8-bit integers. Against the float files, on the same clips:"
        parts.append("\n".join([quantized, "", *(f"- {line}" for line in describe_int8(programs["int8"]))]))
    return "\n\n".join(parts)
