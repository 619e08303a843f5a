"""Passwords in URLs."""

from __future__ import annotations

import sys

import pytest

from pipeline.files.lock_holder import get_command_line
from pipeline.files.url_passwords import has_password, hide_passwords


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql+psycopg://ada:pl4nted@db/x", "postgresql+psycopg://ada:***@db/x"),
        ("a --storage 'http://ada:p:q@db' b https://u:v@w", "a --storage 'http://ada:***@db' b https://u:***@w"),
        ("tracking.mlflow=http://:pl4nted@host", "tracking.mlflow=http://:***@host"),
    ],
)
def test_a_password_is_hidden(text: str, hidden: str) -> None:
    assert has_password(text)
    assert hide_passwords(text) == hidden
    assert not has_password(hidden)


@pytest.mark.parametrize("text", ["s3://bucket/a@b", "http://host:8265/x", "http://ada@host:80/", "time 10:20 a@b", "C://a"])
def test_what_has_none_is_left_as_it_is(text: str) -> None:
    assert not has_password(text)
    assert hide_passwords(text) == text


def test_the_command_that_locks_and_studies_record_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jobs.search", "--storage", "postgresql://ada:pl4nted@db/x"])
    assert get_command_line() == "python -m jobs.search --storage postgresql://ada:***@db/x"
