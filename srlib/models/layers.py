"""What papers share: the check of a configuration and of a network's input, padding, windows, and the layer norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from srlib.errors import InputError


@dataclass(frozen=True)
class Config:
    """Base of all networks' configurations: every field is checked against its annotation.

    ``int`` is a whole number from 1 up, ``float`` a number above 0 (a whole one becomes a float), ``tuple`` one or more
    such whole numbers (a list, as JSON has it, becomes a tuple). A subclass says by ``require`` what else must hold;
    any other value raises ``InputError``. Its ``build()`` gives the network, with fresh random weights.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal:
                known = value in choices and type(value) in map(type, choices)  # 2.0 is no 2
                self.require(known, name, f"choose one of: {', '.join(map(str, choices))}")
            elif kind is bool:
                self.require(isinstance(value, bool), name, "give True or False")
            elif kind is int:
                self.require(_whole(value), name, "give a whole number from 1 up")
            elif kind is float:
                self.require(type(value) in (int, float) and 0 < value < math.inf, name, "give a number above 0")
                object.__setattr__(self, name, float(value))
            elif get_origin(kind) is tuple:
                whole = isinstance(value, list | tuple) and len(value) > 0 and all(map(_whole, value))
                self.require(whole, name, "give one or more whole numbers from 1 up")
                object.__setattr__(self, name, tuple(value))

    def require(self, holds: bool, name: str, advice: str) -> None:
        """Raise ``InputError`` about the field ``name`` unless what it needs ``holds``."""
        if not holds:
            raise InputError(f"{type(self).__name__} has {name}={getattr(self, name)!r}; {advice}")


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def check_images(x: Tensor) -> None:
    """Raise ``InputError`` unless ``x`` is a batch of RGB images, (B, 3, H, W) with at least one pixel."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.numel():
        raise InputError(f"a network got a tensor of shape {tuple(x.shape)}; give a batch of RGB images (B, 3, H, W)")


def conv(channels: int, out: int, kernel: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps an image's size, by zero padding; point-wise unless told otherwise."""
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups)


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


def windows(x: Tensor, side: int, step: int) -> Tensor:
    """The squares of ``side`` pixels, one every ``step`` pixels, in (B, H, W, C), row by row: (B, N, side^2, C)."""
    return x.unfold(1, side, step).unfold(2, side, step).permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(1, 2)


def merge(x: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Squares (B, N, side^2, C) that do not overlap, put together again to (B, H, W, C), ``size`` being (H, W)."""
    x = x.unflatten(2, (side, side)).unflatten(1, (size[0] // side, size[1] // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, with a learnt weight and bias (Ba et al., 2016).

    (B, C, H, W) in and out; in memory the channels lie last (``channels_last``), so that one fused call does it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
