"""MoEISR, LIIF and LTE: the released outputs, the papers' formulas, and every value that the configuration takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models import create, moeisr
from srlib.models.encoders import EDSR, RDN, SwinIR
from srlib.models.moeisr import CONFIGS, MoEISR, MoEISRConfig
from srlib.papers.moeisr import contrast, routing

SMALL = {
    "edsr": partial(EDSR, blocks=1),
    "rdn": partial(RDN, blocks=1, layers=2, growth=8),
    "swinir": partial(SwinIR, depths=(2,), embed=12, heads=2),
}
TINY = MoEISRConfig(hidden=16)
LTE = replace(TINY, decoder="lte", depths=(2, 3, 4))
MAIN = {"liif": replace(TINY, depths=(5,)), "lte": replace(LTE, depths=(4,)), "moeisr-liif": TINY, "moeisr-lte": LTE}
VARIANTS = {
    "one-layer-mapper": replace(TINY, mapper_layers=1),
    "no-ensemble": replace(TINY, ensemble=False),
    "lte-no-ensemble": replace(LTE, ensemble=False),
    "plain": replace(TINY, depths=(4,), ensemble=False),
}
SIZES = {
    "x1": ((5, 7), (5, 7)),
    "x2.3": ((7, 10), (16, 23)),
    "x1.2-by-x6.1": ((5, 7), (6, 43)),
    "x30": ((1, 2), (30, 60)),
    "x0.7": ((7, 9), (5, 6)),
    "pixel": ((1, 1), (1, 1)),
}


def network(config: MoEISRConfig) -> MoEISR:
    """A network in evaluation mode with a small encoder, whose mapper sends some pixels to each of its experts."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moeisr, "ENCODERS", SMALL)
        model = config.build().eval()
    if len(config.depths) > 1:
        with torch.no_grad():
            last, z = model.mapper[-1], model.encoder(2 * images(4, 9, 9) - 1)
            last.bias -= model.mapper(z).mean((0, 2, 3))
            spread = model.mapper(z).std((0, 2, 3))
            last.weight /= spread[:, None, None, None]
            last.bias /= spread
    return model


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def grid(size: tuple[int, int]) -> Tensor:
    """LIIF's coordinates of all output pixels, (H W, 2)."""
    axes = [-1 + 1 / side + 2 / side * torch.arange(side).float() for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)


