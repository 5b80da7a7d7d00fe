"""The training loop on a tiny network: it learns, resumes to the same weights, and follows its schedules."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srlib.checkpoints import States, decode
from srlib.errors import InputError
from srlib.losses import l1_balance
from srlib.models import create
from srlib.models.encoders import EDSR, ENCODERS
from srlib.models.moeisr import MoEISRConfig
from srlib.models.safmn import SAFMN, SAFMNConfig
from srlib.processes import Group
from srlib.train import Diverged, State, TrainConfig, Watch, make_objective, make_optimizer, make_schedule, train

TINY = SAFMNConfig(scale=2, blocks=1, channels=8)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    hr = torch.rand(2, 3, 4, 4, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    return hr[..., ::2, ::2], hr


def queries(step: int) -> tuple[torch.Tensor, ...]:
    """Grey patches of one value each, asked at random places."""
    generator = torch.Generator().manual_seed(step)
    value = torch.rand(2, 1, 1, 1, generator=generator)
    coord = 2 * torch.rand(2, 30, 2, generator=generator) - 1
    return value.expand(-1, 3, 6, 6), coord, torch.full((2, 2), 0.2), value[:, 0].expand(-1, 30, 3)


def run(folder: Path, config: TrainConfig, stop_at: int = 0, compile: bool = False) -> tuple[nn.Module, list[float]]:
    losses: list[float] = []

    def on_step(state, loss):
        losses.append(loss.item())
        if stop_at and state.step == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    experts = MoEISRConfig(depths=(2, 3), hidden=16)
    network = create("moeisr-liif-b-edsr", config=experts) if config.queries else SAFMN(TINY)
    network = train(
        network, queries if config.queries else batch, make_objective(config), config,
        Fabric(accelerator="cpu", devices=1, precision=config.precision),
        on_start=States(folder).restore, on_step=on_step, on_save=lambda state: States(folder).save(state, {}),
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


def test_a_network_for_every_scale_learns_and_resumes_with_the_same_noise(tmp_path, monkeypatch):
    """Gumbel noise is drawn as a function of seed and step, and the caller's random numbers stay as they are."""
    monkeypatch.setitem(ENCODERS, "edsr", partial(EDSR, blocks=1))
    config = TrainConfig(
        steps=12, lr=1e-3, fft_weight=0.0, ema_decay=0.0, queries=30, l1_weight=3000.0, balance_weight=1.0
    )
    for name in ("whole", "parts", "again"):
        (tmp_path / name).mkdir()
    whole, losses = run(tmp_path / "whole", config)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, stop_at=7)
    torch.rand(5)
    parts, rest = run(tmp_path / "parts", config)
    assert rest == losses[5:]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key
    torch.manual_seed(0)
    create("moeisr-liif-b-edsr", config=whole.config)
    expected = torch.rand(3)
    run(tmp_path / "again", config)
    assert torch.equal(torch.rand(3), expected)


def test_the_objective_follows_the_settings():
    network = create("moeisr-liif-b-edsr", config=MoEISRConfig(depths=(2, 3), hidden=8)).eval()
    config = TrainConfig(fft_weight=0, queries=30, l1_weight=2.0, balance_weight=0.5, expert_weights=(3.0, 1.0))
    lr, coord, cell, target = queries(0)
    rgb, gates = network(lr, coord=coord, cell=cell)
    expected = l1_balance(rgb, target, gates, 2.0, 0.5, (3.0, 1.0))
    assert torch.equal(make_objective(config)(network, (lr, coord, cell, target)), expected)


