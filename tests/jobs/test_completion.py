"""The Tab key completes commands, options, choices and keys: a real bash reads the file that the command writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs import completion
from jobs.__main__ import COMMANDS
from jobs.command import DONE, run

COMPLETE = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}  # of the running completion, of which there is none here
_shtab_actnetformer
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "actnetformer"
    path.write_text(completion.write_completion("bash"), encoding="utf-8")
    return path


def complete(script: Path, words: str, folder: Path) -> list[str]:
    """What bash offers for the last of the words."""
    code = COMPLETE.format(script=script, words=words)
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.timeout(400)
def test_bash_completes_commands_options_choices_keys_and_files(script: Path, tmp_path: Path) -> None:
    (tmp_path / "train_mine.yaml").touch()
    assert complete(script, "actnetformer tr", tmp_path) == ["train"]
    assert set(complete(script, "actnetformer ''", tmp_path)) >= COMMANDS.keys()
    assert complete(script, "actnetformer train --dry", tmp_path) == ["--dry-run"]
    assert complete(script, "actnetformer train train.steps", tmp_path) == ["train.steps="]
    assert complete(script, "actnetformer train train", tmp_path)[-1] == "train_mine.yaml"
    assert complete(script, "actnetformer train --config train_", tmp_path) == ["train_mine.yaml"]
    assert "synthetic" in complete(script, "actnetformer prepare ''", tmp_path)
    assert complete(script, "actnetformer search --algorithm t", tmp_path) == ["tpe"]


def test_zsh_gets_a_file_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """There may be no zsh here that could read it."""
    assert run(completion.main, ["zsh"]) == DONE
    written = capsys.readouterr().out
    assert written.startswith("#compdef actnetformer") and "train.steps" in written and "--dry-run" in written


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(completion.main, ["fish"])
    assert "choose from" in capsys.readouterr().err
