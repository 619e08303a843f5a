"""docs/configuration.md: the reference of all knobs is what the code declares, and complete."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from pipeline.config import Config, list_keys
from pipeline.config.knob_readers import KnobReads, list_classes
from pipeline.config.reference import (
    build_page,
    describe_range,
    describe_type,
    find_unit,
    find_users,
    list_knobs,
    main,
)
from pipeline.config.section import Section, Share, Steps
from pipeline.run_folder.contents import flatten


def test_the_page_is_current(repository: Path, tmp_path: Path) -> None:
    """Where it is not: python -m pipeline.config.reference docs/configuration.md"""
    assert main([str(tmp_path / "configuration.md")]) == 0
    written = (tmp_path / "configuration.md").read_text(encoding="utf-8")
    assert (repository / "docs" / "configuration.md").read_text(encoding="utf-8") == written == build_page()
    assert main([]) == 2


def test_it_has_every_knob_once_for_each_section() -> None:
    assert set(list_keys()) == {knob.key for knob in list_knobs()}
    text = build_page()
    for knob in list_knobs():
        if not knob.key.endswith(".arch") and not knob.key.startswith("auxiliary.network."):
            assert f"- `{knob.key.rpartition('.')[2]}`" in text


def test_facts_of_a_field_are_told_in_words() -> None:
    class Shown(Section):
        share: Share = Field(0.5, gt=0, le=1)
        steps: Steps | None = Field(None, ge=1)
        kinds: tuple[Literal["a", "b"], ...] = ("a",)
        names: dict[str, str] = Field(default_factory=dict)

    fields = Shown.model_fields
    assert [describe_type(field.annotation) for field in fields.values()] == [
        "number", "whole number or null", "list of one of `a`, `b`", "mapping of text to text"]  # fmt: skip
    assert [find_unit(field) for field in fields.values()] == ["share of 1", "optimizer steps", "", ""]
    assert [describe_range(field) for field in fields.values()] == ["(0, 1]", "[1, ∞)", "", ""]


def test_a_loss_says_what_it_is_and_where_its_weight_is_from() -> None:
    text = " ".join(build_page().split())
    start = text.index("## `method.pseudo_label` Lu, the loss of pseudo-labels")
    weight = "- `weight`‡ *number; default `2`; range [0, ∞); source: paper; used by methods.* gamma, the factor of the loss"
    assert weight in text[start : start + 300]
    assert "## `method.group_contrast` TCL's contrast between mean predictions" in text
    assert "## `method.alignment` LTG's 1 - cosine" in text
    assert "``" not in text and "None:" not in text


def test_every_knob_names_its_source() -> None:
    sources = {knob.key: knob.source for knob in list_knobs()}
    assert sources["method.confidence_threshold"] == sources["method.contrast.weight"] == "paper"
    assert sources["method.contrast.temperature"] == "TCL" and sources["method.labels.ema_decay"] == "SVFormer"
    assert sources["scale.workers"] == sources["primary.clip.fps"] == "choice"
    assert build_page().count("source: ") == build_page().count("\n- `")


def test_every_knob_is_read_and_names_who_reads_it() -> None:
    """A knob without a reader would do nothing, unless code goes over all fields of its section."""
    readers = {knob.key: find_users(knob) for knob in list_knobs()}
    chosen_by_pydantic = {key for key in readers if key.endswith(".arch")}
    assert {key for key, packages in readers.items() if not packages} <= chosen_by_pydantic
    assert readers["method.labels.source"] == readers["method.mix.ramp"] == ["methods"]
    assert readers["primary.optimizer.lr"] == readers["auxiliary.optimizer.lr"] == ["training"]
    assert readers["data.video_timeout_seconds"] == ["clips"] and readers["tracking.wandb"] == ["training"]


def read_fields(code: str) -> set[tuple[str, str]]:
    """Lists the fields that a file with this code would read."""
    classes = dict(list_classes())
    attributes = {"config": classes["Config"]}
    results = {"load": classes["Config"]}
    return {(kind.__name__, name) for kind, name in KnobReads(classes, attributes, results).list_fields(ast.parse(code))}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(labels: LabelSection):\n    return labels.hard", {("LabelSection", "hard")}),
        ("def f(labels: object):\n    return labels.hard", set()),
        ("def f(run):\n    return run.config.run.seed", {("Config", "run"), ("RunSection", "seed")}),
        ("labels = load('a.yaml').method.labels\nprint(labels.hard)", {("Config", "method"), ("MethodSection", "labels"),
         ("LabelSection", "hard")}),
        ("for part in (load().run, load().data):\n    part.seed", {("Config", "run"), ("Config", "data"),
         ("RunSection", "seed")}),
        ("def f(terms: list[MixSection]):\n    return [term.patch for term in terms]", {("MixSection", "patch")}),
        ("def f(config: Config, name):\n    return getattr(config, name).clip.size", {("PrimarySection", "clip"),
         ("AuxiliarySection", "clip"), ("ClipSection", "size")}),
        ("class A:\n    def g(self):\n        return self.mix.patch\n    def f(self, mix: MixSection):\n        self.mix = mix",
         set()),  # a second reading knows the attribute; see find_readers
    ],
)  # fmt: skip
def test_what_holds_a_section_is_known_from_written_types(code: str, found: set[tuple[str, str]]) -> None:
    assert read_fields(code) == found


def test_marks_reach_the_keys_below_a_marked_section() -> None:
    marks = {knob.key: knob.marks for knob in list_knobs()}
    assert "same_weights" in marks["scale.workers"] and "same_weights" in marks["train.log_every"]
    assert "mid_run" in marks["primary.optimizer.lr"] and "same_weights" not in marks["train.steps"]
    aside = {key for key, found in marks.items() if "same_weights" in found}
    kept = Config().collect_result_knobs()
    assert not aside & flatten(kept).keys()
