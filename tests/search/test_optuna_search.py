"""The engine of searches against real databases; what trials score is made up, so that hundreds cost seconds."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.analysis.records.study_reader import read_study_record
from pipeline.errors import UserError
from pipeline.run_folder.study_folder import write_study_facts, write_trials
from pipeline.search import optuna_search, optuna_storage
from pipeline.search.optuna_search import SearchPlan
from pipeline.search.optuna_storage import (
    build_sqlite_url,
    hide_password,
    list_run_trials,
    open_storage,
    warm_start,
)
from pipeline.search.search_summary import (
    build_test_command,
    build_trial_lines,
    format_trials,
    list_objectives,
    sort_best_trials,
)
from tests.postgresql import binaries, serve
from tests.search.searches import RANGES, drive, drive_from_barrier, make, quality

CHOICES = """question: q
space:
  method.labels.source: [other, self]
  method.labels.thresholds: [fixed, flexmatch, freematch]
"""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of its own."""
    pytest.importorskip("psycopg")
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (apt-get install postgresql)")
    with serve(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of database."""
    return build_sqlite_url(tmp_path) if request.param == "sqlite" else str(request.getfixturevalue("postgresql"))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[str]:
    """SQLite in memory where there is such a folder: what a disk needs to be sure of each commit is not what is tested."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield build_sqlite_url(Path(folder))


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage in this process, for what is asked of the algorithms alone; it is one for all searches of the test."""
    monkeypatch.setattr(optuna_storage, "open_storage", functools.cache(lambda url: optuna.storages.InMemoryStorage()))
    return "in memory"


def test_a_search_has_its_trials_and_goes_on_where_it_stopped(url: str, tmp_path: Path) -> None:
    first = make(url, tmp_path, RANGES, trials=12, algorithm="tpe")
    assert len(drive(first, most=5)) == 5
    second = make(url, tmp_path, RANGES, trials=12, algorithm="tpe")
    assert drive(second) == [f"trial-{number:05d}" for number in range(5, 12)]
    assert drive(make(url, tmp_path, RANGES, trials=12, algorithm="tpe")) == []
    own = list_run_trials(second.study)
    assert {trial.state for trial in own} == {TrialState.COMPLETE}
    assert sort_best_trials(second.study, own)[0].value == max(trial.value or 0 for trial in own)
    lines = format_trials(second)
    assert "12 of 12 trials: 12 complete" in lines[0]
    phrase = "10 clips x 3 crops, mean of probabilities, last checkpoint, 8 fps and 16 fps, 224 px"
    assert lines[-1] == f"top-1 of mean: {phrase}, test split" and len(lines) == 1 + 10 + 1
    write_study_facts(tmp_path, {"name": "s", "kind": "search", "objectives": list_objectives(second.plan)})
    write_trials(tmp_path, build_trial_lines(second.study, second.plan))
    report = read_study_record(tmp_path)  # as the page reads it
    assert report.counts == {"complete": 12}
    assert [trial.values["mean"] for trial in report.trials] == [trial.value for trial in own]


def test_random_points_are_functions_of_seed_and_number(quick: str, tmp_path: Path) -> None:
    points = []
    for folder, cut in ((tmp_path / "a", 9), (tmp_path / "b", 2)):
        folder.mkdir()
        drive(make(quick, folder, RANGES, trials=6), most=cut)
        search = make(quick, folder, RANGES, trials=6)
        drive(search)
        points.append([trial.params for trial in list_run_trials(search.study)])
    assert points[0] == points[1]
    assert len({str(point) for point in points[0]}) == 6


def test_tpe_finds_what_random_draws_do_not(in_memory: str, tmp_path: Path) -> None:
    means = {}
    for algorithm in ("random", "tpe"):
        folder = tmp_path / algorithm
        folder.mkdir()
        search = make(in_memory, folder, RANGES, trials=40, algorithm=algorithm)
        drive(search)
        late = [trial.value or 0 for trial in list_run_trials(search.study)[20:]]
        means[algorithm] = sum(late) / len(late)
    assert means["tpe"] > means["random"] + 0.02


def test_no_point_is_run_twice_and_a_used_up_space_ends_the_search(
    in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optuna_search, "MAX_REPEATS", 20)  # six points are found long before
    search = make(in_memory, tmp_path, CHOICES, trials=50)
    names = drive(search)
    assert len(names) == 6  # 2 x 3 choices
    assert len({str(trial.params) for trial in list_run_trials(search.study)}) == 6
    assert "the space is used up" in capsys.readouterr().out


def test_what_a_killed_search_left_is_continued_by_one(url: str, tmp_path: Path) -> None:
    first = make(url, tmp_path, RANGES, trials=3, algorithm="asha", min_steps=10)
    job = first.next_job()
    assert job is not None
    assert first.report_scores(job, 10, {"mean": 0.4, "seconds": 1})
    alive = make(url, tmp_path, RANGES, trials=3, algorithm="asha", min_steps=10)
    other = alive.next_job()
    assert other is not None and other.name != job.name  # the first one lives, so its trial is left alone
    for mine in first._claimed.values():  # as the system does when a process dies
        mine.claim.release()
    again = alive.next_job()
    assert again is not None
    assert again == job
    third = make(url, tmp_path, RANGES, trials=3, algorithm="asha", min_steps=10)
    assert third.next_job() is not None
    assert third.next_job() is None
    assert alive.report_scores(again, 10, {"mean": 0.4, "seconds": 1})  # scored before: no second report, and it goes on
    assert alive.report_scores(again, 90, {"mean": 0.5, "seconds": 9})
    alive.report_end(again, None)
    trial = list_run_trials(alive.study)[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.5, {10: 0.4})


def test_asha_compares_tonights_trials_with_last_nights(quick: str, tmp_path: Path) -> None:
    plan = {"algorithm": "asha", "min_steps": 10, "reduction": 3}
    night = make(quick, tmp_path, RANGES, trials=6, **plan)
    assert night.plan.list_stops(90) == (10, 30, 90)
    for _ in range(6):
        job = night.next_job()
        assert job is not None
        assert all(night.report_scores(job, step, {"mean": 0.9, "seconds": 1}) for step in job.stops)
        night.report_end(job, None)
    tonight = make(quick, tmp_path, RANGES, trials=8, **plan)
    job = tonight.next_job()
    assert job is not None
    assert not tonight.report_scores(job, 10, {"mean": 0.2, "seconds": 1})
    tonight.report_end(job, None)
    trial = list_run_trials(tonight.study)[-1]
    assert trial.state == TrialState.PRUNED
    line = build_trial_lines(tonight.study, tonight.plan)[-1]
    assert (line["values"], line["step"], line["state"]) == ({"mean": 0.2}, 10, "pruned")


@pytest.mark.parametrize("algorithm", ["asha", "hyperband"])
def test_early_stopping_saves_steps_and_keeps_the_best(algorithm: str, in_memory: str, tmp_path: Path) -> None:
    search = make(in_memory, tmp_path, RANGES, trials=40, algorithm=algorithm, min_steps=10)
    drive(search)
    own = list_run_trials(search.study)
    steps = sum(line["step"] for line in build_trial_lines(search.study, search.plan))
    assert steps < 0.8 * 40 * 90
    assert sum(trial.state == TrialState.PRUNED for trial in own) >= 10
    top = sort_best_trials(search.study, own)[0]
    assert abs(top.params["method.confidence_threshold"] - 0.8) < 0.1


def test_two_objectives_give_a_front(in_memory: str, tmp_path: Path) -> None:
    search = make(in_memory, tmp_path, RANGES, trials=20, algorithm="tpe", objectives=("accuracy", "time"))
    while (job := search.next_job()) is not None:
        seconds = 100 * job.config.primary.optimizer.lr
        search.report_scores(job, 90, {"mean": quality(job.config), "seconds": seconds})
        search.report_end(job, None)
    front = sort_best_trials(search.study, list_run_trials(search.study))
    assert front
    pairs = [tuple(trial.values) for trial in front]
    assert pairs == sorted(pairs, reverse=True) and [time for _, time in pairs] == sorted((t for _, t in pairs), reverse=True)
    assert set(build_trial_lines(search.study, search.plan)[0]["values"]) == {"mean", "seconds"}


def test_a_failed_trial_is_told_and_not_repeated(quick: str, tmp_path: Path) -> None:
    search = make(quick, tmp_path, RANGES, trials=2)
    job = search.next_job()
    assert job is not None
    search.report_end(job, "the disk is full")
    assert len(drive(search)) == 1
    assert search.problems == ["trial-00000: the disk is full"]
    line = build_trial_lines(search.study, search.plan)[0]
    assert (line["state"], line["message"], line["values"]) == ("failed", "the disk is full", {"mean": None})


def test_keys_that_do_not_go_together_fail_alone(in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_search, "MAX_REPEATS", 20)  # four points are found long before
    text = "question: q\nspace:\n  auxiliary.clip.size: [224, 96]\n  auxiliary.network.patch: [16, 28]\n"
    search = make(in_memory, tmp_path, text, trials=30)
    names = []
    while (job := search.next_job()) is not None:
        names.append(job.name)
        search.report_scores(job, 90, {"mean": 0.5, "seconds": 1})
        search.report_end(job, None)
    assert len(names) == 3  # 96 pixels are no multiple of 28
    assert search.problems
    assert "must divide auxiliary.clip.size=96" in search.problems[0]


def test_a_trial_that_another_search_took_for_a_left_one_is_let_go(quick: str, tmp_path: Path) -> None:
    """Between being made and being claimed: the other one may hold it still, or have given it up already."""
    first, other = (make(quick, tmp_path, RANGES, trials=3) for _ in range(2))
    ask = first.study.ask

    def slow() -> optuna.Trial:
        trial = ask()
        if trial.number == 0:
            assert other.next_job() is not None  # gives up the first trial, which has no point yet, and begins a second one
        return trial

    first.study.ask = slow  # type: ignore[method-assign,assignment]
    job = first.next_job()
    assert job is not None
    assert job.name == "trial-00002"
    assert [trial.number for trial in list_run_trials(first.study)] == [1, 2]


@pytest.mark.timeout(240)
def test_two_searches_at_once_share_the_trials(url: str, tmp_path: Path) -> None:
    make(url, tmp_path, RANGES, trials=10)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    words = (url, str(tmp_path), 10, start)
    processes = [context.Process(target=drive_from_barrier, args=words) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    driven = (tmp_path / "driven").read_text(encoding="utf-8").split()
    assert len(driven) == len(set(driven)) == 10
    own = list_run_trials(make(url, tmp_path, RANGES, trials=10).study)
    assert [trial.state for trial in own] == [TrialState.COMPLETE] * 10
    assert len({str(trial.params) for trial in own}) == 10


def test_warm_start_copies_once_and_only_what_fits(url: str, tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    for folder in (old, new, other):
        folder.mkdir()
    name = f"{tmp_path.name}-old"
    drive(make(url, old, RANGES, trials=8, name=name))
    search = make(url, new, RANGES, trials=4, name=f"{tmp_path.name}-new", setting={"data": 2})
    assert warm_start(search.study, search.space, url, name, new) == f"warm start: 8 trials of {name}"
    assert warm_start(search.study, search.space, url, name, new) == f"warm start: 0 trials of {name}"
    assert list_run_trials(search.study) == []
    assert len(drive(search)) == 4
    assert len(search.study.trials) == 12
    narrow = RANGES.replace("high: 0.95", "high: 0.6")
    search = make(url, other, narrow, trials=4, name=f"{tmp_path.name}-other")
    assert "lie outside of this space" in warm_start(search.study, search.space, url, name, other)
    with pytest.raises(UserError, match=r"nothing.*no folder of a search, nor a study in .*which has: .*old"):
        warm_start(search.study, search.space, url, "nothing", other)


def test_a_study_of_another_setting_is_refused(tmp_path: Path) -> None:
    make(build_sqlite_url(tmp_path), tmp_path, RANGES, trials=2)
    with pytest.raises(UserError, match=r"choose another --name[\s\S]*data: the study has 1, now 2"):
        make(build_sqlite_url(tmp_path), tmp_path, RANGES, trials=2, setting={"data": 2})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("postgresql+nodriver://x@localhost/db", r"--storage"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db?connect_timeout=2", r"me:\*\*\*@127.0.0.1:1/db.* does not answer"),
        ("sqlite:////proc/none/study.db", r"/proc/none cannot be made .*--storage"),
    ],
)
def test_storages_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in hide_password("postgresql+psycopg://me:secret@host/db")
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING


def test_the_printed_command_survives_a_shell() -> None:
    words = ["views.strong.time.warp=[2, 4, 8]", 'method.labels.source="self"']
    command = build_test_command(SearchPlan("tpe", 1), ["my config.yaml", "gpus.yaml"], words).splitlines()[-1]
    assert shlex.split(command)[3:] == ["--config", "my config.yaml", "--config", "gpus.yaml", "run.name=best", *words]
