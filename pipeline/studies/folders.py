"""Which runs the folders of a command line mean: run folders themselves, and studies, which hold many.

A study's folder is one with study.json or trials.jsonl (docs/report.md has their fields), or any that holds run folders.
What a study planned and did not do yet is known from these files only.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.studies.runs import RUN_FILES, Run, is_run, read_run

SEARCH = "search"


@dataclass(frozen=True)
class Objective:
    """What a search looks for."""

    name: str
    """A key of a trial's values."""
    maximize: bool = True


@dataclass(frozen=True)
class Trial:
    """A line of trials.jsonl."""

    number: int
    state: str
    """waiting, running, complete, pruned or failed."""
    params: Mapping[str, Any]
    """Dotted key -> value."""
    values: Mapping[str, float | None]
    seconds: float | None
    folder: Path | None
    message: str = ""


@dataclass(frozen=True)
class Study:
    """A folder of runs that belong together. Fields that no file tells are empty."""

    folder: Path
    name: str
    kind: str
    """ablation, search, or another word; ``runs`` for a folder that only holds runs."""
    question: str
    command: str
    objectives: tuple[Objective, ...]
    baseline: Mapping[str, Any] | None
    space: Mapping[str, Any]
    trials: tuple[Trial, ...]
    missing: tuple[str, ...]

    @property
    def is_search(self) -> bool:
        """Whether its trials are samples of a space, each seen once, rather than cells to be compared."""
        return self.kind == SEARCH

    @property
    def counts(self) -> Mapping[str, int]:
        """Trials by state."""
        return Counter(trial.state for trial in self.trials)


@dataclass(frozen=True)
class Given:
    """What a command was given: its runs in order, each once, and the studies that some of them belong to."""

    runs: tuple[Run, ...]
    studies: tuple[Study, ...]

    def study_of(self, run: Run) -> Study | None:
        """The study that a run lies in."""
        return next((study for study in self.studies if run.folder.is_relative_to(study.folder)), None)


def read_given(folders: Sequence[str | Path]) -> Given:
    """Each run folder, and each one below a study's folder. Raises UserError naming every path that is neither.

    A report among the paths (*.html, *.md, *.csv, *.tex) is skipped: one lies among the runs, so ``runs/*`` names it too.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    paths = [path for path in paths if not (path.is_file() and path.suffix in (".html", ".md", ".csv", ".tex"))]
    wrong = [complaint for path in paths if (complaint := _why_nothing(path))]
    if wrong or not paths:
        expected = (
            f"expected a folder with one of {', '.join(RUN_FILES)}, as written by python -m jobs.train, or a folder of them"
        )
        raise UserError(f"no run to report on; {expected}:", wrong or [f"{folder}: an earlier report" for folder in folders])
    studies = [read_study(path) for path in paths if not is_run(path)]
    inside = {study.folder: _runs_in(study) for study in studies}
    found = dict.fromkeys(run for path in paths for run in ([path] if is_run(path) else inside[path]))
    return Given(tuple(map(read_run, found)), tuple(studies))


def read_study(folder: Path) -> Study:
    """What the folder's files say of it; see ``Study``."""
    missing: list[str] = []
    about = _read_about(folder / "study.json", missing)
    trials = _read_trials(folder, missing)
    objectives = [
        Objective(str(one.get("name", "mean")), one.get("direction") != "minimize")
        for one in about.get("objectives") or [{}] if isinstance(one, dict)
    ]  # fmt: skip
    baseline, space = about.get("baseline"), about.get("space")
    study = Study(
        folder=folder,
        name=str(about.get("name") or folder.name),
        kind=str(about.get("kind") or ("ablation" if trials else "runs")),
        question=str(about.get("question") or ""),
        command=str(about.get("command") or ""),
        objectives=tuple(objectives),
        baseline=baseline if isinstance(baseline, dict) else None,
        space=space if isinstance(space, dict) else {},
        trials=trials,
        missing=(),
    )
    return Study(**{**study.__dict__, "missing": (*missing, *_not_done(study))})


def _not_done(study: Study) -> Iterable[str]:
    """Sentences on planned trials that gave no result."""
    planned, counts = len(study.trials), study.counts
    parts = [f"{counts[state]} {word}" for state, word in (("running", "under way"), ("waiting", "not begun")) if counts[state]]
    if parts:
        how = f" {study.command} continues it." if study.command else ""
        yield f"{counts['waiting'] + counts['running']} of {planned} trials: {', '.join(parts)}.{how}"
    for trial in study.trials:
        if trial.state == "failed":
            yield f"Trial {trial.number} failed" + (f": {trial.message}" if trial.message else ".")
    gone = [str(t.number) for t in study.trials if t.state == "complete" and t.folder is not None and not t.folder.is_dir()]
    if gone:
        yield f"Run folders of complete trials that are not there: {', '.join(gone)}."


def _runs_in(study: Study) -> list[Path]:
    """Run folders of the trials in their order, then others beside them."""
    known = [trial.folder for trial in study.trials if trial.folder is not None]
    beside = sorted(child for child in study.folder.iterdir() if child.is_dir())
    return [path for path in dict.fromkeys([*known, *beside]) if is_run(path)]


def _read_about(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"study.json cannot be read: {error}")
        return {}


def _read_trials(folder: Path, missing: list[str]) -> tuple[Trial, ...]:
    path = folder / "trials.jsonl"
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found, broken = {}, 0
    for place, text in enumerate(texts, start=1):
        try:
            trial = _trial(json.loads(text), folder)
            found[trial.number] = trial
        except (ValueError, TypeError, KeyError, AttributeError):
            broken += place < len(texts) and bool(text.strip())  # the last line may be half-written by a live study
    if broken:
        missing.append(f"{broken} of {len(texts):,} lines of trials.jsonl: they cannot be read.")
    return tuple(found[number] for number in sorted(found))


def _trial(line: Mapping[str, Any], folder: Path) -> Trial:
    values = {name: None if value is None else float(value) for name, value in (line.get("values") or {}).items()}
    where, seconds = line.get("run_folder"), line.get("seconds")
    return Trial(
        number=int(line["number"]),
        state=str(line["state"]),
        params=dict(line.get("params") or {}),
        values=values,
        seconds=None if seconds is None else float(seconds),
        folder=None if where is None else (folder / where).resolve(),
        message=str(line.get("message") or ""),
    )


def _why_nothing(path: Path) -> str | None:
    if not path.exists():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        return f"{path}: does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if not path.is_dir():
        return f"{path}: is a file"
    if is_run(path) or any((path / name).is_file() for name in ("study.json", "trials.jsonl")):
        return None
    return None if any(is_run(child) for child in path.iterdir()) else f"{path}: holds none of these, nor a folder that does"
