"""The losses against sums written out by hand."""

import math

import pytest
import torch

from srlib.losses import fft_l1, l1_fft


def test_fft_l1_is_the_difference_of_both_spectra():
    sr, hr = torch.rand(2, 3, 6, 5), torch.rand(2, 3, 6, 5)
    a, b = torch.fft.rfft2(sr), torch.fft.rfft2(hr)
    expected = torch.cat([(a.real - b.real).abs(), (a.imag - b.imag).abs()]).mean()
    assert fft_l1(sr, hr).item() == pytest.approx(expected.item(), rel=1e-5)


def test_fft_l1_of_a_constant_difference_lies_in_the_first_coefficient():
    height, width, offset = 4, 6, 0.25
    sr = torch.zeros(1, 1, height, width)
    coefficients = 2 * height * (width // 2 + 1)
    assert fft_l1(sr, sr + offset).item() == pytest.approx(offset * height * width / coefficients)


def test_weight_scales_the_frequency_part_only():
    sr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    pixels = (sr - hr).abs().mean().item()
    assert l1_fft(sr, hr, 0.0).item() == pytest.approx(pixels)
    assert l1_fft(sr, hr, 0.05).item() == pytest.approx(pixels + 0.05 * fft_l1(sr, hr).item())


def test_half_precision_is_summed_in_float32():
    sr, hr = torch.rand(1, 3, 64, 64, dtype=torch.bfloat16), torch.rand(1, 3, 64, 64, dtype=torch.bfloat16)
    loss = l1_fft(sr, hr, 0.05)
    assert loss.dtype == torch.float32 and math.isfinite(loss.item())
