"""Study files: a question, and the cells that answer it, as YAML over dotted configuration keys."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.analysis.run_reader import flatten
from pipeline.config import Config, convert_for, short_name
from pipeline.config.text import guess, read_yaml
from pipeline.errors import UserError

LABELS = "labels"
"""Key of a cell that is no knob: how many labels are drawn for it, as ``jobs.label`` writes it (10%, 4/class)."""


@dataclass(frozen=True)
class Study:
    """A question and the cells that answer it: all combinations of a grid, or named cases."""

    name: str
    question: str
    cells: Mapping[str, Mapping[str, Any]]
    """By name, the dotted configuration keys that each changes."""
    is_grid: bool
    """Whether all cells change the same keys, which then are the table's columns."""


def read_study(path: Path) -> Study:
    """Read a study's YAML: ``question``, and ``grid`` (values of each key; cells are all combinations) or ``cases`` (keys
    and values by name, where one choice needs several keys). Raises UserError naming file and field.

    A value ``{times: 1.5}`` is that multiple of the base configuration's. The key ``labels`` draws a label subset.
    """
    tree = read_yaml(path, "study")
    if not isinstance(tree, dict) or set(tree) not in ({"question", "grid"}, {"question", "cases"}):
        raise UserError(f"study {path} needs exactly the fields question and grid, or question and cases")
    question, grid, cases = str(tree["question"]), tree.get("grid"), tree.get("cases")
    if "cases" in tree:
        if not isinstance(cases, dict) or not cases or not all(isinstance(values, dict) for values in cases.values()):
            raise UserError(f"study {path}: cases must give a mapping of configuration keys to values for each name")
        named = {str(name): {str(key): _typed(key, value) for key, value in values.items()} for name, values in cases.items()}
        return Study(path.stem, question, named, is_grid=False)
    if not isinstance(grid, dict) or not grid or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"study {path}: grid must give a list of values for each configuration key")
    grid = {str(key): [_typed(key, value) for value in values] for key, values in grid.items()}
    cells = [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]
    short = _short_names(list(grid))
    names = ["_".join(f"{short[key]}-{_text(value)}" for key, value in cell.items()) for cell in cells]
    if len(set(names)) < len(names):
        raise UserError(f"study {path}: two cells of the grid are the same")
    return Study(path.stem, question, dict(zip(names, cells, strict=True)), is_grid=True)


def _typed(key: str, value: Any) -> Any:
    """What is written in a cell: text for labels, a number for a multiple, and for all else what the key's type makes of it."""
    if key == LABELS:
        return str(value)
    if isinstance(value, Mapping) and set(value) == {"times"}:
        return {"times": guess(value["times"])}
    return convert_for(key, value)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Last words of the keys; first words where the last ones are the same, as of both students' ``clip.fps``."""
    last = [short_name(key).replace(".", "_") for key in keys]
    if len(set(last)) == len(last):
        return dict(zip(keys, last, strict=True))
    first = [key.partition(".")[0] for key in keys]
    return dict(zip(keys, first if len(set(first)) == len(first) else [key.replace(".", "-") for key in keys], strict=True))


def _text(value: Any) -> str:
    """A value in a run's name, which is a folder."""
    if isinstance(value, Mapping) and set(value) == {"times"}:
        return f"x{value['times']:g}"
    text = str(value).replace("%", "-percent").replace("/class", "-per-class")
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


def resolve(values: Mapping[str, Any], base: Config, study: str) -> dict[str, Any]:
    """The cell's values for this base. Raises UserError where a multiple is asked of what is no number."""
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
