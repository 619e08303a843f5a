"""That the device computes what the CPU does, that a resumed run has the same bits, and that nothing in a step waits."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from pipeline.clips.views import make_strong_views, make_weak_views
from pipeline.config import STUDENTS, Config, TrainSection
from pipeline.hardware import configure_torch
from pipeline.methods import METHODS, UnlabeledViews, Views, build_method, compute_loss_weights, make_views
from pipeline.stream.upload_ahead import UploadAhead
from pipeline.students.slow_resnet import FramePool
from pipeline.training.checkpoints import checkpoint
from tests.gpu.setting import CLASSES, full_config, make_batch, make_setting, on_host, small_config
from tests.gpu.table import Row, at_most, error_in_a_line, guarded, must

FRAME_CONTRAST = {"contrast": {"level": "frame", "features": "projection"}}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "bf16": {"train": {"precision": "bf16"}},
    "fp16": {"train": {"precision": "fp16"}},
    "two parts, means of weights": {"train": {"accumulation": 2, "ema_decay": 0.9}},
    "activation checkpointing": {"train": {"activation_checkpointing": True}},
    "mixup": {"method": {"supervised": {"mixup": 0.4}}},
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


def check_correctness(device: torch.device, small: bool, end: float) -> Iterator[Row]:
    """All of it, with the switches that the program sets; what finds most first."""
    configure_torch(TrainSection())
    methods = ("actnetformer",) if small else tuple(METHODS)
    yield from guarded("views of the device", lambda: check_views(device, small))
    yield from guarded("a step against float64", lambda: check_step(device, small))
    yield from guarded("ReLU and maxima", lambda: check_maxima(device))
    yield from guarded("uploads ahead", lambda: check_uploads(device))
    yield from guarded("steps that wait for the device", lambda: check_waiting(device))
    yield from guarded("a resumed run", lambda: check_resume(device))
    yield from guarded("options", lambda: check_options(device, methods))


def check_views(device: torch.device, small: bool) -> list[Row]:
    """Views of the device against those of the CPU, of the same seeds."""
    config = small_config() if small else full_config(8)
    clips = make_batch(config).primary.flatten(0, 1)[:16]
    seeds, size = list(range(len(clips))), config.primary.clip.size
    rows = []
    for name, make in (("weak", make_weak_views), ("strong", make_strong_views)):
        here = make(clips, seeds, config.views, size)
        there = make(clips.to(device), seeds, config.views, size).cpu()
        far = (here - there).abs()
        if name == "weak":
            rows.append(at_most("weak views, largest difference from the CPU's", float(far.max()), 1e-5, correctness=True))
        else:  # equalized and posterized pixels may fall on the other side of a level
            share = float((far > 1e-4).float().mean())
            rows.append(at_most("strong views, share of pixels that differ by over 1e-4", share, 1e-3, correctness=True))
    alone = make_strong_views(clips[3:4].to(device), seeds[3:4], config.views, size)
    together = make_strong_views(clips.to(device), seeds, config.views, size)[3:4]
    return [*rows, must("a clip has the same bits alone and in a batch", torch.equal(alone, together))]


def check_options(device: torch.device, of: Sequence[str]) -> Iterator[Row]:
    """One step at small size of these methods with every option: whether its loss is a number."""
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
                failed.append(f"{name}: {error_in_a_line(error)}")
        yield must(f"{option}: a step of {len(methods)} methods", not failed, "; ".join(failed))


def check_resume(device: torch.device) -> list[Row]:
    """Six steps at once, and three, a checkpoint, and three more, with ``train.deterministic``."""
    config = small_config(train={"deterministic": True, "precision": "bf16" if device.type == "cuda" else "fp32"})
    configure_torch(config.train)
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
        configure_torch(TrainSection())
    one, other = whole.state.method.state_dict(), second.state.method.state_dict()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    return [must("a resumed run has the same bits as an uninterrupted one", not differ, ", ".join(differ[:3]))]


def check_waiting(device: torch.device) -> Iterator[Row]:
    """Steps of every method, from clips in pinned memory that are sent ahead as in training, under CUDA's own watch for
    synchronization. The watch does not see copies from memory that is not pinned: the profile in the speed part does."""
    if device.type != "cuda":
        yield Row("steps that wait for the device", None, note="needs CUDA; without it: tests/training/test_device_step.py")
        return
    failed = []
    for name in METHODS:
        config = small_config(method={"name": name}, train={"precision": "bf16"})
        setting = make_setting(config, device)
        uploads = UploadAhead(iter([on_host(make_batch(config, step), device) for step in range(4)]), device)
        for _ in range(2):  # warm up: memory is reserved, kernels are loaded and chosen
            setting.take_step(uploads.take())
            uploads.start_next()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            setting.take_step(uploads.take())
            uploads.start_next()
        except RuntimeError as error:
            failed.append(f"{name}: {error_in_a_line(error)}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    yield must("no step waits for the device", not failed, "; ".join(failed))


def check_uploads(device: torch.device, steps: int = 20) -> list[Row]:
    """Clips that are sent ahead while the device is busy arrive whole: sums of each of so many different batches, on the device
    and on the host. Neither side keeps a batch longer than training does, so that its memory is used again."""
    config, totals, arrived = small_config(), [], []
    # 30 MB of clips a step, and 50 ms of products: the device is busy when the next clips are sent, and longer than they take
    repeats, side, products = (16, 8192, 20) if device.type == "cuda" else (1, 64, 1)

    def batches() -> Iterator[Any]:
        for step in range(steps):
            small = make_batch(config, step)
            larger = {name: getattr(small, name).repeat(1, 1, 1, repeats, repeats, 1) for name in STUDENTS}
            batch = replace(small, **larger)
            totals.append([int(getattr(batch, name).sum(dtype=torch.int64)) for name in STUDENTS])
            yield on_host(batch, device)

    uploads = UploadAhead(batches(), device)
    busy = torch.randn(side, side, device=device)
    for _ in range(steps):
        batch = uploads.take()
        for _ in range(products):
            busy = torch.nn.functional.normalize(busy @ busy)
        arrived.append(torch.stack([getattr(batch, name).sum(dtype=torch.int64) for name in STUDENTS]))
        del batch
        uploads.start_next()
    wrong = [step for step, sums in enumerate(arrived) if sums.tolist() != totals[step]]
    return [must(f"clips of {steps} steps arrive whole while the device computes", not wrong, f"wrong: {wrong}" * bool(wrong))]


# ------------------------------------------------------------------------------------------------ a step in float64

LIMITS = {
    "fp32": ("highest", torch.float32, 1e-4, 1e-3),
    "TF32": ("high", torch.float32, 5e-3, 2e-2),
    "bf16": ("high", torch.bfloat16, 3e-2, 0.2),
}
"""Precision of products, type of autocast, and how far losses and gradients may be from float64's: two to four times what
rounding alone does, and for fp32, which must leave no room for a wrong kernel, 36 times. Measured on a CPU with this check's
students and clips (for TF32 by rounding what products take, forward and backward, to 10 bits): the primary's gradient is off by
2.8e-5 (fp32), 4.9e-3 (TF32) and 0.071 (bf16), losses by at most 7e-7, 1.6e-3 and 1.5e-2.