def test_the_average_lags_behind_the_weights(tmp_path):
    for name in ("average", "none"):
        (tmp_path / name).mkdir()
    averaged, _ = run(tmp_path / "average", TrainConfig(steps=10, ema_decay=0.99))
    last, _ = run(tmp_path / "none", TrainConfig(steps=10, ema_decay=0.0))
    saved = decode((tmp_path / "average" / "state-10.pt").read_bytes())["model"]
    assert torch.equal(saved["to_feat.weight"], last.state_dict()["to_feat.weight"])
    assert not torch.allclose(averaged.state_dict()["to_feat.weight"], last.state_dict()["to_feat.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_that_of_torch(decay):
    """With its buffers, which batch normalisation has."""
    network = SAFMN(SAFMNConfig(scale=2, blocks=1, channels=8, norm="batch"))
    state = State(network, TrainConfig(steps=9, ema_decay=decay))
    usual = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(3):
        network(torch.rand(2, 3, 8, 8)).mean().backward()
        state.optimizer.step()
        state.follow()
        usual.update_parameters(network)
        state.step += 1
    for key, value in usual.module.state_dict().items():
        assert torch.equal(value, state.average.state_dict()[key]), key
    assert not any(parameter.requires_grad for parameter in state.average.parameters())


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


def test_mixed_precision_leaves_inputs_as_they_are():
    """Fabric's own rounds them to bfloat16, which has no 8-bit colours, and in which places are far off."""
    group = Group.start("cpu", "bf16-mixed")
    seen = []
    layer = torch.nn.Conv2d(3, 3, 1)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network = group.fabric.setup_module(layer)
    pixels = torch.arange(48).reshape(1, 3, 4, 4) / 255
    assert network(pixels).dtype == torch.float32  # for the loss
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], pixels)
    with group.fabric.autocast():
        assert layer(pixels).dtype == torch.bfloat16


def test_a_compiled_network_trains_as_the_plain_one_does(tmp_path):
    """And a state of the one resumes the other: names are those of the network."""
    config = TrainConfig(steps=8, ema_decay=0.9)
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
    plain, losses = run(tmp_path / "plain", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "compiled", config, stop_at=6, compile=True)
    compiled, rest = run(tmp_path / "compiled", config)
    assert rest == pytest.approx(losses[5:], rel=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value, atol=1e-4, rtol=0)


def test_bf16_resumes_to_the_same_weights(tmp_path):
    config = TrainConfig(steps=8, precision="bf16-mixed", ema_decay=0.5)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, stop_at=7)
    parts, _ = run(tmp_path / "parts", config)
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())


def watched(losses: list[float], rows: int = 1) -> tuple[int, str] | None:
    """Where and why a watch ends a run of these losses, in rows of so many."""
    watch = Watch()
    try:
        for first in range(0, len(losses), rows):
            watch.look(first + 1, losses[first : first + rows], first + rows >= len(losses))
    except Diverged as diverged:
        return diverged.step, diverged.reason
    return None


def test_a_loss_that_stays_high_is_a_collapse_from_its_first_step():
    calm = [0.1 + 0.05 * math.sin(step) for step in range(60)]
    high = "the loss stays above 2 times its median"
    assert watched(calm + [0.5] * 10 + calm) == (61, high)
    assert watched(calm + [0.5] * 200, rows=4) == (61, high)
    assert watched(calm + [0.5] * 5) == (61, high), "half as many rows, at the end of a run"
    assert watched(calm + [0.5] * 9 + calm) is None, "a spike that the training recovers from"
    assert watched(calm + ([0.5] * 9 + [0.1]) * 9 + calm) is None
    assert watched([5.0] * 5 + [0.1] * 20 + [0.18] * 50) is None
    assert watched([0.1] * 4 + [1.0] * 40) is None, "a median of too few rows says nothing"


def test_a_loss_that_is_not_finite_is_a_collapse_at_its_step():
    for wrong in (math.nan, math.inf):
        assert watched([0.1] * 6 + [wrong, 0.1], rows=4) == (7, "the loss is not finite")


def test_a_resumed_watch_goes_on_as_the_first_one():
    rows = [0.1] * 20 + [0.5] * 4
    one, other = Watch(), Watch()
    for step, mean in enumerate(rows, 1):
        one.look(step, [mean])
        other.row(step, mean)
    assert (one.since, one.high, one.calm) == (other.since, other.high, other.calm) == (21, 4, one.calm)


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
        {"queries": -1},
        {"queries": 2.5},
        {"scales": (4.0, 1.0)},
        {"scales": (0.0, 4.0)},
        {"l1_weight": -1.0},
        {"balance_weight": math.nan},
        {"expert_weights": (1.0, -1.0)},
        {"fft_weight": 0.05, "queries": 9},
        {"degradation": "real-esrgan", "fft_weight": 0.0, "queries": 9},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(InputError) as error:
        TrainConfig(**wrong)
    assert "\n" not in str(error.value) and str(next(iter(wrong))).split("_")[0] in str(error.value)
