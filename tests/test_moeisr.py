"""MoEISR, LIIF and LTE: the references' outputs, the papers' formulas, and every value that the configuration takes."""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srlib.errors import InputError
from srlib.models import create, moeisr
from srlib.models.encoders import EDSR, RDN, SwinIR
from srlib.models.moeisr import CONFIGS, MLP, MoEISR, MoEISRConfig, build, decoder_macs, executed_macs, mapper_macs
from srlib.runs import load_released

SMALL = {
    "edsr": partial(EDSR, blocks=1),
    "rdn": partial(RDN, blocks=1, layers=2, growth=8),
    "swinir": partial(SwinIR, depths=(2,), embed=12, heads=2),
}
TINY = MoEISRConfig(hidden=16)
LTE = replace(TINY, decoder="lte", depths=(2, 3, 4))
VARIANTS = {
    "liif": replace(TINY, depths=(5,)),
    "lte": replace(LTE, depths=(4,)),
    "moeisr-liif": TINY,
    "moeisr-lte": LTE,
    "two-layers": replace(TINY, depths=(2,)),
    "two-experts": replace(TINY, depths=(2, 6)),
    "narrow-lte": replace(LTE, hidden=8),
    "one-layer-mapper": replace(TINY, mapper_layers=1),
}
OFF = [{"unfold": False}, {"ensemble": False}, {"cell": False}]
VARIANTS |= {f"moeisr-liif-{next(iter(off))}-off": replace(TINY, **off) for off in OFF}
VARIANTS |= {f"liif-{next(iter(off))}-off": replace(TINY, depths=(3,), **off) for off in OFF}
VARIANTS |= {f"moeisr-lte-{next(iter(off))}-off": replace(LTE, **off) for off in OFF[1:]}
VARIANTS |= {"liif-plain": replace(TINY, depths=(4,), unfold=False, ensemble=False, cell=False)}
SIZES = {
    "x1": ((5, 7), (5, 7)),
    "x2": ((5, 7), (10, 14)),
    "x3": ((4, 5), (12, 15)),
    "x2.3": ((7, 10), (16, 23)),
    "x1.2-by-x6.1": ((5, 7), (6, 43)),
    "x8-by-x1": ((3, 6), (24, 6)),
    "x30": ((1, 2), (30, 60)),
    "x0.7": ((7, 9), (5, 6)),
    "pixel": ((1, 1), (1, 1)),
    "pixel-x4.5": ((1, 2), (5, 9)),
}


def network(config: MoEISRConfig) -> MoEISR:
    """A network in evaluation mode with a small encoder, whose mapper sends some pixels to each of its experts."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moeisr, "ENCODERS", SMALL)
        model = build(config).eval()
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


def centres(side: int) -> Tensor:
    """LIIF's coordinates of the pixels along an axis."""
    return -1 + 1 / side + 2 / side * torch.arange(side).float()


def grid(size: tuple[int, int]) -> Tensor:
    """The places of all output pixels, (H W, 2)."""
    return torch.stack(torch.meshgrid(*map(centres, size), indexing="ij"), -1).flatten(0, 1)


