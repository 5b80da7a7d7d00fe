"""Attribution maps are what theory says where it says something, complete elsewhere, and hide nothing."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.attribution import Attribution, Box, attribute, blocked, busiest, crop, gradients, upscaler, window
from srlib.errors import InputError
from srlib.models import create, default_config
from srlib.models.moeisr import MoEISRConfig
from srlib.resize import imresize


def total(sr: Tensor, patch: Box) -> Tensor:
    """A linear detector: the sum over the patch."""
    return crop(sr, patch).sum((1, 2, 3))


def photo(height: int, width: int) -> Tensor:
    """An image of coarse and fine detail, in [0, 1]."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, stride=1)[0].sigmoid()


def for_every_scale(decoder: str) -> nn.Module:
    """A small network for every scale with random weights."""
    torch.manual_seed(1)
    return MoEISRConfig(decoder, depths=(2, 3), hidden=16).build().eval()


def even(network: nn.Module) -> nn.Module:
    """A network for one scale whose random weights before a pixel shuffle are the same for all pixels made of one: else
    a detector finds the pattern of their differences, blurred or not."""
    for conv, after in pairwise(list(network.modules())):
        if isinstance(after, nn.PixelShuffle):
            made = after.upscale_factor**2
            for weights in conv.parameters():
                weights.data = weights.data[::made].repeat_interleave(made, 0)
    return network.eval()


def blurred(lr: Tensor) -> Tensor:
    """The start of the path, by hand."""
    place = torch.arange(-4, 5, dtype=torch.float64)
    kernel = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.2**2))
    padded = F.pad(lr.double()[:, None], (4, 4, 4, 4), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def test_a_convolution_attributes_exactly_its_kernel_s_support() -> None:
    conv, lr = nn.Conv2d(3, 3, 5, padding=2).double(), photo(17, 21).double()
    found = attribute(conv, lr, (8, 9, 1, 1), 1, detector=total, steps=7)
    expected = torch.zeros_like(lr)
    expected[:, 6:11, 7:12] = conv.weight.detach().sum(0) * (lr - blurred(lr))[:, 6:11, 7:12]
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    assert found.completeness == pytest.approx(1, abs=1e-9)


def test_bicubic_reaches_three_pixels() -> None:
    lr = photo(20, 20).double()
    found = attribute(partial(imresize, scale=4), lr, (40, 40, 4, 4), 4, detector=total, steps=2)
    touched = (found.strength > 0).nonzero()
    assert touched.min(0).values.tolist() == [8, 8] and touched.max(0).values.tolist() == [12, 12]
    assert found.reach(1.0) < 3 and found.beyond(3) == pytest.approx(0)


@pytest.mark.parametrize("name", ["safmn", "seemore-t", "ssiu", "lte", "liif"])
def test_maps_of_networks_are_complete_within_a_percent(name: str) -> None:
    torch.manual_seed(0)
    patch = (14, 20, 8, 6)
    if name in ("lte", "liif"):  # random weights of these hardly tell a sharp image from a blurred one
        found = attribute(upscaler(for_every_scale(name), 2, patch), photo(24, 24), patch, 2, steps=16)
        assert found.completeness == pytest.approx(1, abs=0.01)
        return
    found = attribute(even(create(name, 2)), photo(24, 24), patch, 2)
    assert found.values.shape == (3, 24, 24) and found.values.dtype == torch.float64
    assert found.detected[1] > 1.3 * found.detected[0], "there is a gain to be told apart"
    assert found.completeness == pytest.approx(1, abs=0.01)
    assert found.strength.argmax() in found.distances.flatten().argsort()[:150], "it is strongest near the patch"


def test_completeness_shows_a_jump() -> None:
    lr = photo(16, 16)
    limit = 0.7 * lr.diff(dim=-1).abs().mean()

    def switch(x: Tensor) -> Tensor:
        """Twice the image where it is sharp, the image where it is blurred: a decision that no gradient sees."""
        return x * (1 + (x.diff(dim=-1).abs().mean() > limit).float())

    assert attribute(switch, lr, (4, 4, 8, 8), 1, steps=32).completeness < 0.95


def test_a_router_s_weight_is_differentiated_and_a_mapper_s_choice_is_not() -> None:
    torch.manual_seed(0)
    small = type(default_config("seemore-t"))(scale=2, groups=1, channels=16, recursion=1)
    found = attribute(small.build().eval(), photo(24, 24), (4, 4, 4, 4), 2, steps=2)
    assert (found.strength > 0).all(), "the router's weight depends on the mean over the whole image"
    patch = (4, 4, 4, 4)
    found = attribute(upscaler(for_every_scale("lte"), 2, patch), photo(56, 56), patch, 2, steps=2)
    assert (found.strength[50:, 50:] == 0).all() and found.strength[:6, :6].min() > 0


def test_what_comes_through_a_module_is_told_apart() -> None:
    narrow, wide, lr = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 5, padding=2, bias=False), photo(12, 12)
    ask = partial(attribute, lr=lr, patch=(6, 6, 1, 1), scale=1, detector=total, steps=2)

    def both(x: Tensor) -> Tensor:
        return narrow(x) + wide(x)

    with blocked([wide]):
        torch.testing.assert_close(ask(both).values, ask(narrow).values)
    torch.testing.assert_close(ask(both).values, ask(narrow).values + ask(wide).values)
    with pytest.raises(InputError, match="passes no gradient"), blocked([narrow, wide]):
        ask(both)
    assert not narrow._forward_hooks and not wide._forward_hooks