def queried(model: MoEISR, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The image that the network answers query by query, in [0, 1]."""
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(len(x), 2)
    rgb = model(x, coord=grid(size).expand(len(x), -1, -1), cell=cell)[0]
    return 0.5 * rgb.mT.unflatten(2, size) + 0.5


def dense(model: MoEISR, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Equation 4 as the papers write it: unfolded features, all of every expert's MLP at every query, and a mask.

    Coordinates are computed in single precision, as LIIF does, and features in that of ``x``.
    """
    config = model.config
    x = 2 * x - 1
    z = model.encoder(x)
    height, width = z.shape[-2:]
    side = torch.tensor([height, width])
    if config.decoder == "liif":
        maps = F.unfold(z, 3, padding=1)
    else:
        maps = torch.cat([model.coef(z), model.freq(z)], 1).flatten(2)
    coord, lr_coord = grid(size), grid((height, width))
    cell = torch.tensor([2 / size[0], 2 / size[1]], dtype=x.dtype) * side
    signs = [(-1, -1), (-1, 1), (1, -1), (1, 1)] if config.ensemble else [(0, 0)]
    answers, areas = [], []
    for sign in signs:
        at = torch.stack([coord[:, axis] + (sign[axis] / side[axis].item()) for axis in (0, 1)], -1)
        at = (at + (1e-6 if config.ensemble else 0)).clamp(-1 + 1e-6, 1 - 1e-6)
        numbers = torch.arange(height * width).reshape(1, 1, height, width).float()
        near = F.grid_sample(numbers, at.flip(-1)[None, None], mode="nearest", align_corners=False).flatten().long()
        offset = (coord - lr_coord[near]) * side
        areas.append((offset[:, 0] * offset[:, 1]).abs() + 1e-9)
        features = maps[:, :, near].mT  # (B, H W, channels)
        offset, cells = offset.to(x.dtype).expand(len(x), -1, -1), cell.expand(len(x), len(near), 2)
        if config.decoder == "liif":
            given = torch.cat([features, offset, cells], -1)
        else:
            amplitude, frequency = features.split(256, -1)
            angle = frequency[..., ::2] * offset[..., :1] + frequency[..., 1::2] * offset[..., 1:]
            angle = angle + model.phase(cells.clamp(min=0.5))
            given = amplitude * torch.cat([torch.cos(torch.pi * angle), torch.sin(torch.pi * angle)], -1)
        answer = [decoder(given) for decoder in model.decoders]
        if len(answer) > 1:
            mask = F.one_hot(model.mapper(z).argmax(1).flatten(1)[:, near], len(answer)).to(x.dtype)
            answer = [mask[..., j : j + 1] * one for j, one in enumerate(answer)]
        answers.append(sum(answer))
    weights = torch.stack(areas).flip(0) / torch.stack(areas).sum(0)
    image = (torch.stack(answers) * weights[:, None, :, None]).sum(0).mT.unflatten(2, size)
    if config.decoder == "lte":
        image = image + F.interpolate(x, size, mode="bilinear", align_corners=False)
    return 0.5 * image + 0.5


@pytest.mark.parametrize(("name", "margin"), [("liif-edsr", 1e-5), ("lte-edsr", 1e-4)])
def test_released_weights_give_the_released_output(golden: Path, name: str, margin: float) -> None:
    tensors = load_file(golden / f"{name.replace('-', '_')}.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    unused = {f"encoder.{key}" for key in EDSR.UNUSED}
    assert unused < weights.keys()
    model = create(name).eval()
    model.load_state_dict({key: value for key, value in weights.items() if key not in unused})
    x, output = tensors["input"], tensors["output"]
    with torch.inference_mode():
        for enlarge in (partial(model, size=output.shape[-2:]), partial(queried, model, size=output.shape[-2:])):
            torch.testing.assert_close(enlarge(x), output, atol=margin, rtol=0)


# --- the papers' formulas ---------------------------------------------------------------------------------------------

FORMULAS = [(name, size) for name in MAIN for size in SIZES] + [(name, "x2.3") for name in VARIANTS]


@pytest.mark.parametrize(("name", "size"), FORMULAS)
def test_the_output_is_that_of_the_dense_formula(name: str, size: str) -> None:
    """Grouped by expert, in chunks or all experts at every query, of two images or one, with gradients or without."""
    lr, hr = SIZES[size]
    model, x = network((MAIN | VARIANTS)[name]).double(), images(2, *lr).double()
    expected = dense(model, x, hr).detach()
    assert expected.shape == (2, 3, *hr) and expected.isfinite().all()
    close = partial(torch.testing.assert_close, expected=expected, rtol=0)
    close(model(x, size=hr).detach(), atol=1e-10 if model.config.decoder == "liif" else 1e-6)
    with torch.no_grad():
        close(torch.cat([model(one[None], size=hr) for one in x]), atol=1e-6)
        close(queried(model, x, hr), atol=1e-6)  # coordinates and cells of queries come in single precision


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_is_what_it_says_and_trains(name: str) -> None:
    config = CONFIGS[name]
    decoder, encoder = ("lte" if "lte" in name else "liif"), name.rpartition("-")[2]
    assert (config.decoder, config.encoder) == (decoder, encoder)
    assert config.hidden == (128 if "-s-" in name else 256)
    full = {"liif": (2, 3, 4, 5), "lte": (2, 3, 4)}[decoder]
    assert config.depths == (full if name.startswith("moeisr") else full[-1:])
    model = network(config).train()
    assert [sum(isinstance(m, nn.Linear) for m in d.modules()) for d in model.decoders] == list(config.depths)
    rgb, gates = model(images(2, 6, 9), coord=2 * torch.rand(2, 11, 2) - 1, cell=torch.full((2, 2), 0.1))
    assert rgb.shape == (2, 11, 3)
    (rgb.square().mean() + (0 if gates is None else gates.square().mean())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("config", MAIN.values(), ids=MAIN)
@pytest.mark.parametrize("size", [(57, 73), (90, 80)], ids=str)
def test_a_window_needs_no_more_of_the_lr_image_than_the_encoder_sees(
    config: MoEISRConfig, size: tuple[int, int]
) -> None:
    """The small encoder reaches 4 pixels, the mapper 5, unfolding 1 and the ensemble 1. (A window is decoded in one
    chunk, the whole image in several.)"""
    model, x = network(config).double(), images(1, 30, 40).double()
    with torch.inference_mode():
        whole = model(x, size=size)
        height, width = (size[0] // 30 * 3, size[1] // 40 * 3)
        rows, columns = slice(size[0] // 2, size[0] // 2 + height), slice(size[1] // 2, size[1] // 2 + width)
        window = model.render(x[..., 3:29, 7:34], (3, 7), (30, 40), size, rows, columns)
    torch.testing.assert_close(window, whole[..., rows, columns], atol=3e-6, rtol=0)


def queries_of_experts(model: MoEISR, x: Tensor, size: tuple[int, int]) -> list[int]:
    """How many queries each expert is given."""
    given = [0] * len(model.decoders)

    def count(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        given[[expert.layers[-1] for expert in model.decoders].index(layer)] += len(inputs[0])

    for expert in model.decoders:
        expert.layers[-1].register_forward_pre_hook(count)
    with torch.inference_mode():
        model(x, size=size)
    return given


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_experts_are_computed_for_their_own_pixels_alone(config: MoEISRConfig) -> None:
    model, x = network(replace(config, ensemble=False)), images(2, 8, 8)
    chosen = model.expert_map(x)
    assert chosen.shape == (2, 8, 8) and chosen.unique().tolist() == list(range(len(config.depths)))
    counts = chosen.flatten().bincount().tolist()
    assert queries_of_experts(model, x, (24, 24)) == [9 * count for count in counts]
    assert sum(queries_of_experts(network(config), x, (24, 24))) == 4 * 2 * 24 * 24


def test_the_expert_of_a_query_is_that_of_the_lr_pixel_it_asks() -> None:
    """Not of the output pixel: in the ensemble, neighbours of different experts answer side by side."""
    model = network(replace(TINY, depths=(2, 3)))
    with torch.no_grad():
        for expert, level in zip(model.experts, (-1.0, 1.0), strict=True):
            expert.layers[-1].weight.zero_()
            expert.layers[-1].bias.fill_(level)
    x = images(1, 6, 7)
    with torch.inference_mode():
        chosen = model.expert_map(x).float()[:, None]
        assert 0 < chosen.mean() < 1
        expected = F.interpolate(chosen, (24, 28), mode="bilinear", align_corners=False)  # what the four weights are
        inside = (..., slice(2, -2), slice(2, -2))
        torch.testing.assert_close(model(x, size=(24, 28))[inside], expected.expand(1, 3, -1, -1)[inside])


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_gates_are_gumbel_softmax_in_training_and_one_hot_otherwise(config: MoEISRConfig) -> None:
    model, x = network(replace(config, balance="gates")), images(2, 6, 7)
    asked = {"coord": torch.rand(2, 5, 2), "cell": torch.full((2, 2), 0.1)}
    with torch.no_grad():
        rgb, gates = model(x, **asked)
        experts = len(config.depths)
        assert torch.equal(gates, F.one_hot(model.expert_map(x), experts).permute(0, 3, 1, 2).float())
        assert torch.equal(rgb, model(x, **asked)[0])
        model.train()
        (rgb, gates), (other, others) = model(x, **asked), model(x, **asked)
        assert gates.shape == (2, experts, 6, 7) and (gates > 0).all() and not torch.equal(gates, others)
        torch.testing.assert_close(gates.sum(1), torch.ones(2, 6, 7))
        assert not torch.equal(rgb, other)
    backbone = network(replace(config, depths=(3,)))
    assert backbone(x, **asked)[1] is None and not backbone.expert_map(x).any()


def test_training_answers_are_the_experts_weighted_by_the_gates() -> None:
    """Equation 5, with the gates that were drawn."""
    model, x = network(replace(TINY, depths=(2, 3), ensemble=False, balance="gates")).train(), images(1, 6, 7)
    asked = {"coord": grid((6, 7))[None], "cell": torch.tensor([[2 / 6, 2 / 7]])}  # each LR pixel asked for its own
    with torch.no_grad():
        rgb, gates = model(x, **asked)
        answers = []
        for j in (0, 1):
            model.gates = lambda scores, j=j: F.one_hot(torch.full((1, 6, 7), j), 2).permute(0, 3, 1, 2).float()
            answers.append(model(x, **asked)[0])
    expected = sum(gates[:, j].flatten(1)[..., None] * answers[j] for j in (0, 1))
    torch.testing.assert_close(rgb, expected)


def test_what_is_balanced_are_the_probabilities_without_noise() -> None:
    """D of Equation 7, "the probability distribution for expert selection"; or, where asked for, g(D) of Equation 5."""
    x, asked = images(1, 6, 7), {"coord": torch.rand(1, 5, 2), "cell": torch.full((1, 2), 0.1)}
    model = network(TINY).train()
    with torch.no_grad():
        expected = model.mapper(model.encoder(2 * x - 1)).softmax(1)
        torch.testing.assert_close(model(x, **asked)[1], expected)
        noisy = network(replace(TINY, balance="gates")).train()(x, **asked)[1]
    assert (noisy - expected).abs().max() > 0.1


def test_contrast_is_that_of_the_deepest_expert_between_steep_and_flat_pixels() -> None:
    class Slopes:  # sends steep pixels to the deepest expert
        config, decoders = MoEISRConfig(), [None] * 4

        def expert_map(self, x: torch.Tensor) -> torch.Tensor:
            grey = F.pad(x[0].mean(0), (0, 1, 0, 1), mode="constant")
            slope = (grey.diff(dim=0)[:, :-1].square() + grey.diff(dim=1)[:-1].square()).sqrt()
            return 3 * (slope > slope.median()).long()[None]

    routed = routing(Slopes())  # type: ignore[arg-type]
    assert contrast(routed).to_dict() == {name: 1.0 for name in ("camera", "chelsea", "coffee", "rocket")}
    assert routed.query("part == 'all'").groupby("place").share.sum().round(6).eq(1).all()
    assert contrast(routed.assign(share=0.25)).eq(0).all()


def test_gates_are_those_of_equation_5() -> None:
    z = torch.randn(1, 64, 50, 50)
    for temperature in (0.5, 1.0, 3.0):
        model = network(replace(TINY, temperature=temperature)).train()
        torch.manual_seed(1)
        gates = model.gates(model.mapper(z))
        noise = -torch.empty_like(gates).exponential_(generator=torch.Generator().manual_seed(1)).log()
        torch.testing.assert_close(gates, ((model.mapper(z) + noise) / temperature).softmax(1))


def test_the_use_of_experts_has_a_gradient_in_the_mapper_and_the_choice_has_none() -> None:
    model, x = network(TINY), images(1, 6, 7)
    asked = {"coord": torch.rand(1, 5, 2), "cell": torch.full((1, 2), 0.1)}
    (model.train()(x, **asked)[1][:, 0].sum() - 42 / 4).abs().backward()
    assert all((p.grad != 0).any() for p in model.mapper.parameters())
    assert all(p.grad is None for p in model.experts.parameters())
    model.eval().zero_grad()
    model(x, **asked)[0].sum().backward()
    assert all(p.grad is None for p in model.mapper.parameters())


@pytest.mark.parametrize("change", [{"decoder": "siren"}, {"depths": (1,)}, {"depths": (3, 2)}], ids=str)
def test_configurations_that_can_not_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        MoEISRConfig(**change)


def test_what_can_not_be_asked_is_refused_in_one_line() -> None:
    model = network(TINY)
    for message, x, asked in (
        ("what to make", images(1, 4, 4), {}),
        ("what to make", images(1, 4, 4), {"coord": torch.zeros(1, 5, 2)}),
        ("RGB", torch.zeros(3, 8, 8), {"size": (9, 9)}),
        ("float32", torch.zeros(1, 3, 8, 8).half(), {"size": (9, 9)}),
        ("what to make", images(1, 4, 4), {"size": (0, 4)}),
    ):
        with pytest.raises(InputError, match=message) as error:
            model(x, **asked)
        assert "\n" not in str(error.value)
