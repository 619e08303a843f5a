"""README and docs: what they name is there. Links and headings resolve, and commands parse."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.__main__ import COMMANDS
from pipeline.config import Config, load_config
from pipeline.evaluation.protocol import collect_protocol, describe_protocol

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster/README.md", *(ROOT / "docs").rglob("*.md"))
)


LONGEST_LINE = 128
"""Characters; as in the code, so that a page can be read and compared in any editor."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors_of(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def commands_of(text: str) -> list[list[str]]:
    """The words of each ``python -m jobs.NAME ...`` on a page, NAME first: in indented blocks and between backquotes."""
    blocks = re.findall(r"^    (?:.*? )?python -m jobs\.(.+)$", text.replace("\\\n", ""), flags=re.MULTILINE)
    spans = re.findall(r"`(?:[\w=:]+ )?python -m jobs\.([^`]+)`", text)
    return [shlex.split(command.replace("'", ""), comments=True) for command in (*blocks, *spans)]


def source_of(name: str) -> str:
    """The code of a command and of the commands whose options it shares."""
    own = (ROOT / f"jobs/{name}.py").read_text(encoding="utf-8")
    shared = re.findall(r"^ *from jobs\.(\w+) import", own, flags=re.MULTILINE)
    return own + "".join((ROOT / f"jobs/{other}.py").read_text(encoding="utf-8") for other in shared)


def unknown_in(words: list[str]) -> list[str]:
    """What a command names and the program does not know: itself, its options, configurations of the repository."""
    name, *rest = words
    if name == "schedule" and "--" in rest:  # behind it is a command of its own
        end = rest.index("--")
        return [*unknown_in([name, *rest[:end]]), *unknown_in(rest[end + 1 :] or ["nothing behind --"])]
    if name not in COMMANDS and name not in ("COMMAND", "NAME"):
        return [f"jobs.{name}"]
    source = source_of(name) if name in COMMANDS else ""
    options = [word.split("=")[0] for word in rest if re.match(r"--\w", word)]
    files = [word for word in rest if re.fullmatch(r"jobs/[\w./]+\.yaml", word)]
    known = {"--help", "--config"}
    missing = [option for option in options if option not in known and f'"{option}"' not in source]
    return (missing if name != "submit" else []) + [file for file in files if not (ROOT / file).is_file()]


def knobs_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all knobs and sections below a section; of each of its alternatives where a knob is one of several."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for choice in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from knobs_of(choice, f"{prefix}{name}.")


def knobs_named(text: str) -> set[str]:
    """What a page writes like a knob: ``section.name`` in code, without names of files such as ``train.csv``."""
    code = "\n".join(re.findall(r"`[^`\n]+`|^    .*$", text, flags=re.MULTILINE))
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(Config.model_fields)})(?:\.[a-z_0-9]+)+(?![\w/*])", code)
    return {name for name in named if not name.endswith((".csv", ".json", ".jsonl", ".onnx", ".py"))}


@pytest.mark.parametrize("page", PAGES)
def test_knobs_that_a_page_names_exist(page: str) -> None:
    assert sorted(knobs_named(text_of(page)) - set(knobs_of(Config))) == []


def test_a_knob_that_does_not_exist_is_found() -> None:
    text = "`train.stesp=3` and `train.steps`, not `train.csv`\n\n    python -m jobs.train primary.optimizer.lrr=1\n"
    assert sorted(knobs_named(text) - set(knobs_of(Config))) == ["primary.optimizer.lrr", "train.stesp"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    assert broken_links(page, text_of(page)) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/manifest.md#columns) [b](docs/manifest.md#nothing) [c](docs/nothing.md) [d](https://example.org/x)"
    assert broken_links("README.md", text) == ["docs/manifest.md#nothing", "docs/nothing.md"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_exists(page: str) -> None:
    assert {shlex.join(words): unknown for words in commands_of(text_of(page)) if (unknown := unknown_in(words))} == {}


def test_a_command_that_does_not_exist_is_found() -> None:
    text = "    python -m jobs.learn\n    python -m jobs.train --over 8\n`python -m jobs.train --config jobs/configs/x.yaml`\n"
    assert [unknown_in(words) for words in commands_of(text)] == [["jobs.learn"], ["--over"], ["jobs/configs/x.yaml"]]


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"^\| \[[^]]+\]\(([\w./]+)", text_of("docs/README.md"), flags=re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert listed == pages | {"tour.ipynb", "../cluster/README.md", "../CONTRIBUTING.md"}


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_too_long(page: str) -> None:
    assert [line for line in text_of(page).splitlines() if len(line) > LONGEST_LINE] == []


def sections_without_protocol(text: str) -> list[str]:
    """Headings of the sections that have a table with top-1 figures, and do not say by which protocol they were measured."""
    found = []
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        figures = re.search(r"^\|.*\b\d{1,3}\.\d\b", section, flags=re.MULTILINE)
        told = re.search(
            r"[Pp]rotocol: \d+ clips? x \d+ crops?, .*?checkpoint|protocol .*?not known", " ".join(section.split())
        )
        if figures and "top-1" in section.lower() and not told:
            found.append(section.partition("\n")[0])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_top1_name_their_protocol(page: str) -> None:
    assert sections_without_protocol(text_of(page)) == []


def test_a_table_of_top1_without_a_protocol_is_found() -> None:
    table, protocol = (
        "Top-1 in %:\n\n| a | 71.2 |\n\n",
        "Protocol: 2 clips x\n1 crop, mean of probabilities, last checkpoint.\n",
    )
    text = f"# A\n\n{protocol}\n{table}## B\n\n{table}## C\n\n| seconds | 1.5 |\n"
    assert sections_without_protocol(text) == ["## B"]


@pytest.mark.parametrize(
    ("config", "pages"),
    [
        ("demo", ("README.md", "docs/results_synthetic.md")),
        ("studies", ("docs/results_synthetic.md",)),
        ("actions", ("docs/results.md",)),
    ],
)
def test_the_protocol_of_measured_results_is_that_of_their_configuration(config: str, pages: tuple[str, ...]) -> None:
    read = load_config([ROOT / f"jobs/configs/{config}.yaml"])
    phrase = describe_protocol({"protocol": collect_protocol(read), "step": read.train.steps})
    assert [page for page in pages if f"Protocol: {phrase}." not in " ".join(text_of(page).split())] == []
