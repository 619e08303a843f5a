"""Which runs the folders of a command line mean: run folders themselves, and studies, which hold many.

A study's folder is one with study.json and trials.jsonl (docs/report.md has their fields), or any that holds run folders.
What was planned and is not done yet is known from these files only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.analysis.run_reader import RUN_FILES, VIEWS, Run, is_run, read_lines, read_outcome, read_run
from pipeline.config import with_new_keys
from pipeline.errors import UserError, find_nearest_name

SEARCH = "search"


@dataclass(frozen=True)
class Objective:
    """What a search looks for."""

    name: str
    """A key of a trial's values: one of ``VIEWS``, whose top-1 is a share in 0..1, ``seconds``, or another one."""
    maximize: bool = True

    @property
    def label(self) -> str:
        """With the unit that people read."""
        return f"{self.name} top-1, %" if self.name in VIEWS else {"seconds": "training, s"}.get(self.name, self.name)

    def shown(self, value: float) -> float:
        """In the label's unit."""
        return 100 * value if self.name in VIEWS else value


@dataclass(frozen=True)
class Part:
    """Steps of a member of a population that were trained with one choice of knobs."""

    first: int
    last: int | None
    """None for the end of the run."""
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A run of a study, or of a search, or a member of a population, which is one run after another."""

    number: int
    state: str
    """waiting, running, complete, pruned or failed."""
    params: Mapping[str, Any]
    """Dotted key -> value."""
    values: Mapping[str, float]
    """By objective: of a trial that was stopped early, where it stood."""
    seconds: float | None
    folder: Path | None
    message: str = ""
    lineage: tuple[Part, ...] = ()
    cell: str = ""
    """Name of an ablation's cell: that of its run folders, without the seed."""


