"""Run folders as training and evaluation leave them: real files, small real videos, made-up scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import load_config
from pipeline.evaluation.evaluation_summary import summarize
from pipeline.evaluation.metrics import Labels, average_students
from pipeline.manifest.schema import SCHEMA, Manifest, write_manifest

CLASSES = ("down", "left", "right", "up")
MOTION = {"down": (0, 2), "left": (-2, 0), "right": (2, 0), "up": (0, -2)}
WriteRun = Callable[..., Path]


def write_video(path: Path, action: str, num_frames: int = 24) -> None:
    """A bright square that moves one way over a gray scene, H.264, 24 fps, 96 x 64."""
    dx, dy = MOTION[action]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(num_frames):
            image = np.full((64, 96, 3), 60, np.uint8)
            x, y = 40 + dx * (index - num_frames // 2), 24 + dy * (index - num_frames // 2) // 2
            image[y : y + 16, x : x + 16] = (240, 120, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def make_manifest(folder: Path, per_class: int = 4) -> Manifest:
    """Test videos of four classes with their manifest."""
    (folder / "videos").mkdir(parents=True)
    rows = []
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            path = folder / "videos" / f"{name}_{number}.mp4"
            write_video(path, name)
            rows.append({
                "id": path.name, "uri": f"videos/{path.name}", "split": "test", "class": name, "label": label, "frames": 24,
                "fps": 24.0, "variable_fps": False, "duration": 1.0, "width": 96, "height": 64, "codec": "h264",
                "bytes": path.stat().st_size, "decoder": "decord", "status": "ok",
            })  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return write_manifest(table, folder / "manifest.parquet", CLASSES, str(folder), "made for a test")


def metric_lines(method: str, seed: int, steps: int, every: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl with every key, falling losses and nulls where nothing is kept."""
    generator = np.random.default_rng(seed)
    lines = []
    for step in range(every, steps + 1, every):
        t, noise = step / steps, float(generator.normal(scale=0.05))
        line: dict[str, Any] = {"step": step, "epoch": step / 100, "loss": 4 * np.exp(-2 * t) + noise}
        line |= {f"supervised_loss/{name}": 1.4 * np.exp(-k * t) + noise for name, k in (("primary", 2), ("auxiliary", 1))}
        line |= {f"lr/{name}": peak * (1 - t) for name, peak in (("primary", 0.1), ("auxiliary", 0.01))}
        line |= {f"gradient_norm/{name}": 2.0 + noise for name in ("primary", "auxiliary")}
        line |= {"clips_per_second": 80 + 40 * noise, "seconds/step": 0.6, "seconds/data": 0.1, "quarantined": 1}
        if method != "supervised":
            for way in ("primary_to_auxiliary", "auxiliary_to_primary"):
                line[f"mask_rate/{way}"] = max(0.0, t - 0.1)
                line[f"pseudo_label_accuracy/{way}"] = 0.6 + 0.3 * t + noise if t > 0.1 else None
            line |= {f"pseudo_label_loss/{name}": 0.8 * np.exp(-t) for name in ("primary", "auxiliary")}
            line |= {f"weak_accuracy/{name}": 0.3 + 0.4 * t for name in ("primary", "auxiliary")}
            line |= {"contrast_loss": 3 - t, "agreement": 0.3 + 0.5 * t}
            line |= {"alignment/same": 0.5 + 0.4 * t, "alignment/different": 0.4}
        lines.append(line)
    return lines


