"""Reads YAML files and ``key=value`` words into a checked configuration, and reports all mistakes at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.renamed import explain_renamed, translate_old_names
from pipeline.config.run import Config
from pipeline.config.section import Refused, drop_frame_rate, merge
from pipeline.config.students import ARCHS
from pipeline.config.text import convert, parse_word, read_yaml
from pipeline.errors import UserError, find_nearest_name, suggest
from pipeline.files.url_passwords import has_password, hide_passwords

NAMES_ELSEWHERE = {
    "learning_rate": "primary.optimizer.lr", "base_lr": "primary.optimizer.lr",
    "batch_size": "data.labeled_per_step", "epochs": "train.steps", "num_epochs": "train.steps", "max_epochs": "train.steps",
    "num_frames": "primary.clip.frames", "crop_size": "primary.clip.size", "pretrained": "primary.network.weights",
    "output_dir": "run.storage_path", "work_dir": "run.storage_path", "device": "scale.gpu", "gpus": "scale.workers",
}  # fmt: skip
"""What other trainers call a knob, and which one to look at here; docs/migration.md says how they differ."""


def load_config(files: str | Path | Sequence[str | Path] | None = None, overrides: Iterable[str] = ()) -> Config:
    """Loads the defaults, then the YAML file or files, then the ``dotted.key=value`` words, each of which overrides what is
    before.

    Of several files a later one changes only the keys that it has, section by section. The type of a key decides what its
    value means (see ``pipeline.config.text``). Raises UserError with all mistakes at once: unknown keys with the nearest name,
    values of a wrong type or range.
    """
    paths = [files] if isinstance(files, str | Path) else list(files or ())
    # files need not name the architecture, but one that names another replaces the network and does not change it in part
    tree = Config().model_dump(include={student: {"network": {"arch"}} for student in ("primary", "auxiliary")})
    for path in paths:
        read = _read_yaml(Path(path))
        tree = merge(tree, translate_old_names(read) if is_recorded(Path(path)) else read)
    config = override(tree, overrides, source=", ".join(str(path) for path in paths) or "command line")
    _refuse_passwords(config.model_dump())
    return config


def _refuse_passwords(tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError if a value holds a URL with a password: configurations are recorded, logged and shown on pages."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _refuse_passwords(value, f"{prefix}{key}.")
        elif isinstance(value, str) and has_password(value):
            raise UserError(
                f"{prefix}{key}={hide_passwords(value)}: the password would be written into config.yaml and reports; leave it "
                "out, and set a variable of the environment instead (MLflow: MLFLOW_TRACKING_USERNAME and _PASSWORD; S3: "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )


def is_recorded(path: Path) -> bool:
    """Returns whether a file is the config.yaml that a run recorded, possibly with earlier names of knobs, and not a user's
    file."""
    return path.name == "config.yaml" and (path.parent / "facts.json").is_file()


def override(base: Mapping[str, Any], overrides: Iterable[str], source: str) -> Config:
    """Changes a nested mapping by ``dotted.key=value`` words. Raises UserError with all mistakes at once."""
    tree: dict[str, Any] = copy.deepcopy(dict(base))
    mistakes: list[str] = []
    changes: list[tuple[str, list[str], Any]] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key:
            mistakes.append(f"'{word}': write overrides as key=value, for example train.steps=100")
            continue
        try:
            changes.append((word, key.split("."), parse_word(value)))
        except yaml.YAMLError as error:
            mistakes.append(f"'{word}': {str(error).splitlines()[0]}; a text that begins with a quote, [ or {{ needs quotes: "
                            f"{key}={json.dumps(value)}")  # fmt: skip
    for _, keys, value in changes:  # before any is made, so that their order does not matter
        if keys[1:] == ["clip", "sampling"] and isinstance(student := tree.get(keys[0]), dict):
            drop_frame_rate(student.get("clip"), value)
    for word, keys, value in changes:
        try:
            _set_value(tree, keys, value)
        except TypeError as error:
            mistakes.append(f"'{word}': {error}")
    return parse_config(tree, source=source, mistakes=mistakes)


def parse_config(tree: Mapping[str, Any], source: str = "config", mistakes: Iterable[str] = ()) -> Config:
    """Validates a nested mapping. Raises UserError with all mistakes and the nearest names."""
    mistakes_found = list(mistakes)
    config = Config()
    try:
        config = Config.model_validate(tree).with_matched_span()
    except ValidationError as error:
        mistakes_found += [line for detail in error.errors() for line in _explain_mistake(detail)]
    if mistakes_found:
        count = len(mistakes_found)
        raise UserError(f"{count} mistake{'s' * (count > 1)} in the configuration ({source}):", mistakes_found)
    return config


def list_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Lists every dotted key that exists, in the order of declaration."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        children = find_sections(field.annotation)
        for child in children:
            keys += [key for key in list_keys(child, f"{prefix}{name}.") if key not in keys]
        if not children:
            keys.append(f"{prefix}{name}")
    return keys


def convert_to_type_of(key: str, value: Any) -> Any:
    """Converts what is written for a dotted key to the key's type.

    Returns it unchanged if it is not such a value; validation will then say so.
    """
    wanted = _find_types(key)
    if isinstance(value, Mapping) and not any(get_origin(kind) is dict for kind in wanted):
        return {str(name): convert_to_type_of(f"{key}.{name}", part) for name, part in value.items()}
    for kind in wanted:
        try:
            return convert(value, kind)
        except ValueError:
            continue
    return value


def _find_types(key: str) -> list[Any]:
    """Finds the annotations of a dotted key: several if it belongs to several kinds of sections, none if it does not exist."""
    sections: list[type[BaseModel]] = [Config]
    annotations: list[Any] = []
    for name in key.split("."):
        annotations = [section.model_fields[name].annotation for section in sections if name in section.model_fields]
        sections = [child for annotation in annotations for child in find_sections(annotation)]
    return annotations


def find_sections(annotation: Any) -> list[type[Any]]:
    """Finds the kinds of sections that a field may be; none if it is a knob."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [section for part in get_args(annotation) for section in find_sections(part)]
    return []