@dataclass(frozen=True)
class Study:
    """A folder of runs that belong together. Fields that no file tells are empty."""

    folder: Path
    name: str
    kind: str
    """``ablation``, ``search``, or ``runs`` for a folder that only holds runs."""
    question: str = ""
    command: str = ""
    objectives: tuple[Objective, ...] = (Objective("mean"),)
    baseline: Mapping[str, Any] | None = None
    """Params of the setting that others are compared with."""
    space: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    """Of a run of a search, 0 where unknown."""
    trials: tuple[Trial, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether its trials are samples of a space, each seen once, rather than cells to be compared."""
        return self.kind == SEARCH

    @property
    def named(self) -> bool:
        """Whether its cells change different keys, so that their names say more than their values."""
        return not self.is_search and len({frozenset(trial.params) for trial in self.trials}) > 1

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
    kind = str(about.get("kind") or ("ablation" if (folder / "trials.jsonl").is_file() else "runs"))
    study = Study(folder, str(about.get("name") or folder.name), kind)
    try:
        study = replace(
            study,
            question=str(about.get("question") or ""),
            command=str(about.get("command") or ""),
            objectives=_objectives(about) or study.objectives,
            baseline=with_new_keys(about["baseline"]) if about.get("baseline") else None,
            space=with_new_keys(about.get("space") or {}),
            steps=int(about.get("steps") or 0),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        missing.append(f"study.json has fields of another kind: {error!r}.")
    trials = [_as_it_stands(trial, study.objectives) for trial in _read_trials(folder, missing)]
    if study.is_search:
        trials += _later(study, {trial.folder for trial in trials})
    study = replace(study, trials=tuple(sorted(trials, key=lambda trial: trial.number)))
    wanted = about.get("trials") if study.is_search else None
    return replace(study, missing=(*missing, *_not_done(study, wanted if isinstance(wanted, int) else len(trials))))


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


def _objectives(about: Mapping[str, Any]) -> tuple[Objective, ...]:
    return tuple(Objective(str(one["name"]), one.get("direction") != "minimize") for one in about.get("objectives") or ())


def _read_trials(folder: Path, missing: list[str]) -> list[Trial]:
    """Of trials.jsonl, the last line of each number."""
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
    return list(found.values())


def _trial(line: Mapping[str, Any], folder: Path) -> Trial:
    seconds, run = line.get("seconds"), None if line.get("run_folder") is None else folder / str(line["run_folder"])
    return Trial(
        number=int(line["number"]),
        state=str(line["state"]),
        params=with_new_keys(line.get("params") or {}),
        values={name: float(value) for name, value in (line.get("values") or {}).items() if value is not None},
        seconds=None if seconds is None else float(seconds),
        folder=run,
        message=str(line.get("message") or ""),
        lineage=_lineage(run),
        cell="" if run is None else re.sub(r"_seed-\d+$", "", run.name),
    )


def _lineage(run: Path | None) -> tuple[Part, ...]:
    """A copy of another run says in its facts.json what it was before."""
    if run is None or not (run / "facts.json").is_file():
        return ()
    parts = read_run(run).facts.get("lineage") or ()
    return tuple(Part(int(part["from"]), part["until"], with_new_keys(part["params"])) for part in parts)


def _later(study: Study, known: set[Path | None]) -> list[Trial]:
    """Runs of a search that began after its file was written: it is under way, or was killed. Their folders say what they
    chose and how they stood. A member of a population whose place a copy has taken was stopped early."""
    folders = [path for path in sorted(study.folder.iterdir()) if path not in known and is_run(path)]
    folders = [path for path in folders if path.name.startswith(("trial-", "member-"))]
    found, lead = [], study.objectives[0].name
    for number, run in enumerate(folders, start=len(known)):
        last = (read_lines(run / "scores.jsonl") or ({},))[-1]
        member, _, start = run.name.partition("_from-")
        copies, config = study.folder.glob(f"{member}*"), read_run(run).config
        found.append(_as_it_stands(Trial(
            number=int(run.name.removeprefix("trial-")) if run.name.startswith("trial-") else number,
            state="pruned" if any(other.name.partition("_from-")[2] > start for other in copies) else "running",
            params={key: config[key] for key in study.space if key in config},
            values={lead: float(last[lead])} if isinstance(last.get(lead), int | float) else {},
            seconds=last.get("seconds"),
            folder=run,
            lineage=_lineage(run),
        ), study.objectives))  # fmt: skip
    return found


def _as_it_stands(trial: Trial, objectives: Sequence[Objective]) -> Trial:
    """What its run folder says of a trial that was not at its end when the study's file was written."""
    if trial.state not in ("waiting", "running") or trial.folder is None or not is_run(trial.folder):
        return trial
    outcome, last = read_outcome(trial.folder), (read_lines(trial.folder / "scores.jsonl") or ({},))[-1]
    if not outcome:
        return replace(trial, state="running")
    known: dict[str, Any] = {view: (outcome.get(view) or {}).get("top1") for view in VIEWS} | {"seconds": last.get("seconds")}
    values = {one.name: float(known[one.name]) for one in objectives if known.get(one.name) is not None}
    return replace(trial, state="complete", values=values, seconds=last.get("seconds", trial.seconds))


def _not_done(study: Study, wanted: int) -> Iterable[str]:
    """Sentences on planned trials that gave no result."""
    counts, how = study.counts, f" {study.command} continues it." if study.command else ""
    waiting = counts["waiting"] + max(0, wanted - len(study.trials))
    open_ones = ((counts["running"], "under way or cut off"), (waiting, "not begun"))
    parts = [f"{count} {word}" for count, word in open_ones if count]
    if parts:
        yield f"{waiting + counts['running']} of {wanted} trials: {', '.join(parts)}.{how}"
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


def _why_nothing(path: Path) -> str | None:
    if not path.exists():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = find_nearest_name(path.name, siblings)
        return f"{path}: does not exist" + (f"; did you mean {path.parent / nearest}?" if nearest else "")
    if not path.is_dir():
        return f"{path}: is a file"
    if is_run(path) or any((path / name).is_file() for name in ("study.json", "trials.jsonl")):
        return None
    return None if any(is_run(child) for child in path.iterdir()) else f"{path}: holds none of these, nor a folder that does"
