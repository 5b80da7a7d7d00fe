"""Real-ESRGAN's degradation: each step is what it says, draws have the stated odds, and a batch is a pure function."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from torch import Tensor

from srlib import degradation
from srlib.degradation import FIRST, SIZES, Round, degrade
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


def test_a_gaussian_kernel_has_the_widths_and_the_angle_it_is_asked_for() -> None:
    sigma_x, sigma_y, angle = 2.0, 1.0, 0.6
    values = degradation.kernel(41, sigma_x, sigma_y, angle).double()
    place = torch.arange(41, dtype=torch.float64) - 20
    points = torch.stack([place.repeat(41), place.repeat_interleave(41)])  # x and y
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    expected = turn @ torch.tensor([sigma_x**2, sigma_y**2], dtype=torch.float64).diag() @ turn.T
    assert torch.allclose(values.flatten() * points @ points.T, expected, atol=1e-4)


def test_shapes_differ_as_their_formulas_do() -> None:
    for plateau, beta, at in ((False, 3.0, lambda q: math.exp(-0.5 * q**3)), (True, 2.0, lambda q: 1 / (1 + q**2))):
        values = degradation.kernel(21, 2, 2, beta=beta, plateau=plateau)
        for distance in (1, 2, 3):
            assert values[10, 10 + distance] / values[10, 10] == pytest.approx(at(distance**2 / 4), rel=1e-4)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_sinc_kernel_is_a_low_pass(cutoff: float) -> None:
    """Half of the cutoff passes, one and a half times it does not; the window makes the edge soft."""
    taps = degradation.sinc_kernel(21, cutoff).double().sum(0)
    response = [(taps * torch.cos(w * (torch.arange(21) - 10.0).double())).sum() for w in (0.5 * cutoff, 1.5 * cutoff)]
    assert abs(response[0] - 1) < 0.12 and abs(response[1]) < 0.12


def test_random_kernels_sum_to_one_and_keep_the_odds() -> None:
    odds, generator = Counter(), draw()
    for _ in range(2000):
        values = degradation.random_kernel(FIRST, generator)
        assert abs(values.double().sum() - 1) < 1e-5
        odds["size", len(values)] += 1
        odds["negative"] += bool(values.min() < -1e-6)  # only sinc kernels are
        odds["turned"] += not torch.allclose(values, values.T, atol=1e-7)
    assert all(abs(odds["size", size] / 2000 - 1 / 8) < 0.04 for size in SIZES)
    assert abs(odds["negative"] / 2000 - 0.1) < 0.03
    assert abs(odds["turned"] / 2000 - 0.9 * 0.31) < 0.05


def test_blur_is_a_convolution_with_mirrored_borders() -> None:
    image, taps = picture(30, 33), degradation.kernel(21, 3, 1, 0.5)
    expected = np.stack([convolve(plane, taps.numpy(), mode="mirror") for plane in image.numpy()])
    assert np.abs(degradation.blur(image, taps).numpy() - expected).max() < 1e-5
    one = torch.full((3, 1, 2), 0.25)
    assert torch.allclose(degradation.blur(one, taps), one)


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_grows_with_the_light(grey: bool) -> None:
    """Of 200 levels a white pixel counts 256 photons: the variance at level v is v / 256."""
    levels = torch.arange(0, 200).repeat(2000, 1) / 255
    noise = degradation.poisson_noise(levels.expand(3, 2000, 200), grey, draw())  # (1 or 3, 2000, 200)
    assert len(noise) == (1 if grey else 3)
    variance = noise.double().var(1).mean(0)
    assert torch.allclose(variance[20:], levels[0, 20:].double() / 256, rtol=0.15)
    assert noise[:, :, 0].abs().max() == 0 and abs(noise.mean()) < 1e-4


def test_with_nothing_drawn_what_is_left_is_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Round(blur=0, resize=(0, 0, 1), gaussian=1, gaussian_sigma=(0, 0), grey=0, jpeg=(100, 100))
    for name, value in {"FIRST": silent, "SECOND": silent, "MODES": ("area",), "FINAL_SINC": 0}.items():
        monkeypatch.setattr(degradation, name, value)
    hr = batch(2).mean(1, keepdim=True).expand(2, 3, 48, 60)  # JPEG halves the resolution of colours
    expected = torch.nn.functional.avg_pool2d(hr, 4)
    assert (degrade(hr, 4) - expected).abs().mean() < 0.01  # twice JPEG at its best


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("patch", [1, 5, 13])
def test_sizes_range_and_eight_bits(scale: int, patch: int) -> None:
    for seed in range(6):
        lr = degrade(batch(2, scale * patch, scale * (patch + 2)), scale, seed)
        assert lr.shape == (2, 3, patch, patch + 2) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        assert torch.equal(lr, (lr * 255).round() / 255)


def test_an_image_is_decided_by_seed_step_and_index_alone() -> None:
    hr = batch(5).requires_grad_()
    whole = degrade(hr, 4, seed=3, step=7)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    assert torch.equal(degrade(hr, 4, seed=3, step=7), whole) and not whole.requires_grad
    assert torch.equal(degrade(hr[:2], 4, seed=3, step=7), whole[:2])
    assert torch.equal(degrade(hr[3:], 4, seed=3, step=7, index=3), whole[3:])
    assert torch.equal(torch.get_rng_state(), state)
    for seed, step, index in ((4, 7, 0), (3, 8, 0), (3, 7, 1), (7, 3, 0)):
        assert not torch.equal(degrade(hr, 4, seed, step, index), whole)


def test_the_draws_are_fixed_for_good() -> None:
    """The stream is part of what a seed means: a change would make recorded runs impossible to repeat."""
    found = degradation.random_kernel(FIRST, draw(1))
    assert found.shape == (13, 13) and found[6, 6].item() == pytest.approx(0.0204038, abs=1e-6)
    levels = torch.arange(3 * 32 * 40).reshape(1, 3, 32, 40) % 251
    made = [255 * degrade(levels / 255, 4, seed=1, step=2, index=index) for index in range(16)]
    assert made[3][0, 0, 0, :4].tolist() == pytest.approx([87, 97, 110, 119], abs=3)
    spread = [25.2, 6.7, 10.8, 18.1, 6.6, 18.5, 11.5, 33.2, 10.3, 18.9, 5.4, 19.9, 31.1, 16.8, 11.9, 9.6]
    assert [lr.std().item() for lr in made] == pytest.approx(spread, abs=0.3)  # libjpegs differ a little


def test_sides_are_multiples_of_the_scale() -> None:
    with pytest.raises(InputError, match="no multiples of scale 4; crop"):
        degrade(batch(1, 50, 60), 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_images() -> None:
    hr = batch(4)
    lr = degrade(hr.cuda(), 4, 1)
    assert lr.device.type == "cuda" and torch.equal(lr.cpu(), degrade(hr, 4, 1))
