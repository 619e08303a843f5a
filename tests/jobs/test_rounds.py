"""Simulated rounds of labeling: whole ones on generated videos, again after a part is gone, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import rounds
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from tests.two_processes import without_ray

pytestmark = pytest.mark.usefixtures("undrawn")

KEYS = ("train.steps=4", "train.warmup_steps=0", "train.save_scores_every=1", "method.supervised_steps=0", "evaluation.clips=1")


def list_words(tiny: Path, out: Path, *words: str) -> list[str]:
    common = ["--rounds", "2", "--count", "3", "--strategies", "entropy", "--concurrent", "1"]
    return ["--config", str(tiny / "tiny.yaml"), *common, *words, *KEYS, f"run.storage_path={out}"]


def test_two_rounds_of_entropy_and_of_chance(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with without_ray():
        assert run(rounds.main, list_words(tiny, tmp_path)) == DONE
    said = capsys.readouterr().out
    folder, manifest = tmp_path / "rounds", read_manifest(tiny / "manifest.parquet")
    names = ["start", *(f"{name}_round-{number}" for number in (1, 2) for name in ("random", "entropy"))]
    assert sorted(path.parent.name for path in folder.glob("*/evaluation.json")) == sorted(f"{name}_seed-0" for name in names)
    subsets = {name: read_labels(folder / "labels" / f"{name}_seed-0.parquet", manifest) for name in names}
    assert {name: len(subset.rows) for name, subset in subsets.items()} == dict(zip(names, (4, 7, 7, 10, 10), strict=True))
    for name in ("random", "entropy"):
        first, second = (set(subsets[f"{name}_round-{number}"].rows.tolist()) for number in (1, 2))
        assert set(subsets["start"].rows.tolist()) < first < second
        assert subsets[f"{name}_round-2"].spec == f"1/class + 2 x 3 {name}"
        assert not subsets[f"{name}_round-2"].given  # the answers are the true ones
    used = json.loads((folder / "entropy_round-2_seed-0" / "facts.json").read_text())["fingerprints"]["labels"]
    assert used == subsets["entropy_round-2"].fingerprint
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Rounds of labeling: rounds" in page and "labels needed" in page and "labels needed" in said

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    shutil.rmtree(folder / "entropy_round-2_seed-0")
    before = (folder / "random_round-2_seed-0" / "metrics.jsonl").read_bytes()
    assert run(rounds.main, list_words(tiny, tmp_path)) == DONE
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert again.keys() == times.keys()
    assert {path.parent.parent.name for path in times if again[path] != times[path]} == {"entropy_round-2_seed-0"}
    assert (folder / "random_round-2_seed-0" / "metrics.jsonl").read_bytes() == before


def test_supervised_students_choose_by_what_they_predict_after_training(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*list_words(tiny, tmp_path, "--rounds", "1", "--strategies", "margin"), "method.name=supervised"]
    with without_ray():
        assert run(rounds.main, words) == DONE
    folder, manifest = tmp_path / "rounds", read_manifest(tiny / "manifest.parquet")
    start, chosen = (
        read_labels(folder / "labels" / f"{name}_seed-0.parquet", manifest) for name in ("start", "margin_round-1")
    )
    table = pq.read_table(folder / "start_seed-0" / "unlabeled.parquet", columns=["file", "primary", "auxiliary"]).to_pylist()
    uris = manifest.table["uri"].to_pylist()
    unlabeled = np.setdiff1d(manifest.find_training_rows(), start.rows)
    assert sorted(row["file"] for row in table) == sorted(uris[row] for row in unlabeled)
    gaps = {row["file"]: np.diff(np.sort(np.mean([row["primary"], row["auxiliary"]], axis=0))[-2:])[0] for row in table}
    closest = sorted(gaps, key=gaps.__getitem__)[:3]
    assert {uris[row] for row in np.setdiff1d(chosen.rows, start.rows)} == set(closest)
    assert run(rounds.main, [*words[:-1], "method.name=supervised", "--dry-run"]) == DONE
    assert "random, margin; 1 rounds of 3" in capsys.readouterr().out


def test_without_time_nothing_is_lost(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(rounds.main, list_words(tiny, tmp_path, "--hours", "1e-9")) == DONE
    assert "5 runs are left: the same command continues them" in capsys.readouterr().out
    assert run(rounds.main, list_words(tiny, tmp_path, "--dry-run")) == DONE
    assert capsys.readouterr().out.startswith(f"5 runs in {tmp_path / 'rounds'}: random, entropy; 2 rounds of 3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategies", "entrpy"], "--strategies: 'entrpy' is not known; did you mean entropy?"),
        (["--count", "30"], "--start 1/class and --rounds 2 of --count 30 label 64 videos"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["method.name=supervised", "--strategies", "unstable"], "set method.name to one that learns from them"),
        (["train.save_scores_every=0", "--strategies", "unstable"], "train.save_scores_every above 0, or leave it out"),
    ],
)
def test_what_cannot_be_simulated_is_said_first(
    words: list[str], message: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(rounds.main, [*list_words(tiny, tmp_path), *words]) == USER_ERROR
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_pools_without_known_labels_are_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import prepare

    manifest = read_manifest(tiny / "manifest.parquet")
    lines = ["path,label,split"]
    for row, (uri, label, split) in enumerate(
        zip(*(manifest.table[name].to_pylist() for name in ("uri", "class", "split")), strict=True)
    ):
        lines.append(f"{uri},{'' if row % 5 == 0 and split == 'train' else label},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    words = ["list", str(tmp_path / "list.csv"), str(tmp_path / "data"), "--root", manifest.root, "--labeled", "1/class"]
    assert run(prepare.main, words) == DONE
    capsys.readouterr()
    words = [f"data.manifest={tmp_path / 'data' / 'manifest.parquet'}"]
    assert run(rounds.main, [*list_words(tiny, tmp_path / "runs"), *words]) == USER_ERROR
    assert "training videos of" in (said := capsys.readouterr().err) and "have no class, so nobody can answer for them" in said


def test_labels_of_a_seed_are_those_that_jobs_label_draws(tiny: Path, tmp_path: Path) -> None:
    """So that rounds begin where a run of the same seed begins."""
    from pipeline.manifest.label_subset import draw_labels

    manifest = read_manifest(tiny / "manifest.parquet")
    assert run(rounds.main, list_words(tiny, tmp_path, "--hours", "1e-9", "--seeds", "2")) == DONE
    for seed in (0, 1):
        rows = read_labels(tmp_path / "rounds" / "labels" / f"start_seed-{seed}.parquet", manifest).rows
        assert np.array_equal(rows, draw_labels(manifest, "1/class", seed).rows)
