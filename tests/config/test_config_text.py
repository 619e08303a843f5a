"""The type of a key says what the text behind it means, on the command line and in every YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.report import _parse_baseline
from jobs.submit import read_runtime_env
from pipeline.bench.simulate import Site
from pipeline.config import Config, load_config, parse_config
from pipeline.config.text import format_word, parse_word, parse_yaml
from pipeline.errors import UserError
from pipeline.run_folder.contents import flatten
from pipeline.search.space import read_space
from pipeline.studies.ablation import plan_trials
from pipeline.studies.study_file import read_study


def value_of(key: str, text: str, folder: Path) -> Any:
    """What a word and a YAML file make of a text, which is the same."""
    by_word = flatten(load_config(None, [f"{key}={text}"]).model_dump(mode="json"))[key]
    section, _, name = key.rpartition(".")
    lines = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(section.split(".")))
    path = folder / "c.yaml"
    path.write_text(f"{lines}{'  ' * key.count('.')}{name}: {text}\n", encoding="utf-8")
    assert flatten(load_config(path).model_dump(mode="json"))[key] == by_word
    return by_word


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("run.name", "20261128", "20261128"),
        ("run.name", "2026-11-28", "2026-11-28"),
        ("run.name", "010", "010"),
        ("run.name", "1e3", "1e3"),
        ("run.name", "on", "on"),
        ("run.name", "null", "null"),
        ("run.name", '"20261128"', "20261128"),
        ("data.manifest", "12:30", "12:30"),
        ("data.root", "1_000", "1_000"),
        ("data.root", "none", None),
        ("data.root", "NULL", None),
        ("data.root", "", None),
        ("data.root", '"none"', "none"),
        ("train.steps", "100", 100),
        ("train.steps", "20_000", 20000),
        ("train.steps", "1e3", 1000),
        ("train.steps", "+7", 7),
        ("train.milestones", "[]", []),
        ("primary.optimizer.lr", "1e-3", 0.001),
        ("primary.optimizer.lr", ".5", 0.5),
        ("primary.optimizer.lr", "2", 2.0),
        ("auxiliary.optimizer.clip_gradient_norm", "none", None),
        ("auxiliary.optimizer.nesterov", "on", True),
        ("scale.gpu", "Yes", True),
        ("scale.gpu", "off", False),
        ("scale.gpu", "null", None),
        ("method.labels.distribution_alignment", "off", "off"),
        ("primary.network.depth", "18", 18),
        ("views.strong.time.warp", "[2, 4, 8]", [2, 4, 8]),
        ("views.strong.without", "[on, 010]", ["on", "010"]),
    ],
)
def test_a_text_is_what_its_key_wants(tmp_path: Path, key: str, text: str, value: object) -> None:
    assert value_of(key, text, tmp_path) == value


REFUSED = [
    ("train.steps", "010", "write the number without leading zeros, got '010'"),
    ("train.steps", "0x10", "write a number in decimal digits"),
    ("train.steps", "1:30", "write a number in decimal digits"),
    ("train.steps", "0.5", "write a whole number, got '0.5'"),
    ("train.steps", "on", "write a number in decimal digits, for example 100, 0.5 or 1e-3, got 'on'"),
    ("train.steps", "null", "write a number"),
    ("train.steps", '"010"', "write the number without leading zeros"),
    ("train.steps", "2026-11-28", "write a number"),
    ("primary.optimizer.lr", "on", "write a number"),
    ("primary.optimizer.lr", "00.1", "write the number without leading zeros"),
    ("primary.optimizer.lr", "inf", "write a number"),
    ("primary.optimizer.lr", "1e999", "write a number"),
    ("auxiliary.optimizer.nesterov", "1", "write true or false, got '1'"),
    ("auxiliary.optimizer.nesterov", "maybe", "write true or false"),
    ("primary.network.depth", "018", "Input should be 10, 14, 18"),
    ("views.strong.time.warp", "[2, 04]", "write the number without leading zeros"),
    ("train", "5", "Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("key", "text", "message"), REFUSED, ids=[f"{key}={text}" for key, text, _ in REFUSED])
def test_a_text_that_its_key_cannot_be_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{key}={text}"])
    assert f"{key}: {message}" in str(caught.value)


def test_values_of_python_are_not_taken_for_others() -> None:
    for tree in ({"primary": {"optimizer": {"lr": True}}}, {"train": {"steps": True}}, {"evaluation": {"crops": True}},
                 {"primary": {"optimizer": {"lr": float("inf")}}}):  # fmt: skip
        with pytest.raises(UserError, match="1 mistake in"):
            parse_config(tree)


def test_refused_texts_are_listed_with_all_other_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {steps: 010, warmup_steps: -1}\nscale: {gpu: perhaps}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(path, ["trian.steps=3", "run.name=a/b"])
    text = str(caught.value)
    assert "5 mistakes" in text
    for part in ("train.steps: write", "train.warmup_steps: Input", "scale.gpu: write true", "did you mean train", "run.name:"):
        assert part in text


def test_a_path_is_taken_as_it_is_written() -> None:
    for path in ("/videos #2", "a: b", "@home", "*.x", "C:\\data", "s3://bucket/x?y=1", "-", "> x"):
        assert load_config(None, [f"data.root={path}"]).data.root == path
    assert load_config(None, ["data.root='[old] videos'"]).data.root == "[old] videos"
    with pytest.raises(UserError, match=r'a text that begins with a quote, \[ or \{ needs quotes: data.root="\[old\] videos"'):
        load_config(None, ["data.root=[old] videos"])


TEXTS = ["010", "on", "none", "[x", "it's", '"q', " spaces ", "naïve", "😀", ""]


@pytest.mark.parametrize("value", [*TEXTS, None, True, 3, 0.1, [1, 2]])
def test_a_written_value_is_read_back(value: Any) -> None:
    word = parse_word(format_word(value))
    assert word == value or value is None or not isinstance(value, str)
    if value is None or isinstance(value, str):
        assert load_config(None, [f"data.root={format_word(value)}"]).data.root == value


@pytest.mark.parametrize("words", [[], ["run.name=010", "data.root=none", "scale.decode_labels={role: on}"]])
def test_a_written_configuration_is_read_back(tmp_path: Path, words: list[str]) -> None:
    config = load_config(None, words)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    assert load_config(path) == config
    words = [f"{key}={format_word(value)}" for key, value in flatten(config.model_dump(mode="json")).items()]
    assert load_config(None, [word for word in words if "_labels" not in word]).run == config.run


def test_a_key_given_twice_is_refused_and_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {steps: 3, log_every: 1, steps: 5}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.yaml cannot be read(.|\n)*'steps' is there twice(.|\n)*line 1"):
        load_config(path)
    path.write_bytes("run: {name: é}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"c\.yaml cannot be read"):
        load_config(path)
    assert parse_yaml("base: &b {a: 1}\nx: {<<: *b, a: 2}")["x"] == {"a": "2"}  # a merge key's are replaced, as meant


def test_cells_of_a_study_are_values_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "question: q\ngrid:\n  primary.optimizer.lr: [1e-3, 2]\n  auxiliary.optimizer.nesterov: [on, off]\n", encoding="utf-8"
    )
    study = read_study(path)
    assert sorted(study.cells) == [f"lr-{rate}_nesterov-{truth}" for rate in ("0.001", "2") for truth in (False, True)]
    rates = {trial.config.primary.optimizer.lr for trial in plan_trials(study, Config(), 1)}
    assert rates == {0.001, 2.0}
    path.write_text("question: q\ncases:\n  off: {train.steps: 010}\n  1: {run.seed: 1e1}\n", encoding="utf-8")
    study = read_study(path)
    assert study.cells["1"] == {"run.seed": 10}
    with pytest.raises(UserError, match=r"off.*(.|\n)*train.steps: write the number without leading zeros, got '010'"):
        plan_trials(study, Config(), 1)


def test_spaces_have_values_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    begin = "question: q\nspace:\n"
    text = "  primary.optimizer.lr: {low: 1e-3, high: 1e-1, log: on}\n  scale.gpu: [yes, none]\n"
    path.write_text(begin + text, encoding="utf-8")
    space = read_space(path, Config())
    assert dict(space.tree) == {"primary.optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}, "scale.gpu": [True, None]}
    assert space.build_overrides({"scale.gpu": True}) == ["scale.gpu=true"]
    text = "  train.steps: {low: 010, high: 20}\n  run.seed: {low: 1, high: 9, log: sometimes}\n"
    path.write_text(begin + text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_space(path, Config())
    assert "train.steps: low, high and step must be numbers" in str(caught.value)
    assert "run.seed: log must be true or false" in str(caught.value)


def test_other_commands_read_texts_alike(tmp_path: Path) -> None:
    assert _parse_baseline(["run.name=010", "method.contrast.weight=2", "scale.gpu=off"]) == {
        "run.name": "010", "method.contrast.weight": 2, "scale.gpu": False,
    }  # fmt: skip
    env = tmp_path / "env.yaml"
    text = "env_vars: {NUMBER: 010, FLAG: on, EMPTY: }\npip: [a]\nconfig: {setup_timeout_seconds: 60}\n"
    env.write_text(text, encoding="utf-8")
    read = read_runtime_env(str(env), str(tmp_path))
    assert read["env_vars"] == {"NUMBER": "010", "FLAG": "on", "EMPTY": ""}
    assert (read["pip"], read["config"]) == (["a"], {"setup_timeout_seconds": 60})
    assert Site.parse(["workers=16", "decode_seconds=1e-1"]).workers == 16
    for word in ("workers=2.5", "workers=016", "videos=inf", "videos=nan"):
        with pytest.raises(UserError, match="is not a number of this kind"):
            Site.parse([word])
