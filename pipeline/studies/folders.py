"""Which runs the folders of a command line mean: run folders themselves, and studies, which hold many.

A study's folder is one with study.json (of an ablation) or search.json and trials.json (of a search), or any that holds run
folders. What was planned and is not done yet is known from these files only.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.studies.runs import RUN_FILES, Run, is_run, read_lines, read_run

SEARCH = "search"


@dataclass(frozen=True)
class Objective:
    """What a search looks for."""

    name: str
    """A key of a trial's values: ``accuracy`` in 0..1, or ``time`` in seconds of training."""
    maximize: bool = True

    @property
    def label(self) -> str:
        """With the unit that people read."""
        return {"accuracy": "accuracy, %", "time": "time, s"}.get(self.name, self.name)

    def shown(self, value: float) -> float:
        """In the label's unit."""
        return 100 * value if self.name == "accuracy" else value


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
    """Name of an ablation's cell."""


@dataclass(frozen=True)
class Study:
    """A folder of runs that belong together. Fields that no file tells are empty."""

    folder: Path
    name: str
    kind: str
    """``ablation``, ``search``, or ``runs`` for a folder that only holds runs."""
    question: str = ""
    command: str = ""
    objectives: tuple[Objective, ...] = (Objective("accuracy"),)
    space: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    """Of a run of a search, 0 where unknown."""
    trials: tuple[Trial, ...] = ()
    named: bool = False
    """Whether cells have names, and are no grid."""
    missing: tuple[str, ...] = ()

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
    search = _read(folder / "search.json", dict, missing)
    about = search or _read(folder / "study.json", dict, missing)
    study = Study(folder, str(about.get("name") or folder.name), SEARCH if search else "ablation" if about else "runs")
    try:
        study = replace(
            study,
            question=str(about.get("question") or ""),
            command=str(about.get("command") or ""),
            objectives=tuple(Objective(str(name), name != "time") for name in about.get("objectives") or ["accuracy"]),
            space=dict(about.get("space") or {}),
            steps=int(about.get("steps") or 0),
            named=not about.get("is_grid", True),
            trials=_searched(folder, search, missing) if search else _planned(folder, about),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        missing.append(f"{'search' if search else 'study'}.json has fields of another version: {error!r}.")
    wanted = about.get("trials") if search else None
    return replace(study, missing=(*missing, *_not_done(study, wanted if isinstance(wanted, int) else len(study.trials))))


def _planned(folder: Path, about: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Trials of an ablation; their run folders say how far they are."""
    found = []
    for number, line in enumerate(about.get("trials") or ()):
        run = folder / str(line["run"])
        state = "complete" if (run / "evaluation.json").is_file() else "running" if is_run(run) else "waiting"
        params = {**line["values"], "run.seed": line["seed"]}
        found.append(Trial(number, state, params, {}, None, run, cell=str(line["cell"])))
    return tuple(found)


def _searched(folder: Path, about: Mapping[str, Any], missing: list[str]) -> tuple[Trial, ...]:
    """Trials of trials.json, and those that lie in the folder and came after it was written."""
    names = [str(name) for name in about.get("objectives") or ["accuracy"]]
    listed = [_trial(line, names, folder) for line in _read(folder / "trials.json", list, missing) or []]
    known = {trial.folder for trial in listed}
    later = [path for path in sorted(folder.iterdir()) if path not in known and _is_trial(path)]
    found = [*listed, *(_cut_off(path, about, number) for number, path in enumerate(later, start=len(listed)))]
    return tuple(sorted(found, key=lambda trial: trial.number))


def _is_trial(path: Path) -> bool:
    """As jobs.search names its runs, members of populations included."""
    return path.name.startswith(("trial-", "member-")) and is_run(path)


def _trial(line: Mapping[str, Any], names: Sequence[str], folder: Path) -> Trial:
    run, seconds = line.get("run"), line.get("seconds")
    return Trial(
        number=int(line["number"]),
        state={"fail": "failed"}.get(line["state"], str(line["state"])),
        params=dict(line["params"]),
        values={name: float(value) for name, value in zip(names, line.get("values") or (), strict=False)},
        seconds=None if seconds is None else float(seconds),
        folder=None if run is None else folder / str(run),
        message=str(line.get("error") or ""),
        lineage=_lineage(line.get("lineage")),
    )


def _cut_off(run: Path, about: Mapping[str, Any], number: int) -> Trial:
    """A trial of a search that is under way or was killed: its folder says what it chose and how it stood. A member of a
    population whose place a copy has taken was stopped early."""
    found = read_run(run)
    lines = read_lines(run / "scores.jsonl")
    last = lines[-1] if lines else {}
    score = last.get(str(about.get("metric", "mean")))
    member, _, start = run.name.partition("_from-")
    replaced = any(other.name.partition("_from-")[2] > start for other in run.parent.glob(f"{member}*"))
    return Trial(
        number=int(run.name.removeprefix("trial-")) if run.name.startswith("trial-") else number,
        state="pruned" if replaced else "running",
        params={key: found.config[key] for key in about.get("space") or {} if key in found.config},
        values={"accuracy": float(score)} if isinstance(score, int | float) else {},
        seconds=last.get("seconds"),
        folder=run,
        lineage=_lineage(found.facts.get("lineage")),
    )


def _lineage(parts: Any) -> tuple[Part, ...]:
    return tuple(Part(int(part["from"]), part["until"], dict(part["params"])) for part in parts or ())


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


def _read(path: Path, kind: type, missing: list[str]) -> Any:
    """The content of a JSON file, or an empty ``kind``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"expected a {kind.__name__}, found a {type(content).__name__}")
        return content
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read: {error}")
        return kind()


def _why_nothing(path: Path) -> str | None:
    if not path.exists():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        return f"{path}: does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if not path.is_dir():
        return f"{path}: is a file"
    if is_run(path) or any((path / name).is_file() for name in ("study.json", "search.json")):
        return None
    return None if any(is_run(child) for child in path.iterdir()) else f"{path}: holds none of these, nor a folder that does"
