"""``python -m jobs.doctor``: check this machine and, with options, storage and cluster.

Each line says what works, and what to do about what does not. The exit code is 1 if there is a problem.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, find_config, find_version, make_parser, run
from pipeline.doctor.findings import Finding, count_problems, format_findings
from pipeline.doctor.packages import check_packages, check_python


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the findings; returns 1 if one of them is a problem."""
    options = _build_parser().parse_intermixed_args(argv)
    findings = [check_python(), *check_packages()]
    try:
        findings += _check_machine(options)
    except ImportError as error:
        findings.append(Finding("the rest", "problem", f"cannot be checked: {error}", "install what is missing, and ask again"))
    problems = count_problems(findings)
    if options.json:
        report = {"version": find_version(), "problems": problems, "findings": [finding.to_dict() for finding in findings]}
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(format_findings(findings)))
        print("no problem found" if not problems else f"{problems} problem{'s' * (problems > 1)}")
    return FAILED if problems else DONE


def _check_machine(options: argparse.Namespace) -> list[Finding]:
    """Checks all that needs packages. Raises ImportError if one of them is missing."""
    from pipeline.config import load_config
    from pipeline.doctor import cluster, decoders, machine
    from pipeline.doctor.packages import check_torchvision

    config = load_config(options.config, options.overrides) if options.config or options.overrides else None
    runs = Path(config.run.storage_path if config and "://" not in config.run.storage_path else "runs")
    findings = [check_torchvision(), machine.check_gpu(), *decoders.check_decoders()]
    findings += [machine.check_files(), machine.check_shared_memory(), *machine.check_disk(machine.list_checked_folders(runs))]
    findings += [machine.check_proxies(), machine.check_terminal_encoding(), *cluster.check_ray()]
    findings += [cluster.check_storage(folder) for folder in options.storage]
    return [*findings, *([cluster.check_configuration(config)] if config else [])]


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser("doctor", __doc__, "--config jobs/configs/demo.yaml", "--storage s3://bucket/runs")
    parser.add_argument("--json", action="store_true", help="print a JSON object, to be attached to a report of a bug")
    more = parser.add_argument_group("what else is checked")
    about = "whether a small file can be written, read and deleted in this folder or object store; repeatable"
    more.add_argument("--storage", action="append", default=[], metavar="URI", help=about)
    about = "whether a run of this configuration fits: a YAML file, or the name of an installed one, such as demo; repeatable"
    more.add_argument("--config", metavar="FILE", type=find_config, action="append", help=about)
    more.add_argument("overrides", nargs="*", metavar="key=value", help="changes of that configuration")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(main))
