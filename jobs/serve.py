"""``python -m jobs.serve FOLDER``: serve a model folder, or a run's newest checkpoint, by HTTP, with a page to try it.

POST a video to /predict and get the most probable classes as JSON; / is the page, /docs describes the interface, /readyz and
/metrics tell how it is. Everything is one process; with --replicas, that many copies of the model run on Ray instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jobs.command import DONE, make_parser, parse_folder, parse_positive, run
from pipeline.errors import Stopped, UserError
from pipeline.prediction.timeline import parse_seconds
from pipeline.saved_models.saved_model import check_folder, open_model
from pipeline.serving.requests.limits import MEBIBYTE, Limits
from pipeline.serving.requests.scratch import Scratch

ALLOWED = ("evaluation.", "scale.gpu=", "scale.gpus_per_worker=", "scale.cpus_per_worker=", "scale.torch_threads=",
           "scale.start_timeout_seconds=")  # fmt: skip
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM, which are a normal end."""
    options = build_parser().parse_intermixed_args(argv)
    if options.replicas < 0:
        raise UserError(f"--replicas {options.replicas} must be 0, this process, or the number of copies on Ray")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"jobs.serve needs {', '.join(missing)}: pip install 'actnetformer[serve]'")
    from pipeline.serving.in_process import open_answerer
    from pipeline.serving.requests.fetch_uri import UriRules, parse_prefix
    from pipeline.serving.web.access import Access, require_token, take_token
    from pipeline.serving.web.app import build_app, build_loading_app
    from pipeline.serving.web.http_server import answer_while_loading, describe_address, open_socket, run_server
    from pipeline.serving.web.server_metrics import Metrics
    from pipeline.serving.web.service import Service

    limits, metrics = read_limits(options), Metrics()
    rules = UriRules(tuple(map(parse_prefix, options.allow_uri)), options.allow_private_uri)
    token = take_token(options.token_file)
    require_token(options.host, token)
    access = Access(token)
    check_folder(options.folder.expanduser().resolve())
    with (
        stop_by_sigterm(),
        open_socket(options.host, options.port) as bound,
        make_scratch(options.scratch) as scratch,
        ExitStack() as loaded,
    ):
        with answer_while_loading(build_loading_app(access, metrics), bound):
            saved = open_model(options.folder, options.overrides, ALLOWED)
            answerer = loaded.enter_context(open_answerer(saved, options.replicas, limits, metrics, options.scratch))
            app = build_app(Service(answerer, limits, scratch, rules, metrics), access)
        address = describe_address(bound)
        print(f"{saved.folder.name}, {len(saved.classes)} classes: {address} (interface: {address}/docs)", flush=True)
        run_server(app, bound)
    print("stopped; every request that had arrived was answered", flush=True)
    return DONE


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = make_parser("serve", __doc__, "models/first --port 8000")
    parser.add_argument("folder", type=parse_folder, metavar="FOLDER", help="a model folder or a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="evaluation.*, scale.gpu, scale.torch_threads, ...")
    address = parser.add_argument_group("who may ask, and where")
    about = "address to listen on (default: 127.0.0.1, this machine only; others need a token)"
    address.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=about)
    address.add_argument("--port", type=int, default=8000, metavar="PORT", help="0: any that is free (default: 8000)")
    address.add_argument("--token-file", type=Path, metavar="FILE",
                         help="holds the token of clients (default: the environment variable ACTNETFORMER_TOKEN)")  # fmt: skip
    work = parser.add_argument_group("what computes")
    about = "copies of the model on a Ray cluster (default: 0, this process alone)"
    work.add_argument("--replicas", type=int, default=0, metavar="N", help=about)
    fetch = parser.add_argument_group("videos that the server fetches")
    fetch.add_argument("--allow-uri", action="append", default=[], metavar="PREFIX",
                       help="fetch URIs that begin so, such as https://example.org/clips/; repeatable")  # fmt: skip
    fetch.add_argument("--allow-private-uri", action="store_true", help="also from hosts inside your own network")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-megabytes", type=float, default=64, metavar="N", help="size of a file, in MiB (default: 64)")
    limits.add_argument("--max-video", default="120s", metavar="TIME", help="length of a video (default: 120s)")
    limits.add_argument("--max-side", type=parse_positive, default=3072, metavar="PIXELS",
                        help="frames have at most the square of it (default: 3072)")  # fmt: skip
    limits.add_argument("--timeout", default="60s", metavar="TIME", help="for an answer after the upload (default: 60s)")
    limits.add_argument(
        "--upload-timeout", default="60s", metavar="TIME", help="for a file to arrive, uploaded or behind a URI (default: 60s)"
    )
    limits.add_argument("--max-decoded-megabytes", type=float, default=1024, metavar="N",
                        help="memory of decoded frames of all requests together (default: 1024)")  # fmt: skip
    limits.add_argument("--queue", type=parse_positive, default=32, metavar="N",
                        help="requests at work or waiting; more get 503 (default: 32)")  # fmt: skip
    limits.add_argument("--scratch", type=Path, metavar="FOLDER", help="for uploads at work (default: the system's)")
    return parser


