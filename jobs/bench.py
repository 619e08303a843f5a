"""``python -m jobs.bench NAME``: measure a speed and a floor in the same run, or how time and memory grow with size.

Each benchmark is imported when it is asked for: some need Ray or decord, which the others do without.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.command import DONE, add_configuration, make_parser, parse_positive, run
from pipeline.bench.figures import MIN_BLOCKS, configure_quick
from pipeline.config import Config, load_config
from pipeline.errors import UserError

Options = argparse.Namespace
Figures = dict[str, Any]
QUICK_STEPS = MIN_BLOCKS
"""The number of steps with --quick, each of which is a block."""
QUICK_VIDEOS = 6
"""The number of videos or clips in one repeat with --quick."""


def _load_config(options: Options) -> Config:
    config = load_config(options.config, options.overrides).with_absolute_paths()
    return configure_quick(config) if options.quick else config


def _stream(options: Options) -> Figures:
    from pipeline.bench.on_ray.stream import bench_stream

    return bench_stream(_load_config(options), options.steps, options.repeats)


def _decode(options: Options) -> Figures:
    from pipeline.bench.decode import VIDEOS_PER_REPEAT, bench_decode

    return bench_decode(_load_config(options), options.repeats, QUICK_VIDEOS if options.quick else VIDEOS_PER_REPEAT)


def _copies(options: Options) -> Figures:
    from pipeline.bench.copies import bench_copies
    from pipeline.bench.decode import VIDEOS_PER_REPEAT

    sides = _parse_numbers(options.sides, "--sides", "256,128")
    return bench_copies(_load_config(options), sides, options.repeats, QUICK_VIDEOS if options.quick else VIDEOS_PER_REPEAT)


def _evaluate(options: Options) -> Figures:
    from pipeline.bench.evaluate import MAX_VIDEOS, bench_evaluate

    return bench_evaluate(_load_config(options), options.repeats, QUICK_VIDEOS if options.quick else MAX_VIDEOS)


def _loader(options: Options) -> Figures:
    from pipeline.bench.peers.loader import bench_loader

    return bench_loader(_load_config(options), options.steps, options.repeats)


def _peers(options: Options) -> Figures:
    from pipeline.bench.peers.accuracy import bench_to_accuracy
    from pipeline.bench.peers.compare import bench_peers

    if options.to_accuracy is not None:
        return bench_to_accuracy(_load_config(options), options.to_accuracy, options.repeats)
    return bench_peers(_load_config(options), options.steps, options.repeats)


def _views(options: Options) -> Figures:
    from pipeline.bench.views import CLIPS_AT_ONCE, bench_views

    return bench_views(_load_config(options), options.repeats, QUICK_VIDEOS if options.quick else CLIPS_AT_ONCE)


def _step(options: Options) -> Figures:
    from pipeline.bench.end_to_end import MIN_STEPS
    from pipeline.bench.step import bench_step

    return bench_step(_load_config(options), options.steps, options.repeats, QUICK_STEPS // 2 if options.quick else MIN_STEPS)


def _scale(options: Options) -> Figures:
    from pipeline.bench.scale import bench_scale

    return bench_scale(_load_config(options), _parse_sizes(options.rows), options.steps, options.repeats)


def _serve(options: Options) -> Figures:
    from pipeline.bench.serve import bench_serve

    return bench_serve(_load_config(options), options.replicas, options.requests, options.repeats)


def _simulate(options: Options) -> Figures:
    from pipeline.bench.simulate import Site, simulate

    return simulate(Site.parse(options.overrides), options.steps)


def _executor(options: Options) -> Figures:
    from pipeline.bench.on_ray.executor import bench_executor

    return bench_executor(_parse_numbers(options.tasks, "--tasks", "4,16"), options.seconds)


def _manifest(options: Options) -> Figures:
    from pipeline.bench.manifest_sizes import measure_sizes

    return {"sizes": measure_sizes(_parse_sizes(options.rows))}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that this command offers, under its name in ``BENCHMARKS``."""

    measure: Callable[[Options], Figures]
    about: str
    """What it measures, in a few words."""
    minutes: float
    """How long it takes by default with jobs/configs/demo.yaml on two cores, as measured once and rounded up."""
    defaults: dict[str, Any]
    """The options that it takes, with the values that they have if they are not given."""
    quick: dict[str, Any]
    """The values of the same options with --quick."""
    reads_config: bool = True
    """Whether it takes --config, and key=value words."""


