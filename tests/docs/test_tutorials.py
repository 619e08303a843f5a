"""The tutorials: their commands, in the order of the page, on small videos and with networks of a few hundred weights."""

from __future__ import annotations

import csv
import fnmatch
import importlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import schedule
from jobs.command import DONE, FAILED, run
from pipeline.manifest.schema import read_manifest
from tests.official_layouts import write_lines, write_video
from tests.videos import leave_out_processes

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "train.steps=4", "train.warmup_steps=1", "train.log_every=1", "train.save_scores_every=1", "data.labeled_per_step=2",
    "data.unlabeled_per_labeled=1", "data.decode_size=24", "scale.workers=0", "scale.torch_threads=1",
    "primary.network={arch: slow_resnet, depth: 10, width: 8, norm: group}", "primary.clip.frames=2", "primary.clip.size=16",
    "auxiliary.network={arch: timesformer, width: 16, depth: 1, heads: 2, patch: 8, tubelet: 2}", "auxiliary.clip.frames=2",
    "auxiliary.clip.size=16", "evaluation.clips=1", "method.supervised_steps=0", "method.ramp_steps=0",
]  # fmt: skip
"""Knobs that make every run of a tutorial a matter of seconds."""
PAGES_OF_OWN_VIDEOS = ("data/mine/videos.html", "data/mine/step.html", "mine.html", "runs/mine_baseline/report.html")
CONFIGURED = ("train", "ablate", "search")
"""Commands that take these knobs; and inspect, where it shows clips."""


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tested with the commands; here the question is whether the commands of a page follow from each other."""
    leave_out_processes(monkeypatch)


def commands_of(page: str) -> list[list[str]]:
    """The words of each command of a page, in their order: the command's name first."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        shlex.split(line, comments=True) for line in re.findall(r"^ {4,}(?:\S*/)?python -m jobs\.(.+)$", text, re.MULTILINE)
    ]


def give(name: str, words: list[str], smaller: Mapping[str, str]) -> int:
    """Gives one command of a page, with its configuration from the repository, smaller numbers and tiny networks."""
    given = [smaller.get(word, word) for word in words]
    given = [str(ROOT / word) if re.fullmatch(r"jobs/[\w./]+\.yaml", word) else word for word in given]
    tiny = [word for word in TINY if not word.startswith("train.steps=") or "--step" not in words]
    if name in CONFIGURED or (name == "inspect" and words[0] == "clips"):
        given += tiny
    if name in ("ablate", "search") and "--concurrent" not in words:
        given += ["--concurrent", "1"]  # in this process, without Ray
    code = run(importlib.import_module(f"jobs.{name}").main, given)
    assert code == DONE or (code == FAILED and "--overfit" in words), (name, given)  # networks so small need not memorize them
    return code


def follow(page: str, smaller: Mapping[str, str]) -> list[str]:
    """Gives all commands of a page. Returns their names."""
    commands = commands_of(page)
    for name, *words in commands:
        give(name, words, smaller)
    return [name for name, *_ in commands]


def write_answers(run_folder: Path, answers: Path) -> int:
    """Writes what a person would answer to all suggestions of a run, as the labeling page does. Returns how many."""
    with (run_folder / "suggest" / "suggest.csv").open(newline="", encoding="utf-8") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    answers.parent.mkdir(exist_ok=True)
    write_lines(answers, ["id,class", *(f"{one},{'jump' if 'jump' in one else 'wave'}" for one in ids)])
    return len(ids)