With its kinks, a Slow-ResNet50 at random weights has no gradient that can be compared: a value within rounding of 0, or two
within rounding of a maximum, have one gradient or another, and fifty layers make much of it. On a CPU fp32 was off by 0.0012 to
0.013 already and bf16 by 0.15 to 0.95, at last norms of 0 to 0.5. Without kinks fp32 is off by 1.1e-4 at last norms of 1; at
0 the residual branches would have no gradient to compare."""
STEP_SIZE = {"decode_size": 128, "size": 112}
"""Pixels. The students are the paper's; At 224, float64 takes four times as long."""
LAST_NORMS = 0.3
"""Weight of the norm that ends each residual branch of the primary."""


class WithoutKinks(TorchFunctionMode):
    """SiLU for ReLU and means for the stem's maxima: functions whose gradients do not jump. (GELU has tails so small that a CPU
    is slow with them.)"""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("relu", "relu_"):
            return torch.nn.functional.silu(args[0])
        if name == "max_pool2d":
            return torch.nn.functional.avg_pool2d(args[0], 3, stride=2, padding=1)
        return function(*args, **(kwargs or {}))


def check_step(device: torch.device, small: bool) -> Iterator[Row]:
    """Losses and gradients of a step against those of float64 on the CPU, all terms of ActNetFormer counting."""
    config = small_config() if small else _step_config()
    batch = make_batch(config)
    views = make_views(batch, config, 0, "cpu")
    reference, margin = _losses_and_gradients(config, views, torch.device("cpu"), torch.float64)
    yield Row("smallest lead of a pseudo-label over the next class", margin, note="too small a lead would let labels flip")
    for name, (products, dtype, loss_limit, gradient_limit) in LIMITS.items():
        if device.type != "cuda" and name != "fp32":
            continue
        with float32_products(products):
            found, _ = _losses_and_gradients(config, views, device, torch.float32, dtype)
        for key, value in reference.items():
            far = float((found[key] - value).norm() / value.norm().clamp(min=1e-12))
            limit = gradient_limit if key.startswith("gradient") else loss_limit
            yield at_most(f"{name}: {key}, relative distance from float64", far, limit, correctness=True)


