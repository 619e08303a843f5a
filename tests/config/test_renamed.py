"""Names that knobs had: refused where users write them, read where runs recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import report, train
from jobs.command import run
from pipeline.analysis.records.study_reader import read_study_record
from pipeline.config import Config, list_keys, load_config, parse_config
from pipeline.config.renamed import REMOVED, RENAMED, translate_old_names, translate_to_old_names
from pipeline.errors import UserError
from pipeline.run_folder.contents import compute_config_digest, read_metrics, read_run
from pipeline.search.optuna_storage import SETTING, open_study

RECORDED = Path(__file__).with_name("recorded_run")
"""Of a run of November 2026: ``config.yaml``, ``fingerprint``, and the ``words`` that it was started with, in today's names."""


def nested(key: str, value: Any = 1) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    found: dict[str, Any] = value
    return found


def test_the_table_leads_from_names_that_are_gone_to_ones_that_exist() -> None:
    known = set(list_keys())
    assert not known & (RENAMED.keys() | REMOVED.keys())
    assert set(RENAMED.values()) <= known and len(set(RENAMED.values())) == len(RENAMED)


@pytest.mark.parametrize("key", RENAMED)
def test_an_earlier_name_is_refused_with_todays(key: str, tmp_path: Path) -> None:
    message = f"{key} is now {RENAMED[key]}"
    with pytest.raises(UserError) as word:
        load_config(None, [f"{key}=1"])
    assert message in str(word.value) and "1 mistake " in str(word.value)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(nested(key)), encoding="utf-8")
    with pytest.raises(UserError) as file:
        load_config(path)
    assert message in str(file.value)
    assert len(str(file.value).splitlines()) == 2  # of a section such as method.start only what was written there


def test_a_knob_that_is_gone_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"monitors.largest_loss is no longer a knob, because no result depends on it"):
        load_config(None, ["monitors.largest_loss=2"])
    recorded = translate_old_names({"monitors": {"largest_loss": 2, "patience_steps": 7}})
    assert parse_config(recorded).monitors.patience_steps == 7


def test_names_change_and_nothing_else() -> None:
    tree = Config().model_dump(mode="json")
    old = translate_to_old_names(tree)
    assert old["method"]["contrast_weight"] == 2 and old["method"]["start"]["mix"] == 0 and "contrast" not in old["method"]
    assert translate_old_names(old) == tree == translate_old_names(tree)


def test_a_recorded_run_is_read_and_has_its_fingerprint() -> None:
    recorded = yaml.safe_load((RECORDED / "config.yaml").read_text(encoding="utf-8"))
    words = (RECORDED / "words").read_text(encoding="utf-8").splitlines()
    config = parse_config(translate_old_names(recorded))
    assert config == load_config(None, words)
    assert config.compute_fingerprint() == (RECORDED / "fingerprint").read_text(encoding="utf-8").strip()
    assert len({config.compute_fingerprint(), load_config(None, words[:-1]).compute_fingerprint()}) == 2


def under_old_names(folder: Path) -> None:
    """Make a run folder one that was recorded before names changed."""
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    old = translate_to_old_names(tree)
    old["monitors"]["largest_loss"] = 1.5
    (folder / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False), encoding="utf-8")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    (folder / "facts.json").write_text(json.dumps({**facts, "config_digest": compute_config_digest(folder)}), encoding="utf-8")


def test_a_recorded_run_goes_on_is_reported_on_and_is_not_mixed_up(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=4", "train.checkpoint_every=2"]
    words += ["method.contrast.weight=3", "evaluation.clips=1"]
    assert run(train.main, [*words, "--max-steps", "2"]) == 0
    folder = tmp_path / "tiny"
    under_old_names(folder)
    before = (folder / "config.yaml").read_bytes()

    assert run(train.main, [*words, "method.contrast.weight=1"]) == 2
    assert "method.contrast.weight: the run has 3.0, now 1.0" in capsys.readouterr().err
    assert run(train.main, [*words, "method.contrast_weight=3"]) == 2
    assert "method.contrast_weight is now method.contrast.weight" in capsys.readouterr().err
    assert run(train.main, ["--config", str(folder / "config.yaml")]) == 0  # its own file, as it was recorded
    assert read_metrics(folder)[-1]["step"] == 4 and (folder / "config.yaml").read_bytes() == before
    assert run(train.main, words) == 0
    text = capsys.readouterr().out
    assert "continuing at step 2 of 4" in text and "tiny is done: 4 steps are trained" in text

    assert read_run(folder)[0].method.contrast.weight == 3
    assert run(report.main, [str(folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "contrast × 3" in page and "of this version" not in page


def test_a_recorded_study_is_read_under_todays_names(tmp_path: Path) -> None:
    about = {"name": "old", "kind": "ablation", "baseline": {"method.contrast_weight": 2}}
    (tmp_path / "study.json").write_text(json.dumps(about), encoding="utf-8")
    line = {"number": 0, "state": "waiting", "params": {"method.contrast_weight": 4, "run.seed": 0}}
    (tmp_path / "trials.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    study = read_study_record(tmp_path)
    assert study.baseline == {"method.contrast.weight": 2}
    assert study.trials[0].params == {"method.contrast.weight": 4, "run.seed": 0}


def test_a_recorded_search_goes_on_unless_it_searches_a_renamed_knob(tmp_path: Path) -> None:
    url, rates = f"sqlite:///{tmp_path / 'study.db'}", {"primary.optimizer.lr": [0.1, 0.2]}
    for name, space in {"rates": rates, "losses": {"method.contrast_weight": [1, 2]}}.items():
        setting = {"method.contrast_weight": 2.0, "space": space}
        open_study(url, name, ["maximize"], {}).set_user_attr(SETTING, json.dumps(setting))
    assert open_study(url, "rates", ["maximize"], {"method.contrast.weight": 2.0, "space": rates}).study_name == "rates"
    with pytest.raises(UserError, match=r"method\.contrast\.weight: the study has 2.0, now 3.0"):
        open_study(url, "rates", ["maximize"], {"method.contrast.weight": 3.0, "space": rates})
    with pytest.raises(UserError, match="is for another setting; choose another --name"):
        open_study(url, "losses", ["maximize"], {"method.contrast.weight": 2.0, "space": {"method.contrast.weight": [1, 2]}})


def test_no_file_that_is_shipped_uses_an_earlier_name(repository: Path) -> None:
    texts = [path for name in ("jobs", "cluster", "docs", "pipeline") for path in (repository / name).rglob("*")]
    texts = [path for path in [*texts, repository / "README.md"] if path.suffix in (".py", ".yaml", ".md", ".j2")]
    found = [
        (path.name, key)
        for path in texts
        if path.name != "renamed.py"
        for key in (*RENAMED, *REMOVED)
        if key in path.read_text(encoding="utf-8").replace("evaluation.batch_views", "")
    ]
    assert found == []
