"""Encoders: the released outputs and sizes, any size of image, and the parts of SwinIR by hand."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srlib.complexity import count
from srlib.errors import InputError
from srlib.models.encoders import EDSR, ENCODERS, RDN, STL, SwinIR, WindowAttention, merged, padded, shift_mask, windows
from srlib.runs import load_released

TINY = {
    "edsr": lambda: EDSR(blocks=2, channels=8),
    "rdn": lambda: RDN(blocks=2, layers=3, channels=8, growth=4),
    "swinir": lambda: SwinIR(depths=(2, 3), embed=12, heads=3, window=4, channels=8, stochastic_depth=0),
}


def tiny(name: str) -> nn.Module:
    """A small encoder whose every weight is random: SwinIR's biases start at 0, its norms at 1."""
    torch.manual_seed(0)
    encoder = TINY[name]()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the releases ----------------------------------------------------------------------------------------------------


def formula_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Element i of parameter j by name is sin(0.37 i + 1.3 j), divided by the root of its fan-in; of one dimension,
    a tenth of it, and about 1 for the weights of norms."""
    weights = {}
    for j, (name, old) in enumerate(sorted(encoder.state_dict().items())):
        wave = torch.sin(0.37 * torch.arange(old.numel(), dtype=torch.float64) + 1.3 * j).reshape(old.shape)
        level = 1 if name.endswith("weight") else 0
        weights[name] = (wave / math.sqrt(old[0].numel()) if old.ndim > 1 else 0.1 * wave + level).float()
    return weights


def formula_image(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in (height, width)), indexing="ij")
    red, green = 0.5 + 0.4 * torch.sin(0.21 * x + 0.13 * y), 0.5 + 0.4 * torch.cos(0.017 * x * y)
    blue = 0.3 + 0.4 * ((x // 5 + y // 7) % 2)
    return (torch.stack([red, green, blue])[None].float() - 0.5) / 0.5


@pytest.mark.parametrize("name", ["rdn", "swinir"])
def test_formula_weights_give_the_released_implementation_s_output(golden: Path, name: str) -> None:
    released = json.loads((golden / f"encoder_{name}.json").read_text())
    encoder = ENCODERS[name]().eval()
    assert {key: list(value.shape) for key, value in encoder.state_dict().items()} == released["shapes"]
    assert sum(p.numel() for p in encoder.parameters()) == released["params"]
    load_released(encoder, formula_weights(encoder))
    with torch.inference_mode():
        output = encoder(formula_image(*released["input"]))
    expected = released["output"]
    assert list(output.shape) == expected["shape"]
    values = torch.tensor(expected["value"])
    torch.testing.assert_close(output.flatten()[expected["index"]], values, atol=2e-6, rtol=0)
    assert output.mean().item() == pytest.approx(expected["mean"], abs=2e-7)
    assert output.std().item() == pytest.approx(expected["std"], abs=2e-7)


def test_edsr_takes_its_part_of_released_liif_weights(golden: Path) -> None:
    """With the mean shifts that the file holds and nobody applies; the layers written out give the same features."""
    prefix = "weights/encoder."
    tensors = load_file(golden / "liif_edsr.safetensors")
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    assert set(EDSR.UNUSED) < weights.keys()
    encoder = load_released(EDSR(), weights)
    x = tensors["input"] * 2 - 1
    conv = lambda t, key: F.conv2d(t, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1)  # noqa: E731
    head = features = conv(x, "head.0")
    for i in range(16):
        features = features + conv(F.relu(conv(features, f"body.{i}.body.0")), f"body.{i}.body.2")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), head + conv(features, "body.16"), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="tail"):
        load_released(encoder, {**weights, "tail.0.weight": torch.zeros(1)})


def test_swinir_passes_over_the_release_s_buffers() -> None:
    encoder, other = tiny("swinir"), TINY["swinir"]()
    layer = "layers.1.residual_group.blocks"
    buffers = {f"{layer}.0.attn.relative_position_index": torch.zeros(1), f"{layer}.1.attn_mask": torch.zeros(1)}
    load_released(other, {**encoder.state_dict(), **buffers})
    with torch.inference_mode():
        assert torch.equal(encoder(images(1, 8, 9)), other(images(1, 8, 9)))


# --- sizes by hand ---------------------------------------------------------------------------------------------------


def conv(channels: int, out: int, side: int = 3) -> int:
    return side**2 * channels * out + out


def edsr_by_hand(blocks: int = 16, c: int = 64) -> int:
    return conv(3, c) + (2 * blocks + 1) * conv(c, c)


def rdn_by_hand(d: int = 16, layers: int = 8, c: int = 64, g: int = 64) -> int:
    block = sum(conv(c + i * g, g) for i in range(layers)) + conv(c + layers * g, c, side=1)
    return conv(3, c) + conv(c, c) + d * block + conv(d * c, c, side=1) + conv(c, c)


def swinir_by_hand(
    depths: tuple[int, ...] = (6,) * 6, e: int = 180, heads: int = 6, window: int = 8, c: int = 64
) -> int:
    attention = (2 * window - 1) ** 2 * heads + conv(e, 3 * e, side=1) + conv(e, e, side=1)
    layer = 4 * e + attention + conv(e, 2 * e, side=1) + conv(2 * e, e, side=1)
    return conv(3, e) + 4 * e + sum(depths) * layer + (len(depths) + 1) * conv(e, e) + conv(e, c)


@pytest.mark.parametrize(
    ("name", "parameters", "by_hand"),
    [
        ("edsr", 1_220_416, edsr_by_hand),
        ("rdn", 21_973_952, rdn_by_hand),
        ("swinir", 11_603_044, swinir_by_hand),
    ],
)
def test_parameters_are_those_by_hand(name: str, parameters: int, by_hand) -> None:
    encoder = ENCODERS[name]()
    assert sum(p.numel() for p in encoder.parameters()) == parameters == by_hand()
    assert encoder.channels == 64


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("edsr", edsr_by_hand(2, 8)),
        ("rdn", rdn_by_hand(2, 3, 8, 4)),
        ("swinir", swinir_by_hand((2, 3), 12, 3, 4, 8)),
    ],
)
def test_parameters_of_tiny_encoders_are_those_by_hand(name: str, by_hand: int) -> None:
    encoder = tiny(name)
    assert sum(p.numel() for p in encoder.parameters()) == by_hand and encoder.channels == 8


def test_multiply_adds_are_those_by_hand() -> None:
    """Per pixel: a convolution's weights; of SwinIR's layers twelve squares of the width, of attention its window."""
    pixels = 24 * 16
    assert count(EDSR(), (24, 16)).macs == pixels * (27 * 64 + 33 * 9 * 64 * 64)
    growing = sum(9 * 64 * (i + 1) * 64 for i in range(8)) + 9 * 64 * 64
    assert count(RDN(), (24, 16)).macs == pixels * (27 * 64 + 2 * 9 * 64 * 64 + 16 * growing + 16 * 64 * 64)
    layer = 8 * 180 * 180 + 2 * 64 * 180
    assert count(SwinIR(), (24, 16)).macs == pixels * (27 * 180 + 36 * layer + 7 * 9 * 180 * 180 + 9 * 180 * 64)


# --- what holds for every encoder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_batches_are_their_images_and_backpropagate(name: str, mode: str) -> None:
    encoder, x = tiny(name).double().train(mode == "training"), images(2, 13, 22).double()
    together = encoder(x)
    assert together.shape == (2, 8, 13, 22)
    torch.testing.assert_close(together, torch.cat([encoder(image[None]) for image in x]), atol=1e-12, rtol=0)
    together.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(p.grad.any() for p in encoder.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), together.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2), (3, 40), (8, 8), (4, 4)], ids=str)
def test_every_size_works_and_leaves_nothing_behind(name: str, size: tuple[int, int]) -> None:
    encoder, x = tiny(name).eval(), images(2, *size)
    held = {key: value.clone() for key, value in encoder.state_dict().items()}
    attributes = [set(vars(module)) for module in encoder.modules()]
    with torch.inference_mode():
        first = encoder(x)
        assert first.shape == (2, 8, *size) and first.isfinite().all()
        encoder(images(1, 12, 7))
        assert torch.equal(encoder(x), first)
    assert all(torch.equal(held[key], value) for key, value in encoder.state_dict().items())
    assert attributes == [set(vars(module)) for module in encoder.modules()]


@pytest.mark.parametrize("name", ENCODERS)
def test_full_encoders_take_a_single_pixel(name: str) -> None:
    with torch.inference_mode():
        assert ENCODERS[name]().eval()(images(1, 1, 1)).shape == (1, 64, 1, 1)


# --- SwinIR's parts --------------------------------------------------------------------------------------------------


def test_windows_are_cut_row_by_row_and_put_together_again() -> None:
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    cut = windows(x, 4)
    assert cut.shape == (2, 6, 16, 3)
    assert torch.equal(cut[1, 4], x[1, 4:8, 4:8].flatten(0, 1))
    assert torch.equal(merged(cut, 4, x.shape), x)


def test_attention_is_equation_9() -> None:
    """softmax(Q K^T / sqrt(d) + B) V for each head, with B read from the table by the pixels' distance, plus a mask."""
    torch.manual_seed(0)
    side, heads = 3, 2
    attention = WindowAttention(8, heads, side).double()
    nn.init.normal_(attention.relative_position_bias_table)
    x, mask = torch.randn(2, 4, side**2, 8).double(), torch.randn(4, side**2, side**2).double()
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in attention.qkv(x).chunk(3, dim=-1))  # (2, 4, 9, heads, 4)
    for given in (None, mask):
        scores = torch.einsum("bnqhd,bnkhd->bnhqk", q, k) / 2
        for i in range(side**2):
            for j in range(side**2):
                down, right = i // side - j // side + side - 1, i % side - j % side + side - 1
                bias = attention.relative_position_bias_table[down * (2 * side - 1) + right]
                scores[..., i, j] += bias + (0 if given is None else given[:, i, j, None])
        expected = attention.proj(torch.einsum("bnhqk,bnkhd->bnqhd", scores.softmax(-1), v).flatten(3))
        torch.testing.assert_close(attention(x, given), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(4, 4), (4, 12), (8, 16)], ids=str)
