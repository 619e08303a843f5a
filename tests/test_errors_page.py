"""Every line of docs/errors.md is run as a user would: the command fails with exit code 2, and says what the line says."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from jobs import label, train
from jobs.command import DONE, USER_ERROR, run
from tests.ray_cluster.answering_gcs import Gcs, serve_gcs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
ROW = re.compile(r"^\| `([^`]+)`(?:, ([^|]+?))? \| (.+?) \| (.+?) \|$", flags=re.MULTILINE)
HEAD, _, TAIL = PAGE.read_text(encoding="utf-8").partition("## Installation\n")
INSTALLATION, _, REST = TAIL.partition("\n## ")
ROWS = ROW.findall(HEAD + REST)
INSTALLATION_ROWS = ROW.findall(INSTALLATION)
PREPARED = (
    ("data/", "data", "tiny"), ("small.yaml", "small.yaml", "tiny"), ("runs/trained", "runs", "trained"),
    ("held.yaml", "held.yaml", "configurations"), ("published.yaml", "published.yaml", "configurations"),
)  # fmt: skip
"""What a line names, as which it is in its folder, and the fixture that makes it."""
NOWHERE = "readonly"
"""A link to /sys, in which no file can be made: not by root either, and whatever file system the test runs on."""


def name_row(row: Sequence[str]) -> str:
    return ", ".join(filter(None, row[:2]))


def test_the_test_reads_every_line_of_the_tables() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS) + len(INSTALLATION_ROWS) > 80


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that saved its scores."""
    storage = tmp_path_factory.mktemp("runs")
    words = [f"run.storage_path={storage}", "run.name=trained", "train.steps=4", "train.save_scores_every=1"]
    words += ["method.supervised_steps=0", "train.warmup_steps=0"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    return storage


@pytest.fixture(scope="module")
def configurations(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two more configurations of the small data set."""
    folder = tmp_path_factory.mktemp("configurations")
    held = ["--per-class", "4", "--hold-out", "50%", "--out", f"{folder}/held.parquet"]
    assert run(label.main, [f"{tiny}/manifest.parquet", *held]) == DONE
    tree = yaml.safe_load((tiny / "tiny.yaml").read_text(encoding="utf-8"))
    tree["data"]["labels"] = f"{folder}/held.parquet"
    (folder / "held.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    tree["primary"]["network"] = {"arch": "r3d_18", "weights": "torchvision:KINETICS400_V1"}
    (folder / "published.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page describes, as the current one, without what ``add_prepared`` adds."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "one/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one" / "a" / "x.mp4").write_text("no video", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / NOWHERE).symlink_to("/sys")
    texts = {"text": "text", "broken.yaml": "train: [", "list.yaml": "- a", "word.yaml": "train: {steps: many}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


# ------------------------------------------------------------------------------------------------- cases of the page's lines

Case = Callable[[pytest.MonkeyPatch], contextlib.AbstractContextManager[dict[str, str]]]
"""Brings a case about, and says what stands for what in the line: for a port, one that is really taken."""


@contextlib.contextmanager
def take_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        yield {"8643": port, "8642": port, "8000": port}


def find_free_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@contextlib.contextmanager
def hide_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """No name has an address, as without a network; pyarrow, which asks the system itself, finds nobody at its store's."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{find_free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield {}


@contextlib.contextmanager
def need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    yield {}


@contextlib.contextmanager
def build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    yield {}


@contextlib.contextmanager
def find_other_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a command's own process has joined none yet
    with serve_gcs(Gcs("2.9.3")) as address:
        yield {"HEAD:6379": address}


@contextlib.contextmanager
def find_other_ray_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """As ``ray start`` leaves it: its address is in a file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", os.getcwd())
    with find_other_ray(monkeypatch) as known:
        Path("ray").mkdir()
        Path("ray/ray_current_cluster").write_text(known["HEAD:6379"], encoding="utf-8")
        yield {}


@contextlib.contextmanager
def find_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    yield {"HEAD:6379": f"127.0.0.1:{find_free_port()}"}


@contextlib.contextmanager
def keep_probes_of_another_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    Path("out").mkdir()
    Path("out/.probes.jsonl").symlink_to("/sys/probes")
    with change_nothing(monkeypatch) as nothing:
        yield nothing


@contextlib.contextmanager
def change_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    yield {}


CASES: dict[str, Case] = {
    "": change_nothing,
    "at a port in use": take_port,
    "without a network": hide_network,
    "without a driver": need_no_gpu,
    "with a torch for CPUs": build_without_cuda,
    "of another Ray": find_other_ray,
    "beside an old Ray that runs here": find_other_ray_here,
    "of no cluster": find_nobody,
    "with probes that another user keeps there": keep_probes_of_another_user,
}


@pytest.mark.parametrize(("command", "case", "message", "remedy"), ROWS, ids=map(name_row, ROWS))
def test_the_command_says_what_the_page_says(
    command: str, case: str, message: str, remedy: str, broken: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    for word, name, fixture in PREPARED:
        if word in command:
            folder = request.getfixturevalue(fixture)
            file = "tiny.yaml" if name == "small.yaml" else name if name.endswith(".yaml") else ""
            (broken / name).symlink_to(folder / file)
    capsys.readouterr()
    before = {path.name for path in broken.iterdir()}
    with CASES[case](monkeypatch) as real:
        for shown, meant in real.items():
            command, message = command.replace(shown, meant), message.replace(shown, meant)
        words = shlex.split(command)
        while re.match("[A-Z_]+=", words[0]):
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        try:
            code: object = run(importlib.import_module(f"jobs.{words[0]}").main, words[1:])
        except SystemExit as end:  # of argparse
            code = end.code
    said = capsys.readouterr().err
    assert code == USER_ERROR, said
    assert message.replace("`", "") in " ".join(said.split()).replace("`", "") and remedy
    assert "Traceback" not in said and "Errno" not in said
    made = {path.name for path in broken.iterdir()} - before - {"ray"}
    assert not any(broken.joinpath(name).is_file() or list(broken.joinpath(name).glob("*.parquet")) for name in made)


# ------------------------------------------------------------------------------------------------------------- installation


def make_python(folder: Path, body: str) -> Path:
    """Makes a program that stands for an environment's Python."""
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def make_without_python(folder: Path) -> list[str]:
    tools = folder / "tools"
    tools.mkdir()
    for name in ("make", "sh"):
        (tools / name).symlink_to(next(path for path in map(Path, (f"/usr/bin/{name}", f"/bin/{name}")) if path.exists()))
    return ["env", f"PATH={tools}", "make", "demo", f"VENV={folder / 'new'}"]


def install_with_new_python(folder: Path) -> list[str]:
    return ["docker/install.sh", str(make_python(folder, "echo 3.14")), "dependencies"]


def install_without_network(folder: Path) -> list[str]:
    """By the real pip, into a folder of its own, so that it must ask an index."""
    index = f"--index-url http://127.0.0.1:{find_free_port()}/simple --retries 1 --target {shlex.quote(str(folder / 'new'))}"
    python = shlex.quote(sys.executable)
    body = f'if [[ $1 == -m ]]; then exec {python} "$@" {index}; fi\nexec {python} "$@"'
    unset = [word for name in os.environ if name.startswith("PIP_") for word in ("-u", name)]
    command = ["docker/install.sh", str(make_python(folder, body)), "dependencies"]
    return ["env", *unset, "PIP_CONFIG_FILE=/dev/null", f"INSTALL_LOG={folder / 'log'}", *command]


def run_with_old_python(folder: Path) -> list[str]:
    return [sys.executable, "-c", "import sys; sys.version_info = (3, 10, 14, 'final', 0); import jobs.train"]


def run_without_packages(folder: Path) -> list[str]:
    """In an environment that has been made, and in which nothing was installed yet."""
    return [sys.executable, "-S", "-m", "jobs.train"]


INSTALLATIONS: dict[str, Callable[[Path], list[str]]] = {
    "without Python 3.11": make_without_python,
    "with too new a Python": install_with_new_python,
    "without a network": install_without_network,
    "with too old a Python": run_with_old_python,
    "after an interrupted installation": run_without_packages,
}


@pytest.mark.parametrize(("command", "case", "message", "remedy"), INSTALLATION_ROWS, ids=map(name_row, INSTALLATION_ROWS))
def test_an_installation_says_what_the_page_says(command: str, case: str, message: str, remedy: str, tmp_path: Path) -> None:
    done = subprocess.run(INSTALLATIONS[case](tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode in ((1, USER_ERROR) if case == "without a network" else (USER_ERROR,)), done.stderr  # 1 is pip's
    assert message in " ".join(done.stderr.split()) and remedy and command
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
