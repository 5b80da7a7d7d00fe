"""Real-ESRGAN's degradation: low-resolution images as cameras, editing and the internet make them.

Wang, Xie, Dong and Shan, "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data", 2021,
Sections 3.1 to 3.3 and Figure 2. Blur, resizing, noise and JPEG compression follow one another twice (the "high-order"
model), and a sinc filter, which rings and overshoots as sharpened images do, comes last, before or after the second
compression. SeemoRe's Table 15 is trained with it.

``RealEsrgan`` holds the settings of the authors' release for x4; the paper and its release agree in them. Three things
are done otherwise here. Each image draws everything for itself, where the release draws sizes, kinds of noise and the
order of the last steps once a batch and then shuffles images through a queue. JPEG is real, at a whole quality, where
the release computes a differentiable imitation. An image smaller than a kernel's radius is mirrored more than once.
"""

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from threading import Barrier, Lock
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srlib.errors import InputError

Shape = Literal["gaussian", "generalised", "plateau"]
Mode = Literal["area", "bilinear", "bicubic"]
Range = tuple[float, float]
T = TypeVar("T")

_GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601
_LARGE = 13  # a sinc kernel of at least this many taps may cut off lower


def _check_probabilities(name: str, values: Sequence[float], total: bool = False) -> None:
    if not all(0 <= value <= 1 for value in values) or (total and abs(sum(values) - 1) > 1e-6):
        mend = "numbers from 0 to 1 whose sum is 1" if total else "a number from 0 to 1"
        raise InputError(f"{name} {values if total else values[0]} is not a probability; give {mend}")


def _check_range(name: str, ends: Sequence[float], above: float | None = None) -> None:
    lowest_fits = len(ends) == 2 and (ends[0] > above if above is not None else ends[0] >= 0)
    if not lowest_fits or not ends[0] <= ends[1] < math.inf:
        raise InputError(f"{name} {ends} is not a range; give a lower and a higher number, both positive")


def _is_whole(number: object, low: int, high: float) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and low <= int(number) <= high


def _is_odd(size: object) -> bool:
    return _is_whole(size, 1, math.inf) and size % 2 == 1


def check_draw(name: str, number: int) -> int:
    """A seed, step or index, called ``name``, as Python's whole number; InputError where it is none of 63 bits."""
    if not _is_whole(number, 0, 2**63 - 1):
        raise InputError(f"{name} {number!r} is out of range: give a whole number from 0 to 2^63 - 1")
    return int(number)


