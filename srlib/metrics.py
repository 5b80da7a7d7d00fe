"""PSNR and SSIM under explicit protocols.

A score means nothing without the choices behind it: which channel, which luma formula, how wide a border is cut,
whether the output is clamped and rounded to 8 bits, which window SSIM uses. A ``Protocol`` states them all, and
``PROTOCOLS`` has one for each paper's evaluation. Arithmetic is float64 unless a protocol says otherwise, on the device
of the images. Large images are compared in bands of rows, so that memory is that of a band; only the order of the sums
differs then.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from srlib.errors import InputError

MATLAB_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601 in the range 16..235, as in MATLAB's rgb2ycbcr
LIIF_LUMA = (65.738, 129.057, 25.064)  # the same over 256 instead of 255, to three digits

AT_ONCE = 1 << 22  # pixels of an image that is compared as one, as all of DIV2K are; larger ones are in bands
BAND = 1 << 20  # pixels of such a band


@dataclass(frozen=True)
class Protocol:
    """Every choice between two images and a score; images enter as R, G, B in [0, 1].

    The luma of a pixel, in 8-bit units, is ``luma_gain * (luma . RGB) + luma_offset``; images of one channel are taken
    as luma already. ``border_at`` holds pairs (scale, border) that take precedence over the rule ``border_per_scale *
    scale + border_extra``. ``ssim_precision`` is that of SSIM's local means and squares. ``means`` says how a release
    rounds the means that it prints; the means kept in records are never rounded. ``lr_origin`` says which LR images the
    evaluation starts from. ``about`` says what is known of it, what is assumed, and the source. Neither of these two
    has a part in the arithmetic.
    """

    name: str
    about: str = field(compare=False)
    channel: Literal["y", "rgb"] = "y"
    luma: tuple[float, float, float] = MATLAB_LUMA
    luma_gain: float = 1.0
    luma_offset: float = 16.0
    border_per_scale: int = 1
    border_extra: int = 0
    border_at: tuple[tuple[int, int], ...] = ()
    clamp: bool = True
    round_image: bool = True
    round_luma: bool = False
    ssim_window: int = 11
    ssim_sigma: float = 1.5
    ssim_k1: float = 0.01
    ssim_k2: float = 0.03
    ssim_precision: Literal["float64", "float32"] = "float64"
    data_range: float = 255.0
    means: Literal["nearest", "up"] = "nearest"
    lr_origin: str = "MATLAB bicubic, 8 bits, of the HR image cropped to a multiple of the scale"

    def __post_init__(self) -> None:
        if self.channel not in ("y", "rgb"):
            raise InputError(f"protocol {self.name!r} has channel {self.channel!r}; use 'y' or 'rgb'")
        if self.means not in ("nearest", "up"):
            raise InputError(f"protocol {self.name!r} has means {self.means!r}; use 'nearest' or 'up'")
        if self.ssim_precision not in ("float64", "float32"):
            raise InputError(f"protocol {self.name!r} has precision {self.ssim_precision!r}; use 'float64'")
        for name in ("clamp", "round_image", "round_luma"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"protocol {self.name!r} has {name} {getattr(self, name)!r}; use True or False")
        for name in ("luma_gain", "luma_offset", "ssim_sigma", "ssim_k1", "ssim_k2", "data_range"):
            if not _real(getattr(self, name)) or (name in ("ssim_sigma", "data_range") and getattr(self, name) == 0):
                raise InputError(f"protocol {self.name!r} has {name} {getattr(self, name)!r}; use a positive number")
        if not isinstance(self.luma, tuple) or len(self.luma) != 3 or not all(map(_real, self.luma)):
            raise InputError(f"protocol {self.name!r} has luma {self.luma!r}; use three numbers, for R, G and B")
        pairs = self.border_at if isinstance(self.border_at, tuple) else (None,)
        borders = [(self.border_per_scale, self.border_extra), *pairs]
        if not all(isinstance(pair, tuple) and len(pair) == 2 and all(map(_whole, pair)) for pair in borders):
            raise InputError(f"protocol {self.name!r} has borders {borders!r}; use whole numbers from 0 up")
        if not _whole(self.ssim_window) or self.ssim_window % 2 == 0:
            raise InputError(f"protocol {self.name!r} has an SSIM window of {self.ssim_window!r}; use an odd number")

    def border(self, scale: float) -> int:
        """Pixels cut off at each edge of the HR image; a fractional scale's border is rounded up."""
        if not math.isfinite(scale) or scale <= 0:
            raise InputError(f"scale {scale!r} is not positive; give a number above 0")
        return dict(self.border_at).get(scale, math.ceil(self.border_per_scale * scale) + self.border_extra)

    def printed(self, mean: float, digits: int) -> float:
        """A mean as the release prints it with that many digits: to the nearest, or half a unit more (SSIU)."""
        return round(mean + (0.5 * 10**-digits if self.means == "up" else 0.0), digits)

    def record(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        fields = asdict(self)
        return fields | {"luma": list(self.luma), "border_at": [list(pair) for pair in self.border_at]}


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def psnr(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, one float64 value an image (B,); infinite for equal images.

    ``sr`` and ``hr`` are CHW or BCHW, uint8 or float in [0, 1], of one shape. The squared error is averaged over the
    protocol's channels together. Raises InputError for shapes that do not fit each other or leave nothing inside the
    border.
    """
    sr, hr = _comparable(sr, hr, protocol, scale)
    error = _mean((one - other).square() for one, other in _bands(sr, hr, protocol))
    return 10 * torch.log10(protocol.data_range**2 / error)


def ssim(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> Tensor:
    """Structural similarity (Wang et al., 2004), one float64 value an image (B,).

    Gaussian window, only places where it lies wholly inside the image, population (co)variances, mean over places and
    channels: what scikit-image computes with ``gaussian_weights=True, use_sample_covariance=False``. Images as for
    ``psnr``. Raises InputError also where the window is larger than what the border leaves.
    """
    sr, hr = _comparable(sr, hr, protocol, scale)
    size = protocol.ssim_window
    if min(sr.shape[-2:]) < size:
        raise InputError(
            f"{_pixels(sr)} pixels inside the border are fewer than SSIM's {size}x{size} window; give larger images"
        )
    return _mean(_similarity(one, other, protocol) for one, other in _bands(sr, hr, protocol, size - 1))


def _similarity(sr: Tensor, hr: Tensor, protocol: Protocol) -> Tensor:
    """SSIM at every place of the window, float64 (B, C, h, w), of images in 8-bit units."""
    precision = torch.float32 if protocol.ssim_precision == "float32" else torch.float64
    size = protocol.ssim_window
    distance = torch.arange(size, dtype=precision) - size // 2
    window = torch.exp(-(distance**2) / (2 * protocol.ssim_sigma**2))
    sr, hr = sr.to(precision), hr.to(precision)
    maps = torch.stack([sr, hr, sr * sr, hr * hr, sr * hr])  # (5, B, C, H, W)
    maps = _filter(maps, (window / window.sum()).tolist())
    mean_sr, mean_hr, square_sr, square_hr, product = maps.unbind()
    c1 = (protocol.ssim_k1 * protocol.data_range) ** 2
    c2 = (protocol.ssim_k2 * protocol.data_range) ** 2
    both = mean_sr * mean_hr
    luminance = (2 * both + c1) / (mean_sr**2 + mean_hr**2 + c1)
    variances = (square_sr - mean_sr**2) + (square_hr - mean_hr**2)  # each by itself, as single precision needs it
    structure = (2 * (product - both) + c2) / (variances + c2)
    return (luminance * structure).to(torch.float64)


def _filter(maps: Tensor, window: list[float]) -> Tensor:
    """Filter the last two axes with a symmetric separable window, keeping only places where it fits."""
    for axis in (-2, -1):
        new = maps.shape[axis] - len(window) + 1
        total = maps.narrow(axis, 0, new) * window[0]
        for offset, weight in enumerate(window[1:], 1):
            total.add_(maps.narrow(axis, offset, new), alpha=weight)
        maps = total
    return maps


def _comparable(sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> tuple[Tensor, Tensor]:
    """Both images as BCHW, border cut off."""
    if sr.shape != hr.shape:
        raise InputError(f"images of shapes {tuple(sr.shape)} and {tuple(hr.shape)} differ; make them equal")
    if sr.dim() not in (3, 4):
        raise InputError(f"metrics take CHW or BCHW images, not shape {tuple(sr.shape)}; add or remove dimensions")
    border = protocol.border(scale)
    height, width = sr.shape[-2:]
    if min(height, width) <= 2 * border:
        raise InputError(f"an image of {_pixels(sr)} pixels has nothing inside a border of {border}; give larger ones")
    sr, hr = (image if image.dim() == 4 else image[None] for image in (sr, hr))
    inside = (..., slice(border, height - border), slice(border, width - border))
    return sr[inside], hr[inside]


def _bands(sr: Tensor, hr: Tensor, protocol: Protocol, halo: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Both images as the protocol compares them, BCHW float64 in 8-bit units: as they are, or, of large ones, band by
    band, each with the first ``halo`` rows of the next."""
    height, width = sr.shape[-2:]
    step = height if height * width <= AT_ONCE else max(halo, BAND // width, 1)
    for top in range(0, height - halo, step):
        rows = slice(top, top + step + halo)
        yield _prepared(sr[..., rows, :], protocol), _prepared(hr[..., rows, :], protocol)


def _mean(maps: Iterable[Tensor]) -> Tensor:
    """The mean (B,) over all that comes, in bands (B, C, h, W) of one width."""
    means = [(one.mean(dim=(1, 2, 3)), one.shape[-2]) for one in maps]
    height = sum(rows for _, rows in means)
    return sum(mean * (rows / height) for mean, rows in means)


def _prepared(image: Tensor, protocol: Protocol) -> Tensor:
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InputError(f"metrics take uint8 images or float ones in [0, 1], not {image.dtype}; convert them first")
    eight_bit = image.dtype == torch.uint8
    image = image.to(torch.float64)
    if not eight_bit:
        image = image * 255
        if protocol.clamp:
            image = image.clamp(0, 255)
        if protocol.round_image:
            image = image.round()
    if protocol.channel == "rgb" or image.shape[1] == 1:
        return image
    if image.shape[1] != 3:
        raise InputError(f"luma is made of 3 channels, not {image.shape[1]}; give RGB images, or luma as one channel")
    return luma(image, protocol)


def luma(image: Tensor, protocol: Protocol) -> Tensor:
    """The luma plane that a protocol compares: (B, 3, H, W) in 8-bit units to (B, 1, H, W), likewise."""
    red, green, blue = (image / 255).unbind(1)
    weights = [protocol.luma_gain * weight for weight in protocol.luma]
    plane = weights[0] * red + weights[1] * green + weights[2] * blue + protocol.luma_offset
    if protocol.round_luma:
        plane = torch.floor(plane + 0.5)  # MATLAB rounds halves up
    return plane[:, None]


def _pixels(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def protocol(name: str) -> Protocol:
    """The preset of that name, one of ``PROTOCOLS``; raises InputError where there is none."""
    if name not in PROTOCOLS:
        raise InputError(f"no protocol {name!r}; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


_LIIF_ABOUT = (
    "LIIF's released evaluation (which LTE shares) on the benchmarks: clamped, not rounded to 8 bits, luma from its own"
    " coefficients over 256, a border of scale pixels. It measures no SSIM: the window and the offset 16 are assumed,"
    " as in the literature. Beyond x4 it makes the LR images itself, with another bicubic than MATLAB's."
)

#: One protocol a paper, and MATLAB's. SSIM is Wang et al.'s everywhere: an 11x11 Gaussian window of sigma 1.5.
PROTOCOLS: dict[str, Protocol] = {
    one.name: one
    for one in (
        Protocol(
            name="matlab",
            about="The convention of MATLAB evaluations: 8-bit images, 8-bit luma of rgb2ycbcr, a border of scale"
            " pixels. The literature's bicubic rows come from it, but from LR images made of the luma plane alone:"
            " srlib.evaluate.luma_bicubic.",
            round_luma=True,
        ),
        Protocol(
            name="safmn",
            about="SAFMN says only: Y channel. Its release is built on BasicSR: output clamped and rounded to 8 bits,"
            " luma not rounded; the released test settings cut a border of scale pixels.",
        ),
        Protocol(
            name="seemore",
            about="SeemoRe says only: Y channel. Its release is built on BasicSR: output clamped and rounded to 8 bits,"
            " luma not rounded; the released test settings of T and B cut a border of scale pixels.",
        ),
        Protocol(
            name="seemore-l",
            about="As seemore, but the released x4 test settings of SeemoRe-L cut a border of 3 pixels.",
            border_at=((4, 3),),
        ),
        Protocol(
            name="ssiu",
            about="SSIU's released evaluation neither clamps nor rounds the output, cuts a border of scale pixels and"
            " rounds the means up. An error in its luma multiplies the offset by 255, so that luma lies in 4080..4299:"
            " SSIM's luminance term is then close to 1 whatever the images are. Its single-precision window sums to a"
            " little less than 1, which adds about 1 to every variance, and as variances are differences of numbers"
            " near 17 million, digits are lost. Luma itself is in double precision here, in"
            " single there, which moves SSIM by 0.0002 or less.",
            luma_offset=16.0 * 255,
            clamp=False,
            round_image=False,
            ssim_precision="float32",
            means="up",
        ),
        Protocol(
            name="liif",
            about=_LIIF_ABOUT,
            luma=LIIF_LUMA,
            luma_gain=255 / 256,
            round_image=False,
        ),
        Protocol(
            name="liif-div2k",
            about="LIIF's released evaluation on DIV2K: RGB, a border of scale + 6 pixels, clamped, not rounded to"
            " 8 bits. It measures no SSIM: the window, and the mean over channels, are assumed.",
            channel="rgb",
            border_extra=6,
            round_image=False,
        ),
        Protocol(
            name="moeisr",
            about="MoEISR has no released code; it is assumed to be measured as LIIF, whose rows it repeats."
            " Its Table 5 prints SSIM without saying how. " + _LIIF_ABOUT,
            luma=LIIF_LUMA,
            luma_gain=255 / 256,
            round_image=False,
        ),
    )
}
