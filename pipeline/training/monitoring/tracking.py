"""Sends lines of metrics to metrics.jsonl, the terminal and TensorBoard's files, and if asked to MLflow and Weights & Biases.

metrics.jsonl is authoritative; only the first worker writes it. When a run continues, TensorBoard's files are written anew from
it. The other trackers get every line later than the last that they have, and keep lines that the run had sent after its newest
checkpoint. So each holds every step once, however often the run was restarted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pipeline.config import Config, TrackingSection
from pipeline.errors import UserError
from pipeline.run_folder.contents import append_metrics, flatten, read_metrics, write_text
from pipeline.training.monitoring.failure_signatures import SignatureMonitor
from pipeline.training.monitoring.metric_line import format_line

Line = Mapping[str, Any]
TRACKER_IDS = "tracking.json"
"""The file of the run folder that holds the ids of this run at its trackers."""


class Tracker(Protocol):
    """A program that shows metrics; it takes lines in the order of their steps."""

    last: int
    """The step of the last line that it has; 0 without one."""

    def log(self, line: Line) -> None:
        """Takes one line, which becomes the last."""

    def close(self) -> None:
        """Ends it: no more lines come."""


class MetricSinks:
    """Everything that a line of this run goes to. A context manager: on exit it waits until all trackers have their lines."""

    def __init__(
        self, config: Config, folder: Path, num_classes: int, publish: Callable[[Line], None] = lambda line: None
    ) -> None:
        """Opens the trackers and brings them up to date. Raises UserError if a tracker does not answer."""
        self.config, self.folder, self.publish = config, folder, publish
        lines = read_metrics(folder)
        self.monitor = SignatureMonitor(config.monitors, num_classes)
        for line in lines:
            self.monitor.update(line)
        self.trackers: list[Tracker] = _open_tensorboard(folder)
        if config.tracking.mlflow:
            self.trackers.append(MLflow(config, folder))
        if config.tracking.wandb:
            self.trackers.append(WeightsAndBiases(config, folder))
        for line in lines:
            self._track(line)

    def __call__(self, line: dict[str, Any]) -> None:
        """Writes, shows and sends one line, and warns of the signatures of failure that are new with it."""
        new = self.monitor.update(line)
        line["signatures"] = [finding.name for finding in self.monitor.present]
        append_metrics(self.folder, line)
        print(format_line(line, self.config.train.steps), flush=True)
        for finding in new:
            print(f"warning: {finding}", flush=True)
        self._track(line)
        self.publish(line)

    def _track(self, line: Line) -> None:
        for tracker in self.trackers:
            if line["step"] > tracker.last:
                tracker.log(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self.trackers:
            tracker.close()


def check_tracking(tracking: TrackingSection) -> None:
    """Raises UserError for a tracker that is not installed: before a run starts, not at its first line."""
    for name, wanted in (("mlflow", tracking.mlflow), ("wandb", tracking.wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.{name} needs {name}: pip install 'actnetformer[{name}]', or leave tracking.{name} unset")


def select_scalars(line: Line) -> dict[str, float]:
    """Selects the numbers of a line, without its step, histograms and metrics that have no value."""
    return {name: float(value) for name, value in line.items() if isinstance(value, int | float) and name != "step"}


def _open_tensorboard(folder: Path) -> list[Tracker]:
    """Opens TensorBoard's files, or prints a note if tensorboardX is missing."""
    try:
        return [TensorBoard(folder)]
    except ImportError:
        print("note: without tensorboardX no files for TensorBoard are written (pip install tensorboardX)", flush=True)
        return []


class TensorBoard:
    """Writes the folder ``tensorboard/`` of the run, always anew: its files can only be appended to, and may hold steps from
    after the checkpoint."""

    last = 0

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # takes 0.3 s, on the first worker only

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"), write_to_disk=True)

    def log(self, line: Line) -> None:
        """Writes every number as a point of a curve, and confidence as a histogram of its tenths."""
        self.last = line["step"]
        for name, value in select_scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])
        for name, shares in line.items():
            if name.startswith("confidence/"):
                ends = [(tenth + 1) / len(shares) for tenth in range(len(shares))]
                middles = [(share, end - 0.5 / len(shares)) for share, end in zip(shares, ends, strict=True)]
                moments = [sum(share * middle**power for share, middle in middles) for power in (0, 1, 2)]
                self._writer.add_histogram_raw(name, 0.0, 1.0, *moments, ends, shares, line["step"])

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