def unlisted_in(run_folder: Path) -> list[str]:
    """What a run left, and docs/training.md does not list as part of a run folder. Hidden files are the program's own."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = page[page.index("## The run folder") : page.index("## Metrics")]
    patterns = re.findall(r"^ {6}(\S+)  ", listed, flags=re.MULTILINE)
    left = sorted(path.name + "/" * path.is_dir() for path in run_folder.iterdir() if not path.name.startswith("."))
    return [name for name in left if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def test_a_file_that_no_page_lists_is_found(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_000004").mkdir()
    for name in ("metrics.jsonl", "label_quality.csv", "surprise.bin"):
        (tmp_path / name).touch()
    assert unlisted_in(tmp_path) == ["surprise.bin"]


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("undrawn")
def test_your_own_videos_and_better_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        for name in ("jump", "wave"):
            split = "train" if number < 8 else "test"
            write_video(tmp_path / "videos" / split / name / f"{name}_clip{number}.mp4")
    for number in range(3):
        write_video(tmp_path / "videos" / "unlabeled" / f"new{number}.mp4")
    monkeypatch.chdir(tmp_path)
    assert follow("tutorials/own_videos.md", {"100": "1", "3": "1"}) == [
        "prepare", "inspect", "inspect", "train", "train", "train", "report", "ablate", "export", "predict"]  # fmt: skip
    manifest = read_manifest("data/mine/manifest.parquet")
    counts = {split: len(manifest.find_usable_rows(split)) for split in ("train", "test", "unlabeled")}
    assert counts == {"train": 16, "test": 4, "unlabeled": 3}
    assert pq.read_table("data/mine/labels.parquet").num_rows == 8
    assert all(Path(page).is_file() for page in PAGES_OF_OWN_VIDEOS)
    with Path("classes.csv").open(newline="", encoding="utf-8") as file:
        assert {row["class"] for row in csv.DictReader(file)} <= {"jump", "wave"}

    assert unlisted_in(Path("runs/mine")) == []

    first, (name, *words), train, *_ = commands_of("howto/better_labels.md")
    assert first[0] == "suggest" and name == "label" and train[0] == "train"
    give("suggest", [word for word in first[1:] if word != "--serve"], {"40": "5"})  # the server is tested by itself
    answered = write_answers(Path("runs/mine"), Path("runs/mine/suggest/answers.csv"))
    give("label", words, {})
    assert pq.read_table("data/mine/labels_2.parquet").num_rows == 8 + answered == 13
    give("train", train[1:], {"FILE": "jobs/configs/demo.yaml"})


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("undrawn")
def test_two_hundred_labels_on_real_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = ("anna", "ben", "cleo", "dan")
    rows = [(name, person, number) for name in ("wave", "clap") for person in people for number in range(2)]
    lines = [
        f"{name}/{person}_{number}.mp4,{name},{person},{'test' if person == 'ben' else 'train'}"
        for name, person, number in rows
    ]
    lines.append("new/cleo_9.mp4,,cleo,train")
    write_lines(tmp_path / "clips.csv", ["path,label,group,split", *lines])
    for line in lines:
        write_video(tmp_path / "clips" / line.partition(",")[0])
    monkeypatch.chdir(tmp_path)
    smaller = {"8/class": "3/class", "48": "24", "200": "1", "8": "2", "3": "1", "2": "1"}
    names = follow("tutorials/real_actions.md", smaller)
    assert len(read_manifest("data/actions/manifest.parquet").find_usable_rows("train")) == 13  # with the clip of unknown class
    assert names == ["prepare", "inspect", "train", "inspect", "train", "ablate", "label_quality"]
    runs = sorted(path.parent.name for path in Path("runs/actions_baseline").glob("*/evaluation.json"))
    assert runs == ["actnetformer_seed-0", "supervised_seed-0"]
    assert Path("runs/actions_baseline/report.html").is_file()
    assert Path("runs/actions_baseline/actnetformer_seed-0/label_quality.csv").is_file()


@pytest.mark.timeout(600)
def test_the_demo_as_it_is_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smaller = {"320": "32", "8": "4", "4/class": "2/class"}
    assert follow("tutorials/demo.md", smaller) == ["prepare", "ablate", "inspect", "runs"]
    assert "supervised" in Path("runs/baseline/report.html").read_text(encoding="utf-8")


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("undrawn")
def test_a_search_every_night_starts_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    timers: list[str] = []  # the machine's own are for tests/schedules/test_real_cron.py
    monkeypatch.setattr(schedule, "choose_starter", lambda wanted: "cron")
    monkeypatch.setattr(schedule, "add_timer", lambda folder, made: timers.append(made.cron))
    monkeypatch.setattr(schedule, "has_timer", lambda made: True)
    smaller = {"400": "32", "8": "4", "4": "2", "200": "1", "9": "1", "45": "2"}
    commands = commands_of("tutorials/nightly_search.md")
    assert [name for name, *_ in commands] == ["prepare", "label", "search", "schedule", "schedule", "runs", "report"]
    for name, *words in commands[:4]:
        give(name, words, smaller)
    assert timers == ["0 22 * * *"]
    night, *words = commands[3][commands[3].index("--") + 1 :]
    give(night, words, smaller)
    for name, *more in commands[4:]:
        give(name, more, smaller)
    give(night, words, smaller | {"200": "2"})  # the next night
    trials = [json.loads(line) for line in Path("runs/nightly/trials.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(trials) == 2 and Path("runs/nightly/report.html").is_file()
