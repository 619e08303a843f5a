"""What imports make is not searched for garbage, and everything else is, as before."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.processes.garbage import exempt_imports
from pipeline.processes.isolation import ChildProcess, ProcessLimits

TELL = """
import atexit, gc
atexit.register(lambda: print(f"searches: {gc.isenabled()}, exempt: {gc.get_freeze_count()}"))  # the first, so it runs last
"""


def test_nothing_is_searched_during_imports_and_what_they_made_never() -> None:
    before = gc.get_freeze_count()
    with exempt_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(made)
    assert not any(each is made for each in gc.get_objects())  # of generations that are searched
    later: list[object] = []
    later.append(later)  # a cycle: only the search can free it
    del later
    assert gc.collect() > 0


def test_an_import_that_fails_and_a_search_that_was_off_change_nothing_for_later() -> None:
    with pytest.raises(ImportError), exempt_imports():
        raise ImportError("broken")
    assert gc.isenabled()
    gc.disable()
    try:
        with exempt_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_child_processes_search_what_comes_after_the_imports_of_their_function() -> None:
    for function, fits in ((gc.isenabled, bool), (gc.get_freeze_count, lambda count: count > 10_000)):
        child = ChildProcess(function, ProcessLimits(30.0))
        try:
            assert fits(child.call())
        finally:
            child.stop()


INSTALLED = "import sys; from jobs.__main__ import main; sys.exit(main())"  # the script that pip makes
COMMANDS = [["-m", "jobs.inspect", "--help"], ["-m", "jobs", "inspect", "--help"], ["-c", INSTALLED, "inspect", "--help"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_search_what_comes_after_their_imports(command: list[str], tmp_path: Path, repository: Path) -> None:
    searches, exempt = _tell(command, tmp_path, repository)
    assert searches == "searches: True" and int(exempt.removeprefix("exempt: ")) > 10_000


def test_a_program_that_imports_a_command_is_searched_as_if_it_did_not(tmp_path: Path, repository: Path) -> None:
    assert _tell(["-c", "import jobs.runs"], tmp_path, repository) == ["searches: True", "exempt: 0"]


def _tell(command: list[str], folder: Path, repository: Path) -> list[str]:
    """Runs Python with these words; returns whether it searched at its end, and how many objects were exempt."""
    (folder / "sitecustomize.py").write_text(TELL)
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{repository}", "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split(", ")