def _set_value(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise TypeError(f"'{key}' is a value, not a section")
        tree = child
    tree[keys[-1]] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        nearest = find_nearest_name(path.name, [beside.name for beside in path.parent.glob("*.y*ml")])
        hint = f" (did you mean {path.parent / nearest}?)" if nearest else ""
        raise UserError(f"config file not found: {path}{hint}")
    if path.is_dir():
        raise UserError(f"config file {path} is a folder; name a YAML file in it")
    tree = read_yaml(path, "config file")
    if tree is not None and not isinstance(tree, dict):
        found = "list" if isinstance(tree, list) else "text"
        raise UserError(f"config file {path} must be a mapping of sections, found {found}")
    return tree or {}


def _explain_mistake(detail: Any) -> list[str]:
    # a union adds its tag (the arch) to the location; it is not a key
    parts = [str(part) for part in detail["loc"] if part not in ARCHS]
    key = ".".join(parts)
    if detail["type"] == "extra_forbidden":
        return explain_renamed(key, detail["input"]) or [_suggest_key(key)]
    given = detail["input"]
    if detail["type"] == "union_tag_invalid":
        given = detail["ctx"]["tag"]
        return [f"{key}.arch: there is no {given}, only {', '.join(ARCHS)}{suggest(given, ARCHS)}"]
    if detail["type"] == "string_pattern_mismatch":
        return [f"{key}: write letters, digits, dots, dashes and underscores, beginning with a letter or digit, got {given!r}"]
    message = given.reason if isinstance(given, Refused) else detail["msg"].removeprefix("Value error, ")
    return [f"{key}: {message}, got {given!r}" if key else message]


def explain_unknown(key: str) -> str:
    """Says that a dotted key does not exist, and names its current name or the nearest one."""
    return "; ".join(explain_renamed(key)) or _suggest_key(key)


def _suggest_key(key: str) -> str:
    keys, last = list_keys(), key.split(".")[-1]
    names = keys + sorted({".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)})
    nearest = (
        NAMES_ELSEWHERE.get(last.lower())
        or find_nearest_name(key, names, cutoff=0.5)
        or next((known for known in keys if known.split(".")[-1] == last), None)
        or next((known for known in keys if find_nearest_name(last, [known.split(".")[-1]], cutoff=0.75)), None)
    )
    return f"unknown key {key}" + (f"; did you mean {nearest}?" if nearest else "")
