"""Describes what a file or folder of this program is: a run, study, model, checkpoint, manifest, label subset, table of scores
or configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analysis.records.run_reader import is_run
from pipeline.analysis.records.study_reader import read_study_record
from pipeline.analysis.run_list import describe_folder, read_top1
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.evaluation.protocol import describe_protocol
from pipeline.files.parquet import METADATA_KEY
from pipeline.manifest.schema import read_manifest
from pipeline.model_folder.read_folder import is_model_folder, read_model_folder
from pipeline.run_folder.contents import read_run
from pipeline.run_folder.run_store import COMMIT_FILE
from pipeline.run_folder.study_folder import STUDY_FACTS
from pipeline.training.checkpoints.checkpoint_facts import DamagedCheckpoint, verify_checkpoint

KNOWN = "a run, a study, a model folder, a checkpoint, a Parquet file of this program, or a configuration (YAML)"


def describe_path(path: Path) -> dict[str, Any]:
    """Describes a file or folder, as facts by name; the first is ``what``. Reads and checks all that the answer rests on: the
    checksums of models and checkpoints, the keys of a configuration.

    Raises UserError if it is missing, damaged, or nothing of this program.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; jobs.info describes {KNOWN}")
    if path.suffix in (".yaml", ".yml"):
        return _describe_configuration(path)
    if path.suffix == ".parquet":
        return _describe_parquet(path)
    if is_model_folder(path):
        return _describe_model(path)
    if (path / COMMIT_FILE).is_file():
        return _describe_checkpoint(path)
    if (path / STUDY_FACTS).is_file():
        return _describe_study(path)
    if is_run(path):
        return _describe_run(path)
    tables = sorted(path.glob("*.parquet")) if path.is_dir() else []
    if tables:
        raise UserError(f"{path} is a folder of data: name a file in it, for example python -m jobs.info {tables[0]}")
    raise UserError(f"{path} is nothing of this program; jobs.info describes {KNOWN}; jobs.runs lists the runs in a folder")


def _describe_configuration(path: Path) -> dict[str, Any]:
    return {"what": "configuration", **_list_choices(load_config(path))}


def _list_choices(config: Config) -> dict[str, Any]:
    students = (config.primary.network, config.auxiliary.network)
    labeled = config.data.labeled_per_step
    unlabeled = f" + {labeled * config.unlabeled_per_labeled} unlabeled" if config.unlabeled_per_labeled else ""
    return {
        "method": config.method.name,
        "students": " and ".join(network.arch for network in students),
        "training": f"{config.train.steps:,} steps of {labeled} labeled{unlabeled} videos",
        "data": config.data.manifest,
    }


def _describe_run(folder: Path) -> dict[str, Any]:
    config, facts = read_run(folder)
    listed, versions = describe_folder(folder), facts.get("versions") or {}
    labels = facts.get("labels") or {}
    return {
        "what": "run",
        "state": listed.state,
        "steps": f"{listed.done:,} of {listed.planned:,}" if listed.planned else f"{listed.done:,}",
        **_list_choices(config),
        "labels": f"{labels.get('count', '?')} videos ({labels.get('spec', '?')}, seed {labels.get('seed', '?')})",
        "fingerprints": facts.get("fingerprints"),
        **_describe_accuracy(listed.top1, listed.protocol),
        "made": f"{facts.get('created')} on {facts.get('host')}",
        "versions": {name: versions[name] for name in ("actnetformer", "torch", "ray") if versions.get(name)},
        "bytes": listed.bytes,
    }


def _describe_accuracy(top1: Mapping[str, float | None], protocol: str) -> dict[str, Any]:
    known = {name: f"{value:.1f} %" for name, value in top1.items() if value is not None}
    return {"top-1": ", ".join(f"{name} {value}" for name, value in known.items()), "protocol": protocol} if known else {}


