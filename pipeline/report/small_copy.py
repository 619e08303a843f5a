"""Copies of runs that are small enough to be kept with the code: all that a report reads, and no weights.

``python -m jobs.report COPY`` makes the page of the runs again. A copy cannot be trained further, evaluated or used.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.analysis.records.run_reader import CALIBRATION, OTHER_DATA, is_run, read_json_lines
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.errors import UserError
from pipeline.files.folder_lock import lock_folder
from pipeline.files.written_yaml import read_written_yaml
from pipeline.run_folder.contents import PREDICTORS, write_text

OF_ONE_MACHINE = ("host", "command")
"""Entries of facts.json that mean nothing on another machine."""
LINES = ("metrics.jsonl", "scores.jsonl")
"""What training logged, and the scores by which a search judged the run."""
STUDY_FILES = ("study.json", "trials.jsonl")


def copy_runs(folders: Sequence[str | Path], out: Path) -> list[Path]:
    """Writes into ``out`` a folder for each run, and for each study one that holds its runs. Returns the folders.

    Scores are kept to three decimals (where that leaves every video's first class the first), metrics to six digits, and of
    absolute paths the last two names. An earlier copy of the same name is replaced. Raises UserError for what is not a run or
    study, for two of one name, and where anything but an earlier copy has the name already.
    """
    given = read_report_input(folders)
    alone = [run.folder for run in given.runs if given.find_study(run) is None]
    sources = [*(study.folder for study in given.studies), *alone]
    names = [folder.name for folder in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"copies go by their folders' names, and several are called {', '.join(twice)}: copy them one by one")
    if taken := [out / name for name in names if not _is_copy_or_absent(out / name)]:
        raise UserError(f"{taken[0]} is there, and is not an earlier copy without weights: give another folder for the copy")
    with lock_folder(out, remedy="wait until it has ended"):
        for source in sources:
            target = out / source.name
            if target.exists():
                shutil.rmtree(target)
            if source in alone:
                _copy_run(source, target)
                continue
            target.mkdir(parents=True)
            for name in STUDY_FILES:
                if (source / name).is_file():
                    _copy_json_lines(source / name, target / name)
            for run in (child for child in sorted(source.iterdir()) if child.is_dir() and is_run(child)):
                _copy_run(run, target / run.name)
    return [out / name for name in names]


def _is_copy_or_absent(folder: Path) -> bool:
    """Whether a folder may be replaced: it has files of runs or of a study, and no weights that would be lost."""
    if not folder.exists():
        return True
    runs = [folder, *(child for child in folder.iterdir() if child.is_dir())] if folder.is_dir() else []
    return any(map(is_run, runs)) and not any(path for run in runs for path in run.glob("checkpoint_*"))


def _copy_json_lines(source: Path, target: Path) -> None:
    """Copies a file of one JSON object, or of one in each line, with shortened paths. A line that cannot be read stays out."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        write_text(target, json.dumps(_shorten_paths(json.loads(text)), indent=1))
        return
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a study under way has half written its last line
            lines.append(json.dumps(_shorten_paths(json.loads(line))) + "\n")
    write_text(target, "".join(lines))


def _copy_run(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    if (config := source / "config.yaml").is_file():
        tree = _shorten_paths(read_written_yaml(config))
        write_text(target / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
    for path in [source / "facts.json", source / "evaluation.json", source / CALIBRATION, *sorted(source.glob(OTHER_DATA))]:
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in facts.items() if key not in OF_ONE_MACHINE}
            write_text(target / path.name, json.dumps(_shorten_paths(kept), indent=1))
    for name in LINES:
        if (source / name).is_file():
            lines = [json.dumps(_round_numbers(line)) + "\n" for line in read_json_lines(source / name)]
            write_text(target / name, "".join(lines))
    if (source / "quarantine.parquet").is_file():
        pq.write_table(_shorten_uris(pq.read_table(source / "quarantine.parquet")), target / "quarantine.parquet")
    for path in (source / "predictions.parquet", *sorted(source.glob("predictions_on_*.parquet"))):
        if path.is_file():
            table = _round_scores(pq.read_table(path))
            pq.write_table(table, target / path.name, compression="zstd", compression_level=19)


def _round_scores(table: pa.Table) -> pa.Table:
    """Rounds scores to three decimals, as numbers of 16 bits, if each video keeps its first class."""
    for name in PREDICTORS:
        scores = np.array(table[name].to_pylist(), dtype=np.float32)
        half = scores.round(3).astype(np.float16)
        if np.array_equal(half.argmax(axis=1), scores.argmax(axis=1)):
            column = pa.FixedSizeListArray.from_arrays(pa.array(half.ravel()), half.shape[1])
            table = table.set_column(table.column_names.index(name), name, column)
    return _shorten_uris(table)


def _shorten_uris(table: pa.Table) -> pa.Table:
    """Shortens the paths in the column ``uri``, if there is one."""
    if "uri" not in table.column_names:
        return table
    uris = [_shorten_paths(uri) for uri in table["uri"].to_pylist()]
    return table.set_column(table.column_names.index("uri"), "uri", pa.array(uris, pa.string()))


def _round_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds each number in a line of metrics to six digits."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in line.items()}


def _shorten_paths(value: Any) -> Any:
    """Shortens absolute paths in a tree to their last two names; what lies before them belongs to one machine."""
    if isinstance(value, dict):
        return {key: _shorten_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(one) for one in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return "/".join(PurePath(value).parts[-2:])
    return value
