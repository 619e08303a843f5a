"""Run a configuration: in this process, or as a Ray Train TorchTrainer. The rim between Ray and the loop."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from pipeline.clips.batch import Batch
from pipeline.clips.source import Source, open_source
from pipeline.clips.stream import local_batches, ray_stream, shard_batches
from pipeline.clips.views import check_views
from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, UserError
from pipeline.methods import build_method
from pipeline.resources import Resources
from pipeline.run_folder import Fingerprints, check_run, open_run
from pipeline.training import checkpoint
from pipeline.training.loop import Run, Worker, train


@dataclass(frozen=True)
class Prepared:
    """A checked run: everything that can be wrong with the user's input was looked at."""

    run: Run
    source: Source
    facts: dict[str, Any]
    """What facts.json will say beside versions and fingerprints."""

    @property
    def step(self) -> int:
        """The step of the newest whole checkpoint, 0 without one."""
        newest, _ = checkpoint.newest(self.run.folder)
        return 0 if newest is None else int(checkpoint.read_facts(newest)["step"])

    @property
    def finished(self) -> bool:
        """Whether the newest whole checkpoint is the last one."""
        return self.step >= self.run.config.train.steps

    def up_to(self, step: int) -> Prepared:
        """The same run, to be stopped at ``step``; it goes on from there to the same bits."""
        return replace(self, run=replace(self.run, until=step))

    def open(self) -> None:
        """Make the run folder: the first thing that is written, after everything was checked."""
        open_run(self.run.config, self.run.prints, self.facts)


def prepare(config: Config) -> Prepared:
    """Read and check the inputs and the run folder. Raises UserError; writes nothing."""
    config = config.with_absolute_paths()
    if "://" in config.run.storage_path:
        raise UserError(f"run.storage_path={config.run.storage_path}: run folders need a local or shared folder, not a URI")
    source, labels = open_source(config)
    prints = Fingerprints(config.fingerprint(), source.manifest.fingerprint, labels.fingerprint)
    classes = source.manifest.classes
    usable = len(source.plan.labeled) + len(source.plan.unlabeled)
    run = Run(config, source.plan, len(classes), usable, prints, config.run_folder)
    facts: dict[str, Any] = {
        "method": config.method.name,
        "classes": list(classes),
        "manifest": {"path": config.data.manifest, "fingerprint": prints.manifest, "videos": source.manifest.table.num_rows},
        "labels": {"spec": labels.spec, "seed": labels.seed, "fingerprint": labels.fingerprint, "count": len(labels.ids)},
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]] if sys.orig_argv[1:2] == ["-m"] else sys.argv),
    }
    check_views(config.views)
    with torch.random.fork_rng():
        students: Any = build_method(config, len(classes), *source.plan.sizes).students
    facts["parameters"] = {name: sum(p.numel() for p in student.parameters()) for name, student in students.items()}
    check_run(config, prints)
    return Prepared(run, source, facts)


def fit_here(prepared: Prepared) -> dict[str, Any]:
    """The loop in this process: breakpoints work, no Ray process starts."""
    config = prepared.run.config
    device = torch.device("cuda" if config.scale.gpu is not False and torch.cuda.is_available() else "cpu")
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    worker = Worker(rank=0, world=1, device=device, wrap=lambda method: method.to(device), report=lambda metrics: None)
    return train(prepared.run, partial(local_batches, prepared.source, ends_at(config, prepared.run.end)), worker)


def ends_at(config: Config, step: int) -> Config:
    """For streams of a run that stops on its way: nothing after ``step`` is decoded."""
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": step})})


def fit_on_ray(prepared: Prepared, resources: Resources) -> dict[str, Any]:
    """TorchTrainer over ``ray_stream``; a dead worker restarts the group from the newest checkpoint."""
    config = prepared.run.config
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(config.scale.start_timeout_seconds))
    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "until": prepared.run.until},
        datasets={"train": partial(_stream_from_newest, ends_at(config, prepared.run.end).model_dump(mode="json"), resources)},
        dataset_config=DataConfig(execution_options=options),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpu,
            resources_per_worker=resources.worker,
            label_selector=resources.train_labels or None,
        ),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=config.run.storage_path,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.train.max_failures, controller_failure_limit=2),
        ),
    )
    try:
        outcome = trainer.fit().return_value or {}
    except TrainingFailedError as error:
        raise RunFailed(f"{config.run.name} stopped after {config.train.max_failures} restarts; {_cause(error)}") from error
    if "error" in outcome:
        raise UserError(outcome["error"])
    return dict(outcome)


def _cause(error: TrainingFailedError) -> str:
    """The last lines of what the first failed worker said."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = next(iter(failures.items()))
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    return f"worker {rank}: " + " | ".join(lines[-3:])


def _open(tree: dict[str, Any]) -> tuple[Run, Source]:
    config = parse_config(tree)
    source, labels = open_source(config)
    prints = Fingerprints(config.fingerprint(), source.manifest.fingerprint, labels.fingerprint)
    usable = len(source.plan.labeled) + len(source.plan.unlabeled)
    return Run(config, source.plan, len(source.manifest.classes), usable, prints, config.run_folder), source


def _stream_from_newest(tree: dict[str, Any], resources: Resources) -> ray.data.Dataset:
    """Called by Ray's controller whenever it (re)starts the workers: the rest of the run, from the newest checkpoint on."""
    run, source = _open(tree)
    newest, _ = checkpoint.newest(run.folder)
    first_step = checkpoint.read_facts(newest)["step"] if newest else 0
    return ray_stream(source, run.config, first_step, resources)


def _train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    run = replace(_open(loop_config["config"])[0], until=loop_config["until"])
    context = ray.train.get_context()
    world, device = context.get_world_size(), get_device()
    assert isinstance(device, torch.device)
    torch.set_num_threads(run.config.scale.torch_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    share = run.plan.rows_per_step // world

    def batches(_first_step: int) -> Iterator[Batch]:
        return shard_batches(ray.train.get_dataset_shard("train"), share, device, run.config.data.decode_timeout_seconds)

    def wrap(method: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(method)
        return wrapped

    worker = Worker(context.get_world_rank(), world, device, wrap, report=lambda metrics: ray.train.report(metrics))
    try:
        return train(run, batches, worker)
    except UserError as error:  # restarting would only meet it again
        return {"error": str(error)}
