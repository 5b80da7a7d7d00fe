"""Scores of an upscaler on a set of images: under a stated protocol, per image and mean, as a record."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from srlib import metrics
from srlib.errors import InputError
from srlib.metrics import Protocol
from srlib.resize import imresize
from srlib.tiles import enlarged, evaluation_mode, plan

if TYPE_CHECKING:
    from srlib.data import Store


@dataclass(frozen=True)
class ImageScore:
    """One image's PSNR in dB and SSIM; ``tile`` and ``overlap`` in LR pixels where it was enlarged in tiles."""

    name: str
    psnr: float
    ssim: float
    tile: int | None = None
    overlap: int | None = None

    @property
    def text(self) -> str:
        """PSNR and SSIM as papers print them: "32.18 / 0.8948"."""
        return f"{self.psnr:.2f} / {self.ssim:.4f}"

    def record(self) -> dict[str, object]:
        """The fields as JSON data; those of tiles only where there were some."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """Scores on one dataset at one scale, with everything that they depend on but the upscaler.

    ``fingerprint`` identifies the HR images' content; ``lr_origin`` says where the LR images came from.
    """

    dataset: str
    fingerprint: str
    lr_origin: str
    scale: float
    protocol: Protocol
    images: tuple[ImageScore, ...]

    @property
    def psnr(self) -> float:
        """Mean over the images, in dB; not rounded."""
        return sum(image.psnr for image in self.images) / len(self.images)

    @property
    def ssim(self) -> float:
        """Mean over the images; not rounded."""
        return sum(image.ssim for image in self.images) / len(self.images)

    @property
    def tile(self) -> int | None:
        """The smallest tile that an image was enlarged in, in LR pixels; None where all were enlarged whole."""
        return min((image.tile for image in self.images if image.tile is not None), default=None)

    @property
    def overlap(self) -> int | None:
        """The smallest overlap of such tiles."""
        return min((image.overlap for image in self.images if image.overlap is not None), default=None)

    @property
    def text(self) -> str:
        """The means as papers print them: "32.18 / 0.8948"."""
        return ImageScore("mean", self.psnr, self.ssim).text

    def record(self) -> dict[str, object]:
        """All of it, ready for JSON; the PSNR of equal images is infinite, which Python's json writes as Infinity."""
        return {
            "dataset": self.dataset,
            "fingerprint": self.fingerprint,
            "lr_origin": self.lr_origin,
            "scale": self.scale,
            "protocol": self.protocol.record(),
            "psnr": self.psnr,
            "ssim": self.ssim,
            "images": [image.record() for image in self.images],
        }


def score(
    upscale: Callable[[Tensor], Tensor],
    store: "Store",
    scale: float,
    protocol: Protocol,
    device: str | torch.device = "cpu",
    *,
    tile: int | None = None,
    overlap: int | None = None,
) -> Scores:
    """Upscale every LR image of a store and compare the result with its HR image under the protocol.

    ``upscale`` takes float32 images in [0, 1], 1x3xHxW on ``device``, and returns float images of ``scale`` times the
    size; a network is put into evaluation mode meanwhile. An image that is too large for the free memory is enlarged in
    tiles and compared on the CPU, and its score says so; ``tile`` and ``overlap`` (LR pixels) ask for some of that
    size, tile 0 for none; see ``srlib.tiles.plan``. Raises InputError where the store is empty, a result has the wrong
    size, or an image is too small for the protocol, and for settings that ``plan`` refuses.
    """
    _check_images(store)
    images = []
    for index, name in enumerate(store.names):
        lr, hr = store.pair(index, scale)
        try:
            planned = plan(upscale, lr.shape[1:], scale, device=device, tile=tile, overlap=overlap)
            sr, used = enlarged(upscale, lr, scale, planned, device=device)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        _check_size(name, sr[None], lr, hr, scale)
        found = _compare(name, sr[None], hr[None].to(sr.device), protocol, scale)
        images.append(found if used.tile is None else replace(found, tile=used.tile, overlap=used.overlap))
    return Scores(store.name, store.fingerprint, store.lr_origin(scale), scale, protocol, tuple(images))


def outputs(
    upscale: Callable[[Tensor], Tensor], store: "Store", scale: float, device: str | torch.device = "cpu"
) -> tuple[Tensor, ...]:
    """What ``upscale`` makes of every LR image of a store, 1x3xHxW each, to be compared in more than one way.

    Takes and raises what ``score`` does; outputs are neither clamped nor rounded.
    """
    _check_images(store)
    made = []
    with torch.inference_mode(), evaluation_mode(upscale):
        for index, name in enumerate(store.names):
            lr, hr = (image.to(device) for image in store.pair(index, scale))
            made.append(_enlarged(name, upscale, lr, hr, scale))
    return tuple(made)


def compare(images: Sequence[Tensor], store: "Store", scale: float, protocol: Protocol) -> Scores:
    """The scores of images that are there already, such as those of ``outputs``, in the store's order.

    ``score`` gives the same in one step, without keeping the images. Raises InputError where there is not one image for
    each of the store's, or one has another size.
    """
    _check_images(store)
    if len(images) != len(store):
        raise InputError(f"{len(images)} images for the {len(store)} of {store.name}; give one for each, in its order")
    scores = tuple(
        _compare(name, sr, store.pair(index, scale)[1][None].to(sr.device), protocol, scale)
        for index, (name, sr) in enumerate(zip(store.names, images, strict=True))
    )
    return Scores(store.name, store.fingerprint, store.lr_origin(scale), scale, protocol, scores)


