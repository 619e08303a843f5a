"""On a machine that has what a user installs and nothing else: real clips are trained on, and the model folder alone is used.

The environment is new, has the runtime dependencies and the project as a package, and knows nothing of this checkout.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from jobs.command import DONE, USER_ERROR
from tests.model_folders import read

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]
SOURCES = ("LICENSE", "README.md", "constraints.txt", "pyproject.toml", "docker", "pipeline", "jobs")
"""What docker/Dockerfile copies."""
BROUGHT = {"alembic", "jsonschema", "prometheus-client"}
"""Packages of extras that dependencies bring along: Optuna the first, Ray the others."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in."""

    folder: Path
    sources: Path
    work: Path

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment in the folder to work in."""
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(command, cwd=self.work, env=self.variables, capture_output=True, text=True, timeout=900)

    def run(self, *words: str) -> str:
        """Runs ``actnetformer`` with these words, which must succeed; returns what it printed."""
        done = self.ask("actnetformer", *words)
        assert done.returncode == DONE, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *words: str) -> None:
        """Installs as the image does."""
        python, log = str(self.folder / "bin" / "python"), {"INSTALL_LOG": str(self.work.parent / "install.log")}
        command = ["docker/install.sh", python, *words]
        subprocess.run(command, cwd=self.sources, check=True, timeout=1500, env=self.variables | log)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of this process, without those that would show it this checkout."""
        return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The project and its runtime dependencies, without any extra; 6.5 GB, which are deleted at the end."""
    folder = tmp_path_factory.mktemp("fresh")
    one = Environment(folder / "environment", folder / "sources", folder / "work")
    one.work.mkdir()
    for name in SOURCES:
        path, copy = repository / name, one.sources / name
        copy.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(one.folder)], check=True, timeout=200)
        one.install("dependencies")
        one.install("project")
        shutil.move(one.sources / "pipeline", one.sources / "moved")  # it is the package that is used
        yield one
    finally:
        shutil.rmtree(one.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(environment: Environment, shared_data: Path) -> Path:
    """A model of 27 actions and another one, each evaluated on 430 videos; run, manifest, labels and list are deleted."""
    work, videos = environment.work, shared_data / "utd_mhad_depth"
    shutil.copy(videos / "clips.csv", work)
    environment.run("prepare", "list", "clips.csv", "data", "--root", str(videos), "--labeled", "2/class")
    short = ["train.warmup_steps=2", "evaluation.clips=1", "data.manifest=data/manifest.parquet"]
    for name, steps, workers in (("model", 60, 0), ("other", 4, 1)):  # the latter by Ray Data and Ray Train
        words = [f"run.name={name}", f"train.steps={steps}", f"scale.workers={workers}", *short]
        environment.run("train", "--config", find_config(environment), *words)
        assert environment.run("evaluate", f"runs/{name}", "evaluation.clips=1", "scale.workers=0")
        environment.run("export", f"runs/{name}", name, "evaluation.clips=1")
        environment.run("evaluate", name, "--manifest", "data/manifest.parquet")
        assert read(work / name, "evaluation.json")["mean"] == read(work / "runs" / name, "evaluation.json")["mean"]
    for name in ("runs", "data"):
        shutil.rmtree(work / name)
    (work / "clips.csv").unlink()
    assert sorted(path.name for path in work.iterdir()) == ["model", "other"]
    return work / "model"


def find_config(environment: Environment) -> str:
    """Returns the path of actions.yaml, which the package brings."""
    code = "from importlib.resources import files; print(files('jobs') / 'configs' / 'actions.yaml')"
    return environment.ask("python", "-c", code).stdout.strip()


def test_only_what_running_needs_is_installed(environment: Environment, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        name: {re.split(r"[\[<>=]", line)[0] for line in lines} for name, lines in project["optional-dependencies"].items()
    }
    wanted = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    unwanted = set.union(*names.values()) - wanted - BROUGHT
    assert unwanted >= {"pytest", "mypy", "moto", "fastapi", "onnx"}
    code = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'].lower() for d in m.distributions()]))"
    installed = set(json.loads(environment.ask("python", "-c", code).stdout))
    assert wanted - {"tensorboardX"} <= installed and "actnetformer" in installed
    assert installed & unwanted == set()
    code = "import jobs, pipeline; print(pipeline.__file__)"
    where = Path(environment.ask("python", "-c", code).stdout.strip())
    assert where.is_relative_to(environment.folder) and "site-packages" in where.parts


def test_the_folder_alone_predicts_and_is_compared(environment: Environment, model: Path, shared_data: Path) -> None:
    videos = shared_data / "utd_mhad_depth" / "a03_wave"
    environment.run("predict", "model", str(videos), "--out", "scores.parquet")
    found = {Path(row["file"]).name: row["mean"] for row in pq.read_table(environment.work / "scores.parquet").to_pylist()}
    known = {Path(row["uri"]).name: row["mean"] for row in pq.read_table(model / "predictions.parquet").to_pylist()}
    both = sorted(found.keys() & known.keys())
    assert len(both) > 10
    np.testing.assert_allclose([found[name] for name in both], [known[name] for name in both], rtol=0, atol=1e-6)
    timeline = environment.run("predict", "model", str(next(iter(videos.iterdir()))), "--window", "1s", "--html", "page.html")
    assert " s  a" in timeline and (environment.work / "page.html").stat().st_size > 1000
    assert "430" in environment.run("compare", "model", "other", "--out", "compared.html")
    assert (environment.work / "compared.html").stat().st_size > 1000


def test_with_the_extra_that_the_command_asks_for_the_folder_alone_is_served(
    environment: Environment, model: Path, shared_data: Path
) -> None:
    refused = environment.ask("actnetformer", "serve", "model", "--port", "0")
    assert refused.returncode == USER_ERROR and refused.stderr.count("\n") == 1 and "fastapi" in refused.stderr
    remedy = re.search(r"pip (install 'actnetformer\[serve\]')", refused.stderr)
    assert remedy, refused.stderr
    installed = environment.ask("pip", *shlex.split(remedy[1]), "--constraint", str(environment.sources / "constraints.txt"))
    assert installed.returncode == 0, installed.stdout + installed.stderr
    clip = shared_data / "utd_mhad_depth" / "a03_wave" / "a03_s2_t1.mp4"
    command = [str(environment.folder / "bin" / "actnetformer"), "serve", "model", "--port", "0"]
    variables = environment.variables
    with subprocess.Popen(command, cwd=environment.work, env=variables, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            address = re.search(r"http://\S+:\d+", said)
            assert address, said
            request = urllib.request.Request(f"{address[0]}/predict?top=27", clip.read_bytes(), {"Content-Type": "video/mp4"})
            with urllib.request.urlopen(request, timeout=100) as response:
                answer = json.load(response)
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == DONE
        finally:
            server.kill()
    rows = pq.read_table(model / "predictions.parquet").to_pylist()
    (known,) = (row["mean"] for row in rows if Path(row["uri"]).name == clip.name)
    classes = read(model, "labels.json")
    given = {one["name"]: one["probability"] for one in answer["classes"]}
    np.testing.assert_allclose([given[name] for name in classes], known, rtol=0, atol=0.01)  # PyAV decodes here


def test_the_folder_alone_is_where_fine_tuning_on_other_classes_starts(
    environment: Environment, model: Path, shared_data: Path
) -> None:
    work, videos = environment.work, shared_data / "fights"
    shutil.copy(videos / "clips.csv", work)
    environment.run("prepare", "list", "clips.csv", "fights", "--root", str(videos), "--labeled", "8/class")
    weights = [f"{name}.network.weights={model}" for name in ("primary", "auxiliary")]
    still = [f"{name}.optimizer.lr=1e-9" for name in ("primary", "auxiliary")]
    words = ["run.name=tuned", "train.steps=1", "train.warmup_steps=0", "evaluation.clips=1", *weights, *still]
    environment.run("train", "--config", find_config(environment), "data.manifest=fights/manifest.parquet", *words)
    assert read(work / "runs" / "tuned", "evaluation.json")["videos"] == 76
    before = load_file(model / "model.safetensors")
    after = load_file(next((work / "runs" / "tuned").glob("checkpoint_*")) / "model.safetensors")
    learned = [name for name, value in before.items() if value.ndim > 1 and ".head." not in name]
    assert len(learned) > 10
    for name in learned:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-6)
