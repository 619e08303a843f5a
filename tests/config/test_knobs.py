"""Every knob has an effect and a use: code reads it, and a configuration, study, search space or test turns it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import list_keys
from pipeline.config.method import find_short_name
from pipeline.config.reference import Knob, list_knobs
from pipeline.config.renamed import RENAMED
from pipeline.config.section import Section

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "pipeline"
SECTIONS = {knob.key: knob.section for knob in list_knobs() if not knob.key.endswith(".arch")}


def list_paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, inner nodes included: a study names a knob by its dotted key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (path := f"{prefix}{key}")
            yield from list_paths(value, f"{path}.")
    elif isinstance(tree, list):
        for value in tree:
            yield from list_paths(value)


def list_words(text: str) -> Iterator[str]:
    """The keys of overrides: ``train.steps=4`` -> train.steps."""
    for word in text.split():
        key, sign, _ = word.partition("=")
        if sign and key.replace(".", "").replace("_", "").isalnum():
            yield key


def list_set_names(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """The keys that Python code gives values to: in overrides, in dictionaries, and as names of arguments."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from list_words(node.value)
    pairs: list[tuple[str, ast.AST]] = []
    if isinstance(node, ast.Dict):
        pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True)
                 if isinstance(key, ast.Constant) and isinstance(key.value, str)]  # fmt: skip
    elif isinstance(node, ast.keyword) and node.arg:
        pairs = [(node.arg, node.value)]
    for name, value in pairs:
        yield f"{prefix}{name}"
        yield from list_set_names(value, f"{prefix}{name}.")
    if not pairs:
        for child in ast.iter_child_nodes(node):
            yield from list_set_names(child, prefix if isinstance(node, ast.Dict) else "")


@cache
def list_turned() -> frozenset[str]:
    """What is given a value anywhere, by each of the ways to end its path, and by today's name."""
    turned: set[str] = set()
    for path in (ROOT / "jobs").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        turned |= {*list_words(text), *list_paths(yaml.safe_load(text))}
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            turned |= {*list_set_names(ast.parse(text)), *list_words(text)}
    parts = [path.split(".") for path in turned]
    ends = turned | {".".join(words[start:]) for words in parts for start in range(len(words) - 1)}
    return frozenset(RENAMED.get(end, end) for end in ends)


def find_declaration(key: str) -> tuple[str, str]:
    """The class that declares a knob, and its name there: ``ramp`` of all losses is one declaration, read by one code."""
    section, last = SECTIONS[key], key.rpartition(".")[2]
    return next(kind.__qualname__ for kind in reversed(section.__mro__) if last in vars(kind).get("__annotations__", {})), last


def is_turned(key: str) -> bool:
    """Whether its declaration is turned by a whole name, or by last words that no other declaration has."""
    words = key.split(".")
    for start in range(len(words)):
        end = ".".join(words[start:])
        named = {find_declaration(other) for other in SECTIONS if f".{other}".endswith(f".{end}")}
        if end in list_turned() and named == {find_declaration(key)}:
            return True
    return False


def test_every_knob_is_turned_somewhere() -> None:
    """One that nobody turns has shown no use, and is removed."""
    turned = {find_declaration(key) for key in SECTIONS if is_turned(key)}
    assert [key for key in SECTIONS if find_declaration(key) not in turned] == []


def test_what_turns_a_knob_is_told_from_what_does_not() -> None:
    code = 'prepare(["train.steps=4"], small(primary={"optimizer": {"lr": 1}}), momentum=0, text="steps = 3")'
    assert set(list_set_names(ast.parse(code))) >= {"train.steps", "primary.optimizer.lr", "momentum"}
    assert set(list_set_names(ast.parse("section.lr + other['steps']"))) == set()
    assert list(list_paths({"cells": [{"method.mix.patch": 8}]})) == ["cells", "method.mix.patch"]


@dataclass(frozen=True)
class FileReads:
    """The attributes that a file of the package reads."""

    room: str
    text: str
    owners: Mapping[str, set[str]]
    """For each attribute that is read, the names before the dot."""


@cache
def read_files() -> list[FileReads]:
    found = []
    for path in sorted(CODE.rglob("*.py")):
        first, *others = path.relative_to(CODE).parts
        if first == "config" and others != ["run.py"]:  # where knobs are declared; what follows from them is in run.py
            continue
        text, owners = path.read_text(encoding="utf-8"), dict[str, set[str]]()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute):
                before = getattr(node.value, "attr", None) or getattr(node.value, "id", "")
                owners.setdefault(node.attr, set()).add(str(before))
        found.append(FileReads(first.removesuffix(".py"), text, owners))
    return found


def find_readers(knob: Knob) -> list[str]:
    """Finds the packages whose code reads the knob.

    An attribute counts if it is read from something with the name of the knob's section; from anything, if the name has
    several words and no other knob has it; or from anything in a file that names the section or its class.
    """
    *sections, last = knob.key.split(".")
    alone = "_" in last and len({find_short_name(key) for key in list_keys() if key.endswith(f".{last}")}) == 1
    classes = [kind.__name__ for kind in knob.section.__mro__ if issubclass(kind, Section) and kind is not Section]
    rooms: dict[str, None] = {}
    for file in read_files():
        owners = file.owners.get(last, set())
        named = sections[-1] in file.owners or any(name in file.text for name in classes)
        if sections[-1] in owners or (owners - {"self"} and (alone or named)):
            rooms[file.room] = None
    return list(rooms)


def test_every_knob_is_read_somewhere() -> None:
    """A knob that nobody reads does nothing, and is removed."""
    assert [knob.key for knob in list_knobs() if not knob.key.endswith(".arch") and not find_readers(knob)] == []
