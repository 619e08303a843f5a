"""Opens a run folder for evaluation and prediction. The folder alone says what was learned: class names, clips, views and
fingerprints. Data is compared with the fingerprints before it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clips.source import VideoSource, open_view_source
from pipeline.config import Config, override
from pipeline.errors import UserError, list_first
from pipeline.files import storage
from pipeline.manifest.label_subset import LabelSubset, read_labels
from pipeline.manifest.memory_mapped import open_manifest
from pipeline.manifest.schema import SCHEMA, Manifest, compute_fingerprint
from pipeline.manifest.verify import find_changed_files, sample_evenly
from pipeline.run_folder.contents import Fingerprints, compute_config_digest, read_run
from pipeline.seeds import Ints
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import FILES, read_facts


@dataclass(frozen=True)
class SavedRun:
    """A run and one of its checkpoints, the newest whole one unless ``evaluation.checkpoint=best`` asks for another."""

    folder: Path
    config: Config
    """The configuration that it was trained with, with the command's overrides and absolute paths."""
    classes: tuple[str, ...]
    fingerprints: Fingerprints
    """Those of the configuration, manifest and labels that it was trained with."""
    videos: int
    """The number of videos of the manifest that it was trained with."""
    weights: Path
    """The checkpoint's file of weights; ``evaluation.checkpoint`` says which checkpoint."""
    step: int
    """The checkpoint's step."""
    trained_steps: int
    """The step of the newest whole checkpoint."""
    moved: bool = False
    """Whether the command names another path of the manifest or of the videos than the run recorded."""
    note: str = ""
    """What the user should know about where videos are looked for; "" if there is nothing."""
    calibration: Mapping[str, Any] | None = None
    """The calibration.json of a model folder, empty if it has none; None for a run, whose file may be written at any time."""


def open_saved_run(folder: Path, overrides: Sequence[str] = (), allowed: Sequence[str] = ()) -> SavedRun:
    """Opens a run folder. Only keys that begin with one of ``allowed`` may be overridden. Raises UserError."""
    folder = folder.expanduser().resolve()
    check_overrides(overrides, allowed)
    trained, facts = read_run(folder)
    classes, fingerprints, videos = _read_known(facts, folder)
    if facts.get("config_digest", "") != compute_config_digest(folder) and trained.compute_fingerprint() != fingerprints.config:
        raise UserError(
            f"{folder / 'config.yaml'} was changed after the run was made: its knobs are no longer those that were trained "
            f"(fingerprint {trained.compute_fingerprint()}, the run's is {fingerprints.config}); put the earlier file back"
        )
    own_place = [f"run.storage_path={folder.parent}", f"run.name={folder.name}"]
    config = override(trained.model_dump(mode="json"), overrides, source=f"{folder / 'config.yaml'} and the command line")
    config = override(config.model_dump(mode="json"), own_place, source="run folder").with_absolute_paths()
    newest, problems = checkpoint.find_newest(folder)
    if newest is None:
        raise UserError(f"{folder} has no whole checkpoint yet: run jobs.train first", problems)
    state = read_facts(newest)
    if state["fingerprints"] != fingerprints.as_dict():
        raise UserError(f"{newest} is a checkpoint of another run (its fingerprints are not those of facts.json): remove it")
    weights, step = newest / FILES[0], int(state["step"])
    if config.evaluation.checkpoint == "best":
        weights, step = checkpoint.find_best_weights(folder)
    moved, note = _has_moved(trained, config), _note_kept_root(trained, config)
    return SavedRun(folder, config, classes, fingerprints, videos, weights, step, int(state["step"]), moved, note)


def check_overrides(overrides: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises UserError that names the words that do not begin with one of ``allowed``."""
    if foreign := [word for word in overrides if not word.startswith(tuple(allowed))]:
        keys = [f"{key}*" if key.endswith(".") else key.rstrip("=") for key in allowed]
        raise UserError(f"only {', '.join(keys)} can be overridden here:", foreign)


def _has_moved(trained: Config, now: Config) -> bool:
    """Returns whether another path of the data is named than the run recorded."""
    return (now.data.manifest, now.data.root) != (trained.data.manifest, trained.data.root)


def _note_kept_root(trained: Config, now: Config) -> str:
    """Returns a note if the manifest moved while the run's recorded folder of videos is still used, else ""."""
    root = now.data.root
    if root is None or root != trained.data.root or now.data.manifest == trained.data.manifest:
        return ""
    how = "data.root=FOLDER names another folder, data.root=null the one that the manifest names"
    return f"videos are looked for in data.root={root}, which the run recorded; {how}"


def _read_known(facts: dict[str, Any], folder: Path) -> tuple[tuple[str, ...], Fingerprints, int]:
    try:
        classes = tuple(facts["classes"])
        fingerprints = Fingerprints(**facts["fingerprints"])
        videos = int(facts["manifest"]["videos"])
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes are not names")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'facts.json'} lacks what the run was trained with ({error}): restore it") from None
    return classes, fingerprints, videos


