"""Small methods and their views, built alike for the tests of all methods."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config import Config
from pipeline.methods import LossWeights, build_method, make_views
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config

FULL = LossWeights(pseudo_label=2.0, contrast=2.0, group_contrast=1.0, alignment=1.0, mix=2.0)

POLICIES = ("fixed", "flexmatch", "freematch", "softmatch")


def config_of(name: str, labels: dict[str, Any] | None = None, **method: Any) -> Config:
    own: dict[str, Any] = {"ltg": {"contrast": {"features": "projection", "negatives": "cross"}}}.get(name, {})
    sections: dict[str, Any] = {"method": {"name": name, "confidence_threshold": 0.3, "mix": {"patch": 8}, **own, **method}}
    if labels:
        sections["method"]["labels"] = labels
    return small_config(**sections)


def built(name: str, labels: dict[str, Any] | None = None, **method: Any) -> Any:
    torch.manual_seed(0)
    made = build_method(config_of(name, labels, **method), CLASSES, VIDEOS, VIDEOS // 2)
    torch.manual_seed(1)
    for key, parameter in made.named_parameters():  # what starts at 0 or near hides paths and keeps confidence at chance
        if "temporal_fc.weight" in key or key.endswith("head.weight"):
            torch.nn.init.normal_(parameter, std=1.0)
    return made


def views_of(config: Config, step: int = 0) -> Any:
    return make_views(batch_of(step), config, 0, "cpu")
