"""``python -m tests.methods.same_numbers COMMIT``: whether methods train exactly as they did in an earlier commit.

Every method, with what changes its numbers, takes eight steps on generated clips, once with the code of the commit and once
with that of the working tree, in a process each. All reported numbers of all steps, and all tensors of a checkpoint at the
end, must be the same to the last bit. Traces that are pinned in a file cannot say that: other processors round otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("supervised", "fixmatch", "cmpl", "mvpl", "tcl", "ltg", "svformer", "actnetformer")
LTG = {"contrast_features": "projection", "contrast_negatives": "cross"}
CLIP = {"frames": 4, "fps": 8, "size": 16}
BATCH_NORM = {"network": {"depth": 10, "width": 8, "norm": "batch", "dropout": 0.2}, "clip": CLIP}
WARM_UP = {"supervised_steps": 2, "ramp_steps": 2, "start": {"contrast": 1, "mix": 1}, "ramp": {"pseudo_label": 3}}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": {"name": name, **(LTG if name == "ltg" else {})}} for name in METHODS},
    **{f"{name} warm-up": {"method": {"name": name, **WARM_UP}} for name in METHODS},
    **{f"{name} batch norm": {"method": {"name": name}, "primary": BATCH_NORM} for name in METHODS},
    **{f"{name} {source} {hard}": {"method": {"name": name, "labels": {"source": source, "hard": hard}}}
       for name in METHODS[1:] for source, hard in (("other", False), ("self", True), ("mean", False), ("ema", True))},
    **{f"{policy} {alignment}": {"method": {"labels": {"thresholds": policy, "distribution_alignment": alignment}}}
       for policy in ("fixed", "flexmatch", "freematch", "softmatch") for alignment in ("off", "uniform", "labeled")},
    **{f"{name} joint": {"method": {"name": name, "batch_norm": "joint"}, "primary": BATCH_NORM}
       for name in ("fixmatch", "tcl", "ltg", "svformer", "actnetformer")},
    "own thresholds": {"method": {"labels": {"primary_threshold": 0.2, "auxiliary_threshold": 0.4}}},
    "frames": {"method": {"contrast_level": "frame", "contrast_features": "projection"}},
    "frames' probabilities": {"method": {"contrast_level": "frame", "contrast_temperature": 0.3}},
    "projection and teachers": {"method": {"contrast_features": "projection", "labels": {"source": "ema"}}},
    "labels": {"method": {"mixup": 0.3, "label_smoothing": 0.1, "supervised_weight": 0.7}},
    "no contrast": {"method": {"contrast_weight": 0}},
    "contrast alone": {"method": {"pseudo_label_weight": 0}},
    "tcl's weights": {"method": {"name": "tcl", "contrast_weight": 9, "group_contrast_weight": 0.5}},
    "ltg's weights": {"method": {"name": "ltg", "alignment_weight": 0.5, "projection_width": 8, **LTG}},
    "mix": {"method": {"name": "svformer", "mix_weight": 3, "mix_concentration": 2, "mix_consistency": "kl"}},
    "mvpl with rgb": {"method": {"name": "mvpl", "modalities": ["rgb"]}},
}  # fmt: skip
"""By what they are: knobs under the names of November 2026; ``pipeline.config.renamed`` has today's."""


def numbers(steps: int) -> dict[str, Any]:
    """By case, with the code that is imported: each step's results as exact texts, and a digest of the method's tensors."""
    from pipeline.config import parse_config
    from tests.methods.traces import small_config, trained

    found: dict[str, Any] = {}
    for case, sections in CASES.items():
        tree = small_config().model_dump(mode="json")
        earlier = {"confidence_threshold": 0.3, "mix_patch": 8, **sections["method"]}
        tree["method"] = {"name": earlier["name"]} if "name" in earlier else {}
        try:
            from pipeline.config.renamed import translate_old_names
        except ImportError:
            tree["method"] = earlier
        else:
            tree["method"] = translate_old_names({"method": earlier})["method"]
        tree |= {name: {**tree[name], **section} for name, section in sections.items() if name != "method"}
        method, lines = trained(parse_config(tree), steps)
        digest = hashlib.sha256()
        for name, tensor in sorted(method.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        found[case] = [{name: value.hex() for name, value in sorted(line.items())} for line in lines] + [digest.hexdigest()]
    return found


def run(tree: Path, steps: int) -> dict[str, Any]:
    """``numbers`` of the code in a folder, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers.json"
        words = [sys.executable, str(Path(__file__).resolve()), "--write", str(out), "--steps", str(steps)]
        subprocess.run(words, check=True, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)})
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", help="earlier commit to compare with")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    order = parser.parse_args()
    if order.write:
        order.write.write_text(json.dumps(numbers(order.steps)), encoding="utf-8")
        return 0
    here = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        words = ["git", "archive", order.commit, "pipeline", "tests"]
        packed = io.BytesIO(subprocess.run(words, cwd=here, check=True, capture_output=True).stdout)
        with tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")
        before = run(Path(folder), order.steps)
    now = run(here, order.steps)
    differing = [case for case in CASES if before[case] != now[case]]
    for case in differing:
        first = next((n for n, (one, other) in enumerate(zip(before[case], now[case], strict=True)) if one != other), None)
        print(f"{case}: differs from step {first} on; {_difference(before[case][first], now[case][first])}")
    print(f"{len(CASES) - len(differing)} of {len(CASES)} cases have the same numbers as {order.commit}, to the last bit")
    return 1 if differing else 0


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, str):
        return "the tensors of the method at the end"
    return ", ".join(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))


if __name__ == "__main__":
    sys.exit(main())
