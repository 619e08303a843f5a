"""``python -m jobs.export RUN_FOLDER OUT``: write a run's newest checkpoint as a model folder.

The folder has weights, classes, how clips are made, and a model card; it needs neither run nor data. With ``--from-checkpoint``
it is made of a network that was trained elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.command import DONE, add_config, make_parser, parse_folder, run
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.export.check_clips import find_check_clips
from pipeline.export.int8_figures import describe_int8
from pipeline.export.int8_videos import find_int8_videos
from pipeline.export.model_folder_writer import export_model
from pipeline.export.onnx_programs import require_onnx_packages
from pipeline.export.programs import ProgramRequest
from pipeline.export.trained_elsewhere import open_trained_elsewhere, parse_checkpoints, read_class_file
from pipeline.saved_models.saved_run import SavedRun, open_saved_run

ALLOWED = ("evaluation.", "data.manifest=", "data.labels=", "data.root=")
"""The keys that may be overridden: how the model is to be evaluated, and where the run's data lies now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder, and prints its files."""
    parser = _build_parser()
    options = parser.parse_intermixed_args(argv)
    count = 1 if options.from_checkpoint else 2
    if len(options.words) < count:
        parser.error("RUN_FOLDER and OUT are needed, or --from-checkpoint and OUT")
    try:
        folders, overrides = [parse_folder(word) for word in options.words[:count]], options.words[count:]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if options.from_checkpoint:
        return _export_checkpoints(options, folders[0], overrides)
    if given := [f"--{name}" for name in ("config", "classes", "trained_by") if getattr(options, name)]:
        raise UserError(f"{given[0].replace('_', '-')} is for --from-checkpoint: a run knows this itself")
    return _export(open_saved_run(folders[0], overrides, ALLOWED), folders[1], options)


def _export_checkpoints(options: argparse.Namespace, out: Path, overrides: Sequence[str]) -> int:
    """Writes the folder of networks that were trained elsewhere."""
    if options.classes is None or options.config is None:
        need = "--config FILE, which says network, clip and test protocol, and --classes FILE, its class names in order"
        raise UserError(f"--from-checkpoint needs {need} (docs/models.md)")
    files, config = parse_checkpoints(options.from_checkpoint), load_config(options.config, overrides)
    with open_trained_elsewhere(files, config, read_class_file(options.classes), options.trained_by) as elsewhere:
        if len(files) == 1:
            print("note: both networks of the folder are this one, so that their mean is it, too")
        return _export(elsewhere.run, out, options, elsewhere.training)


def _export(saved: SavedRun, out: Path, options: argparse.Namespace, training: dict[str, Any] | None = None) -> int:
    exported = export_model(saved, out, _choose_programs(saved, options), training)
    if exported.replaced_step is not None:
        print(f"note: replaced the export of {f'step {exported.replaced_step}' if training is None else 'the same weights'}")
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
    parser = make_parser(
        "export",
        __doc__,
        "runs/first models/first --onnx",
        "--from-checkpoint SLOW.pyth --config FILE --classes classes.txt models/slow",
    )
    about = "the run; OUT, the folder to write, where an older export of the same run is replaced; evaluation.*: the test "
    about += "protocol that the folder asks for, and which checkpoint; data.manifest, data.labels and data.root of data that "
    about += "moved, on which programs are compared; with --from-checkpoint there is no run, and key=value of any kind"
    parser.add_argument("words", nargs="*", metavar="RUN_FOLDER OUT key=value", help=about)
    programs = parser.add_argument_group("programs (files that classify clips without this project)")
    about = "add both networks and their mean as programs of torch.export (.pt2), and compare them on real clips"
    programs.add_argument("--torch-export", action="store_true", help=about)
    about = "add both networks and their mean as ONNX files, and compare them on real clips"
    programs.add_argument("--onnx", action="store_true", help=about)
    about = "the same, and int8 ONNX files, whose accuracy on labeled videos, size and time are measured against the float ones"
    programs.add_argument("--onnx-int8", action="store_true", help=about)
    about = "videos to compare programs on: a file, folder, list or manifest; repeatable (default: the run's test videos)"
    programs.add_argument("--check-on", action="append", default=[], metavar="INPUT", help=about)
    elsewhere = parser.add_argument_group("a network that was trained elsewhere")
    about = "its weights (.pth, .pyth, .pt, .pkl, .safetensors): FILE, or primary=FILE and auxiliary=FILE"
    elsewhere.add_argument("--from-checkpoint", action="append", default=[], metavar="FILE", help=about)
    add_config(elsewhere)
    about = "its class names in the order of its outputs, a line each, or JSON"
    elsewhere.add_argument("--classes", type=Path, metavar="FILE", help=about)
    about = "by whom and on what it was trained, in your words, for the model card"
    elsewhere.add_argument("--trained-by", default="", metavar="TEXT", help=about)
    return parser


def _choose_programs(saved: SavedRun, options: argparse.Namespace) -> ProgramRequest | None:
    if not (options.torch_export or options.onnx or options.onnx_int8):
        if options.check_on:
            raise UserError("--check-on is about the programs that --torch-export and --onnx write: give one of them")
        return None
    is_onnx = options.onnx or options.onnx_int8
    if is_onnx:
        require_onnx_packages("--onnx")
    int8 = find_int8_videos(saved, options.check_on) if options.onnx_int8 else None
    return ProgramRequest(options.torch_export, is_onnx, find_check_clips(saved, options.check_on), int8)


if __name__ == "__main__":
    raise SystemExit(run(main))
