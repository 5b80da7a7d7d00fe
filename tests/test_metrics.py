"""Protocols: each choice does what it says, SSIM is scikit-image's, and known numbers come out."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from srlib.data import Store
from srlib.errors import InputError
from srlib.metrics import LIIF_LUMA, MATLAB, Protocol, psnr, ssim
from srlib.resize import imresize

PLAIN = Protocol("plain", "all channels as they are", channel="rgb", border_per_scale=0, clamp=False, round_image=False)
BASICSR = Protocol("basicsr", "luma not rounded")
LIIF = Protocol("liif", "luma over 256", luma=LIIF_LUMA, luma_gain=255 / 256, round_image=False)
SSIU = replace(
    BASICSR, name="ssiu", luma_offset=16.0 * 255, clamp=False, round_image=False, ssim_precision="float32", means="up"
)
PROTOCOLS = pytest.mark.parametrize("protocol", [PLAIN, MATLAB, BASICSR, LIIF, SSIU], ids=lambda one: one.name)


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image of smooth and noisy parts, and a disturbed copy, uint8."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 200, shape[-1]).expand(shape)
    hr = ramp + 50 * torch.rand(shape, generator=generator)
    sr = hr + 20 * torch.randn(shape, generator=generator)
    return sr.clamp(0, 255).to(torch.uint8), hr.clamp(0, 255).to(torch.uint8)


def skimage_ssim(one: Tensor, other: Tensor) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return structural_similarity(one.double().numpy(), other.double().numpy(), **options)


@pytest.mark.parametrize("size", [(11, 11), (23, 40), (64, 31)])
def test_ssim_is_scikit_images(size: tuple[int, int]) -> None:
    sr, hr = pair(3, *size)
    expected = np.mean([skimage_ssim(one, other) for one, other in zip(sr, hr, strict=True)])
    assert abs(ssim(sr, hr, PLAIN, 1).item() - expected) < 1e-12


def test_ssim_on_luma_is_scikit_images() -> None:
    sr, hr = pair(3, 40, 50)
    planes = [(torch.tensor([65.481, 128.553, 24.966]).double() @ x.flatten(1).double() / 255 + 16) for x in (sr, hr)]
    planes = [plane.view(40, 50)[2:-2, 2:-2] for plane in planes]
    assert abs(ssim(sr, hr, BASICSR, 2).item() - skimage_ssim(*planes)) < 1e-8
    rounded = [torch.floor(plane + 0.5) for plane in planes]
    assert abs(ssim(sr, hr, MATLAB, 2).item() - skimage_ssim(*rounded)) < 1e-8


def test_psnr_by_hand() -> None:
    hr = torch.zeros(3, 4, 4, dtype=torch.uint8)
    sr = hr.clone()
    sr[0, 1, 1] = 255  # one of 48 values is wrong by the whole range
    assert psnr(sr, hr, PLAIN, 1).item() == pytest.approx(10 * math.log10(48))
    assert psnr(sr, hr, BASICSR, 1).item() == pytest.approx(10 * math.log10(4 * 255**2 / 65.481**2))
    assert psnr(sr, hr, MATLAB, 1).item() == pytest.approx(10 * math.log10(4 * 255**2 / 65**2))
    assert psnr(sr, hr, LIIF, 1).item() == pytest.approx(10 * math.log10(4 * 256**2 / 65.738**2))


@PROTOCOLS
def test_a_batch_is_its_images_in_float64_and_equal_images_are_infinitely_good(protocol: Protocol) -> None:
    sr, hr = pair(3, 3, 40, 36)
    for metric in (psnr, ssim):
        together = metric(sr, hr, protocol, 2)
        assert together.shape == (3,) and together.dtype == torch.float64
        alone = torch.cat([metric(one, other, protocol, 2) for one, other in zip(sr, hr, strict=True)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(psnr(sr.float() / 255, hr, protocol, 2), psnr(sr, hr, protocol, 2), rtol=0, atol=1e-4)
    assert psnr(hr, hr, protocol, 2).tolist() == [math.inf] * 3
    assert ssim(hr, hr, protocol, 2).tolist() == pytest.approx([1.0] * 3, abs=1e-3 if protocol == SSIU else 1e-12)


def test_rounding_and_clamping_are_choices() -> None:
    hr = torch.full((3, 8, 8), 0.5, dtype=torch.float64) * 254 / 255  # 127 of 255
    near = hr + 0.4 / 255
    assert psnr(near, hr, PLAIN, 1).item() == pytest.approx(20 * math.log10(255 / 0.4))
    assert psnr(near, hr, replace(PLAIN, round_image=True), 1).item() == math.inf
    white, over = torch.ones(3, 8, 8), torch.full((3, 8, 8), 1.1)
    assert psnr(over, white, PLAIN, 1).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(over, white, replace(PLAIN, clamp=True), 1).item() == math.inf


def test_borders() -> None:
    narrower = replace(BASICSR, border_at=((4, 3),))
    assert [BASICSR.border(scale) for scale in (2, 2.5, 4)] == [2, 3, 4]
    assert [narrower.border(scale) for scale in (2, 3, 4)] == [2, 3, 3]
    assert [replace(LIIF, border_extra=6).border(scale) for scale in (2, 30)] == [8, 36]
    hr = torch.zeros(3, 20, 20, dtype=torch.uint8)
    sr = hr.clone()
    sr[:, 3, :] = 255
    assert psnr(sr, hr, BASICSR, 4).item() == math.inf and psnr(sr, hr, narrower, 4).item() < 60


def test_a_misplaced_offset_moves_ssim_but_not_psnr() -> None:
    sr, hr = pair(3, 48, 48)
    sr = (sr.float() * 0.9).to(torch.uint8)  # darker: the luminance term is what notices
    right = replace(SSIU, luma_offset=16.0)
    torch.testing.assert_close(psnr(sr, hr, SSIU, 2), psnr(sr, hr, right, 2))
    assert ssim(sr, hr, SSIU, 2) > ssim(sr, hr, right, 2) + 0.001


def test_names_and_printing_have_no_part_in_the_arithmetic() -> None:
    assert (SSIU.printed(28.431, 2), SSIU.printed(0.81151, 4), BASICSR.printed(28.431, 2)) == (28.44, 0.8116, 28.43)
    assert BASICSR.same_arithmetic(replace(BASICSR, name="other", about="", means="up"))
    assert not BASICSR.same_arithmetic(MATLAB) and BASICSR == replace(BASICSR, about="more is known")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@PROTOCOLS
def test_cuda_equals_cpu(protocol: Protocol) -> None:
    sr, hr = pair(2, 3, 64, 48)
    for metric, tolerance in ((psnr, 1e-9), (ssim, 1e-3 if protocol == SSIU else 1e-9)):
        there = metric(sr.cuda(), hr.cuda(), protocol, 4)
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), metric(sr, hr, protocol, 4), rtol=0, atol=tolerance)


IMAGE = torch.zeros(3, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("sr", "hr", "scale", "words"),
    [
        (IMAGE, IMAGE[:, :8], 2, "one shape"),
        (IMAGE[0], IMAGE[0], 2, "CHW"),
        (IMAGE.int(), IMAGE.int(), 2, "uint8"),
        (IMAGE[:, :8], IMAGE[:, :8], 4, "border of 4"),
        (IMAGE, IMAGE, 3, "no 11x11 pixels inside a border of 3"),
    ],
)
def test_bad_input_is_refused_in_one_line(sr: Tensor, hr: Tensor, scale: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        ssim(sr, hr, BASICSR, scale)
    assert "\n" not in str(error.value)


OFFSETS = [(2, 0.0013, 0.0000299), (3, 0.0022, 0.0002243), (4, 0.0033, 0.0006946)]


@pytest.mark.parametrize(("scale", "all_of_it", "saturation"), OFFSETS)
def test_ssius_offset(found, tmp_path, scale, all_of_it, saturation):
    """What the misplaced offset adds to SSIM: in single precision as released, and in double precision. The rest is
    rounding, which depends on the order of sums, and so on library and device."""
    store, exact = Store(found("Set5"), tmp_path), replace(SSIU, ssim_precision="float64")
    pairs = [store.pair(i, scale) for i in range(len(store))]
    right, released, double = (
        fmean(ssim(imresize(lr, scale=scale), hr, protocol, scale).item() for lr, hr in pairs)
        for protocol in (replace(exact, luma_offset=16.0), SSIU, exact)
    )
    assert released - right == pytest.approx(all_of_it, abs=0.00015)
    assert double - right == pytest.approx(saturation, abs=1e-7)