def read_limits(options: argparse.Namespace) -> Limits:
    """Reads the limits of requests from the options. Raises UserError for those that are not numbers above 0."""
    upload_seconds = parse_seconds(options.upload_timeout, "--upload-timeout")
    for name, value in (("max-megabytes", options.max_megabytes), ("max-decoded-megabytes", options.max_decoded_megabytes)):
        if not 1e-6 < value < math.inf:
            raise UserError(f"--{name} {value:g} must be a number above 0")
    return Limits(
        upload_bytes=int(options.max_megabytes * MEBIBYTE),
        upload_seconds=upload_seconds,
        stall_seconds=min(Limits.stall_seconds, upload_seconds),
        video_seconds=parse_seconds(options.max_video, "--max-video"),
        video_pixels=options.max_side**2,
        request_seconds=parse_seconds(options.timeout, "--timeout"),
        waiting=options.queue,
        uploads=2 * options.queue,
        decoded_bytes=int(options.max_decoded_megabytes * MEBIBYTE),
    )


def build_application(args: dict[str, str]) -> object:
    """Builds the same service as an application of Ray Serve, for cluster/base/rayservice.yaml, which names this function.

    ``args`` has ``command``, the words that would be given to ``python -m jobs.serve``.
    """
    from pipeline.serving.on_ray.web_server import bind_web_server
    from pipeline.serving.requests.fetch_uri import UriRules, parse_prefix
    from pipeline.serving.web.access import Access, read_token, require_token
    from pipeline.serving.web.app import ServiceBuilder

    options = build_parser().parse_intermixed_args(shlex.split(args["command"]))
    rules = UriRules(tuple(map(parse_prefix, options.allow_uri)), options.allow_private_uri)
    token = read_token(options.token_file)
    require_token(options.host, token)
    saved, limits = open_model(options.folder, options.overrides, ALLOWED), read_limits(options)
    builder = ServiceBuilder(limits, rules, Access(token))
    address = (options.host, options.port)
    return bind_web_server(saved, max(1, options.replicas), limits, address, options.scratch, builder)


@contextmanager
def stop_by_sigterm() -> Iterator[None]:
    """Ends the command in good order if SIGTERM comes while the model is being loaded. Later the web server handles it."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number, "stopped before the server was ready")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def make_scratch(parent: Path | None) -> Iterator[Scratch]:
    """Makes the folder of uploads, and removes it at the end. Raises UserError if there can be none."""
    scratch = Scratch.make("actnetformer-serve-", parent)
    try:
        yield scratch
    finally:
        scratch.remove()


if __name__ == "__main__":
    raise SystemExit(run(main))
