"""The house itself: files that name each other agree, and what is shipped loads."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from jobs.__main__ import COMMANDS
from pipeline.config import load_config
from pipeline.studies.ablation import plan_trials
from pipeline.studies.study_file import read_study

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
ROOMS = ("pipeline", "jobs", "cluster", "docker", "tests")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def _listed() -> list[str]:
    """What the project consists of, links and what is not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def _files() -> list[str]:
    """Files of the project, those not committed yet included."""
    return [name for name in _listed() if (ROOT / name).is_file()]


def links_that_leave(root: Path, names: list[str]) -> list[str]:
    """Symbolic links below ``root`` that lead out of it, or name a folder of this machine."""
    links = [name for name in names if (root / name).is_symlink()]
    return [name for name in links if (target := (root / name).readlink()).is_absolute()
            or not (root / name).parent.joinpath(target).resolve().is_relative_to(root.resolve())]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ versions


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+", line)] == []
    assert len(_pins()) == len(lines)


def test_every_dependency_is_pinned_within_its_range() -> None:
    project, pins = _project(), _pins()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin), f"{requirement} is pinned to {pin}"


def test_tests_of_a_group_share_a_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist appends a test's group to its id. pytest 9.2 ignored that: each process had its own Ray, and made every
    file's runs and data again."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("in one process")
    assert request.node.nodeid.endswith("@tests/test_house.py")


# --------------------------------------------------------------------------------------------------- the image


def _steps(keyword: str) -> list[str]:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.removeprefix(keyword).strip() for line in text.splitlines() if line.startswith(f"{keyword} ")]


def _copied() -> list[str]:
    """What the image gets from the repository."""
    steps = [step.split() for step in _steps("COPY") if not step.startswith("--from")]
    return [source for step in steps for source in step[:-1] if not source.startswith("--")]


