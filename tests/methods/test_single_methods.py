"""What only one method has: contrast of frames, teachers, tubes, modalities and slow clips."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import STUDENTS, ClipSection, Config, override, parse_config
from pipeline.errors import UserError
from pipeline.methods import LossWeights, build_method, make_views
from pipeline.methods.parts.contrast_features import pair_moments
from pipeline.methods.svformer import mix_tubes
from tests.methods.built_methods import FULL, config_of, views_of
from tests.methods.parts.test_losses import slow_contrast
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config, trained


def test_frame_level_contrast_with_one_moment_is_video_level() -> None:
    """One frame: the mean over moments is the moment (of a Slow-ResNet; a TimeSformer's cls token is not its patches)."""
    sections: dict[str, Any] = {name: {"clip": {"frames": 1, "fps": 8, "size": 16}} for name in STUDENTS}
    small = {"arch": "slow_resnet", "depth": 10, "width": 8, "norm": "group"}
    found = []
    for level in ("video", "frame"):
        config = small_config(
            primary={**sections["primary"], "network": small}, auxiliary={**sections["auxiliary"], "network": small},
            method={"contrast": {"level": level}},
        )  # fmt: skip
        torch.manual_seed(0)
        method, batch = build_method(config, CLASSES, VIDEOS, VIDEOS), batch_of(0)
        short = replace(batch, primary=batch.primary[:, :, :1], auxiliary=batch.auxiliary[:, :, :1])
        found.append(method(make_views(short, config, 0, "cpu"), FULL)["contrast_loss"])
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("features", ["probabilities", "projection"])
def test_frame_level_contrast_trains(features: str) -> None:
    _, trace = trained(config_of("actnetformer", contrast={"level": "frame", "features": features}), 3)
    assert trace[-1]["contrast_loss"] > 0


@pytest.mark.parametrize("kind", ["probabilities", "projection"])
def test_frame_level_contrast_equals_the_one_of_hand_picked_frames(kind: str) -> None:
    """4 frames at 8 fps lie at -3/16, -1/16, 1/16, 3/16 s, 4 at 24 fps at a third of it: its ends meet the middle two."""
    clip = {"frames": 4, "size": 16}
    primary = {"network": {"depth": 10, "width": 8, "norm": "group"}, "clip": {**clip, "fps": 8}}
    auxiliary = {"network": {"width": 32, "depth": 2, "heads": 2, "patch": 8}, "clip": {**clip, "fps": 24}}
    section = {"name": "actnetformer", "contrast": {"level": "frame", "features": kind}}
    config = small_config(primary=primary, auxiliary=auxiliary, method=section)
    torch.manual_seed(0)
    method, views, picked = build_method(config, CLASSES, VIDEOS, VIDEOS), views_of(config), {}
    for student in method.students.values():
        torch.nn.init.normal_(student.head.weight)
    for name, frames in {"primary": (1, 2), "auxiliary": (0, 3)}.items():
        student = method.students[name]
        with torch.no_grad():
            seen = student(views.unlabeled.weak[name])[1]
            seen = torch.stack([seen[video, frame] for video in range(8) for frame in frames])
            picked[name] = student.projection(seen) if kind == "projection" else student.head(seen).softmax(dim=1)
    wanted = slow_contrast(picked["primary"], picked["auxiliary"], 0.5, moments=2)
    results = method(views, LossWeights(contrast=1.0))
    assert float(results["contrast_loss"]) == pytest.approx(wanted, rel=1e-5)
    cosines = torch.cosine_similarity(picked["primary"][:, None], picked["auxiliary"][None], dim=2)
    others = [cosines[one, other] for one in range(16) for other in range(16) if one // 2 != other // 2]
    assert float(results["alignment/different"]) == pytest.approx(float(torch.stack(others).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"moments": "own"}}, "set data.moments=shared"),
        ({"primary": {"clip": {"sampling": "segments", "frames": 4, "size": 16}}}, "auxiliary.clip the same sampling"),
        *(({"views": {"weak": {"time": time}}}, "leave out views.weak.time") for time in
          ({"reverse": 0.5}, {"warp": [2]}, {"slowest": 0.5})),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["actnetformer", "ltg"])
def test_frames_are_not_paired_where_their_time_is_not_known(name: str, sections: dict[str, Any], message: str) -> None:
    for level in ("video", "frame"):
        config = small_config(**sections, method={"name": name, "contrast": {"level": level}})
        if level == "video":
            build_method(config, CLASSES, VIDEOS, VIDEOS)
        else:
            with pytest.raises(UserError, match=message):
                build_method(config, CLASSES, VIDEOS, VIDEOS)


def test_moments_are_paired_where_both_clips_are() -> None:
    """8 frames at 8 fps last 1 s, 8 at 16 fps half: the middle four of the first lie within the second."""
    slow, fast = (Config().primary.clip.model_copy(update={"frames": 8, "fps": fps}) for fps in (8.0, 16.0))
    for one, other in ((slow, fast), (fast, slow)):
        pairs = pair_moments(one, other, 8, 8)
        coarse, fine = pairs if one is slow else pairs[::-1]
        assert coarse.tolist() == [2, 3, 4, 5]
        times = (coarse - 3.5) / 8, (fine - 3.5) / 16
        assert abs(times[0] - times[1]).max() <= 0.5 / 16 + 1e-9
    assert [pair.tolist() for pair in pair_moments(slow, slow, 8, 8)] == [list(range(8))] * 2
    assert [len(pair) for pair in pair_moments(slow, slow, 8, 1)] == [1, 1]


