"""Checkpoints and weights on disk: nothing half-written, damage costs steps alone, files of others load or say why."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from srlib.checkpoints import clear, load, load_released, restore, save, save_network, steps
from srlib.errors import InputError, write
from srlib.models import create
from srlib.models.safmn import CONFIGS, SAFMNConfig

TINY = SAFMNConfig(scale=2, blocks=1, channels=8)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*model.safetensors \(No space left on device\): make room"):
        write(path, b"new")
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_last_three_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, {"step": step})
    assert steps(tmp_path) == [3, 4, 5]
    assert restore(tmp_path) == {"step": 5}
    assert restore(tmp_path, before=5) == {"step": 3}, "the weights after step 4 gave the loss of step 5"
    (tmp_path / "state-10.pt.123.tmp").touch()
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


class Code:
    """What a file must never run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return self.place.touch, ()


def flip(path: Path) -> None:
    """Change one bit of one weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "a flipped bit": flip,
    "code": lambda path: torch.save({"step": Code(path.parent / "ran")}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, damage):
    for step in (2, 3):
        save(tmp_path, {"step": step, "weight": torch.rand(2000)})
    DAMAGE[damage](tmp_path / "state-3.pt")
    found = restore(tmp_path)
    assert found is not None and found["step"] == 2
    told = capsys.readouterr().err
    assert "state-3.pt is damaged" in told and told.count("\n") == 1
    DAMAGE[damage](tmp_path / "state-2.pt")
    save(tmp_path, {"step": 4})
    DAMAGE[damage](tmp_path / "state-4.pt")
    assert restore(tmp_path) is None, "training begins anew"
    save(tmp_path, {"step": 1})
    assert restore(tmp_path) == {"step": 1}, "and its checkpoints stay, though the damaged ones are of later steps"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return create("safmn", 2, TINY)


@pytest.fixture
def tiny_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SAFMN's released configuration be a tiny one."""
    monkeypatch.setitem(CONFIGS, "safmn", TINY)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(key == name and torch.equal(value, expected) for (key, value), (name, expected) in pairs)


def test_our_own_weights_name_their_network(network, tmp_path):
    path = tmp_path / "weights"
    save_network(network, "safmn", path)
    loaded = load(path)
    assert same(loaded, network) and loaded.config == TINY and not loaded.training
    assert same(load(path, "safmn", 2), network)
    with pytest.raises(InputError, match="holds safmn at scale 2, not safmn at scale 4"):
        load(path, scale=4)
    with pytest.raises(InputError, match="holds safmn at scale 2, not ssiu"):
        load(path, "ssiu")


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {f"{prefix}{key}": value for key, value in weights.items()}


def zero(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in weights.items()}


RELEASES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "plain": (lambda weights: weights, ""),
    "BasicSR": (lambda weights: {"params": zero(weights), "params_ema": weights}, "params_ema"),
    "average and model": (lambda weights: {"model": zero(weights), "ema": weights}, "ema"),
    "LIIF": (lambda weights: {"model": {"name": "safmn", "sd": weights}, "epoch": 1000}, "model, sd"),
    "DDP": (lambda weights: {"state_dict": prefixed("module.")(weights)}, "state_dict, module.*"),
    "Lightning, compiled": (lambda weights: prefixed("model._orig_mod.")(weights), "model._orig_mod.*"),
    "mmagic": (
        lambda weights: {"state_dict": prefixed("generator.")(weights) | {"step_counter": torch.zeros(1)}},
        "state_dict, generator.* and not the other 1: step_counter",
    ),
}


@pytest.mark.parametrize("kind", RELEASES)
def test_released_files_load_and_what_was_taken_is_said(network, tiny_release, tmp_path, capsys, kind):
    wrap, taken = RELEASES[kind]
    torch.save(wrap(network.state_dict()), tmp_path / "released.PTH")
    assert same(load(tmp_path / "released.PTH", "safmn", 2), network)
    assert capsys.readouterr().err == (f"srlib: released.PTH: took {taken}\n" if taken else "")


def test_a_refusal_shows_what_the_file_has_and_what_was_expected(network, tiny_release, tmp_path):
    weights = network.state_dict()
    first = next(iter(weights))
    for wrong, reason in [
        (
            {"conv1.weight": torch.zeros(1)},
            f'does not fit SAFMN .*Missing.* "{first}", .*; Unexpected .* "conv1.weight"',
        ),
        (create("safmn", 4, TINY).state_dict(), r"does not fit SAFMN .*size mismatch for to_img.0.\w+: .*\[48.*\[12"),
        (weights | {"more": torch.zeros(1)}, 'does not fit SAFMN .*Unexpected .* "more"'),
        ({}, f'does not fit SAFMN .*Missing.* "{first}"'),
        (weights | {first: torch.full_like(weights[first], torch.nan)}, "has values that are not finite"),
    ]:
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=f"^wrong.pth {reason}") as error:
            load(tmp_path / "wrong.pth", "safmn", 2)
        assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_files_that_are_no_weights_are_refused_in_one_line(network, tiny_release, tmp_path):
    save_network(network, "safmn", tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "code").write_bytes(pickle.dumps({"params": Code(tmp_path / "ran")}, protocol=2))
    torch.save([1, 2], tmp_path / "list")
    save_file(network.state_dict(), tmp_path / "foreign")
    save_file(network.state_dict(), tmp_path / "config", {"model": "safmn", "config": json.dumps({"depth": 3})})
    for name, reason in [
        ("cut", "damaged, holds code"),
        ("text", "damaged, holds code"),
        ("code", "damaged, holds code"),
        ("missing", "cannot read .*missing .No such file"),
        ("foreign", "does not say which network"),
        ("config", "another version of srlib"),
    ]:
        with pytest.raises(InputError, match=reason):
            load(tmp_path / name)
    assert same(load(tmp_path / "foreign", "safmn", 2), network), "told by its content, not by its suffix"
    with pytest.raises(InputError, match="list does not fit SAFMN .* Missing"):
        load(tmp_path / "list", "safmn", 2)
    assert not (tmp_path / "ran").exists()


def test_what_a_release_stores_and_never_uses_is_passed_over_where_its_module_says_so():
    class Encoder(nn.Conv2d):
        UNUSED = ("shift",)

    network = nn.Sequential(Encoder(3, 3, 1))
    load_released(network, network.state_dict() | {"0.shift": torch.zeros(3)})
    with pytest.raises(InputError, match='Unexpected .* "shift"'):
        load_released(network, network.state_dict() | {"shift": torch.zeros(3)})
