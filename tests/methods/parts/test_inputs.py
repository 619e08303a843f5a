from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.views import derive_view_seeds, make_strong_views, make_weak_views
from pipeline.config import Config, ContrastSection, MethodSection, parse_config
from pipeline.methods import METHODS, LossWeights, compute_loss_weights, find_first_unlabeled_step, make_views


def _config() -> Config:
    clip = {"frames": 2, "size": 8}
    return parse_config({"data": {"decode_size": 16}, "primary": {"clip": clip}, "auxiliary": {
        "clip": {**clip, "size": 16, "frames": 4}, "network": {"patch": 8}}})  # fmt: skip


def _batch(rows: int = 2, slots: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def clips(frames: int) -> torch.Tensor:
        return torch.randint(0, 256, (rows, slots, frames, 16, 16, 3), generator=generator, dtype=torch.uint8)

    numbers = torch.arange(rows * slots).view(rows, slots)
    return Batch(torch.arange(40, 40 + rows), numbers, numbers % 5, clips(2), clips(4))


def test_weights_wait_for_the_supervised_steps_and_then_rise() -> None:
    section = MethodSection(supervised_steps=3, ramp_steps=3, contrast=ContrastSection(weight=4.0))
    gammas = [compute_loss_weights(section, step).pseudo_label for step in range(8)]
    assert gammas == [0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [compute_loss_weights(section, step).contrast for step in range(8)] == [2 * gamma for gamma in gammas]


def test_weights_without_warm_up_are_the_papers_from_the_first_step() -> None:
    assert compute_loss_weights(MethodSection(), 0) == LossWeights(pseudo_label=2.0, contrast=2.0)


def test_the_supervised_term_has_them_too_and_does_not_wait() -> None:
    section = MethodSection.model_validate({
        "supervised_steps": 5, "ramp_steps": 5, "supervised": {"weight": 3.0, "start": 2, "ramp": 2},
    })  # fmt: skip
    assert [compute_loss_weights(section, step).supervised for step in range(6)] == pytest.approx([0, 0, 1, 2, 3, 3])
    assert {compute_loss_weights(MethodSection(supervised_steps=5), step).supervised for step in range(6)} == {1.0}
    assert not compute_loss_weights(MethodSection(name="supervised"), 0).has_unlabeled


def test_each_term_has_a_start_and_a_ramp_of_its_own() -> None:
    section = MethodSection.model_validate({
        "name": "tcl", "supervised_steps": 2, "ramp_steps": 1,
        "contrast": {"weight": 4.0, "ramp": 3}, "pseudo_label": {"weight": 3.0, "start": 3}})  # fmt: skip
    weights = [compute_loss_weights(section, step) for step in range(8)]
    assert [weight.contrast for weight in weights] == [0, 0, 1, 2, 3, 4, 4, 4]
    assert [weight.group_contrast for weight in weights] == [0, 0, 0.5, 1, 1, 1, 1, 1]
    assert [weight.pseudo_label for weight in weights] == [0, 0, 0, 0, 0, 1.5, 3, 3]
    assert all(weight.mix == weight.alignment == 0 for weight in weights)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("section", [
    {}, {"supervised_steps": 3, "ramp_steps": 4},
    {"supervised_steps": 2, "pseudo_label": {"start": 3}, "contrast": {"start": 1}},
    {"pseudo_label": {"start": 3}, "contrast": {"weight": 0}}, {"pseudo_label": {"weight": 0}, "contrast": {"weight": 0}},
    {"supervised_steps": 20}, {"supervised": {"start": 5}, "mix": {"start": 2}, "pseudo_label": {"start": 4}},
])  # fmt: skip
def test_the_first_unlabeled_step_is_the_first_whose_weights_use_them(name: str, section: dict[str, Any]) -> None:
    config = parse_config({"train": {"steps": 8}, "method": {"name": name, **section}})
    used = [compute_loss_weights(config.method, step).has_unlabeled for step in range(8)]
    assert find_first_unlabeled_step(config) == ([*used, True].index(True))


def test_unlabeled_videos_do_not_count_at_weight_zero_and_when_supervised() -> None:
    assert not compute_loss_weights(MethodSection(name="supervised"), 100).has_unlabeled
    none = MethodSection.model_validate({"pseudo_label": {"weight": 0}, "contrast": {"weight": 0}})
    assert not compute_loss_weights(none, 100).has_unlabeled
    assert compute_loss_weights(MethodSection.model_validate({"pseudo_label": {"weight": 0}}), 100).has_unlabeled


def test_views_have_each_students_shape() -> None:
    views = make_views(_batch(), _config(), 0, "cpu")
    assert views.unlabeled is not None
    assert views.labeled["primary"].shape == (2, 3, 2, 8, 8)
    assert views.labeled["auxiliary"].shape == (2, 3, 4, 16, 16)
    for kind in (views.unlabeled.weak, views.unlabeled.strong):
        assert kind["primary"].shape == (4, 3, 2, 8, 8)
        assert kind["auxiliary"].shape == (4, 3, 4, 16, 16)


def test_slot_0_is_labeled_and_the_others_keep_their_labels_hidden() -> None:
    views = make_views(_batch(), _config(), 0, "cpu")
    assert views.labels.tolist() == [0, 3]
    assert views.unlabeled is not None
    assert views.unlabeled.hidden_labels.tolist() == [1, 2, 4, 0]


@pytest.mark.parametrize("slots", [1, 3])
def test_no_unlabeled_views_where_none_are_wanted_or_there(slots: int) -> None:
    views = make_views(_batch(slots=slots), _config(), 0, "cpu", unlabeled=slots == 1)
    assert views.unlabeled is None


def test_a_steps_views_do_not_depend_on_how_many_clips_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    together = make_views(_batch(), _config(), 9, "cpu")
    monkeypatch.setattr("pipeline.clips.views.CACHE_BYTES", 1)
    alone = make_views(_batch(), _config(), 9, "cpu")
    assert alone.unlabeled is not None and together.unlabeled is not None
    kinds = [(alone.labeled, together.labeled), (alone.unlabeled.weak, together.unlabeled.weak)]
    for one, other in [*kinds, (alone.unlabeled.strong, together.unlabeled.strong)]:
        assert one.keys() == other.keys() and all(torch.equal(one[student], other[student]) for student in one)


def test_each_view_is_seeded_by_run_row_slot_student_and_kind() -> None:
    batch, config = _batch(), _config()
    views = make_views(batch, config, 9, "cpu")
    assert views.unlabeled is not None
    clip = batch.auxiliary[1, 2][None]
    weak = make_weak_views(clip, derive_view_seeds(9, [41], [2], "auxiliary/weak"), config.views, 16)
    strong = make_strong_views(clip, derive_view_seeds(9, [41], [2], "auxiliary/strong"), config.views, 16)
    assert torch.equal(views.unlabeled.weak["auxiliary"][3], weak[0])
    assert torch.equal(views.unlabeled.strong["auxiliary"][3], strong[0])


def test_views_do_not_depend_on_the_number_of_workers() -> None:
    whole, config = _batch(), _config()
    share = Batch(whole.rows[1:], whole.videos[1:], whole.labels[1:], whole.primary[1:], whole.auxiliary[1:])
    all_views, views = make_views(whole, config, 0, "cpu"), make_views(share, config, 0, "cpu")
    assert all_views.unlabeled is not None and views.unlabeled is not None
    assert torch.equal(all_views.unlabeled.strong["primary"][2:], views.unlabeled.strong["primary"])
    assert torch.equal(all_views.labeled["primary"][1:], views.labeled["primary"])