@pytest.mark.parametrize("decoder", ["lte", "liif"])
@pytest.mark.parametrize(("scale", "patch"), [(2.7, (20, 31, 7, 9)), (4, (83, 70, 13, 26)), (1.3, (0, 0, 21, 31))])
def test_a_patch_alone_is_as_in_the_whole_image(decoder: str, scale: float, patch: Box) -> None:
    network, lr = for_every_scale(decoder), photo(24, 24)
    size = (int(24 * scale + 0.5),) * 2
    maps = [
        attribute(upscale, lr, patch, scale, steps=3)
        for upscale in (lambda x: network(x, size=size), upscaler(network, scale, patch))
    ]
    largest = maps[0].values.abs().max().item()
    torch.testing.assert_close(maps[0].values, maps[1].values, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to compare with the CPU")
def test_a_gpu_makes_the_same_map() -> None:
    network, lr, patch = for_every_scale("lte"), photo(19, 26), (14, 20, 8, 6)
    cpu = attribute(upscaler(network, 2, patch), lr, patch, 2)
    gpu = attribute(upscaler(network.cuda(), 2, patch), lr.cuda(), patch, 2)
    torch.testing.assert_close(gpu.values, cpu.values, rtol=1e-2, atol=1e-3 * cpu.values.abs().max().item())


def test_the_detector_sums_gradient_magnitudes() -> None:
    ramp = (3 * torch.arange(8.0)[:, None] + 4 * torch.arange(10.0)).expand(2, 3, 8, 10).clone().requires_grad_()
    torch.testing.assert_close(gradients(ramp, (1, 2, 3, 4)), torch.full((2,), 5.0 * 3 * 3 * 4))
    corner = gradients(ramp, (6, 8, 2, 2))  # beyond the last row and column nothing changes
    torch.testing.assert_close(corner, torch.full((2,), 3 * (5.0 + 3.0 + 4.0 + 0.0)))
    (slope,) = torch.autograd.grad(corner.sum(), ramp)
    assert slope.isfinite().all()


@pytest.mark.parametrize(("strength", "expected"), [([0, 7, 0, 0], 25), ([0.3] * 4, 100), ([1, 2, 3, 4], 75)])
def test_diffusion_index_of_known_maps(strength: list[float], expected: float) -> None:
    found = Attribution(torch.tensor(strength, dtype=torch.float64)[None, None], (0, 0, 1, 1), 1, (0, 1))
    assert found.diffusion_index == pytest.approx(expected)


def test_distance_and_reach_of_a_known_map() -> None:
    values = torch.zeros(3, 9, 9, dtype=torch.float64)
    values[0, 4, 4], values[1, 4, 4], values[2, 4, 7], values[0, 0, 0] = 3, -3, 3, -1
    found = Attribution(values, (16, 16, 4, 4), 4.0, (1.0, 3.0))
    assert found.box == (4, 4, 1, 1) and found.completeness == pytest.approx(1)
    assert found.distances[4, 4] == 0 and found.distances[4, 7] == 2.5
    assert [found.beyond(r) for r in (0, 2.4, 2.5, 100)] == pytest.approx([0.4, 0.4, 0.1, 0.0])
    assert [found.reach(share) for share in (0.6, 0.9, 1.0)] == pytest.approx([0, 2.5, 3.5 * 2**0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": (0, 0, 0, 4)}, "leaves the output of 32 x 32"),
        ({"patch": (30, 0, 4, 4)}, "leaves the output of 32 x 32"),
        ({"scale": 3}, "made .*32, 32.* which isn't x3"),
        ({"lr": torch.zeros(3, 16, 16, dtype=torch.uint8)}, "a float image .*, not torch.uint8"),
        ({"lr": torch.zeros(3, 4, 16), "patch": (0, 0, 1, 1)}, "5x5 or more, not .*4, 16"),
        ({"upscale": lambda x: imresize(x.detach(), scale=2)}, "passes no gradient"),
    ],
    ids=lambda value: "",
)
def test_what_can_not_be_is_refused(change: dict, message: str) -> None:
    given = {"upscale": partial(imresize, scale=2), "lr": photo(16, 16), "patch": (8, 8, 4, 4), "scale": 2} | change
    with pytest.raises(InputError, match=message):
        attribute(**{"steps": 2} | given)


def with_detail(height: int, width: int, *corners: tuple[int, int]) -> Tensor:
    """A black image with squares of noise of 16 pixels, each half as bright as the one before."""
    hr = torch.zeros(3, height, width)
    for i, (top, left) in enumerate(corners):
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i))
        hr[:, top : top + 16, left : left + 16] = noise / 2**i
    return hr


def test_the_busiest_box_holds_the_most_detail() -> None:
    hr = with_detail(200, 300, (100, 200), (20, 40))
    top, left, height, width = busiest(hr, (32, 48), 4)
    assert (height, width) == (32, 48) and top <= 100 <= top + 16 and left <= 200 <= left + 32


def test_a_window_has_the_detail_in_its_middle() -> None:
    hr = with_detail(450, 600, (0, 0), (200, 320), (300, 140))  # the strongest lies too near to the border
    found = window(hr, 4)
    assert found == ((20, 50, 64, 64), (80, 200, 256, 256), (120, 120, 16, 16))
    assert crop(crop(hr, found.hr), found.patch).any()
    at_3 = window(with_detail(194, 194, (91, 91)), 3).hr  # a scale that doesn't divide 16
    assert at_3[0] + at_3[2] <= 194 and at_3[1] + at_3[3] <= 194
    with pytest.raises(InputError, match="a window at x4 needs 256 x 256 pixels"):
        window(hr[:, :255], 4)
