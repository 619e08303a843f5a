"""Where a line of metrics goes: metrics.jsonl, the terminal, TensorBoard's files; MLflow and Weights & Biases if asked for.

metrics.jsonl is the truth. Only the first worker writes, and what a run that continues finds there decides: TensorBoard's
files are written anew from it, and the others get every line whose step is later than the last they have. So after whatever
restart each of them holds every step once.
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
from pipeline.run_folder.contents import append_metrics, flat, read_metrics, write_text
from pipeline.training.monitoring.failure_signatures import Watch
from pipeline.training.monitoring.metric_line import shown

Line = Mapping[str, Any]
IDENTITIES = "tracking.json"
"""In the run folder: which runs of which trackers this run is."""


class Tracker(Protocol):
    """What takes lines, each later than the one before."""

    last: int
    """Step of the last line that it has; 0 without one."""

    def log(self, line: Line) -> None:
        """Take one line."""

    def close(self) -> None:
        """Nothing more comes."""


class Outlets:
    """All that a line of this run goes to; a context, whose end waits until trackers have what they were given."""

    def __init__(
        self, config: Config, folder: Path, num_classes: int, publish: Callable[[Line], None] = lambda line: None
    ) -> None:
        """Raises UserError if a tracker does not answer."""
        self.config, self.folder, self.publish = config, folder, publish
        lines = read_metrics(folder)
        self.watch = Watch(config.monitors, num_classes)
        for line in lines:
            self.watch.see(line)
        self.trackers: list[Tracker] = _tensorboard(folder)
        if config.tracking.mlflow:
            self.trackers.append(MLflow(config, folder))
        if config.tracking.wandb:
            self.trackers.append(WeightsAndBiases(config, folder))
        for line in lines:
            self._track(line)

    def __call__(self, line: dict[str, Any]) -> None:
        """Write, show and send one line, and tell which signatures of failure it completes."""
        told = self.watch.see(line)
        line["signatures"] = [finding.name for finding in self.watch.present]
        append_metrics(self.folder, line)
        print(shown(line, self.config.train.steps), flush=True)
        for finding in told:
            print(f"warning: {finding}", flush=True)
        self._track(line)
        self.publish(line)

    def _track(self, line: Line) -> None:
        for tracker in self.trackers:
            if line["step"] > tracker.last:
                tracker.log(line)
                tracker.last = line["step"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self.trackers:
            tracker.close()


def check_tracking(tracking: TrackingSection) -> None:
    """Raises UserError for a tracker that is not installed: before a run starts, not at its first line."""
    for name, wanted in (("mlflow", tracking.mlflow), ("wandb", tracking.wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.{name} needs {name}: pip install 'actnetformer[{name}]', or leave tracking.{name} away")


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line, without its step; histograms and what has no value are left out."""
    return {name: float(value) for name, value in line.items() if isinstance(value, int | float) and name != "step"}


def _tensorboard(folder: Path) -> list[Tracker]:
    """TensorBoard's files, or nothing and a remark where tensorboardX is missing: metrics.jsonl has all that they have."""
    try:
        return [TensorBoard(folder)]
    except ImportError:
        print("note: without tensorboardX no files for TensorBoard are written (pip install tensorboardX)", flush=True)
        return []


class TensorBoard:
    """``tensorboard/`` of the run folder, made anew: its files can only be appended to, and a kill leaves steps too many."""

    last = 0

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # takes 0.3 s, on the first worker only

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"), write_to_disk=True)

    def log(self, line: Line) -> None:
        """Every number is a curve, and confidence a histogram of its tenths."""
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])
        for name, shares in line.items():
            if name.startswith("confidence/"):
                ends = [(tenth + 1) / len(shares) for tenth in range(len(shares))]
                middles = [(share, end - 0.5 / len(shares)) for share, end in zip(shares, ends, strict=True)]
                moments = [sum(share * middle**power for share, middle in middles) for power in (0, 1, 2)]
                self._writer.add_histogram_raw(name, 0.0, 1.0, *moments, ends, shares, line["step"])

    def close(self) -> None:
        """Flush."""
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
            self._run = _identity(folder, "mlflow", lambda: self._create(config), self._uri)
            history = self._client.get_metric_history(self._run, "epoch")  # every line has one
            self._client.update_run(self._run, status="RUNNING")
        except Exception as error:  # whatever the client or the network raises
            raise UserError(f"tracking.mlflow={self._uri} does not answer as MLflow's server: {_first_line(error)}") from error
        self.last = max((metric.step for metric in history), default=0)
        self._unsent: list[Line] = []
        self._warned = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")

    def log(self, line: Line) -> None:
        """Returns at once."""
        self._thread.submit(self._send, line)

    def close(self) -> None:
        """Waits for the thread, and says how the run ended."""
        self._thread.submit(self._end)
        self._thread.shutdown(wait=True)

    def _create(self, config: Config) -> str:
        found = self._client.get_experiment_by_name(config.tracking.project)
        experiment = found.experiment_id if found else self._client.create_experiment(config.tracking.project)
        run: str = self._client.create_run(experiment, run_name=config.run.name).info.run_id
        for name, value in flat(config.model_dump(mode="json")).items():
            self._client.log_param(run, name, value)
        return run

    def _send(self, line: Line | None = None) -> None:
        self._unsent += [line] if line else []
        now = round(1000 * time.time())
        try:
            while self._unsent:
                first = self._unsent[0]
                metrics = [self._metric(name, value, now, first["step"]) for name, value in scalars(first).items()]
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
        run_id = _identity(folder, "wandb", lambda: uuid.uuid4().hex[:8], str(config.tracking.wandb))
        try:
            self._run = wandb.init(
                project=config.tracking.project, name=config.run.name, id=run_id, resume="allow", dir=str(folder),
                mode=config.tracking.wandb, config=config.model_dump(mode="json"),
            )  # fmt: skip
        except Exception as error:
            raise UserError(f"tracking.wandb={config.tracking.wandb}: {_first_line(error)}") from error
        self.last = int(_identities(folder).get("wandb_step", 0))

    def log(self, line: Line) -> None:
        """W&B sends it in a process of its own."""
        self._run.log(scalars(line), step=line["step"])
        _remember(self._folder, wandb_step=line["step"])  # offline there is no server to ask

    def close(self) -> None:
        """Waits until all is written."""
        self._run.finish()


def _identity(folder: Path, tracker: str, create: Callable[[], str], where: str | None) -> str:
    """The id of this run at a tracker and place, made at the first time."""
    known: Any = _identities(folder).get(tracker, {})
    if known.get("where") != where:
        known = {"where": where, "id": create()}
        _remember(folder, **{tracker: known})
    return str(known["id"])


def _identities(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITIES
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _remember(folder: Path, **known: Any) -> None:
    write_text(folder / IDENTITIES, json.dumps({**_identities(folder), **known}, indent=1))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
