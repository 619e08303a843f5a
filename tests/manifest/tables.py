"""Manifest tables without videos, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.manifest.schema import Split
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from pipeline.video.probe import Probe

GOOD = Probe(50, 25.0, False, 2.0, 160, 120, "h264", 1000, None, "decord")
BROKEN = Probe(bytes=3, status="not_a_video", reason="no known video format")


def make_listing(counts: dict[str, int], split: Split = "train") -> Listing:
    """Makes a listing with ``counts`` videos of every class, all in one split."""
    uris = [f"{name}/{number}.mp4" for name, count in counts.items() for number in range(count)]
    labels = [uri.split("/")[0] for uri in uris]
    return Listing("/videos", "folder", tuple(uris), tuple(labels), (None,) * len(uris), (split,) * len(uris))


def make_table(counts: dict[str, int], split: Split = "train", probes: Sequence[Probe] | None = None) -> pa.Table:
    """Makes the manifest's table of such a listing; all videos are usable unless ``probes`` says otherwise."""
    listing = make_listing(counts, split)
    return build_table(listing, probes or [GOOD] * len(listing.uris))
