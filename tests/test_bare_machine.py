"""A machine without Ray, decord, Optuna and TensorBoard trains in one process: their absence is feigned, for children too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.manifest.schema import read_manifest

ABSENT = ("ray", "decord", "fsspec", "optuna", "sqlalchemy", "tensorboardX", "grpc", "mlflow", "wandb", "duckdb", "psycopg")
HOOK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes, and of those that they start, to which the modules in ABSENT are not installed."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    root = Path(__file__).resolve().parent.parent
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}"}


def python(bare: dict[str, str], code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], env=bare, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_absent_modules_cannot_be_imported(bare: dict[str, str]) -> None:
    """Otherwise the tests below would prove nothing."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name)
    except ModuleNotFoundError:
        pass
"""
    assert python(bare, code, *ABSENT) == ""


COMMANDS = """
import sys
from jobs import evaluate, predict, train
from jobs.command import run

config, storage, video = sys.argv[1:]
assert run(train.main, ["--config", config, f"run.storage_path={storage}", "train.steps=2"]) == 0
assert run(train.main, ["--config", config, f"run.storage_path={storage}", "train.steps=2", "--dry-run"]) == 0
assert run(evaluate.main, [f"{storage}/tiny", "evaluation.clips=1"]) == 0
assert run(predict.main, [f"{storage}/tiny", video, "scale.workers=2"]) == 0
"""


@pytest.mark.timeout(240)
def test_a_run_is_trained_evaluated_and_asked_about_a_file(bare: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    """The manifest says that decord decodes, which PyAV does in its place. One file needs no cluster, whatever
    ``scale.workers`` says."""
    manifest = read_manifest(tiny / "manifest.parquet")
    assert "decord" in manifest.table["decoder"].to_pylist()
    video = manifest.locate(int(manifest.find_usable_rows("test")[0]))
    printed = python(bare, COMMANDS, str(tiny / "tiny.yaml"), str(tmp_path), video)
    assert printed.count("note: without tensorboardX no files for TensorBoard are written") == 1
    assert f"{video}  " in printed and "not predicted" not in printed
    folder = tmp_path / "tiny"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["step"] == 2 and json.loads(lines[-1])["quarantined"] == 0
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["clips"] == 1
    assert not (folder / "tensorboard").exists()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_step_is_measured(bare: dict[str, str], tiny: Path) -> None:
    """With the processes that only decode and only compute."""
    code = "import sys; from jobs import bench; bench.main(sys.argv[1:])"
    words = ["step", "--json", "--quick", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]
    figures = json.loads(python(bare, code, *words).strip().splitlines()[-1])
    assert figures["step_over_bare"]["n"] == 1


def test_a_command_imports_no_other_one() -> None:
    """``actnetformer --help`` neither: torch alone takes seconds."""
    code = "import sys, jobs.__main__; print(*sorted(n for n in sys.modules if n.startswith(('jobs.', 'torch', 'ray'))))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["jobs.__main__", "jobs.command"]


def test_commands_import_no_packages_of_networks_that_they_do_not_build() -> None:
    """torchvision and timm take more seconds than torch itself."""
    code = """
import sys
from jobs import evaluate, predict, serve, suggest, train
from pipeline.config import ClipSection, SlowResNetSection
from pipeline.students import build_student
build_student(SlowResNetSection(depth=18, width=8), ClipSection(frames=4, fps=8, size=32), 5)
slow = {"torchvision", "timm", "torch._dynamo", "sympy", "triton", "wandb", "scipy", "matplotlib", "pandas", "ray"}
print(*sorted(slow & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "\n"


def test_a_manifest_is_inspected_without_torch() -> None:
    code = "import sys, jobs.inspect; print(*sorted({'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "\n"


@pytest.mark.parametrize(("absent", "command"), [("torch", "train"), ("yaml", "report"), ("optuna", "search")])
def test_an_installation_that_was_interrupted_ends_no_command_with_a_traceback(
    absent: str, command: str, tmp_path: Path
) -> None:
    """And doctor still works, and says what is missing."""
    (tmp_path / "sitecustomize.py").write_text(HOOK.replace(repr(ABSENT), repr((absent,))), encoding="utf-8")
    root = Path(__file__).resolve().parent.parent
    interrupted = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    for words in ((f"jobs.{command}", "--help"), ("jobs", command, "--help")):
        done = subprocess.run([sys.executable, "-m", *words], env=interrupted, capture_output=True, text=True, timeout=100)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: the installation is not complete: No module named '{absent}'; ")
        assert "python -m jobs.doctor" in done.stderr and done.stderr.count("\n") == 1
    if absent == "torch":
        done = subprocess.run(
            [sys.executable, "-m", "jobs.doctor"], env=interrupted, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 1 and done.stderr == ""
        assert "problem  the rest  cannot be checked: No module named 'torch'" in done.stdout


def test_what_is_no_broken_installation_keeps_its_traceback(tmp_path: Path) -> None:
    """A name of our own that does not exist is a mistake in the code, and a traceback says where."""
    for line in ("import jobs.no_such_command", "import jobs; from jobs.command import no_such_name", "import jobs; 1 / 0"):
        done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=100)
        assert done.returncode == 1 and done.stderr.startswith("Traceback")
