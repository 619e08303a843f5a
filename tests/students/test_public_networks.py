"""The students are the public networks: the same names and shapes of all tensors, and with the same numbers in them the same
logits, as PyTorchVideo 0.1.5 (``slow_r50``), SlowFast (``SLOW_8x8_R50``), mmaction2 (``ResNet3dSlowOnly`` and ``I3DHead``) and
the TimeSformer authors' code computed them once.

Weights and clips are made by a rule from names and shapes, so that nothing has to be downloaded. What was written down here
came from running that code in float64 on them, with 5 classes at 64 pixels; ViT-S for the TimeSformers.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ClipSection, SlowResNetSection, TimeSformerSection
from pipeline.students import build_student, load_weights
from tests.students.test_weights import authors_keys, caffe2_keys, mmaction2_keys, pytorchvideo_keys, slowfast_keys

Shapes = Mapping[str, tuple[int, ...]]
PUBLIC: dict[str, tuple[Any, Callable[[str], str], str, list[float]]] = {
    # network, our names -> theirs, hash of their names and shapes, logits of two clips
    "pytorchvideo": (SlowResNetSection(), pytorchvideo_keys, "3b853feb5de38cde", [
        -3.684105, -4.98654, -7.752347, -9.630232, -2.011462, -3.615486, -4.931586, -7.690152, -9.571381, -1.955037]),
    "slowfast": (SlowResNetSection(), slowfast_keys, "e2b23aa13c48febd", [
        1.467831, 1.070758, 2.714631, 4.025786, -0.852204, 1.447769, 1.04819, 2.694473, 3.998555, -0.871341]),
    "mmaction2": (SlowResNetSection(), mmaction2_keys, "003ed590cac80262", [
        2.441267, 3.360904, 4.578029, 5.093105, 5.958304, 2.455329, 3.377987, 4.600921, 5.117759, 5.969933]),
    "divided": (TimeSformerSection(), authors_keys, "0725a3d454aa2e36", [
        1.264044, 0.366751, -1.205638, -0.381991, -1.696694, 1.264194, 0.366506, -1.209124, -0.379629, -1.700546]),
    "joint": (TimeSformerSection(attention="joint"), authors_keys, "f8da68e317d2e0b2", [
        0.236321, 0.018365, 0.07404, -0.793096, -0.09768, 0.230316, 0.03911, 0.087791, -0.792799, -0.098505]),
    "space": (TimeSformerSection(attention="space"), authors_keys, "885ce45809356353", [
        0.649303, 0.137947, 0.270769, -0.88848, -0.018668, 0.666873, 0.137992, 0.262652, -0.884005, -0.014735]),
}  # fmt: skip


def by_rule(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Noise that is the same wherever names and shapes are: norms around 1, matrices by their inputs, the rest small."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        index = torch.arange(math.prod(shape), dtype=torch.float64)
        noise = 2 * ((index * 12.9898 + number).sin() * 43758.5453).frac().view(shape)
        small = len(shape) < 2 or ("embed" in name and "proj" not in name) or "token" in name
        around_one = len(shape) < 2 and name.rpartition(".")[2] in ("weight", "running_var")
        found[name] = 1 + 0.2 * noise if around_one else noise * (0.1 if small else math.prod(shape[1:]) ** -0.5)
    return found


def fingerprint(shapes: Shapes) -> str:
    lines = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLIC)
def test_names_shapes_and_logits(name: str, tmp_path: Path) -> None:
    network, keys, names, logits = PUBLIC[name]
    with torch.device("meta"):  # initializing takes longer than the rest
        student = build_student(network, ClipSection(size=64), 5)
    student.to_empty(device="cpu").double().eval()
    own = {key: tuple(value.shape) for key, value in student.state_dict().items() if "num_batches" not in key}
    theirs = {keys(key).removeprefix("model."): shape for key, shape in own.items()}
    if "patch_embed.proj.weight" in theirs:  # a 2-D convolution there
        theirs["patch_embed.proj.weight"] = (384, 3, 16, 16)
    assert fingerprint(theirs) == names
    torch.save({"model_state": by_rule(theirs)}, tmp_path / "public.pyth")
    assert load_weights(student, str(tmp_path / "public.pyth"), "x", "slowfast").head  # the same pixels for all of them
    clips = 10 * by_rule({"clip": (2, 3, 8, 64, 64)})["clip"]
    assert student(clips)[0].flatten().tolist() == pytest.approx(logits, abs=2e-6)


@torch.no_grad()
def test_the_blobs_of_slowfasts_model_zoo_are_slowfasts_tensors(tmp_path: Path) -> None:
    """Names and shapes are those that SlowFast's own ``convert_caffe2_name_to_pytorch`` takes; the file is pickled as Python 2
    did, with what the optimizer kept."""
    network, keys, _, _ = PUBLIC["slowfast"]
    narrow = network.model_copy(update={"width": 16})  # the same names in a sixteenth of the file
    with torch.device("meta"):
        whole, student = (build_student(each, ClipSection(size=64), 5) for each in (network, narrow))
    student.to_empty(device="cpu").double()
    shapes, small = (
        {keys(key): tuple(value.shape) for key, value in each.state_dict().items() if "num_batches" not in key}
        for each in (whole, student)
    )
    assert fingerprint({caffe2_keys(name): shape for name, shape in shapes.items()}) == "50b53d4e60880be6"
    tensors = by_rule(small)
    blobs: dict[str, Any] = {caffe2_keys(name): value.numpy() for name, value in tensors.items()}
    blobs["pred_w"] = blobs["pred_w"][:, :, None, None, None]  # a linear layer and a convolution are one there
    blobs |= {"conv1_w_momentum": blobs["conv1_w"], "lr": blobs["pred_b"][0], "model_iter": blobs["pred_b"][:1]}
    (tmp_path / "SLOWONLY_8x8_R50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    assert load_weights(student, str(tmp_path / "SLOWONLY_8x8_R50.pkl"), "x").head
    loaded = {keys(key): value for key, value in student.state_dict().items() if "num_batches" not in key}
    assert loaded.keys() == tensors.keys()
    assert [key for key, value in loaded.items() if not torch.equal(value, tensors[key])] == []
