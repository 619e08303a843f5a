from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import Config, parse_config
from pipeline.errors import UserError
from pipeline.methods import LossWeights, UnlabeledViews, Views, build_method
from pipeline.methods.parts.inputs import Output, Step
from pipeline.methods.parts.losses import (
    compute_contrast_loss,
    compute_group_contrast_loss,
    compute_pseudo_label_loss,
    compute_supervised_loss,
)
from pipeline.methods.parts.monitors import compute_direction_monitors, compute_student_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabel
from pipeline.methods.parts.terms import compute_pseudo_label_losses
from pipeline.methods.svformer import mix_tubes

FULL = LossWeights(pseudo_label=2.0, contrast=2.0)


def _config(norm: str = "group", **method: Any) -> Config:
    clip = {"frames": 2, "size": 16}
    return parse_config({
        "data": {"decode_size": 16},
        "primary": {"network": {"depth": 10, "width": 8, "norm": norm}, "clip": clip},
        "auxiliary": {"network": {"width": 16, "depth": 2, "heads": 2, "patch": 8}, "clip": clip},
        "method": {"confidence_threshold": 0.0, **method},
    })  # fmt: skip


def _method(norm: str = "group", **method: Any) -> nn.Module:
    """Weights that start at 0 are drawn, so that every path carries gradient."""
    torch.manual_seed(0)
    built = build_method(_config(norm, **method), 5)
    for name, parameter in built.named_parameters():
        if name.endswith("weight") and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1)
        elif name.endswith("head.weight"):
            nn.init.normal_(parameter, std=0.1)
    return built


def _views(labeled: int = 3, unlabeled: int = 6, size: int = 16, frames: int = 2) -> Views:
    generator = torch.Generator().manual_seed(1)

    def clips(number: int) -> dict[str, torch.Tensor]:
        return {name: torch.randn(number, 3, frames, size, size, generator=generator) for name in ("primary", "auxiliary")}

    numbers = torch.arange(unlabeled)
    labels = torch.arange(labeled) % 5
    return Views(clips(labeled), labels, UnlabeledViews(clips(unlabeled), clips(unlabeled), numbers % 5, numbers))


def _unlabeled(views: Views) -> UnlabeledViews:
    assert views.unlabeled is not None
    return views.unlabeled


def _without_gradient(method: nn.Module) -> list[str]:
    return [name for name, parameter in method.named_parameters() if parameter.grad is None or not parameter.grad.any()]


def _gradient(loss: torch.Tensor, student: nn.Module) -> float:
    found = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(part.abs().sum()) for part in found if part is not None)


@pytest.mark.parametrize("batch_norm", ["separate", "joint"])
def test_the_loss_is_the_weighted_sum_of_its_parts(batch_norm: str) -> None:
    results = _method(batch_norm=batch_norm)(_views(), LossWeights(pseudo_label=0.5, contrast=3.0))
    supervised = results["supervised_loss/primary"] + results["supervised_loss/auxiliary"]
    pseudo_label = results["pseudo_label_loss/primary"] + results["pseudo_label_loss/auxiliary"]
    assert torch.allclose(results["loss"], supervised + 0.5 * pseudo_label + 3.0 * results["contrast_loss"])
    assert pseudo_label > 0
    assert [name for name, value in results.items() if value.requires_grad] == ["loss"]
    counted = ("scores/", "confidence/", "kept_classes/")
    assert all(value.ndim == 0 for key, value in results.items() if not key.startswith(counted))


@pytest.mark.parametrize("batch_norm", ["separate", "joint"])
def test_parts_equal_their_definition(batch_norm: str) -> None:
    method, views = _method(batch_norm=batch_norm), _views()
    weak = {name: method.students[name](_unlabeled(views).weak[name])[0] for name in method.students}
    threshold = float(torch.cat(list(weak.values())).softmax(1).amax(1).detach().median())
    method = _method(batch_norm=batch_norm, confidence_threshold=threshold + 1e-4)
    results = method(views, FULL)
    assert 0 < results["mask_rate/primary_to_auxiliary"] + results["mask_rate/auxiliary_to_primary"] < 2
    for teacher, learner in (("primary", "auxiliary"), ("auxiliary", "primary")):
        confidence, labels = weak[teacher].detach().softmax(1).max(1)
        keep = confidence >= threshold + 1e-4
        wanted = compute_pseudo_label_loss(method.students[learner](_unlabeled(views).strong[learner])[0], labels, keep)
        assert torch.allclose(results[f"pseudo_label_loss/{learner}"], wanted, atol=1e-5)
        assert results[f"mask_rate/{teacher}_to_{learner}"] == keep.float().mean()
    wanted = compute_contrast_loss(weak["primary"].softmax(1), weak["auxiliary"].softmax(1), 0.5)
    assert torch.allclose(results["contrast_loss"], wanted, atol=1e-5)