def bicubic(scale: float) -> Callable[[Tensor], Tensor]:
    """An upscaler for ``score``: MATLAB's bicubic on 8-bit images, the baseline of every paper's tables.

    It takes float images in [0, 1], rounds them to 8 bits and returns 8-bit values as floats in [0, 1].
    """
    _check_positive(scale)

    def upscale(lr: Tensor) -> Tensor:
        eight_bit = (lr * 255).round().clamp(0, 255).to(torch.uint8)
        return imresize(eight_bit, scale=scale).to(lr.dtype) / 255

    return upscale


class AtScale(nn.Module):
    """A network for every scale as an upscaler for ``score``: LR (B, 3, h, w) to (B, 3, H, W), the sides times the
    scale and rounded. ``window`` needs the parts of a ``srlib.models.moeisr.MoEISR``.
    """

    def __init__(self, network: nn.Module, scale: float) -> None:
        """Raises InputError for a scale that is not positive."""
        super().__init__()
        _check_positive(scale)
        self.network = network
        self.scale = scale

    def forward(self, lr: Tensor) -> Tensor:
        return self.network(lr, size=self.size(lr.shape[-2:]))

    def size(self, lr: Sequence[int]) -> tuple[int, int]:
        """The output's height and width for an LR image of that height and width."""
        height, width = (max(1, round(side * self.scale)) for side in lr)
        return height, width

    def window(
        self, part: Tensor, corner: tuple[int, int], whole: tuple[int, int], rows: slice, columns: slice
    ) -> Tensor:
        """``rows`` and ``columns`` of the output for an LR image of size ``whole``, from the ``part`` (1, 3, h, w) of
        it that starts at ``corner``: (1, 3, n, m).

        Output pixels ask the LR pixels that they would ask in the whole image. Of those beyond the part's border, the
        nearest in it answers, as it does at an image's border. The scale need not be whole.
        """
        net, size = self.network, self.size(whole)
        x = (part - 0.5) / 0.5
        z = net.encoder(x)
        chosen = net.choices(z).flatten()
        cell = x.new_tensor([2 * small / large for small, large in zip(whole, size, strict=True)])
        table = net.table(z, chosen, cell)
        near, places = [], []
        spans = zip(net.grid(whole, size, z.device), corner, (rows, columns), z.shape[-2:], strict=True)
        for axis, first, span, side in spans:
            number, way = (one[:, span] for one in axis)
            here = (number - first).clamp(0, side - 1)
            near.append((here, way + 2 * (number - first - here)))  # ways are in half LR pixels
            centre = (number + way / 2)[0] + 0.5 - first  # in LR pixels of the part
            places.append(2 * centre / side - 1)
        shape = [len(one) for one in places]
        answers = []
        for some in net.portions(shape[0] * shape[1], z):
            at = (some // shape[1], some % shape[1])
            asked_of = ([one[:, i] for one in axis] for axis, i in zip(near, at, strict=True))
            asked = net.queries(*asked_of, z.shape[-1], 0)
            rgb = (net.ask(table, chosen, asked, cell) * asked.weight[..., None]).sum(0)
            coord = torch.stack([axis[i] for axis, i in zip(places, at, strict=True)], -1)
            answers.append(net.finish_at(rgb[None], x, coord[None])[0])
        sr = torch.cat(answers).T.unflatten(1, shape)
        return sr[None] * 0.5 + 0.5


def luma_bicubic(store: "Store", scale: float) -> Scores:
    """MATLAB's bicubic on the luma plane alone: how the bicubic rows that papers copy from one another were made.

    The HR image's 8-bit luma is reduced and enlarged as one floating-point plane, rounded to 8 bits and compared with
    itself (the convention of SRCNN's evaluation, Dong et al., 2014); an image of one channel is taken for the luma
    itself, in its full range. RGB images reduced, stored in 8 bits and enlarged, as networks are given them, score
    differently. Raises InputError as ``score`` does.
    """
    plane = "MATLAB bicubic, not rounded, of the 8-bit luma of the HR image cropped to a multiple of the scale"
    protocol = replace(metrics.protocol("matlab"), name="matlab-luma", lr_origin=plane)
    _check_images(store)
    images = []
    for index, name in enumerate(store.names):
        lr, hr = store.pair(index, scale)
        luma = hr[None, :1].double() if store.grey(index) else metrics.luma(hr[None].double(), protocol)
        luma = luma / 255
        sr = imresize(imresize(luma, size=lr.shape[-2:]), size=luma.shape[-2:])
        images.append(_compare(name, sr, luma, protocol, scale))
    return Scores(store.name, store.fingerprint, "matlab-bicubic of luma", scale, protocol, tuple(images))


def _check_positive(scale: float) -> None:
    if not math.isfinite(scale) or scale <= 0:
        raise InputError(f"scale {scale!r} is not positive; give a number above 0")


def _check_images(store: "Store") -> None:
    if len(store) == 0:
        raise InputError(f"{store.name} holds no images; give a folder with at least one")


def _enlarged(name: str, upscale: Callable[[Tensor], Tensor], lr: Tensor, hr: Tensor, scale: float) -> Tensor:
    sr = upscale(lr[None].to(torch.float32) / 255)
    _check_size(name, sr, lr, hr, scale)
    return sr


def _check_size(name: str, sr: Tensor, lr: Tensor, hr: Tensor, scale: float) -> None:
    if sr.shape != (1, *hr.shape):
        raise InputError(
            f"{name}: the upscaler made {tuple(sr.shape)} of {(1, *lr.shape)}, not {(1, *hr.shape)};"
            f" use one for scale {scale:g}"
        )


def _compare(name: str, sr: Tensor, hr: Tensor, protocol: Protocol, scale: float) -> ImageScore:
    try:
        psnr, ssim = (metric(sr, hr, protocol, scale).item() for metric in (metrics.psnr, metrics.ssim))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return ImageScore(name, psnr, ssim)
