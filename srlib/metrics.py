"""PSNR and SSIM under explicit protocols.

A score means nothing without the choices behind it: which channel, which luma formula, how wide a border is cut,
whether the output is clamped and rounded to 8 bits, which window SSIM uses. A ``Protocol`` states them all. Each
paper's own are in ``srlib.papers``. Arithmetic is float64 unless a protocol says otherwise, on the images' device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from srlib.errors import InputError

MATLAB_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601 in the range 16..235, as in MATLAB's rgb2ycbcr
LIIF_LUMA = (65.738, 129.057, 25.064)  # the same over 256 instead of 255, to three digits


@dataclass(frozen=True)
class Protocol:
    """Every choice between two images and a score.

    The luma of a pixel, in 8-bit units, is ``luma_gain * (luma . RGB) + luma_offset`` of RGB in [0, 1]; images of one
    channel are taken as luma already. ``border_at`` holds pairs (scale, border) that take precedence over the rule
    ``border_per_scale * scale + border_extra``. ``ssim_precision`` is that of SSIM's local means and squares.

    Two fields have no part in the arithmetic: ``about`` says what is known, what is assumed, and the source; ``means``
    how a release rounds the means that it prints.
    """

    name: str
    about: str = field(compare=False)
    channel: Literal["y", "rgb"] = "y"
    luma: tuple[float, float, float] = MATLAB_LUMA
    luma_gain: float = 1.0
    luma_offset: float = 16.0
    border_per_scale: int = 1
    border_extra: int = 0
    border_at: tuple[tuple[float, int], ...] = ()
    clamp: bool = True
    round_image: bool = True
    round_luma: bool = False
    ssim_window: int = 11
    ssim_k2: float = 0.03
    ssim_precision: Literal["float64", "float32"] = "float64"
    means: Literal["nearest", "up"] = "nearest"

    def border(self, scale: float) -> int:
        """Pixels cut off at each edge of the HR image; a fractional scale's border is rounded up."""
        return dict(self.border_at).get(scale, math.ceil(self.border_per_scale * scale) + self.border_extra)

    def printed(self, mean: float, digits: int) -> float:
        """A mean as the release prints it with that many digits: to the nearest, or half a unit more (SSIU)."""
        return round(mean + (0.5 * 10**-digits if self.means == "up" else 0.0), digits)

    def same_arithmetic(self, other: Protocol) -> bool:
        """Whether both protocols give the same scores for any two images, to the last digit."""
        return self == replace(other, name=self.name, means=self.means)


MATLAB = Protocol(
    name="matlab",
    about="The convention of MATLAB evaluations: 8-bit images, 8-bit luma of rgb2ycbcr, a border of scale pixels. The"
    " literature's bicubic rows come from it, but from the luma plane alone: srlib.evaluate.luma_bicubic.",
    round_luma=True,
)


def psnr(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, one float64 value an image (B,); infinite for equal images.

    ``sr`` and ``hr`` are CHW or BCHW, uint8 or float in [0, 1], of one shape. The squared error is averaged over the
    protocol's channels together. Raises InputError for shapes that don't fit each other or leave nothing inside the
    border.
    """
    sr, hr = _compared(sr, hr, protocol, scale)
    return 10 * torch.log10(255**2 / (sr - hr).square().mean(dim=(1, 2, 3)))


def ssim(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> Tensor:
    """Structural similarity (Wang et al., 2004), one float64 value an image (B,). Images and errors as for ``psnr``.

    Gaussian window, only places where it lies wholly inside the image, population (co)variances, mean over places and
    channels: what scikit-image computes with ``gaussian_weights=True, use_sample_covariance=False``.
    """
    size = protocol.ssim_window
    sr, hr = _compared(sr, hr, protocol, scale, size)
    precision = torch.float32 if protocol.ssim_precision == "float32" else torch.float64
    distance = torch.arange(size, dtype=precision) - size // 2
    window = torch.exp(-(distance**2) / (2 * 1.5**2))
    sr, hr = sr.to(precision), hr.to(precision)
    maps = torch.stack([sr, hr, sr * sr, hr * hr, sr * hr])  # (5, B, C, H, W)
    mean_sr, mean_hr, square_sr, square_hr, product = _filter(maps, (window / window.sum()).tolist()).unbind()

    c1, c2 = (0.01 * 255) ** 2, (protocol.ssim_k2 * 255) ** 2
    both = mean_sr * mean_hr
    luminance = (2 * both + c1) / (mean_sr**2 + mean_hr**2 + c1)
    variances = (square_sr - mean_sr**2) + (square_hr - mean_hr**2)  # each by itself, as single precision needs it
    structure = (2 * (product - both) + c2) / (variances + c2)
    return (luminance * structure).to(torch.float64).mean(dim=(1, 2, 3))


def luma(image: Tensor, protocol: Protocol) -> Tensor:
    """The luma plane that a protocol compares: (B, 3, H, W) in 8-bit units to (B, 1, H, W), likewise."""
    red, green, blue = (image / 255).unbind(1)
    of_red, of_green, of_blue = (protocol.luma_gain * weight for weight in protocol.luma)
    plane = (of_red * red + of_green * green + of_blue * blue + protocol.luma_offset)[:, None]
    return torch.floor(plane + 0.5) if protocol.round_luma else plane  # MATLAB rounds halves up


def _filter(maps: Tensor, window: list[float]) -> Tensor:
    """Filter the last two axes with a symmetric separable window, keeping only places where it fits."""
    for axis in (-2, -1):
        new = maps.shape[axis] - len(window) + 1
        total = maps.narrow(axis, 0, new) * window[0]
        for offset, weight in enumerate(window[1:], 1):
            total.add_(maps.narrow(axis, offset, new), alpha=weight)
        maps = total
    return maps


def _compared(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float, least: int = 1) -> list[Tensor]:
    """Both images as the protocol compares them: border cut off, BCHW, float64 in 8-bit units."""
    if sr.shape != hr.shape or sr.dim() not in (3, 4):
        raise InputError(f"metrics take two CHW or BCHW images of one shape, not {tuple(sr.shape)}, {tuple(hr.shape)}")
    border = protocol.border(scale)
    height, width = sr.shape[-2:]
    if min(height, width) < 2 * border + least:
        inside = f"{least}x{least} pixels inside a border of {border}"
        raise InputError(f"an image of {width}x{height} pixels has no {inside}; give larger ones")
    inner = (..., slice(border, height - border), slice(border, width - border))
    return [_prepared(image[inner], protocol) for image in (sr, hr)]


def _prepared(image: Tensor, protocol: Protocol) -> Tensor:
    if image.is_floating_point():
        image = image.to(torch.float64) * 255
        image = image.clamp(0, 255) if protocol.clamp else image
        image = image.round() if protocol.round_image else image
    elif image.dtype != torch.uint8:
        raise InputError(f"metrics take uint8 images or float ones in [0, 1], not {image.dtype}; convert them first")
    image = (image if image.dim() == 4 else image[None]).to(torch.float64)
    if protocol.channel == "rgb" or image.shape[1] == 1:
        return image
    return luma(image, protocol)
