"""``--classes FILE``: the names of the classes in the order of their labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError, first_few
from pipeline.prepare.sources.file_search import read_lines, read_text
from pipeline.prepare.sources.synonyms import COLUMNS, column_word

HEADER = {word for rank in COLUMNS["label"] for word in rank} | {"name", "id", "index", "idx", "number"}
"""Words that a first line may consist of, which then is no class."""


def read_classes(file: str) -> dict[str, str]:
    """Label as written in lists -> name. Raises UserError for a file that is none of these:

    Lines are names; or numbers from 0 or 1 before names, or behind them after a comma or a tab; below a header or not. Or JSON:
    a list of names, or a mapping of names to numbers or of numbers to names.
    """
    text = read_text(file).strip()
    classes = _of_json(file, text) if text[:1] in ("[", "{") else _of_lines(file)
    if twice := [name for name, count in Counter(classes.values()).items() if count > 1]:
        raise UserError(f"--classes {file} names a class twice:", first_few(twice))
    return classes


def _of_lines(file: str) -> dict[str, str]:
    rows = [(number, line.strip()) for number, line in read_lines(file)]
    if rows and {column_word(word) for word in re.split(r"[\s,;]+", rows[0][1]) if word} <= HEADER:
        rows = rows[1:]
    before = [re.fullmatch(r"(?P<number>\d+)(?:\s*[,;]\s*|\s+)(?P<name>.+)", line) for _, line in rows]
    behind = [re.fullmatch(r"(?P<name>.+?)(?:\s*[,;]\s*|\t+)(?P<number>\d+)", line) for _, line in rows]
    for pairs in (before, behind):
        if rows and all(pairs):
            return _numbered(file, [(pair["number"], pair["name"].strip('"')) for pair in pairs if pair])
        odd = [f"{file}:{number}: {line}" for (number, line), pair in zip(rows, pairs, strict=True) if not pair]
        if len(rows) > 2 and len(odd) <= len(rows) // 10:
            raise UserError(f"--classes {file}: all lines have a number and a name, but not:", first_few(odd))
    return {str(number): line for number, (_, line) in enumerate(rows)}


def _of_json(file: str, text: str) -> dict[str, str]:
    wrong = UserError(f"--classes {file} must be JSON of a list of names, or of a mapping between names and their numbers")
    try:
        stored: Any = json.loads(text)
    except json.JSONDecodeError:
        raise wrong from None
    if isinstance(stored, list) and all(isinstance(name, str) for name in stored):
        return {str(number): name for number, name in enumerate(stored)}
    if not isinstance(stored, dict):
        raise wrong
    pairs = [(str(key), str(value)) for key, value in stored.items()]
    if all(key.isdecimal() for key, _ in pairs):
        return _numbered(file, pairs)
    if all(value.isdecimal() for _, value in pairs):
        return _numbered(file, [(value, key) for key, value in pairs])
    raise wrong


def _numbered(file: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    numbers = sorted(int(number) for number, _ in pairs)
    first = numbers[0] if numbers else 0
    if first > 1 or numbers != list(range(first, first + len(numbers))):
        raise UserError(f"--classes {file}: the numbers must run from 0 or 1 without a gap")
    return {str(int(number)): name for number, name in sorted(pairs, key=lambda pair: int(pair[0]))}
