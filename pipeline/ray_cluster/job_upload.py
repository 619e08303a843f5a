"""What a job takes along from this machine: the files of the working directory, by the rules with which Ray packs them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from pipeline.errors import UserError

MAX_MEGABYTES = 20.0
"""What may be uploaded unless the user says otherwise: several times this project."""
LISTED = 5
"""How many files or folders a message names."""


@dataclass(frozen=True)
class Upload:
    """The files that are uploaded from a folder."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    """Their paths in the folder and bytes, before Ray compresses them, the largest first."""
    by_accident: tuple[tuple[str, str], ...]
    """Folders among them that no job needs, and what they are: an environment, a data set or a run."""

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return sum(size for _, size in self.files)

    def describe(self) -> str:
        """Describes the size, and what makes it up, in a line."""
        largest = ", ".join(f"{name} {_format(size)}" for name, size in self.files[:3])
        return f"{_format(self.bytes)} in {len(self.files):,} files, the largest: {largest or 'none'}"


def measure_upload(folder: Path, excludes: Sequence[str] = ()) -> Upload:
    """Measures what Ray would upload: all in ``folder`` but what .gitignore, .rayignore and ``excludes`` name."""
    files: dict[str, int] = {}
    accidents: dict[str, str] = {}

    def look_at(path: Path) -> None:
        if path.is_dir():
            return
        name = path.relative_to(folder)
        files[str(name)] = path.stat().st_size if path.exists() else 0  # a link that leads nowhere
        if name.name == "pyvenv.cfg":
            accidents[f"{name.parent}/"] = "a Python environment"
        elif name.name == "manifest.parquet":
            accidents[f"{name.parent}/"] = "a data set"
        elif name.name == "state.json" and name.parent.name.startswith("checkpoint_"):
            accidents[f"{name.parent.parent}/"] = "a run"

    ignored = _get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])
    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(folder, [ignored], look_at, with_gitignore)
    return Upload(folder, tuple(sorted(files.items(), key=lambda file: -file[1])), tuple(sorted(accidents.items())))


def check_upload(upload: Upload, megabytes: float | None) -> None:
    """Raises UserError, with the line of .rayignore that mends it, for an upload that is probably an accident.

    Data sets, runs and environments are one, and anything larger than ``MAX_MEGABYTES``; where the user gives a limit, only
    what is larger.
    """
    if megabytes is None and upload.by_accident:
        details = [f"{name} is {what}: add the line /{name} to .rayignore" for name, what in upload.by_accident]
        raise UserError(
            f"{upload.folder} would be uploaded with what belongs on the cluster's storage; --upload-limit MB sends it anyway:",
            details[:LISTED],
        )
    limit = MAX_MEGABYTES if megabytes is None else megabytes
    if upload.bytes > limit * 1e6:
        raise UserError(
            f"{upload.folder} has {_format(upload.bytes)} to upload, more than {limit:g} MB: name what the cluster does not "
            "need in .rayignore, a line each, or raise --upload-limit. The largest folders and files:",
            [f"{_format(size)} /{name}" for name, size in _add_up_folders(upload.files)[:LISTED]],
        )


def _add_up_folders(files: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Adds up the bytes of each folder and file at the top, the largest first: a thousand clips are one line."""
    sizes: Counter[str] = Counter()
    for name, size in files:
        top, slash, _ = name.partition("/")
        sizes[top + slash] += size
    return sizes.most_common()


def _format(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
