"""Attribution maps are what theory says on networks where it says something, complete elsewhere, and hide nothing."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib import attribution
from srlib.attribution import (
    AtPatch,
    Attribution,
    attribute,
    blocked,
    diffusion_index,
    gini,
    gradients,
    upscaler,
    windows,
)
from srlib.errors import InputError
from srlib.evaluate import AtScale, bicubic
from srlib.models import create
from srlib.models.moeisr import LIIF, LTE, MoEISRConfig
from srlib.models.safmn import SAFMN, SAFMNConfig
from srlib.models.seemore import SeemoRe, SeemoReConfig
from srlib.models.ssiu import SSIU, SSIUConfig
from srlib.resize import imresize

STEPS = 8  # of a path, on the book's pages


def total(sr: Tensor, patch: attribution.Box) -> Tensor:
    """A linear detector: the sum over the patch."""
    top, left, tall, wide = patch
    return sr[:, :, top : top + tall, left : left + wide].sum((1, 2, 3))


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """An image of coarse and fine detail, in [0, 1]."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, stride=1)[0].sigmoid()


def small(name: str) -> nn.Module:
    """A small network with random weights."""
    torch.manual_seed(1)
    moe = MoEISRConfig(decoder="lte", encoder="edsr", depths=(2, 3), hidden=16)
    network = {
        "safmn": lambda: SAFMN(SAFMNConfig(scale=2, blocks=2, channels=16)),
        "seemore": lambda: SeemoRe(SeemoReConfig(scale=2, groups=2, channels=16)),
        "ssiu": lambda: SSIU(SSIUConfig(scale=2, stages=3, channels=16)),
        "lte": lambda: LTE(moe),
        "liif": lambda: LIIF(MoEISRConfig(decoder="liif", encoder="edsr", depths=(2,), hidden=16)),
    }[name]()
    return network.train()


def even(network: nn.Module) -> nn.Module:
    """A network for one scale whose random weights before a pixel shuffle are the same for all pixels made of one.

    By itself nothing else is changed or added. With them drawn one by one the pixels differ for no reason in the image:
    what a detector finds is the pattern of these differences, blurred or not, and shares of a gain of nearly nothing
    say little.
    """
    for conv, after in pairwise(list(network.modules())):
        if isinstance(after, nn.PixelShuffle):
            made = after.upscale_factor**2
            for weights in conv.parameters():
                weights.data = weights.data[::made].repeat_interleave(made, 0)
    return network


class OnBicubic(nn.Module):
    """A network with a picture to begin with, as trained ones have: what random weights make hardly gets sharper."""

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return imresize(x, scale=self.scale) + self.network(x) / 8


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["blur", "straight"])
def test_a_convolution_attributes_exactly_its_kernels_support(path: str) -> None:
    conv, lr = nn.Conv2d(3, 3, 5, padding=2).double(), photo(17, 21).double()
    found = attribute(conv, lr, (8, 9, 1, 1), 1, detector=total, path=path, steps=7)
    blurred = attribution._filtered(lr, attribution._points("straight", 1.2, 9, 1)[:1])[0]
    expected = torch.zeros_like(lr)
    expected[:, 6:11, 7:12] = conv.weight.detach().sum(0) * (lr - blurred)[:, 6:11, 7:12]
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    outside = torch.ones(17, 21, dtype=torch.bool)
    outside[6:11, 7:12] = False
    assert (found.strength[outside] == 0).all() and (found.strength[~outside] > 0).all()
    assert found.completeness == pytest.approx(1, abs=1e-9)


def test_a_linear_network_that_enlarges_is_in_closed_form_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 27, 3, padding=1), nn.PixelShuffle(3))
    lr, patch = photo(9, 8), (12, 9, 4, 5)
    found = attribute(network, lr, patch, 3, detector=total, steps=3)
    probe = lr[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(network(probe), patch).sum(), probe)
    blurred = attribution._filtered(lr, attribution._points("blur", 1.2, 9, 4)[:1])[0]
    torch.testing.assert_close(found.values, slope[0].double() * (lr.double() - blurred), rtol=1e-5, atol=1e-8)
    assert (found.strength > 0).sum() == 4 * 4, "the patch touches two by three LR pixels, the kernel one more around"


