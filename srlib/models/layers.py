"""What papers share: the check of a configuration and of a network's input, padding, and the layer norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError


@dataclass(frozen=True)
class Config:
    """Base of all networks' configurations: every field is checked against its annotation.

    ``int`` is a whole number from 1 up, ``float`` a finite number above 0, ``tuple[int, ...]`` one or more whole
    numbers (a list, as JSON has it, becomes a tuple); ``bool`` and ``Literal`` are what they say. ``InputError`` for
    any other value. A subclass adds what else must hold by ``require``, and ``build`` makes its network.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                self.require(value in get_args(kind), name, f"choose one of: {', '.join(map(str, get_args(kind)))}")
            elif kind is bool:
                self.require(isinstance(value, bool), name, "give True or False")
            elif kind is int:
                self.require(_whole(value), name, "give a whole number from 1 up")
            elif kind is float:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                self.require(number and 0 < value < math.inf, name, "give a number above 0")
            elif get_origin(kind) is tuple:
                whole = isinstance(value, list | tuple) and len(value) > 0 and all(map(_whole, value))
                self.require(whole, name, "give one or more whole numbers from 1 up")
                object.__setattr__(self, name, tuple(value))

    def require(self, holds: bool, name: str, advice: str) -> None:
        """Raise ``InputError`` about the field ``name`` unless what it needs ``holds``."""
        if not holds:
            raise InputError(f"{type(self).__name__} has {name}={getattr(self, name)!r}; {advice}")

    def build(self) -> nn.Module:
        """The network of this configuration, with fresh random weights."""
        raise NotImplementedError


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_images(x: Tensor) -> None:
    """Raise ``InputError`` unless ``x`` is a batch of RGB images, (B, 3, H, W) with at least one pixel."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.numel():
        raise InputError(f"a network got a tensor of shape {tuple(x.shape)}; give a batch of RGB images (B, 3, H, W)")


def pad_reflect(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) by reflection at the bottom and at the right, so that H and W become multiples of ``multiple``.

    An image too small for one reflection is reflected again and again, as in a hall of mirrors.
    """
    for axis in (-2, -1):
        side = x.shape[axis]
        if more := -side % multiple:
            place = torch.arange(side + more, device=x.device) % max(1, 2 * side - 2)
            x = x.index_select(axis, torch.minimum(place, 2 * side - 2 - place))
    return x


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
