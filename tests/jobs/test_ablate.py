from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from jobs import ablate
from jobs.command import run
from pipeline.clips.views import check_views
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.studies import on_tune
from pipeline.studies.ablation import draw_subsets, plan_trials
from pipeline.studies.study_file import read_study
from tests.two_processes import without_ray

pytestmark = pytest.mark.usefixtures("undrawn")

WORDS = ["train.steps=4", "train.checkpoint_every=2"]


def command(tiny: Path, tmp_path: Path, study: str, *words: str) -> int:
    fixed = ["--config", str(tiny / "tiny.yaml"), "--concurrent", "1", f"run.storage_path={tmp_path}"]
    return run(ablate.main, [study, *fixed, *WORDS, *words])


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text("question: Does contrast matter?\ngrid: {method.contrast.weight: [0, 2]}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(ablate.STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_makes_checked_trials(path: Path) -> None:
    study = read_study(path)
    planned = plan_trials(study, load_config(), seeds=2)
    assert len(planned) == 2 * len(study.cells)
    for trial in planned:
        check_views(trial.config.views)  # a misspelt operation is found no earlier
    assert all(name[0].islower() for name in study.cells)  # off is no False
    assert len({trial.config.run_folder for trial in planned}) == len(planned)
    assert {trial.config.run.seed for trial in planned} == {0, 1}


def test_label_subsets_are_drawn_once_for_all_methods_of_a_seed(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("question: q\ngrid: {labels: [25%, 4/class], method.name: [supervised, actnetformer]}\n", encoding="utf-8")
    base = load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}"])
    planned = plan_trials(read_study(path), base, seeds=2)
    draw_subsets(planned, write=False)
    assert not (tmp_path / "labels").exists()
    draw_subsets(planned, write=True)
    manifest = read_manifest(base.data.manifest)
    drawn = {}
    for trial in planned:
        subset = read_labels(where := trial.config.labels_path, manifest)
        drawn[trial.labels, trial.seed, trial.config.method.name] = where, subset
    names = ["25-percent_seed-0", "25-percent_seed-1", "4-per-class_seed-0", "4-per-class_seed-1"]
    assert sorted(path.stem for path in (tmp_path / "labels" / "labels").iterdir()) == names
    for spec in ("25%", "4/class"):
        for seed in (0, 1):
            (one, subset), (other, _) = (drawn[spec, seed, name] for name in ("supervised", "actnetformer"))
            assert one == other and (subset.spec, subset.seed) == (spec, seed)
    assert len(drawn["4/class", 0, "supervised"][1].ids) == 16
    small, large = (set(drawn[spec, 0, "supervised"][1].ids) for spec in ("25%", "4/class"))
    assert small < large and drawn["25%", 0, "supervised"][1].ids != drawn["25%", 1, "supervised"][1].ids
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels" / "labels").iterdir()}
    draw_subsets(planned, write=True)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    shutil.copy(drawn["25%", 1, "supervised"][0], drawn["25%", 0, "supervised"][0])
    with pytest.raises(UserError, match=r"holds other labels than 25% of seed 0; delete it"):
        draw_subsets(planned, write=False)


def test_cells_with_a_manifest_of_their_own_get_labels_of_it(tiny: Path, tmp_path: Path) -> None:
    """As in ``unknown``: of the same training videos the same labels, though each manifest needs a file of its own."""
    whole = read_manifest(tiny / "manifest.parquet")
    first = whole.table["split"].to_pylist().index("test")
    table = pa.concat_tables([whole.table.slice(0, first), whole.table.slice(first + 1)])
    smaller = write_manifest(table, tmp_path / "smaller.parquet", whole.classes, whole.root, "list")
    path = tmp_path / "two.yaml"
    manifests = [tiny / "manifest.parquet", tmp_path / "smaller.parquet"]
    cells = ", ".join(f"{name}: {{labels: 2/class, data.manifest: {file}}}" for name, file in zip("ab", manifests, strict=True))
    path.write_text(f"question: q\ncases: {{{cells}}}\n", encoding="utf-8")
    planned = plan_trials(read_study(path), load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}"]), seeds=2)
    draw_subsets(planned, write=True)
    drawn = {(trial.cell, trial.seed): trial.config for trial in planned}
    assert len({config.labels_path for config in drawn.values()}) == 4
    for seed in (0, 1):
        one, other = (read_labels(drawn[cell, seed].labels_path, of) for cell, of in (("a", whole), ("b", smaller)))
        assert one.ids == other.ids and one.manifest_fingerprint != other.manifest_fingerprint


def test_cells_that_are_the_same_run_are_run_once(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``threshold_policy`` without a warm-up in the configuration."""
    assert command(tiny, tmp_path, "threshold_policy", "--seeds", "2", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "fixed-no-warm-up is left out: with this configuration it is the same run as fixed\n" in text
    assert text.count("missing  ") == 2 * 5 and text.count("left out") == 4
    assert command(tiny, tmp_path, "threshold_policy", "--dry-run", "method.supervised_steps=4") == 0
    assert capsys.readouterr().out.count("missing  ") == 9


def test_runs_what_is_missing_and_only_that(tiny: Path, tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, str(two), "--seeds", "2", "--dry-run") == 0
    assert capsys.readouterr().out.count("missing  ") == 4
    assert command(tiny, tmp_path, str(two)) == 0
    text = capsys.readouterr().out
    assert "Does contrast matter?" in text
    assert "2 of 2 trials" in text
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("two/*/metrics.jsonl")}
    assert len(stamps) == 2

    assert command(tiny, tmp_path, str(two), "--seeds", "2") == 0
    text = capsys.readouterr().out
    assert "2 of 4 trials are done, 2 to run" in text
    assert "mean ± sd (n)" in text
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    rows = list(csv.DictReader((tmp_path / "two" / "report.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 6  # two cells by three views
    assert all(row["n"] == "2" and row["sd"] for row in rows)
    assert "<svg" in (tmp_path / "two" / "report.html").read_text(encoding="utf-8")

    with without_ray():
        assert command(tiny, tmp_path, str(two), "--seeds", "2", "--concurrent", "2") == 0
        assert "4 of 4 trials" in capsys.readouterr().out  # nothing is left: no cluster is joined or started
        with pytest.raises(AssertionError, match="Ray"):
            command(tiny, tmp_path, str(two), "--seeds", "3", "--concurrent", "2")


def test_a_dry_run_refuses_what_the_run_would(
    tiny: Path, tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.yaml"
    one.write_text("question: q\ngrid: {method.contrast.weight: [0]}\n", encoding="utf-8")
    assert command(tiny, tmp_path, str(one), "train.steps=2") == 0
    for dry in ([], ["--dry-run"]):
        assert command(tiny, tmp_path, str(one), "train.steps=2", "primary.optimizer.lr=0.5", *dry) == 2
        text = capsys.readouterr().err
        assert "primary.optimizer.lr: the run has" in text and "of a study: --name" in text
        assert command(tiny, tmp_path, str(one), "data.manifest=nowhere.parquet", *dry) == 2
        assert "nowhere.parquet" in capsys.readouterr().err
    assert command(tiny, tmp_path, str(one), "--name", "faster", "primary.optimizer.lr=0.5", "--dry-run") == 0
    assert f"1 trials in {tmp_path / 'faster'}" in capsys.readouterr().out
    config = load_config(tiny / "tiny.yaml", ["data.labeled_per_step=8"])
    cores = os.cpu_count() or 1
    assert on_tune.estimate_concurrency(config, None) == max(1, cores) and on_tune.estimate_concurrency(config, 3) == 3


def test_chosen_cells_only(tiny: Path, tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, str(two), "--seeds", "2", "--cells", "contrast_weight-2", "--dry-run") == 0
    listed = capsys.readouterr().out
    assert listed.count("contrast_weight-2_seed-") == 2 and "contrast_weight-0" not in listed
    assert command(tiny, tmp_path, str(two), "--cells", "contrast_weight-2,contrast_weight-3") == 2
    assert "--cells: study two has no cell 'contrast_weight-3'; did you mean contrast_weight-" in capsys.readouterr().err


def test_labels_are_drawn_for_a_study_that_says_nothing_about_them(
    tiny: Path, tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny, tmp_path, str(two), "--labels", "1/class", "--cells", "contrast_weight-0") == 0
    folder = tmp_path / "two"
    manifest = read_manifest(tiny / "manifest.parquet")
    subset = read_labels(folder / "labels" / "1-per-class_seed-0.parquet", manifest)
    assert len(subset.ids) == len(manifest.classes)
    saved = yaml.safe_load((folder / "contrast_weight-0_seed-0" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["labels"].endswith("1-per-class_seed-0.parquet")
    capsys.readouterr()
    assert command(tiny, tmp_path, "few_labels", "--labels", "1/class") == 2
    assert "--labels: study few_labels draws labels itself" in capsys.readouterr().err
    assert command(tiny, tmp_path, str(two), "--labels", "many") == 2
    assert "many" in capsys.readouterr().err


def test_mistakes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "contrast_wieght") == 2
    assert "did you mean contrast_weight?" in capsys.readouterr().err
    bad = tmp_path / "bad.yaml"
    for text, message in (
        ("grid: [", "cannot be read"),
        ("grid: {}", "question and grid"),
        ("question: q\ncases: {a: {}, off: {method.contrast.weight: on}}", "method.contrast.weight: write a number"),
        ("question: q\ngrid: {1: [3]}", "unknown key 1"),
        ('question: q\ncases: {off: {}, "off": {method.contrast.weight: 0}}', "'off' is there twice"),
        ("question: q\ncases: {a: 3}", "mapping of configuration keys"),
        ("question: q\ngrid: {train.steps: [3]}\ncases: {a: {}}", "or question and cases"),
        ("question: q\ngrid: {train.steps: 3}", "list of values"),
        ("question: q\ngrid: {trian.steps: [3]}", "did you mean train"),
        ("question: q\ngrid: {train.steps: [-3, 3]}", "greater than or equal to 1"),
    ):
        bad.write_text(text, encoding="utf-8")
        assert command(tiny, tmp_path, str(bad)) == 2
        assert message in capsys.readouterr().err
    assert command(tiny, tmp_path, "threshold", "--seeds", "0") == 2
    assert not list(tmp_path.glob("*/*/metrics.jsonl"))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_two_trials_at_once_on_two_cpus(tiny: Path, tmp_path: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray Tune over real TorchTrainers: neither trial may take the CPU that the other's decoders need."""
    assert command(tiny, tmp_path, str(two), "--concurrent", "2", "scale.workers=1") == 0
    assert "2 of 2 trials" in capsys.readouterr().out
    for weight in (0, 2):
        folder = tmp_path / "two" / f"contrast_weight-{weight}_seed-0"
        assert (folder / "evaluation.json").is_file()
        assert (folder / "checkpoint_000004").is_dir()
