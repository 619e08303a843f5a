"""Checks this machine and, with options, storage and cluster: ``python -m jobs.doctor``.

Each line says what works, and what to do about what does not. The exit code is 1 if there is a problem.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.command import DONE, FAILED, make_parser, run
from pipeline.config import load_config
from pipeline.doctor import machine
from pipeline.doctor.cluster import check_configuration, check_ray, check_storage
from pipeline.doctor.decoders import check_decoders
from pipeline.doctor.findings import Finding, count_problems, format_findings


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the findings; returns 1 if one of them is a problem."""
    options = _build_parser().parse_intermixed_args(argv)
    config = load_config(options.config, options.overrides) if options.config or options.overrides else None
    runs = Path(config.run.storage_path if config and "://" not in config.run.storage_path else "runs")
    findings: list[Finding] = [machine.check_python(), *machine.check_packages(), machine.check_gpu(), *check_decoders()]
    findings += [machine.check_files(), machine.check_shared_memory(), *machine.check_disk(machine.list_checked_folders(runs))]
    findings += [machine.check_proxies(), machine.check_terminal_encoding(), *check_ray()]
    findings += [check_storage(folder) for folder in options.storage]
    findings += [check_configuration(config)] if config else []
    problems = count_problems(findings)
    if options.json:
        report = {"version": find_version(), "problems": problems, "findings": [finding.to_dict() for finding in findings]}
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(format_findings(findings)))
        print(f"{problems} problems" if problems else "no problem found")
    return FAILED if problems else DONE


def find_version() -> str:
    """Returns the version of this project, or what is known of it where it is not installed."""
    try:
        return version(machine.PROJECT)
    except PackageNotFoundError:
        return "not installed"


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser("doctor", __doc__, "--config jobs/configs/demo.yaml")
    parser.add_argument("--json", action="store_true", help="print a JSON object, to be attached to a report of a bug")
    parser.add_argument(
        "--storage", action="append", default=[], metavar="URI", help="write, read and delete a file there; repeatable"
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="whether the cluster or machine has what it reserves")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(main))