def test_bicubic_reaches_four_pixels() -> None:
    lr = photo(20, 20).double()
    found = attribute(partial(imresize, scale=4), lr, (40, 40, 4, 4), 4, detector=total, steps=2)
    touched = (found.strength > 0).nonzero()
    assert touched.min(0).values.tolist() == [8, 8] and touched.max(0).values.tolist() == [12, 12]
    assert found.reach(1.0) < 3 and found.within(3) == pytest.approx(1)


def test_a_square_is_complete_in_one_step() -> None:
    found = attribute(lambda x: x**2, photo(9, 9).double(), (4, 4, 2, 2), 1, detector=total, steps=1, path="straight")
    assert found.completeness == pytest.approx(1, abs=1e-12)


# --- completeness on networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["safmn", "seemore", "ssiu"])
@pytest.mark.parametrize("size", [(24, 24), (19, 26)])
def test_maps_of_networks_are_complete_within_a_percent(name: str, size: tuple[int, int]) -> None:
    """The network by itself, with nothing beside it that would make up for what its map lacks."""
    network, patch = even(small(name)), (14, 20, 8, 6)
    found = attribute(network, photo(*size), patch, 2, steps=STEPS)
    assert found.values.shape == (3, *size) and found.values.dtype == torch.float64
    assert found.found[1] > 1.5 * found.found[0], "there is a gain to be told apart"
    assert found.completeness == pytest.approx(1, abs=0.01)
    assert 0 < found.diffusion_index < 100
    assert found.within(100) == pytest.approx(1)
    assert found.strength.argmax() in found.distances.flatten().argsort()[:150], "it is strongest near the patch"


@pytest.mark.parametrize("name", ["lte", "liif"])
@pytest.mark.parametrize("size", [(24, 24), (19, 26)])
def test_maps_of_networks_for_every_scale_are_complete_within_a_percent(name: str, size: tuple[int, int]) -> None:
    patch = (14, 20, 8, 6)
    found = attribute(AtPatch(small(name), 2, patch), photo(*size), patch, 2, steps=2 * STEPS)
    assert found.values.shape == (3, *size) and found.values.dtype == torch.float64
    assert found.completeness == pytest.approx(1, abs=0.01)
    assert found.strength.argmax() in found.distances.flatten().argsort()[:150], "it is strongest near the patch"


@pytest.mark.parametrize("name", ["safmn", "seemore-t", "ssiu"])
def test_the_released_sizes_are_complete_within_a_percent(name: str) -> None:
    """In twice the steps of the pages: with random weights in so many layers these can miss by a little more."""
    torch.manual_seed(0)
    found = attribute(even(create(name, 4)), photo(32, 32), (56, 60, 16, 16), 4, steps=2 * STEPS)
    assert found.found[1] > 1.5 * found.found[0], "there is a gain to be told apart"
    assert found.completeness == pytest.approx(1, abs=0.01)


