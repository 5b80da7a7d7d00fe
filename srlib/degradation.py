"""Real-ESRGAN's degradation: low-resolution images as cameras, editing and the internet make them.

Wang, Xie, Dong and Shan, "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data", 2021,
Sections 3.1 to 3.3 and Figure 2. Blur, resizing, noise and JPEG follow one another twice, and a sinc filter, which
rings and overshoots as sharpened images do, comes last. SeemoRe's Table 15 is trained with it.

Three things differ from the authors' release. Each image draws everything for itself; there, sizes, kinds of noise and
the order of the last steps are drawn once a batch. JPEG is real, at a whole quality; there, a differentiable imitation.
An image smaller than a kernel's radius is mirrored more than once.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srlib.errors import InputError

Range = tuple[float, float]


@dataclass(frozen=True)
class Round:
    """One round of blur, resizing, noise and JPEG, by default the first; each (low, high) is drawn from uniformly."""

    blur: float = 1.0  # probability of blurring at all
    sinc: float = 0.1  # probability of a sinc kernel where one blurs
    sigma: Range = (0.2, 3.0)  # width of other kernels along each axis, in pixels
    generalised_beta: Range = (0.5, 4.0)  # exponent of generalised Gaussians, below 1 half of the time
    plateau_beta: Range = (1.0, 2.0)  # exponent of plateau kernels, 1 half of the time
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)  # probabilities of enlarging, reducing and keeping the size
    resize_range: Range = (0.15, 1.5)  # least and largest factor
    gaussian: float = 0.5  # probability of Gaussian noise; otherwise it is Poisson's
    gaussian_sigma: Range = (1.0, 30.0)  # in 8-bit units
    poisson_scale: Range = (0.05, 3.0)  # what Poisson's noise is multiplied by
    grey: float = 0.4  # probability of the same noise in all channels
    jpeg: tuple[int, int] = (30, 95)  # Pillow's quality


# What paper and release train x4 with.
FIRST = Round()
SECOND = Round(
    blur=0.8,
    sigma=(0.2, 1.5),
    resize=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    gaussian_sigma=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
)
SIZES = (7, 9, 11, 13, 15, 17, 19, 21)  # of kernels, in pixels; one is drawn evenly
# Of kernels that are not sinc: Gaussian, generalised and plateau, each isotropic, then with two widths and an angle
ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
MODES = ("area", "bilinear", "bicubic")  # to resize by; one is drawn evenly
FINAL_SINC = 0.8  # probability of the last sinc filter
SINC_FIRST = 0.5  # probability of its coming before the second JPEG compression


def degrade(hr: Tensor, scale: int, seed: int = 0, step: int = 0, index: int = 0) -> Tensor:
    """The low-resolution version of images: (B, 3, h, w) of (B, 3, H, W), float32 in [0, 1] on the device of ``hr``.

    H and W are ``scale`` times h and w; the values are multiples of 1 / 255. Image b of a batch is decided by its
    pixels, ``seed``, ``step`` and ``index`` + b alone, which make key and counter of a Philox generator. It is computed
    on the CPU, where noise and JPEG are at home. Raises InputError for sides that are no multiples of ``scale``.
    """
    if any(side % scale for side in hr.shape[2:]):
        raise InputError(f"sides of {tuple(hr.shape[2:])} are no multiples of scale {scale}; crop the images to some")
    key, degraded = np.array([seed, step], np.uint64), []
    for number, image in enumerate(hr.detach().to("cpu", torch.float32), index):
        draw = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, number], np.uint64)))
        degraded.append(_degrade(image, scale, draw))
    return torch.stack(degraded).to(hr.device)


def _degrade(image: Tensor, scale: int, draw: np.random.Generator) -> Tensor:
    """Figure 2 of the paper for one image (3, H, W)."""
    height, width = image.shape[1:]
    size = height // scale, width // scale

    image = _blur_resize_noise(image, (height, width), FIRST, draw)
    image = jpeg(image, int(draw.integers(*FIRST.jpeg, endpoint=True)))
    image = _blur_resize_noise(image, size, SECOND, draw)

    quality = int(draw.integers(*SECOND.jpeg, endpoint=True))
    sinc_first = draw.random() < SINC_FIRST
    if not sinc_first:
        image = jpeg(image, quality)
    image = resize(image, size, draw.choice(MODES))
    if draw.random() < FINAL_SINC:
        image = blur(image, sinc_kernel(draw.choice(SIZES), draw.uniform(math.pi / 3, math.pi)))
    if sinc_first:
        image = jpeg(image, quality)
    return (image * 255).round().clamp(0, 255) / 255


def _blur_resize_noise(image: Tensor, size: tuple[int, int], settings: Round, draw: np.random.Generator) -> Tensor:
    """A round but for its JPEG; the new size is a random multiple of ``size``."""
    if draw.random() < settings.blur:
        image = blur(image, random_kernel(settings, draw))

    low, high = settings.resize_range
    factor = 1 + (draw.choice((high, low, 1.0), p=settings.resize) - 1) * draw.random()
    height, width = (max(1, int(factor * side)) for side in size)
    image = resize(image, (height, width), draw.choice(MODES))

    grey = draw.random() < settings.grey
    if draw.random() < settings.gaussian:
        noise = gaussian_noise(image, draw.uniform(*settings.gaussian_sigma), grey, draw)
    else:
        noise = draw.uniform(*settings.poisson_scale) * poisson_noise(image, grey, draw)
    return (image + noise).clamp(0, 1)


def random_kernel(settings: Round, draw: np.random.Generator) -> Tensor:
    """A kernel of Section 3.1 or, with probability ``settings.sinc``, of Section 3.3: float32 (k, k), its sum 1."""
    size = draw.choice(SIZES)
    if draw.random() < settings.sinc:
        return sinc_kernel(size, draw.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi))
    kind = draw.choice(len(ODDS), p=ODDS)
    sigma_x, sigma_y = draw.uniform(*settings.sigma), draw.uniform(*settings.sigma)
    angle, betas = draw.uniform(-math.pi, math.pi), [1.0]
    for low, high in (settings.generalised_beta, settings.plateau_beta):
        betas.append(draw.uniform(low, 1.0) if draw.random() < 0.5 else draw.uniform(1.0, high))
    return kernel(size, sigma_x, sigma_y if kind % 2 else sigma_x, angle, betas[kind // 2], plateau=kind >= 4)


def kernel(
    size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0, plateau: bool = False
) -> Tensor:
    """A blur kernel of Section 3.1, float32 (size, size), its sum 1; ``size`` is odd.

    With q(d) = d^T S^-1 d, where S has the standard deviations ``sigma_x`` and ``sigma_y`` (in pixels) along axes
    turned by ``angle`` (radians): exp(-q^beta / 2) for a generalised Gaussian, whose beta is 1 for the usual one, and
    1 / (1 + q^beta) for a plateau.
    """
    y, x = _grid(size)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    q = ((along / sigma_x) ** 2 + (across / sigma_y) ** 2) ** beta
    values = 1 / (1 + q) if plateau else torch.exp(-0.5 * q)
    return (values / values.sum()).to(torch.float32)


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """The circular low-pass filter of Section 3.3, float32 (size, size), its sum 1; ``size`` is odd.

    ``cutoff`` is in radians a pixel, up to pi: w J1(w r) / (2 pi r) with Bessel's function J1, cut to the window.
    """
    radius = torch.hypot(*_grid(size))
    values = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    values[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (values / values.sum()).to(torch.float32)


def blur(image: Tensor, taps: Tensor) -> Tensor:
    """Filter an image (3, H, W) with a kernel (k, k); borders are mirrored about the edge pixel, not repeating it."""
    margin = (taps.shape[-1] // 2,) * 2
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), margin, margin), "reflect"))
    return F.conv2d(padded[None], taps.expand(3, 1, *taps.shape), groups=3)[0]


def resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """An image (3, H, W) at another size by torch's interpolation, which the release uses: bilinear and bicubic reduce
    without antialiasing, and alias."""
    return image if image.shape[1:] == size else F.interpolate(image[None], size=size, mode=mode)[0]


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
        image = torch.einsum("c,chw->hw", torch.tensor([0.2989, 0.587, 0.114]), image)[None]  # ITU-R BT.601
    levels = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    photons = 2.0 ** math.ceil(math.log2(len(np.unique(levels))))
    means = np.arange(256) / 255 * photons
    return torch.from_numpy(((draw.poisson(means[levels]) - means[levels]) / photons).astype(np.float32))


def jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (3, H, W) after JPEG compression at Pillow's ``quality``, colours at half the resolution (4:2:0)."""
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()  # (H, W, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(torch.float32) / 255


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Distances of a kernel's taps from its centre, along y and x: float64 (size, size) each."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x
