"""Study files: a question and the cells that answer it, as YAML with dotted configuration keys."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config, convert_to_type_of, find_short_name
from pipeline.config.text import parse_untyped, read_yaml
from pipeline.errors import UserError
from pipeline.run_folder.contents import flatten

LABELS = "labels"
"""The key of a cell that is not a configuration key: how many labels are drawn for it, as for ``jobs.label`` (10%, 4/class)."""


@dataclass(frozen=True)
class Study:
    """A question and the cells that answer it: all combinations of a grid, or named cases.

    A study that was run, as its folder describes it, is ``pipeline.analysis.records.study_record.StudyRecord``.
    """

    name: str
    question: str
    cells: Mapping[str, Mapping[str, Any]]
    """The configuration keys and values that each cell changes, by the cell's name."""
    is_grid: bool
    """Whether all cells change the same keys, which are then the columns of the table."""


def read_study(path: Path) -> Study:
    """Reads the YAML file of a study: ``question``, and either ``grid`` or ``cases``. Raises UserError that names file and
    field.

    ``grid`` has a list of values for each key, and the cells are all combinations. ``cases`` has keys and values by name, for
    choices that need several keys. A value ``{times: 1.5}`` is that multiple of the base configuration's value. The key
    ``labels`` draws a label subset.
    """
    tree = read_yaml(path, "study")
    if not isinstance(tree, dict) or set(tree) not in ({"question", "grid"}, {"question", "cases"}):
        raise UserError(f"study {path} needs exactly the fields question and grid, or question and cases")
    question, grid, cases = str(tree["question"]), tree.get("grid"), tree.get("cases")
    if "cases" in tree:
        if not isinstance(cases, dict) or not cases or not all(isinstance(values, dict) for values in cases.values()):
            raise UserError(f"study {path}: cases must give a mapping of configuration keys to values for each name")
        named = {
            str(name): {str(key): _convert_value(key, value) for key, value in values.items()} for name, values in cases.items()
        }
        return Study(path.stem, question, named, is_grid=False)
    if not isinstance(grid, dict) or not grid or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"study {path}: grid must give a list of values for each configuration key")
    grid = {str(key): [_convert_value(key, value) for value in values] for key, values in grid.items()}
    cells = [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]
    short = _shorten_keys(list(grid))
    names = ["_".join(f"{short[key]}-{_format_for_folder_name(value)}" for key, value in cell.items()) for cell in cells]
    if len(set(names)) < len(names):
        raise UserError(f"study {path}: two cells of the grid are the same")
    return Study(path.stem, question, dict(zip(names, cells, strict=True)), is_grid=True)


def add_labels(study: Study, amount: str) -> Study:
    """Adds ``labels: amount`` to all cells, so that a study of anything is run with few labels, drawn anew for each seed.

    Raises UserError for a study of which a cell has ``labels`` already.
    """
    with_their_own = [name for name, values in study.cells.items() if LABELS in values]
    if with_their_own:
        raise UserError(
            f"--labels: study {study.name} draws labels itself, for example for {with_their_own[0]}: leave --labels out"
        )
    return replace(study, cells={name: {LABELS: amount, **values} for name, values in study.cells.items()})


def _convert_value(key: str, value: Any) -> Any:
    """Converts a value of a cell: text for labels, a number for a multiple, and else what the key's type demands."""
    if key == LABELS:
        return str(value)
    if isinstance(value, Mapping) and set(value) == {"times"}:
        return {"times": parse_untyped(value["times"])}
    return convert_to_type_of(key, value)


def _shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Shortens the keys to their last words or, if these are the same (as of both students' ``clip.fps``), to their first
    words."""
    last = [find_short_name(key).replace(".", "_") for key in keys]
    if len(set(last)) == len(last):
        return dict(zip(keys, last, strict=True))
    first = [key.partition(".")[0] for key in keys]
    return dict(zip(keys, first if len(set(first)) == len(first) else [key.replace(".", "-") for key in keys], strict=True))


def _format_for_folder_name(value: Any) -> str:
    """Formats a value for the name of a run, which is also the name of a folder."""
    if isinstance(value, Mapping) and set(value) == {"times"}:
        return f"x{value['times']:g}"
    text = str(value).replace("%", "-percent").replace("/class", "-per-class")
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


def resolve_multiples(values: Mapping[str, Any], base: Config, study: str) -> dict[str, Any]:
    """Replaces the multiples among a cell's values by numbers, for this base. Raises UserError for a multiple of what is no
    number."""
    known = flatten(base.model_dump(mode="json"))
    resolved = dict(values)
    for key, value in values.items():
        if isinstance(value, Mapping) and set(value) == {"times"}:
            number = known.get(key)
            if not isinstance(number, int | float) or not isinstance(value["times"], int | float):
                remedy = ""
                if key.endswith(".clip.fps") and number is None:
                    remedy = f"; clips of sampling=segments have no rate: study {key.removesuffix('fps')}frames"
                raise UserError(f"study {study}: {key}: {dict(value)} is a multiple of a number, not of {number!r}{remedy}")
            product = number * value["times"]
            resolved[key] = round(product) if isinstance(number, int) else product
    return resolved
