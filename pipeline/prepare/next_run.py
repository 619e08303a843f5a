"""The command that trains on a manifest for a first try, which commands that write manifests and labels print at their end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.schema import Manifest

SHORT_SECONDS = 5.0
"""If nine of ten videos last at most so long, each is taken as one whole action, which ``actions.yaml`` sees at once. Choice:
that configuration was chosen on clips of one to four seconds."""
PAPER = "without --config the networks are the paper's, which need GPUs"
EQUAL = "if some classes are much more frequent than others, add method.labels.distribution_alignment=off"


def suggest_training(manifest: Manifest, labels: Path | None = None) -> str:
    """Returns lines with a command that can be run as it is, and with the reason for its configuration.

    Its configuration is one of small networks: ``demo`` for synthetic videos, ``actions`` where clips are short, else ``demo``
    with flips. ``labels`` is the label subset, if the command must name it.
    """
    words = [f"data.manifest={manifest.path}", *([f"data.labels={labels}"] if labels else [])]
    seconds = _measure_lengths(manifest)
    if manifest.source == "synthetic":
        config, why = "demo", f"small networks, for a laptop; {PAPER}"
    elif len(seconds) and np.quantile(seconds, 0.9) <= SHORT_SECONDS:
        config, why = "actions", f"small networks that see each of these short videos whole, for a laptop; {PAPER}; {EQUAL}"
    else:
        config, why = (
            "demo",
            f"small networks, for a laptop; {PAPER}; leave out the flip if left and right are different classes",
        )
        words.append("views.weak.flip=0.5")
    name = _choose_name(Path(manifest.path), labels)
    command = shlex.join(["python", "-m", "jobs.train", "--config", config, f"run.name={name}", *words])
    return f"next     {command}\n         ({why})"


def _measure_lengths(manifest: Manifest) -> NDArray[np.float64]:
    """Returns how many seconds each usable video lasts, which may be a part of its file."""
    table = manifest.table.take(manifest.find_usable_rows("train", "unlabeled", "test"))
    start, end, duration = (table[name].to_numpy() for name in ("start", "end", "duration"))
    lengths: NDArray[np.float64] = np.fmin(end, duration) - np.nan_to_num(start)
    return lengths


def _choose_name(manifest: Path, labels: Path | None) -> str:
    """Returns a name for the run, of the data's folder, and of the files where they are not the usual ones."""
    parts = [manifest.absolute().parent.name]
    parts += [path.stem for path, usual in ((manifest, "manifest"), (labels, "labels")) if path and path.stem != usual]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(parts)).lstrip("._-") or "first"
