"""The training loop on a tiny network: it learns, resumes to the same weights, and follows its schedules."""

import math
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from srlib.errors import InputError
from srlib.models.safmn import SAFMN, SAFMNConfig
from srlib.train import TrainConfig, make_optimizer, make_schedule, train

TINY = SAFMNConfig(scale=2, blocks=1, channels=8)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    hr = torch.rand(2, 3, 4, 4, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    return hr[..., ::2, ::2], hr


def run(folder: Path, config: TrainConfig, stop_at: int = 0, compile: bool = False) -> tuple[nn.Module, list[float]]:
    losses: list[float] = []

    def on_step(state, loss):
        losses.append(loss.item())
        if stop_at and state.step == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    network = train(
        SAFMN(TINY), batch, config, Fabric(accelerator="cpu", devices=1, precision=config.precision),
        state_path=folder / "state.pt", on_start=lambda state: None, on_step=on_step, on_save=lambda state: None,
        save_every=5, compile=compile,
    )  # fmt: skip
    return network, losses


def test_training_lowers_the_loss(tmp_path):
    _, losses = run(tmp_path, TrainConfig(steps=60, lr=3e-3, ema_decay=0.9))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    config = TrainConfig(steps=20, ema_decay=0.9)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, losses = run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, stop_at=13)
    parts, rest = run(tmp_path / "parts", config)
    assert rest == losses[10:], "the run goes on after step 10, the last that was saved"
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key


def test_the_average_lags_behind_the_weights(tmp_path):
    for name in ("average", "none"):
        (tmp_path / name).mkdir()
    averaged, _ = run(tmp_path / "average", TrainConfig(steps=10, ema_decay=0.99))
    last, _ = run(tmp_path / "none", TrainConfig(steps=10, ema_decay=0.0))
    saved = torch.load(tmp_path / "average" / "state.pt", weights_only=True)["model"]
    assert torch.equal(saved["to_feat.weight"], last.state_dict()["to_feat.weight"])
    assert not torch.allclose(averaged.state_dict()["to_feat.weight"], last.state_dict()["to_feat.weight"])


def test_cosine_runs_from_lr_to_lr_final():
    config = TrainConfig(steps=50, lr=1e-3, lr_final=1e-5)
    optimizer = make_optimizer(SAFMN(TINY), config)
    schedule, rates = make_schedule(optimizer, config), []
    for _ in range(50):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 50)) / 2 for step in range(50)]
    assert rates == pytest.approx(expected)
    assert schedule.get_last_lr()[0] == pytest.approx(1e-5)


def test_multistep_halves_at_each_milestone():
    config = TrainConfig(steps=10, lr=1e-3, schedule="multistep", milestones=(4, 7))
    optimizer = make_optimizer(SAFMN(TINY), config)
    schedule, rates = make_schedule(optimizer, config), []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 3 + [2.5e-4] * 3)


def test_bf16_trains_in_float32_weights(tmp_path):
    network, losses = run(tmp_path, TrainConfig(steps=10, precision="bf16-mixed"))
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"batch": -1},
        {"lr": 0.0},
        {"lr": math.nan},
        {"fft_weight": math.inf},
        {"ema_decay": 1.0},
        {"betas": (0.9, 2.0)},
        {"milestones": (-1,)},
        {"seed": -1},
        {"seed": 2**63},
        {"optimizer": "sgd"},
        {"precision": "fp8"},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(InputError) as error:
        TrainConfig(**wrong)
    assert "\n" not in str(error.value) and str(next(iter(wrong))).split("_")[0] in str(error.value)
