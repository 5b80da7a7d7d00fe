"""What two papers share: the layer norm over channels, the check of a network's input, and work done in strips."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError


def check_images(x: Tensor) -> None:
    """Raise ``InputError`` unless ``x`` is a batch of RGB images, (B, 3, H, W) with at least one pixel."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise InputError(f"a network got a tensor of shape {tuple(x.shape)}; give a batch of RGB images (B, 3, H, W)")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise InputError(f"a network got images of {x.shape[2]} x {x.shape[3]} pixels; give at least 1 x 1")


def in_strips(function: Callable[[Tensor], Tensor], x: Tensor, halo: int, pixels: int = 19_200) -> Tensor:
    """``function(x)``, a strip of rows at a time where no gradient is wanted on a CPU: same result, less memory.

    A CPU spends longer on fetching fresh memory for a wide intermediate result than on filling it; a strip's stays in
    the cache and its memory is used again for the next strip. ``function`` maps (B, C, H, W) to the same shape; a row
    of its result may depend on ``halo`` rows above and below, beyond the border on zeros. A strip has about ``pixels``
    pixels, and at least 16 rows. Anywhere else (training, tracing, compiling, other devices) ``function`` runs once.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling() or not x.is_cpu:
        return function(x)
    batch, _, height, width = x.shape
    rows = max(16, pixels // (batch * width))
    if rows >= height:
        return function(x)
    result = torch.empty_like(x)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(top - halo, 0)
        strip = function(x[:, :, first : bottom + halo])
        result[:, :, top:bottom] = strip[:, :, top - first : bottom - first]
    return result


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a learnt weight and bias (Ba et al., 2016).

    Feature maps (B, C, H, W) in and out. In memory the channels lie last, so that one fused call does it; the
    result is in the ``channels_last`` memory format.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