BENCHMARKS = {
    "stream": Benchmark(
        _stream, "Ray Data stream over two plain processes that only decode",
        7, {"steps": 48, "repeats": 3}, {"steps": QUICK_STEPS, "repeats": 2},
    ),
    "decode": Benchmark(
        _decode, "decoding a file anew for each view over once for all of them",
        1, {"repeats": 3}, {"repeats": 2},
    ),
    "copies": Benchmark(
        _copies, "decoding originals over decoding copies of --sides, in CPU time",
        1, {"sides": "256,128", "repeats": 5}, {"sides": "256,128", "repeats": 2},
    ),
    "evaluate": Benchmark(
        _evaluate, "evaluation by a decode for every view over one for every video",
        1, {"repeats": 3}, {"repeats": 2},
    ),
    "loader": Benchmark(
        _loader, "the stream and views over a DataLoader that opens per view",
        5, {"steps": 16, "repeats": 3}, {"steps": QUICK_STEPS, "repeats": 2},
    ),
    "peers": Benchmark(
        _peers, "loaders of other projects, and training with them, beside ours",
        30, {"steps": 16, "repeats": 3, "to_accuracy": None}, {"steps": 4, "repeats": 1, "to_accuracy": None},
    ),
    "views": Benchmark(
        _views, "each kind of view on random clips over resizing them",
        1, {"repeats": 3}, {"repeats": 2},
    ),
    "step": Benchmark(
        _step, "a training step over its networks' passes; decoding, checkpoints",
        15, {"steps": 4, "repeats": 3}, {"steps": 1, "repeats": 2},
    ),
    "scale": Benchmark(
        _scale, "a run's start, time per clip and driver's memory by --rows",
        20, {"rows": "10000,100000,1000000,10000000", "steps": 32, "repeats": 1},
        {"rows": "1000,10000", "steps": 4 * QUICK_STEPS, "repeats": 1},
    ),
    "serve": Benchmark(
        _serve, "requests of 1, 4 and 16 clients over a plain loop on the same files",
        4, {"requests": 200, "replicas": 0, "repeats": 3}, {"requests": 32, "replicas": 0, "repeats": 1},
    ),
    "simulate": Benchmark(
        _simulate, "a run on paper: name=value of pipeline.bench.simulate.Site",
        1, {"steps": 1000}, {"steps": 100}, reads_config=False,
    ),
    "executor": Benchmark(
        _executor, "blocks that Ray Data can start in a second, by decode --tasks",
        3, {"tasks": "4,16", "seconds": 20}, {"tasks": "4", "seconds": 5}, reads_config=False,
    ),
    "manifest": Benchmark(
        _manifest, "time and memory of a manifest by --rows",
        2, {"rows": "10000,100000,1000000"}, {"rows": "4000,40000"}, reads_config=False,
    ),
}  # fmt: skip
OPTIONS = ("steps", "repeats", "rows", "sides", "to_accuracy", "requests", "replicas", "tasks", "seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one benchmark and prints its figures; with ``--json``, the last line of standard output is one JSON object."""
    options = _build_parser().parse_intermixed_args(argv)
    benchmark = BENCHMARKS[options.what]
    given = {name for name in (*OPTIONS, "config") if getattr(options, name) is not None}
    if unknown := given - set(benchmark.defaults) - ({"config"} if benchmark.reads_config else set()):
        raise UserError(f"bench {options.what} takes no --{min(unknown).replace('_', '-')}")
    if {"steps", "to_accuracy"} <= given:
        raise UserError("--to-accuracy trains for train.steps at most: leave --steps out, or write train.steps=N")
    for name, value in (benchmark.quick if options.quick else benchmark.defaults).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    print(build_announcement(options, benchmark), file=sys.stderr, flush=True)
    figures = benchmark.measure(options)
    if options.json:
        print(json.dumps(figures))
    else:
        _print(figures)
    return DONE


def build_announcement(options: Options, benchmark: Benchmark) -> str:
    """Builds the sentence that says what is about to be measured and how long that takes."""
    given = {name: getattr(options, name) for name in benchmark.defaults if getattr(options, name) is not None}
    sizes = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
    if "to_accuracy" in given:
        sizes = sizes.replace(f"--steps {options.steps}, ", "")
        return f"bench {options.what} ({sizes}): trains train.steps steps at most, with every loader and in each repeat"
    where = "on two cores" + (" with the demo's configuration" if benchmark.reads_config else "")
    if options.quick:
        wide = "; look at their spread before you believe a difference" if "repeats" in benchmark.defaults else ""
        return f"bench {options.what} --quick ({sizes}): less than a minute {where}. The same figures from less work{wide}"
    minutes = f"about {benchmark.minutes:g} min" if benchmark.minutes > 1 else "a minute or less"
    longer = ", longer with larger clips and students" if benchmark.reads_config else ""
    return f"bench {options.what} ({sizes}): by default {minutes} {where}{longer}; --quick takes less than one"


def _build_parser() -> argparse.ArgumentParser:
    def defaults(name: str) -> str:
        each = {what: one.defaults[name] for what, one in BENCHMARKS.items() if one.defaults.get(name) is not None}
        return "default: " + "; ".join(f"{what} {value}" for what, value in each.items())

    listed = "\n".join(f"  {name:9} {one.about} ({one.minutes:g} min)" for name, one in BENCHMARKS.items())
    what = (__doc__ or "").partition("\n\n")[0]
    about = f"{what}\n\nBenchmarks (A over B is the ratio that they print), with their minutes on two "
    about += f"cores with the demo's configuration:\n\n{listed}"
    parser = make_parser("bench", about, "step --config jobs/configs/demo.yaml --quick")
    parser.add_argument("what", choices=BENCHMARKS, metavar="NAME", help="one of the benchmarks above")
    add_configuration(parser)
    size = parser.add_argument_group("how much is measured")
    size.add_argument(
        "--quick", action="store_true", help="a look in less than a minute on two cores: the same figures from less work (1 "
        "or 2 repeats, at most 2 labeled videos a step, scale.workers=0), with a wider spread",
    )  # fmt: skip
    about = f"training steps in one repeat ({defaults('steps')})"
    size.add_argument("--steps", type=parse_positive, metavar="N", help=about)
    size.add_argument("--repeats", type=parse_positive, metavar="N", help=f"of the measurement ({defaults('repeats')})")
    size.add_argument("--sides", metavar="N,N", help=f"short sides of copies in pixels ({defaults('sides')})")
    size.add_argument("--rows", metavar="N,N", help=f"sizes of manifests ({defaults('rows')})")
    about = f"in one repeat ({defaults('requests')})"
    size.add_argument("--requests", type=parse_positive, metavar="N", help=about)
    about = "serve: copies of the model on Ray (default: 0, this process)"
    size.add_argument("--replicas", type=int, metavar="N", help=about)
    size.add_argument("--tasks", metavar="N,N", help=f"decode tasks at once ({defaults('tasks')})")
    size.add_argument("--seconds", type=parse_positive, metavar="N", help=f"of one measurement ({defaults('seconds')})")
    size.add_argument(
        "--to-accuracy", type=float, metavar="PERCENT", help="peers: instead, seconds of supervised training until both "
        "students' mean accuracy on evaluation.split is so high, or train.steps are over",
    )  # fmt: skip
    shown = parser.add_argument_group("result")
    shown.add_argument("--json", action="store_true", help="print the figures as one JSON object, the last line of the output")
    return parser


def _parse_sizes(rows: str) -> list[int]:
    return _parse_numbers(rows, "--rows", "10000,100000")


def _parse_numbers(text: str, option: str, example: str) -> list[int]:
    if not all(word.isdecimal() for word in text.split(",")):
        raise UserError(f"{option} {text}: write sizes with commas between, for example {example}")
    return [int(word) for word in text.split(",")]


def _print(figures: Figures) -> None:
    """Prints one line for each figure; a list of measured sizes becomes a table with a column for each size."""
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value[0]:
                print(f"{row:28}" + "".join(f"{size[row]:12,}" for size in value))
        else:
            print(f"{name:28} {value}")


if __name__ == "__main__":
    raise SystemExit(run(main))
