"""Writes the reference of all commands from their parsers: ``python -m docs.site.commands docs/commands.md``."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.__main__ import COMMANDS
from jobs.completion import find_parser

WORDS: dict[str, tuple[tuple[str, ...], ...]] = {"inspect": ((), ("clips",), ("labels",))}
"""Of a command that has more than one parser, the words that lead to each."""
WIDTH = 128
HEAD = """# Commands

This page is for whoever looks up an argument: it lists every command with all that it takes, as `--help` does. It is made from
the commands' own parsers by `python -m docs.site.commands docs/commands.md`, so do not edit it. `actnetformer COMMAND` is short
for `python -m jobs.COMMAND`, and a `key=value` changes a [knob](configuration.md) of the configuration.
"""


def build_page() -> str:
    """Builds the whole page: a section for each command."""
    lines = [HEAD]
    for command, about in COMMANDS.items():
        for words in WORDS.get(command, ((),)):
            lines += _describe_parser(" ".join((command, *words)), find_parser(command, words), "" if words else about)
    return "\n".join(lines).rstrip() + "\n"


def _describe_parser(name: str, parser: argparse.ArgumentParser, about: str) -> Iterator[str]:
    """The section of one parser: what it is for, an example, its arguments, and those of its own commands."""
    yield f"## {name}\n"
    if about:
        yield from (*_wrap(f"*{_escape(about)}*"), "")
    yield from _describe_use(parser)
    sources = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from _describe_arguments(parser, {id(action) for action in sources})
    for source in sources:
        yield from _describe_sources(name, source)


def _describe_use(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a command does, with lists of what is indented, and its examples."""
    for paragraph in (parser.description or "").split("\n\n"):
        if paragraph.startswith("  "):
            for line in paragraph.splitlines():
                name, _, about = line.strip().partition(" ")
                yield from _wrap(f"- `{name}`: {_escape(about.strip())}", "  ")
        else:
            yield from _wrap(_escape(paragraph))
        yield ""
    if parser.epilog:
        yield from (*(f"    {line.strip()}" for line in parser.epilog.splitlines()[1:]), "")


def _describe_sources(name: str, source: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    """The arguments of each command of a command, and then once those that all of them have."""
    described = {word: _list_arguments(parser) for word, parser in source.choices.items()}
    shared = [line for line in next(iter(described.values())) if all(line in lines for lines in described.values())]
    for word, lines in described.items():
        yield f"### {name} {word}\n"
        yield from _describe_use(source.choices[word])
        yield from (*(line for line in lines if line not in shared), "")
    if shared:
        yield from (f"### {name}: options of all of these\n", *shared, "")


def _describe_arguments(parser: argparse.ArgumentParser, without: set[int]) -> Iterator[str]:
    """A list for each group of arguments; groups that the command named have their title above."""
    for group in parser._action_groups:
        lines = [
            line for action in group._group_actions if id(action) not in without for line in _describe_action(parser, action)
        ]
        if lines:
            named = group.title not in ("arguments", "options")
            yield from ([f"**{group.title}**", ""] if named else [])
            yield from (*lines, "")


def _list_arguments(parser: argparse.ArgumentParser) -> list[str]:
    return ["\n".join(lines) for action in parser._actions if (lines := _describe_action(parser, action))]


def _describe_action(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """The lines of one argument; none of ``--help`` and of what the command hides."""
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return []
    value = "" if action.nargs == 0 else _name_value(action)
    names = [f"{option} {value}".strip() for option in action.option_strings] or [value]
    text = " ".join(((action.help or "") % {**vars(action), "prog": parser.prog}).split())
    if action.option_strings and action.required:
        text = f"required; {text}" if text else "required"
    line = f"- `{'`, `'.join(names)}`" + (f": {_escape(text)}" if text else "")
    return _wrap(line, "  ")


def _name_value(action: argparse.Action) -> str:
    """How a value is written: by its name, or by its choices where it has none."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return ""
    name = action.metavar or ("|".join(map(str, action.choices)) if action.choices is not None else action.dest)
    name = name if isinstance(name, str) else " ".join(name)
    if not action.metavar and action.choices is None and action.option_strings:
        name = name.upper()
    return f"{name} ..." if action.nargs in ("*", "+", argparse.REMAINDER) and not name.endswith("...") else name


def _escape(text: str) -> str:
    """Writes what Markdown would take for markup as text, and names of commands as code."""
    text = re.sub(r"python -m jobs\.\w+", r"`\g<0>`", text)
    return text.replace("<", "&lt;").replace("*", "\\*").replace("``", "`").replace("|", "\\|")


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page to the file that is named."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1:
        print("usage: python -m docs.site.commands FILE", file=sys.stderr)
        return 2
    Path(words[0]).write_text(build_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