# -------------------------------------------------------------------------------------------------------------- data


def open_file_source(run: SavedRun) -> VideoSource:
    """Opens a source for predictions of any files: it knows the run's classes and clips, and has no videos of its own."""
    nothing = Manifest(SCHEMA.empty_table(), run.classes, "", "no videos", "", str(run.folder / "facts.json"))
    return open_view_source(run.config, nothing)


def open_run_source(run: SavedRun) -> VideoSource:
    """Opens the run's own data, wherever it lies now. Raises UserError if it is not what the run was trained with."""
    manifest = _open_manifest(run)
    if manifest.fingerprint != run.fingerprints.manifest:
        raise UserError(
            f"{manifest.path} is not the manifest that {run.folder.name} was trained with; put the earlier one back, say where "
            "it is now with data.manifest=FILE, or evaluate on this one on purpose with --other-data FILE:",
            _list_differences(run.classes, run.fingerprints, run.videos, manifest),
        )
    is_validation = run.config.evaluation.split == "validation"  # else no labels are needed, which may be gone
    source = open_view_source(run.config, manifest)
    if is_validation:
        labels = _find_labels(run, manifest)
        source = replace(source, held_out=labels.held_out, given_labels=labels.given)
    if run.moved:
        rows = sample_evenly(source.find_evaluation_rows(run.config.evaluation.split))
        _check_files(manifest, rows, run.folder.name, "prepare these, and evaluate on them on purpose with --other-data FILE")
    return source


def has_own_data(run: SavedRun) -> bool:
    """Whether ``data.manifest`` is what the run was trained with. Raises UserError if it cannot be read."""
    return _open_manifest(run).fingerprint == run.fingerprints.manifest


def _check_files(manifest: Manifest, rows: Ints, name: str, remedy: str) -> None:
    """Raises UserError if existing files of these rows are not those that the run's manifest lists."""
    if other := find_changed_files(manifest, rows):
        what = f"{len(other)} of {len(rows)} compared files are not those of the manifest that {name} was trained with"
        raise UserError(f"{what}; say with data.root=FOLDER where its videos are, or {remedy}:", list_first(other))


def _open_manifest(run: SavedRun) -> Manifest:
    try:
        return open_manifest(run.config.data.manifest, run.config.data.root)
    except UserError as error:
        raise UserError(f"{error}\nif the data moved, say data.manifest=FILE, and data.root=FOLDER for the videos") from None


def check_inputs(config_file: Path, config: Config) -> str:
    """Returns a note on where videos are looked for, or "". Checks only if the file is the config.yaml of a run folder.

    Raises UserError if ``config`` names other data than the run was trained with.
    """
    if config_file.name != "config.yaml" or not (config_file.parent / "facts.json").is_file():
        return ""
    trained, facts = read_run(config_file.parent)
    classes, fingerprints, videos = _read_known(facts, config_file.parent)
    remedy = "say where it is now with data.manifest=FILE, and data.labels=FILE:"
    manifest = open_manifest(config.data.manifest, config.data.root)
    if manifest.fingerprint != fingerprints.manifest:
        what = f"{manifest.path} is not the manifest that {config_file.parent.name} was trained with"
        raise UserError(f"{what}; {remedy}", _list_differences(classes, fingerprints, videos, manifest))
    labels = read_labels(config.labels_path, manifest)
    if labels.fingerprint != fingerprints.labels:
        what = f"{config.labels_path} is not the label subset that {config_file.parent.name} was trained with"
        raise UserError(f"{what}; {remedy}", [f"fingerprint {labels.fingerprint}, the run's is {fingerprints.labels}"])
    config = config.with_absolute_paths()
    if _has_moved(trained, config):
        _check_files(manifest, sample_evenly(manifest.find_training_rows()), config_file.parent.name, "put them back")
    return _note_kept_root(trained, config)