def queried(model: MoEISR, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The image that the network answers pixel by pixel, in [0, 1]."""
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(len(x), 2)
    rgb = model(x, coord=grid(size).expand(len(x), -1, -1), cell=cell).rgb
    return 0.5 * rgb.mT.unflatten(2, size) + 0.5


def dense(model: MoEISR, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Equation 4 as the papers write it: unfolded features, all of every expert's MLP at every query, and a mask.

    Places are computed in single precision, as LIIF does, and features in that of ``x``.
    """
    config = model.config
    x = 2 * x - 1
    z = model.encoder(x)
    height, width = z.shape[-2:]
    side = torch.tensor([height, width])
    if config.decoder == "liif":
        maps = F.unfold(z, 3, padding=1) if config.unfold else z.flatten(2)
    else:
        maps = torch.cat([model.coef(z), model.freq(z)], 1).flatten(2)
    place, lr_place = grid(size), grid((height, width))
    cell = torch.tensor([2 / size[0], 2 / size[1]], dtype=x.dtype) * side
    signs = [(-1, -1), (-1, 1), (1, -1), (1, 1)] if config.ensemble else [(0, 0)]
    answers, areas = [], []
    for sign in signs:
        at = torch.stack([place[:, axis] + (sign[axis] / side[axis].item()) for axis in (0, 1)], -1)
        at = (at + (1e-6 if config.ensemble else 0)).clamp(-1 + 1e-6, 1 - 1e-6)
        numbers = torch.arange(height * width).reshape(1, 1, height, width).float()
        near = F.grid_sample(numbers, at.flip(-1)[None, None], mode="nearest", align_corners=False).flatten().long()
        way = (place - lr_place[near]) * side
        areas.append((way[:, 0] * way[:, 1]).abs() + 1e-9)
        features = maps[:, :, near].mT  # (B, H W, channels)
        way, cells = way.to(x.dtype).expand(len(x), -1, -1), cell.expand(len(x), len(near), 2)
        if config.decoder == "liif":
            given = torch.cat([features, way, cells] if config.cell else [features, way], -1)
        else:
            amplitude, frequency = features.split(256, -1)
            angle = frequency[..., ::2] * way[..., :1] + frequency[..., 1::2] * way[..., 1:]
            if config.cell:
                angle = angle + model.phase(cells.clamp(min=0.5))
            given = amplitude * torch.cat([torch.cos(torch.pi * angle), torch.sin(torch.pi * angle)], -1)
        answer = [decoder(given) for decoder in model.decoders]
        if len(answer) > 1:
            mask = F.one_hot(model.mapper(z).argmax(1).flatten(1)[:, near], len(answer)).to(x.dtype)
            answer = [mask[..., j : j + 1] * one for j, one in enumerate(answer)]
        answers.append(sum(answer))
    shares = torch.stack(areas).flip(0) / torch.stack(areas).sum(0)
    image = (torch.stack(answers) * shares[:, None, :, None]).sum(0).mT.unflatten(2, size)
    if config.decoder == "lte":
        places = torch.stack(
            torch.meshgrid(*(-1 + (2 * torch.arange(s, dtype=x.dtype) + 1) / s for s in size), indexing="ij"), -1
        )
        places = places.flip(-1).expand(len(x), -1, -1, -1)
        image = image + F.grid_sample(x, places, padding_mode="border", align_corners=False)
    return 0.5 * image + 0.5


# --- references and formulas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "margin"), [("liif-edsr", 1e-5), ("lte-edsr", 1e-4)])
def test_released_weights_give_the_released_output(golden: Path, name: str, margin: float) -> None:
    tensors = load_file(golden / f"{name.replace('-', '_')}.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model, (x, output) = load_released(create(name), weights).eval(), (tensors["input"], tensors["output"])
    size = tuple(output.shape[-2:])
    with torch.inference_mode():
        for found in (model(x, size=size), queried(model, x, size), dense(model, x, size)):
            torch.testing.assert_close(found, output, atol=margin, rtol=0)


MAIN = ("liif", "lte", "moeisr-liif", "moeisr-lte")
FORMULAS = [(name, size) for name in VARIANTS for size in SIZES if name in MAIN or size in ("x3", "x2.3")]


@pytest.mark.parametrize(("name", "size"), FORMULAS)
def test_the_answers_are_those_of_the_dense_formula(name: str, size: str) -> None:
    """Exactly: in double precision, grouped by expert or all experts at once, of two images or one."""
    lr, hr = SIZES[size]
    model, x = network(VARIANTS[name]), images(2, *lr)
    with torch.no_grad():
        torch.testing.assert_close(model(x, size=hr), dense(model, x, hr), atol=1e-5, rtol=0)
        model, x = model.double(), x.double()
        expected = dense(model, x, hr)
        assert expected.shape == (2, 3, *hr) and expected.isfinite().all()
        torch.testing.assert_close(model(x, size=hr), expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(torch.cat([model(one[None], size=hr) for one in x]), expected, atol=1e-10, rtol=0)
        with torch.enable_grad():
            torch.testing.assert_close(model(x, size=hr).detach(), expected, atol=1e-10, rtol=0)
        # places and cells of queries come in single precision
        torch.testing.assert_close(queried(model, x, hr), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_enlarges_to_any_size_and_backpropagates(name: str) -> None:
    config = CONFIGS[name]
    model, x = network(config), images(2, 6, 9).requires_grad_()
    decoder, encoder = ("lte" if "lte" in name else "liif"), name.rpartition("-")[2]
    assert (config.decoder, config.encoder) == (decoder, encoder)
    assert config.hidden == (128 if "-s-" in name else 256)
    full = {"liif": (2, 3, 4, 5), "lte": (2, 3, 4)}[decoder]
    assert config.depths == (full if name.startswith("moeisr") else full[-1:])
    assert [sum(isinstance(m, nn.Linear) for m in d.modules()) for d in model.decoders] == list(config.depths)
    large = model(x, size=(13, 20))
    assert large.shape == (2, 3, 13, 20)
    large.square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).all()
    model.train().zero_grad()
    rgb, gates = model(x, coord=2 * torch.rand(2, 11, 2) - 1, cell=torch.full((2, 2), 0.1))
    assert rgb.shape == (2, 11, 3)
    (rgb.square().mean() + (0 if gates is None else gates.square().mean())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"), [("liif-edsr", 1_567_299), ("lte-edsr", 1_714_243), ("moeisr-liif-b-edsr", 2_243_536)]
)
def test_parameters_are_those_by_hand(name: str, parameters: int) -> None:
    config = CONFIGS[name]
    decoders = sum(decoder_macs(config)) + sum((depth - 1) * config.hidden + 3 for depth in config.depths)
    texture = 2 * (9 * 64 + 1) * 256 + 2 * 128 if config.decoder == "lte" else 0
    experts = len(config.depths)
    mapper = mapper_macs(config) + 4 * 24 + experts if experts > 1 else 0
    edsr = 28 * 64 + 33 * (9 * 64 + 1) * 64
    found = sum(p.numel() for p in create(name).parameters())
    assert found == parameters == edsr + decoders + texture + mapper


# --- experts ---------------------------------------------------------------------------------------------------------


def rows_of_experts(model: MoEISR, x: Tensor, size: tuple[int, int], patch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each expert is given."""
    rows, given = [0] * len(model.decoders), MLP.after_first

    def watched(self: MLP, first: Tensor, *rest: Any) -> Tensor:
        rows[[self is one for one in model.decoders].index(True)] += len(first)
        return given(self, first, *rest)

    patch.setattr(MLP, "after_first", watched)
    with torch.inference_mode():
        model(x, size=size)
    return rows


@pytest.mark.parametrize("config", [TINY, LTE, replace(LTE, ensemble=False)], ids=["liif", "lte", "one-query"])
def test_experts_are_computed_for_their_own_pixels_alone(config: MoEISRConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(config), images(2, 8, 8)
    rows = rows_of_experts(model, x, (24, 24), monkeypatch)
    chosen = model.expert_map(x)
    assert chosen.shape == (2, 8, 8) and chosen.unique().tolist() == list(range(len(config.depths)))
    assert sum(rows) == 2 * 24 * 24 * (4 if config.ensemble else 1)
    if config.ensemble:  # a pixel inside the image answers for 6x6 queries in a local ensemble at x3
        inside = chosen[:, 1:-1, 1:-1]
        least = [36 * int((inside == j).sum()) for j in range(len(rows))]
        most = [least[j] + 81 * int((chosen == j).sum() - (inside == j).sum()) for j in range(len(rows))]
        assert all(a <= found <= b for a, found, b in zip(least, rows, most, strict=True))
    else:
        assert rows == [9 * int((chosen == j).sum()) for j in range(len(rows))]


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_an_expert_without_pixels_gets_no_query(config: MoEISRConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mapper always chooses the same expert, the network is the backbone of that depth."""
    model, x = network(config), images(1, 5, 6)
    with torch.no_grad():
        model.mapper[-1].bias[1] += 1e6
    backbone = network(replace(config, depths=config.depths[1:2]))
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith(("mapper", "experts"))}
    backbone.load_state_dict(shared | {f"imnet.{k}": v for k, v in model.experts[1].state_dict().items()})
    with torch.inference_mode():
        torch.testing.assert_close(model(x, size=(11, 13)), backbone(x, size=(11, 13)), atol=1e-6, rtol=0)
    assert rows_of_experts(model, x, (11, 13), monkeypatch) == [0, 4 * 11 * 13, *[0] * (len(config.depths) - 2)]


def test_the_expert_of_a_query_is_that_of_the_lr_pixel_it_asks() -> None:
    """Not of the output pixel: in the ensemble, neighbours of different experts answer side by side."""
    model = network(replace(TINY, depths=(2, 3), cell=False))
    with torch.no_grad():
        for expert, level in zip(model.experts, (-1.0, 1.0), strict=True):
            expert.layers[-1].weight.zero_()
            expert.layers[-1].bias.fill_(level)
    x = images(1, 6, 7)
    with torch.inference_mode():
        chosen = model.expert_map(x).float()[:, None]
        assert 0 < chosen.mean() < 1
        expected = F.interpolate(chosen, (24, 28), mode="bilinear", align_corners=False)  # what the four shares are
        inside = (..., slice(2, -2), slice(2, -2))
        torch.testing.assert_close(model(x, size=(24, 28))[inside], expected.expand(1, 3, -1, -1)[inside])


# --- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_gates_are_gumbel_softmax_in_training_and_one_hot_otherwise(config: MoEISRConfig) -> None:
    model, x = network(config), images(2, 6, 7)
    asked = {"coord": torch.rand(2, 5, 2), "cell": torch.full((2, 2), 0.1)}
    with torch.no_grad():
        rgb, gates = model(x, **asked)
        experts = len(config.depths)
        assert torch.equal(gates, F.one_hot(model.expert_map(x), experts).permute(0, 3, 1, 2).float())
        assert torch.equal(rgb, model(x, **asked).rgb)
        model.train()
        (rgb, gates), (other, others) = model(x, **asked), model(x, **asked)
        assert gates.shape == (2, experts, 6, 7) and (gates > 0).all() and not torch.equal(gates, others)
        torch.testing.assert_close(gates.sum(1), torch.ones(2, 6, 7))
        assert not torch.equal(rgb, other)
    backbone = network(replace(config, depths=(3,)))
    assert backbone(x, **asked).gates is None and torch.equal(backbone.expert_map(x), torch.zeros(2, 6, 7).long())


def test_training_answers_are_the_experts_weighted_by_the_gates() -> None:
    """Equation 5, with the gates that were drawn."""
    model, x = network(replace(TINY, depths=(2, 3), ensemble=False)).train(), images(1, 6, 7)
    asked = {"coord": grid((6, 7))[None], "cell": torch.tensor([[2 / 6, 2 / 7]])}  # each LR pixel asked for its own
    with torch.no_grad():
        rgb, gates = model(x, **asked)
        answers = []
        for j in (0, 1):
            model.gates = lambda z, j=j: F.one_hot(torch.full((1, 6, 7), j), 2).permute(0, 3, 1, 2).float()
            answers.append(model(x, **asked).rgb)
    expected = sum(gates[:, j].flatten(1)[..., None] * answers[j] for j in (0, 1))
    torch.testing.assert_close(rgb, expected)


def test_gumbel_noise_chooses_an_expert_as_often_as_its_softmax_says() -> None:
    """Whatever the temperature, which sets how far the others stay behind."""
    scores, largest = torch.tensor([0.0, 1.0, -1.0, 0.5]), []
    for temperature in (0.5, 1.0, 3.0, 5.0):
        model = network(replace(TINY, temperature=temperature)).train()
        model.mapper.register_forward_hook(lambda *_: scores[:, None, None].expand(1, 4, 150, 150))
        with torch.no_grad():
            gates = model.gates(torch.zeros(1, 64, 1, 1))
        often = gates.argmax(1).flatten().bincount(minlength=4) / 150**2
        torch.testing.assert_close(often, scores.softmax(0), atol=0.02, rtol=0)
        largest.append(gates.amax(1).mean().item())
    assert largest == sorted(largest, reverse=True) and largest[0] > 0.7 and largest[-1] < 0.4


def test_the_use_of_experts_has_a_gradient_in_the_mapper_and_the_choice_has_none() -> None:
    model, x = network(TINY), images(1, 6, 7)
    asked = {"coord": torch.rand(1, 5, 2), "cell": torch.full((1, 2), 0.1)}
    (model.train()(x, **asked).gates[:, 0].sum() - 42 / 4).abs().backward()
    assert all((p.grad != 0).any() for p in model.mapper.parameters())
    assert all(p.grad is None for p in model.experts.parameters())
    model.eval().zero_grad()
    model(x, **asked).rgb.sum().backward()
    assert all(p.grad is None for p in model.mapper.parameters())


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_do_what_they_say() -> None:
    x = images(1, 5, 6)
    with torch.inference_mode():
        whole, single = network(TINY), network(replace(TINY, ensemble=False))
        single.load_state_dict(whole.state_dict())
        assert not torch.allclose(whole(x, size=(15, 18)), single(x, size=(15, 18)), atol=1e-4)
        for decoder in (TINY, LTE):
            answers = {}
            for cell in (True, False):
                model = network(replace(decoder, cell=cell))
                coord = torch.rand(1, 9, 2, generator=torch.Generator().manual_seed(2))
                two = [model(x, coord=coord, cell=torch.full((1, 2), size)).rgb for size in (0.2, 0.3)]
                answers[cell] = torch.equal(*two)
            assert answers == {True: False, False: True}
    widths = [
        network(replace(TINY, unfold=unfold, cell=cell)).experts[0].layers[0].in_features
        for unfold in (True, False)
        for cell in (True, False)
    ]
    assert widths == [580, 578, 68, 66]


def test_lte_takes_the_cell_of_a_larger_scale_for_that_of_4_by_axis() -> None:
    model, x = network(LTE), images(1, 5, 6)
    coord = torch.rand(1, 9, 2)
    cells = torch.tensor([[2 / 20, 2 / 24], [2 / 45, 2 / 24], [2 / 20, 2 / 600], [2 / 19, 2 / 24]])  # x4 is 20 by 24
    with torch.inference_mode():
        at_4, *beyond, below = (model(x, coord=coord, cell=cell[None]).rgb for cell in cells)
    assert all(torch.equal(at_4, one) for one in beyond) and not torch.equal(at_4, below)


def test_the_mapper_s_depth_is_counted_in_convolutions() -> None:
    for layers in (1, 2, 5):
        model = network(replace(TINY, mapper_layers=layers))
        convolutions = [m for m in model.mapper.modules() if isinstance(m, nn.Conv2d)]
        assert [c.kernel_size for c in convolutions] == [(3, 3)] * layers
        assert convolutions[0].in_channels == 64 and convolutions[-1].out_channels == 4


# --- portions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, LTE, VARIANTS["liif"]], ids=["moeisr-liif", "moeisr-lte", "liif"])
@pytest.mark.parametrize("nbytes", [1, 10_000, 1_000_000])
def test_portions_change_nothing(config: MoEISRConfig, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(config).double(), images(2, 5, 7).double()
    with torch.inference_mode():
        expected = model(x, size=(12, 17))
        monkeypatch.setattr(moeisr, "CACHED", nbytes)
        torch.testing.assert_close(model(x, size=(12, 17)), expected, atol=1e-12, rtol=0)


def test_portions_are_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    z, steps = torch.zeros(1, 64, 2, 2), []
    for decoder, memory in product(("liif", "lte"), (1 << 40, 1 << 24, 0)):
        monkeypatch.setattr(moeisr, "_free_memory", lambda _, memory=memory: memory)
        parts = list(network(MoEISRConfig(decoder)).portions(10_000, z))
        assert torch.equal(torch.cat(parts), torch.arange(10_000))
        steps.append(len(parts[0]))
    assert steps == [2048, 256, 1, 512, 64, 1]  # four queries a pixel, of 256 and of 1024 numbers


def test_little_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(TINY).double(), images(1, 4, 3).double()
    with torch.inference_mode():
        expected = model(x, size=(9, 8))
        monkeypatch.setattr(moeisr, "_free_memory", lambda _: 0)
        torch.testing.assert_close(model(x, size=(9, 8)), expected, atol=1e-12, rtol=0)


def test_free_memory_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moeisr._free_memory(torch.device("cpu")) > 1 << 20

    def silent(_: str) -> int:
        raise ValueError

    monkeypatch.setattr("os.sysconf", silent)
    assert moeisr._free_memory(torch.device("cpu")) == 1 << 30


# --- counts ----------------------------------------------------------------------------------------------------------


def test_multiply_adds_are_those_by_hand() -> None:
    assert decoder_macs(CONFIGS["liif-edsr"]) == (345_856,)
    assert decoder_macs(CONFIGS["lte-edsr"]) == (197_376,)
    first = 580 * 256
    assert decoder_macs(CONFIGS["moeisr-liif-b-rdn"]) == tuple(first + n * 256**2 + 3 * 256 for n in range(4))
    assert decoder_macs(CONFIGS["moeisr-liif-s-rdn"]) == tuple(580 * 128 + n * 128**2 + 3 * 128 for n in range(4))
    assert decoder_macs(CONFIGS["moeisr-lte-s-rdn"]) == tuple(256 * 128 + n * 128**2 + 3 * 128 for n in range(3))
    widths = [moeisr.inputs(replace(TINY, **off)) for off in ({}, *OFF)]
    assert widths == [580, 68, 580, 578]
    assert executed_macs(CONFIGS["liif-edsr"]) == (576 * 256, (2 * 256 + 3 * 256**2 + 3 * 256,))
    assert mapper_macs(CONFIGS["moeisr-liif-b-edsr"]) == 9 * (64 * 24 + 3 * 24 * 24 + 24 * 4)
    assert mapper_macs(CONFIGS["moeisr-lte-s-edsr"]) == 9 * (64 * 24 + 3 * 24 * 24 + 24 * 3)
    assert mapper_macs(replace(TINY, mapper_layers=1)) == 9 * 64 * 4
    assert mapper_macs(CONFIGS["liif-edsr"]) == 0


def counted(call: Any) -> int:
    """Multiply-adds of matrix products and convolutions, as torch counts them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [name for name in VARIANTS if "cell" not in name])
def test_executed_multiply_adds_are_those_that_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, size, pixels = VARIANTS[name], (19, 23), 2 * 8 * 9
    model, x = network(config), images(2, 8, 9)
    whole = counted(lambda: model(x, size=size)) - counted(lambda: model.encoder(x))
    rows = rows_of_experts(model, x, size, monkeypatch)
    pixel, queries = executed_macs(config)
    expected = pixels * (pixel + mapper_macs(config)) + sum(a * b for a, b in zip(rows, queries, strict=True))
    if config.decoder == "lte":
        expected -= 256 * sum(rows)  # products of frequencies and coordinates, which are no matrix product
    assert expected <= whole <= 1.01 * expected  # the cell's part is computed once for all queries


def test_printed_multiply_adds_are_those_of_whole_mlps_at_every_query() -> None:
    for name in ("liif-edsr", "moeisr-liif-s-edsr", "moeisr-lte-b-edsr"):
        model = network(CONFIGS[name])
        rows = torch.zeros(7, moeisr.inputs(model.config))
        assert [counted(partial(decoder, rows)) / 7 for decoder in model.decoders] == list(decoder_macs(model.config))


def test_what_is_saved_is_about_40_percent_of_liif_and_60_of_the_small_one() -> None:
    saved = {}
    for name in ("liif-edsr", "moeisr-liif-s-edsr"):
        printed, (pixel, queries) = decoder_macs(CONFIGS[name]), executed_macs(CONFIGS[name])
        at_30 = [pixel / (4 * 30**2) + query for query in queries]
        saved[name] = 1 - sum(at_30) / sum(printed)
    assert 0.38 < saved["liif-edsr"] < 0.45 and 0.55 < saved["moeisr-liif-s-edsr"] < 0.8


# --- purity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_nothing_is_kept_on_the_network_and_nothing_given_is_changed(config: MoEISRConfig) -> None:
    model, x, coord = network(config), images(1, 6, 7), torch.rand(1, 5, 2)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    given = x.clone(), coord.clone()
    with torch.inference_mode():
        model(x, size=(12, 20))
    model(x, size=(12, 20))
    model(x, coord=coord, cell=torch.full((1, 2), 0.1))
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(x, given[0]) and torch.equal(coord, given[1])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("config", [TINY, LTE], ids=["liif", "lte"])
def test_bfloat16_autocast_agrees_with_float32(config: MoEISRConfig) -> None:
    """Where the rounding does not tip a choice: of one expert alone."""
    model, x = network(replace(config, depths=(3,))), images(2, 9, 7)
    with torch.inference_mode():
        expected = model(x, size=(20, 21))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x, size=(20, 21)).float(), expected, atol=0.03, rtol=0)
            torch.testing.assert_close(queried(model, x, (20, 21)).float(), expected, atol=0.03, rtol=0)


def test_training_under_bfloat16_autocast_reaches_every_parameter() -> None:
    for config in (TINY, LTE):
        model = network(config).train()
        with torch.autocast("cpu", torch.bfloat16):
            rgb, gates = model(images(2, 6, 7), coord=torch.rand(2, 5, 2), cell=torch.full((2, 2), 0.1))
        (rgb.float().square().mean() + gates.float()[:, 0].sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": "siren"}, {"encoder": "vgg"}, {"depths": ()}, {"depths": (1,)}, {"depths": (3, 2)}, {"depths": 5},
        {"depths": (2, 2)}, {"depths": (2, 3.0)}, {"hidden": 0}, {"hidden": True}, {"hidden": 64.0},
        {"mapper_layers": 0}, {"temperature": 0}, {"temperature": float("nan")}, {"temperature": "1"},
        {"temperature": float("inf")}, {"unfold": 1}, {"ensemble": None}, {"cell": "yes"},
        {"unfold": False, "decoder": "lte"},
    ],
    ids=str,
)  # fmt: skip
def test_unknown_values_are_refused_in_one_line(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))) as error:
        MoEISRConfig(**change)
    assert "\n" not in str(error.value) and ("give" in str(error.value) or "choose" in str(error.value))


def test_depths_of_a_record_come_as_a_list() -> None:
    assert MoEISRConfig(depths=[2, 4]) == MoEISRConfig(depths=(2, 4))


@pytest.mark.parametrize("size", [4, (4,), (4, 0), (4.0, 5), "ab", (True, 3), (3, 4, 5), (-2, 5), torch.tensor([3, 4])])
def test_sizes_that_no_image_has_are_refused_in_one_line(size: Any) -> None:
    with pytest.raises(InputError, match="give two whole numbers") as error:
        network(TINY)(images(1, 4, 4), size=size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [[6, 7], torch.Size((6, 7))], ids=str)
def test_a_size_may_be_any_pair(size: Any) -> None:
    assert network(TINY)(images(1, 4, 4), size=size).shape == (1, 3, 6, 7)


@pytest.mark.parametrize("given", [(), ("size", "coord"), ("size", "coord", "cell"), ("coord",), ("cell",)], ids=str)
def test_a_network_is_asked_for_one_thing(given: tuple[str, ...]) -> None:
    every = {"size": (8, 8), "coord": torch.zeros(1, 5, 2), "cell": torch.ones(1, 2)}
    with pytest.raises(InputError, match="give size, or coord and cell"):
        network(TINY)(images(1, 4, 4), **{name: every[name] for name in given})


@pytest.mark.parametrize(
    ("coord", "cell"),
    [((1, 5, 2), (2, 2)), ((2, 5, 3), (2, 2)), ((2, 2), (2, 2)), ((2, 5, 2), (2,)), ((2, 5, 2), (2, 5))],
)
def test_queries_of_another_shape_are_refused_in_one_line(coord: tuple, cell: tuple) -> None:
    with pytest.raises(InputError, match=r"give \(2, queries, 2\) and \(2, 2\)") as error:
        network(TINY)(images(2, 4, 4), coord=torch.zeros(coord), cell=torch.ones(cell))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)])
def test_other_shapes_than_rgb_batches_are_refused(shape: tuple[int, ...]) -> None:
    model = network(TINY)
    for call in (partial(model, size=(9, 9)), model.expert_map):
        with pytest.raises(InputError, match="give"):
            call(torch.zeros(shape))


OTHER = [{"hidden": 8}, {"depths": (2, 3)}, {"encoder": "rdn"}, {"unfold": False}, {"mapper_layers": 4}]


def test_weights_of_another_network_are_refused_in_one_line() -> None:
    weights = network(TINY).state_dict()
    for wrong in (VARIANTS["liif"], LTE, *(replace(TINY, **other) for other in OTHER)):
        with pytest.raises(InputError, match="does not fit") as error:
            load_released(network(wrong), weights)
        assert "\n" not in str(error.value)
