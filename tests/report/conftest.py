"""The reports that several files of tests look at."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.manifest.schema import Manifest
from pipeline.report.report import Report, write_report
from tests.study_folders import write_rates, write_search, write_weights


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_run: Any) -> dict[str, Report]:
    """A single run's report, and that of two methods with two seeds each."""
    parent = tmp_path_factory.mktemp("reports")
    several = [
        write_run(parent / "several", manifest, method=method, seed=seed, margin=margin)
        for method, margin in (("supervised", 0.5), ("actnetformer", 2.0))
        for seed in (0, 1)
    ]
    return {
        "single": write_report([write_run(parent / "single", manifest)]),
        "several": write_report(several),
        **{study.name: write_report([study]) for study in (
            write_weights(parent, manifest, write_run), write_rates(parent, manifest, write_run),
            write_search(parent, manifest, write_run))},
    }  # fmt: skip
