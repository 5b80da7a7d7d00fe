"""NIQE and BRISQUE: features as other implementations have them, scores that distortions worsen, models in files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from srlib import quality
from srlib.degradation import gaussian_noise, jpeg
from srlib.errors import InputError
from srlib.quality import brisque, niqe
from srlib.resize import imresize

# Means over the blocks of chelsea by BasicSR 1.4's NIQE, and features of coffee by piq 0.8's BRISQUE, of the same luma
CHELSEA = [
    2.05758, 0.714909, 0.686333, 0.081629, 0.0843762, 0.118221, 0.712083, 0.0392566, 0.0969956, 0.119796, 0.69975,
    -0.0243744, 0.116011, 0.0965419, 0.681917, 0.00960659, 0.099201, 0.0999858, 2.19375, 0.770547, 0.746167, 0.0918168,
    0.092552, 0.141691, 0.746167, 0.0489628, 0.10093, 0.133608, 0.7305, -0.00844735, 0.116362, 0.110487, 0.738833,
    0.00149583, 0.114848, 0.11325,
]  # fmt: skip
COFFEE = [
    1.721, 0.288569, 0.623, 0.0229381, 0.0873737, 0.111169, 0.616, -0.0215387, 0.113761, 0.0909602, 0.602, -0.09393,
    0.164632, 0.0618007, 0.562, 0.116756, 0.0541373, 0.188397, 1.613, 0.265933, 0.598, 0.024353, 0.0793787, 0.104073,
    0.585, -0.0163208, 0.10544, 0.0882498, 0.573, -0.0632452, 0.138649, 0.0698175, 0.555, 0.0874265, 0.055286, 0.149607,
]  # fmt: skip


def photo(name: str) -> Tensor:
    """One of the photographs that scikit-image ships, (3, H, W) in [0, 1]."""
    pixels = np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def noisy(image: Tensor, sigma: float) -> Tensor:
    return (image + gaussian_noise(image, sigma, False, np.random.default_rng(0))).clamp(0, 1)


def blurred(image: Tensor, scale: float) -> Tensor:
    return imresize(imresize(image, scale=1 / scale), size=image.shape[1:]).clamp(0, 1)


def test_features_are_those_of_other_implementations() -> None:
    features, sharpness = quality.niqe_features(photo("chelsea"))
    assert features.shape == (12, 36) and sharpness.shape == (12,)
    assert features.mean(0).tolist() == pytest.approx(CHELSEA, rel=1e-5, abs=1e-6)
    assert quality.brisque_features(photo("coffee")).tolist() == pytest.approx(COFFEE, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_fits_find_the_distribution_that_samples_come_from(alpha: float) -> None:
    """A generalised Gaussian of scale b is b G^(1 / alpha) with a random sign and G from a Gamma distribution."""
    generator = np.random.default_rng(0)
    magnitude = torch.from_numpy(generator.gamma(1 / alpha, size=400_000) ** (1 / alpha))
    right = torch.from_numpy(generator.random(400_000) < 2 / 3)  # the mass on each side is as its scale
    found = quality.asymmetric_fit(torch.where(right, magnitude, -0.5 * magnitude))
    mean = 0.5 * math.gamma(2 / alpha) / math.gamma(1 / alpha)
    assert [value.item() for value in found] == pytest.approx([alpha, mean, 0.5, 1.0], rel=0.03)
    sign = torch.from_numpy(generator.choice([-1.0, 1.0], 400_000))
    shape, deviation = quality.symmetric_fit(sign * magnitude)
    expected = math.sqrt(math.gamma(3 / alpha) / math.gamma(1 / alpha))
    assert [shape.item(), deviation.item()] == pytest.approx([alpha, expected], rel=0.03)


@pytest.mark.parametrize(("worse", "grades"), [(noisy, (10, 25, 60)), (jpeg, (30, 5)), (blurred, (2, 3, 4))])
def test_distortions_worsen_niqe(worse: Callable[[Tensor, float], Tensor], grades: tuple[float, ...]) -> None:
    for name in ("camera", "coffee"):
        image = photo(name)[:, :288, :448]
        scores = [niqe(image), *(niqe(worse(image, grade)) for grade in grades)]
        assert scores == sorted(scores) and scores[-1] > scores[0] + 1


def test_niqe_is_the_distance_between_two_gaussians() -> None:
    """Equation 10 from the blocks' features, by numpy alone; blocks without both signs count in the mean only."""
    (mean, covariance), image = quality.pristine(), photo("camera")
    features = quality.niqe_features(image)[0].numpy()
    apart = mean.numpy() - np.nanmean(features, axis=0)
    whole = features[~np.isnan(features).any(axis=1)]
    pooled = (covariance.numpy() + np.cov(whole, rowvar=False)) / 2
    assert niqe(image) == pytest.approx(np.sqrt(apart @ np.linalg.pinv(pooled) @ apart), rel=1e-6)


def test_images_are_rounded_to_8_bits_and_clamped() -> None:
    image, beyond = photo("coffee"), 1.6 * photo("coffee") - 0.3
    assert niqe(image) == niqe(image.double()) == niqe(image + 1e-4)
    assert niqe(beyond) == niqe(beyond.clamp(0, 1))
    assert torch.equal(quality.brisque_features(beyond), quality.brisque_features(beyond.clamp(0, 1)))


def test_the_shipped_model_is_fitted_to_the_photographs_that_it_names(data_root: Path) -> None:
    """A tenth of the 400 photographs is looked at: their sharp blocks lie about the model's mean."""
    files = sorted((data_root / "train" / "BSD400").glob("*.*"))[::10]
    if len(files) != 40:
        pytest.skip("no train/BSD400 in the data folder: it holds the photographs that the model was fitted to")
    images = (torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255 for file in files)
    (mean, covariance), (some, spread) = quality.pristine(), quality.fit(images)
    deviation = covariance.diagonal().sqrt()
    assert ((some - mean).abs() / deviation).max() < 0.5
    assert 0.5 < (spread.diagonal().sqrt() / deviation).median() < 1.5


def test_the_released_regression_scores_as_another_implementation() -> None:
    try:
        quality.regression()
    except InputError as error:
        pytest.skip(str(error))
    image = photo("coffee")
    assert brisque(image) == pytest.approx(30.066, abs=1e-3)
    for worse in (noisy(image, 25), jpeg(image, 10), blurred(image, 4)):
        assert brisque(worse) > brisque(image) + 10
    assert math.isnan(brisque(torch.full((3, 64, 64), 0.5)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: niqe(torch.rand(3, 96, 191)), "two blocks of 96x96 pixels"),
        (lambda: quality.brisque_features(torch.rand(3, 2, 2)), "BRISQUE needs 14x14 pixels"),
        (lambda: quality.brisque_features(torch.rand(3, 0, 50)), "BRISQUE needs 14x14 pixels"),
        (lambda: niqe(torch.rand(1, 3, 200, 200)), r"one float image \(3, H, W\)"),
        (lambda: niqe(torch.zeros(3, 200, 200, dtype=torch.uint8)), "not torch.uint8"),
        (lambda: niqe(torch.full((3, 200, 200), 0.5)), "flat nearly everywhere"),
    ],
)
def test_bad_input_is_refused_in_one_line(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)
