"""Published weights in their own key orders: made here at random, saved to files, no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.video import r3d_18

from pipeline.config import ClipSection, PlainConv3dSection, SlowResNetSection, TimeSformerSection, VideoResNetSection
from pipeline.errors import UserError
from pipeline.students import build_student, load_weights
from pipeline.students.plain_conv3d import PlainConv3d
from pipeline.students.slow_resnet import SlowResNet
from pipeline.students.timesformer import TimeSformer

LAYERS = {18: (BasicBlock, [2, 2, 2, 2]), 50: (Bottleneck, [3, 4, 6, 3])}


def clip(frames: int = 1, size: int = 32) -> ClipSection:
    return ClipSection(frames=frames, fps=8, size=size)


def images(depth: int) -> nn.Module:
    """timm's 2-D ResNet with statistics that are not the initial ones."""
    torch.manual_seed(3)
    block, layers = LAYERS[depth]
    network = ResNet(block, layers, num_classes=5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)  # timm starts the last ones at 0
    return network.eval()


def vit(**arguments: Any) -> VisionTransformer:
    torch.manual_seed(3)
    wanted = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5, **arguments}
    network = VisionTransformer(**wanted)
    nn.init.normal_(network.head.weight)
    return network.eval()


def timesformer(frames: int = 1, size: int = 32, **section: Any) -> TimeSformer:
    wanted = TimeSformerSection.model_validate({"width": 24, "depth": 2, "heads": 2, "patch": 8, **section})
    torch.manual_seed(0)
    return TimeSformer(wanted, clip(frames, size), 5).eval()


def saved(tensors: dict[str, torch.Tensor], path: Path) -> str:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_without_temporal_kernels_one_frame_is_timms_image_network(depth: int, tmp_path: Path) -> None:
    student = SlowResNet(SlowResNetSection(depth=depth, temporal_kernel=1), 5).eval()
    load_weights(student, saved(images(depth).state_dict(), tmp_path / "r.safetensors"), "primary.network.weights")
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.allclose(student(pictures[:, :, None])[0], images(depth)(pictures), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inflated_kernels_sum_to_the_images(tmp_path: Path) -> None:
    """So a still clip passes each inflated kernel as the image does, but for the padding at its two ends."""
    student = SlowResNet(SlowResNetSection(depth=18), 5).eval()
    load_weights(student, saved(images(18).state_dict(), tmp_path / "r.safetensors"), "x")
    kernel = student.blocks[4].residual[0].weight
    assert kernel.shape[2] == 3
    assert torch.allclose(kernel.sum(2), images(18).layer3[0].conv1.weight, atol=1e-6)
    picture = torch.randn(1, 3, 64, 64)
    still = picture[:, :, None].expand(-1, -1, 19, -1, -1)
    student.per_frame = True  # four blocks mix 4 frames to each side: the middle of 19 sees no end
    assert torch.allclose(student.head(student(still)[1][:, 9]), images(18)(picture), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "space"])