def check_pixels(image: Tensor) -> None:
    """Raise InputError for NaN, infinity and values that no image in [0, 1] has, below -1 or above 2.

    Networks overshoot [0, 1] a little, which is no error: rounding to 8 bits clamps them.
    """
    low, high = (end.item() for end in image.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("the image has values that are NaN or infinite; give finite ones in [0, 1]")
    if low < -1 or high > 2:
        raise InputError(f"the image's values go from {low:g} to {high:g}; give [0, 1]: divide 8-bit values by 255")


class Kind(NamedTuple):
    """A kind of blur kernel and how probable it is; one that is not isotropic has two widths and an angle."""

    shape: Shape
    isotropic: bool
    probability: float


@dataclass(frozen=True)
class Round:
    """One round of blur, resizing, noise and JPEG; each (low, high) is drawn from uniformly. The defaults are the first
    round's.

    ``blur`` is the probability of blurring at all, ``sinc`` that of a sinc kernel where one blurs. ``sigma`` is in
    pixels, ``gaussian_sigma`` in 8-bit units. ``generalised_beta`` and ``plateau_beta`` are drawn below 1 half of the
    time and above 1 otherwise. ``resize`` has the probabilities of enlarging, reducing and keeping; factors lie between
    1 and an end of ``resize_range``. Noise is Gaussian with probability ``gaussian``, otherwise Poisson's times a
    number from ``poisson_scale``; with probability ``grey`` it is the same in all three channels. ``jpeg`` is Pillow's
    quality. Raises InputError for a probability outside 0..1 and for a range that is not one.
    """

    blur: float = 1.0
    sinc: float = 0.1
    sigma: Range = (0.2, 3.0)
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    grey: float = 0.4
    jpeg: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        for name in ("blur", "sinc", "gaussian", "grey"):
            _check_probabilities(name, (getattr(self, name),))
        _check_probabilities("resize", self.resize, total=True)
        for name in ("sigma", "generalised_beta", "plateau_beta", "resize_range", "jpeg"):
            _check_range(name, getattr(self, name), above=0)
        for name in ("gaussian_sigma", "poisson_scale"):
            _check_range(name, getattr(self, name))
        if not self.resize_range[0] <= 1 <= self.resize_range[1]:
            raise InputError(f"resize_range {self.resize_range} leaves out 1; give a factor below and one above it")
        if self.jpeg[1] > 100 or not all(isinstance(end, int) for end in self.jpeg):
            raise InputError(f"jpeg {self.jpeg} is not a range of qualities; give two whole numbers from 1 to 100")


@dataclass(frozen=True)
class RealEsrgan:
    """All settings of the degradation, by default those that the authors' release trains x4 with.

    ``sizes`` are the side lengths of kernels, in pixels, drawn evenly; ``kinds`` those that are not sinc. ``modes`` are
    what images are resized by, drawn evenly. ``final_sinc`` is the probability of the last sinc filter, ``sinc_first``
    that of its coming before the second JPEG compression. Raises InputError for settings that do not fit.
    """

    first: Round = Round()
    second: Round = Round(
        blur=0.8,
        sigma=(0.2, 1.5),
        resize=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    kinds: tuple[Kind, ...] = (
        Kind("gaussian", True, 0.45),
        Kind("gaussian", False, 0.25),
        Kind("generalised", True, 0.12),
        Kind("generalised", False, 0.03),
        Kind("plateau", True, 0.12),
        Kind("plateau", False, 0.03),
    )
    modes: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
    final_sinc: float = 0.8
    sinc_first: float = 0.5

    def __post_init__(self) -> None:
        _check_probabilities("final_sinc", (self.final_sinc,))
        _check_probabilities("sinc_first", (self.sinc_first,))
        _check_probabilities("kinds", [kind.probability for kind in self.kinds], total=True)
        if not self.sizes or not all(map(_is_odd, self.sizes)):
            raise InputError(f"sizes {self.sizes} do not work as kernels; give odd numbers from 1 on")
        if not self.modes or set(self.modes) - {"area", "bilinear", "bicubic"}:
            raise InputError(f"modes {self.modes} are not known; use area, bilinear and bicubic")


def degrade(
    hr: Tensor, scale: int, seed: int = 0, step: int = 0, index: int = 0, settings: RealEsrgan | None = None
) -> Tensor:
    """The low-resolution version of images: (B, 3, h, w) of (B, 3, H, W), float32 in [0, 1] on the device of ``hr``.

    H and W are ``scale`` times h and w; the values are multiples of 1 / 255. A pure function: image b of a batch is
    decided by its pixels, ``seed``, ``step`` and ``index`` + b alone, which make key and counter of a Philox generator,
    so that it does not matter what else is in the batch or has been drawn before. ``settings`` are ``RealEsrgan()``
    unless given.

    All of it is computed on the CPU, one image a thread: noise and JPEG are at home there, and a GPU in between would
    give other last bits. Raises InputError for images of another shape or type, for a side that is no multiple of the
    scale, for NaN and values far beyond [0, 1], and for numbers that are not whole, negative or have more than 63 bits.
    """
    settings = RealEsrgan() if settings is None else settings
    _check(hr, scale)
    seed, step, index = (check_draw(*each) for each in (("seed", seed), ("step", step), ("index", index)))

    with _workers_lock:  # before torch computes anything in this thread
        workers = _workers(os.getpid())
    images = hr.detach().to("cpu", torch.float32)
    check_pixels(images)

    def one(b: int) -> Tensor:
        return _degrade(images[b], scale, _generator(seed, step, index + b), settings)

    return torch.stack(list(workers.map(one, range(len(images))))).to(hr.device)


_workers_lock = Lock()


@cache
def _workers(process: int) -> ThreadPoolExecutor:
    """As many threads as there are processors, each of which computes alone: several small images at a time instead of
    several threads an image. A fork starts its own, as it inherits none.

    Setting a worker's number of threads also sets the one that other threads start with, so that is put back. All
    workers are begun before, so that this happens once, in an instant, and never while images are computed.
    """
    threads, count = torch.get_num_threads(), os.cpu_count() or 1
    begun = Barrier(count, timeout=60)
    workers = ThreadPoolExecutor(count, "degrade", initializer=_alone)
    try:
        list(workers.map(lambda _: begun.wait(), range(count)))
    finally:
        torch.set_num_threads(threads)
    return workers


def _alone() -> None:
    torch.get_num_threads()  # a thread's first look at the number of threads would undo what it had set
    torch.set_num_threads(1)


def _generator(seed: int, step: int, index: int) -> np.random.Generator:
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _degrade(image: Tensor, scale: int, draw: np.random.Generator, settings: RealEsrgan) -> Tensor:
    """Figure 2 of the paper for one image (3, H, W)."""
    height, width = (side // scale for side in image.shape[1:])
    first, second = settings.first, settings.second

    image = _random_blur(image, first, draw, settings)
    factor = _factor(first, draw)
    image = resize(image, _sides(factor * image.shape[1], factor * image.shape[2]), _one_of(settings.modes, draw))
    image = _random_noise(image, first, draw)
    image = jpeg(image, int(draw.integers(*first.jpeg, endpoint=True)))

    image = _random_blur(image, second, draw, settings)
    factor = _factor(second, draw)
    image = resize(image, _sides(factor * height, factor * width), _one_of(settings.modes, draw))
    image = _random_noise(image, second, draw)

    quality = int(draw.integers(*second.jpeg, endpoint=True))
    sinc_first = draw.random() < settings.sinc_first
    if not sinc_first:
        image = jpeg(image, quality)
    image = resize(image, (height, width), _one_of(settings.modes, draw))
    if draw.random() < settings.final_sinc:
        image = blur(image, sinc_kernel(_one_of(settings.sizes, draw), draw.uniform(math.pi / 3, math.pi)))
    if sinc_first:
        image = jpeg(image, quality)
    return (image * 255).round().clamp(0, 255) / 255


def _random_blur(image: Tensor, settings: Round, draw: np.random.Generator, all_settings: RealEsrgan) -> Tensor:
    if draw.random() >= settings.blur:
        return image
    return blur(image, random_kernel(settings, draw, all_settings.sizes, all_settings.kinds))


def random_kernel(settings: Round, draw: np.random.Generator, sizes: Sequence[int], kinds: Sequence[Kind]) -> Tensor:
    """A kernel of Section 3.1 or, with probability ``settings.sinc``, of Section 3.3: float32 (k, k), its sum 1."""
    size = _one_of(sizes, draw)
    if draw.random() < settings.sinc:
        lowest = math.pi / 3 if size < _LARGE else math.pi / 5
        return sinc_kernel(size, draw.uniform(lowest, math.pi))
    kind = kinds[_choice([kind.probability for kind in kinds], draw)]
    sigma_x, sigma_y = draw.uniform(*settings.sigma), draw.uniform(*settings.sigma)
    angle = draw.uniform(-math.pi, math.pi)
    beta = {
        "gaussian": 1.0,
        "generalised": _around_one(settings.generalised_beta, draw),
        "plateau": _around_one(settings.plateau_beta, draw),
    }[kind.shape]
    if kind.isotropic:
        sigma_y = sigma_x
    return kernel(size, sigma_x, sigma_y, angle, kind.shape, beta)


def kernel(
    size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, shape: Shape = "gaussian", beta: float = 1.0
) -> Tensor:
    """A blur kernel of Section 3.1, float32 (size, size), its sum 1.

    With q(d) = d^T S^-1 d, where S has the standard deviations ``sigma_x`` and ``sigma_y`` (in pixels) along axes
    turned by ``angle`` (radians): exp(-q / 2) for a Gaussian, exp(-q^beta / 2) for a generalised one, 1 / (1 + q^beta)
    for a plateau. Raises InputError for a size that is not odd, for deviations and a beta that are not positive, and
    for another shape.
    """
    if shape not in get_args(Shape):
        raise InputError(f"no kernel of shape {shape!r}; choose one of: {', '.join(get_args(Shape))}")
    for name, value in (("sigma_x", sigma_x), ("sigma_y", sigma_y), ("beta", beta)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} {value} does not make a kernel; give a number above 0")
    if not math.isfinite(angle):
        raise InputError(f"angle {angle} does not make a kernel; give a number of radians")
    y, x = _grid(size)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    values = 1 / (1 + q**beta) if shape == "plateau" else torch.exp(-0.5 * q ** (beta if shape == "generalised" else 1))
    return (values / values.sum()).to(torch.float32)


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """The circular low-pass filter of Section 3.3, float32 (size, size), its sum 1.

    ``cutoff`` is in radians a pixel, up to pi: w J1(w r) / (2 pi r) with Bessel's function J1, cut to the window.
    Raises InputError for a size that is not odd and for another cutoff.
    """
    if not 0 < cutoff <= math.pi:
        raise InputError(f"cutoff {cutoff} does not make a kernel; give radians a pixel, above 0 and up to pi")
    y, x = _grid(size)
    radius = torch.hypot(x, y)
    values = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    values[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (values / values.sum()).to(torch.float32)


def blur(image: Tensor, taps: Tensor) -> Tensor:
    """Filter an image (3, H, W) with a kernel (k, k); borders are mirrored about the edge pixel, not repeating it."""
    margin = taps.shape[-1] // 2
    padded = image
    for axis, side in ((1, image.shape[1]), (2, image.shape[2])):
        period = max(2 * (side - 1), 1)
        place = torch.remainder(torch.arange(-margin, side + margin), period)
        padded = padded.index_select(axis, torch.minimum(place, period - place))
    return F.conv2d(padded[None], taps.expand(3, 1, *taps.shape), groups=3)[0]


def resize(image: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """An image (3, H, W) at another size by torch's interpolation, which the release uses: bilinear and bicubic reduce
    without antialiasing, and alias."""
    return image if image.shape[1:] == size else F.interpolate(image[None], size=size, mode=mode)[0]


def _random_noise(image: Tensor, settings: Round, draw: np.random.Generator) -> Tensor:
    grey = draw.random() < settings.grey
    if draw.random() < settings.gaussian:
        noise = gaussian_noise(image, draw.uniform(*settings.gaussian_sigma), grey, draw)
    else:
        noise = draw.uniform(*settings.poisson_scale) * poisson_noise(image, grey, draw)
    return (image + noise).clamp(0, 1)


def gaussian_noise(image: Tensor, sigma: float, grey: bool, draw: np.random.Generator) -> Tensor:
    """Noise to add to an image (3, H, W): ``sigma`` in 8-bit units; (1, H, W), one for all channels, if ``grey``."""
    shape = (1 if grey else 3, *image.shape[1:])
    return torch.from_numpy(draw.standard_normal(shape, np.float32)) * (sigma / 255)


def poisson_noise(image: Tensor, grey: bool, draw: np.random.Generator) -> Tensor:
    """Shot noise to add to an image (3, H, W): what photon counts differ by from their means, float32; (1, H, W), that
    of the image's luma, if ``grey``.

    The mean count of a white pixel is the number of different 8-bit values in the image, rounded up to a power of two.
    """
    if grey:
        image = torch.einsum("c,chw->hw", image.new_tensor(_GREY), image)[None]
    levels = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    different = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    photons = 2.0 ** math.ceil(math.log2(different))
    means = np.arange(256) / 255 * photons
    return torch.from_numpy(((draw.poisson(means[levels]) - means[levels]) / photons).astype(np.float32))


def jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (3, H, W) after JPEG compression at Pillow's ``quality``, colours at half the resolution (4:2:0).

    Raises InputError for a quality that is not a whole number from 1 to 100.
    """
    if not _is_whole(quality, 1, 100):
        raise InputError(f"JPEG has no quality {quality!r}; give a whole number from 1 to 100")
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()  # (H, W, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as decoded:
        pixels = torch.from_numpy(np.array(decoded))
    return pixels.permute(2, 0, 1).to(torch.float32) / 255


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Distances of a kernel's taps from its centre, along y and x: float64 (size, size) each."""
    if not _is_odd(size):
        raise InputError(f"size {size!r} does not make a kernel; give an odd number from 1 on")
    line = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _factor(settings: Round, draw: np.random.Generator) -> float:
    low, high = settings.resize_range
    end = (high, low, 1.0)[_choice(settings.resize, draw)]
    return 1 + (end - 1) * draw.random()


def _sides(height: float, width: float) -> tuple[int, int]:
    return max(1, int(height)), max(1, int(width))


def _around_one(ends: Range, draw: np.random.Generator) -> float:
    low, high = (min(ends[0], 1.0), 1.0) if draw.random() < 0.5 else (1.0, max(ends[1], 1.0))
    return draw.uniform(low, high)


def _choice(probabilities: Sequence[float], draw: np.random.Generator) -> int:
    return int(np.searchsorted(np.cumsum(probabilities[:-1]), draw.random(), side="right"))


def _one_of(values: Sequence[T], draw: np.random.Generator) -> T:
    return values[int(draw.integers(len(values)))]


def _check(hr: Tensor, scale: int) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise InputError(f"scale {scale!r} is not possible: give a whole number from 1 on, such as 2, 3 or 4")
    if hr.dim() != 4 or hr.shape[1] != 3 or 0 in hr.shape or not hr.is_floating_point():
        raise InputError(
            f"the degradation takes float images (B, 3, H, W) in [0, 1], not {hr.dtype} of shape {tuple(hr.shape)};"
            " convert them first"
        )
    height, width = hr.shape[2:]
    if height % scale or width % scale:
        raise InputError(f"{width}x{height} pixels are no multiple of the scale {scale}; crop the images to one")
