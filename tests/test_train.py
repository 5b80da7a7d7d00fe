"""The training loop: settings, schedules, the average of weights, collapse, and losses that must stay as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from srlib import papers, runs
from srlib.data import Store, loader
from srlib.errors import InputError
from srlib.logs import Diverged, Watch
from srlib.models import create
from srlib.models.safmn import SAFMNConfig
from srlib.parallel import Mixed
from srlib.train import State, TrainConfig, draws, make_objective, train

CPU = Fabric(accelerator="cpu", devices=1)
SETTINGS = replace(papers.recipe("safmn").train, steps=10, batch=2, patch=8, ema_decay=0.9)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return create("safmn", 2, SAFMNConfig(scale=2, blocks=1, channels=8))


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    hr = [torch.rand(2, 3, 4, 4, generator=generator).repeat_interleave(4, -1) for _ in range(steps)]
    return [(image.repeat_interleave(4, -2)[..., ::2, ::2], image.repeat_interleave(4, -2)) for image in hr]


GOLDEN = {  # losses of four steps, and how far the average of weights has moved, as since the first recorded runs
    "safmn": (4, {}, (1.478673, 1.29828, 1.083889, 0.9222752), 0.524175),
    "seemore-t": (2, {}, (0.787202, 0.6882304, 0.62202, 0.6261516), 0.808177),
    "ssiu": (3, {}, (0.1278485, 0.1307465, 0.1115911, 0.1181625), 1.43435),
    "moeisr-lte-s-edsr": (None, {"queries": 64}, (410.2685, 465.13, 331.5271, 413.7698), 1.61686),
}


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two images of whole numbers alone, the same on every machine."""
    folder = tmp_path_factory.mktemp("golden") / "stripes"
    folder.mkdir()
    for number in range(2):
        y, x, channel = np.mgrid[:96, :112, :3]
        pixels = (3 * x + 5 * y + 40 * channel + x * y // (7 + number)) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return Store.open(str(folder), cache=folder.parent / "cache")


@pytest.mark.parametrize("model", GOLDEN)
def test_training_gives_the_weights_that_it_always_gave(stripes, model):
    scale, changes, losses, moved = GOLDEN[model]
    config = runs.configure(model, scale, stripes, changes=changes, steps=4, batch=2, patch=16)
    state = State(runs.initial(config, Path("nowhere")), config.train)
    start = [parameter.detach().clone() for parameter in state.model.parameters()]
    steps = loader(runs.make_batches(config, stripes), 0, 4)
    found = [loss.item() for loss in train(state, steps, make_objective(config.train), config.train, CPU)]
    pairs = zip(state.network.parameters(), start, strict=True)
    distance = math.sqrt(sum((end - begin).double().square().sum().item() for end, begin in pairs))
    advice = "trained weights have changed: if that is meant, raise runs.TRAINING_VERSION and store the new numbers"
    assert found == pytest.approx(losses, rel=1e-3), advice
    assert distance == pytest.approx(moved, rel=1e-2), advice


WRONG = {
    "steps": (0, 2.5),
    "lr": (0.0, math.nan, "a"),
    "fft_weight": (math.inf,),
    "ema_decay": (1.0,),
    "betas": ((0.9, 2.0), (0.9,)),
    "milestones": ((10.5,),),
    "scales": (4, (4.0, 1.0), (0.5, 4.0)),
    "expert_weights": ((1.0, -1.0),),
    "seed": (2**63,),
    "optimizer": ("sgd",),
    "queries": (9,),  # as SAFMN's loss has a spectrum
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_train_are_refused_in_one_line(name):
    for value in WRONG[name]:
        with pytest.raises(InputError, match=name) as error:
            replace(SETTINGS, **{name: value})
        assert "\n" not in str(error.value)


def test_what_a_network_draws_depends_on_seed_and_step_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for seed, step in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        with draws(seed, step, CPU):
            drawn.append(torch.rand(4))
        torch.manual_seed(5)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers stay as they are"


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_follows_the_weights_and_has_the_networks_statistics(decay):
    torch.manual_seed(0)
    network = create("safmn", 2, SAFMNConfig(scale=2, blocks=1, channels=8, norm="batch"))
    config = replace(SETTINGS, ema_decay=decay)
    state, expected = State(network, config), None
    for _ in train(state, batches(4), make_objective(config), config, CPU):
        weight = state.model.state_dict()["to_feat.weight"]
        expected = weight.clone() if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(state.network.state_dict()["to_feat.weight"], expected)
    for one, other in zip(state.model.buffers(), state.network.buffers(), strict=True):
        assert torch.equal(one, other)


def rates(config: TrainConfig) -> list[float]:
    state, found = State(tiny(), config), []
    for _ in range(config.steps + 1):
        found.append(state.schedule.get_last_lr()[0])
        state.optimizer.step()
        state.schedule.step()
    return found


def test_learning_rates_follow_the_schedules():
    cosine = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert rates(SETTINGS) == pytest.approx(cosine)
    multistep = replace(SETTINGS, schedule="multistep", milestones=(4, 7), optimizer="adamw", weight_decay=0.01)
    optimizer = State(tiny(), multistep).optimizer
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["weight_decay"] == 0.01
    assert rates(multistep) == pytest.approx([1e-3] * 4 + [5e-4] * 3 + [2.5e-4] * 4)


def test_mixed_precision_computes_in_bfloat16_and_leaves_inputs_and_weights_in_float32():
    """Fabric's own rounds inputs: bfloat16 has no 8-bit colours, and coordinates would be far off."""
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[Mixed("bf16-mixed", "cpu")])
    layer, seen = torch.nn.Conv2d(3, 3, 1), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.arange(48).reshape(1, 3, 4, 4) / 255
    exact = layer(pixels)
    rounded = fabric.setup_module(layer)(pixels)
    assert torch.equal(seen[-1], pixels) and layer.weight.dtype == torch.float32
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.02


def collapse(losses: list[float], row: int = 1) -> tuple[int, str] | None:
    """Where and why a watch ends a run of these losses, in rows of so many."""
    watch = Watch(len(losses))
    try:
        for first in range(0, len(losses), row):
            part = losses[first : first + row]
            watch.look(first + len(part), part)
    except Diverged as diverged:
        return diverged.step, diverged.reason
    return None


def test_a_loss_that_stays_high_is_a_collapse_from_its_first_step():
    calm = [0.1 + 0.05 * math.sin(step) for step in range(60)]
    high = "the loss stays above 2 times its median"
    assert collapse(calm + [0.5] * 10 + calm) == (61, high)
    assert collapse(calm + [0.5] * 200, row=4) == (61, high)
    assert collapse(calm + [0.5] * 5) == (61, high), "half as many rows, at the end of a run"
    assert collapse(calm + ([0.5] * 9 + [0.1]) * 9 + calm) is None, "spikes that the training recovers from"
    assert collapse([0.1] * 4 + [1.0] * 40) is None, "a median of too few rows says nothing"


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_collapse_at_its_step(wrong):
    assert collapse([0.1] * 6 + [wrong, 0.1], row=4) == (7, "the loss is not finite")
