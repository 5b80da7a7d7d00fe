"""Scores of an upscaler on a dataset, under a stated protocol: per image, and the mean as papers print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from srlib import metrics
from srlib.data import Store
from srlib.errors import InputError
from srlib.metrics import MATLAB, Protocol
from srlib.resize import enlarged_size, imresize
from srlib.tiles import Device, Upscaler, enlarge

Precision = Literal["32-true", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_PSNR = 40.0  # dB, of outputs in half precision to those in 32 bits: a score of 30 dB loses less than half a dB
TILE = 640  # side in LR pixels: the papers enlarge images whole, and all benchmarks' are smaller but DIV2K's at x2


@dataclass(frozen=True)
class Scores:
    """Scores on one dataset at one scale, with everything that they depend on but the upscaler.

    ``fingerprint`` identifies the HR images' content; ``lr_origin`` says where the LR images came from. ``images`` has
    the name of each, its PSNR in dB, infinite where it is equal to the HR image, and its SSIM.
    """

    dataset: str
    fingerprint: str
    lr_origin: str
    scale: float
    protocol: Protocol
    images: list[tuple[str, float, float]]

    @property
    def psnr(self) -> float:
        """Mean over the images, in dB; not rounded."""
        return sum(psnr for _, psnr, _ in self.images) / len(self.images)

    @property
    def ssim(self) -> float:
        """Mean over the images; not rounded."""
        return sum(ssim for _, _, ssim in self.images) / len(self.images)

    @property
    def text(self) -> str:
        """The means as papers print them, and where the LR images came from: "32.18 / 0.8948 (LR: distributed)"."""
        return f"{self.psnr:.2f} / {self.ssim:.4f} (LR: {self.lr_origin})"

    def add(self, name: str, sr: Tensor, hr: Tensor) -> None:
        """Score one image."""
        psnr, ssim = (metric(sr, hr, self.protocol, self.scale).item() for metric in (metrics.psnr, metrics.ssim))
        self.images.append((name, psnr, ssim))

    def frame(self) -> pd.DataFrame:
        """One line an image: dataset, scale, protocol, lr, image, psnr, ssim; neither rounded, PSNR may be inf."""
        columns = ["dataset", "scale", "protocol", "lr", "image", "psnr", "ssim"]
        about = (self.dataset, self.scale, self.protocol.name, self.lr_origin)
        return pd.DataFrame([(*about, *image) for image in self.images], columns=columns)


def score(
    upscale: Upscaler, store: Store, scale: int, protocol: Protocol, device: Device = "cpu", tile: int = TILE
) -> Scores:
    """``score_under`` one protocol."""
    return score_under(upscale, store, scale, [protocol], device, tile)[0]


def score_under(
    upscale: Upscaler, store: Store, scale: int, protocols: Sequence[Protocol], device: Device = "cpu", tile: int = TILE
) -> tuple[Scores, ...]:
    """Upscale every LR image of a store once and compare the result with its HR image under each protocol.

    ``upscale`` and ``tile`` are those of ``tiles.enlarge``. Raises InputError as that does, and for an image too small
    for the protocol.
    """
    origin = store.lr_origin(scale)
    found = tuple(Scores(store.name, store.fingerprint, origin, scale, protocol, []) for protocol in protocols)
    for i, name in enumerate(store.names):
        lr, hr = store.pair(i, scale)
        try:
            sr = enlarge(upscale, lr, scale, tile, device=device).to(device)
            for scores in found:
                scores.add(name, sr, hr.to(device))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return found


def compare(images: Mapping[str, Tensor], protocol: Protocol, scale: float = 4) -> dict[str, str]:
    """PSNR and SSIM of images (3, H, W), uint8 or float in [0, 1], against the first of them, by label, as text:
    "26.62 dB / 0.7512"; those of another size, such as LR, are left out."""
    (_, hr), *others = images.items()
    pairs = {label: (image, hr, protocol, scale) for label, image in others if image.shape == hr.shape}
    return {label: f"{metrics.psnr(*p).item():.2f} dB / {metrics.ssim(*p).item():.4f}" for label, p in pairs.items()}


def luma_bicubic(store: Store, scale: int) -> Scores:
    """MATLAB's bicubic on the luma plane alone: how the bicubic rows that papers copy from one another were made.

    The HR image's 8-bit luma is reduced and enlarged as one floating-point plane, rounded to 8 bits and compared with
    itself (the convention of SRCNN's evaluation, Dong et al., 2014); an image of one channel is taken for the luma
    itself, in its full range. RGB images reduced, stored in 8 bits and enlarged, as networks are given them, score
    differently.
    """
    protocol = replace(MATLAB, name="matlab-luma")
    scores = Scores(store.name, store.fingerprint, "matlab-bicubic of luma", scale, protocol, [])
    for i, name in enumerate(store.names):
        lr, hr = store.pair(i, scale)
        luma = hr[None, :1].double() if store.grey(i) else metrics.luma(hr[None].double(), MATLAB)
        luma = luma / 255
        scores.add(name, imresize(imresize(luma, size=lr.shape[-2:]), size=luma.shape[-2:]), luma)
    return scores


def bicubic(scale: float) -> Upscaler:
    """An upscaler for ``score``: MATLAB's bicubic on 8-bit images; papers' tables mostly have ``luma_bicubic``.

    It takes float images in [0, 1], rounds them to 8 bits and returns 8-bit values as floats in [0, 1].
    """

    def upscale(lr: Tensor) -> Tensor:
        eight_bit = (lr * 255).round().clamp(0, 255).to(torch.uint8)
        return imresize(eight_bit, size=enlarged_size(lr.shape[-2:], scale)).to(lr.dtype) / 255

    return upscale


class AtScale(nn.Module):
    """A network for every scale as an upscaler: LR (B, 3, h, w) to (B, 3, H, W), of ``enlarged_size``."""

    network: Any  # a module with ``render``

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, lr: Tensor) -> Tensor:
        return self.network(lr, size=enlarged_size(lr.shape[-2:], self.scale))

    def window(
        self, part: Tensor, corner: tuple[int, int], whole: tuple[int, int], rows: slice, columns: slice
    ) -> Tensor:
        """``rows`` and ``columns`` of the output for an LR image of size ``whole``, from the ``part`` (1, 3, h, w) of
        it that starts at ``corner``: (1, 3, n, m). The scale need not be whole."""
        return self.network.render(part, corner, whole, enlarged_size(whole, self.scale), rows, columns)


def upscaler(network: nn.Module, scale: float, precision: Precision = "32-true", device: str = "cpu") -> nn.Module:
    """A network as an upscaler for ``scale``: in ``AtScale`` if it takes every scale, in ``Half`` for half precision.

    Raises InputError where it takes another scale only, or cannot compute in that precision on that device.
    """
    own = getattr(getattr(network, "config", None), "scale", None)
    if own not in (None, scale):
        raise InputError(f"a network for scale {own} can't enlarge by {scale:g}: give one for that scale")
    at_scale = AtScale(network, scale) if hasattr(network, "render") else network
    return at_scale if precision == "32-true" else Half(at_scale, precision, device)


class Half(nn.Module):
    """An upscaler in half precision, "bf16" or "fp16": autocast decides which operators compute in it.

    Images, weights and results stay float32. Raises InputError for fp16 on a CPU, where a test image's result is far
    from that of 32 bits, and where any image's is not finite.
    """

    upscale: Any

    def __init__(self, upscale: nn.Module, precision: Precision, device: str) -> None:
        super().__init__()
        if (device, precision) == ("cpu", "fp16"):
            raise InputError("a CPU takes many times longer in fp16: give --precision bf16 or 32-true, or use a GPU")
        self.upscale, self.precision, self.device = upscale.eval(), precision, device
        if hasattr(upscale, "window"):  # by which a network for every scale works in tiles
            self.window = partial(self.cast, self.upscale.window)
        y, x = torch.meshgrid(torch.linspace(0, 9, 64), torch.linspace(0, 9, 64), indexing="ij")
        image = torch.stack([(x + y).sin(), (x * y).sin(), (x - y).cos()])[None].to(device) / 2 + 0.5
        with torch.inference_mode():
            likeness = -10 * (self(image) - upscale(image)).square().mean().log10().item()
        if not likeness > LEAST_PSNR:
            far = f"{likeness:.0f} dB from its output in 32 bits"
            raise InputError(f"in {precision} this network's output is {far}: use --precision 32-true")

    def cast(self, compute: Upscaler, *given: Any) -> Tensor:
        """What ``compute`` makes of images, in half precision."""
        with torch.autocast(self.device, HALF[self.precision]):
            sr = compute(*given).float()
        if not sr.isfinite().all():
            raise InputError(f"in {self.precision} this network's output is not finite: use --precision 32-true")
        return sr

    def forward(self, lr: Tensor) -> Tensor:
        return self.cast(self.upscale, lr)