def _far_apart(method: nn.Module) -> nn.Module:
    """Predictions sharp enough that two ways to average them differ."""
    for student in method.students.values():
        nn.init.normal_(student.head.weight, generator=torch.Generator().manual_seed(2))
    return method


@torch.no_grad()
def test_mean_labels_are_the_softmax_of_mean_logits() -> None:
    method, views = _far_apart(_method(labels={"source": "mean", "hard": False})), _views()
    weak = [method.students[name](_unlabeled(views).weak[name])[0] for name in method.students]
    for name, student in method.students.items():
        losses = [
            compute_pseudo_label_loss(student(_unlabeled(views).strong[name])[0], targets, torch.ones(6))
            for targets in (((weak[0] + weak[1]) / 2).softmax(1), (weak[0].softmax(1) + weak[1].softmax(1)) / 2)
        ]
        assert not torch.allclose(*losses, rtol=1e-3)
        assert torch.allclose(method(views, FULL)[f"pseudo_label_loss/{name}"], losses[0], rtol=1e-5)


@torch.no_grad()
def test_svformers_targets_are_mixed_as_its_clips_are() -> None:
    """Each clip's share of its own probabilities, by the teacher, the rest of those of the clip before it."""
    method, views = _far_apart(_method(name="svformer", mix={"patch": 4})), _views()
    torch.manual_seed(3)
    results = method(views, FULL)
    torch.manual_seed(3)
    for name, student in method.students.items():
        said = method.labels.teachers[name](_unlabeled(views).weak[name])[0].softmax(1)
        clips, shares = mix_tubes(_unlabeled(views).strong[name], 4, 10.0)
        squares = [
            (student(clips[i : i + 1])[0].softmax(1)[0] - shares[i] * said[i] - (1 - shares[i]) * said[i - 1]).square().sum()
            for i in range(6)
        ]
        assert torch.allclose(results[f"mix_loss/{name}"], torch.stack(squares).mean(), rtol=1e-4)


@torch.no_grad()
def test_tcls_slow_clip_is_every_second_frame_of_the_fast_one() -> None:
    method, views = _far_apart(_method(name="tcl")), _views(frames=4)
    results = method(views, FULL)
    for name, student in method.students.items():
        fast, slow = (student(_unlabeled(views).weak[name][:, :, frames])[0].softmax(1) for frames in ([0, 1, 2, 3], [0, 2]))
        assert torch.allclose(results[f"contrast_loss/{name}"], compute_contrast_loss(fast, slow, 0.5), rtol=1e-4)
        assert torch.allclose(results[f"group_contrast_loss/{name}"], compute_group_contrast_loss(fast, slow, 0.5), rtol=1e-4)


@torch.no_grad()
def test_mvpls_label_is_the_mean_of_what_it_says_of_each_modality() -> None:
    method, views = _far_apart(_method(name="mvpl", labels={"hard": False})), _views(frames=3)
    results = method(views, FULL)
    for name, student in method.students.items():
        weak, strong = [], []
        for said, clips in ((weak, _unlabeled(views).weak[name]), (strong, _unlabeled(views).strong[name])):
            gradient = torch.stack([clips[:, :, t + 1] - clips[:, :, t] for t in (0, 1, 1)], dim=2)
            said += [student(clips)[0], student(gradient)[0]]
        targets = (weak[0].softmax(1) + weak[1].softmax(1)) / 2
        losses = [compute_pseudo_label_loss(logits, targets, torch.ones(6)) for logits in strong]
        assert torch.allclose(results[f"pseudo_label_loss/{name}"], sum(losses) / 2, rtol=1e-4)


