"""CMPL (Xu et al., CVPR 2022): two students label each other's strong views; nothing else couples them.

The paper's students are two CNNs on the same clip, Slow-ResNet50 and a narrower one: set ``auxiliary.network`` and
``auxiliary.clip``.
"""

from __future__ import annotations

from pipeline.methods.fixmatch import FixMatch


class CMPL(FixMatch):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A): FixMatch with the labels of the other student."""

    SOURCE = "other"
