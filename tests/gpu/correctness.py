"""That the device computes what the CPU does, that a resumed run has the same bits, and that nothing in a step waits."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.clips.views import strong_views, weak_views
from pipeline.methods import METHODS, STUDENTS, Views, build_method, loss_weights, make_views
from pipeline.training import checkpoint
from tests.gpu.setting import CLASSES, full_config, make_batch, make_setting, small_config
from tests.gpu.table import Row, at_most, must

FRAME_CONTRAST = {"contrast_level": "frame", "contrast_features": "projection"}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "bf16": {"train": {"precision": "bf16"}},
    "fp16": {"train": {"precision": "fp16"}},
    "two parts, means of weights": {"train": {"accumulation": 2, "ema_decay": 0.9}},
    "activation checkpointing": {"train": {"activation_checkpointing": True}},
    "mixup": {"method": {"mixup": 0.4}},
    **{f"{name} thresholds": {"method": {"labels": {"thresholds": name}}} for name in ("flexmatch", "freematch", "softmatch")},
    "frame contrast": {"method": FRAME_CONTRAST, "data": {"moments": "shared"}},
}
"""What each method takes one step with."""
ACTNETFORMER_ALONE = ("frame contrast",)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """fp32 products and convolutions as such ("highest") or by TF32 ("high")."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def check_correctness(device: torch.device, small: bool) -> list[Row]:
    """All parts of it, in order of cost."""
    methods = ("actnetformer",) if small else tuple(METHODS)
    rows = check_views(device, small) + check_options(device, methods) + check_resume(device) + check_waiting(device)
    return rows + check_step(device, small)


def check_views(device: torch.device, small: bool) -> list[Row]:
    """Views of the device against those of the CPU, of the same seeds."""
    config = small_config() if small else full_config(8)
    clips = make_batch(config).primary.flatten(0, 1)[:16]
    seeds, size = list(range(len(clips))), config.primary.clip.size
    rows = []
    for name, make in (("weak", weak_views), ("strong", strong_views)):
        here = make(clips, seeds, config.views, size)
        there = make(clips.to(device), seeds, config.views, size).cpu()
        far = (here - there).abs()
        if name == "weak":
            rows.append(at_most("weak views, largest difference from the CPU's", float(far.max()), 1e-5, correctness=True))
        else:  # equalized and posterized pixels may fall on the other side of a level
            share = float((far > 1e-4).float().mean())
            rows.append(at_most("strong views, share of pixels that differ by over 1e-4", share, 1e-3, correctness=True))
    alone = strong_views(clips[3:4].to(device), seeds[3:4], config.views, size)
    together = strong_views(clips.to(device), seeds, config.views, size)[3:4]
    return [*rows, must("a clip has the same bits alone and in a batch", torch.equal(alone, together))]


def check_options(device: torch.device, of: Sequence[str]) -> list[Row]:
    """One step at small size of these methods with every option: whether its loss is a number."""
    rows = []
    for option, sections in OPTIONS.items():
        failed = []
        methods = ("actnetformer",) if option in ACTNETFORMER_ALONE else of
        for name in methods:
            config = small_config(**{**sections, "method": {"name": name, **sections.get("method", {})}})
            try:
                setting = make_setting(config, device)
                loss = setting.take_step(make_batch(config, device=device))["loss"]
                if not bool(loss.isfinite()):
                    failed.append(f"{name}: loss {float(loss)}")
            except Exception as error:  # whatever it is: the row says so, and the others go on
                failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        rows.append(must(f"{option}: a step of {len(methods)} methods", not failed, "; ".join(failed)))
    return rows




def check_resume(device: torch.device) -> list[Row]:
    """Six steps at once, and three, a checkpoint, and three more, with ``train.deterministic``."""
    config = small_config(train={"deterministic": True, "precision": "bf16" if device.type == "cuda" else "fp32"})
    torch.use_deterministic_algorithms(True)
    try:
        whole = make_setting(config, device)
        for step in range(6):
            whole.take_step(make_batch(config, step, device))
        first, second = make_setting(config, device), make_setting(config, device)
        for step in range(3):
            first.take_step(make_batch(config, step, device))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.load(second.state, checkpoint.save(first.state, Path(folder)))
        for step in range(3, 6):
            second.take_step(make_batch(config, step, device))
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = whole.state.method.state_dict(), second.state.method.state_dict()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    return [must("a resumed run has the same bits as an uninterrupted one", not differ, ", ".join(differ[:3]))]