@pytest.mark.parametrize("weights", [FULL, LossWeights(pseudo_label=2.0), LossWeights(contrast=2.0), LossWeights()])
@pytest.mark.parametrize("batch_norm", ["separate", "joint"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradients_reach_every_parameter_in_every_step(norm: str, batch_norm: str, weights: LossWeights) -> None:
    method = _method(norm, batch_norm=batch_norm)
    method(_views(), weights)["loss"].backward()
    assert _without_gradient(method) == []


def test_gradients_reach_every_parameter_when_no_label_is_kept() -> None:
    method = _method(confidence_threshold=1.0)
    results = method(_views(), FULL)
    results["loss"].backward()
    assert results["mask_rate/primary_to_auxiliary"] == 0
    assert _without_gradient(method) == []


@pytest.mark.parametrize("labels", [{}, {"hard": False}, {"thresholds": "softmatch"}])
@pytest.mark.parametrize(("teacher", "learner"), [("primary", "auxiliary"), ("auxiliary", "primary")])
def test_pseudo_labels_teach_the_other_student_only(teacher: str, learner: str, labels: dict[str, Any]) -> None:
    """Soft labels are a smooth function of weak passes that have a gradient here, as with the contrast: it must end there."""
    method, views = _method(labels=labels), _views()
    unlabeled = _unlabeled(views)
    weak, strong = (
        {name: Output(*method.students[name](clips[name])) for name in method.students}
        for clips in (unlabeled.weak, unlabeled.strong)
    )
    given = method.labels.assign_labels(Step(views.labels, unlabeled, {}, weak, strong))
    loss = compute_pseudo_label_losses(strong, given)[f"pseudo_label_loss/{learner}"]
    assert _gradient(loss, method.students[learner]) > 0
    assert _gradient(loss, method.students[teacher]) == 0


def test_weak_views_get_gradient_from_the_contrast_and_nothing_else() -> None:
    for weights, reached in ((LossWeights(pseudo_label=2.0), False), (LossWeights(contrast=2.0), True)):
        views = _views()
        leaves = {name: clips.requires_grad_() for name, clips in _unlabeled(views).weak.items()}
        _method()(replace(views, unlabeled=replace(_unlabeled(views), weak=leaves)), weights)["loss"].backward()
        for clips in leaves.values():
            assert (clips.grad is not None and bool(clips.grad.any())) == reached


@pytest.mark.parametrize("name", ["supervised", "actnetformer"])
def test_without_unlabeled_losses_actnetformer_is_the_supervised_baseline(name: str) -> None:
    views, method = _views(), _method(name=name)
    results = method(views, LossWeights())
    wanted = sum(
        compute_supervised_loss(method.students[part](views.labeled[part])[0], views.labels) for part in method.students
    )
    assert torch.equal(results["loss"], torch.as_tensor(wanted))
    assert set(results) == {"loss", "supervised_loss/primary", "supervised_loss/auxiliary"}


def test_the_baseline_and_actnetformer_start_from_the_same_weights() -> None:
    torch.manual_seed(0)
    one = build_method(_config(name="supervised"), 5)
    torch.manual_seed(0)
    other = build_method(_config(name="actnetformer"), 5)
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), other.parameters(), strict=True))


PER_DIRECTION = ("mask_rate", "kept", "kept_correct", "kept_other", "kept_classes", "confidence")


def test_results_have_the_names_of_the_metrics() -> None:
    directions = ("primary_to_auxiliary", "auxiliary_to_primary")
    students = ("primary", "auxiliary")
    wanted = {"loss", "contrast_loss", "agreement", "alignment/same", "alignment/different"}
    each = ("supervised_loss", "pseudo_label_loss", "weak_accuracy", "scores")
    wanted |= {f"{part}/{name}" for part in each for name in students}
    wanted |= {f"{part}/{way}" for part in PER_DIRECTION for way in directions}
    wanted |= {f"output_gradient/{term}/{name}" for term in ("supervised", "contrast", "pseudo_label") for name in students}
    assert set(_method()(_views(), FULL)) == wanted