def _step_config() -> Config:
    clip = {"clip": {"size": STEP_SIZE["size"]}}
    return full_config(1, 2, data={"decode_size": STEP_SIZE["decode_size"]}, primary=clip, auxiliary=clip)


def check_maxima(device: torch.device) -> Iterator[Row]:
    """ReLU and the stem's maxima, without which the check of a step goes, against the CPU's."""
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        given = torch.randn(2, 16, 4, 28, 28, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
        found = []
        for place in (torch.device("cpu"), device):
            maps = given.to(place).requires_grad_()
            pooled = torch.relu(FramePool()(maps))
            (pooled * torch.arange(28 // 2, device=place)).sum().backward()
            assert maps.grad is not None
            found.append((pooled.detach().cpu(), maps.grad.cpu()))
        far = max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))
        name = str(layout).removeprefix("torch.")
        yield at_most(f"ReLU and maxima, {name}: largest difference from the CPU's", far, 1e-5, correctness=True)


def _losses_and_gradients(
    config: Config, views: Views, device: torch.device, dtype: torch.dtype, autocast: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], float]:
    """By name, in float64 on the CPU; and the smallest difference of the two largest probabilities of an unlabeled clip."""
    method = _well_conditioned(config).to(device, dtype)

    def there(clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.to(device, dtype) for name, value in clips.items()}

    unlabeled = views.unlabeled
    assert unlabeled is not None
    moved = Views(there(views.labeled), views.labels.to(device), UnlabeledViews(
        there(unlabeled.weak), there(unlabeled.strong), unlabeled.hidden_labels.to(device), unlabeled.videos.to(device)
    ))  # fmt: skip
    with WithoutKinks(), torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
        results = method(moved, compute_loss_weights(config.method, 10**6))
    results["loss"].backward()
    found = {name: results[name] for name in ("loss", "contrast_loss")}
    for name in STUDENTS:
        found[f"supervised_loss/{name}"] = results[f"supervised_loss/{name}"]
        found[f"pseudo_label_loss/{name}"] = results[f"pseudo_label_loss/{name}"]
        parameters = method.students[name].named_parameters()
        gradients = {key: value.grad.flatten() for key, value in parameters if value.grad is not None}
        found[f"gradient/{name}"] = torch.cat(list(gradients.values()))
        if branches := [value for key, value in gradients.items() if ".residual." in key]:
            found[f"gradient/{name}, residual branches"] = torch.cat(branches)
    leads = [results[f"scores/{name}"].topk(2, dim=1).values for name in STUDENTS]
    margin = min(float((lead[:, 0] - lead[:, 1]).min()) for lead in leads)
    return {name: value.detach().cpu().double() for name, value in found.items()}, margin


def _well_conditioned(config: Config) -> Any:
    """The method with a head that is far from 0, so that rounding flips no pseudo-label, and ``LAST_NORMS``."""
    torch.manual_seed(0)
    method = build_method(config, CLASSES)
    for name in STUDENTS:
        head: Any = method.students[name].head
        torch.nn.init.normal_(head.weight, std=10 / head.weight.shape[1] ** 0.5)
    for block in cast(Any, method.students["primary"]).blocks:
        torch.nn.init.constant_(block.residual[-1].weight, LAST_NORMS)
    return method
