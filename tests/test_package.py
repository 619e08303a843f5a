"""What is published: the sdist and the wheel have all that commands read, and the wheel works without this checkout.

The environment of the last tests is empty but for the wheel; its dependencies are those of this process, reached by a .pth
file, so that nothing is downloaded. ``tests/test_fresh_environment.py`` installs them anew, which takes minutes.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import jobs
from jobs.command import DONE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "jobs")
BESIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md",
          "constraints.txt", "pyproject.toml")  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def list_code() -> set[str]:
    """The files of both packages, those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was made from it, as ``python -m build`` leaves them."""
    folder = tmp_path_factory.mktemp("built")
    for name in {*list_code(), *BESIDE}:
        (folder / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "sources" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "sources")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def find_one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


# ------------------------------------------------------------------------------------------------------ what is in it


def test_the_wheel_has_every_file_of_both_packages_and_nothing_else(built: Path) -> None:
    wheel = find_one(built, "*.whl")
    assert wheel.name == f"actnetformer-{PROJECT['version']}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == list_code()
    for kind in ("jobs/configs/gpus/*.yaml", "jobs/spaces/*.yaml", "jobs/studies/*.yaml", "*.html.j2", "*.css", "*.js"):
        assert fnmatch.filter(names, kind), kind


def test_the_sdist_has_what_the_wheel_is_made_from_and_the_versions_that_were_tested(built: Path) -> None:
    with tarfile.open(find_one(built, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert list_code() <= names and set(BESIDE) <= names
    assert [name for name in names if name.startswith(("tests/", "docs/"))] == []


# ------------------------------------------------------------------------------------------------------------ versions


def list_versions(name: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("CITATION.cff", r"^version: (\S+)$"),
        ("docker/Dockerfile", r"actnetformer:([\d.]+\d)"),
        ("docker/compose.yaml", r"actnetformer:([\d.]+\d)"),
        ("cluster/README.md", r"actnetformer:([\d.]+\d)"),
        ("cluster/ray-up.yaml", r"actnetformer:([\d.]+\d)"),
        ("cluster/base/every_pod.yaml", r"actnetformer:([\d.]+\d)"),
        ("cluster/overlays/kind/settings/kustomization.yaml", r"newTag: ([\d.]+\d)"),
        ("cluster/overlays/gpu/settings/kustomization.yaml", r"newTag: ([\d.]+\d)"),
    ],
)
def test_files_that_cannot_read_the_version_name_that_of_pyproject(name: str, pattern: str) -> None:
    assert list_versions(name, pattern) == {PROJECT["version"]}


def test_no_code_repeats_the_version() -> None:
    assert [
        name for name in list_code() if name.endswith(".py") and f'"{PROJECT["version"]}"' in (ROOT / name).read_text()
    ] == []


def test_commands_and_the_installation_want_the_python_that_pip_wants() -> None:
    (oldest, newest) = jobs.OLDEST, jobs.NEWEST
    assert PROJECT["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    script = (ROOT / "docker/install.sh").read_text(encoding="utf-8")
    assert f"\n{' | '.join(f'3.{minor}' for minor in range(oldest[1], newest[1] + 1))}) ;;\n" in script


@pytest.mark.parametrize(
    ("machine", "asked"), [("x86_64", True), ("aarch64", False)]
)  # decord is published for no other processor than the former
def test_decord_is_asked_for_where_it_is_published(machine: str, asked: bool) -> None:
    (decord,) = (one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "decord")
    assert decord.marker is not None
    assert decord.marker.evaluate({"platform_machine": machine, "sys_platform": "linux"}) is asked


# --------------------------------------------------------------------------------------------------------- as installed


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    environment: Path
    work: Path

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs ``actnetformer`` with these words in the empty folder."""
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = [str(self.environment / "bin" / "actnetformer"), *words]
        return subprocess.run(command, cwd=self.work, env=variables, capture_output=True, text=True, timeout=200)

    def run(self, *words: str) -> str:
        """Runs what must succeed; returns what it printed."""
        done = self.ask(*words)
        assert done.returncode == DONE, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    one = Installed(folder / "environment", folder / "work")
    one.work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(one.environment)], check=True, timeout=100)
    site = find_one(one.environment, "lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(one.environment / "bin" / "python"), "install", "--no-deps"]
    done = subprocess.run([*command, "--no-index", str(find_one(built, "*.whl"))], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return one


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    code = "import jobs, pipeline; print(jobs.__file__); print(pipeline.__file__)"
    command = [str(installed.environment / "bin" / "python"), "-c", code]
    said = subprocess.run(command, cwd=installed.work, check=True, capture_output=True, text=True, timeout=60).stdout
    assert all(Path(line).is_relative_to(installed.environment) for line in said.splitlines())
    assert installed.run("--version") == f"actnetformer {PROJECT['version']}\n"


def test_help_calls_the_command_as_its_user_did(installed: Installed) -> None:
    said = installed.run("runs", "--help")
    assert said.startswith("usage: actnetformer runs ") and said.endswith("example:\n  actnetformer runs runs --all\n")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_doctor_prepare_and_train_work_from_an_empty_folder(installed: Installed) -> None:
    assert "no problem found" in installed.run("doctor")
    assert list(installed.work.iterdir()) == []
    prepared = installed.run("prepare", "synthetic", "data", "--videos", "16", "--classes", "2", "--labeled", "2/class")
    assert "4 videos (2/class, seed 0)" in prepared
    words = [
        "data.manifest=data/manifest.parquet",
        "train.steps=2",
        "train.warmup_steps=0",
        "scale.workers=0",
        "run.name=first",
    ]
    said = installed.run("train", "--config", "demo", *words)  # the demo's networks, by their installed configuration
    assert "test top-1 after step 2 on 4 videos" in said and "results go to" in said
    assert sorted(path.name for path in installed.work.iterdir()) == ["data", "runs"]
    as_manuals_write = installed.run("train", "--config", "jobs/configs/demo.yaml", *words)
    assert "first is done: 2 steps are trained" in as_manuals_write