def test_more_steps_are_more_complete() -> None:
    network, lr = OnBicubic(small("safmn"), 2), photo(24, 24)
    gaps = [abs(attribute(network, lr, (16, 16, 8, 8), 2, steps=n).completeness - 1) for n in (1, 8, 64)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < 3e-3, gaps


def test_completeness_shows_a_jump() -> None:
    class Switch(nn.Module):
        """Twice the image where it is sharp, the image where it is blurred: a decision that no gradient sees."""

        def forward(self, x: Tensor) -> Tensor:
            sharp = x.diff(dim=-1).abs().mean((1, 2, 3)) > limit
            return torch.where(sharp[:, None, None, None], 2 * x, x)

    lr = photo(16, 16)
    limit = 0.7 * lr.diff(dim=-1).abs().mean()
    assert attribute(Switch(), lr, (4, 4, 8, 8), 1, steps=32).completeness < 0.95


def test_a_routers_weight_is_differentiated_and_its_choice_is_not() -> None:
    torch.manual_seed(0)
    routed = SeemoRe(SeemoReConfig(scale=2, groups=1, channels=16, recursion=1))
    found = attribute(routed, photo(48, 48), (4, 4, 4, 4), 2, steps=4)
    assert (found.strength > 0).all(), "the router's weight rests on the mean over the whole image"
    chosen = small("lte")
    found = attribute(AtPatch(chosen, 2, (4, 4, 4, 4)), photo(96, 96), (4, 4, 4, 4), 2, steps=2)
    assert (found.strength[90:, 90:] == 0).all() and found.strength[:6, :6].min() > 0
    weights = [p for p in chosen.mapper.parameters()]
    probe = photo(24, 24)[None].requires_grad_()
    value = gradients(AtScale(chosen.eval(), 2)(probe), (4, 4, 4, 4)).sum()
    assert all(g is None for g in torch.autograd.grad(value, weights, allow_unused=True))


def test_what_comes_through_a_module_is_told_apart() -> None:
    class Two(nn.Module):
        """A narrow and a wide convolution side by side."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 5, padding=2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(x) + self.wide(x)

    network, lr = Two().double(), photo(12, 12).double()
    ask = partial(attribute, lr=lr, patch=(6, 6, 1, 1), scale=1, detector=total, steps=2)
    whole, narrow, wide = (ask(part).values for part in (network, network.narrow, network.wide))
    with blocked([network.wide]):
        left = ask(network)
    torch.testing.assert_close(left.values, narrow)
    torch.testing.assert_close(whole, narrow + wide)
    assert left.found == ask(network).found and left.completeness != pytest.approx(1)
    with pytest.raises(InputError, match="no gradient"), blocked([network]):
        ask(network)
    assert not network._forward_hooks and not network.wide._forward_hooks


# --- any scale, any batch, any device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lte", "liif"])
@pytest.mark.parametrize(("scale", "patch"), [(2.7, (20, 31, 7, 9)), (4, (83, 70, 13, 26)), (1.3, (0, 0, 21, 31))])
def test_a_patch_alone_is_as_in_the_whole_image(name: str, scale: float, patch: attribution.Box) -> None:
    network, lr = small(name).eval(), photo(24, 24)
    whole, part = AtScale(network, scale), AtPatch(network, scale, patch)
    top, left, tall, wide = patch
    with torch.no_grad():
        one, other = (f(lr[None])[:, :, top : top + tall + 1, left : left + wide + 1] for f in (whole, part))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    maps = [attribute(f, lr, patch, scale, steps=3) for f in (whole, part)]
    torch.testing.assert_close(maps[0].values, maps[1].values, rtol=1e-4, atol=1e-5 * maps[0].values.abs().max().item())


def test_a_network_for_one_scale_needs_no_wrapper() -> None:
    network = small("safmn")
    plain = partial(imresize, scale=2)
    assert upscaler(network, 2, (0, 0, 4, 4)) is network and upscaler(plain, 2, (0, 0, 4, 4)) is plain
    assert isinstance(upscaler(small("lte"), 3.5, (0, 0, 4, 4)), AtPatch)
    with pytest.raises(InputError, match="not positive"):
        AtPatch(small("lte"), 0, (0, 0, 4, 4))
    with pytest.raises(InputError, match="leaves the output of 32 x 32"):
        attribute(AtPatch(small("lte"), 2, (40, 0, 4, 4)), photo(16, 16), (40, 0, 4, 4), 2)


class Counted(nn.Module):
    """A network that notes how many images it is given at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.batches = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.network(x)


@pytest.mark.parametrize("name", ["safmn", "seemore", "ssiu", "lte"])
def test_a_map_is_the_same_for_any_batch_and_memory(name: str) -> None:
    network, lr, patch = upscaler(small(name).double(), 2, (14, 20, 8, 6)), photo(19, 26).double(), (14, 20, 8, 6)
    one = attribute(network, lr, patch, 2, steps=5, batch=1).values
    for options in ({"batch": 2}, {"batch": 64}, {"memory": 5_000_000}, {}):
        found = attribute(network, lr, patch, 2, steps=5, **options).values
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6 * one.abs().max().item())


