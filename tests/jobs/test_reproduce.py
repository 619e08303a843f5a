"""docs/reproduce.md: its commands run from first to last on miniature data sets; its numbers are the configurations'."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from jobs import ablate, evaluate, inspect, label, prepare, report, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.config import STUDENTS, Config, load_config
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from pipeline.methods import find_first_unlabeled_step
from pipeline.students import build_student
from tests import official_layouts as layouts

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
CONFIGS = ROOT / "jobs" / "configs"
COMMANDS: dict[str, Callable[[Sequence[str] | None], int]] = {
    "prepare": prepare.main, "label": label.main, "inspect": inspect.main, "train": train.main, "evaluate": evaluate.main,
    "report": report.main, "ablate": ablate.main,
}  # fmt: skip
HERE = ["scale.workers=0", "scale.gpu=false"]
TINY = [  # what makes a run of seconds of a command of the page. In fp32: gradients of narrow 3-D convolutions in bf16 are not
    # always finite on CPUs (torch 2.14.1 with oneDNN, width 8)
    *HERE, "scale.torch_threads=1", "train.precision=fp32", "train.steps=2", "train.warmup_steps=1",
    "method.supervised_steps=0", "method.ramp_steps=0", "data.labeled_per_step=8", "data.unlabeled_per_labeled=2",
    "data.decode_size=24",
    "primary.network={arch: slow_resnet, depth: 10, width: 8}", "primary.clip.frames=2", "primary.clip.size=16",
    "auxiliary.network={arch: timesformer, width: 16, depth: 1, heads: 2, patch: 8}", "auxiliary.clip.frames=2",
    "auxiliary.clip.size=16",
]  # fmt: skip
APPENDED = {  # by the test, and not the page's
    "train": TINY,
    "evaluate": HERE,
    "ablate": ["--dry-run", *HERE],
}
ROWS = [path.stem for path in sorted(CONFIGS.glob("*.yaml")) if path.stem.startswith(("ucf101", "hmdb51", "kinetics400"))]
MADE = {"UCF-101": layouts.write_ucf101, "HMDB-51": layouts.write_hmdb51, "Kinetics-400": layouts.write_kinetics400}
CLASSES = {"ucf101": layouts.UCF101, "hmdb51": layouts.HMDB51, "kinetics400": layouts.KINETICS}


def commands_of(text: str) -> list[list[str]]:
    """All commands of the page's indented blocks, in their order: the command's name and its words."""
    lines = re.findall(r"^    (python .*)$", text.replace("\\\n", ""), flags=re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(line[:2] == ["python", "-m"] and line[2].startswith("jobs.") for line in words)
    return [[line[2].removeprefix("jobs."), *line[3:]] for line in words]


def section(title: str) -> str:
    """What the page says under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def folder_for(place: Path, *data_sets: str) -> Path:
    """A folder as the page wants it: data sets with their lists, and the configurations."""
    (place / "jobs").mkdir()
    (place / "jobs" / "configs").symlink_to(CONFIGS)
    for name in data_sets:
        MADE[name](place)
    return place


def follow(commands: list[list[str]], dry: bool = False) -> None:
    """Run commands one after the other, in small; ``dry``: none is trained, and what needs a trained run is left out."""
    for name, *words in commands:
        if dry and name in ("evaluate", "report"):
            continue
        more = ["--dry-run"] if dry and name == "train" and "--dry-run" not in words else []
        said = f"python -m jobs.{name} {shlex.join(words)}"
        print(said)
        assert run(COMMANDS[name], [*words, *more, *APPENDED.get(name, [])]) == DONE, said


def check_run(folder: Path, classes: Sequence[str]) -> None:
    """Accuracies and scores of all test videos by 10 x 3 views, of both students and their mean."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    videos = layouts.TEST * len(classes)
    assert (found["clips"] * found["crops"], found["split"], found["step"]) == (30, "test", 2)
    assert (found["videos"], found["undecodable"], found["classes"]) == (videos, {}, list(classes))
    scores = pq.read_table(folder / "predictions.parquet").to_pydict()
    for name in (*STUDENTS, "mean"):
        predicted = [max(range(len(classes)), key=row.__getitem__) for row in scores[name]]
        right = sum(one == other for one, other in zip(predicted, scores["label"], strict=True))
        assert found[name]["top1"] == pytest.approx(right / videos)


def check_report(folder: Path, runs: Sequence[str]) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in runs)


def of_row(commands: list[list[str]], name: str) -> list[list[str]]:
    """Commands of one configuration, its run folder's among them."""
    return [words for words in commands if f"jobs/configs/{name}.yaml" in words or f"runs/{name}" in words]


