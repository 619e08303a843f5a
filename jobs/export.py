"""``python -m jobs.export RUN_FOLDER OUT``: a run's newest checkpoint as a model folder, which needs neither run nor data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, run
from pipeline.errors import UserError
from pipeline.export.check_clips import find_check_clips
from pipeline.export.int8_figures import describe_int8
from pipeline.export.int8_videos import find_int8_videos
from pipeline.export.model_folder_writer import export_model
from pipeline.export.onnx_programs import check_packages
from pipeline.export.programs import ProgramRequest
from pipeline.lifecycle.saved_run import SavedRun, open_saved_run

ALLOWED = ("evaluation.", "data.manifest=", "data.labels=", "data.root=")
"""The keys that may be overridden: how the model is to be evaluated, and where the run's data lies now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder, and prints its files."""
    options = _build_parser().parse_intermixed_args(argv)
    saved = open_saved_run(options.run_folder, options.overrides, ALLOWED)
    exported = export_model(saved, options.out, _choose_programs(saved, options))
    if exported.replaced_step is not None:
        print(f"note: replaced the export of step {exported.replaced_step}")
    for note in exported.notes:
        print(f"note: {note}")
    if programs := exported.programs:
        for name, difference in programs.differences.items():
            print(f"{name}: largest difference of a probability {difference:.1e}, on {programs.clips} real clips")
        if programs.int8:
            print("\n".join(describe_int8(programs.int8)))
    for name, size in exported.files.items():
        print(f"{size:12,d}  {name}")
    print(exported.folder)
    return DONE


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; an older export of the same run is replaced")
    about = "evaluation.*: the test protocol that the folder asks for, and which checkpoint; data.manifest, data.labels and "
    about += "data.root of data that moved, on which programs are compared"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=about)
    about = "add both networks and their mean as programs of torch.export (.pt2), and compare them on real clips"
    parser.add_argument("--torch-export", action="store_true", help=about)
    about = "add both networks and their mean as ONNX files, and compare them on real clips"
    parser.add_argument("--onnx", action="store_true", help=about)
    about = "the same, and int8 ONNX files, whose accuracy on labeled videos, size and time are measured against the float ones"
    parser.add_argument("--onnx-int8", action="store_true", help=about)
    about = "videos to compare programs on: a file, folder, list or manifest; repeatable (default: the run's test videos)"
    parser.add_argument("--check-on", action="append", default=[], metavar="INPUT", help=about)
    return parser


def _choose_programs(saved: SavedRun, options: argparse.Namespace) -> ProgramRequest | None:
    if not (options.torch_export or options.onnx or options.onnx_int8):
        if options.check_on:
            raise UserError("--check-on is about the programs that --torch-export and --onnx write: give one of them")
        return None
    is_onnx = options.onnx or options.onnx_int8
    if is_onnx:
        check_packages("--onnx")
    int8 = find_int8_videos(saved, options.check_on) if options.onnx_int8 else None
    return ProgramRequest(options.torch_export, is_onnx, find_check_clips(saved, options.check_on), int8)


if __name__ == "__main__":
    raise SystemExit(run(main))