def test_memory_bounds_what_is_kept_for_gradients() -> None:
    lr, counted = photo(20, 24), Counted(small("safmn"))
    attribute(counted, lr, (10, 10, 8, 8), 2, steps=11, memory=1)
    assert counted.batches == [1] * 11 + [1, 1], "a step at a time, and the two ends"
    with attribution._measured(counted) as kept:
        gradients(counted(lr[None].requires_grad_()), (10, 10, 8, 8))
    of_one = sum(kept.values())
    assert of_one > 20 * 24 * 4 * 16, "more than one map of features is kept"
    counted.batches.clear()
    attribute(counted, lr, (10, 10, 8, 8), 2, steps=11, memory=of_one * 9 // 2)
    assert counted.batches == [1, 4, 4, 2, 1, 1]
    counted.batches.clear()
    attribute(counted, lr, (10, 10, 8, 8), 2, steps=11, batch=5)
    assert counted.batches == [5, 5, 1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: maps are compared with the CPU's on one")
@pytest.mark.parametrize("name", ["safmn", "seemore", "ssiu", "lte"])
def test_a_gpu_makes_the_same_maps(name: str) -> None:
    network, lr, patch = upscaler(small(name), 2, (14, 20, 8, 6)), photo(19, 26), (14, 20, 8, 6)
    cpu = attribute(network, lr, patch, 2, steps=8)
    gpu = attribute(network.cuda(), lr.cuda(), patch, 2, steps=8)
    assert gpu.values.device.type == "cpu"
    torch.testing.assert_close(gpu.values, cpu.values, rtol=1e-2, atol=1e-3 * cpu.values.abs().max().item())
    with torch.autocast("cuda", torch.bfloat16):
        rough = attribute(network, lr.cuda(), patch, 2, steps=8)
    assert rough.diffusion_index == pytest.approx(cpu.diffusion_index, rel=0.2)


def test_half_precision_gives_about_the_same_map() -> None:
    network, lr, patch = small("safmn"), photo(19, 26), (14, 20, 8, 6)
    exact = attribute(OnBicubic(network, 2), lr, patch, 2, steps=8)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attribute(OnBicubic(network, 2), lr, patch, 2, steps=8)
    assert rough.diffusion_index == pytest.approx(exact.diffusion_index, rel=0.05)
    assert not torch.equal(rough.values, exact.values)


# --- what is left as it was, and what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_left_as_it_was(fails: bool) -> None:
    network = small("safmn")
    network.feats[0].eval()
    network.to_feat.weight.requires_grad_(False)
    network.to_feat.bias.grad = torch.ones(16)
    if fails:
        network.to_img[0].bias.data[0] = math.nan
    modes = [module.training for module in network.modules()]
    flags = [one.requires_grad for one in network.parameters()]
    lr = photo(16, 16).requires_grad_()
    if fails:
        with pytest.raises(InputError, match="finite"):
            attribute(network, lr, (8, 8, 8, 8), 2, steps=2)
    else:
        attribute(network, lr, (8, 8, 8, 8), 2, steps=2)
    assert [module.training for module in network.modules()] == modes
    assert [one.requires_grad for one in network.parameters()] == flags
    grads = {name for name, one in network.named_parameters() if one.grad is not None}
    assert grads == {"to_feat.bias"} and (network.to_feat.bias.grad == 1).all() and lr.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_are_made_where_gradients_are_off(mode: type) -> None:
    network = small("safmn")
    expected = attribute(network, photo(16, 16), (8, 8, 8, 8), 2, steps=3)
    with mode():
        found = attribute(network, photo(16, 16), (8, 8, 8, 8), 2, steps=3)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found.values, expected.values)


def test_evaluation_mode_is_used_meanwhile() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)).train()
    one, other = (attribute(network, photo(9, 9), (2, 2, 4, 4), 1, steps=3).values for _ in range(2))
    assert torch.equal(one, other)


def test_what_is_not_finite_is_reported_with_its_step() -> None:
    lr, patch = photo(16, 16), (4, 4, 8, 8)
    sharp = 0.8 * lr.std()

    def breaks(x: Tensor) -> Tensor:
        return x / (x.std((1, 2, 3)) < sharp)[:, None, None, None]

    with pytest.raises(InputError, match=r"output isn't finite at step ([2-9]|1\d) of 20"):
        attribute(breaks, lr, patch, 1, steps=20)
    with pytest.raises(InputError, match=r"gradient isn't finite at step 1 of 5"):
        attribute(lambda x: x, lr, patch, 1, steps=5, detector=lambda sr, box: (sr - sr).abs().sum((1, 2, 3)).sqrt())
    with pytest.raises(InputError, match=r"detector finds isn't finite at step 1 of 5"):
        attribute(lambda x: x, lr, patch, 1, steps=5, detector=lambda sr, box: sr.sum((1, 2, 3)) / 0)
    with pytest.raises(InputError, match="LR image holds values that aren't finite"):
        attribute(lambda x: x, lr / 0, patch, 1)


