"""What the site needs beside MkDocs: pages of other folders, and no links to files that only the repository has.

In docs/ links are relative, as GitHub wants them. They may lead to pages outside of docs/, which the site shows under other
names, and to code or configurations, of which the site shows the path alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {"cluster/README.md": "cluster.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the repository outside of docs/, and what they are called in the site."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the pages outside of docs/."""
    root = Path(config.docs_dir).parent
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns the links of a page that lead out of docs/ to where the site has their target."""
    own = page.file.src_uri
    source = next((path for path, name in OUTSIDE.items() if name == own), f"docs/{own}")
    return LINK.sub(lambda link: _translate_link(link, source, own), markdown)


def _translate_link(link: re.Match[str], source: str, own: str) -> str:
    """One link of the file ``source`` of the repository, which is the page ``own`` of the site."""
    text, path, anchor = link[1], link[2], link[3] or ""
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    name = target.removeprefix("docs/") if target.startswith("docs/") else OUTSIDE.get(target)
    if name is not None:
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(own) or '.')}{anchor})"
    return text if target in text or Path(target).name in text else f"{text} (`{target}`)"
