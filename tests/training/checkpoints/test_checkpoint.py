from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint import TrainState
from pipeline.training.checkpoints.checkpoint_facts import DamagedCheckpoint, read_facts

PRINTS = {"config": "c", "manifest": "m", "labels": "l"}


def state(seed: int = 0, steps: int = 3) -> TrainState:
    torch.manual_seed(seed)
    method: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizers = {
        "primary": torch.optim.SGD(method[0].parameters(), lr=0.1, momentum=0.9),
        "auxiliary": torch.optim.AdamW(method[1].parameters(), lr=0.1),
    }
    for _ in range(steps):
        method(torch.randn(5, 4)).square().sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()
    return TrainState(method, nn.ModuleDict(), optimizers, PRINTS, step=steps, next_row=steps * 8)


def tensors(one: TrainState) -> list[torch.Tensor]:
    values = list(one.method.state_dict().values())
    for optimizer in one.optimizers.values():
        values += [entry[name] for entry in optimizer.state_dict()["state"].values() for name in sorted(entry)]
    return values


def test_what_was_saved_is_restored_bit_for_bit(tmp_path: Path) -> None:
    one, other = state(), state(seed=1, steps=0)
    path = checkpoint.save(one, tmp_path)
    assert path.name == "checkpoint_000003"
    checkpoint.load(other, path)
    assert (other.step, other.next_row) == (3, 24)
    assert len(tensors(one)) == len(tensors(other)) > 8
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_momenta_come_back_in_the_memory_format_of_their_parameters(tmp_path: Path, algorithm: str) -> None:
    """An optimizer takes tensors that lie in two ways one by one; what it computes is the same."""

    def new(seed: int) -> TrainState:
        torch.manual_seed(seed)
        method: Any = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)
        make: Any = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adamw": torch.optim.AdamW}[algorithm]
        return TrainState(method, nn.ModuleDict(), {"primary": make(method.parameters(), lr=0.1)}, PRINTS)

    def go_on(one: TrainState, seed: int) -> None:
        torch.manual_seed(seed)
        one.optimizers["primary"].zero_grad()
        one.method(torch.randn(2, 4, 5, 5, 5)).square().mean().backward()
        one.optimizers["primary"].step()
        one.step += 1

    def momenta(one: TrainState) -> list[torch.Tensor]:
        of_weight = one.optimizers["primary"].state[one.method.weight]
        return [value for value in of_weight.values() if value.ndim == 5]

    one, other = new(0), new(1)
    for seed in range(3):
        go_on(one, seed)
    checkpoint.load(other, checkpoint.save(one, tmp_path))
    weight: Any = other.method.weight
    assert weight.stride() == momenta(one)[0].stride() != weight.contiguous().stride()
    assert [value.stride() for value in momenta(other)] == [weight.stride()] * len(momenta(one))
    for state_ in (one, other):
        go_on(state_, 3)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path: Path, name: str, damage: str) -> None:
    older = state(steps=2)
    checkpoint.save(older, tmp_path)
    file = checkpoint.save(state(steps=4), tmp_path) / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2 if name != "state.json" else 0] ^= 0xFF
        file.write_bytes(content)
    newest, problems = checkpoint.find_newest(tmp_path)
    assert newest == tmp_path / "checkpoint_000002"
    assert len(problems) == 1
    assert "checkpoint_000004" in problems[0]
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(state(), tmp_path / "checkpoint_000004")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"step": 4', '"step": 9'),
        lambda text: text.replace('"next_row": 32', '"next_row": 33'),
        lambda text: text.replace('"seal"', '"sea1"'),
        lambda text: "[1, 2]",
        lambda text: "3",
    ],
    ids=["step", "row", "name of the seal", "a list", "a number"],
)
def test_a_changed_state_json_is_damage_too(tmp_path: Path, damage: Callable[[str], str]) -> None:
    checkpoint.save(state(steps=2), tmp_path)
    file = checkpoint.save(state(steps=4), tmp_path) / "state.json"
    changed = damage(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    newest, problems = checkpoint.find_newest(tmp_path)
    assert newest == tmp_path / "checkpoint_000002"
    assert len(problems) == 1 and "checkpoint_000004/state.json" in problems[0]


def test_a_checkpoint_from_before_state_json_had_a_checksum_loads(tmp_path: Path) -> None:
    path = checkpoint.save(state(steps=4), tmp_path)
    facts = json.loads((path / "state.json").read_text())
    del facts["seal"]
    (path / "state.json").write_text(json.dumps(facts))
    assert checkpoint.find_newest(tmp_path) == (path, [])
    (path / "state.json").write_text(json.dumps({**facts, "step": 9}))  # what can be told without one
    newest, problems = checkpoint.find_newest(tmp_path)
    assert newest is None and "it says step 9" in problems[0]


def test_a_fork_is_sealed_anew(tmp_path: Path) -> None:
    path = checkpoint.fork(checkpoint.save(state(), tmp_path / "one"), tmp_path / "other", {**PRINTS, "config": "d"})
    assert checkpoint.find_newest(tmp_path / "other") == (path, [])
    assert read_facts(path)["forked_from"]["step"] == 3


def test_an_interrupted_write_is_no_checkpoint_and_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(state(steps=2), tmp_path)

    def die(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "compute_sha256", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(state(steps=4), tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".checkpoint_*"))) == 1
    assert checkpoint.find_newest(tmp_path) == (tmp_path / "checkpoint_000002", [])
    checkpoint.delete_old_checkpoints(tmp_path, step=2, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000002"]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for steps in (1, 2, 3, 4):
        checkpoint.save(state(steps=steps), tmp_path)
        checkpoint.delete_old_checkpoints(tmp_path, step=steps, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000003", "checkpoint_000004"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(state(), tmp_path)
    other = state()
    other.fingerprints = {**PRINTS, "labels": "x"}
    with pytest.raises(ValueError, match="another configuration"):
        checkpoint.load(other, path)


def test_saving_over_a_damaged_one_replaces_it(tmp_path: Path) -> None:
    path = checkpoint.save(state(), tmp_path)
    (path / "model.safetensors").write_bytes(b"")
    checkpoint.save(state(), tmp_path)
    assert checkpoint.find_newest(tmp_path) == (path, [])


def test_state_json_says_where_the_plan_goes_on(tmp_path: Path) -> None:
    facts = json.loads((checkpoint.save(state(), tmp_path) / "state.json").read_text())
    assert (facts["step"], facts["next_row"], facts["fingerprints"]) == (3, 24, PRINTS)
