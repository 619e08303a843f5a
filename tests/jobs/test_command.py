"""What the options of commands accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from jobs import ablate, search
from jobs.command import USER_ERROR, check_hours, run


def test_hours() -> None:
    for hours in (None, 9.0, 0.5, 1e-3):
        check_hours(hours)


@pytest.mark.parametrize("main", [ablate.main, search.main])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e306"])
def test_a_time_limit_that_is_none_is_refused(
    main: Callable[[Sequence[str] | None], int], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["threshold"] if main is ablate.main else ["--space", "rates", "--trials", "2"]
    assert run(main, [*words, "--config", "none.yaml", "--hours", text]) == USER_ERROR
    error = capsys.readouterr().err
    assert f"error: --hours {float(text):g} must be a number above 0, for example 0.5; without --hours there is no" in error


@pytest.mark.parametrize("option", ["--seeds", "--concurrent"])
def test_a_study_has_one_seed_and_one_trial_at_once_at_least(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ablate.main, ["threshold", "--config", "none.yaml", option, "0"]) == USER_ERROR
    assert "--seeds and --concurrent must be at least 1" in capsys.readouterr().err
