"""Training losses: pixels and frequencies."""

import torch
from torch import Tensor


def fft_l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the two images' 2-D spectra.

    The frequency loss of ShuffleMixer, which SAFMN (Sec. 4.1), SeemoRe and SSIU take over. The transform is linear,
    so one transform of the difference does for two. ``sr`` and ``hr``: ``(B, C, H, W)``; returns a scalar in float32.
    """
    return torch.view_as_real(torch.fft.rfft2(sr.float() - hr.float())).abs().mean()


def l1_fft(sr: Tensor, hr: Tensor, fft_weight: float) -> Tensor:
    """Mean absolute error plus ``fft_weight`` times :func:`fft_l1` (SAFMN 0.05, SeemoRe 0.1, SSIU 0.01 as released).

    ``sr`` and ``hr``: ``(B, C, H, W)`` in [0, 1]; returns a scalar in float32.
    """
    loss = (sr.float() - hr.float()).abs().mean()
    return loss + fft_weight * fft_l1(sr, hr) if fft_weight else loss
