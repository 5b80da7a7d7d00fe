"""The losses against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from srlib.errors import InputError
from srlib.losses import balance, fft_l1, l1_balance, l1_fft


def test_fft_l1_is_the_difference_of_both_spectra() -> None:
    sr, hr = torch.rand(2, 3, 6, 5), torch.rand(2, 3, 6, 5)
    a, b = torch.fft.rfft2(sr), torch.fft.rfft2(hr)
    expected = torch.cat([(a.real - b.real).abs(), (a.imag - b.imag).abs()]).mean()
    assert fft_l1(sr, hr).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_scales_the_frequency_part_only() -> None:
    sr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    pixels = (sr - hr).abs().mean().item()
    assert l1_fft(sr, hr, 0.0).item() == pytest.approx(pixels)
    assert l1_fft(sr, hr, 0.05).item() == pytest.approx(pixels + 0.05 * fft_l1(sr, hr).item())


def test_half_precision_is_summed_in_float32() -> None:
    sr, hr = torch.rand(1, 3, 64, 64, dtype=torch.bfloat16), torch.rand(1, 3, 64, 64, dtype=torch.bfloat16)
    loss = l1_fft(sr, hr, 0.05)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(l1_fft(sr.double(), hr.double(), 0.05).item())


def test_balance_is_equation_7() -> None:
    gates = torch.rand(3, 4, 5, 6).softmax(1)
    weights = (1.0, 0.5, 2.0, 3.7)
    expected = [sum(abs(w * gates[b, j].sum().item() - 30 / 4) for j, w in enumerate(weights)) for b in range(3)]
    assert balance(gates, weights).item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert balance(gates).item() == pytest.approx(balance(gates, (1, 1, 1, 1)).item())


def test_balance_is_0_for_even_use_and_greatest_for_one_expert() -> None:
    even = torch.eye(4).view(1, 4, 2, 2)
    alone = torch.zeros(2, 4, 2, 2).index_fill(1, torch.tensor(1), 1.0)
    assert balance(even).item() == 0
    assert balance(alone).item() == pytest.approx(2 * 4 * 3 / 4)
    with pytest.raises(InputError, match="3 weights of 4 experts"):
        balance(even, (1.0, 1.0, 1.0))


def test_the_loss_of_queries_is_equation_6_in_the_networks_range() -> None:
    rgb, target, gates = torch.rand(2, 7, 3), torch.rand(2, 7, 3), torch.rand(2, 4, 3, 3).softmax(1)
    pixels = (rgb - (2 * target - 1)).abs().mean().item()
    assert l1_balance(rgb, target, None, 1.0, 1.0).item() == pytest.approx(pixels)
    both = l1_balance(rgb, target, gates, 3000.0, 1.0, (2, 1, 1, 1)).item()
    assert both == pytest.approx(3000 * pixels + balance(gates, (2, 1, 1, 1)).item())
    assert l1_balance(2 * target - 1, target, gates, 1.0, 0.0).item() == 0
