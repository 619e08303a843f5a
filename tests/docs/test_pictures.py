"""The pictures of docs/: each is drawn by a script that a page or the picture names, and the scripts run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted(path.relative_to(ROOT) for kind in ("svg", "png", "jpg") for path in (ROOT / "docs").rglob(f"*.{kind}"))
BY_HAND = "Drawn by hand"


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def find_origin(picture: Path) -> str:
    """The words that say how a picture is made: in itself, or on the page that shows it, near it. Empty if nothing does."""
    if picture.suffix == ".svg" and BY_HAND in (ROOT / picture).read_text(encoding="utf-8"):
        return BY_HAND
    for page in (ROOT / "docs").rglob("*.md"):
        shown = re.search(
            rf"!\[[^]]*\]\([\w./]*{re.escape(picture.name)}\)\n\n(.*?)\n\n", page.read_text(encoding="utf-8"), re.S
        )
        if shown and (script := re.search(r"`python (-m )?(docs[\w./]+)", shown[1])):
            return script[2]
    return ""


@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_every_picture_says_how_it_is_made(picture: Path) -> None:
    origin = find_origin(picture)
    assert origin == BY_HAND or (ROOT / origin).is_file() or (ROOT / f"{origin.replace('.', '/')}.py").is_file(), origin


def test_a_picture_of_nowhere_is_found() -> None:
    assert find_origin(Path("docs/nothing.png")) == ""


def test_the_picture_of_measured_results_is_that_of_the_scores_beside_it(tmp_path: Path) -> None:
    """Where it is not: python docs/results/draw.py"""
    script = load_script(Path(shutil.copy(ROOT / "docs/results/draw.py", tmp_path)))
    script.STUDY = ROOT / "docs/results/methods_few_labels"
    script.main()
    drawn = (tmp_path / "methods_few_labels.svg").read_text(encoding="utf-8")
    assert drawn == (ROOT / "docs/results/methods_few_labels.svg").read_text(encoding="utf-8")


def write_runs(study: Path, cells: list[str]) -> None:
    """Metrics of two seeds of each cell: half of the labels are kept, in the first line none."""
    for cell in cells:
        for seed in range(2):
            folder = study / f"{cell}_seed-{seed}"
            folder.mkdir(parents=True)
            lines = [{"step": step, "mask_rate/auxiliary_to_primary": kept, "pseudo_label_accuracy/auxiliary_to_primary": right}
                     for step, kept, right in ((20, 0.0, None), (40, 0.5, 0.25 + seed / 2))]  # fmt: skip
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_thresholds_are_drawn_from_the_runs_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script(ROOT / "docs/results/draw_thresholds.py")
    study, picture = tmp_path / "study", tmp_path / "picture.svg"
    write_runs(study, list(script.CELLS))
    curves = script.read_curves(study, "fixed")
    assert curves == {script.KEPT: {20: 0.0, 40: 50.0}, script.RIGHT: {40: 50.0}}
    assert script.main([str(study), str(picture)]) == 0
    text = picture.read_text(encoding="utf-8")
    assert all(name in text for name, _, _ in script.CELLS.values())

    shutil.rmtree(study / "flexmatch_seed-0")
    shutil.rmtree(study / "flexmatch_seed-1")
    assert script.main([str(study), str(picture)]) == 2 and "flexmatch_seed-*" in capsys.readouterr().err
    assert script.main([]) == 2
