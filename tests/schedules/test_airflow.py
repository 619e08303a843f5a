"""The DAG of docs/howto/every_night.md, with what Airflow documents in Airflow's place: it is no dependency of this project."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import search, submit


class Recorded:
    """Stands in for a class of Airflow, and records what it is given."""

    made: list[Recorded]

    def __init__(self, *words: Any, **options: Any) -> None:
        self.words, self.options = words, options
        type(self).made.append(self)

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_the_dag_submits_a_search_that_ends_before_its_task(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "howto" / "every_night.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    dag, operator = type("DAG", (Recorded,), {"made": []}), type("BashOperator", (Recorded,), {"made": []})
    for name, more in {
        "airflow": {}, "airflow.sdk": {"DAG": dag}, "airflow.providers": {}, "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {}, "airflow.providers.standard.operators.bash": {"BashOperator": operator},
    }.items():  # fmt: skip
        module = ModuleType(name)
        vars(module).update(more)
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, "dag.py", "exec"), {})
    (made,), (task,) = dag.made, operator.made
    assert made.options["max_active_runs"] == 1 and made.options["catchup"] is False
    python, dash, command, *words = shlex.split(task.options["bash_command"])
    assert (python, dash, command) == ("python", "-m", "jobs.submit")
    sent = submit._parse_arguments(words)
    assert sent.command == "search"
    options = search.build_parser(["rates"]).parse_intermixed_args(sent.arguments)
    assert 3600 * options.hours < task.options["execution_timeout"].total_seconds()
