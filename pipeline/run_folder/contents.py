"""The run folder: what a run leaves behind, and the check that a folder is continued only by the run that made it.

storage_path/name/
    config.yaml            the whole configuration, defaults included
    facts.json             versions, host, fingerprints of config, manifest and label subset
    metrics.jsonl          a line every train.log_every steps: the means since the line before
    scores/*.parquet       weak-view scores of unlabeled videos, a file for each checkpoint
    quarantine.parquet     videos that failed to decode, where, why, and what replaced them
    checkpoint_*/          see checkpoint.py
    predictions.parquet    class scores of every test video    evaluation.json    accuracies and calibration
    calibration.json       temperatures, written by jobs.evaluate --calibrate
    report.*               written by jobs.report        label_quality.*   by jobs.label_quality
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.config import Config, parse_config, translate_old_names
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.files.folder_lock import lock_folder
from pipeline.files.store_lock import StoreNotResponding, lock_store
from pipeline.files.written_yaml import read_written_yaml

PACKAGES = ("actnetformer", "ray", "torch", "torchvision", "timm", "decord", "av", "pyarrow", "numpy")
PREDICTORS = ("primary", "auxiliary", "mean")
"""Whose scores and accuracies a run folder has: each student's, and those of the mean of both."""
QUARANTINE = pa.schema(
    [
        ("row", pa.int64()),  # of the plan
        ("slot", pa.int64()),  # 0 labeled
        ("video", pa.int64()),  # manifest row that failed
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("replaced_by", pa.int64()),  # manifest row tried next
    ]
)


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of what a run's result depends on. A run continues only if all of them agree."""

    config: str
    manifest: str
    labels: str
    file_labels: str = ""
    """Fingerprint of the labels that a file gives to unlabeled videos; empty without such a file."""

    def as_dict(self) -> dict[str, str]:
        """Returns them as a dict, for JSON."""
        known = {"config": self.config, "manifest": self.manifest, "labels": self.labels}
        return known | ({"file_labels": self.file_labels} if self.file_labels else {})


@contextmanager
def lock_run(config: Config, wait_seconds: float = 0.0) -> Iterator[None]:
    """Makes this process the only writer of the run's folder, and of its copy on object storage.

    Raises FolderInUse if another process is its writer, and FolderNotWritable.
    """
    remedy = "wait until it has ended, stop it, or choose another run.name"
    elsewhere = "choose another run.storage_path"
    try:
        with (
            lock_folder(config.run_folder, wait_seconds, remedy, elsewhere),
            lock_store(config.run_store, config.run_folder, remedy) if config.run_store else nullcontext(),
        ):
            yield
    except StoreNotResponding as error:
        raise UserError(f"run.storage_path={config.run.storage_path} does not answer: {error}; {storage.REMEDY}") from None


def check_run_folder(config: Config, fingerprints: Fingerprints) -> None:
    """Raises UserError that names what differs, unless the run folder is new or this run's own."""
    if (config.run_folder / "facts.json").is_file():
        _check_same_run(config.run_folder, config, fingerprints)


def create_run_folder(config: Config, fingerprints: Fingerprints, facts: Mapping[str, Any]) -> None:
    """Makes the run folder with config.yaml and facts.json, if it is not there. Raises UserError if it is another run's."""
    folder = config.run_folder
    check_run_folder(config, fingerprints)
    if (folder / "facts.json").is_file():
        return
    known = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _find_version(name) for name in PACKAGES},
        "fingerprints": fingerprints.as_dict(),
        "config_fingerprint": fingerprints.config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    known["config_digest"] = compute_config_digest(folder)
    write_text(folder / "facts.json", json.dumps({**known, **facts}, indent=1))


def compute_config_digest(folder: Path) -> str:
    """Computes the SHA-256 of the file config.yaml, which does not depend on how a later version reads it."""
    return hashlib.sha256((folder / "config.yaml").read_bytes()).hexdigest()


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a folder that a job uploaded
        return None


