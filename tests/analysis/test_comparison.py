"""Groups of seeds, paired gains, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.comparison import (
    Difference,
    Group,
    choose_baseline,
    compare_groups,
    find_varied_keys,
    group_runs,
    sort_groups,
)
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.errors import UserError
from pipeline.report.parts.formats import format_text
from pipeline.report.parts.sentences import list_caveats
from pipeline.report.parts.tables import build_runs_table, build_settings_table, format_signed


def read_runs(folders: list[Path]) -> list[RunRecord]:
    return list(read_report_input(folders).runs)


def tables(folders: list[Path]) -> tuple[list[list[str]], list[list[str]]]:
    """Texts of the tables of runs and of settings."""
    groups = group_runs(read_runs(folders))
    both = build_runs_table(groups), build_settings_table(groups, compare_groups(groups))
    runs, settings = ([[cell.text for cell in row] for row in table.rows] for table in both)
    return runs, settings


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


def weights(parent: Path, values: tuple[float, ...], seeds: tuple[int, ...] = (0,)) -> list[Group]:
    """Light runs of an ablation of the contrast weight."""
    folders = []
    for weight in values:
        for seed in seeds:
            top1, name = 0.6 + weight / 50 + seed / 100, f"weight-{weight}-{seed}"
            folder = write_light_run(parent, "actnetformer", seed, top1, name=name)
            own = f"actnetformer, contrast: {{weight: {weight}}}}}"
            (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("actnetformer}", own))
            folders.append(folder)
    return group_runs(read_runs(folders))


def test_seeds_of_one_setting_are_one_group(four: list[Path]) -> None:
    groups = group_runs(read_runs(four[::-1]))
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("supervised", [0, 1]), ("actnetformer", [0, 1])]  # fmt: skip
    found = groups[0].get_top1("primary")
    assert found is not None and (found.mean, found.sd, found.seeds, found.over) == (
        pytest.approx(55.0), pytest.approx(50**0.5), 2, "seeds")  # fmt: skip


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """The second run of a seed is no second draw: an earlier study made cells that were the same run."""
    for name, top1 in (("a", None), ("b", 0.6), ("c", 0.6)):
        write_light_run(tmp_path, "actnetformer", 0, top1, name=name)
    write_light_run(tmp_path, "actnetformer", 1, 0.7, name="d")
    (group,) = groups = group_runs(read_runs([tmp_path]))
    assert [run.name for run in group.runs] == ["b", "d"] and [run.name for run in group.repeats] == ["c", "a"]
    assert (found := group.get_top1("primary")) is not None and found.seeds == 2
    assert len(build_runs_table(groups).rows) == 4
    assert any("not counted, for they repeat one: c, a" in note for note in list_caveats(groups, []))


def test_labels_from_another_file_are_another_setting(tmp_path: Path) -> None:
    for name, seed, print_ in (("good-0", 0, "1" * 16), ("bad-0", 0, "2" * 16), ("bad-1", 1, "2" * 16), ("none", 0, "")):
        folder = write_light_run(tmp_path, "fixmatch", seed, 0.5, name=name)
        facts = json.loads((folder / "facts.json").read_text())
        facts["fingerprints"] |= {"file_labels": print_} if print_ else {}
        (folder / "facts.json").write_text(json.dumps(facts))
    groups = group_runs(read_runs([tmp_path]))
    assert {group.label: [run.name for run in group.runs] for group in groups} == {
        "fixmatch": ["none"], f"file_label.file={'1' * 16}": ["good-0"], f"file_label.file={'2' * 16}": ["bad-0", "bad-1"],
    }  # fmt: skip
    assert all(not group.repeats for group in groups)


def test_the_difference_is_taken_seed_by_seed(four: list[Path]) -> None:
    (one,) = compare_groups(group_runs(read_runs(four)))
    assert one.compute_by_seed("primary") == pytest.approx({0: 8.0, 1: 4.0})
    assert (one.estimates["mean"].mean, one.estimates["mean"].sd) == (pytest.approx(6.0), pytest.approx(8**0.5))
    assert one.differences == ()
    assert one.describe_verdict("mean") == "not distinguishable at n = 2"


def test_with_predictions_it_is_taken_video_by_video(make_run: Any) -> None:
    groups = group_runs(read_runs([make_run(method=method, seed=0, margin=margin) for method, margin in METHODS.items()]))
    (one,) = compare_groups(groups)
    assert one.estimates["mean"].over == "videos" and one.estimates["mean"].seeds == 1
    top1 = [group.runs[0].get_top1("mean") or 0.0 for group in groups]
    assert one.estimates["mean"].mean == pytest.approx(top1[1] - top1[0])
    assert one.describe_verdict("mean").startswith("one seed: ")


METHODS = {"supervised": 0.0, "actnetformer": 4.0}


def test_only_videos_that_all_runs_scored_are_compared(make_run: Any, write_predictions: Any) -> None:
    folders = [make_run(method=method, seed=seed, margin=margin) for method, margin in METHODS.items() for seed in (0, 1, 2)]
    whole = compare_groups(group_runs(read_runs(folders)))[0]
    assert whole.estimates["mean"].over == "seeds and videos"
    (folders[0] / "predictions.parquet").unlink()
    without = compare_groups(group_runs(read_runs(folders)))[0]
    assert without.estimates["mean"].over == "seeds"
    assert without.estimates["mean"].mean == pytest.approx(whole.estimates["mean"].mean)


def test_runs_with_other_labels_or_seeds_are_not_paired(tmp_path: Path) -> None:
    folders = [
        write_light_run(tmp_path, "supervised", 0, 0.5),
        write_light_run(tmp_path, "actnetformer", 0, 0.9, labels="bbbb"),
        write_light_run(tmp_path, "actnetformer", 1, 0.9),
    ]
    assert compare_groups(group_runs(read_runs(folders))) == []


def test_a_study_of_the_number_of_labels_pairs_runs_with_other_labels(tmp_path: Path) -> None:
    folders = [write_light_run(tmp_path, "actnetformer", 0, 0.5, labels=mark, name=mark) for mark in ("few", "many")]
    facts = json.loads((folders[1] / "facts.json").read_text())
    (folders[1] / "facts.json").write_text(json.dumps({**facts, "labels": {"spec": "50%", "seed": 0, "count": 5050}}))
    (one,) = compare_groups(group_runs(read_runs(folders)))
    assert one.baseline.label == "labels=10%" and one.group.label == "labels=50%"


def test_settings_that_differ_beside_the_method_are_named(tmp_path: Path) -> None:
    folders = [
        write_light_run(tmp_path, "supervised", 0, 0.5),
        write_light_run(tmp_path, "actnetformer", 0, 0.6, keys="train: {steps: 40000, log_every: 5}"),
    ]
    (one,) = compare_groups(group_runs(read_runs(folders)))
    assert one.differences == ("train.steps: 20000 in supervised, 40000 in actnetformer",)


def test_who_where_and_how_fast_is_no_setting(tmp_path: Path) -> None:
    """Whatever is not in ``Config.collect_result_knobs``, so that a new knob needs no list here."""
    keys = "data: {clips_per_block: 7}\ntrain: {log_every: 5, checkpoint_every: 9}\nscale: {workers: 3}"
    folders = [write_light_run(tmp_path, "cmpl", seed, 0.5, keys=keys if seed else "") for seed in (0, 1)]
    assert len(group_runs(read_runs(folders))) == 1
    other = write_light_run(tmp_path, "cmpl", 2, 0.5, keys="evaluation: {clips: 3}")
    assert len(group_runs(read_runs([*folders, other]))) == 2


def test_an_ablation_names_the_key_that_varies(tmp_path: Path) -> None:
    groups = weights(tmp_path, (0, 4))
    assert [group.label for group in groups] == ["contrast.weight=0", "contrast.weight=4"]
    assert find_varied_keys(groups) == ["method.contrast.weight"]


def test_settings_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    groups = sort_groups(weights(tmp_path, (8, 0.5, 16, 2)))
    assert [group.label for group in groups] == [f"contrast.weight={value}" for value in ("0.5", "2", "8", "16")]


def test_the_baseline_is_the_studys_then_the_supervised_then_the_defaults_then_the_first(
    tmp_path: Path, four: list[Path]
) -> None:
    def label(groups: list[Group], params: dict[str, Any] | None = None) -> str | None:
        found = choose_baseline(groups, params)
        return found.label if found else None

    groups = weights(tmp_path / "w", (0, 2, 4))
    assert label(groups) == "contrast.weight=2"  # the program's default, and the paper's
    assert label(groups, {"method.contrast.weight": 4, "run.seed": 3}) == "contrast.weight=4"
    assert label([groups[0], groups[2]]) == "contrast.weight=0"
    assert label([groups[0]]) is None
    assert label(group_runs(read_runs(four[::-1]))) == "supervised"
    with pytest.raises(UserError, match=r"no run has the baseline's method\.contrast\.weight=7") as caught:
        choose_baseline(groups, {"method.contrast.weight": 7})
    assert "there is contrast.weight=4" in str(caught.value)


def test_p_is_corrected_for_the_number_of_settings(make_run: Any) -> None:
    folders = [
        make_run(seed=seed, margin=1 + weight, overrides=(f"method.contrast.weight={weight}", f"run.name=w{weight}-{seed}"))
        for weight in (0, 1, 2, 4) for seed in (0, 1, 2)
    ]  # fmt: skip
    found = compare_groups(group_runs(read_runs(folders)))
    assert len(found) == 3 and {one.baseline.label for one in found} == {"contrast.weight=2"}
    raw = sorted((one.estimates["mean"].p or 0.0, one.adjusted["mean"] or 0.0) for one in found)
    assert raw[0][1] == pytest.approx(min(1, 3 * raw[0][0])) and all(p <= after for p, after in raw)


def test_the_tables_have_runs_and_settings(four: list[Path]) -> None:
    runs, settings = tables(four)
    assert runs[2][:5] == ["actnetformer-0", "actnetformer", "10% (1,010), seed 0", "20,000", "0"]
    assert runs[2][5:] == ["58.0", "48.0", "68.0", "–", "–"]
    assert settings[0][:6] == ["supervised", "2", "55.0 ± 7.1", "45.0 ± 7.1", "65.0 ± 7.1", "1.5 to 100.0"]
    assert settings[0][6:] == ["–", "–", "baseline", "–"]
    assert settings[1][6:9] == ["+6.0", "0.20", "not distinguishable at n = 2"]


def test_columns_of_the_text_line_up(four: list[Path]) -> None:
    groups = group_runs(read_runs(four))
    lines = format_text(build_runs_table(groups)).splitlines()
    assert len(lines) == 2 + 4 and {len(line) for line in lines} == {len(lines[1])}
    for column in (index for index, mark in enumerate(lines[1]) if mark == " "):
        assert all(line[column] == " " for line in lines)


def test_a_run_without_an_evaluation_has_dashes_and_no_difference(tmp_path: Path) -> None:
    folders = [write_light_run(tmp_path, "supervised", 0, 0.5), write_light_run(tmp_path, "actnetformer", 0, None)]
    runs, settings = tables(folders)
    assert runs[1][5:8] == ["–", "–", "–"] and settings[1][1] == "0"
    found: list[Difference] = compare_groups(group_runs(read_runs(folders)))
    assert found == []


def test_no_difference_has_no_minus() -> None:
    assert [format_signed(points) for points in (-0.04, 0.0, 0.06, -1.26)] == ["+0.0", "+0.0", "+0.1", "−1.3"]


def test_folders_that_are_no_runs_are_named_with_a_remedy(tmp_path: Path, four: list[Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_runs([four[0], tmp_path / "empty", tmp_path / "actnetformer0", four[0] / "config.yaml"])
    text = str(caught.value)
    assert f"{tmp_path / 'empty'}: holds none of these, nor a folder that does" in text
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
