"""Groups of seeds, paired gains, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.studies.comparison import gains, group_runs
from pipeline.studies.runs import read_runs
from pipeline.studies.table import HEADER, as_text, sections, signed

ACCURACIES = {("supervised", 0): 0.50, ("supervised", 1): 0.60, ("actnetformer", 0): 0.58, ("actnetformer", 1): 0.64}


def write_light_run(
    parent: Path, method: str, seed: int, top1: float | None, labels: str = "aaaa", keys: str = "", name: str | None = None
) -> Path:
    """config.yaml, facts.json and evaluation.json only."""
    folder = parent / (name or f"{method}-{seed}")
    folder.mkdir(parents=True)
    text = f"run: {{name: {folder.name}, seed: {seed}}}\nmethod: {{name: {method}}}\n{keys}"
    (folder / "config.yaml").write_text(text)
    prints = {"manifest": "1234", "labels": labels}
    facts = {"fingerprints": prints, "labels": {"spec": "10%", "seed": 0, "count": 1010}}
    (folder / "facts.json").write_text(json.dumps(facts))
    if top1 is not None:
        views = {"primary": top1, "auxiliary": top1 - 0.1, "mean": top1 + 0.1}
        scores = {name: {"top1": share, "per_class": {"a": share}} for name, share in views.items()}
        (folder / "evaluation.json").write_text(json.dumps({"videos": 1000, "classes": ["a"], "step": 20000, **scores}))
    return folder


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    return [write_light_run(tmp_path, method, seed, top1) for (method, seed), top1 in ACCURACIES.items()]


def test_seeds_of_one_setting_are_one_group(four: list[Path]) -> None:
    groups = group_runs(read_runs(four[::-1]))
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("supervised", [0, 1]), ("actnetformer", [0, 1])]  # fmt: skip
    mean = groups[0].top1("primary")
    assert mean is not None and mean == pytest.approx((55.0, 50**0.5, 2))


def test_the_gain_is_taken_seed_by_seed(four: list[Path]) -> None:
    (gain,) = gains(group_runs(read_runs(four)))
    assert {seed: points["primary"] for seed, points in gain.by_seed.items()} == pytest.approx({0: 8.0, 1: 4.0})
    assert gain.mean("mean") == pytest.approx((6.0, 8**0.5, 2))
    assert gain.differences == ()


def test_runs_with_other_labels_or_seeds_are_not_paired(tmp_path: Path) -> None:
    folders = [
        write_light_run(tmp_path, "supervised", 0, 0.5),
        write_light_run(tmp_path, "actnetformer", 0, 0.9, labels="bbbb"),
        write_light_run(tmp_path, "actnetformer", 1, 0.9),
    ]
    assert gains(group_runs(read_runs(folders))) == []


def test_settings_that_differ_beside_the_method_are_named(tmp_path: Path) -> None:
    folders = [
        write_light_run(tmp_path, "supervised", 0, 0.5),
        write_light_run(tmp_path, "actnetformer", 0, 0.6, keys="train: {steps: 40000, log_every: 5}"),
    ]
    (gain,) = gains(group_runs(read_runs(folders)))
    assert gain.differences == ("train.steps: 20000 in supervised, 40000 in actnetformer",)


def test_an_ablation_names_the_key_that_varies(tmp_path: Path) -> None:
    folders = []
    for weight in (0, 4):
        folder = write_light_run(tmp_path, "actnetformer", 0, 0.6, name=f"weight-{weight}")
        config = (folder / "config.yaml").read_text().replace("actnetformer}", f"actnetformer, contrast_weight: {weight}}}")
        (folder / "config.yaml").write_text(config)
        folders.append(folder)
    assert [group.label for group in group_runs(read_runs(folders))] == [
        "actnetformer contrast_weight=0.0", "actnetformer contrast_weight=4.0"]  # fmt: skip


def test_the_table_has_runs_then_means_then_gains(four: list[Path]) -> None:
    runs, means, gained = sections(group_runs(read_runs(four)))
    assert runs[2] == ("actnetformer-0", "actnetformer", "10% (1,010), seed 0", "20,000", "0", "58.0", "48.0", "68.0")
    assert means[0][5:] == ("55.0 ± 7.1 (2)", "45.0 ± 7.1 (2)", "65.0 ± 7.1 (2)")
    assert [row[5] for row in gained] == ["+8.0", "+4.0", "+6.0 ± 2.8 (2)"]
    assert all(len(row) == len(HEADER) for row in runs + means + gained)


def test_columns_of_the_text_line_up(four: list[Path]) -> None:
    lines = [line for line in as_text(sections(group_runs(read_runs(four)))).splitlines() if line]
    assert len(lines) == 2 + 4 + 2 + 3
    assert {len(line) for line in lines} == {len(lines[1])}
    assert all(line[column] == " " for column in (lines[1].index(" "),) for line in lines)


def test_a_run_without_an_evaluation_has_dashes_and_no_gain(tmp_path: Path) -> None:
    folders = [write_light_run(tmp_path, "supervised", 0, 0.5), write_light_run(tmp_path, "actnetformer", 0, None)]
    (rows,) = sections(group_runs(read_runs(folders)))
    assert rows[1][-3:] == ("-", "-", "-")


def test_no_difference_has_no_minus() -> None:
    assert [signed(points) for points in (-0.04, 0.0, 0.06, -1.26)] == ["+0.0", "+0.0", "+0.1", "-1.3"]


def test_folders_that_are_no_runs_are_named_with_a_remedy(tmp_path: Path, four: list[Path]) -> None:
    with pytest.raises(UserError) as caught:
        read_runs([four[0], tmp_path, tmp_path / "actnetformer0", four[0] / "config.yaml"])
    text = str(caught.value)
    assert f"{tmp_path}: holds none of these; its subfolders actnetformer-0, actnetformer-1" in text
    assert f"did you mean {tmp_path / 'actnetformer-0'}?" in text
    assert "config.yaml: is a file" in text and "metrics.jsonl" in text


def test_the_same_folder_counts_once_and_an_old_report_not_at_all(tmp_path: Path, four: list[Path]) -> None:
    (tmp_path / "report.html").write_text("old")
    assert len(read_runs([*four, four[0], tmp_path / "report.html"])) == 4
    with pytest.raises(UserError, match="an earlier report"):
        read_runs([tmp_path / "report.html"])


def test_a_config_of_another_version_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = write_light_run(tmp_path, "supervised", 3, 0.5, keys="train: {stepz: 5}")
    (run,) = read_runs([folder])
    assert run.seed == 3 and run.config["train.stepz"] == 5
    assert any("of this version" in sentence for sentence in run.missing)


@pytest.mark.parametrize("name", ["config.yaml", "facts.json", "evaluation.json", "predictions.parquet", "quarantine.parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00{[", b"[1, 2]"])
def test_a_damaged_file_is_missing_not_fatal(make_run: Any, name: str, content: bytes) -> None:
    folder = make_run()
    (folder / name).write_bytes(content)
    (run,) = read_runs([folder])
    assert any(name in sentence for sentence in run.missing), run.missing
    assert len(run.lines) == 100


def test_steps_trained_again_count_once_and_broken_lines_are_counted(make_run: Any) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 990, "loss": 7}\nnonsense\n{"step": 1000, "loss": 8}\n{"step": 10')
    (run,) = read_runs([folder])
    assert len(run.lines) == 100 and [line["loss"] for line in run.lines[-2:]] == [7, 8]
    assert "1 of 104 lines of metrics.jsonl: they cannot be read." in run.missing
