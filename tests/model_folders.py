"""A trained run, its model folder, and what tests do to one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.command import DONE, run
from pipeline.manifest.schema import read_manifest
from pipeline.model_folder.read_folder import CHECKSUMS


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps and its evaluation; tests must not change it."""
    from jobs import train  # here, because pytest-xdist's first process imports this file, too, and needs no torch

    storage = tmp_path_factory.mktemp("export")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage}", "train.steps=2", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    return storage / "tiny"


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder; tests must not change it."""
    from jobs import export

    out = tmp_path_factory.mktemp("models") / "drift"
    assert run(export.main, [str(trained), str(out)]) == DONE
    return out


@pytest.fixture(scope="session")
def programs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with programs of all kinds; tests must not change it."""
    from jobs import export

    out = tmp_path_factory.mktemp("programs") / "model"
    assert run(export.main, [str(trained), str(out), "--torch-export", "--onnx-int8"]) == DONE
    return out


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "drift"))


def video_of(tiny: Path) -> str:
    """The path of a test video."""
    manifest = read_manifest(tiny / "manifest.parquet")
    return manifest.locate(int(manifest.find_usable_rows("test")[0]))


def rewrite(folder: Path, name: str, content: Any) -> None:
    """Changes a file of a model folder, and its checksum, as somebody who wants it to be read would."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    seal(folder)


def seal(folder: Path) -> None:
    """Writes the checksums anew."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name != CHECKSUMS]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines))


def read(folder: Path, name: str) -> Any:
    """Reads a JSON file of a folder."""
    return json.loads((folder / name).read_text(encoding="utf-8"))