def read_run(folder: Path) -> tuple[Config, dict[str, Any]]:
    """Reads configuration and facts of a run folder. Raises UserError if it is none."""
    try:
        tree = read_written_yaml(folder / "config.yaml")
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"there is no {Path(error.filename).name} in it" if folder.is_dir() else "it does not exist"
        if runs := sorted(path.parent.name for path in folder.glob("*/config.yaml")):
            reason = f"it has {len(runs)} run{'s' * (len(runs) > 1)}; name one, such as {folder / runs[0]}"
        raise UserError(f"{folder} is not a run folder (config.yaml and facts.json are needed): {reason}") from None
    recorded = translate_old_names(tree) if isinstance(tree, dict) else tree
    return parse_config(recorded, source=str(folder / "config.yaml")), facts


def _check_same_run(folder: Path, config: Config, fingerprints: Fingerprints) -> None:
    old_config, facts = read_run(folder)
    old = facts.get("fingerprints", {})
    differing = []
    if old.get("manifest") != fingerprints.manifest:
        differing.append(f"manifest: the run's has fingerprint {old.get('manifest')}, this has {fingerprints.manifest}")
    if old.get("labels") != fingerprints.labels:
        differing.append(f"label subset: the run's has fingerprint {old.get('labels')}, this has {fingerprints.labels}")
    if old.get("file_labels", "") != fingerprints.file_labels:
        its = old.get("file_labels", "none")
        this = fingerprints.file_labels or "none"
        differing.append(f"method.file_label.file: the run's has fingerprint {its}, this has {this}")
    if old.get("config") != fingerprints.config:
        before, now = flatten(old_config.collect_result_knobs()), flatten(config.collect_result_knobs())
        differing += [
            f"{key}: the run has {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
    if differing:
        remedy = "choose another run.name (of a study: --name) or delete the folder:"
        raise UserError(f"the run folder {folder} was made with something else; {remedy}", differing)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to one dotted key for each value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def append_metrics(folder: Path, record: Mapping[str, Any]) -> None:
    """Appends one line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads all whole lines of metrics.jsonl; a line that a kill cut off is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def read_quarantine(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of quarantine.parquet, in plan order."""
    path = folder / "quarantine.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else []


def write_quarantine(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces quarantine.parquet by these records, in plan order, each failure once."""
    unique = {(r["row"], r["slot"], r["video"]): dict(r) for r in records}
    table = pa.Table.from_pylist([unique[key] for key in sorted(unique)], schema=QUARANTINE)
    scratch = folder / f".quarantine.{uuid.uuid4().hex}"
    pq.write_table(table, scratch)
    os.replace(scratch, folder / "quarantine.parquet")


def rewind(folder: Path, step: int, next_row: int) -> None:
    """Removes what was written after a checkpoint. These steps are trained again, so no line is missing or doubled."""
    records = [record for record in read_metrics(folder) if record["step"] <= step]
    if (folder / "metrics.jsonl").is_file():
        write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    for part, (_, last) in list_score_files(folder).items():
        if last > step:
            part.unlink()
    failures = read_quarantine(folder)
    if failures:
        write_quarantine(folder, [record for record in failures if record["row"] < next_row])


def make_scores_path(folder: Path, first: int, last: int) -> Path:
    """Makes the path of the file of scores of the steps ``first`` to ``last``, counted from 1; the file may have no rows."""
    return folder / "scores" / f"{first:06d}-{last:06d}.parquet"


def list_score_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Lists the files of saved scores in the order of training, with their first and last steps."""
    names = {path: path.stem.partition("-") for path in (folder / "scores").glob("[0-9]*-[0-9]*.parquet")}
    steps = {path: (int(first), int(last)) for path, (first, _, last) in names.items()}
    return dict(sorted(steps.items(), key=lambda part: part[1]))


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