def _describe_study(folder: Path) -> dict[str, Any]:
    listed, study = describe_folder(folder), read_study_record(folder)
    return {
        "what": f"study ({study.kind})",
        "state": listed.state,
        "question": study.question or None,
        "trials": dict(study.counts),
        "continued by": study.command or None,
        "bytes": listed.bytes,
    }


def _describe_model(folder: Path) -> dict[str, Any]:
    model = read_model_folder(folder)
    networks = [model.knobs[student]["network"]["arch"] for student in ("primary", "auxiliary")]
    training, labels = model.training, model.training.get("labels") or {}
    evaluation = folder / "evaluation.json"
    try:
        summary = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {}
    except ValueError as error:
        raise UserError(f"{evaluation} cannot be read: {error}; python -m jobs.evaluate {folder} writes it") from None
    return {
        "what": "model, whole: all checksums are right",
        "students": " and ".join(networks),
        "classes": len(model.classes),
        "trained": f"{training.get('method')}, {training['step']:,} of {training.get('steps') or training['step']:,} steps",
        "labels": f"{labels['count']} videos ({labels['spec']}, seed {labels['seed']})" if labels else None,
        "fingerprints": training["fingerprints"],
        "calibrated": bool(model.calibration),
        "programs": sorted(one.name for one in folder.iterdir() if one.suffix in (".onnx", ".pt2")) or None,
        **_describe_accuracy(read_top1(summary), describe_protocol(summary) if summary else ""),
    }


def _describe_checkpoint(folder: Path) -> dict[str, Any]:
    try:
        facts = verify_checkpoint(folder)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}; training continues from the one before it") from None
    return {
        "what": "checkpoint, whole: all checksums are right",
        "step": facts["step"],
        "run": str(folder.resolve().parent),
        "fingerprints": facts.get("fingerprints"),
        "bytes": sum(one.stat().st_size for one in folder.iterdir()),
    }


def _describe_parquet(path: Path) -> dict[str, Any]:
    first = next(iter(sorted(path.glob("*.parquet"))), path) if path.is_dir() else path
    try:
        metadata = (pq.read_schema(first).metadata or {}).get(METADATA_KEY)
        about = json.loads(metadata) if metadata else None
        rows = sum(pq.read_metadata(part).num_rows for part in (path.glob("*.parquet") if path.is_dir() else [path]))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}); jobs.info describes {KNOWN}"
        ) from None
    if not isinstance(about, dict):
        raise UserError(f"{path} is a Parquet file without this program's description; jobs.info describes {KNOWN}")
    if not ({"spec", "fingerprint", "manifest_fingerprint"} <= about.keys() or {"root"} <= about.keys() or "classes" in about):
        raise UserError(f"{path} is neither manifest, label subset nor predictions; jobs.info describes {KNOWN}")
    if "spec" in about:
        return {
            "what": "label subset", "videos": rows, "drawn": f"{about['spec']}, seed {about['seed']}",
            "fingerprint": about["fingerprint"], "of the manifest": about["manifest_fingerprint"],
            "answers": about.get("lineage") or None,
        }  # fmt: skip
    if "root" in about:
        manifest = read_manifest(path)
        splits = {name: count for name, count in _count(manifest.table["split"]).items() if count}
        unusable = {name: count for name, count in _count(manifest.table["status"]).items() if name != "ok"}
        return {
            "what": "manifest", "videos": rows, "splits": splits, "unusable": unusable or None,
            "classes": len(manifest.classes), "made from": manifest.source, "root": manifest.root,
            "fingerprint": manifest.fingerprint, "classes added": list(manifest.lineage) or None,
        }  # fmt: skip
    protocol = describe_protocol(
        {"protocol": about.get("protocol") or about.get("evaluation") or {}, "step": about.get("step")}
    )
    return {
        "what": "predictions", "rows": rows, "classes": len(about.get("classes") or ()) or None,
        "of the manifest": about.get("manifest"), "protocol": protocol or None,
    }  # fmt: skip


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(pair["values"]): int(pair["counts"]) for pair in column.value_counts().to_pylist()}
