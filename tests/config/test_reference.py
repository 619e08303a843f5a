"""docs/configuration.md: the reference of all knobs is what the code declares, and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config import Config, list_keys
from pipeline.config.reference import (
    build_page,
    describe_range,
    describe_type,
    find_unit,
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
    """Several losses are of one kind of section, whose text says nothing of a single one."""
    text = " ".join(build_page().split())
    assert "## `method.pseudo_label` Lu, the loss of pseudo-labels; its weight is gamma (paper: 2)." in text
    assert "## `method.group_contrast` TCL's contrast between mean predictions" in text
    assert "## `method.alignment` LTG's 1 - cosine" in text
    assert "``" not in text and "None:" not in text


def test_a_section_names_the_packages_that_use_it() -> None:
    text = " ".join(build_page().split())
    losses = ("method.contrast", "method.pseudo_label", "method.mix", "method.labels")
    for path, users in {**dict.fromkeys(losses, "methods"), "primary.optimizer": "training"}.items():
        section = text[text.index(f"## `{path}`") :]
        assert section[section.index("Used by ") :].startswith(f"Used by {users}. "), path


def test_marks_reach_the_keys_below_a_marked_section() -> None:
    marks = {knob.key: knob.marks for knob in list_knobs()}
    assert "same_weights" in marks["scale.workers"] and "same_weights" in marks["train.log_every"]
    assert "mid_run" in marks["primary.optimizer.lr"] and "same_weights" not in marks["train.steps"]
    aside = {key for key, found in marks.items() if "same_weights" in found}
    kept = Config().collect_result_knobs()
    assert not aside & flatten(kept).keys()