def check_waiting(device: torch.device) -> list[Row]:
    """Whole steps of every method under CUDA's own watch for synchronization."""
    if device.type != "cuda":
        return [Row("steps that wait for the device", None, note="needs CUDA; without it: tests/training/test_device_step.py")]
    failed = []
    for name in METHODS:
        config = small_config(method={"name": name}, train={"precision": "bf16"})
        setting, batch = make_setting(config, device), make_batch(config, device=device)
        setting.take_step(batch)  # warms up: memory is reserved, kernels are loaded
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            setting.take_step(batch)
        except RuntimeError as error:
            failed.append(f"{name}: {str(error).splitlines()[0][:100]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [must("no step waits for the device", not failed, "; ".join(failed))]


# ------------------------------------------------------------------------------------------------ a step in float64


def check_step(device: torch.device, small: bool) -> list[Row]:
    """Losses and gradients of a step against those of float64 on the CPU, all terms of ActNetFormer counting."""
    config = small_config() if small else full_config(1, 2)
    batch = make_batch(config)
    views = make_views(batch, config, 0, "cpu")
    reference, margin = _losses_and_gradients(config, views, torch.device("cpu"), torch.float64)
    rows = [Row("smallest lead of a pseudo-label over the next class", margin, note="too small a lead would let labels flip")]
    kinds = {"fp32": ("highest", torch.float32, 1e-4, 1e-3)}
    if device.type == "cuda":
        kinds |= {"TF32": ("high", torch.float32, 5e-3, 5e-3), "bf16": ("high", torch.bfloat16, 3e-2, 3e-2)}
    for name, (products, dtype, loss_limit, gradient_limit) in kinds.items():
        with float32_products(products):
            found, _ = _losses_and_gradients(config, views, device, torch.float32, dtype)
        for key, value in reference.items():
            far = float((found[key] - value).norm() / value.norm().clamp(min=1e-12))
            limit = gradient_limit if key.startswith("gradient") else loss_limit
            rows.append(at_most(f"{name}: {key}, relative distance from float64", far, limit, correctness=True))
    return rows


def _losses_and_gradients(
    config: Any, views: Views, device: torch.device, dtype: torch.dtype, autocast: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], float]:
    """By name, in float64 on the CPU; and the smallest difference of the two largest probabilities of an unlabeled clip."""
    torch.manual_seed(0)
    method = build_method(config, CLASSES)
    for name in STUDENTS:  # a head near 0 would leave pseudo-labels to rounding
        head: Any = method.students[name].head
        torch.nn.init.normal_(head.weight, std=10 / head.weight.shape[1] ** 0.5)
    method = method.to(device, dtype)

    def there(clips: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        assert clips is not None
        return {name: value.to(device, dtype) for name, value in clips.items()}

    assert views.hidden_labels is not None and views.videos is not None
    moved = Views(there(views.labeled), views.labels.to(device), there(views.weak), there(views.strong),
                  views.hidden_labels.to(device), views.videos.to(device))  # fmt: skip
    with torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
        results = method(moved, loss_weights(config.method, 10**6))
    results["loss"].backward()
    found = {name: results[name] for name in ("loss", "contrast_loss")}
    for name in STUDENTS:
        found[f"supervised_loss/{name}"] = results[f"supervised_loss/{name}"]
        found[f"pseudo_label_loss/{name}"] = results[f"pseudo_label_loss/{name}"]
        gradients = [parameter.grad.flatten() for parameter in method.students[name].parameters() if parameter.grad is not None]
        found[f"gradient/{name}"] = torch.cat(gradients)
    leads = [results[f"scores/{name}"].topk(2, dim=1).values for name in STUDENTS]
    margin = min(float((lead[:, 0] - lead[:, 1]).min()) for lead in leads)
    return {name: value.detach().cpu().double() for name, value in found.items()}, margin