def test_joint_attention_with_one_frame_is_timms_vit(attention: str, tmp_path: Path) -> None:
    student = timesformer(attention=attention)
    load_weights(student, saved(vit().state_dict(), tmp_path / "v.safetensors"), "x")
    if attention == "joint":
        nn.init.zeros_(student.time_embedding)
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.allclose(student(pictures[:, :, None])[0], vit()(pictures), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_space_attention_is_timms_vit_averaged_over_frames(tmp_path: Path) -> None:
    """Both averages are of cls tokens before the norm: timm's ``forward_features`` with its norm taken out."""
    student = timesformer(frames=4, attention="space")
    load_weights(student, saved(vit().state_dict(), tmp_path / "v.safetensors"), "x")
    clips, network = torch.randn(2, 3, 4, 32, 32), vit()
    norm, network.norm = network.norm, nn.Identity()
    tokens = torch.stack([network.forward_features(clips[:, :, frame])[:, 0] for frame in range(4)]).mean(0)
    assert torch.allclose(student(clips)[0], network.head(norm(tokens)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_divided_timesformer_starts_as_the_image_vit(tmp_path: Path) -> None:
    """With what lets time in at 0, a still clip is seen as its image; attention over time starts as attention over space."""
    student = timesformer(frames=3)
    load_weights(student, saved(vit().state_dict(), tmp_path / "v.safetensors"), "x")
    assert torch.equal(student.blocks[1].temporal_attention.qkv.weight, vit().blocks[1].attn.qkv.weight)
    for parameter in (student.time_embedding, student.blocks[0].temporal_fc.weight, student.blocks[0].temporal_fc.bias):
        nn.init.zeros_(parameter)
    picture = torch.randn(1, 3, 32, 32)
    still = picture[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.allclose(student(still)[0], vit()(picture), rtol=1e-4, atol=1e-5)


def slowfast_keys(name: str) -> str:
    """Ours -> SlowFast's, written out against its model zoo's names, independently of the loader."""
    stem = {"stem.0": "s1.pathway0_stem.conv", "stem.1": "s1.pathway0_stem.bn", "head": "head.projection"}
    first = re.match(r"blocks\.(\d+)\.(residual|shortcut)\.(\d+)\.(\w+)", name)
    if first is None:
        prefix, _, last = name.rpartition(".")
        return f"{stem[prefix]}.{last}"
    number, part, layer, last = int(first[1]), first[2], int(first[3]), first[4]
    stage, block = next((s, number - b) for s, b in ((5, 13), (4, 7), (3, 3), (2, 0)) if number >= b)
    inner = ["a", "a_bn", "", "b", "b_bn", "", "c", "c_bn"][layer] if part == "residual" else ""
    where = f"branch2.{inner}" if part == "residual" else ["branch1", "branch1_bn"][layer]
    return f"s{stage}.pathway0_res{block}.{where}.{last}"


def pytorchvideo_keys(name: str) -> str:
    """SlowFast's -> PyTorchVideo's."""
    name = slowfast_keys(name).replace("s1.pathway0_stem.conv", "blocks.0.conv").replace("s1.pathway0_stem.bn", "blocks.0.norm")
    name = re.sub(r"^s(\d)\.pathway0_res(\d+)", lambda m: f"blocks.{int(m[1]) - 1}.res_blocks.{m[2]}", name)
    name = re.sub(r"branch2\.([abc])_bn", r"branch2.norm_\1", name)
    name = re.sub(r"branch2\.([abc])\.", r"branch2.conv_\1.", name)
    name = name.replace("branch1_bn", "branch1_norm").replace("branch1.", "branch1_conv.")
    return name.replace("head.projection", "blocks.5.proj")


def mmaction2_keys(name: str) -> str:
    """Ours -> mmaction2's, by SlowFast's."""
    name = slowfast_keys(name).replace("s1.pathway0_stem.conv", "backbone.conv1.conv")
    name = name.replace("s1.pathway0_stem.bn", "backbone.conv1.bn").replace("head.projection", "cls_head.fc_cls")
    name = re.sub(r"^s(\d)\.pathway0_res(\d+)", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}", name)
    name = name.replace("branch1_bn", "downsample.bn").replace("branch1.", "downsample.conv.")
    return re.sub(r"branch2\.([abc])(_bn)?", lambda m: f"conv{'abc'.index(m[1]) + 1}.{'bn' if m[2] else 'conv'}", name)


def caffe2_keys(name: str) -> str:
    """SlowFast's -> Caffe2's, of SlowFast's model zoo."""
    name = name.replace("s1.pathway0_stem.conv", "conv1").replace("s1.pathway0_stem.bn", "res_conv1_bn")
    name = re.sub(r"^s(\d)\.pathway0_res(\d+)\.branch(2?)\.?", r"res\1_\2_branch\3", name).replace("head.projection", "pred")
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    first, _, last = name.rpartition(".")
    return f"{first}_{norm[last] if first.endswith('_bn') else last[0]}"


@pytest.mark.parametrize("keys", [slowfast_keys, pytorchvideo_keys, mmaction2_keys])
def test_public_slow_only_weights_load_in_their_key_order(keys: Any, tmp_path: Path) -> None:
    section = SlowResNetSection(depth=50, width=8)
    torch.manual_seed(1)
    public = SlowResNet(section, 5)
    for buffer in public.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer)
    names = {keys(name): value for name, value in public.state_dict().items()}
    assert len(names) == len(public.state_dict())
    torch.save({"epoch": 3, "model_state": names}, tmp_path / "slow.pyth")
    torch.manual_seed(2)
    student = SlowResNet(section, 5)
    load_weights(student, str(tmp_path / "slow.pyth"), "x", "slowfast")
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in public.state_dict().items())


def test_the_key_orders_have_the_names_of_the_public_files() -> None:
    """Of SLOW_8x8_R50.pkl / .pyth and slow_r50, as their repositories' modules spell them."""
    section = SlowResNetSection(depth=50, width=8)
    names = list(SlowResNet(section, 5).state_dict())
    for sample in ("s2.pathway0_res0.branch1.weight", "s4.pathway0_res5.branch2.a_bn.running_var",
                   "s5.pathway0_res2.branch2.c.weight"):  # fmt: skip
        assert sample in {slowfast_keys(name) for name in names}
    for sample in ("blocks.1.res_blocks.0.branch1_conv.weight", "blocks.4.res_blocks.2.branch2.conv_c.weight",
                   "blocks.3.res_blocks.5.branch2.norm_a.running_var", "blocks.2.res_blocks.0.branch1_norm.bias"):  # fmt: skip
        assert sample in {pytorchvideo_keys(name) for name in names}


def authors_keys(name: str) -> str:
    """Ours -> the TimeSformer authors'."""
    name = name.replace("patches.", "patch_embed.proj.").replace("position_embedding", "pos_embed")
    name = name.replace("time_embedding", "time_embed").replace("temporal_attention", "temporal_attn")
    return "model." + name.replace("temporal_norm.", "temporal_norm1.").replace(".space.", ".")


def public_timesformer(size: int = 32, frames: int = 8) -> tuple[TimeSformer, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    public = timesformer(frames=frames, size=size)
    for parameter in public.parameters():
        nn.init.normal_(parameter, std=0.1)
    tensors = {authors_keys(name): value.detach() for name, value in public.state_dict().items()}
    tensors["model.patch_embed.proj.weight"] = tensors["model.patch_embed.proj.weight"][:, :, 0]  # theirs is 2-D
    return public, tensors


@torch.no_grad()
def test_public_timesformer_weights_load_in_their_key_order(tmp_path: Path) -> None:
    public, tensors = public_timesformer()
    torch.save({"model_state": tensors}, tmp_path / "TimeSformer_divST_8x32_224_K400.pyth")
    student = timesformer(frames=8)
    load_weights(student, str(tmp_path / "TimeSformer_divST_8x32_224_K400.pyth"), "x")
    clips = torch.randn(2, 3, 8, 32, 32)
    assert torch.allclose(student(clips)[0], public.eval()(clips)[0], atol=1e-5)
    assert "model.blocks.1.temporal_attn.qkv.weight" in tensors


@torch.no_grad()
def test_embeddings_are_interpolated_to_the_clip(tmp_path: Path) -> None:
    """At load to the student's clip, and in a pass to whatever clip comes: both the same."""
    public, tensors = public_timesformer()
    where = saved(tensors, tmp_path / "t.safetensors")
    student = timesformer(frames=4, size=48)
    load_weights(student, where, "x")
    assert student.position_embedding.shape == (1, 37, 24)
    clips = torch.randn(2, 3, 4, 48, 48)
    assert torch.allclose(student(clips)[0], public.eval()(clips)[0], atol=1e-5)


@torch.no_grad()
def test_torchvisions_r3d_18_is_r3d_18(tmp_path: Path) -> None:
    torch.manual_seed(1)
    public = r3d_18(num_classes=5).eval()
    student = build_student(VideoResNetSection(), clip(4), 5).eval()
    load_weights(student, saved(public.state_dict(), tmp_path / "r3d.safetensors"), "x")
    clips = torch.randn(1, 3, 4, 32, 32)
    assert torch.allclose(student(clips)[0], public(clips), atol=1e-4)


def test_a_head_of_other_classes_stays_as_it_was(tmp_path: Path) -> None:
    student = timesformer(attention="joint")
    before = student.head.weight.clone()
    loaded = load_weights(student, saved(vit(num_classes=7).state_dict(), tmp_path / "v.safetensors"), "x")
    assert (loaded.head, loaded.their_classes) == (False, 7)
    assert torch.equal(student.head.weight, before)


def test_a_checkpoint_of_this_project_loads_by_student(tmp_path: Path) -> None:
    public, _ = public_timesformer(frames=2)
    tensors = {f"students.auxiliary.{name}": value for name, value in public.state_dict().items()}
    student = timesformer(frames=2)
    load_weights(student, saved({**tensors, "students.primary.x": torch.zeros(1)}, tmp_path / "model.safetensors"), "x")
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in public.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read"),
        (lambda path: saved({"a": torch.zeros(1)}, path), "is this the same network"),
        (lambda path: saved(vit(depth=3).state_dict(), path), "have no place in the student, the first: blocks.2."),
        (lambda path: saved(vit(embed_dim=32).state_dict(), path), "another shape, the first"),
        (lambda path: saved(vit(depth=1).state_dict(), path), "tensors are missing, the first: blocks.1."),
        (lambda path: saved({name: value.int() for name, value in vit().state_dict().items()}, path), "is torch.int32; is"),
        (
            lambda path: saved({name: value / 0 for name, value in vit().state_dict().items()}, path),
            "tensors hold NaN or infinity, the first: ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_whole(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "w.safetensors")
    student = timesformer()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_weights(student, str(tmp_path / "w.safetensors"), "auxiliary.network.weights")
    assert str(caught.value).startswith(f"auxiliary.network.weights={tmp_path}/w.safetensors: ")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_timms_names_go_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return with_pixels(vit(), (0.45,) * 3, (0.225,) * 3)

    monkeypatch.setattr(timm, "create_model", create)
    student = timesformer(attention="joint")
    load_weights(student, "timm:vit_small_patch16_224", "x")
    assert asked == [("vit_small_patch16_224", True)]
    assert torch.equal(student.patches.weight[:, :, 0], vit().patch_embed.proj.weight)


def test_plain_convolutions_take_files_of_this_project_only(tmp_path: Path) -> None:
    student, other = (PlainConv3d(PlainConv3dSection(width=8), classes) for classes in (5, 7))
    with pytest.raises(UserError, match="nobody has published weights of arch=plain_conv3d"):
        load_weights(student, "timm:resnet18", "x")
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    load_weights(student, str(tmp_path / "w.safetensors"), "x")
    assert all(torch.equal(student.layers.state_dict()[name], value) for name, value in other.layers.state_dict().items())


def with_pixels(network: nn.Module, means: tuple[float, ...], stds: tuple[float, ...]) -> nn.Module:
    """As timm's pretrained networks say what they were trained on."""
    network.pretrained_cfg = {"mean": means, "std": stds}  # type: ignore[assignment]
    return network


COLORS = [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
"""Of timm's augreg ViTs, and of ImageNet."""


@torch.no_grad()
@pytest.mark.parametrize(("means", "stds"), COLORS)
def test_downloaded_networks_see_pixels_as_they_were_trained(
    means: tuple[float, ...], stds: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    theirs = (pixels - torch.tensor(means).view(3, 1, 1)) / torch.tensor(stds).view(3, 1, 1)
    ours = (pixels - 0.45) / 0.225

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: with_pixels(vit(), means, stds))
    student: Any = timesformer(attention="joint")
    load_weights(student, "timm:vit", "x")
    nn.init.zeros_(student.time_embedding)
    assert torch.allclose(student(ours[:, :, None])[0], vit()(theirs), rtol=1e-4, atol=1e-5)

    network: Any = images(18)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: with_pixels(images(18), means, stds))
    student = SlowResNet(SlowResNetSection(depth=18, temporal_kernel=1), 5).eval()
    load_weights(student, "timm:resnet18", "x")
    wanted = network.bn1(network.conv1(theirs))
    found = student.stem[:2](ours[:, :, None])[:, :, 0]
    assert torch.allclose(found[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-5)  # but for the padding


@torch.no_grad()
def test_torchvisions_names_go_to_torchvision_and_see_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    public = r3d_18(num_classes=5).eval()
    student: Any = build_student(VideoResNetSection(), clip(4), 5).eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: public)
    load_weights(student, "torchvision:KINETICS400_V1", "x")
    pixels = torch.rand(1, 3, 4, 32, 32)
    means, stds = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    theirs = (pixels - means.view(3, 1, 1, 1)) / stds.view(3, 1, 1, 1)
    stems = [nn.Sequential(net.stem[0], net.stem[1]) for net in (student.network, public)]
    found, wanted = stems[0]((pixels - 0.45) / 0.225), stems[1](theirs)
    inner = (..., slice(1, -1), slice(2, -2), slice(2, -2))
    assert torch.allclose(found[inner], wanted[inner], rtol=1e-4, atol=1e-5)


def test_unknown_names_are_told() -> None:
    with pytest.raises(UserError, match=r"timm:nonsense: cannot be had: .*nonsense"):
        load_weights(timesformer(), "timm:nonsense", "x")
