"""MATLAB's bicubic ``imresize``, which the papers' benchmarks were made with; ``degradation`` alone resizes otherwise.

Cubic convolution (Keys, "Cubic convolution interpolation for digital image processing", 1981) with a = -0.5, stretched
to suppress aliasing when an image shrinks, and borders mirrored with the edge pixel repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srlib.errors import InputError


def imresize(image: Tensor, *, scale: float | None = None, size: Sequence[int] | None = None) -> Tensor:
    """Resize CHW or BCHW images by a scale or to a size, as MATLAB's ``imresize`` does by default.

    Give either ``scale`` (the new size is rounded up) or ``size`` (height, width). The axis with the smaller scale is
    resized first, rows first where they are equal.

    A uint8 image gives a uint8 image, rounded (halves up) and clipped after each of the two passes. A float image gives
    a float image of the same type, neither rounded nor clipped, and gradients flow. Sums are float64 in a fixed order:
    results depend neither on the batch nor on the device. Raises InputError for any other image, scale or size.
    """
    if image.dim() not in (3, 4) or 0 in image.shape or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise InputError(f"give CHW or BCHW images of uint8 or float, not {tuple(image.shape)} of {image.dtype}")
    if scale is None:
        if size is None or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise InputError(f"size {size!r} is not a height and a width in pixels; give two whole numbers above 0")
        scales = [new / old for new, old in zip(size, image.shape[-2:], strict=True)]
    else:
        if not 0 < scale < math.inf:
            raise InputError(f"scale {scale!r} is not positive; give a number above 0")
        scales, size = [scale, scale], [math.ceil(scale * side) for side in image.shape[-2:]]
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):  # stable: rows come first where scales are equal
        image = _resize_axis(image, axis, size[axis], scales[axis])
    return image


def enlarged_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of an image of ``size`` after enlargement: sides times the scale, halves up, 1 at least.

    Raises InputError for a scale that is not positive.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"scale {scale!r} is not positive; give a number above 0")
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width


def _resize_axis(image: Tensor, axis: int, new: int, scale: float) -> Tensor:
    """One pass: resize axis 0 (rows) or 1 (columns) of CHW or BCHW images to ``new`` samples."""
    taps, weights = (part.to(image.device) for part in contributions(image.shape[axis - 2], new, scale))
    source = image if axis == 0 else image.transpose(-1, -2).contiguous()  # gathering whole rows is fast
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    for number, (tap, weight) in enumerate(zip(taps, weights, strict=True)):
        # A product, then a sum: never fused into one rounding, so that CPU and GPU agree to the last bit.
        term = source.index_select(-2, tap).to(torch.float64) * weight[:, None]
        total = total.add_(term) if number else term
    if not image.is_floating_point():
        total = total.add_(0.5).floor_().clamp_(0, 255)  # MATLAB rounds halves away from zero; torch.round would not
    result = total.to(image.dtype)
    return result if axis == 0 else result.transpose(-1, -2).contiguous()


def contributions(old: int, new: int, scale: float) -> tuple[Tensor, Tensor]:
    """Which input samples make each output sample of one axis, and with what weights.

    Output sample i (from 0) lies at (i + 0.5) / scale - 0.5 in the input. Returns ``taps`` (P, new), int64 positions in
    0..old - 1 after mirroring, and ``weights`` (P, new), float64, whose columns sum to 1. P is the kernel's support in
    samples; taps that are zero for every output are left out.
    """
    stretch = min(scale, 1.0)  # below 1: the kernel widens by 1 / scale, which is the antialiasing
    support = 4.0 / stretch
    place = torch.arange(1, new + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)  # counted from 1
    first = torch.floor(place - support / 2)
    taps = first + torch.arange(math.ceil(support) + 2, dtype=torch.float64)[:, None]  # (P, new)
    weights = stretch * _cubic(stretch * (place - taps))
    weights = weights / weights.sum(0)
    taps = torch.remainder(taps.to(torch.int64) - 1, 2 * old)  # counted from 0, in one period of the mirrored axis
    taps = torch.minimum(taps, 2 * old - 1 - taps)
    used = (weights != 0).any(1)
    return taps[used], weights[used]


def _cubic(x: Tensor) -> Tensor:
    """Keys' piecewise cubic kernel with a = -0.5; zero beyond 2."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0.0))
