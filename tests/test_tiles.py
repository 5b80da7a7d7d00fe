"""Tiles: nothing changes where an upscaler looks no further than an overlap; memory stays bounded; seams don't show."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.evaluate import AtScale
from srlib.models import create, default_config
from srlib.resize import enlarged_size
from srlib.tiles import enlarge, pieces


def noise(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height + 1000 * width))


def nearest(scale: int) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="nearest")


def whole(upscale: nn.Module, lr: Tensor) -> Tensor:
    with torch.inference_mode():
        return upscale(lr[None])[0]


def narrow(name: str) -> nn.Module:
    """A network for every scale whose answers rest on 3x3 LR pixels or so: its encoder is one convolution."""
    torch.manual_seed(0)
    network = create(name)
    network.encoder = nn.Conv2d(3, 64, 3, padding=1)
    return network.eval()


@settings(max_examples=200, deadline=None)
@given(side=st.integers(1, 1000), tile=st.integers(16, 64), share=st.floats(0, 0.5), scale=st.sampled_from([1, 2.5, 4]))
def test_pieces_cover_an_axis_with_tiles_of_one_length(side: int, tile: int, share: float, scale: float) -> None:
    overlap, large = int(share * tile), enlarged_size((side, 1), scale)[0]
    cut = pieces(side, large, tile, overlap)
    assert {one.end - one.start for one in cut} == {cut[0].end} and cut[0].end <= min(tile, side)
    assert (cut[0].start, cut[-1].end) == (0, side)
    total = torch.zeros(large)
    for one in cut:
        assert one.weight.min() >= 0
        total[one.first : one.last] += one.weight
    assert (total - 1).abs().max() < 1e-6
    assert all(one.start < after.start and one.end - after.start >= overlap for one, after in pairwise(cut))
    if tile - overlap >= 32:  # each tile has the image's own remainder, and starts where pooling does
        assert all(one.start % 16 == 0 for one in cut) and (cut[0].end - side) % 16 == 0


@pytest.mark.parametrize("name", ["moeisr-liif-s-edsr", "moeisr-lte-s-edsr"])
@pytest.mark.parametrize("scale", [0.6, 2, 2.5, 3.37])
def test_a_network_for_every_scale_comes_out_as_whole_at_any_scale(name: str, scale: float) -> None:
    lr, upscale = noise(41, 50), AtScale(narrow(name), scale)
    expected = whole(upscale, lr)
    assert expected.shape[1:] == enlarged_size((41, 50), scale)
    assert (enlarge(upscale, lr, scale, 32, 10) - expected).abs().max() <= 1e-4


SMALL_SEEMORE = replace(default_config("seemore-t"), groups=1)


@pytest.mark.parametrize(
    ("model", "config", "exact"),
    [
        ("safmn", replace(default_config("safmn"), blocks=1), True),  # pools of whole eighths are pools of tiles
        ("ssiu", replace(default_config("ssiu"), stages=3, channels=8, attention="sam"), True),  # so are blocks
        ("seemore-t", replace(SMALL_SEEMORE, experts=1), True),  # one expert weighs 1 wherever
        ("seemore-t", SMALL_SEEMORE, False),  # the router weighs its experts by the mean of the whole image
    ],
    ids=["safmn", "sam", "one expert", "router"],
)
def test_local_networks_are_exact_beyond_their_reach(model: str, config: object, exact: bool) -> None:
    torch.manual_seed(0)
    network = create(model, 2, config).eval()
    lr = noise(512, 120)
    expected = whole(network, lr)
    network.train()
    far, none = ((enlarge(network, lr, 2, 240, overlap) - expected).abs().max() for overlap in (120, 0))
    assert (far <= 1e-6) == exact and none > far
    assert all(part.training for part in network.modules())  # enlarged in evaluation mode, and put back


def test_a_seam_is_no_edge() -> None:
    """Between two tiles that disagree, no step is larger than the ramp makes it, and no pixel leaves their range."""

    def mean(x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand_as(x)

    lr = torch.linspace(0, 1, 64)[None, None].expand(3, 64, 64)
    sr = enlarge(mean, lr, 1, 40, 16)
    steps = sr[0, 0].diff()
    assert sr.min() >= 0 and sr.max() <= 1
    assert (steps >= 0).all() and 0 < steps.max() < 0.25 * (sr.max() - sr.min())
    assert (sr[0] - sr[0, 0]).abs().max() < 1e-6


@pytest.mark.parametrize(("kind", "levels"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.float64, 1)])
def test_images_have_8_or_16_bits_or_floating_point(kind: torch.dtype, levels: int) -> None:
    lr = noise(70, 45)
    lr = (lr * levels).round().to(kind) if levels > 1 else lr.to(kind)
    sr, expected = enlarge(nearest(3), lr, 3, 32, 8), whole(nearest(3), lr.to(torch.float32) / levels)
    assert sr.dtype == torch.float32 and not sr.is_inference() and (sr - expected).abs().max() <= 1e-6


def test_an_image_of_no_more_pixels_than_a_tile_s_is_enlarged_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    for size, tile in (((20, 100), 48), ((90, 90), 0), ((384, 384), None)):
        enlarge(watched, noise(*size), 1, tile)
        assert seen.pop() == size and not seen
    enlarge(watched, noise(20, 130), 1, 48)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: enlarge(nearest(2), noise(4, 4)[:1], 2), "give images"),
        (lambda: enlarge(nearest(2), noise(4, 4).long(), 2), "int64"),
        (lambda: enlarge(nearest(2), noise(40, 40), 3, 32, 8), "use one for scale 3"),
        (lambda: enlarge(narrow("moeisr-liif-s-edsr"), noise(40, 40), 2), "tell a network for every scale"),
        (lambda: enlarge(nearest(2), noise(40, 40), 2, tile=15), "too small"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


class Tight(nn.Upsample):
    """A device that holds images of up to so many pixels a side, with the error that torch raises beyond; it may do so
    after some tiles only."""

    def __init__(self, side: int, error: Exception, after: int = 0) -> None:
        super().__init__(scale_factor=2, mode="nearest")
        self.side, self.error, self.after = side, error, after

    def forward(self, x: Tensor) -> Tensor:
        self.after -= 1
        if max(x.shape[-2:]) > self.side and self.after < 0:
            raise self.error
        return super().forward(x)


GPU = torch.OutOfMemoryError("CUDA out of memory")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(("error", "tile", "after"), [(GPU, 256, 0), (CPU, 0, 0), (GPU, 176, 3)])
def test_out_of_memory_halves_the_tiles_and_says_so(error: Exception, tile: int, after: int) -> None:
    lr = noise(310, 280)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert (enlarge(Tight(96, error, after), lr, 2, tile) - whole(nearest(2), lr)).abs().max() <= 1e-6
    assert 1 <= len(said) <= 2 and all("going on in tiles of" in str(one.message) for one in said)


def test_other_errors_and_too_little_memory_for_any_tile_come_through() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        enlarge(Tight(8, RuntimeError("something else")), noise(100, 100), 2, 64)
    with pytest.warns(UserWarning, match="going on"), pytest.raises(InputError, match=r"too small for \d+ x \d+ pix"):
        enlarge(Tight(8, GPU), noise(200, 200), 2, 128)
