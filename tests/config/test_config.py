from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Config, Section, list_keys, load_config, override, parse_config
from pipeline.errors import UserError


def mistakes(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert config.method.pseudo_label.weight == config.method.contrast.weight == 2
    assert config.method.confidence_threshold == 0.8
    assert (config.primary.network.arch, config.auxiliary.network.arch) == ("slow_resnet", "timesformer")
    assert (config.primary.clip.frames, config.primary.clip.size, config.data.unlabeled_per_labeled) == (8, 224, 5)


def test_clips_of_the_same_span_have_the_frames_for_it() -> None:
    words = ["data.match=span", "auxiliary.clip.frames=5"]
    config = load_config(None, words)
    assert config.auxiliary.clip.frames == 16  # 1 s at 16 fps, as the primary's 8 frames at 8 fps
    assert load_config(None, [*words, "auxiliary.clip.fps=24"]).auxiliary.clip.frames == 24
    assert parse_config(config.model_dump(mode="json")) == config
    assert load_config(None, ["auxiliary.clip.frames=5"]).auxiliary.clip.frames == 5
    assert "8 frames at primary.clip.fps=8 are 12.5 frames" in mistakes("data.match=span", "auxiliary.clip.fps=12.5")


def test_segments_have_no_rate(tmp_path: Path) -> None:
    """Choosing them leaves out the rate of a file or of the defaults; a rate beside them is refused, in any order and layer."""
    windows, spread = tmp_path / "windows.yaml", tmp_path / "segments.yaml"
    windows.write_text("primary: {clip: {frames: 8, fps: 4}}\nauxiliary: {clip: {fps: 8}}\n", encoding="utf-8")
    spread.write_text("primary: {clip: {sampling: segments}}\n", encoding="utf-8")
    words = ["primary.clip.sampling=segments", "primary.clip.frames=16"]
    for config in (load_config(windows, words), load_config([windows, spread], words[1:]), load_config(None, words)):
        assert (config.primary.clip.sampling, config.primary.clip.frames, config.primary.clip.fps) == ("segments", 16, None)
        assert config.auxiliary.clip.sampling == "window" and config.auxiliary.clip.fps in (8.0, 16.0)
        assert parse_config(config.model_dump(mode="json")) == config
        back = override(config.model_dump(mode="json"), ['primary.clip.sampling="window"'], "test").primary.clip
        assert (back.sampling, back.frames, back.fps) == ("window", 16, 8.0)
    kept = override(load_config(windows).model_dump(mode="json"), ['primary.clip.sampling="window"'], "test")
    assert kept.primary.clip.fps == 4.0
    assert load_config([spread, windows], ["primary.clip.sampling=window"]).primary.clip.fps == 8.0
    section = "primary.clip={sampling: segments, fps: 2}"
    for given in ([*words, "primary.clip.fps=4"], ["primary.clip.fps=4", *words], [section]):
        assert "primary.clip: clips of sampling=segments have no fps" in mistakes(*given, path=windows)
    with pytest.raises(UserError, match="clips of sampling=segments have no fps"):
        load_config([spread, windows])
    assert "primary.clip: clips of sampling=window need fps" in mistakes("primary.clip.fps=null")
    for word in ("data.moments=own", "data.match=span"):
        assert f"{word} " in mistakes(word, "auxiliary.clip.sampling=segments", path=windows)


def test_all_mistakes_at_once_with_the_nearest_name() -> None:
    text = mistakes("trian.steps=3", "primary.network.widht=4", "train.steps=-1", "scale.worker=2", "steps=3", "foo")
    assert "6 mistakes" in text
    for line in (
        "unknown key trian; did you mean train?",
        "unknown key primary.network.widht; did you mean primary.network.width?",
        "train.steps: Input should be greater than or equal to 1, got -1",
        "unknown key scale.worker; did you mean scale.workers?",
        "unknown key steps; did you mean train.steps?",
        "'foo': write overrides as key=value",
    ):
        assert line in text


def test_sizes_that_do_not_fit_name_both_keys() -> None:
    assert "auxiliary.network.patch=15 must divide auxiliary.clip.size=224" in mistakes("auxiliary.network.patch=15")
    assert "larger than data.decode_size=64" in mistakes("data.decode_size=64")
    assert "network.heads=5 must divide" in mistakes("auxiliary.network.heads=5")
    stem = "auxiliary.network.stem=convolutions"
    assert "patch=14 must be a power of 2" in mistakes(stem, "auxiliary.network.patch=14")
    assert "tubelet=8 one that is no larger" in mistakes(stem, "auxiliary.network.patch=4", "auxiliary.network.tubelet=8")


def test_yaml_then_words(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {steps: 7, log_every: 3}\nprimary: {network: {width: 12}}\n", encoding="utf-8")
    config = load_config(path, ["train.steps=9", "auxiliary.network.attention=joint"])
    assert (config.train.steps, config.train.log_every, config.primary.network.width) == (9, 3, 12)
    assert config.primary.network.arch == "slow_resnet"


def test_later_files_change_the_keys_that_they_have(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("train: {steps: 7, log_every: 3}\nauxiliary: {network: {width: 192, heads: 3}}\n", encoding="utf-8")
    two.write_text("train: {steps: 8}\nauxiliary: {network: {depth: 6}}\nscale: {workers: 4}\n", encoding="utf-8")
    config = load_config([one, two], ["train.warmup_steps=1"])
    assert (config.train.steps, config.train.log_every, config.train.warmup_steps, config.scale.workers) == (8, 3, 1, 4)
    assert (config.auxiliary.network.width, config.auxiliary.network.depth) == (192, 6)
    two.write_text("auxiliary: {network: {arch: slow_resnet, depth: 18}}\n", encoding="utf-8")
    assert load_config([one, two]).auxiliary.network == load_config(two).auxiliary.network  # another arch: nothing of the first
    two.write_text("train: {setps: 8}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"one\.yaml, .*two\.yaml(?s:.*)did you mean train\.steps"):
        load_config([one, two])
    with pytest.raises(UserError, match="config file not found"):
        load_config([one, tmp_path / "three.yaml"])


def test_one_key_of_a_section_leaves_the_others_at_their_defaults_there() -> None:
    """Of every section within another: with one of its keys given, all of its keys are what they are without."""

    def sections(section: Section, prefix: str = "") -> Iterator[tuple[str, Section]]:
        for name in type(section).model_fields:
            if isinstance(child := getattr(section, name), Section):
                yield f"{prefix}{name}", child
                yield from sections(child, f"{prefix}{name}.")

    found = dict(sections(Config()))
    assert {"auxiliary.optimizer", "auxiliary.clip", "auxiliary.network", "primary.network", "method.labels"} <= set(found)
    for path, section in found.items():
        for key, value in section.model_dump(mode="json").items():
            if isinstance(value, dict):
                continue
            tree: dict[str, object] = {key: value}
            for part in reversed(path.split(".")):
                tree = {part: tree}
            config: object = parse_config(tree)
            for part in path.split("."):
                config = getattr(config, part)
            assert isinstance(config, Section)
            assert config == section, (path, key)


def test_the_auxiliary_keeps_its_rate_and_clipping() -> None:
    for words in (["auxiliary.optimizer.weight_decay=0.05"], ["auxiliary={optimizer: {weight_decay: 0.05}}"]):
        optimizer = load_config(None, words).auxiliary.optimizer
        assert (optimizer.lr, optimizer.clip_gradient_norm, optimizer.weight_decay) == (0.01, 1.0, 0.05)
    assert load_config(None, ["auxiliary.optimizer.clip_gradient_norm=null"]).auxiliary.optimizer.clip_gradient_norm is None
    assert load_config(None, ["primary.optimizer.weight_decay=0.05"]).primary.optimizer.lr == 0.1


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("a: [", encoding="utf-8")
    assert "did you mean" in mistakes(path=tmp_path / "dmo.yaml")
    assert "demo.yaml cannot be read" in mistakes(path=tmp_path / "demo.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    assert "must be a mapping" in mistakes(path=tmp_path / "list.yaml")


def test_a_word_that_makes_a_value_a_section_is_told() -> None:
    assert "'steps' is a value, not a section" in mistakes("train.steps=1", "train.steps.foo=2")


def test_fingerprint_follows_what_determines_the_result() -> None:
    base = load_config()
    same = load_config(
        overrides=["scale.workers=4", "run.name=other", "evaluation.clips=2", "train.log_every=3", "data.root=/x"]
    )
    assert base.compute_fingerprint() == same.compute_fingerprint()
    for word in ("run.seed=1", "train.steps=3", "method.contrast.weight=1", "data.labeled_per_step=4", "primary.clip.fps=9"):
        assert load_config(overrides=[word]).compute_fingerprint() != base.compute_fingerprint(), word


def test_recorded_runs_keep_their_fingerprint() -> None:
    """A run that was recorded goes on only under its own: a new knob must not change it where it is as if it were not there."""
    config = load_config()
    assert config.compute_fingerprint() == "e86939e207fb080d"  # of the defaults, as of November 2026
    assert load_config(overrides=["method.name=fixmatch"]).compute_fingerprint() == "070d67609bd1344f"
    words = ["method.name=fixmatch", "method.file_label.weight=1", "method.file_label.file=x.parquet"]
    assert load_config(overrides=words).compute_fingerprint() == "e4cc0e12aa42c83d"  # before a file had thresholds
    words.append("method.file_label.thresholds=softmatch")
    assert load_config(overrides=words).compute_fingerprint() != "e4cc0e12aa42c83d"
    tree = config.model_dump(mode="json")
    del tree["primary"]["clip"]["sampling"], tree["auxiliary"]["clip"]["sampling"], tree["auxiliary"]["network"]["stem"]
    assert parse_config(tree) == config
    changes = ("primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", "auxiliary.network.stem=convolutions")
    assert len({load_config(overrides=[word]).compute_fingerprint() for word in changes} | {config.compute_fingerprint()}) == 4


def test_round_trip_and_every_key_is_documented() -> None:
    config = load_config(overrides=["primary.network.width=12"])
    assert parse_config(config.model_dump(mode="json")) == config
    assert {"train.steps", "primary.network.depth", "auxiliary.network.tubelet", "primary.clip.fps"} <= set(list_keys())

    def undocumented(section: type, prefix: str = "") -> list[str]:
        from pydantic import BaseModel

        missing = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            if isinstance(field.default, BaseModel):
                missing += undocumented(type(field.default), f"{prefix}{name}.")
            elif not field.description and name not in ("network", "arch"):
                missing.append(prefix + name)
        return missing

    assert undocumented(Config) == []


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("source", ["word", "file"])
def test_a_password_is_refused_without_showing_it(tmp_path: Path, source: str) -> None:
    """config.yaml, the command's line in locks and studies, and the report would show it."""
    url = "http://ada:pl4nted@host:5000"
    (tmp_path / "a.yaml").write_text(f"tracking: {{mlflow: '{url}'}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"tracking\.mlflow=http://ada:\*\*\*@host:5000: the password.*MLFLOW_") as refused:
        load_config(tmp_path / "a.yaml") if source == "file" else load_config(None, [f"tracking.mlflow={url}"])
    assert "pl4nted" not in str(refused.value)
