"""Look at data: ``python -m jobs.inspect MANIFEST [--verify] [--html PAGE]``, or ``clips --config FILE --step N``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, add_config, run
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.errors import UserError, list_first
from pipeline.lifecycle.saved_run import check_inputs
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.manifest.summary import format_summary, summarize_manifest
from pipeline.manifest.verify import find_altered_files
from pipeline.methods import find_first_unlabeled_step
from pipeline.report.pages.contact_sheet import write_contact_sheet
from pipeline.report.pages.step_views import write_step_page


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects a manifest or, if the first word is ``clips``, the clips of one training step."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _write_step_page(words[1:]) if words[:1] == ["clips"] else _inspect_manifest(words)


def _inspect_manifest(argv: Sequence[str]) -> int:
    """Prints what is in a manifest. Returns 1 if ``--verify`` finds a changed file."""
    parser = argparse.ArgumentParser(prog="python -m jobs.inspect", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", help="manifest.parquet, written by jobs.prepare")
    parser.add_argument("--root", metavar="DIR", help="where the videos are now, if they moved")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its stored hash")
    parser.add_argument("--html", metavar="PAGE", type=Path, help="write a page with contact sheets and the unusable files")
    parser.add_argument("--per-class", type=int, default=6, metavar="N", help="videos on a contact sheet (default: 6)")
    options = parser.parse_args(argv)
    if options.per_class < 1:
        raise UserError(f"--per-class {options.per_class} must be at least 1")
    manifest = read_manifest(options.manifest, options.root)
    summary = summarize_manifest(manifest)
    print(format_summary(manifest, summary))
    changed = _verify_files(manifest) if options.verify else None
    if options.html:
        write_contact_sheet(manifest, summary, options.html, options.per_class, changed)
        print(f"\npage {options.html}")
    return FAILED if changed else DONE


def _verify_files(manifest: Manifest) -> list[tuple[str, str]]:
    changed = find_altered_files(manifest)
    print(f"\n{len(changed)} files are not what they were when the manifest was written" + (":" if changed else ""))
    for line in list_first([f"{uri}: {problem}" for uri, problem in changed]):
        print(f"  {line}")
    return changed


def _write_step_page(argv: Sequence[str]) -> int:
    """Writes a page with the views of one step."""
    parser = argparse.ArgumentParser(prog="python -m jobs.inspect clips", description="the views of a training step")
    add_config(parser)
    parser.add_argument("--step", type=int, required=True, metavar="N", help="optimizer step, from 0")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="default: NAME-step-N.html in the current folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(argv)
    config = load_config(options.config, options.overrides)
    out = options.out or Path(f"{config.run.name}-step-{options.step}.html")
    for file in options.config or ():
        if note := check_inputs(Path(file), config):
            print(f"note: {note}", file=sys.stderr)
    write_step_page(config, open_source(config, find_first_unlabeled_step(config))[0], options.step, out)
    print(f"page {out}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
