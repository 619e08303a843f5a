"""The site of the documentation, built once for all tests that look at it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_mkdocs(*words: str, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Builds a site, and ends with an error at any warning, as ``make docs`` does."""
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install -e .[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), *words]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = run_mkdocs("--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder
