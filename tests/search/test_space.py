"""Search spaces: what is read, what is refused, and draws that stay inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from jobs.search import SPACES
from pipeline.config import load_config, override
from pipeline.errors import UserError
from pipeline.search.pbt import check_space, perturb
from pipeline.search.space import Space, draw, read_space


def space_of(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(f"question: q\nspace:\n{text}", encoding="utf-8")
    return read_space(path, load_config())


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_every_shipped_space_makes_checked_runs(path: Path, chance: float) -> None:
    base = load_config()
    space = read_space(path, base)
    assert space.question.endswith(("?", ")?"))
    params = {key: draw(distribution, chance) for key, distribution in space.distributions.items()}
    override(base.model_dump(mode="json"), space.build_overrides(params), source="test")


def test_kinds_of_ranges(tmp_path: Path) -> None:
    space = space_of(tmp_path, """
  method.contrast.weight: {low: 0, high: 8}
  method.supervised_steps: {low: 0, high: 200, step: 50}
  primary.optimizer.lr: {low: 0.01, high: 1, log: true}
  views.strong.time.warp: [[], [2, 4, 8]]
""")  # fmt: skip
    kinds = {key: type(distribution) for key, distribution in space.distributions.items()}
    assert kinds == {
        "method.contrast.weight": FloatDistribution,  # written as integers, but the knob is none
        "method.supervised_steps": IntDistribution,
        "primary.optimizer.lr": FloatDistribution,
        "views.strong.time.warp": CategoricalDistribution,
    }
    assert space.build_overrides({"views.strong.time.warp": "[2, 4, 8]"}) == ["views.strong.time.warp=[2, 4, 8]"]


def test_all_mistakes_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, """
  method.contrast_wieght: {low: 0, high: 8}
  method.confidence_threshold: {low: 0.5, high: 1.5}
  method.labels.thresholds: [fixed, moving]
  primary.optimizer.lr: {low: 0, high: 1, log: true}
  auxiliary.optimizer.lr: 3
  method.pseudo_label.weight: {low: 2, high: 1}
  views.strong.cutout: [0.5]
""")  # fmt: skip
    text = str(caught.value)
    assert "7 mistakes in space" in text
    for part in (
        "unknown key method.contrast_wieght; did you mean method.contrast.weight?",
        "method.confidence_threshold: Input should be less than or equal to 1, got 1.5",
        "method.labels.thresholds: Input should be 'fixed', 'flexmatch', 'freematch' or 'softmatch', got 'moving'",
        "primary.optimizer.lr:",
        "auxiliary.optimizer.lr: write a list of choices, or {low",
        "method.pseudo_label.weight: low must be below high",
        "views.strong.cutout: write at least two choices",
    ):
        assert part in text


@pytest.mark.parametrize("text", ["space: {}", "question: q\nspace: {}", "question: q\nspaces: {a: [1, 2]}", "[", "3"])
def test_what_is_no_space(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"space\.yaml"):
        read_space(path, load_config())


RANGES = st.sampled_from([
    FloatDistribution(0.01, 0.5, log=True), FloatDistribution(0.5, 0.95, step=0.05), FloatDistribution(-1, 1),
    IntDistribution(1, 64, log=True), IntDistribution(0, 200, step=50), CategoricalDistribution(["a", "b", "c"]),
])  # fmt: skip


@given(distribution=RANGES, chance=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99), step=st.integers(1, 9))
def test_draws_and_perturbed_values_stay_inside(distribution: FloatDistribution, chance: float, seed: int, step: int) -> None:
    value = draw(distribution, chance)
    assert distribution._contains(distribution.to_internal_repr(value))
    changed = perturb({"key": value}, Space("q", {"key": distribution}, {"key": {}}), seed, step, 0)["key"]
    assert distribution._contains(distribution.to_internal_repr(changed))


def test_population_based_training_changes_what_is_marked_for_it() -> None:
    half = FloatDistribution(0.1, 0.5)
    free = ("primary.optimizer.lr", "method.contrast.weight", "method.labels.momentum", "views.strong.cutout")
    check_space(Space("q", dict.fromkeys(free, half), {}))
    for key in ("primary.network.dropout", "method.contrast.projection_width", "method.mix.start", "data.decode_size"):
        message = rf"which {key} cannot; it can search primary\.optimizer\.\*, .*method\.mix\.weight"
        with pytest.raises(UserError, match=message):
            check_space(Space("q", {key: half, "method.mix.weight": half}, {}))
