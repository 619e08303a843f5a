"""The site of the documentation is built without a warning, its pages are all in it, and it asks nothing of a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.site.commands import build_page, find_parser, main
from tests.docs.conftest import run_mkdocs

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements that a browser loads by itself, and the attribute that says from where."""


class _Loaded(HTMLParser):
    """Collects the addresses that a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") != "canonical" and (address := values.get(LOADED[tag])):
            self.addresses.append(address)


def find_foreign(page: str) -> list[str]:
    """Addresses on other machines that a browser loads with the page."""
    loaded = _Loaded()
    loaded.feed(page)
    return [address for address in loaded.addresses if re.match(r"(https?:)?//", address)]


@pytest.mark.timeout(300)
def test_every_page_is_in_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    missing = [page for page in pages if page.name != "README.html" and not (site / page).is_file()]
    assert missing == [] and len(pages) > 30
    assert all((site / name).is_file() for name in ("index.html", "cluster.html", "contributing.html"))
    assert not list(site.rglob("*.py")) and not list(site.rglob("*.parquet"))


@pytest.mark.timeout(300)
def test_the_site_loads_nothing_from_a_network(site: Path) -> None:
    found = {str(page.relative_to(site)): foreign for page in site.rglob("*.html")
             if (foreign := find_foreign(page.read_text(encoding="utf-8")))}  # fmt: skip
    assert found == {}
    styles = [path for path in site.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//", path.read_text(encoding="utf-8"))]
    assert styles == []


def test_what_a_page_loads_from_a_network_is_found() -> None:
    page = "<script src='//cdn.example/x.js'></script><img src=a.png><a href='https://example.org'>x</a>"
    assert find_foreign(page + "<link rel=stylesheet href='https://fonts.example/f.css'>") == [
        "//cdn.example/x.js", "https://fonts.example/f.css"]  # fmt: skip


@pytest.mark.timeout(300)
def test_links_that_leave_docs_lead_into_the_site_or_are_text(site: Path) -> None:
    studies = (site / "studies.html").read_text(encoding="utf-8")
    assert 'href="cluster.html#every-night"' in studies
    assert "<code>jobs/studies/</code>" in studies and "../jobs" not in studies
    tutorial = (site / "tutorials" / "nightly_search.html").read_text(encoding="utf-8")
    assert 'href="../cluster.html#every-night"' in tutorial
    assert 'href="studies.html#searches"' in (site / "cluster.html").read_text(encoding="utf-8")


@pytest.mark.timeout(120)
def test_a_broken_link_or_heading_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = settings[settings.index("validation:") :]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\ntheme: mkdocs\nplugins: []\n{validation}", encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[a](nothing.md)\n\n[a](#nothing)\n", encoding="utf-8")
    done = run_mkdocs(config=tmp_path / "mkdocs.yml")
    assert done.returncode == 1 and "nothing.md" in done.stderr and "#nothing" in done.stderr, done.stderr
    assert done.stderr.count("WARNING") == 2, "each is enough to fail"


def test_the_page_of_commands_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is not: python -m docs.site.commands docs/commands.md"""
    assert main([str(tmp_path / "commands.md")]) == 0
    written = (tmp_path / "commands.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == written
    assert main([]) == 2 and "usage" in capsys.readouterr().err


def test_the_page_has_every_option_of_every_parser() -> None:
    page = build_page()
    train = page[page.index("\n## train\n") :].partition("\n## evaluate\n")[0]
    actions = find_parser("train")._actions
    options = [option for action in actions for option in action.option_strings if option.startswith("--")]
    assert len(options) > 4
    assert [option for option in options if f"`{option}" not in train] == ["--help"]
    assert "### prepare synthetic" in page and page.count("`--probe quick|full`") == 1