def of_data(commands: list[list[str]]) -> list[list[str]]:
    return [words for words in commands if words[0] in ("prepare", "label", "inspect")]


@pytest.mark.timeout(300)
def test_one_row_from_the_videos_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """UCF-101 with 1 %, on 8, 4 and 1 GPUs: all that the page says of it."""
    monkeypatch.chdir(folder_for(tmp_path, "UCF-101"))
    commands = commands_of(section("UCF-101"))
    row = of_row(commands, "ucf101_1pct")
    assert [words[0] for words in row] == ["train"] * 4 + ["evaluate", "report"] and "--dry-run" in row[0]
    follow(of_data(commands))
    manifest = read_manifest("data/ucf101/manifest.parquet")
    assert len(manifest.find_training_rows()) == 3 * layouts.TRAIN and manifest.classes == layouts.UCF101
    labels = read_labels("data/ucf101/labels_1pct.parquet", manifest)
    assert len(labels.ids) == 3 and labels.spec == "svformer list_ucf_1/train.csv"
    follow(row[:4])
    for name in ("ucf101_1pct", "ucf101_1pct_4gpus", "ucf101_1pct_1gpu"):
        check_run(Path("runs", name), layouts.UCF101)
        (Path("runs", name) / "evaluation.json").unlink()
    parts = [load_config(f"runs/ucf101_1pct{end}/config.yaml").train.accumulation for end in ("", "_4gpus", "_1gpu")]
    assert parts == [1, 2, 8]
    follow(row[4:])
    check_run(Path("runs/ucf101_1pct"), layouts.UCF101)
    check_report(Path("runs/ucf101_1pct"), ["ucf101_1pct"])
    follow(commands_of(section("What a row should be compared with")))
    said = capsys.readouterr().out
    assert "6 trials in" in said and "9 trials in" in said


@pytest.mark.parametrize("data_set", ["HMDB-51", "Kinetics-400"])
def test_the_other_rows_up_to_the_training(
    data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder_for(tmp_path, data_set))
    monkeypatch.setattr("pipeline.training.dry_run.estimate_memory", lambda *_: {"weights": 1})  # test_paper_configs.py has it
    commands = commands_of(section(data_set))
    follow(commands, dry=True)
    said = capsys.readouterr().out
    assert said.count("a step: 8 labeled + 16 unlabeled videos") == sum(words[0] == "train" for words in commands)
    assert not Path("runs").exists()
    for words in commands:
        if words[0] == "label":
            kind, file = words[words.index("--import") + 1 :][:2]
            assert Path(words[-1]).is_file() and f"{kind} {file}, seed 0" in said


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("data_set", MADE)
def test_every_command_of_a_data_set_from_first_to_last(data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_for(tmp_path, data_set))
    commands = commands_of(section(data_set))
    follow(commands)
    reports = [words[1:] for words in commands if words[0] == "report"]
    for runs in reports:
        check_report(Path(runs[0] if len(runs) == 1 else "runs"), [Path(one).name for one in runs])
    rows = [name for name in ROWS if of_row(commands, name)]
    assert len(reports) == len(rows) > 1
    for name in rows:
        for end in ("", "_4gpus", "_1gpu"):
            check_run(Path("runs", f"{name}{end}"), CLASSES[name.split("_")[0]])


def test_a_page_that_names_what_is_not_there_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_for(tmp_path))
    with pytest.raises(AssertionError, match="ucf101_2pct"):
        follow(commands_of("    python -m jobs.train --config jobs/configs/ucf101_2pct.yaml\n"))
    with pytest.raises(KeyError, match="learn"):
        follow(commands_of("    python -m jobs.learn\n"))
    assert run(train.main, ["--config", "jobs/configs/ucf101_1pct.yaml", "train.stesp=2"]) == USER_ERROR


