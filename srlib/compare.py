"""All networks of the book on the same images: who takes part, what is looked at, and measures for it.

A chapter that sets networks side by side wants one set of images, one protocol and one budget for all of them.
``contenders`` gives the upscalers under the titles that the papers use, ``pair`` the images at any scale. The place
that is shown enlarged follows a rule (``busiest``), and what an output lacks is measured by ``luma_error`` and
``radial_spectrum``. Nothing here draws.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srlib import complexity, features, metrics, runs
from srlib.data import Store
from srlib.errors import InputError
from srlib.evaluate import bicubic
from srlib.models import takes_scale
from srlib.models.moeisr import executed_macs, mapper_macs
from srlib.models.seemore import Router, SeemoReConfig
from srlib.papers import seemore
from srlib.resize import imresize

MODELS = {"SAFMN": "safmn", "SeemoRe-T": "seemore-t", "SSIU": "ssiu", "MoEISR": "moeisr-lte-s-edsr"}
"""The networks that are compared: the title of each, and the model that stands for its paper."""

PAINT = {"bicubic": "bicubic", "SAFMN": "safmn", "SeemoRe-T": "seemore", "SSIU": "ssiu", "MoEISR": "moeisr"}
"""Whose colour in ``srlib.viz`` each title has."""

MAIN_SCALE = 4
TRAINED_SCALES = (2, 3, 4)
"""The scales that the networks for one scale are trained at: as long as a budget says at the main one, as long as a row
of an ablation table at the others."""

FINEST = 100  # scales are taken to this many steps between two whole numbers


@dataclass(frozen=True)
class Contender:
    """One of the upscalers that are compared: ``upscale`` takes and gives what ``evaluate.score`` wants of it; ``run``
    is None for bicubic."""

    upscale: Callable[[Tensor], Tensor]
    run: runs.Run | None = None

    @property
    def ending(self) -> str:
        """How its training ended, in words."""
        return "no training" if self.run is None else self.run.ending


def contenders(
    scale: float,
    store: Store,
    held_out: Store,
    *,
    budget: str = "smoke",
    seed: int = 0,
    root: Path | str = "runs",
    device: str = "auto",
) -> dict[str, Contender]:
    """Bicubic and the networks of ``MODELS`` by title, each trained on ``store`` at one budget or loaded from ``root``.

    A network for one scale takes part at ``TRAINED_SCALES`` alone; one for every scale is the same network at any
    ``scale``. Raises InputError for a scale below 1, and as ``runs.configure`` and ``runs.train_or_load`` do.
    """
    _check_scale(scale)
    found = {"bicubic": Contender(_bicubic(scale))}
    for title, model in MODELS.items():
        own = takes_scale(model)
        if own and scale not in TRAINED_SCALES:
            continue
        config = runs.configure(
            model, int(scale) if own else None, store, budget=budget, ablation=own and scale != MAIN_SCALE, seed=seed
        )
        named = f"{title} x{scale:g}, {budget}" if own else f"{title}, {budget}"
        run = runs.train_or_load(config, store, held_out, root=root, device=device, title=named)
        found[title] = Contender(runs.upscaler(run.network(runs.pick_device(device)), scale).eval(), run)
    return found


def endings(found: Mapping[str, Contender]) -> str:
    """How long each network was trained, in one line: "SAFMN: 800 steps; SeemoRe-T: 650 steps"."""
    return "; ".join(f"{title}: {one.ending}" for title, one in found.items() if one.run is not None)


def records(found: Mapping[str, Contender]) -> dict[str, str]:
    """The record of each network by title, as ``srlib.viz`` wants it: the name of its run's folder."""
    return {title: one.run.folder.name for title, one in found.items() if one.run is not None}


