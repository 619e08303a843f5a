"""What is written for a key, in YAML or as a word on the command line: the key's own type decides what it means.

YAML 1.1 decides by looks: ``010`` is 8, ``on`` is true, ``1e-3`` is a text, ``12:30`` is 750 and ``2026-11-28`` is a date. So
here every unquoted word is read as the text that it is, and becomes a number, a truth value or nothing only where the key that
it is written for wants one.
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
"""Words for no value, in any case, unquoted, where a key may have none."""
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)")
DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LEADING_ZERO = re.compile(r"[+-]?0[0-9_]+(?:\.[0-9]*)?")


class Unquoted(str):
    """A word without quotes, which may stand for a number, a truth value or nothing."""

    __slots__ = ()


def parse_yaml(text: str) -> Any:
    """Mappings, lists and texts, those without quotes as ``Unquoted``. Raises yaml.YAMLError, also for a key given twice."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path, what: str) -> Any:
    """``parse_yaml`` of a file, ``what`` in words. Raises UserError where it is no readable YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None


def parse_word(text: str) -> Any:
    """The value of a ``key=value`` word: the text as it is; YAML where it begins with a quote, ``[`` or ``{``.

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
    """The text that ``parse_word`` and a key's type read back as ``value``."""
    if isinstance(value, str) and value == value.strip() and value.lower() not in NOTHING and value[:1] not in "\"'[{":
        return value
    return json.dumps(value)


def convert(value: Any, wanted: Any) -> Any:
    """What is written, as the type ``wanted`` (of a field of ``pipeline.config``); what is no text stays as it is.

    Raises ValueError where a text is no such value, and for a truth value where a number is wanted.
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
        return _choice(value, parts)
    if wanted in (int, float) and isinstance(value, bool):
        raise ValueError("write a number, not a truth value")
    if not isinstance(value, str):
        return value
    if wanted in READ:
        return READ[wanted](str(value))
    return None if isinstance(value, Unquoted) and not value else str(value) if wanted is str else value


def guess(value: Any) -> Any:
    """What is written where no key gives a type: numbers, true, false and null as in YAML 1.2, else text."""
    if isinstance(value, Mapping):
        return {str(key): guess(part) for key, part in value.items()}
    if isinstance(value, list):
        return [guess(part) for part in value]
    if not isinstance(value, Unquoted):
        return value
    if value.lower() in ("true", "false"):
        return TRUTH[value.lower()]
    if INTEGER.fullmatch(value) or DECIMAL.fullmatch(value):
        return number(value)
    return None if value in ("", "null", "~") else str(value)


def number(text: str) -> int | float:
    """A whole number as int, any other as float. Raises ValueError."""
    if INTEGER.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text) and abs(float(text)) != float("inf"):
        return float(text)
    if LEADING_ZERO.fullmatch(text):
        raise ValueError("write the number without leading zeros")
    raise ValueError("write a number in decimal digits, for example 100, 0.5 or 1e-3")


def _whole(text: str) -> int:
    found = number(text)
    if found != int(found):
        raise ValueError("write a whole number")
    return int(found)


def _truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise ValueError("write true or false")
    return TRUTH[text.lower()]


READ: dict[Any, Any] = {bool: _truth, int: _whole, float: number}
"""How a text is read as a value of these types."""


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """The choice that the text names; else the value, which the choices are then named against."""
    if isinstance(value, bool):
        return str(value).lower()
    return next((choice for choice in choices if str(choice) == value), str(value) if isinstance(value, str) else value)


class _Loader(yaml.SafeLoader):
    """YAML whose unquoted words are texts, and whose mappings have each key once."""

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
