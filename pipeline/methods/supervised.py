"""The baseline: both students learn from the labeled clips alone, each for itself."""

from __future__ import annotations

from pipeline.methods.parts.method import Method


class Supervised(Method):
    """L = Ls_Z + Ls_A: what ``Method`` does in every step, and no losses of unlabeled videos."""