def test_separate_passes_do_not_mix_and_a_joint_one_does() -> None:
    """With BatchNorm, the labeled loss depends on the strong views only when they pass together."""
    for batch_norm, mixed in (("separate", False), ("joint", True)):
        losses = []
        for factor in (1.0, 5.0):
            views = _views()
            strong = {name: factor * clips for name, clips in _unlabeled(views).strong.items()}
            views = replace(views, unlabeled=replace(_unlabeled(views), strong=strong))
            results = _method("batch", batch_norm=batch_norm)(views, FULL)
            losses.append(float(results["supervised_loss/primary"]))
        assert (losses[0] != losses[1]) == mixed


def test_strong_views_leave_the_running_statistics_alone() -> None:
    means = []
    for factor in (1.0, 5.0):
        method, views = _method("batch"), _views()
        strong = {name: factor * clips for name, clips in _unlabeled(views).strong.items()}
        method(replace(views, unlabeled=replace(_unlabeled(views), strong=strong)), FULL)
        means.append(method.students["primary"].stem[1].running_mean.clone())
        assert method.students["primary"].stem[1].momentum == 0.1
    assert torch.equal(*means)
    assert means[0].any()


def test_embeddings_need_one_width() -> None:
    with pytest.raises(UserError, match=r"contrast\.features=embeddings"):
        build_method(_config(contrast={"features": "embeddings"}), 5)


def test_embeddings_of_one_width_are_contrasted() -> None:
    config = _config(contrast={"features": "embeddings"}).model_dump()
    config["auxiliary"]["network"]["width"] = 64
    torch.manual_seed(0)
    method, views = build_method(parse_config(config), 5), _views()
    features = [method.students[name](_unlabeled(views).weak[name])[1] for name in ("primary", "auxiliary")]
    assert torch.allclose(method(views, FULL)["contrast_loss"], compute_contrast_loss(features[0], features[1], 0.5), atol=1e-5)


def test_mask_counts_leave_unknown_labels_out() -> None:
    classes, keep = torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    labels = PseudoLabel(classes, classes, keep, torch.tensor([[0.5, 0.3, 0.2, 0.0]] * 3 + [[1.0, 0.0, 0.0, 0.0]]))
    monitors = compute_direction_monitors("x", labels, torch.tensor([1, 0, -1, 0]))
    counts = {name: value.tolist() for name, value in monitors.items()}
    assert counts.pop("confidence/x") == [0, 0, 0, 0, 0, 0.75, 0, 0, 0, 0.25]
    assert counts.pop("kept_classes/x") == [0, 1, 1, 1]
    assert counts == {"mask_rate/x": 0.75, "kept/x": 2.0, "kept_correct/x": 1.0, "kept_other/x": 0.0}
    others = compute_direction_monitors("x", labels, torch.tensor([1, -2, -2, -2]))  # the last one's label does not count
    assert [float(others[f"{name}/x"]) for name in ("kept", "kept_correct", "kept_other")] == [1.0, 1.0, 2.0]


def test_weighted_labels_count_by_their_weight() -> None:
    classes = torch.tensor([1, 2])
    scores = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    labels = PseudoLabel(classes, classes, torch.tensor([0.5, 0.25]), scores, torch.tensor([0.9, 0.7]))
    counts = compute_direction_monitors("x", labels, torch.tensor([1, 0]))
    assert counts["kept_classes/x"].tolist() == [0.0, 0.5, 0.25]
    assert {name: round(float(value), 6) for name, value in counts.items() if value.ndim == 0} == {
        "mask_rate/x": 0.375, "kept/x": 0.75, "kept_correct/x": 0.5, "kept_other/x": 0.0,
        "threshold/x": 0.8}  # fmt: skip


def test_student_monitors_count_known_labels() -> None:
    logits = {"primary": torch.eye(4), "auxiliary": torch.eye(4).roll(1, 0)}
    weak = {name: Output(value, value) for name, value in logits.items()}
    found = compute_student_monitors(weak, torch.tensor([0, 1, 0, -1]))
    assert torch.equal(found["scores/primary"], torch.eye(4).softmax(dim=1))
    assert float(found["weak_accuracy/primary"]) == pytest.approx(2 / 3)
    assert float(found["agreement"]) == 0
    assert torch.isnan(compute_student_monitors(weak, torch.full((4,), -1))["weak_accuracy/primary"])
