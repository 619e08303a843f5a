"""cluster/grafana.json shows what a training exports, under the names that Ray gives it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import train
from jobs.command import run
from pipeline.run_folder.contents import read_metrics
from pipeline.stream import object_store
from pipeline.training.on_ray.prometheus import select_gauges

SELECTED = re.compile(r'(\w+)\{run=~"\$run"(?:, of=~"([^"]+)")?\}')


@pytest.fixture(scope="module")
def dashboard(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "cluster" / "grafana.json").read_text(encoding="utf-8"))
    return found


def test_every_panel_shows_what_is_exported(
    dashboard: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.steps=2", "method.confidence_threshold=0.01", f"run.storage_path={tmp_path}"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == 0
    monkeypatch.setattr(object_store, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(object_store, "read_store_use", lambda: SimpleNamespace(used=1, spilled=0))
    line = {**read_metrics(tmp_path / "tiny")[-1], **object_store.read_store_figures()}
    exported = {(f"ray_{name}", of) for name, of in select_gauges(line)}
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            ((name, of),) = SELECTED.findall(target["expr"])
            wanted = {(name, one) for one in of.split("|")} if of else {pair for pair in exported if pair[0] == name}
            assert wanted and wanted <= exported, (panel["title"], wanted - exported)
            shown |= wanted
    names = {name.removeprefix("ray_actnetformer_") for name, _ in shown}
    assert {
        "loss",
        "mask_rate",
        "pseudo_label_accuracy",
        "clips_per_second",
        "memory_mb",
        "gradient_norm",
        "signatures",
    } <= names
    assert ("ray_actnetformer_seconds", "data_share") in shown and ("ray_actnetformer_memory", "store_megabytes") in shown


def test_it_asks_whichever_prometheus_one_has(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [variables["run"]["datasource"]]
    for panel in dashboard["panels"]:
        sources += [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 10
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])
