"""``python -m jobs.bench NAME``: speed against a floor measured in the same run, or growth with size."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from jobs.command import DONE, add_config, positive, run
from pipeline.bench.copies import bench_copies
from pipeline.bench.decode import bench_decode
from pipeline.bench.loader import bench_loader
from pipeline.bench.scale import bench_scale
from pipeline.bench.simulate import Site, simulate
from pipeline.bench.step import bench_step
from pipeline.bench.stream import bench_stream
from pipeline.bench.views import bench_views
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.manifest.scale import measure_sizes

Options = argparse.Namespace
Figures = dict[str, Any]


def _config(options: Options) -> Config:
    return load_config(options.config, options.overrides).with_absolute_paths()


def _stream(options: Options) -> Figures:
    return bench_stream(_config(options), options.steps or 48, options.repeats or 3)


def _decode(options: Options) -> Figures:
    return bench_decode(_config(options), options.repeats or 3)


def _copies(options: Options) -> Figures:
    return bench_copies(_config(options), _numbers(options.sides or "256,128", "--sides", "256,128"), options.repeats or 5)


def _loader(options: Options) -> Figures:
    return bench_loader(_config(options), options.steps or 16, options.repeats or 3)


def _views(options: Options) -> Figures:
    return bench_views(_config(options), options.repeats or 3)


def _step(options: Options) -> Figures:
    return bench_step(_config(options), options.steps or 4, options.repeats or 3)


def _scale(options: Options) -> Figures:
    sizes = _sizes(options.rows or "10000,100000,1000000,10000000")
    return bench_scale(_config(options), sizes, options.steps or 32, options.repeats or 1)


def _simulate(options: Options) -> Figures:
    return simulate(Site.parse(options.overrides), options.steps or 1000)


def _manifest(options: Options) -> Figures:
    return {"sizes": measure_sizes(_sizes(options.rows or "10000,100000,1000000"))}


BENCHMARKS: dict[str, tuple[Callable[[Options], Figures], frozenset[str], str]] = {
    "stream": (
        _stream, frozenset({"config", "steps", "repeats"}), "Ray Data stream over two plain processes that only decode"
    ),
    "decode": (_decode, frozenset({"config", "repeats"}), "an open per view over one for all views, and other savings"),
    "copies": (
        _copies, frozenset({"config", "sides", "repeats"}), "decoding originals over decoding copies of --sides, in CPU time"
    ),
    "loader": (
        _loader, frozenset({"config", "steps", "repeats"}), "the stream and views over a DataLoader that opens per view"
    ),
    "views": (_views, frozenset({"config", "repeats"}), "each kind of view on random clips over resizing them"),
    "step": (
        _step, frozenset({"config", "steps", "repeats"}), "a training step over its networks' passes; decoding, checkpoints"
    ),
    "scale": (
        _scale, frozenset({"config", "rows", "steps", "repeats"}), "a run's start, time per clip and driver's memory by --rows"
    ),
    "simulate": (_simulate, frozenset({"steps"}), "a run on paper: name=value of pipeline.bench.simulate.Site"),
    "manifest": (_manifest, frozenset({"rows"}), "time and memory of a manifest by --rows"),
}  # fmt: skip
"""Function, the options that it takes, and what it measures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its figures; with ``--json`` one JSON object comes last on standard output."""
    what = "; ".join(f"{name}: {about}" for name, (_, _, about) in BENCHMARKS.items())
    arguments = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    arguments.add_argument("what", choices=BENCHMARKS, help=what)
    add_config(arguments)
    arguments.add_argument(
        "--steps", type=positive, help="in one repeat (default: 48; step 4, loader 16, scale 32, simulate 1000)"
    )
    arguments.add_argument("--repeats", type=positive, help="default: 3; scale 1, copies 5")
    arguments.add_argument("--sides", metavar="N,N", help="short sides of copies in pixels (default: 256,128)")
    arguments.add_argument("--rows", metavar="N,N", help="sizes (default: 10000,100000,1000000; scale: 10000000 too)")
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    measure, takes, _ = BENCHMARKS[options.what]
    given = {name for name in ("config", "steps", "repeats", "rows", "sides") if getattr(options, name) is not None}
    if given - takes:
        raise UserError(f"bench {options.what} takes no --{min(given - takes)}")
    figures = measure(options)
    if options.json:
        print(json.dumps(figures))
    else:
        _print(figures)
    return DONE


def _sizes(rows: str) -> list[int]:
    return _numbers(rows, "--rows", "10000,100000")


def _numbers(text: str, option: str, example: str) -> list[int]:
    if not all(word.isdecimal() for word in text.split(",")):
        raise UserError(f"{option} {text}: write sizes with commas between, for example {example}")
    return [int(word) for word in text.split(",")]


def _print(figures: Figures) -> None:
    """One line a figure; a list of measured sizes as a table with a column for each."""
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value[0]:
                print(f"{row:28}" + "".join(f"{size[row]:12,}" for size in value))
        else:
            print(f"{name:28} {value}")


if __name__ == "__main__":
    raise SystemExit(run(main))
