"""Real-ESRGAN's degradation: each step is what it says, draws have the stated odds, and a batch is a pure function."""

import io
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve
from torch import Tensor

from srlib import degradation
from srlib.degradation import Kind, RealEsrgan, Round, degrade
from srlib.errors import InputError


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int = 48, width: int = 60, seed: int = 0) -> Tensor:
    """(3, H, W) with smooth and rough parts, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.linspace(0.2, 0.8, width).expand(3, height, width)
    return (smooth + 0.1 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


def batch(count: int, height: int = 48, width: int = 60) -> Tensor:
    return torch.stack([picture(height, width, seed) for seed in range(count)])


# --- settings -------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_release() -> None:
    settings = RealEsrgan()
    assert settings.sizes == (7, 9, 11, 13, 15, 17, 19, 21)
    assert [kind.probability for kind in settings.kinds] == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    assert (settings.final_sinc, settings.sinc_first, settings.modes) == (0.8, 0.5, ("area", "bilinear", "bicubic"))
    shared = {"sinc": 0.1, "gaussian": 0.5, "grey": 0.4, "jpeg": (30, 95), "generalised_beta": (0.5, 4)}
    first = {"blur": 1, "sigma": (0.2, 3), "resize": (0.2, 0.7, 0.1), "resize_range": (0.15, 1.5)}
    second = {"blur": 0.8, "sigma": (0.2, 1.5), "resize": (0.3, 0.4, 0.3), "resize_range": (0.3, 1.2)}
    first |= {"gaussian_sigma": (1, 30), "poisson_scale": (0.05, 3), "plateau_beta": (1, 2)}
    second |= {"gaussian_sigma": (1, 25), "poisson_scale": (0.05, 2.5), "plateau_beta": (1, 2)}
    for a_round, printed in ((settings.first, first), (settings.second, second)):
        assert {name: getattr(a_round, name) for name in shared | printed} == shared | printed
    with pytest.raises(FrozenInstanceError):
        settings.final_sinc = 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Round(blur=1.5), "blur 1.5 is not a probability; give a number from 0 to 1"),
        (lambda: Round(resize=(0.5, 0.5, 0.5)), "resize .* whose sum is 1"),
        (lambda: Round(sigma=(0.0, 1.0)), "sigma .* is not a range"),
        (lambda: Round(gaussian_sigma=(5.0, 1.0)), "gaussian_sigma .* is not a range"),
        (lambda: Round(resize_range=(0.2, 0.9)), "resize_range .* leaves out 1"),
        (lambda: Round(jpeg=(30, 101)), "jpeg .* from 1 to 100"),
        (lambda: RealEsrgan(sizes=(7, 8)), "sizes .* give odd numbers"),
        (lambda: RealEsrgan(sizes=(7.0,)), "sizes .* give odd numbers"),
        (lambda: RealEsrgan(modes=("nearest",)), "modes .* use area, bilinear and bicubic"),
        (lambda: RealEsrgan(kinds=(Kind("gaussian", True, 0.5),)), "kinds .* whose sum is 1"),
        (lambda: RealEsrgan(final_sinc=-0.1), "final_sinc -0.1 is not a probability"),
    ],
)
def test_settings_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- kernels --------------------------------------------------------------------------------------


def test_a_gaussian_kernel_has_the_widths_and_the_angle_it_is_asked_for() -> None:
    sigma_x, sigma_y, angle = 2.0, 1.0, 0.6
    values = degradation.kernel(41, sigma_x, sigma_y, angle).double()
    y, x = torch.meshgrid(*[torch.arange(41.0, dtype=torch.float64) - 20] * 2, indexing="ij")
    found = torch.stack([(values * a * b).sum() for a, b in ((x, x), (x, y), (y, y))])
    cos, sin = math.cos(angle), math.sin(angle)
    expected = torch.tensor(
        [
            (sigma_x * cos) ** 2 + (sigma_y * sin) ** 2,
            (sigma_x**2 - sigma_y**2) * sin * cos,
            (sigma_x * sin) ** 2 + (sigma_y * cos) ** 2,
        ]
    ).double()
    assert torch.allclose(found, expected, atol=1e-4)


def test_shapes_differ_as_their_formulas_do() -> None:
    gaussian = degradation.kernel(21, 2, 2)
    assert torch.equal(degradation.kernel(21, 2, 2, shape="generalised", beta=1.0), gaussian)
    for shape, beta, at in (
        ("generalised", 3.0, lambda q: math.exp(-0.5 * q**3)),
        ("plateau", 2.0, lambda q: 1 / (1 + q**2)),
    ):
        values = degradation.kernel(21, 2, 2, shape=shape, beta=beta)
        for distance in (1, 2, 3):
            assert values[10, 10 + distance] / values[10, 10] == pytest.approx(at(distance**2 / 4), rel=1e-4)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_sinc_kernel_is_a_low_pass(cutoff: float) -> None:
    """Half of the cutoff passes, one and a half times it does not; the window makes the edge soft."""
    taps = degradation.sinc_kernel(21, cutoff).double().sum(0)
    response = [(taps * torch.cos(w * (torch.arange(21) - 10.0).double())).sum() for w in (0.5 * cutoff, 1.5 * cutoff)]
    assert abs(response[0] - 1) < 0.12 and abs(response[1]) < 0.12


def test_random_kernels_sum_to_one_and_keep_the_odds() -> None:
    settings, odds, generator = RealEsrgan(), Counter(), draw()
    for _ in range(2000):
        values = degradation.random_kernel(settings.first, generator, settings.sizes, settings.kinds)
        assert abs(values.double().sum() - 1) < 1e-5
        odds["size", len(values)] += 1
        odds["negative"] += bool(values.min() < -1e-6)  # only sinc kernels are
        odds["turned"] += not torch.allclose(values, values.T, atol=1e-7)
    assert all(abs(odds["size", size] / 2000 - 1 / 8) < 0.04 for size in settings.sizes)
    assert abs(odds["negative"] / 2000 - 0.1) < 0.03
    assert abs(odds["turned"] / 2000 - 0.9 * 0.31) < 0.05


def test_blur_is_a_convolution_with_mirrored_borders() -> None:
    image, taps = picture(30, 33), degradation.kernel(21, 3, 1, 0.5)
    expected = np.stack([convolve(plane, taps.numpy(), mode="mirror") for plane in image.numpy()])
    assert np.abs(degradation.blur(image, taps).numpy() - expected).max() < 1e-5
    one = torch.full((3, 1, 2), 0.25)
    assert torch.allclose(degradation.blur(one, taps), one)


# --- noise, JPEG, sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_deviation(grey: bool) -> None:
    noise = degradation.gaussian_noise(picture(200, 200), 12.0, grey, draw())
    assert noise.shape == (1 if grey else 3, 200, 200)
    assert abs(noise.std() * 255 - 12) < 0.2 and abs(noise.mean()) * 255 < 0.2


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_grows_with_the_light(grey: bool) -> None:
    """Of 200 levels a white pixel counts 256 photons: the variance at level v is v / 256."""
    levels = torch.arange(0, 200).repeat(2000, 1) / 255
    noise = degradation.poisson_noise(levels.expand(3, 2000, 200), grey, draw())  # (1 or 3, 2000, 200)
    assert len(noise) == (1 if grey else 3)
    variance = noise.double().var(1).mean(0)
    assert torch.allclose(variance[20:], levels[0, 20:].double() / 256, rtol=0.15)
    assert noise[:, :, 0].abs().max() == 0 and abs(noise.mean()) < 1e-4


def test_jpeg_is_pillows() -> None:
    image = (picture(33, 47) * 255).round() / 255
    file = io.BytesIO()
    pixels = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=40, subsampling=2)
    expected = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 255
    assert np.array_equal(degradation.jpeg(image, 40).numpy(), expected)


def nothing_but(**changes: object) -> RealEsrgan:
    """Settings that change an image as little as they can: no blur, no resizing, next to no noise."""
    silent = Round(
        blur=0, resize=(0, 0, 1), gaussian=1, gaussian_sigma=(0, 0), grey=0, jpeg=(100, 100), **changes
    )  # fmt: skip
    return RealEsrgan(first=silent, second=silent, modes=("area",), final_sinc=0)


def test_with_nothing_drawn_what_is_left_is_resizing() -> None:
    hr = batch(2).mean(1, keepdim=True).expand(2, 3, 48, 60)  # JPEG halves the resolution of colours
    lr = degrade(hr, 4, settings=nothing_but())
    expected = torch.nn.functional.avg_pool2d(hr, 4)
    assert (lr - expected).abs().mean() < 0.01  # twice JPEG at its best


def test_sizes_are_drawn_as_stated() -> None:
    factors = np.array([degradation._factor(Round(), generator) for generator in map(draw, range(3000))])
    assert factors.min() > 0.15 and factors.max() < 1.5
    for found, stated in zip(
        [(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()], Round().resize, strict=True
    ):
        assert abs(found - stated) < 0.03


# --- the whole of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("patch", [1, 5, 13])
def test_sizes_range_and_eight_bits(scale: int, patch: int) -> None:
    for seed in range(6):
        lr = degrade(batch(2, scale * patch, scale * (patch + 2)), scale, seed)
        assert lr.shape == (2, 3, patch, patch + 2) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        assert torch.equal(lr, (lr * 255).round() / 255)


def test_numpys_whole_numbers_and_small_overshoots_are_taken() -> None:
    hr = 1.2 * batch(2) - 0.1
    assert torch.equal(degrade(hr, 4, np.int64(3), np.uint8(7), np.int32(1)), degrade(hr, 4, 3, 7, 1))


def test_an_image_is_decided_by_seed_step_and_index_alone() -> None:
    hr = batch(5)
    whole = degrade(hr, 4, seed=3, step=7)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    assert torch.equal(degrade(hr, 4, seed=3, step=7), whole)
    assert torch.equal(degrade(hr[:2], 4, seed=3, step=7), whole[:2])
    assert torch.equal(degrade(hr[3:], 4, seed=3, step=7, index=3), whole[3:])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (
        {"seed": 4, "step": 7},
        {"seed": 3, "step": 8},
        {"seed": 3, "step": 7, "index": 1},
        {"seed": 7, "step": 3},
    ):
        assert not torch.equal(degrade(hr, 4, **other), whole)
    same = degrade(hr[:1].expand(5, 3, 48, 60), 4)
    assert all(not torch.equal(same[0], image) for image in same[1:])


def test_the_number_of_threads_changes_nothing_and_stays() -> None:
    hr, threads = batch(3), torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(degrade(hr, 2, 5))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_calls_at_the_same_time_leave_the_number_of_threads_alone() -> None:
    """Nor do they change what a thread starts with that is begun while they run or after them."""
    hr, threads, seen = batch(4), torch.get_num_threads(), []
    degradation._workers.cache_clear()

    def call() -> None:
        for step in range(5):
            degrade(hr, 2, step=step)
            seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        callers = [Thread(target=call) for _ in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        last = Thread(target=call)
        last.start()
        last.join()
        assert torch.get_num_threads() == 3 and set(seen) == {3} and len(seen) == 35
        degrade(hr, 2)
        in_workers = degradation._workers(os.getpid()).map(lambda _: torch.get_num_threads(), range(20))
        assert set(in_workers) == {1}
    finally:
        torch.set_num_threads(threads)


def test_a_fork_degrades_as_its_parent() -> None:
    hr = batch(3)
    lr = degrade(hr, 2)
    read, write = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: write.send(torch.equal(degrade(hr, 2), lr)))
    child.start()
    try:
        assert read.poll(60) and read.recv()
    finally:
        child.kill()
        child.join()


def test_the_draws_are_fixed_for_good() -> None:
    """The stream is part of what a seed means: a change would make old runs impossible to repeat."""
    assert degradation._generator(1, 2, 3).random(2).tolist() == [0.06344102965932141, 0.707504754819708]


def test_the_hr_images_are_left_alone_and_carry_no_gradient() -> None:
    hr = batch(2).requires_grad_()
    before = hr.detach().clone()
    assert not degrade(hr, 2).requires_grad and torch.equal(hr.detach(), before)


def test_degraded_images_look_worse_than_reduced_ones() -> None:
    hr = batch(8, 96, 96)
    reduced = torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
    assert (degrade(hr, 4) - reduced).abs().mean(dim=(1, 2, 3)).min() > 0.01


def test_grey_noise_leaves_colours_alone() -> None:
    grey = replace(Round(), blur=0.0, resize=(0.0, 0.0, 1.0), grey=1.0, gaussian=1.0, gaussian_sigma=(10.0, 10.0))
    image = torch.full((3, 64, 64), 0.5)
    noisy = degradation._random_noise(image, grey, draw())
    assert torch.equal(noisy[0], noisy[1]) and torch.equal(noisy[0], noisy[2]) and noisy.std() > 0.03


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: degrade(batch(1), 0), "scale 0 is not possible"),
        (lambda: degrade(batch(1), 2.0), "scale 2.0 is not possible"),
        (lambda: degrade(picture(), 4), r"takes float images \(B, 3, H, W\)"),
        (lambda: degrade(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4), "not torch.uint8 of shape"),
        (lambda: degrade(batch(1, 50, 60), 4), "60x50 pixels are no multiple of the scale 4; crop"),
        (lambda: degrade(batch(1), 4, seed=-1), "seed -1 is out of range"),
        (lambda: degrade(batch(1), 4, step=2**63), "step .* is out of range"),
        (lambda: degrade(batch(1), 4, index=-1), "index -1 is out of range"),
        (lambda: degrade(batch(1), 4, seed=1.7), "seed 1.7 is out of range: give a whole number"),
        (lambda: degrade(batch(1), 4, step=True), "step True is out of range: give a whole number"),
        (lambda: degrade(255 * batch(1), 4), "values go from 0 to 255; .*: divide 8-bit values by 255"),
        (lambda: degrade(batch(1) - 2, 4), "values go from -2 to -1; "),
        (lambda: degrade(batch(1) * math.nan, 4), "NaN or infinite"),
        (lambda: degrade(batch(1).log() + math.inf, 4), "NaN or infinite"),
        (lambda: degradation.kernel(7, 0, 1), "sigma_x 0 does not make a kernel"),
        (lambda: degradation.kernel(7, 1, math.nan), "sigma_y nan does not make a kernel"),
        (lambda: degradation.kernel(7, 1, 1, math.inf), "angle inf does not make a kernel"),
        (lambda: degradation.kernel(7, 1, 1, shape="plateau", beta=0), "beta 0 does not make a kernel"),
        (lambda: degradation.kernel(7, 1, 1, shape="box"), "no kernel of shape 'box'; choose one of: gaussian, "),
        (lambda: degradation.kernel(8, 1, 1), "size 8 does not make a kernel; give an odd number"),
        (lambda: degradation.sinc_kernel(8, 1.0), "size 8 does not make a kernel; give an odd number"),
        (lambda: degradation.sinc_kernel(7, 0.0), "cutoff 0.0 does not make a kernel"),
        (lambda: degradation.jpeg(picture(), 300), "JPEG has no quality 300; give a whole number from 1 to 100"),
        (lambda: degradation.jpeg(picture(), 50.5), "JPEG has no quality 50.5"),
    ],
)
def test_what_the_degradation_refuses(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_images() -> None:
    hr = batch(4)
    lr = degrade(hr.cuda(), 4, 1)
    assert lr.device.type == "cuda" and torch.equal(lr.cpu(), degrade(hr, 4, 1))
