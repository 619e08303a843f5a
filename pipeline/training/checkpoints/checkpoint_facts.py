"""Reads and checks the part of a checkpoint that is not tensors: state.json, and the checksums of the files beside it. Without
torch, for reports and lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder import run_store

FILES = ("model.safetensors", "optimizer.safetensors")
KEYS_BEFORE_SEAL = {"step", "next_row", "fingerprints", "scores", "scaler", "unwritten", "optimizers", "sha256", "forked_from"}
"""The keys of state.json before it had a checksum of itself; such a checkpoint still loads."""


class DamagedCheckpoint(Exception):
    """A checkpoint folder does not hold what was written; the message names the file."""


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Compares all checksums and returns the content of state.json. Raises DamagedCheckpoint."""
    facts = read_facts(checkpoint)
    for name, digest in facts["sha256"].items():
        if not (checkpoint / name).is_file() or compute_sha256(checkpoint / name) != digest:
            raise DamagedCheckpoint(f"{checkpoint / name} is missing or damaged")
    return facts


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Reads state.json and compares its own checksum. Raises DamagedCheckpoint."""
    path = checkpoint / run_store.COMMIT_FILE
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise DamagedCheckpoint(f"{path} is missing or damaged")
    seal = facts.pop("seal", None)
    if seal != _compute_seal(facts) and (seal is not None or not set(facts) <= KEYS_BEFORE_SEAL):
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is another")
    if not isinstance(facts.get("sha256"), dict) or set(facts["sha256"]) != set(FILES):
        raise DamagedCheckpoint(f"{path} names no checksums")
    if facts.get("step") != parse_step(checkpoint.name):
        raise DamagedCheckpoint(f"{path} is damaged: it says step {facts.get('step')}")
    return facts


def format_sealed(facts: Mapping[str, Any]) -> str:
    """Formats state.json with a checksum of its content that does not depend on the layout of the text."""
    return json.dumps({**facts, "seal": _compute_seal(facts)}, indent=1)


def _compute_seal(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def parse_step(name: str) -> int:
    """Reads the step from a checkpoint's name: checkpoint_000100 -> 100, and -1 for any other name."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1
