"""What two papers share: the layer norm over channels, and the check of a network's input."""

from __future__ import annotations

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
