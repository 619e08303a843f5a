"""Search spaces: a question, and ranges of dotted configuration keys, as YAML.

question: Which learning rates and threshold?
space:
  primary.optimizer.lr: {low: 0.01, high: 0.3, log: true}
  method.confidence_threshold: {low: 0.5, high: 0.95, step: 0.05}
  method.labels.thresholds: [fixed, flexmatch, freematch]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.config import Config, convert_to_type_of, override
from pipeline.config.text import convert, read_yaml
from pipeline.errors import UserError
from pipeline.run_folder.contents import flatten

Distribution: TypeAlias = FloatDistribution | IntDistribution | CategoricalDistribution
RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Space:
    """A search space: the question, and a range or choices for each configuration key."""

    question: str
    distributions: Mapping[str, Distribution]
    """Optuna's distributions by dotted key. Choices that are not scalars are stored as JSON text."""
    tree: Mapping[str, Any]
    """The space as it is written in the file."""

    def build_overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Builds the ``key=value`` words for a point of the space."""
        return [f"{key}={json.dumps(self.restore_value(key, value))}" for key, value in params.items()]

    def restore_value(self, key: str, stored: Any) -> Any:
        """Returns the configuration value for a value as it is stored."""
        written = self.tree[key]
        if isinstance(written, list):
            return next(choice for choice in written if _encode_choice(choice) == stored)
        return stored


def _encode_choice(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def read_space(path: Path, base: Config) -> Space:
    """Reads a search space, and tries its ends and choices on the base configuration. Raises UserError with all mistakes at
    once."""
    tree = read_yaml(path, "space")
    fields = set(tree) if isinstance(tree, dict) else set()
    if fields != {"question", "space"} or not isinstance(tree["space"], dict) or not tree["space"]:
        raise UserError(f"space {path} needs exactly the fields question, and space with a range or choices for each key")
    known = flatten(base.model_dump(mode="json"))
    ranges = {str(key): _convert_types(key, written) for key, written in tree["space"].items()}
    distributions: dict[str, Distribution] = {}
    mistakes: list[str] = []
    for key, written in ranges.items():
        try:
            distributions[key] = _build_distribution(written, isinstance(known.get(key), float))
        except ValueError as error:
            mistakes.append(f"{key}: {error}")
            continue
        mistakes += _try_ends(base, key, written)
    if mistakes:
        raise UserError(f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in space {path}:", mistakes)
    return Space(str(tree["question"]), distributions, ranges)


def _convert_types(key: str, written: Any) -> Any:
    """Converts choices to the key's type, low, high and step to numbers and log to a truth value, as far as possible."""
    if isinstance(written, list):
        return [convert_to_type_of(key, choice) for choice in written]
    if not isinstance(written, Mapping):
        return written
    kinds: dict[str, Any] = {"log": bool, "low": float, "high": float, "step": float}
    typed = {}
    for name, part in written.items():
        try:
            typed[str(name)] = convert(part, kinds.get(name, str))
        except ValueError:
            typed[str(name)] = part
    return typed


def _build_distribution(written: Any, decimal: bool) -> Distribution:
    """Builds Optuna's distribution of a range or of choices. Raises ValueError that says what is wrong."""
    if isinstance(written, list):
        if len({json.dumps(choice) for choice in written}) < max(2, len(written)):
            raise ValueError("write at least two choices, each once")
        return CategoricalDistribution([_encode_choice(choice) for choice in written])
    if not isinstance(written, dict) or not {"low", "high"} <= set(written) <= RANGE:
        raise ValueError("write a list of choices, or {low: ..., high: ...} with log: true or step: ... if wanted")
    numbers = [written[name] for name in ("low", "high", "step") if name in written]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise ValueError("low, high and step must be numbers")
    if not written["low"] < written["high"]:
        raise ValueError("low must be below high")
    log, step = written.get("log", False), written.get("step")
    if not isinstance(log, bool):
        raise ValueError("log must be true or false")
    if all(isinstance(number, int) for number in numbers) and not decimal:
        return IntDistribution(written["low"], written["high"], log=log, step=step or 1)
    return FloatDistribution(written["low"], written["high"], log=log, step=step)


def _try_ends(base: Config, key: str, written: Any) -> list[str]:
    """Tries each end of the range, or each choice, alone, and returns what the configuration says against it."""
    ends = written if isinstance(written, list) else [written["low"], written["high"]]
    mistakes: list[str] = []
    for end in ends:
        try:
            override(base.model_dump(mode="json"), [f"{key}={json.dumps(end)}"], source="space")
        except UserError as error:
            mistakes += [line.strip().removeprefix("- ") for line in str(error).splitlines()[1:]]
    return list(dict.fromkeys(mistakes))


def draw(distribution: Distribution, chance: float) -> Any:
    """Returns the value at ``chance`` (0..1, uniform) of a range or among choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(chance * len(distribution.choices)), len(distribution.choices) - 1)]
    low, high = float(distribution.low), float(distribution.high)
    value = low * (high / low) ** chance if distribution.log else low + (high - low) * chance
    return clamp(distribution, value)


def clamp(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    """Returns the value of a range that is nearest to ``value``."""
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(f"{value:.6g}")