def test_the_images_have_the_tested_versions_of_ray_and_python() -> None:
    base = f"rayproject/ray:{_pins()['ray']}-py311"
    assert _steps("FROM") == ["scratch AS project", f"{base}-cpu AS cpu", f"{base}-gpu AS gpu"]  # the last one is the default
    assert "PYTHON ?= python3.11\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_images_and_the_environment_are_installed_by_the_same_script() -> None:
    """And images without what only tests need: neither the extra dev nor a server of tests."""
    installs = [re.sub(r'^PIP_EXTRA_INDEX_URL="[^"]+" +', "", step) for step in _steps("RUN") if "install" in step]
    assert installs == 2 * ["docker/install.sh python dependencies serve mlflow", "docker/install.sh python project"]
    recipe = subprocess.run(["make", "-n", "-B", ".venv"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "docker/install.sh .venv/bin/python dependencies dev\n" in recipe
    assert "docker/install.sh .venv/bin/python project --editable\n" in recipe


def test_the_images_hold_nothing_that_only_developers_need() -> None:
    """By what the packages installed here say that they need. ``make audit`` looks at the same lists."""
    recipe = subprocess.run(["make", "-n", "audit"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"docker/list_packages\.py (.+) > build/audit/(\w+)\.txt", recipe) == [
        ("serve mlflow", "image"),
        ("dev", "developers"),
    ]
    lists = []
    for extras in (["serve", "mlflow"], ["dev"]):
        command = [sys.executable, "docker/list_packages.py", *extras]
        lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        lists.append(dict(line.split("==") for line in lines))
    image, developers = lists
    pins = _pins()
    assert {name: version for name, version in (image | developers).items() if pins[name] != version} == {}
    assert {"torch", "ray", "fastapi", "mlflow-skinny", "python-multipart"} <= image.keys()
    tools = {"pytest", "moto", "flask", "flask-cors", "hypothesis", "mypy", "ruff", "playwright", "duckdb", "scikit-learn"}
    assert tools <= developers.keys() and not tools & image.keys()


def test_the_images_get_what_they_copy() -> None:
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"pipeline", "jobs", "docker/install.sh"} <= set(_copied())
    for source in _copied():
        assert (ROOT / source).exists()
        assert f"!{source}" in ignore


def test_the_images_do_not_run_as_root() -> None:
    assert _steps("USER") == ["1000:100", "1000:100"]


def test_the_installed_package_has_its_data(tmp_path: Path) -> None:
    for source in set(_copied()):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (tmp_path / source).parent.mkdir(exist_ok=True)
        copy(ROOT / source, tmp_path / source)
    command = ["docker/install.sh", sys.executable, "project", "--quiet", "--target", str(tmp_path / "site")]
    log = {**os.environ, "INSTALL_LOG": str(tmp_path / "install.log")}
    subprocess.run(command, cwd=tmp_path, check=True, timeout=100, env=log)
    shipped = [name for name in _files() if name.startswith(("pipeline/", "jobs/"))]
    assert [name for name in shipped if not (tmp_path / "site" / name).is_file()] == []


PIP = """#!/usr/bin/env bash
if [[ $1 != -m ]]; then exec {python} "$@"; fi
for ((line = 0; line < 3000; line++)); do echo "Collecting package $line"; done
echo "ERROR: no space left" >&2
exit {status}
"""
"""Stands for an environment's python whose pip says much."""


def _install(tmp_path: Path, status: int) -> subprocess.CompletedProcess[str]:
    python = tmp_path / "python"
    python.write_text(PIP.format(python=shlex.quote(sys.executable), status=status), encoding="utf-8")
    python.chmod(0o755)
    return subprocess.run(
        ["docker/install.sh", str(python), "dependencies", "dev"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "INSTALL_LOG": str(tmp_path / "install.log")},
    )  # fmt: skip


def test_an_installation_says_what_concerns_a_newcomer_and_keeps_the_rest_in_a_file(tmp_path: Path) -> None:
    done = _install(tmp_path, 0)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and f"what pip says: {tmp_path / 'install.log'}" in done.stdout
    log = (tmp_path / "install.log").read_text(encoding="utf-8")
    assert log.count("Collecting package 2999") == 2 and "ERROR: no space left" in log  # both of its calls, stderr too


def test_an_installation_that_fails_shows_why_and_where_the_rest_is(tmp_path: Path) -> None:
    done = _install(tmp_path, 3)
    assert done.returncode == 3
    assert "ERROR: no space left" in done.stderr and str(tmp_path / "install.log") in done.stderr
    assert done.stderr.count("\n") < 50


# ------------------------------------------------------------------------------------------- commands and configs


def test_the_demos_configuration_is_shipped() -> None:
    assert "demo.yaml" in {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    load_config(path)


def test_the_commands_are_listed() -> None:
    command = [sys.executable, "-m", "jobs", "--help"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^  (\w+)  ", listed, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"jobs.{name}").main(["--help"])
    assert f"usage: python -m jobs.{name}" in capsys.readouterr().out


def test_the_demo_runs_commands_that_exist() -> None:
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [shlex.split(line) for line in recipe.splitlines() if " -m jobs." in line]
    assert [line[2] for line in lines] == ["jobs.prepare", "jobs.ablate"]
    study = read_study(ROOT / "jobs/studies" / f"{lines[1][3]}.yaml")
    trials = plan_trials(study, load_config(ROOT / lines[1][5]), seeds=1)
    assert [trial.config.method.name for trial in trials] == ["supervised", "actnetformer"]
    assert trials[0].config.data.manifest == f"{lines[0][4]}/manifest.parquet"


@pytest.mark.parametrize("script", [".ci/run", "docker/install.sh"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


# ----------------------------------------------------------------------------------------------------- the rooms

LARGEST_SHARE = 0.15
"""Of the lines of ``pipeline/``, for a room: a package directly below it. Above that a room holds more than one subject."""
MOST_FILES = 14
"""Beside each other in a folder: more cannot be taken in at a glance."""
MIRRORS = ("bench", "config")
"""Rooms whose files are named after what they measure or what they have the knobs of."""
WITHOUT_TESTS: dict[str, str] = {}
"""Folders of ``pipeline/`` that have no folder of tests, and why."""
WAYS = {"in_process.py", "on_ray.py"}
"""Each room with two ways to do its work calls them so: here, or on a cluster."""


def shares(lines: dict[str, int]) -> dict[str, float]:
    """Of each room, the part of all lines of ``pipeline/``; ``lines`` by file."""
    rooms: dict[str, int] = {}
    for name, count in lines.items():
        room = name.split("/")[1]
        rooms[room] = rooms.get(room, 0) + count
    return {room: count / sum(rooms.values()) for room, count in rooms.items()}


def crowded(names: list[str]) -> dict[str, int]:
    """Folders with more files beside each other than may be, and how many."""
    counts = Counter(str(Path(name).parent) for name in names)
    return {folder: count for folder, count in counts.items() if count > MOST_FILES}


def shared_names(names: list[str]) -> dict[str, list[str]]:
    """Modules that are named like another one for no reason that is known here."""
    modules: dict[str, list[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        if file.endswith(".py") and file not in ("__init__.py", *WAYS) and folders[1:2] not in [[room] for room in MIRRORS]:
            modules.setdefault(file, []).append(name)
    return {file: found for file, found in modules.items() if len(found) > 1}


def test_no_room_holds_more_than_its_share_of_the_pipeline() -> None:
    lines = {name: (ROOT / name).read_bytes().count(b"\n") for name in _files() if name.startswith("pipeline/")}
    assert {room: share for room, share in shares(lines).items() if share > LARGEST_SHARE} == {}
    assert shares({"pipeline/a/x.py": 30, "pipeline/a/b/y.py": 60, "pipeline/z.py": 10}) == {"a": 0.9, "z.py": 0.1}


def test_no_folder_of_the_pipeline_has_too_many_files_beside_each_other() -> None:
    names = [name for name in _files() if name.startswith("pipeline/")]
    assert crowded(names) == {}
    many = [f"pipeline/new/{number}.py" for number in range(15)]
    assert crowded(many) == {"pipeline/new": 15} and crowded(many[1:]) == {}


def test_no_two_modules_of_the_pipeline_share_a_name_without_a_reason() -> None:
    assert shared_names([name for name in _files() if name.startswith("pipeline/")]) == {}
    twice = ["pipeline/a/frames.py", "pipeline/b/frames.py", "pipeline/bench/frames.py", "pipeline/a/on_ray.py"]
    assert shared_names(twice) == {"frames.py": twice[:2]}


def find_folders(names: list[str], room: str, file: str = r"\w+") -> set[str]:
    """The folders below ``room`` that hold a Python file whose name matches, relative to it; files beside it do not count."""
    matches = (re.fullmatch(rf"{room}/(.+)/{file}\.py", name) for name in names)
    return {match[1] for match in matches if match}


def test_the_tests_mirror_the_folders_of_the_pipeline() -> None:
    """So that one finds the tests of a file, and sees which folder has none."""
    names = _files()
    rooms, tested = find_folders(names, "pipeline"), find_folders(names, "tests", r"test_\w+")
    assert "training/on_ray" in rooms and rooms - tested == WITHOUT_TESTS.keys()
    assert find_folders(["pipeline/a/b/x.py", "pipeline/y.py", "pipeline/a/t/z.css"], "pipeline") == {"a/b"}
    assert find_folders(["tests/a/test_x.py", "tests/b/helper.py"], "tests", r"test_\w+") == {"a"}


def find_two_way(files: Mapping[str, str]) -> set[tuple[str, str]]:
    """Pairs of a folder's own files (named like the folder) and its sub-folders, or of two sub-folders, that import each other.

    ``files`` are modules' texts by path. ``pipeline/`` itself is left out: its layers are a contract of lint-imports.
    """
    arrows = set()
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                package = node.module.replace(".", "/")
                for alias in node.names:
                    paths = (f"{package}/{alias.name}.py", f"{package}.py", f"{package}/__init__.py")
                    arrows |= {find_fork(path, other) for other in paths if other in files}
    return {(one, other) for one, other in arrows if one < other and (other, one) in arrows}


def find_fork(path: str, other: str) -> tuple[str, str]:
    """Where the paths of two files part below a room: each one's next folder, or the common one for a file directly in it."""
    one, two = Path(path).parts[:-1], Path(other).parts[:-1]
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    if common < 2:  # in two rooms
        return "", ""
    return "/".join(one[: common + 1]), "/".join(two[: common + 1])


def test_a_folder_either_uses_its_sub_folder_or_is_used_by_it() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _files() if re.match(r"pipeline/.*\.py$", name)}
    assert find_two_way(texts) == set()
    down, up = "from pipeline.a.b.x import one", "from pipeline.a import y"
    assert find_two_way({"pipeline/a/y.py": down, "pipeline/a/b/x.py": ""}) == set()
    assert find_two_way({"pipeline/a/y.py": down, "pipeline/a/b/x.py": up}) == {("pipeline/a", "pipeline/a/b")}
    assert find_two_way({"pipeline/a/__init__.py": down, "pipeline/a/b/x.py": "from pipeline.a import two"}) != set()
    beside = {"pipeline/a/b/x.py": "from pipeline.a.c.z import one", "pipeline/a/c/z.py": "from pipeline.a.b.x import two"}
    assert find_two_way(beside) == {("pipeline/a/b", "pipeline/a/c")}


def list_public_names(files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The public classes and functions of modules, by their path and text; not ``main``, which every program has."""
    for path, text in files.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") and node.name != "main":
                yield node.name, path


def find_shared(files: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that two modules give to something public."""
    found: dict[str, list[str]] = {}
    for name, path in list_public_names(files):
        found.setdefault(name, []).append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_two_public_classes_or_functions_share_a_name() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _files() if re.match(r"pipeline/.*\.py$", name)}
    assert len(texts) > 200
    assert find_shared(texts).keys() == {"get_file_info"}, "as storage names it, of files, of videos and of numbered images"
    assert find_shared({"a": "class Answer: ...", "b": "def _f(): ...\nclass Answer: ..."}) == {"Answer": ["a", "b"]}


# ------------------------------------------------------------------------------------------------------ the text


def test_the_readme_names_every_room_and_nothing_that_is_not_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {name.split("/")[0] for name in _files() if "/" in name and not name.startswith(".")}
    assert [room for room in sorted(rooms) if f"{room}/" not in readme] == []
    named = set(re.findall(rf"(?<![\w/.<-])(?:{'|'.join(ROOMS)})/[\w./-]*\w", readme))
    assert [name for name in sorted(named) if not ((ROOT / name).exists() or (ROOT / f"{name}.py").exists())] == []


def test_no_link_leads_out_of_the_project(tmp_path: Path) -> None:
    """It would be followed on this machine only, and what commands write there would be written through it."""
    assert links_that_leave(ROOT, _listed()) == []
    (tmp_path / "inside").mkdir()
    for name, target in {"data": str(tmp_path / "inside"), "up": "../elsewhere", "near": "inside"}.items():
        (tmp_path / name).symlink_to(target)
    assert links_that_leave(tmp_path, ["data", "up", "near", "inside"]) == ["data", "up"]


# in pieces, so that this file does not find itself
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "download." + "pytorch.org", "conda." + "anaconda.org", "jfrog" + ".io"]
HOMES = r"(?<![\w.:$-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "Us" + "ers", "home/(?!ray/|ubuntu/)"]) + r")[/\w]"


def foreign(text: str) -> list[str]:
    """Package registries' hosts and paths of somebody's machine in ``text``."""
    return [host for host in HOSTS if host in text] + re.findall(HOMES, text)


def test_no_file_depends_on_somebodys_machine_or_registry() -> None:
    found = {}
    for name in _files():
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        if marks := foreign(text):
            found[name] = marks
    assert found == {}


@pytest.mark.parametrize("text", ["https://" + HOSTS[0] + "/simple", "cd /wo" + "rk/x", "'/home/" + "me/'", "/ro" + "ot/.ray"])
def test_what_is_foreign_is_found(text: str) -> None:
    assert foreign(text)
    assert not foreign("/home/ray/actnetformer pipeline/home/x /shared/runs file:///data ../work/x")