def pair(store: Store, name: str, scale: float) -> tuple[Tensor, Tensor]:
    """LR and HR of the image ``name`` at any scale from 1 up: uint8 (3, h, w) and (3, scale h, scale w).

    Whole scales are the store's own. For another one HR is cropped at its far edges to the largest size that is
    ``scale`` times whole LR pixels, and reduced by MATLAB's bicubic. Raises InputError for an unknown name, a scale
    below 1 and an image that is too small for it.
    """
    _check_scale(scale)
    if name not in store.names:
        raise InputError(f"{store.name} has no image {name!r}; choose one of: {', '.join(store.names)}")
    index, exact = store.names.index(name), _exact(scale)
    if exact.denominator == 1:
        return store.pair(index, int(exact))
    hr, (up, down) = store.hr(index), exact.as_integer_ratio()
    blocks = [side // up for side in hr.shape[1:]]
    if min(blocks) < 1:
        raise InputError(f"{name} is {hr.shape[2]}x{hr.shape[1]}, too small for x{scale:g}: choose another scale")
    hr = hr[:, : up * blocks[0], : up * blocks[1]]
    return imresize(hr, size=(down * blocks[0], down * blocks[1])), hr


def enlarged(found: Mapping[str, Contender], lr: Tensor, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """What each of the contenders makes of an LR image (3, h, w), uint8: (3, H, W) in [0, 1] by title, on the CPU."""
    image = lr[None].to(device).float() / 255
    with torch.inference_mode():
        return {title: one.upscale(image)[0].float().clamp(0, 1).cpu() for title, one in found.items()}


def scores(images: Mapping[str, Tensor], hr: Tensor, protocol: metrics.Protocol, scale: float) -> dict[str, str]:
    """The scores of images (3, H, W) against ``hr`` by title, as papers print them: "26.62 dB / 0.7512".

    Raises InputError as ``metrics.psnr`` and ``metrics.ssim`` do.
    """
    return {
        title: f"{metrics.psnr(image, hr, protocol, scale).item():.2f} dB / "
        f"{metrics.ssim(image, hr, protocol, scale).item():.4f}"
        for title, image in images.items()
    }


def busiest(hr: Tensor, size: tuple[int, int] = (96, 128), step: int = 4) -> tuple[int, int, int, int]:
    """The window of ``hr`` (3, H, W) with the largest gradient energy, as (top, left, height, width) in pixels.

    The energy is the sum of squared differences of neighbouring pixels, down and across, of the mean of the channels;
    windows of ``size`` (height, width) are tried at every ``step`` pixels. Of equal ones the first is taken. Raises
    InputError for an image that is smaller than the window.
    """
    tall, wide = size
    if min(size) < 1 or step < 1 or hr.shape[-2] < tall or hr.shape[-1] < wide:
        raise InputError(
            f"a window of {wide}x{tall} doesn't fit an image of {hr.shape[-1]}x{hr.shape[-2]}; give a smaller one"
        )
    grey = hr.double().mean(0)[None]
    down, across = F.pad(grey.diff(dim=1), (0, 0, 0, 1)), F.pad(grey.diff(dim=2), (0, 1))
    energy = F.avg_pool2d(down**2 + across**2, size, stride=step)[0]
    best = int(energy.argmax())
    return step * (best // energy.shape[1]), step * (best % energy.shape[1]), tall, wide


def luma_plane(image: Tensor) -> Tensor:
    """The luma of an image (3, H, W), uint8 or float in [0, 1], as it would be stored and compared: clamped, rounded to
    8 bits, MATLAB's weights; float64 (H, W) from 16 to 235."""
    pixels = image if image.dtype == torch.uint8 else (image.double().clamp(0, 1) * 255).round()
    return metrics.luma(pixels.double()[None], metrics.protocol("safmn"))[0, 0]


def luma_error(sr: Tensor, hr: Tensor) -> Tensor:
    """How far each pixel's luma lies from the original's: float64 (H, W), in grey levels from 0 up.

    Images as for ``luma_plane``. Raises InputError for images of different sizes.
    """
    if sr.shape != hr.shape:
        raise InputError(f"images of shapes {tuple(sr.shape)} and {tuple(hr.shape)} differ; make them equal")
    return (luma_plane(sr) - luma_plane(hr)).abs()


def radial_spectrum(plane: Tensor, rings: int = 48) -> tuple[Tensor, Tensor]:
    """The power of a plane (H, W) at each spatial frequency, averaged over directions: frequencies and powers,
    (rings,) each.

    The plane's mean is taken off and a Hann window laid over it, so that its edges don't count as structure. Powers are
    the DFT's squared magnitude over the window's energy: white noise of variance v has v in every ring but the first.
    Rings are of equal width and their middles are the frequencies, in cycles a pixel, from just above 0 to just below
    0.5, where a pixel's neighbours alternate; the corners beyond are left out. Float64. Raises InputError for another
    shape, for values that aren't finite, and for a plane that is too small to have a frequency in each ring.
    """
    if plane.dim() != 2 or rings < 1:
        raise InputError(f"a spectrum is of one plane in 1 ring or more, not {tuple(plane.shape)} in {rings}")
    if not torch.isfinite(plane).all():
        raise InputError("the plane holds values that aren't finite; look at what made it")
    height, width = plane.shape
    down, across = (torch.hann_window(side, dtype=torch.float64) for side in (height, width))
    window = down[:, None] * across
    power = torch.fft.fft2((plane.double() - plane.double().mean()) * window).abs().square() / window.square().sum()
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    frequency = torch.hypot(down[:, None], across)
    ring = (frequency * 2 * rings).long()
    inside = (ring < rings) & (frequency > 0)
    count = torch.bincount(ring[inside], minlength=rings)
    if (count == 0).any():
        raise InputError(f"a plane of {width}x{height} has no frequency in some of {rings} rings; ask for fewer rings")
    total = torch.bincount(ring[inside], weights=power[inside], minlength=rings)
    return (torch.arange(rings, dtype=torch.float64) + 0.5) / (2 * rings), total / count


def multiply_adds(network: nn.Module, image: Tensor, scale: float) -> int:
    """Multiply-adds of a network as executed for this one ``image`` (1, 3, h, w) in [0, 1], enlarged by ``scale``.

    SeemoRe chooses experts by image and MoEISR by pixel: theirs are those of the route that this image takes.
    MoEISR's count is of the decoder as ``srlib.models.moeisr`` computes it. Others depend on the size alone. Raises
    InputError for another shape.
    """
    if image.dim() != 4 or len(image) != 1:
        raise InputError(f"multiply-adds are counted for one image, 1x3xHxW, not {tuple(image.shape)}")
    size, config = (image.shape[2], image.shape[3]), network.config
    if hasattr(network, "expert_map"):
        with torch.inference_mode():
            chosen = network.expert_map(image).flatten()
        asked = torch.bincount(chosen, minlength=len(config.depths)) / chosen.numel()
        return _executed(network, size, scale, asked.tolist())
    counted = complexity.count(network, size).macs
    if not _routed(network):
        return counted
    routers = {name: module for name, module in network.named_modules() if isinstance(module, Router)}
    gates = features.record(network.eval(), image, routers).values()
    ranks = sum(rank for gate in gates for rank, weight in zip(config.ranks, gate.tolist(), strict=True) if weight > 0)
    return seemore.macs_by_ranks(config, size, counted)[ranks]


def multiply_adds_range(network: nn.Module, lr_size: tuple[int, int], scale: float) -> tuple[int, int] | None:
    """The least and the most multiply-adds that an image of ``lr_size`` (height, width) can take, over all routes; None
    for a network that computes the same for all images."""
    if not hasattr(network, "expert_map"):
        return seemore.route_macs(network.config, lr_size) if _routed(network) else None
    experts = torch.eye(len(network.config.depths)).tolist()
    found = [_executed(network, lr_size, scale, shares) for shares in experts]
    return min(found), max(found)


def training_multiply_adds(network: nn.Module, patch: int, batch: int, queries: int = 0) -> int:
    """Multiply-adds of one training step's forward pass over a batch of LR patches; backward takes about twice as many
    on top.

    A network for one scale computes whole patches of ``patch`` x ``patch``. One for every scale answers ``queries``
    output pixels of each, and while it learns all of its experts answer all of them; its matrix products and
    convolutions are counted as they are executed. SeemoRe, too, computes every expert while it learns. Raises
    InputError for a network for every scale without queries.
    """
    if not hasattr(network, "expert_map"):
        return batch * complexity.count(network, (patch, patch)).macs
    if queries < 1:
        raise InputError(f"{queries} queries of a patch train no network for every scale; give 1 or more")
    twin = copy.deepcopy(network).to("cpu").train()
    lr, coord = torch.zeros(1, 3, patch, patch), torch.zeros(1, queries, 2)
    with torch.no_grad(), torch.random.fork_rng([]), FlopCounterMode(display=False) as counter:
        twin(lr, coord=coord, cell=torch.ones(1, 2))
    return batch * counter.get_total_flops() // 2  # it counts a multiply-add as two


def _routed(network: nn.Module) -> bool:
    return isinstance(network.config, SeemoReConfig) and network.config.rme != "plain"


def _executed(network: nn.Module, lr_size: tuple[int, int], scale: float, shares: Sequence[float]) -> int:
    """Those of a network for every scale: encoder, mapper, each LR pixel's row of the table, and the queries, of which
    each expert answers its share."""
    config, (height, width) = network.config, lr_size
    pixel, experts = executed_macs(config)
    outputs = round(height * scale) * round(width * scale) * (4 if config.ensemble else 1)
    queries = outputs * sum(part * macs for part, macs in zip(shares, experts, strict=True))
    encoder = complexity.count(network.encoder, lr_size).macs
    return round(encoder + height * width * (mapper_macs(config) + pixel) + queries)


def _bicubic(scale: float) -> Callable[[Tensor], Tensor]:
    """Bicubic to the size that ``pair`` has: the sides times the scale, which are whole but for rounding."""
    if _exact(scale).denominator == 1:
        return bicubic(int(_exact(scale)))

    def upscale(lr: Tensor) -> Tensor:
        size = [round(side * scale) for side in lr.shape[-2:]]
        return imresize((lr * 255).round().clamp(0, 255).to(torch.uint8), size=(size[0], size[1])).to(lr.dtype) / 255

    return upscale


def _exact(scale: float) -> Fraction:
    return Fraction(scale).limit_denominator(FINEST)


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale) or scale < 1:
        raise InputError(f"scale {scale!r} enlarges nothing; give a number from 1 up")
