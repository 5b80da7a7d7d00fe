"""Bicubic resizing as MATLAB's ``imresize`` does it: the degradation that the papers' benchmarks were made with.

Cubic convolution (Keys, "Cubic convolution interpolation for digital image processing", 1981) with a = -0.5,
stretched to suppress aliasing when an image shrinks, and borders mirrored about the image's edge, the edge pixel
repeated.
"""

import math

import torch
from torch import Tensor

from srlib.errors import InputError


def imresize(
    image: Tensor,
    *,
    scale: float | tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Resize images by a scale or to a size, as MATLAB's ``imresize`` does by default.

    ``image`` is CHW or BCHW, on any device. Give either ``scale`` (one number, or one for height and one for width;
    the new size is rounded up) or ``size`` (height, width; the scale of each axis is then new size over old size). The
    axis with the smaller scale is resized first, rows before columns where they are equal.

    A uint8 image gives a uint8 image: as MATLAB does, the values are rounded (halves up) and clipped after each of the
    two passes. A float image gives a float image of the same type, neither rounded nor clipped, and gradients flow.
    Weights and sums are float64 and the order of summation is fixed, so that results depend neither on the batch nor
    on the device.

    Raises InputError for a tensor of another shape or type, and for a scale or size that is not positive.
    """
    _check_image(image)
    height, width = image.shape[-2:]
    if (scale is None) == (size is None):
        raise InputError("imresize takes either scale or size; give exactly one of them")
    if size is None:
        scales = _two_scales(scale)
        sizes = (math.ceil(scales[0] * height), math.ceil(scales[1] * width))
    else:
        sizes = _two_sizes(size)
        scales = (sizes[0] / height, sizes[1] / width)

    for axis in sorted((0, 1), key=lambda axis: scales[axis]):  # stable: rows come first where scales are equal
        image = _resize_axis(image, axis, sizes[axis], scales[axis])
    return image


def _resize_axis(image: Tensor, axis: int, new: int, scale: float) -> Tensor:
    """One pass: resize axis 0 (rows) or 1 (columns) of CHW or BCHW images to ``new`` samples."""
    taps, weights = contributions(image.shape[axis - 2], new, scale)
    taps, weights = taps.to(image.device), weights.to(image.device)
    source = image if axis == 0 else image.transpose(-1, -2).contiguous()  # gathering whole rows is fast
    total: Tensor | None = None
    for tap, weight in zip(taps, weights, strict=True):
        # A product, then a sum: never fused into one rounding, so that CPU and GPU agree to the last bit.
        term = source.index_select(-2, tap).to(torch.float64) * weight[:, None]
        total = term if total is None else total.add_(term)
    assert total is not None  # weights are normalised, so at least one tap is left
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
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def _check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise InputError(f"imresize takes a tensor, not {type(image).__name__}; convert the image first")
    if image.dim() not in (3, 4):
        raise InputError(f"imresize takes CHW or BCHW images, not shape {tuple(image.shape)}; add or remove dimensions")
    if 0 in image.shape:
        raise InputError(f"imresize got an empty image of shape {tuple(image.shape)}; give at least one pixel")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InputError(f"imresize takes uint8 or float images, not {image.dtype}; convert the image first")


def _two_scales(scale: object) -> tuple[float, float]:
    pair = tuple(scale) if isinstance(scale, (tuple, list)) else (scale, scale)
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in pair)
    if len(pair) != 2 or not numbers or not all(math.isfinite(one) and one > 0 for one in pair):
        raise InputError(f"scale {scale!r} is not positive; give one number above 0, or two (height, width)")
    return float(pair[0]), float(pair[1])


def _two_sizes(size: object) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(pair) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in pair):
        raise InputError(f"size {size!r} is not a height and a width in pixels; give two whole numbers above 0")
    return pair[0], pair[1]