def save_predictions(
    folder: Path, classes: tuple[str, ...], labels: Labels, ids: list[str] | None = None, seed: int = 0, margin: float = 1.5
) -> None:
    """predictions.parquet and evaluation.json; ``margin`` is the mean logit of the true class over the others."""
    generator = np.random.default_rng(seed)
    names = ids or [f"video{index}" for index in range(len(labels))]
    scores = {}
    for student in ("primary", "auxiliary"):
        logits = generator.normal(size=(len(labels), len(classes)))
        logits[np.arange(len(labels)), labels] += margin
        exp = np.exp(logits)
        scores[student] = exp / exp.sum(axis=1, keepdims=True)
    scores["mean"] = average_students(scores["primary"], scores["auxiliary"])
    columns: dict[str, Any] = {"id": names, "uri": names, "class": [classes[label] for label in labels]}
    columns["label"] = pa.array(labels, pa.int32())
    columns |= {name: pa.array(list(values.astype(np.float32)), pa.list_(pa.float32())) for name, values in scores.items()}
    metadata = {b"actnetformer": json.dumps({"classes": list(classes)}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "predictions.parquet")
    summary = summarize(labels, scores, classes) | {"step": 1000, "clips": 10, "crops": 3}
    (folder / "evaluation.json").write_text(json.dumps(summary))


def evaluate_on_other_data(folder: Path, manifest: Manifest, keep_own: bool = False) -> None:
    """Gives a run folder's results the names and entries of an evaluation on other data, as if the manifest were such."""
    own = json.loads((folder / "evaluation.json").read_text())
    about: dict[str, Any] = {"data": {"manifest": manifest.path, "root": manifest.root, "fingerprint": manifest.fingerprint}}
    about["other_data"] = {"trained_on": "0123456789abcdef", "unknown_classes": {"loop <a>": 3}}
    (folder / f"evaluation_on_{manifest.fingerprint}.json").write_text(json.dumps(own | about))
    scores = (folder / "predictions.parquet").read_bytes()
    (folder / f"predictions_on_{manifest.fingerprint}.parquet").write_bytes(scores)
    if not keep_own:
        (folder / "evaluation.json").unlink()
        (folder / "predictions.parquet").unlink()


def save_run(
    parent: Path,
    manifest: Manifest,
    method: str = "actnetformer",
    seed: int = 0,
    margin: float = 1.5,
    overrides: tuple[str, ...] = (),
) -> Path:
    """A whole run folder ``parent/method-seed``."""
    words = [f"run.name={method}-{seed}", f"run.storage_path={parent}", f"run.seed={seed}", f"method.name={method}"]
    config = load_config(overrides=[*words, f"data.manifest={manifest.path}", "train.steps=1000", *overrides])
    folder = config.run_folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    labels = {"spec": "10%", "seed": 0, "fingerprint": "cafe0123cafe0123", "count": 120}
    facts = {
        "created": "2025-01-01T12:00:00+00:00", "host": "nowhere", "cores": 8, "python": "3.11.9", "method": method,
        "versions": {"ray": "2.60.0", "torch": "2.8.0"}, "parameters": {"primary": 31_840_000, "auxiliary": 30_590_000},
        "fingerprints": {
            "config": config.compute_fingerprint(), "manifest": manifest.fingerprint, "labels": labels["fingerprint"],
        },
        "manifest": {"path": manifest.path, "fingerprint": manifest.fingerprint, "videos": 1300}, "labels": labels,
        "command": f"python -m jobs.train run.name={method}-{seed} method.name={method} run.seed={seed}",
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))
    lines = metric_lines(method, seed, 1000, 10)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed = {"row": 7, "slot": 2, "video": 3, "uri": "videos/<broken>.mp4", "reason": "moov atom not found", "replaced_by": 5}
    pq.write_table(pa.Table.from_pylist([failed]), folder / "quarantine.parquet")
    test_labels = manifest.table["label"].to_numpy().astype(np.int64)
    save_predictions(folder, manifest.classes, test_labels, manifest.table["id"].to_pylist(), seed, margin)
    return folder


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Sixteen real test videos."""
    return make_manifest(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_run(tmp_path: Path, manifest: Manifest) -> WriteRun:
    """``make_run(method=..., seed=..., margin=..., overrides=...)`` -> run folder below ``tmp_path / "runs"``."""
    return lambda **words: save_run(tmp_path / "runs", manifest, **words)


def leave_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all pictures of pages empty."""
    empty = '<svg width="1" height="1" viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: file.write(empty))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at a page's words and numbers: drawing takes nearly half the time of a report."""
    leave_undrawn(monkeypatch)


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """``save_run``, for fixtures that outlive a test."""
    return save_run


@pytest.fixture(scope="session")
def write_predictions() -> Callable[..., None]:
    """``save_predictions``."""
    return save_predictions