def test_moments_of_segments_are_paired_by_their_parts_of_the_video() -> None:
    """The middles of 4 parts of a video lie between those of 8: each has one of them, of its own half."""
    few, many = (ClipSection(sampling="segments", frames=frames) for frames in (4, 8))
    coarse, fine = pair_moments(few, many, 4, 8)
    assert coarse.tolist() == [0, 1, 2, 3] and (fine // 2).tolist() == [0, 1, 2, 3]
    assert [pair.tolist() for pair in pair_moments(many, many, 8, 8)] == [list(range(8))] * 2


def test_a_teacher_follows_the_formula_and_is_saved(tmp_path: Path) -> None:
    config = config_of("svformer", labels={"ema_decay": 0.75})
    method = build_method(config, CLASSES, VIDEOS, VIDEOS)
    before = copy.deepcopy(method.labels.teachers.state_dict())
    with torch.no_grad():
        for parameter in method.students.parameters():
            parameter.add_(1)
    method(views_of(config), FULL)
    after, students = method.labels.teachers.state_dict(), method.students.state_dict()
    for key, value in before.items():
        assert torch.allclose(after[key], 0.75 * value + 0.25 * students[key], atol=1e-6), key
    assert not any(parameter.requires_grad for parameter in method.labels.teachers.parameters())


def test_a_frozen_teacher_stays_as_it_was_with_its_statistics() -> None:
    config = config_of("svformer", labels={"ema_decay": 1.0})
    config = override(config.model_dump(), ["primary.network.norm=batch"], "test")
    method = build_method(config, CLASSES, VIDEOS, VIDEOS)
    before = copy.deepcopy(method.labels.teachers.state_dict())
    for step in range(2):
        with torch.no_grad():
            for parameter in method.students.parameters():
                parameter.add_(1)
        method(views_of(config, step), FULL)
    after, students = method.labels.teachers.state_dict(), method.students.state_dict()
    assert [key for key, value in before.items() if not torch.equal(after[key], value)] == []
    assert any("running" in key and not torch.equal(value, students[key]) for key, value in before.items())


def test_tubes_are_whole_patches_through_all_frames() -> None:
    clips = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 5, 24, 20).contiguous()
    torch.manual_seed(0)
    mixed, shares = mix_tubes(clips, 8, 1.0)
    own = mixed == clips
    assert torch.equal(mixed[~own], clips.roll(1, 0)[~own])
    assert torch.equal(own, own[:, :1, :1].expand_as(own))
    for row in range(0, 24, 8):
        for column in range(0, 20, 8):
            patch = own[:, 0, 0, row : row + 8, column : column + 8].flatten(1)
            assert torch.equal(patch.all(1), patch.any(1))
    assert torch.allclose(shares, own[:, 0, 0].flatten(1).float().mean(1))
    assert len(set(shares.tolist())) > 1


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("modality", ["temporal_gradient", "optical_flow"])
def test_mvpl_makes_its_modalities_of_rgb(modality: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.methods.check_modalities", lambda _: None)  # as if OpenCV were there
    words = config_of("mvpl").model_dump(mode="json")
    words[name]["clip"]["modality"] = modality
    with pytest.raises(UserError, match=f"{name}.clip.modality={modality}: .* set rgb, and method.modalities"):
        build_method(parse_config(words), CLASSES, VIDEOS, VIDEOS)


def test_a_slow_clip_has_at_least_a_tubelet() -> None:
    words = config_of("tcl").model_dump(mode="json")
    for tubelet in (2, 4):
        words["auxiliary"]["network"]["tubelet"] = tubelet
        config = parse_config(words)
        if tubelet == 2:
            build_method(config, CLASSES, VIDEOS, VIDEOS)(views_of(config), FULL)
        else:
            with pytest.raises(UserError, match=r"auxiliary.network.tubelet=4: tcl's slow clip has 2 of 4 frames"):
                build_method(config, CLASSES, VIDEOS, VIDEOS)


def test_mvpls_statistics_are_those_of_rgb() -> None:
    sections: dict[str, Any] = {"primary": {"network": {"depth": 10, "width": 8, "norm": "batch"}}}
    means = []
    for name, modalities in (("mvpl", ["rgb", "temporal_gradient"]), ("mvpl", ["rgb"])):
        clip = {"clip": {"frames": 4, "fps": 8, "size": 16}}
        config = small_config(primary={**sections["primary"], **clip}, method={"name": name, "modalities": modalities})
        torch.manual_seed(0)
        method = build_method(config, CLASSES, VIDEOS, VIDEOS)
        with torch.no_grad():
            method(views_of(config), FULL)
        means.append(method.students["primary"].stem[1].running_mean)
    assert torch.equal(*means)
