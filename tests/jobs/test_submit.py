"""What is submitted and what is refused; ``test_cluster_life.py`` submits to a real head."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from ray.job_submission import JobDetails

from jobs import submit
from jobs.__main__ import COMMANDS
from pipeline.errors import UserError
from pipeline.run_folder.results_folder import find_results


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")


def test_entrypoint_keeps_every_word() -> None:
    line = submit.build_entrypoint("train", ["--config", "a b.yaml", "run.name=it's"])
    assert line == """python -m jobs.train --config 'a b.yaml' 'run.name=it'"'"'s'"""


def test_a_cluster_that_was_just_started_is_asked_again() -> None:
    """With what Ray 2.60 answers until a machine's agent runs; every other refusal is told at once."""
    answers = [
        RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")
    ] * 2
    asked: list[int] = []

    def answer() -> str:
        asked.append(len(asked))
        if len(asked) <= len(answers):
            raise answers[len(asked) - 1]
        return "raysubmit_1"

    assert submit.submit_when_ready(answer, seconds=0.5) == "raysubmit_1" and len(asked) == 3
    asked.clear()
    answers[:] = [RuntimeError("Request failed with status code 400: bad runtime_env")]
    with pytest.raises(RuntimeError, match="bad runtime_env"):
        submit.submit_when_ready(answer)
    answers[:] = [RuntimeError("No available agent")] * 100
    with pytest.raises(RuntimeError, match="No available agent"):
        submit.submit_when_ready(answer, seconds=0.05)


@pytest.mark.parametrize(
    ("command", "remedy"),
    [("trian", "did you mean train"), ("xyzzy", "evaluate"), ("submit", "itself"), ("cluster", "for this machine")],
)
def test_what_is_no_command_is_told_before_connecting(command: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        submit.main(["--address", "http://127.0.0.1:1", command])


def test_a_password_in_an_argument_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError, match=r"postgresql://ada:\*\*\*@db/x has a password.*--env PGPASSWORD") as refused:
        submit.build_entrypoint("search", ["--storage", "postgresql://ada:pl4nted@db/x"])
    assert "pl4nted" not in str(refused.value)


def test_variables_are_sent_by_name() -> None:
    assert submit.read_variables(["A", "B"], {"A": "1", "B": "", "C": "3"}) == {"A": "1", "B": ""}
    with pytest.raises(UserError, match="--env D: there is no such variable"):
        submit.read_variables(["D"], {})
    with pytest.raises(UserError, match=r"--env A=\.\.\. gives a value") as refused:
        submit.read_variables(["A=pl4nted"], {"A": "1"})
    assert "pl4nted" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "words", "folder"),
    [
        ("train", ["--config", "a.yaml", "run.name=one"], "/shared/runs/one"),
        ("train", ["run.storage_path=s3://b/runs/", "run.name=one", "--max-steps", "3"], "s3://b/runs/one"),
        ("search", ["--config", "a.yaml", "--space", "rates", "--trials", "3"], "/shared/runs/rates"),
        ("search", ["--config", "a.yaml", "--space", "b/own.yaml", "--algorithm", "pbt"], "/shared/runs/own_pbt"),
        ("search", ["--config", "a.yaml", "--space", "rates", "--name", "mine"], "/shared/runs/mine"),
        ("ablate", ["weights", "--config", "a.yaml", "--seeds", "3"], "/shared/runs/weights"),
        ("report", ["/shared/runs/one"], None),
        ("train", ["--config", "absent.yaml"], None),  # the command says so itself
        ("train", ["no.such.key=1"], None),
    ],
)
def test_where_a_job_leaves_its_results_is_known_before(tmp_path: Path, command: str, words: list[str], folder: str) -> None:
    (tmp_path / "a.yaml").write_text("run: {storage_path: /shared/runs}\n", encoding="utf-8")
    assert find_results(command, words, tmp_path) == folder


def test_options_after_the_command_belong_to_it() -> None:
    args = submit._parse_arguments(["--no-wait", "report", "--help", "--address", "x", "runs/a"])
    assert (args.no_wait, args.address, args.command) == (True, None, "report")
    assert args.arguments == ["--help", "--address", "x", "runs/a"]


def test_runtime_env_adds_the_working_dir(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {A: b}\n", encoding="utf-8")
    folder = {"working_dir": str(tmp_path.resolve())}
    assert submit.read_runtime_env(str(file), str(tmp_path)) == {"env_vars": {"A": "b"}, **folder}
    assert submit.read_runtime_env(None, str(tmp_path)) == folder


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("working_dir: x", "use --working-dir"),
        ("env_vars: {WANDB_API_KEY: x}", "--env WANDB_API_KEY"),
        ("- a", "a mapping"),
        ("a: [", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_runtime_env_mistakes(tmp_path: Path, text: str | None, remedy: str) -> None:
    file = tmp_path / "env.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=remedy):
        submit.read_runtime_env(str(file), str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        submit.read_runtime_env(None, str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_exit_code(status: str, code: int | None, expected: int) -> None:
    details = JobDetails(type="SUBMISSION", entrypoint="x", status=status, driver_exit_code=code)
    assert submit.read_exit_code(details) == expected


def test_only_the_code_is_uploaded(repository: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    kept = {"pipeline/config.py", "pipeline/data/keep.py", "jobs/configs/demo.yaml", "pyproject.toml"}
    left = {
        "data/video.mp4",
        "runs/a/checkpoint/model",
        ".venv/bin/python",
        ".git/HEAD",
        "tests/test_x.py",
        ".mypy_cache/a.json",
        "pipeline/__pycache__/config.pyc",
        "actnetformer.egg-info/PKG-INFO",
    }
    for name in kept | left:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(name, encoding="utf-8")
    shutil.copy(repository / ".rayignore", tmp_path / "project")
    create_package(str(tmp_path / "project"), tmp_path / "project.zip", include_gitignore=False)
    with zipfile.ZipFile(tmp_path / "project.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert names == kept | {".rayignore"}


def test_every_command_can_be_submitted() -> None:
    for name in set(COMMANDS) - set(submit.NOT_SENT):
        assert submit.build_entrypoint(name, []) == f"python -m jobs.{name}"
