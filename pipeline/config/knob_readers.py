"""Finds which packages of ``pipeline/`` read which knob, for the reference of all knobs.

The code is parsed, not run. What holds a section of the configuration is known from the types that are written at parameters,
at attributes of classes and at results of functions, and from there through assignments, loops and ``isinstance``.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pipeline.config
from pipeline.config.load import find_sections
from pipeline.config.section import Section

CODE = Path(__file__).resolve().parents[1]
"""The package whose code reads the knobs."""
Kinds = frozenset[type[Section]]
"""The kinds of section that an expression may have as its value: none if it is something else."""
NONE: Kinds = frozenset()
Field = tuple[type[Section], str]


@cache
def find_readers() -> Mapping[Field, frozenset[str]]:
    """Finds the packages whose code reads a field of a kind of section: ``{(LabelSection, "hard"): {"methods"}}``.

    Code that goes over all fields of a section without their names, as a fingerprint does, reads none of them.
    """
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(CODE.rglob("*.py"))}
    classes = dict(list_classes())
    attributes, results = dict[str, Kinds](), dict[str, Kinds]()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    _join(attributes, line.target.id, _name_kinds(line.annotation, classes))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            _join(results, node.name, _name_kinds(node.returns, classes))
    readers: dict[Field, set[str]] = defaultdict(set)
    for path, tree in [*trees.items(), *trees.items()]:  # twice: a method may come before the one that sets its attribute
        package = path.relative_to(CODE).parts[0].removesuffix(".py")
        for field in KnobReads(classes, attributes, results).list_fields(tree):
            readers[field].add(package)
    return {field: frozenset(packages) for field, packages in readers.items()}


class KnobReads(ast.NodeVisitor):
    """Collects the fields of sections that a file reads."""

    def __init__(self, classes: Mapping[str, Kinds], attributes: dict[str, Kinds], results: Mapping[str, Kinds]) -> None:
        self.classes = classes
        self.attributes = attributes
        """What attributes of objects that are not sections hold, by name."""
        self.results = results
        """What functions and properties return, by name."""
        self.variables: dict[str, Kinds] = {}
        self.found: set[Field] = set()

    def list_fields(self, tree: ast.Module) -> set[Field]:
        """Lists the fields of sections that the file reads."""
        self.visit(tree)
        return self.found

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Enters a function, whose parameters hide variables outside of it."""
        outer = dict(self.variables)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.variables |= {argument.arg: _name_kinds(argument.annotation, self.classes) for argument in arguments}
        self.generic_visit(node)
        self.variables = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        """Notes what a variable holds from here on."""
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Notes what a variable holds from here on, by its written type."""
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.variables[node.target.id] = _name_kinds(node.annotation, self.classes)

    def visit_For(self, node: ast.For) -> None:
        """Notes what a loop's variable holds."""
        self._bind_item(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Notes what a comprehension's variable holds."""
        self._bind_item(node.target, node.iter)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        """Continues below a node; in a comprehension its loops come before its element, as when it is run."""
        for loop in getattr(node, "generators", ()):
            self.visit(loop)
        super().generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Notes that a field is read."""
        self.generic_visit(node)
        self.found |= {(kind, node.attr) for kind in self._infer(node.value) if node.attr in kind.model_fields}

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.variables[target.id] = self._infer(value)
        elif isinstance(target, ast.Attribute):
            _join(self.attributes, target.attr, self._infer(value))
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its_value in zip(target.elts, value.elts, strict=True):
                self._bind(one, its_value)

    def _bind_item(self, target: ast.expr, items: ast.expr) -> None:
        if isinstance(target, ast.Name):
            elements = items.elts if isinstance(items, ast.Tuple | ast.List) else [items]  # a list of sections, by its type
            self.variables[target.id] = frozenset(kind for element in elements for kind in self._infer(element))

    def _infer(self, value: ast.expr) -> Kinds:
        """Infers which kinds of section an expression may have as its value."""
        match value:
            case ast.Name(name):
                return self.variables.get(name, NONE)
            case ast.Attribute(owner, name):
                if sections := self._infer(owner):
                    return frozenset(below for kind in sections for below in _list_below(kind, name))
                return self.attributes.get(name, NONE) | self.results.get(name, NONE)
            case ast.Call(ast.Name("getattr"), [owner, *_]):  # a student by its name
                return frozenset(below for kind in self._infer(owner) for below in _list_below(kind))
            case ast.Call(ast.Name(name) | ast.Attribute(_, name)):
                return self.classes.get(name, NONE) | self.results.get(name, NONE)
            case ast.IfExp(_, yes, no):
                return self._infer(yes) | self._infer(no)
            case ast.Subscript(owner, _):
                return self._infer(owner)
        return NONE


def list_classes() -> Iterator[tuple[str, Kinds]]:
    """Lists the names of the configuration that stand for kinds of sections: classes, and unions of them."""
    for found in pkgutil.iter_modules(pipeline.config.__path__):
        for name, value in vars(importlib.import_module(f"pipeline.config.{found.name}")).items():
            kinds = frozenset(kind for kind in find_sections(value) if issubclass(kind, Section))
            if kinds - {Section}:
                yield name, kinds


def _list_below(kind: type[Section], name: str = "") -> list[type[Section]]:
    """Lists the kinds of section that a field holds, or that all fields hold."""
    fields = kind.model_fields
    return [below for key in ([name] if name else fields) if key in fields for below in find_sections(fields[key].annotation)]


def _name_kinds(annotation: ast.expr | None, classes: Mapping[str, Kinds]) -> Kinds:
    """Finds the kinds of section that a written type names, be it of one or of several (``list[LabelSection]``)."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else []
    return frozenset(kind for name in names for kind in classes.get(name, NONE))


def _join(known: dict[str, Kinds], name: str, kinds: Kinds) -> None:
    if kinds:
        known[name] = known.get(name, NONE) | kinds
