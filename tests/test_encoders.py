"""Encoders: the released implementations' outputs, any size of image, and the parts of SwinIR."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_models import by_formula, image_by_formula
from torch import Tensor, nn

from srlib.models.encoders import EDSR, ENCODERS, RDN, STL, SwinIR, WindowAttention, shift_mask
from srlib.models.layers import windows

TINY = {
    "edsr": lambda: EDSR(blocks=2),
    "rdn": lambda: RDN(blocks=2, layers=3, growth=4),
    "swinir": lambda: SwinIR(depths=(2, 3), embed=12, heads=3, window=4, drop=0),
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


@pytest.mark.parametrize("name", ["rdn", "swinir"])
def test_formula_weights_give_the_released_output(golden: Path, name: str) -> None:
    released = json.loads((golden / f"encoder_{name}.json").read_text())
    encoder = ENCODERS[name]().eval()
    assert {key: list(value.shape) for key, value in encoder.state_dict().items()} == released["shapes"]
    encoder.load_state_dict(by_formula(released["shapes"]))
    with torch.inference_mode():
        output = encoder(2 * image_by_formula(*released["input"]) - 1)
    expected = released["output"]
    assert list(output.shape) == expected["shape"]
    values = torch.tensor(expected["value"])
    torch.testing.assert_close(output.flatten()[expected["index"]], values, atol=2e-6, rtol=0)
    assert output.mean().item() == pytest.approx(expected["mean"], abs=2e-7)


@pytest.mark.parametrize(("name", "parameters"), [("edsr", 1_220_416), ("rdn", 21_973_952), ("swinir", 11_603_044)])
def test_full_sizes_are_those_of_liif_and_lte_and_take_one_pixel(name: str, parameters: int) -> None:
    encoder = ENCODERS[name]().eval()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    with torch.inference_mode():
        assert encoder(images(1, 1, 1)).shape == (1, 64, 1, 1)


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_are_their_images_and_every_weight_has_a_gradient(name: str) -> None:
    encoder, x = tiny(name).double(), images(2, 13, 22).double()
    together = encoder(x)
    assert together.shape[2:] == (13, 22)
    torch.testing.assert_close(together, torch.cat([encoder(image[None]) for image in x]), atol=1e-12, rtol=0)
    together.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(1, 9), (5, 2), (3, 40), (8, 8)], ids=str)
def test_every_size_works_and_leaves_nothing_behind(name: str, size: tuple[int, int]) -> None:
    encoder, x = tiny(name).eval(), images(2, *size)
    with torch.inference_mode():
        first = encoder(x)
        assert first.shape[2:] == size and first.isfinite().all()
        encoder(images(1, 12, 7))
        assert torch.equal(encoder(x), first)


def test_attention_is_equation_9() -> None:
    """softmax(Q K^T / sqrt(d) + B) V for each head, with B read from the table by the pixels' distance, plus a mask."""
    torch.manual_seed(0)
    side, heads = 3, 2
    attention = WindowAttention(8, heads, side).double()
    nn.init.normal_(attention.relative_position_bias_table)
    x, mask = torch.randn(2, 4, side**2, 8).double(), torch.randn(4, side**2, side**2).double()
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in attention.qkv(x).chunk(3, dim=-1))  # (2, 4, 9, heads, 4)
    scores = torch.einsum("bnqhd,bnkhd->bnhqk", q, k) / 2 + mask[:, None]
    for i in range(side**2):
        for j in range(side**2):
            down, right = i // side - j // side + side - 1, i % side - j % side + side - 1
            scores[..., i, j] += attention.relative_position_bias_table[down * (2 * side - 1) + right]
    expected = attention.proj(torch.einsum("bnhqk,bnkhd->bnqhd", scores.softmax(-1), v).flatten(3))
    torch.testing.assert_close(attention(x, mask), expected, atol=1e-12, rtol=0)


def test_the_mask_parts_what_only_the_shift_brought_together() -> None:
    """Pixels of a shifted window may see each other if they lie in the image as they lie in the window."""
    size = 8, 16
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    place = torch.stack([rows, columns], dim=-1)[None].double()
    cut = (windows(image, 4, 4)[0] for image in (place, place.roll((-2, -2), (1, 2))))
    apart = [pixels[:, :, None] - pixels[:, None] for pixels in cut]
    neighbours = (apart[0] == apart[1]).all(-1)
    mask = shift_mask(size, 4, place)
    assert torch.equal(mask == 0, neighbours) and torch.equal(mask == -100, ~neighbours)


def test_every_other_layer_shifts_its_windows_and_drops_rise_layer_by_layer() -> None:
    layers = [layer for block in SwinIR().layers for layer in block.residual_group["blocks"]]
    assert [layer.shift for layer in layers] == [0, 4] * 18
    assert [layer.drop for layer in layers] == pytest.approx([0.1 * i / 35 for i in range(36)])


def test_stochastic_depth_leaves_out_whole_branches_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = STL(8, 2, 4, shift=0, drop=0.25)
    x = torch.randn(1, 4, 4, 8).expand(4000, -1, -1, -1)
    with torch.no_grad():
        branch = layer.drop_path(x)
        left_out = (branch == 0).all(dim=(1, 2, 3))
        assert left_out.float().mean().item() == pytest.approx(0.25, abs=0.03)
        torch.testing.assert_close(branch[~left_out], x[~left_out] / 0.75)
        results = layer(x[:64]).flatten(1)
        assert len({tuple(row.tolist()) for row in results}) == 4, "neither branch, either or both"
        assert torch.equal(layer.eval().drop_path(x), x)
