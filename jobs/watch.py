"""Shows runs that are under way in a browser: ``python -m jobs.watch RUN_OR_STUDY``, the report, read again as they change."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.command import DONE, make_parser, parse_positive, run
from pipeline.report.live_page import LivePage, start_live_server
from pipeline.report.loopback import HOST

PORT = 8643


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C."""
    about = "Show the report of runs or studies to browsers of this machine; the page keeps up with them.\n\n"
    about += f"Over SSH: ssh -L {PORT}:localhost:{PORT} MACHINE, then open http://localhost:{PORT}/ here."
    parser = make_parser("watch", about, "runs/first")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run, or a folder of runs (ablation, search)")
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help=f"0: any that is free (default: {PORT})")
    parser.add_argument(
        "--every", type=parse_positive, default=20, metavar="SECONDS", help="between two looks at the files (default: 20)"
    )
    options = parser.parse_args(argv)
    page = LivePage(options.folders, options.every)
    with start_live_server(page, options.port) as server:
        print(f"open http://{HOST}:{server.server_port}/ and press Ctrl-C when done", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return DONE
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