def _list_differences(classes: tuple[str, ...], fingerprints: Fingerprints, videos: int, manifest: Manifest) -> list[str]:
    lines = [f"fingerprint {manifest.fingerprint}, the run's is {fingerprints.manifest}"]
    count = manifest.table.num_rows
    lines += [f"{count} videos, the run's had {videos}"] if count != videos else []
    mine, theirs = set(classes), set(manifest.classes)
    lines += [f"classes that the run does not know: {', '.join(list_first(sorted(theirs - mine)))}"] if theirs - mine else []
    lines += [f"classes that are no longer there: {', '.join(list_first(sorted(mine - theirs)))}"] if mine - theirs else []
    if mine == theirs and manifest.classes != classes:
        lines.append("the same classes in another order")
    if len(lines) == 1:
        lines.append("the same classes and number of videos: other files, splits or groups")
    return [*lines, *_find_group_remedy(fingerprints, manifest)] if mine == theirs else lines


def _find_group_remedy(fingerprints: Fingerprints, manifest: Manifest) -> list[str]:
    """Says what to do if the manifest differs, or may differ, because jobs.prepare now takes groups from the names."""
    table = manifest.table
    if table["group"].null_count == table.num_rows:
        return []
    column = SCHEMA.get_field_index("group")
    ungrouped = table.set_column(column, SCHEMA.field("group"), pa.nulls(table.num_rows, pa.string()))
    if compute_fingerprint(ungrouped, manifest.classes) == fingerprints.manifest:
        return ["only the groups differ, of which the run's had none: jobs.prepare ... --group none prepares it as it was"]
    remedy = "jobs.prepare ... --group none takes none from names, as earlier versions did"
    return [f"if this manifest took its groups from names, and the run's did not: {remedy}"]


def _find_labels(run: SavedRun, manifest: Manifest) -> LabelSubset:
    """Finds the labels that the run was trained with. They are looked for where they were, and beside a manifest that
    moved."""
    recorded = run.config.labels_path
    beside = str(Path(manifest.path).parent / Path(recorded).name) if not storage.is_remote(manifest.path) else recorded
    wrong = []
    for path in dict.fromkeys((recorded, beside)):
        try:
            labels = read_labels(path, manifest)
        except UserError as error:
            wrong.append(str(error))
            continue
        if labels.fingerprint == run.fingerprints.labels:
            return labels
        wrong.append(f"{path} has fingerprint {labels.fingerprint}, the run's is {run.fingerprints.labels}")
    what = "the held-out videos are unknown without the run's label subset; say where it is with data.labels=FILE:"
    raise UserError(what, wrong)


@dataclass(frozen=True)
class OtherData:
    """Another data set, whose labels are those of the run's classes of the same names."""

    source: VideoSource
    unknown: dict[str, int]
    """How many videos of the evaluated split each class has that the run does not know; they count in no accuracy."""
    known: int
    """How many videos of the split have a class that the run knows."""


def open_other_data(run: SavedRun) -> OtherData:
    """Opens the manifest of ``run.config``, which is not the run's own, with labels by the run's classes of the same name.

    Raises UserError if none of its videos is of a class that the run knows.
    """
    manifest = _open_manifest(run)
    if manifest.fingerprint == run.fingerprints.manifest:
        raise UserError(f"{manifest.path} is the data that {run.folder.name} was trained with: say data.manifest= instead")
    index = pc.index_in(manifest.table["class"], value_set=pa.array(run.classes, pa.string()))
    labels = pc.fill_null(index, -1).cast(pa.int32())
    column = SCHEMA.get_field_index("label")
    table = manifest.table.set_column(column, SCHEMA.field("label"), labels)
    source = open_view_source(run.config, replace(manifest, table=table, classes=run.classes))
    rows = source.find_evaluation_rows(run.config.evaluation.split)
    split_table = table.select(["class", "label"]).take(pa.array(rows))
    known = np.asarray(split_table["label"]) >= 0
    unknown = Counter(name for name in split_table["class"].filter(pa.array(~known)).to_pylist() if name is not None)
    if not known.any():
        split = run.config.evaluation.split
        what = f"no {split} video of {manifest.path} is of a class that {run.folder.name} knows"
        remedy = "classes are matched by name: give the labels there the run's names, and prepare the data again"
        raise UserError(
            f"{what}; {remedy}{_suggest_other_split(source, split)}:",
            [f"of the run: {', '.join(list_first(run.classes))}", f"there: {', '.join(list_first(manifest.classes))}"],
        )
    return OtherData(source, dict(sorted(unknown.items())), int(known.sum()))


def _suggest_other_split(source: VideoSource, split: str) -> str:
    """Suggests to evaluate the other split, if that has videos of known classes; else returns ""."""
    other = "validation" if split == "test" else "test"
    rows = source.manifest.find_usable_rows("test" if other == "test" else "val")
    count = int((np.asarray(source.manifest.table["label"].take(pa.array(rows))) >= 0).sum())
    return f", or evaluate the {count} {other} videos whose class it knows with evaluation.split={other}" if count else ""
