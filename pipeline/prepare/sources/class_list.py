"""``--classes FILE``: a file with the names of the classes in the order of their labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError, list_first
from pipeline.prepare.sources.file_search import read_lines, read_text
from pipeline.prepare.sources.synonyms import COLUMNS, normalize_column_name

HEADER_WORDS = {word for rank in COLUMNS["label"] for word in rank} | {"name", "id", "index", "idx", "number"}
"""A first line of these words only is a header and not a class."""


def read_classes(file: str) -> dict[str, str]:
    """Reads a class list. Returns class names by label, as labels are written in lists of videos.

    The lines of the file are names, or numbers from 0 or 1 followed by names, or names followed by a comma or a tab and a
    number; a header may stand above them. Or the file is JSON: a list of names, a mapping of names to numbers, or one of
    numbers to names. Raises UserError for any other file.
    """
    text = read_text(file).strip()
    classes = _parse_json(file, text) if text[:1] in ("[", "{") else _parse_lines(file)
    if repeated := [name for name, count in Counter(classes.values()).items() if count > 1]:
        raise UserError(f"--classes {file} names a class twice:", list_first(repeated))
    return classes


def _parse_lines(file: str) -> dict[str, str]:
    rows = [(number, line.strip()) for number, line in read_lines(file)]
    if rows and {normalize_column_name(word) for word in re.split(r"[\s,;]+", rows[0][1]) if word} <= HEADER_WORDS:
        rows = rows[1:]
    number_first = [re.fullmatch(r"(?P<number>\d+)(?:\s*[,;]\s*|\s+)(?P<name>.+)", line) for _, line in rows]
    number_last = [re.fullmatch(r"(?P<name>.+?)(?:\s*[,;]\s*|\t+)(?P<number>\d+)", line) for _, line in rows]
    for matches in (number_first, number_last):
        if rows and all(matches):
            return _check_numbers(file, [(match["number"], match["name"].strip('"')) for match in matches if match])
        unmatched = [f"{file}:{number}: {line}" for (number, line), match in zip(rows, matches, strict=True) if not match]
        if len(rows) > 2 and len(unmatched) <= len(rows) // 10:
            raise UserError(f"--classes {file}: all lines have a number and a name, but not:", list_first(unmatched))
    return {str(number): line for number, (_, line) in enumerate(rows)}


def _parse_json(file: str, text: str) -> dict[str, str]:
    malformed = UserError(f"--classes {file} must be JSON of a list of names, or of a mapping between names and their numbers")
    try:
        stored: Any = json.loads(text)
    except json.JSONDecodeError:
        raise malformed from None
    if isinstance(stored, list) and all(isinstance(name, str) for name in stored):
        return {str(number): name for number, name in enumerate(stored)}
    if not isinstance(stored, dict):
        raise malformed
    pairs = [(str(key), str(value)) for key, value in stored.items()]
    if all(key.isdecimal() for key, _ in pairs):
        return _check_numbers(file, pairs)
    if all(value.isdecimal() for _, value in pairs):
        return _check_numbers(file, [(value, key) for key, value in pairs])
    raise malformed


def _check_numbers(file: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    numbers = sorted(int(number) for number, _ in pairs)
    first = numbers[0] if numbers else 0
    if first > 1 or numbers != list(range(first, first + len(numbers))):
        raise UserError(f"--classes {file}: the numbers must run from 0 or 1 without a gap")
    return {str(int(number)): name for number, name in sorted(pairs, key=lambda pair: int(pair[0]))}