def test_the_mask_parts_what_only_the_shift_brought_together(size: tuple[int, int]) -> None:
    """Pixels of a shifted window may see each other if they lie in the image as they lie in the window."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    place = torch.stack([rows, columns], dim=-1)[None].double()
    shifted = windows(place, 4)[0]
    original = windows(place.roll((-2, -2), (1, 2)), 4)[0]
    apart = lambda t: t[:, :, None] - t[:, None]  # noqa: E731
    neighbours = (apart(shifted) == apart(original)).all(-1)
    mask = shift_mask(size, 4, 2, place)
    assert torch.equal(mask == 0, neighbours) and torch.equal(mask == -100, ~neighbours)
    assert mask.dtype == torch.float64


def test_every_other_layer_shifts_its_windows() -> None:
    for block in SwinIR().layers:
        assert [layer.shift for layer in block.residual_group["blocks"]] == [0, 4, 0, 4, 0, 4]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 8), (8, 16), (9, 17)], ids=str)
def test_padding_reflects_as_often_as_it_must(size: tuple[int, int]) -> None:
    x = images(2, *size)
    more = [(0, -side % 8) for side in size]
    np.testing.assert_array_equal(padded(x, 8), np.pad(x.numpy(), [(0, 0), (0, 0), *more], mode="reflect"))


def test_features_of_a_padded_image_are_cropped_back() -> None:
    encoder, x = tiny("swinir").eval(), images(1, 10, 7)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), encoder(padded(x, 4))[:, :, :10, :7], atol=1e-6, rtol=0)


def test_stochastic_depth_leaves_out_whole_branches_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = STL(8, 2, 4, 2.0, shift=0, drop=0.25)
    x, mask = torch.randn(1, 4, 4, 8).expand(4000, -1, -1, -1), torch.zeros(1, 16, 16)
    with torch.no_grad():
        branch = layer.kept(x)
        left_out = (branch == 0).all(dim=(1, 2, 3))
        assert left_out.float().mean().item() == pytest.approx(0.25, abs=0.03)
        torch.testing.assert_close(branch[~left_out], x[~left_out] / 0.75)
        results = layer(x[:64], mask).flatten(1)
        assert len({tuple(row.tolist()) for row in results}) == 4, "neither branch, either or both"
        assert torch.equal(layer.eval().kept(x), x)


def test_stochastic_depth_rises_layer_by_layer() -> None:
    encoder = SwinIR(depths=(2, 3), embed=12, heads=3, window=4, channels=8, stochastic_depth=0.2)
    drops = [layer.drop for block in encoder.layers for layer in block.residual_group["blocks"]]
    assert drops == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    twin, x = copy.deepcopy(encoder).eval(), images(1, 8, 8)
    assert torch.equal(twin(x), twin(x)) and len({encoder(x).sum().item() for _ in range(20)}) > 1