def test_every_row_has_all_its_commands() -> None:
    """And the commands that the configurations' first lines have for their files are the page's."""
    commands = commands_of(PAGE)
    for name in ROWS:
        row = of_row(commands, name)
        files = [[word for word in words if word.startswith("jobs/configs/gpus/")] for words in row if words[0] == "train"]
        assert files == [[], [], ["jobs/configs/gpus/4.yaml"], ["jobs/configs/gpus/1.yaml"]], name
        assert ["evaluate", f"runs/{name}", "evaluation.clips=10", "evaluation.crops=3"] in row
        assert any(words[0] == "report" and words[-1] == f"runs/{name}" for words in row)
        header = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").replace("\\\n#", "")
        for line in re.findall(r"^# +python -m jobs\.(.*)$", header, flags=re.MULTILINE):
            assert shlex.split(line) in commands, line


# ------------------------------------------------------------------------------------------------------- its numbers


def cells_of(text: str, first: str) -> list[list[str]]:
    """Cells of a table's rows whose first cell matches."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if re.fullmatch(first, row[0])]


def seconds_of_a_part(videos: int) -> tuple[float, float]:
    """What docs/gpu.md expects of a part of a step with so many labeled videos."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    (row,) = cells_of(page, {4: r"4 \+ 20 \+ 20, contrast on", 8: r"8 labeled .*contrast on"}[videos])
    least, most = re.findall(r"0\.\d+", row[-1])
    return float(least), float(most)


def operators(config: Config) -> float:
    """Of both students' forward passes of one clip."""
    total = 0
    for name in STUDENTS:
        student = getattr(config, name)
        with torch.device("meta"):
            network = build_student(student.network.model_copy(update={"weights": None}), student.clip, 101).eval()
            clip = torch.empty(1, 3, student.clip.frames, student.clip.size, student.clip.size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(clip)
        total += counter.get_total_flops()
    return float(total)


def hours(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def test_the_hours_follow_from_the_steps_and_the_expected_time_of_one() -> None:
    paper = load_config(CONFIGS / "ucf101_1pct.yaml")
    base = operators(paper)
    rows = {row[0].strip("`"): row[1:] for row in cells_of(section("Hours"), r"`\w+`")}
    assert sorted(rows) == ROWS
    for name, (_, steps, decoded, *given) in rows.items():
        config = load_config(CONFIGS / f"{name}.yaml")
        labeled, alone = config.data.labeled_per_step, find_first_unlabeled_step(config)
        unlabeled = labeled * config.data.unlabeled_per_labeled
        assert steps == f"{config.train.steps:,}"
        assert decoded == f"{config.train.steps * labeled + (config.train.steps - alone) * unlabeled:,}"
        full = config.train.steps - alone + alone * labeled / (labeled + 2 * unlabeled)
        same = config.primary.clip == paper.primary.clip and config.auxiliary.clip == paper.auxiliary.clip
        factor = 1.0 if same else operators(config) / base
        assert factor == pytest.approx(1.55 if "practical" in name else 1, abs=0.005)
        for parts, cell in zip((1, 2, 8), given, strict=True):
            each = [full * one * factor * parts / 3600 for one in seconds_of_a_part(labeled // 8)]
            assert cell == " to ".join(map(hours, each)), f"{name}, {parts} parts"


def test_the_knobs_side_by_side_are_those_of_the_configurations() -> None:
    paper = [load_config(CONFIGS / f"{name}.yaml") for name in ("ucf101_10pct", "hmdb51_40pct", "kinetics400_10pct")]
    practical = [load_config(CONFIGS / f"{name}.yaml") for name in ("ucf101_practical", "hmdb51_practical")]
    rows = cells_of(section("The two settings side by side"), r"`[\w.]+`")
    assert len(rows) > 30
    for key, *cells, _ in rows:
        for cell, configs in zip(cells, (paper, practical), strict=True):
            given = [yaml.safe_load(value) for value in re.findall(r"`([^`]+)`", cell)]
            values = given * len(configs) if len(given) == 1 else given
            for value, config in zip(values, configs, strict=True):
                found: object = config
                for name in key.strip("`").split("."):
                    found = getattr(found, name)
                assert found == value, f"{key}: {found} and not {value}"
