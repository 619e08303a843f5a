"""Knobs: what random views are made of a clip."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.section import MID_RUN, Section, Share


class TimeSection(Section):
    """Random changes of a view in time, by choosing among its decoded frames; all off by default (choice)."""

    reverse: Share = Field(0.0, ge=0, le=1)
    """Probability to play the clip backward. Use 0 where direction is the class."""
    warp: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """SVFormer's temporal warp: how many frames are kept, drawn from these; each lost one shows its nearest kept one.
    SVFormer: [2, 4, 8] of 8. Empty: off."""
    slowest: float = Field(1.0, gt=0, le=1)
    """Least playing speed, drawn uniformly up to 1, around the clip's middle, frames repeated. Faster than 1 would need
    frames that were not decoded: decode at a higher ``clip.fps`` instead (segments: more ``clip.frames``)."""


class WeakSection(Section):
    """Weak view: scale jitter, crop, flip (secondary source for the paper)."""

    min_scale: Share = Field(0.7, gt=0, le=1)
    """Least side of the crop as a share of the decoded window; drawn uniformly up to 1."""
    max_aspect: float = Field(1.0, ge=1, le=4)
    """Largest ratio of the crop's sides: 1 is short-side jitter with square crops; 4/3 makes it a random resized crop."""
    flip: Share = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip. Use 0 where direction is the class."""
    time: TimeSection = TimeSection()


class StrongSection(Section):
    """Strong view: the weak view's geometry drawn anew, then RandAugment and cutout (the paper is silent: choice)."""

    ops: int = Field(2, ge=0)
    """RandAugment operations per clip."""
    magnitude: Share = Field(0.5, ge=0, le=1)
    """Strength of each operation, as a share of RandAugment's full range; drawn uniformly below it."""
    geometric: bool = True
    """Whether rotate, shear and translate are among the operations."""
    appearance: bool = True
    """Whether color, brightness, contrast, sharpness and the like are among the operations."""
    without: tuple[str, ...] = ()
    """Operations to leave out, by name (see ``pipeline.clips.randaugment.OPERATIONS``), to study each alone."""
    cutout: Share = Field(0.5, ge=0, le=1)
    """Largest side of the erased square, as a share of the clip's size; 0 turns it off."""
    time: TimeSection = TimeSection()


class ViewsSection(Section):
    """Random views, the same parameters for all frames of a clip."""

    weak: WeakSection = Field(WeakSection(), json_schema_extra=MID_RUN)
    strong: StrongSection = Field(StrongSection(), json_schema_extra=MID_RUN)
