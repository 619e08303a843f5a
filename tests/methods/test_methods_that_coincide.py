"""What a method is once its own terms are switched off: it trains to the same numbers as a simpler one."""

from __future__ import annotations

import pytest

from pipeline.config import Config
from tests.methods.built_methods import config_of
from tests.methods.traces import trained

SAME = ("loss", "supervised_loss/primary", "supervised_loss/auxiliary")


def same_training(one: Config, other: Config, keys: tuple[str, ...], steps: int = 12) -> None:
    traces = [trained(config, steps)[1] for config in (one, other)]
    for number, (mine, its) in enumerate(zip(*traces, strict=True)):
        for key in keys:
            assert mine[key] == pytest.approx(its[key], rel=1e-5, abs=1e-7), (number, key)


def test_actnetformer_without_contrast_is_cmpl() -> None:
    """With the same students at equal frame rates."""
    pseudo = ("pseudo_label_loss/primary", "mask_rate/primary_to_auxiliary")
    same_training(config_of("actnetformer", contrast={"weight": 0}), config_of("cmpl"), (*SAME, *pseudo))


def test_fixmatch_without_gamma_is_supervised() -> None:
    """Nearly without: at 0 a step makes no views of unlabeled videos and ends before its terms."""
    almost = config_of("fixmatch", pseudo_label={"weight": 1e-9}, confidence_threshold=0.0)
    assert trained(almost, 1)[1][0]["pseudo_label_loss/primary"] > 0
    same_training(almost, config_of("supervised"), SAME)


def test_cmpl_with_own_labels_is_fixmatch() -> None:
    keys = (*SAME, "pseudo_label_loss/primary", "mask_rate/primary_to_primary")
    same_training(config_of("cmpl", labels={"source": "self"}), config_of("fixmatch"), keys)


def test_svformer_without_mix_and_memory_is_fixmatch() -> None:
    """A teacher of decay 0 is the student, in evaluation mode, which changes nothing here: no BatchNorm, no dropout."""
    teacher = config_of("svformer", labels={"ema_decay": 0.0}, mix={"weight": 0, "patch": 8})
    same_training(teacher, config_of("fixmatch"), (*SAME, "pseudo_label_loss/primary", "pseudo_label_loss/auxiliary"))


def test_mvpl_with_rgb_alone_is_fixmatch() -> None:
    same_training(config_of("mvpl", modalities=["rgb"]), config_of("fixmatch"), (*SAME, "mask_rate/primary_to_primary"))


def test_tcl_without_contrast_is_fixmatch() -> None:
    same_training(config_of("tcl", contrast={"weight": 0}, group_contrast={"weight": 0}), config_of("fixmatch"), SAME)


def test_ltg_without_alignment_is_actnetformer_with_mean_labels() -> None:
    other = config_of("actnetformer", labels={"source": "mean"}, contrast={"negatives": "cross", "features": "projection"})
    same_training(config_of("ltg", alignment={"weight": 0}), other, (*SAME, "contrast_loss", "mask_rate/mean_to_primary"))
