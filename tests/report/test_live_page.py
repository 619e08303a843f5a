"""The page of runs that are under way: asked for by HTTP, and in a browser while a run trains."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import watch
from jobs.command import USER_ERROR, run
from pipeline.errors import UserError
from pipeline.files.folder_lock import lock_folder
from pipeline.report.live_page import FRESH_SECONDS, LivePage, start_live_server
from pipeline.report.loopback import HOST
from pipeline.run_folder.contents import read_metrics
from tests.study_folders import line, write_study

pytestmark = pytest.mark.usefixtures("undrawn")  # the browser's page is drawn: by the process that serves it


@contextmanager
def serve(page: LivePage) -> Iterator[int]:
    """Serves a page at a free port."""
    with start_live_server(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str = "/", host: str = "") -> tuple[int, str, str | None]:
    """The status, the text, and after how many seconds a browser asks again."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", path, headers={"Host": host or f"{HOST}:{port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers["Refresh"]


def cut_to(folder: Path, step: int) -> None:
    """What training leaves up to this step, with the time that is left."""
    lines = [json.loads(one) for one in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{**one, "eta_seconds": 600.0} for one in lines if one["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    (folder / "evaluation.json").unlink(missing_ok=True)
    (folder / "predictions.parquet").unlink(missing_ok=True)


def test_the_page_follows_a_run_that_goes_on(make_run: Any) -> None:
    folder = make_run()
    whole = (folder / "metrics.jsonl").read_text()
    cut_to(folder, 400)
    with lock_folder(folder):
        page = LivePage([str(folder)], 0)
        with serve(page) as port:
            status, text, again = ask(port)
            assert status == 200 and again == "1"
            assert re.search(r"step 400 of 1,000, \d+ videos a second, 17% of the time waiting for data, 10 min left", text)
            (folder / "metrics.jsonl").write_text(whole)
            cut_to(folder, 650)
            assert "step 650 of 1,000" in ask(port)[1]


def test_the_page_of_an_old_run_is_not_asked_for_again(make_run: Any) -> None:
    folder = make_run()
    page = LivePage([str(folder)], 0)
    with serve(page) as port:
        assert ask(port)[2] == "1", "its study may begin another run"
        old = time.time() - FRESH_SECONDS - 1
        for path in folder.rglob("*"):
            os.utime(path, (old, old))
        text, again = ask(port)[1:]
    assert again is None and 'class="live"' not in text


def test_a_study_tells_its_trials(make_run: Any) -> None:
    ended, going = make_run(seed=0), make_run(seed=1)
    cut_to(going, 100)
    study = write_study(ended.parent, [line(0, ended.name), line(1, going.name, "running"), line(2, "c", "waiting")])
    with lock_folder(going), serve(LivePage([str(study)], 0)) as port:
        text = ask(port)[1]
    assert f"{study.name}: 1 of 3 trials have ended." in text and "actnetformer-1: step 100 of 1,000" in text


def test_pages_are_not_made_more_often_than_asked(make_run: Any) -> None:
    folder = make_run()
    page = LivePage([str(folder)], 3600)
    first = page.read()
    shutil.rmtree(folder)
    assert page.read() is first


def test_other_names_and_paths_get_nothing(make_run: Any) -> None:
    with serve(LivePage([str(make_run())], 3600)) as port:
        assert ask(port, host="example.org")[0] == 403
        assert ask(port, "/metrics.jsonl")[0] == 404


def test_a_folder_that_is_gone_is_said_and_asked_for_again(make_run: Any) -> None:
    folder = make_run()
    with serve(LivePage([str(folder)], 0)) as port:
        shutil.rmtree(folder)
        status, text, again = ask(port)
        assert status == 500 and str(folder) in text and again == "1"


def test_a_port_in_use_and_no_run_are_refused(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        assert run(watch.main, [str(folder), "--port", str(taken.getsockname()[1])]) == USER_ERROR
    assert "name another with --port" in capsys.readouterr().err
    with pytest.raises(UserError, match="no run"):
        LivePage([str(tmp_path / "absent")], 1)


@pytest.mark.timeout(240)
def test_a_browser_sees_a_real_run_go_on(tiny: Path, tmp_path: Path, repository: Path) -> None:
    driver = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no Chromium")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=100000", "run.name=live"]
    train = [sys.executable, "-m", "jobs.train", *words, "train.checkpoint_every=1000"]
    serving = [sys.executable, "-u", "-m", "jobs.watch", str(tmp_path / "live"), "--port", "0", "--every", "1"]
    with subprocess.Popen(train, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        try:
            wait_for(lambda: len(read_metrics(tmp_path / "live")) > 0)
            training.send_signal(signal.SIGSTOP)  # until the page is open; it need not compute meanwhile
            with subprocess.Popen(serving, cwd=repository, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                (address,) = re.findall(r"http://\S+", server.stdout.readline())
                with driver.sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                    page = browser.new_page()
                    page.goto(address, timeout=60_000)
                    wait_for(lambda: read_step(page) > 0)
                    first = read_step(page)
                    training.send_signal(signal.SIGCONT)
                    wait_for(lambda: read_step(page) > first)  # by itself: nobody opens it again
                    training.kill()
                    assert page.locator("figure svg").count() > 0, "curves"
                    browser.close()
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=60) == 0
        finally:
            training.kill()


def wait_for(holds: Any, seconds: float = 100.0) -> None:
    """Asks until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def read_step(page: Any) -> int:
    """The step that the page tells; -1 while it loads, or none is."""
    found = re.search(
        r"step ([\d,]+) of", page.locator("ul.live").first.inner_text() if page.locator("ul.live").count() else ""
    )
    return int(found[1].replace(",", "")) if found else -1
