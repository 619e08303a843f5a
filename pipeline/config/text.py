"""Converts what is written for a key, in YAML or as a word on the command line: the type of the key decides what it means.

In YAML 1.1 the form decides: ``010`` is 8, ``on`` is true, ``1e-3`` is a text, ``12:30`` is 750 and ``2026-11-28`` is a date.
Here every unquoted word is read as text, and becomes a number, a truth value or null only if the key that it is written for
has such a type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from pipeline.errors import UserError

NOTHING = ("", "null", "none", "~")
"""Words for null, in any case and unquoted, if a key may be null."""
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)")
DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LEADING_ZERO = re.compile(r"[+-]?0[0-9_]+(?:\.[0-9]*)?")


class Unquoted(str):
    """A word without quotes, which may stand for a number, a truth value or null."""

    __slots__ = ()


def parse_yaml(text: str) -> Any:
    """Parses YAML into mappings, lists and texts; texts without quotes are ``Unquoted``.

    Raises yaml.YAMLError, also for a key that is given twice.
    """
    return yaml.load(text, _Loader)


def read_yaml(path: Path, what: str) -> Any:
    """Parses a YAML file, which messages call ``what``. Raises UserError if it is not readable YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None


def parse_word(text: str) -> Any:
    """Parses the value of a ``key=value`` word: as YAML if it begins with a quote, ``[`` or ``{``, else as the text that it
    is.

    Raises yaml.YAMLError.
    """
    text = text.strip()
    if text.startswith('"'):  # JSON's escapes are not all YAML's
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return parse_yaml(text)
    return parse_yaml(text) if text.startswith(("[", "{", "'")) else Unquoted(text)


def format_word(value: Any) -> str:
    """Formats a value as the text from which ``parse_word`` and the key's type read it back."""
    if isinstance(value, str) and value == value.strip() and value.lower() not in NOTHING and value[:1] not in "\"'[{":
        return value
    return json.dumps(value)


def convert(value: Any, wanted: Any) -> Any:
    """Converts what is written to the type ``wanted`` (of a field of ``pipeline.config``); returns what is not text unchanged.

    Raises ValueError for a text that is not such a value, and for a truth value if a number is wanted.
    """
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind is Annotated:
        return convert(value, parts[0])
    if kind in (Union, UnionType):
        kinds = [part for part in parts if part is not NoneType]
        if len(kinds) < len(parts) and isinstance(value, Unquoted) and value.lower() in NOTHING:
            return None
        return convert(value, kinds[0]) if len(kinds) == 1 else value
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(convert(part, parts[0]) for part in value)
    if kind is dict and isinstance(value, Mapping):
        return {str(key): convert(part, parts[1]) for key, part in value.items()}
    if kind is Literal:
        return _find_choice(value, parts)
    if wanted in (int, float) and isinstance(value, bool):
        raise ValueError("write a number, not a truth value")
    if not isinstance(value, str):
        return value
    if wanted in READ:
        return READ[wanted](str(value))
    return None if isinstance(value, Unquoted) and not value else str(value) if wanted is str else value


def parse_untyped(value: Any) -> Any:
    """Converts what is written for no typed key: numbers, true, false and null as in YAML 1.2, else text."""
    if isinstance(value, Mapping):
        return {str(key): parse_untyped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [parse_untyped(part) for part in value]
    if not isinstance(value, Unquoted):
        return value
    if value.lower() in ("true", "false"):
        return TRUTH[value.lower()]
    if INTEGER.fullmatch(value) or DECIMAL.fullmatch(value):
        return parse_number(value)
    return None if value in ("", "null", "~") else str(value)


def parse_number(text: str) -> int | float:
    """Parses a whole number as int and any other number as float. Raises ValueError."""
    if INTEGER.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text) and abs(float(text)) != float("inf"):
        return float(text)
    if LEADING_ZERO.fullmatch(text):
        raise ValueError("write the number without leading zeros")
    raise ValueError("write a number in decimal digits, for example 100, 0.5 or 1e-3")


def _parse_whole(text: str) -> int:
    value = parse_number(text)
    if value != int(value):
        raise ValueError("write a whole number")
    return int(value)


def _parse_truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise ValueError("write true or false")
    return TRUTH[text.lower()]


READ: dict[Any, Any] = {bool: _parse_truth, int: _parse_whole, float: parse_number}
"""The functions that parse a text as a value of these types."""


def _find_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """Returns the choice that the text names; else the value, against which validation then lists the choices."""
    if isinstance(value, bool):
        return str(value).lower()
    return next((choice for choice in choices if str(choice) == value), str(value) if isinstance(value, str) else value)


class _Loader(yaml.SafeLoader):
    """A loader whose unquoted words are texts, and whose mappings have each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)

    def read_scalar(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        return Unquoted(text) if node.style is None else text


_Loader.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # the merge key, and nothing else
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.read_scalar)