class MLflow:
    """A run on a tracking server, written by a thread. A server that stops answering costs a warning; its lines are kept and
    sent with later ones, or when the run is continued."""

    def __init__(self, config: Config, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 with growing pauses are minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow
        from mlflow.entities import Metric

        self._metric, self._uri = Metric, config.tracking.mlflow
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        try:
            self._run = _find_or_create_id(folder, "mlflow", lambda: self._create(config), self._uri)
            history = self._client.get_metric_history(self._run, "epoch")  # every line has one
            self._client.update_run(self._run, status="RUNNING")
        except Exception as error:  # whatever the client or the network raises
            raise UserError(f"tracking.mlflow={self._uri} does not answer as MLflow's server: {_first_line(error)}") from error
        self.last = max((metric.step for metric in history), default=0)
        self._unsent: list[Line] = []
        self._warned = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")

    def log(self, line: Line) -> None:
        """Hands the line to the thread that sends it, and returns at once."""
        self.last = line["step"]
        self._thread.submit(self._send, line)

    def close(self) -> None:
        """Waits until the thread has sent all lines, and ends the run at the server if it has them."""
        self._thread.submit(self._end)
        self._thread.shutdown(wait=True)

    def _create(self, config: Config) -> str:
        known = self._client.get_experiment_by_name(config.tracking.project)
        experiment = known.experiment_id if known else self._client.create_experiment(config.tracking.project)
        run: str = self._client.create_run(experiment, run_name=config.run.name).info.run_id
        for name, value in flatten(config.model_dump(mode="json")).items():
            self._client.log_param(run, name, value)
        return run

    def _send(self, line: Line | None = None) -> None:
        self._unsent += [line] if line else []
        now = round(1000 * time.time())
        try:
            while self._unsent:
                first = self._unsent[0]
                metrics = [self._metric(name, value, now, first["step"]) for name, value in select_scalars(first).items()]
                self._client.log_batch(self._run, metrics=metrics)
                self._unsent.pop(0)
        except Exception as error:  # an outage is not worth the run
            if not self._warned:
                print(f"warning: tracking.mlflow={self._uri}: {_first_line(error)}; lines are kept and sent later", flush=True)
            self._warned = True

    def _end(self) -> None:
        self._send()
        if self._unsent:
            print(f"warning: tracking.mlflow={self._uri}: {len(self._unsent)} lines are not there", flush=True)
        else:
            self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A W&B run, in ``wandb/`` of the run folder when offline. A run that continues is the same run by its id."""

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        self._folder = folder
        run_id = _find_or_create_id(folder, "wandb", lambda: uuid.uuid4().hex[:8], str(config.tracking.wandb))
        try:
            self._run = wandb.init(
                project=config.tracking.project, name=config.run.name, id=run_id, resume="allow", dir=str(folder),
                mode=config.tracking.wandb, config=config.model_dump(mode="json"),
            )  # fmt: skip
        except Exception as error:
            raise UserError(f"tracking.wandb={config.tracking.wandb}: {_first_line(error)}") from error
        self.last = int(_read_ids(folder).get("wandb_step", 0))

    def log(self, line: Line) -> None:
        """Hands the line to W&B, which sends it from a process of its own."""
        self.last = line["step"]
        self._run.log(select_scalars(line), step=line["step"])
        _store_ids(self._folder, wandb_step=line["step"])  # offline there is no server to ask

    def close(self) -> None:
        """Waits until everything is written."""
        self._run.finish()


def _find_or_create_id(folder: Path, tracker: str, create: Callable[[], str], where: str | None) -> str:
    """Returns the id of this run at a tracker and address; the first time it is created."""
    known: Any = _read_ids(folder).get(tracker, {})
    if known.get("where") != where:
        known = {"where": where, "id": create()}
        _store_ids(folder, **{tracker: known})
    return str(known["id"])


def _read_ids(folder: Path) -> dict[str, Any]:
    path = folder / TRACKER_IDS
    ids: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return ids


def _store_ids(folder: Path, **known: Any) -> None:
    write_text(folder / TRACKER_IDS, json.dumps({**_read_ids(folder), **known}, indent=1))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
