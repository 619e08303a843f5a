"""The baseline: both students are trained on the labeled clips alone, each on its own."""

from __future__ import annotations

from pipeline.methods.parts.method import Method


class Supervised(Method):
    """L = Ls_Z + Ls_A, which ``Method`` computes in every step; there are no losses of unlabeled videos."""