def test_a_flat_patch_has_a_map_of_zeros_and_no_index() -> None:
    found = attribute(lambda x: x, torch.full((3, 12, 12), 0.5, dtype=torch.float64), (4, 4, 4, 4), 1, steps=3)
    assert found.strength.max() < 1e-12
    flat = Attribution(torch.zeros(3, 4, 4), (0, 0, 2, 2), 1.0, (2.0, 2.0))
    for ask in (lambda: flat.diffusion_index, lambda: flat.peak, flat.reach, flat.area, lambda: flat.within(2)):
        with pytest.raises(InputError, match="0 everywhere"):
            ask()
    with pytest.raises(InputError, match="patch with detail"):
        _ = flat.completeness


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": (0, 0, 0, 4)}, "leaves the output of 32 x 32"),
        ({"patch": (-1, 0, 4, 4)}, "leaves the output"),
        ({"patch": (30, 0, 4, 4)}, "leaves the output"),
        ({"scale": 3}, "made 32 x 32 of 16 x 16, which isn't x3"),
        ({"lr": torch.zeros(3, 16, 16, dtype=torch.uint8)}, "divide 8-bit values by 255"),
        ({"lr": torch.zeros(2, 3, 16, 16)}, "one by one"),
        ({"lr": torch.zeros(1, 16, 16)}, "one image"),
        ({"lr": torch.zeros(3, 0, 16)}, "one image"),
        ({"lr": [1.0]}, "not list"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"memory": -1}, "memory is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"kernel": 4}, "odd number"),
        ({"path": "zigzag"}, "choose blur or straight"),
        ({"upscale": lambda x: x[0]}, r"made \(3, 16, 16\) of \(1, 3, 16, 16\)"),
        ({"upscale": lambda x: None}, "made NoneType"),
        ({"upscale": bicubic(2)}, "rounds to 8 bits"),
        ({"upscale": lambda x: torch.zeros(1, 3, 32, 32)}, "no gradient comes through"),
        ({"detector": lambda sr, box: sr.sum()}, "a number for each"),
        ({"detector": lambda sr, box: 1.0}, "returned float"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    given = {"upscale": small("safmn"), "lr": photo(16, 16), "patch": (8, 8, 4, 4), "scale": 2} | change
    with pytest.raises(InputError, match=message):
        attribute(**{"steps": 2} | given)


# --- detector, path and indices ---------------------------------------------------------------------------------------


def test_the_detector_sums_gradient_magnitudes() -> None:
    ramp = (3 * torch.arange(8.0)[:, None] + 4 * torch.arange(10.0)).expand(2, 3, 8, 10).clone().requires_grad_()
    found = gradients(ramp, (1, 2, 3, 4))
    torch.testing.assert_close(found, torch.full((2,), 5.0 * 3 * 3 * 4))
    corner = gradients(ramp, (6, 8, 2, 2))  # beyond the last row and column nothing changes
    torch.testing.assert_close(corner, torch.full((2,), 3 * (5.0 + 3.0 + 4.0 + 0.0)))
    (slope,) = torch.autograd.grad(corner.sum(), ramp)
    assert slope.isfinite().all()


def test_the_path_leads_from_the_blurred_image_to_the_image_in_growing_steps() -> None:
    for path in ("blur", "straight"):
        points = attribution._points(path, 1.2, 9, 16)
        assert points.shape == (17, 9, 9)
        torch.testing.assert_close(points.sum((1, 2)), torch.ones(17, dtype=torch.float64))
        identity = torch.zeros(9, 9, dtype=torch.float64)
        identity[4, 4] = 1
        assert torch.equal(points[-1], identity)
        place = torch.arange(-4, 5, dtype=torch.float64)
        blur = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.2**2))
        torch.testing.assert_close(points[0], blur / blur.sum())
        moved = F.pad(points.diff(dim=0).flatten(1).norm(dim=1).cumsum(0), (1, 0))
        expected = torch.linspace(0, 1, 17, dtype=torch.float64) ** attribution.GROWTH
        torch.testing.assert_close(moved / moved[-1], expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (20, 30)])
def test_blurring_mirrors_at_the_border(size: tuple[int, int]) -> None:
    image, kernels = photo(32, 32)[:, : size[0], : size[1]].double(), attribution._points("blur", 1.2, 9, 3)
    found = attribution._filtered(image, kernels)
    assert found.shape == (4, 3, *size)
    torch.testing.assert_close(found[-1], image)
    if min(size) > 4:
        padded = F.pad(image[None], (4, 4, 4, 4), mode="reflect")[0][:, None]
        expected = F.conv2d(padded, kernels[:1, None])[:, 0]
        torch.testing.assert_close(found[0], expected)
    flat = attribution._filtered(torch.full((3, *size), 0.25), kernels)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))


