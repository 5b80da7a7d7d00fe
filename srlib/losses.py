"""Training losses: pixels, frequencies, and the balance between experts. All give a scalar in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srlib.errors import InputError


def fft_l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of two images' (B, C, H, W) 2-D spectra.

    The frequency loss of ShuffleMixer, which SAFMN (Sec. 4.1), SeemoRe and SSIU take over. The transform is linear,
    so one transform of the difference does for two.
    """
    return torch.view_as_real(torch.fft.rfft2(sr.float() - hr.float())).abs().mean()


def l1_fft(sr: Tensor, hr: Tensor, fft_weight: float) -> Tensor:
    """Mean absolute error of images (B, C, H, W) in [0, 1] plus ``fft_weight`` times ``fft_l1``."""
    loss = (sr.float() - hr.float()).abs().mean()
    return loss + fft_weight * fft_l1(sr, hr) if fft_weight else loss


def balance(shares: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """MoEISR's balance loss (Eq. 7): the sum over J experts of ``|w_j sum_k D_kj - K / J|``, k over an image's K LR
    pixels; the mean over the batch.

    ``shares`` (B, J, h, w) are the experts' at each LR pixel, K = h w; ``weights`` are w_j, () for 1 each: a
    larger one has its expert used less. From 0 (all used alike) to 2 K (J - 1) / J (one alone) where all weights are 1.
    Raises InputError for another number of weights than of experts.
    """
    experts, pixels = shares.shape[1], shares[0, 0].numel()
    if len(weights) not in (0, experts):
        raise InputError(f"{len(weights)} weights of {experts} experts do not work: give {experts}, or () for 1 each")
    used = shares.float().sum((2, 3))  # (B, J)
    if weights:
        used = used * used.new_tensor(list(weights))
    return (used - pixels / experts).abs().sum(1).mean()


def l1_balance(
    rgb: Tensor,
    target: Tensor,
    shares: Tensor | None,
    l1_weight: float,
    balance_weight: float,
    expert_weights: Sequence[float] = (),
) -> Tensor:
    """MoEISR's loss (Eq. 6): alpha times the mean absolute error plus beta times ``balance``; LIIF's and LTE's where
    there are no ``shares`` and alpha is 1.

    ``rgb`` (B, Q, 3) are answers in the network's range [-1, 1], in which LIIF takes its error too; ``target`` is the
    same in [0, 1].
    """
    loss = l1_weight * (rgb.float() - (2 * target.float() - 1)).abs().mean()
    return loss if shares is None or not balance_weight else loss + balance_weight * balance(shares, expert_weights)
