"""``python -m jobs.export RUN_FOLDER OUT``: a run's newest checkpoint as a model folder, which needs neither run nor data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, run
from pipeline.errors import UserError
from pipeline.export.check_clips import find_check_clips
from pipeline.export.model_folder_writer import export_model
from pipeline.lifecycle.saved_run import open_saved_run


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder, and prints its files."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.export", description=__doc__)
    arguments.add_argument("run_folder", type=Path)
    arguments.add_argument("out", type=Path, metavar="OUT", help="folder to write; an older export of the same run is replaced")
    about = "evaluation.*: the test protocol that the folder asks for, and which checkpoint"
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help=about)
    about = "add both networks and their mean as programs of torch.export (.pt2), and compare them on real clips"
    arguments.add_argument("--torch-export", action="store_true", help=about)
    about = "videos to compare them on: a file, folder, list or manifest; repeatable (default: the run's test videos)"
    arguments.add_argument("--check-on", action="append", default=[], metavar="INPUT", help=about)
    options = arguments.parse_intermixed_args(argv)
    if options.check_on and not options.torch_export:
        raise UserError("--check-on is about what --torch-export writes: give both")
    saved = open_saved_run(options.run_folder, options.overrides, ("evaluation.",))
    exported = export_model(saved, options.out, find_check_clips(saved, options.check_on) if options.torch_export else None)
    if exported.replaced_step is not None:
        print(f"note: replaced the export of step {exported.replaced_step}")
    for name, difference in exported.differences.items():
        print(f"{name}_program.pt2: largest difference of a probability {difference:.1e}, on {exported.clips} real clips")
    for name, size in exported.files.items():
        print(f"{size:12,d}  {name}")
    print(exported.folder)
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