def test_gini_and_diffusion_index_of_known_maps() -> None:
    one = torch.zeros(5, 8)
    one[2, 3] = 7
    assert gini(one) == pytest.approx(39 / 40) and diffusion_index(one) == pytest.approx(100 / 40)
    assert gini(torch.full((6, 6), 0.3)) == pytest.approx(0) and diffusion_index(torch.ones(9)) == pytest.approx(100)
    values = torch.rand(50, dtype=torch.float64)
    mean_difference = (values[:, None] - values[None]).abs().mean() / (2 * values.mean())
    assert gini(values) == pytest.approx(mean_difference.item())
    assert gini(values) == pytest.approx(gini(1000 * values.flip(0).view(5, 10)))
    assert diffusion_index(torch.tensor([1, 2, 3, 4])) == pytest.approx(75)
    for wrong in (torch.zeros(4), torch.tensor([]), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan])):
        with pytest.raises(InputError):
            diffusion_index(wrong)


def test_distance_reach_and_area_of_a_known_map() -> None:
    values = torch.zeros(3, 9, 9)
    values[0, 4, 4], values[1, 4, 4], values[2, 4, 7], values[0, 0, 0] = 3, -3, 3, -1
    found = Attribution(values, (16, 16, 4, 4), 4.0, (1.0, 3.0))
    assert found.box == (4, 4, 1, 1) and found.completeness == pytest.approx(1)
    assert found.distances[4, 4] == 0 and found.distances[4, 7] == 2.5
    assert found.distances[0, 0].item() == pytest.approx(3.5 * 2**0.5)
    assert [found.within(r) for r in (0, 2.4, 2.5, 100)] == pytest.approx([0.6, 0.6, 0.9, 1.0])
    assert [found.beyond(r) for r in (0, 2.4, 2.5, 100)] == pytest.approx([0.4, 0.4, 0.1, 0.0])
    assert found.reach(0.6) == 0 and found.reach(0.9) == 2.5 and found.reach(1.0) == pytest.approx(3.5 * 2**0.5)
    assert [found.area(share) for share in (0.5, 0.6, 0.9, 0.95, 1.0)] == [1, 1, 2, 3, 3]
    assert found.peak == pytest.approx(0.6)
    for ask in (found.reach, found.area):
        with pytest.raises(InputError, match="share"):
            ask(1.5)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_where_the_detail_is_and_lie_apart() -> None:
    hr = torch.zeros(3, 300, 450, dtype=torch.uint8)
    noise = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hr[:, 100:116, 200:216], hr[:, 0:16, 0:16], hr[:, 284:300, 432:448] = noise, noise // 2, noise // 4
    found = windows(hr, 4, count=3, margin=0)
    assert [(w.place[0], w.place[1]) for w in found] == [(100, 200), (0, 0), (284, 432)]
    middle, corner, end = found
    assert middle.corner == (0, 20) and middle.patch == (100, 120, 16, 16), "in the middle but for the top border"
    assert corner.corner == (0, 0) and corner.patch == (0, 0, 16, 16)
    assert end.corner == (75 - 64, 112 - 64)
    for w in found:
        cut = w.cut(hr, 4)
        assert cut.shape == (3, 256, 256) and w.cut(hr[:, ::4, ::4]).shape == (3, 64, 64)
        top, left, tall, wide = w.patch
        top_, left_, *_ = w.place
        assert torch.equal(cut[:, top : top + tall, left : left + wide], hr[:, top_ : top_ + 16, left_ : left_ + 16])
        assert torch.equal(w.inside(cut), cut[:, top : top + tall, left : left + wide])


def test_windows_keep_off_the_border() -> None:
    hr = torch.rand(3, 300, 450, generator=torch.Generator().manual_seed(0))
    hr[:, :30] *= 5
    found = windows(hr, 4, count=8)
    assert all(32 <= w.place[0] <= 300 - 48 and 32 <= w.place[1] <= 448 - 48 for w in found)
    assert any(w.place[0] < 32 for w in windows(hr, 4, count=8, margin=0))


def test_windows_need_room() -> None:
    with pytest.raises(InputError, match="no patch of 16 in 256 x 256"):
        windows(torch.zeros(3, 255, 400), 4)
    with pytest.raises(InputError, match="no room for 30 patches"):
        windows(torch.rand(3, 256, 256), 4, count=30)
    with pytest.raises(InputError, match="smaller patch"):
        windows(torch.rand(3, 300, 300), 4, patch=257)
