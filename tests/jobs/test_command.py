"""What the options of commands accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from jobs import ablate, search
from jobs.command import USER_ERROR, hours, run


def test_hours() -> None:
    assert (hours("9"), hours("0.5"), hours("1e-3")) == (9.0, 0.5, 0.001)


@pytest.mark.parametrize("main", [ablate.main, search.main])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e306", "9h"])
def test_a_time_limit_that_is_none_is_refused(
    main: Callable[[Sequence[str] | None], int], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold"] if main is ablate.main else ["--space", "rates", "--trials", "2"]
    with pytest.raises(SystemExit) as ended:
        run(main, [*words, "--config", "none.yaml", "--hours", text])
    assert ended.value.code == USER_ERROR
    assert f"argument --hours: {text!r} is no number of hours above 0; write for example 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--concurrent"])
def test_a_study_has_one_seed_and_one_trial_at_once_at_least(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(ablate.main, ["threshold", "--config", "none.yaml", option, "0"])
    assert f"argument {option}: '0' is no positive number" in capsys.readouterr().err
