"""Reads studies and finds the runs that the folders on a command line stand for: run folders themselves, and studies' folders.

A study's folder has study.json and trials.jsonl (docs/report.md describes their fields), or it is any folder that holds run
folders. Only these two files tell which trials were planned and are not done yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.analysis.records.run_progress import read_outcome
from pipeline.analysis.records.run_reader import RUN_FILES, is_run, read_json_lines, read_run_record
from pipeline.analysis.records.study_record import LineagePart, Objective, ReportInput, StudyRecord, TrialRecord
from pipeline.config import translate_old_keys
from pipeline.errors import UserError, find_nearest_name
from pipeline.model_folder.read_folder import is_model_folder
from pipeline.run_folder.contents import PREDICTORS


def read_report_input(folders: Sequence[str | Path]) -> ReportInput:
    """Reads each run folder, and each one inside a study's folder. Raises UserError that names every path that is neither.

    Reports among the paths (*.html, *.md, *.csv, *.tex) are skipped: they lie beside the runs, so ``runs/*`` names them, too.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    paths = [path for path in paths if not (path.is_file() and path.suffix in (".html", ".md", ".csv", ".tex"))]
    wrong = [problem for path in paths if (problem := _explain_no_run(path))]
    if wrong or not paths:
        expected = (
            f"expected a folder with one of {', '.join(RUN_FILES)}, as written by python -m jobs.train, or a folder of them"
        )
        raise UserError(f"no run to report on; {expected}:", wrong or [f"{folder}: an earlier report" for folder in folders])
    studies = [read_study_record(path) for path in paths if not is_run(path)]
    inside = {study.folder: _list_run_folders(study) for study in studies}
    run_folders = dict.fromkeys(run for path in paths for run in ([path] if is_run(path) else inside[path]))
    return ReportInput(tuple(map(read_run_record, run_folders)), tuple(studies))


def read_study_record(folder: Path) -> StudyRecord:
    """Reads what a study's folder says about its trials."""
    missing: list[str] = []
    about = _read_about(folder / "study.json", missing)
    kind = str(about.get("kind") or ("ablation" if (folder / "trials.jsonl").is_file() else "runs"))
    study = StudyRecord(folder, str(about.get("name") or folder.name), kind)
    try:
        study = replace(
            study,
            question=str(about.get("question") or ""),
            command=str(about.get("command") or ""),
            objectives=_parse_objectives(about) or study.objectives,
            baseline=translate_old_keys(about["baseline"]) if about.get("baseline") else None,
            space=translate_old_keys(about.get("space") or {}),
            steps=int(about.get("steps") or 0),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        missing.append(f"study.json has fields of another kind: {error!r}.")
    trials = [_update_from_run_folder(trial, study.objectives) for trial in _read_trials(folder, missing)]
    if study.is_search:
        trials += _find_unrecorded_trials(study, {trial.folder for trial in trials})
    study = replace(study, trials=tuple(sorted(trials, key=lambda trial: trial.number)))
    wanted = about.get("trials") if study.is_search else None
    return replace(study, missing=(*missing, *_describe_unfinished(study, wanted if isinstance(wanted, int) else len(trials))))


def _read_about(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found a {type(content).__name__}")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"study.json cannot be read: {error}")
        return {}


def _parse_objectives(about: Mapping[str, Any]) -> tuple[Objective, ...]:
    entries = about.get("objectives") or ()
    return tuple(Objective(str(entry["name"]), entry.get("direction") != "minimize") for entry in entries)


def _read_trials(folder: Path, missing: list[str]) -> list[TrialRecord]:
    """Reads trials.jsonl; of several lines with the same number the last one is valid."""
    path = folder / "trials.jsonl"
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    trials, broken = {}, 0
    for number, text in enumerate(texts, start=1):
        try:
            trial = _parse_trial(json.loads(text), folder)
            trials[trial.number] = trial
        except (ValueError, TypeError, KeyError, AttributeError):
            broken += number < len(texts) and bool(text.strip())  # the last line may be half-written by a live study
    if broken:
        missing.append(f"{broken} of {len(texts):,} lines of trials.jsonl: they cannot be read.")
    return list(trials.values())


def _parse_trial(line: Mapping[str, Any], folder: Path) -> TrialRecord:
    seconds, run = line.get("seconds"), None if line.get("run_folder") is None else folder / str(line["run_folder"])
    return TrialRecord(
        number=int(line["number"]),
        state=str(line["state"]),
        params=translate_old_keys(line.get("params") or {}),
        values={name: float(value) for name, value in (line.get("values") or {}).items() if value is not None},
        seconds=None if seconds is None else float(seconds),
        folder=run,
        message=str(line.get("message") or ""),
        lineage=_read_lineage(run),
        cell="" if run is None else re.sub(r"_seed-\d+$", "", run.name),
    )


def _read_lineage(run: Path | None) -> tuple[LineagePart, ...]:
    """Reads from the facts.json of a run which was copied from another run what it was before."""
    if run is None or not (run / "facts.json").is_file():
        return ()
    parts = read_run_record(run).facts.get("lineage") or ()
    return tuple(LineagePart(int(part["from"]), part["until"], translate_old_keys(part["params"])) for part in parts)


def _find_unrecorded_trials(study: StudyRecord, known: set[Path | None]) -> list[TrialRecord]:
    """Finds runs that a search began after it wrote its trials.jsonl: the search is running, or it was killed.

    The run folders say what was chosen and what was scored. A member of a population was stopped early if a copy took its
    place.
    """
    folders = [path for path in sorted(study.folder.iterdir()) if path not in known and is_run(path)]
    folders = [path for path in folders if path.name.startswith(("trial-", "member-"))]
    trials, lead = [], study.objectives[0].name
    for number, run in enumerate(folders, start=len(known)):
        last = (read_json_lines(run / "scores.jsonl") or ({},))[-1]
        member, _, start = run.name.partition("_from-")
        copies, config = study.folder.glob(f"{member}*"), read_run_record(run).config
        trials.append(_update_from_run_folder(TrialRecord(
            number=int(run.name.removeprefix("trial-")) if run.name.startswith("trial-") else number,
            state="pruned" if any(other.name.partition("_from-")[2] > start for other in copies) else "running",
            params={key: config[key] for key in study.space if key in config},
            values={lead: float(last[lead])} if isinstance(last.get(lead), int | float) else {},
            seconds=last.get("seconds"),
            folder=run,
            lineage=_read_lineage(run),
        ), study.objectives))  # fmt: skip
    return trials


def _update_from_run_folder(trial: TrialRecord, objectives: Sequence[Objective]) -> TrialRecord:
    """Updates a trial that had not ended when the study's file was written by what its run folder says now."""
    if trial.state not in ("waiting", "running") or trial.folder is None or not is_run(trial.folder):
        return trial
    outcome, last = read_outcome(trial.folder), (read_json_lines(trial.folder / "scores.jsonl") or ({},))[-1]
    if not outcome:
        return replace(trial, state="running")
    known: dict[str, Any] = {predictor: (outcome.get(predictor) or {}).get("top1") for predictor in PREDICTORS}
    known["seconds"] = last.get("seconds")
    values = {name: float(known[name]) for name in (objective.name for objective in objectives) if known.get(name) is not None}
    return replace(trial, state="complete", values=values, seconds=last.get("seconds", trial.seconds))


def _describe_unfinished(study: StudyRecord, wanted: int) -> Iterable[str]:
    """Yields sentences about planned trials that gave no result."""
    counts, how = study.counts, f" {study.command} continues it." if study.command else ""
    waiting = counts["waiting"] + max(0, wanted - len(study.trials))
    unfinished = ((counts["running"], "under way or cut off"), (waiting, "not begun"))
    parts = [f"{count} {word}" for count, word in unfinished if count]
    if parts:
        yield f"{waiting + counts['running']} of {wanted} trials: {', '.join(parts)}.{how}"
    for trial in study.trials:
        if trial.state == "failed":
            yield f"Trial {trial.number} failed" + (f": {trial.message}" if trial.message else ".")
    gone = [str(t.number) for t in study.trials if t.state == "complete" and t.folder is not None and not t.folder.is_dir()]
    if gone:
        yield f"Run folders of complete trials that are not there: {', '.join(gone)}."


def _list_run_folders(study: StudyRecord) -> list[Path]:
    """Lists the run folders of the trials in their order, then other run folders beside them."""
    known = [trial.folder for trial in study.trials if trial.folder is not None]
    beside = sorted(child for child in study.folder.iterdir() if child.is_dir())
    return [path for path in dict.fromkeys([*known, *beside]) if is_run(path)]


def _explain_no_run(path: Path) -> str | None:
    """Explains why there is nothing to report on at a path; None if there is something."""
    if not path.exists():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = find_nearest_name(path.name, siblings)
        return f"{path}: does not exist" + (f"; did you mean {path.parent / nearest}?" if nearest else "")
    if not path.is_dir():
        return f"{path}: is a file"
    if is_run(path) or any((path / name).is_file() for name in ("study.json", "trials.jsonl")):
        return None
    if is_model_folder(path):
        return f"{path}: is a model that was not evaluated yet; python -m jobs.evaluate {path} --manifest FILE does it"
    return None if any(is_run(child) for child in path.iterdir()) else f"{path}: holds none of these, nor a folder that does"
