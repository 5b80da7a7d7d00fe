"""Images of any size: large ones are enlarged in overlapping tiles, which are blended into bands of finished rows.

In the middle of an overlap, over ``RAMP`` LR pixels at most, one tile's result fades into the next one's along a raised
cosine; nearer to its edge, where a tile lacks what lies beyond, nothing of it is used. Tiles that overlap by more than
a network looks around change nothing but the last digits; for one that looks at the whole image they are an
approximation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.resize import enlarged_size

TILE_CPU, TILE_GPU = 384, 640  # sides in LR pixels
SMALLEST = 64  # LR pixels: the memory must hold such a tile
ALIGN = 16  # LR pixels: networks pool, stride and attend in powers of two up to this, from the first pixel on
OVERLAP = 32  # LR pixels
RAMP = 8  # LR pixels
LEVELS = {torch.uint8: 255, torch.uint16: 65535}

Upscaler = Callable[[Tensor], Tensor]
Device = str | torch.device
Progress = Callable[[int, int], None]


class Piece(NamedTuple):
    """A tile along one axis: LR pixels ``start`` to ``end``. The others are output pixels: the result lies at ``first``
    to ``last``, fades in from ``begin`` to ``full`` and out from ``leave`` to ``until``."""

    start: int
    end: int
    first: int
    last: int
    begin: int
    full: int
    leave: int
    until: int


def pieces(side: int, large: int, tile: int, overlap: int) -> list[Piece]:
    """How an axis of ``side`` LR pixels, ``large`` in the output, is covered by tiles of one length, ``tile`` at most,
    that share ``overlap`` or more with the next; the last one is moved inward.

    Unless they are too short for it, they start at multiples of 16 and leave the remainder that the side does, so that
    a tile is padded and pooled as the whole image is.
    """
    length, step = min(tile, side), max(1, min(tile, side) - overlap)
    aligned = tile - (tile - side) % ALIGN
    if length < side and aligned - overlap >= ALIGN:
        length, step = aligned, (aligned - overlap) // ALIGN * ALIGN
    starts = [*range(0, side - length, step), side - length]
    ramp = min(RAMP, overlap // 2)
    begins, fulls = [0], [0]
    for before, start in zip(starts, starts[1:], strict=False):
        begins.append(start + (before + length - start - ramp) // 2)
        fulls.append(begins[-1] + ramp)

    def output(edge: int) -> int:
        """How many output pixels have their centres before an LR pixel."""
        return -((side - 2 * edge * large) // (2 * side))

    edges = zip(starts, begins, fulls, [*begins[1:], side], [*fulls[1:], side], strict=True)
    return [Piece(one, one + length, *map(output, (one, one + length, *rest))) for one, *rest in edges]


def bands(
    upscale: Upscaler,
    lr: Tensor,
    scale: float,
    tile: int | None = None,
    overlap: int = OVERLAP,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Enlarge one image from top to bottom: (first output row, some rows (3, n, W)) each time.

    ``upscale`` takes float32 images in [0, 1], 1x3xhxw on ``device``, and returns them at ``enlarged_size``; a network
    for every scale comes in ``srlib.evaluate.AtScale``. A network is in evaluation mode meanwhile. ``lr`` (3, h, w) is
    uint8, uint16, or floating point in [0, 1]. Rows are float32 on the CPU, neither clamped nor rounded; those of one
    row of tiles are held at a time. ``progress`` is told the numbers of tiles done and of all.

    ``tile`` and ``overlap`` are in LR pixels; None is 384 on a CPU and 640 on other devices, 0 the whole image. An
    image of no more pixels than a tile's is enlarged whole, as is any at a fractional scale, but with ``AtScale``.
    Where the memory is too small, tiles are halved and a warning says so.

    Raises InputError for an image or upscaler that can't be, and where the memory is too small for any tile.
    """
    if lr.ndim != 3 or lr.shape[0] != 3 or not lr.numel() or not (lr.dtype in LEVELS or lr.is_floating_point()):
        raise InputError(f"give images (3, h, w) of 8 or 16 bits or in [0, 1], not {tuple(lr.shape)} of {lr.dtype}")
    if hasattr(upscale, "render"):
        raise InputError("a network for every scale needs to be told one: give srlib.evaluate.AtScale(network, scale)")
    if tile and tile < ALIGN:
        raise InputError(f"a tile of {tile} pixels is too small: give {ALIGN} or more, or 0 for the whole image")
    device, (height, width) = torch.device(device), lr.shape[1:]
    tile = (TILE_CPU if device.type == "cpu" else TILE_GPU) if tile is None else tile
    tileable = float(scale).is_integer() or hasattr(upscale, "window")  # tiles' results lie on the output's pixels
    if not tile or height * width <= tile**2 or not tileable:
        tile = max(height, width)
    done = 0
    while True:
        try:
            for row, rows in _bands(upscale, lr, scale, tile, min(overlap, tile // 2), device, progress):
                if row + rows.shape[1] > done:
                    yield max(row, done), rows[:, max(0, done - row) :]
                    done = row + rows.shape[1]
            return
        except RuntimeError as error:
            # A CPU has no exception of its own for it.
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            half = tile // (2 * ALIGN) * ALIGN
            if half < SMALLEST or not tileable:
                size = f"{min(tile, width)} x {min(tile, height)}"
                mend = "close other programs, or use another device"
                raise InputError(f"the memory of {device} is too small for {size} pixels: {mend}") from None
        warnings.warn(f"out of memory in tiles of {tile} pixels: going on in tiles of {half}", stacklevel=2)
        tile = half


def enlarge(
    upscale: Upscaler, lr: Tensor, scale: float, tile: int | None = None, overlap: int = OVERLAP, device: Device = "cpu"
) -> Tensor:
    """A whole image enlarged: the rows of ``bands``, which see, as one (3, H, W) on the CPU."""
    return torch.cat([rows for _, rows in bands(upscale, lr, scale, tile, overlap, device)], 1)


def _bands(
    upscale: Upscaler, lr: Tensor, scale: float, tile: int, overlap: int, device: Device, progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """``bands`` in tiles of one size."""
    height, width = enlarged_size(lr.shape[1:], scale)
    down, across = pieces(lr.shape[1], height, tile, overlap), pieces(lr.shape[2], width, tile, overlap)

    def enlarged(number: int, row: Piece, column: Piece) -> Tensor:
        """A tile's result (3, n, m)."""
        part = lr[:, row.start : row.end, column.start : column.end].to(device)
        part = part[None].to(torch.float32) / LEVELS.get(part.dtype, 1)
        rows, columns = slice(row.first, row.last), slice(column.first, column.last)
        with torch.no_grad(), evaluation_mode(upscale):
            if hasattr(upscale, "window"):
                sr = upscale.window(part, (row.start, column.start), tuple(lr.shape[1:]), rows, columns)
            else:
                sr = upscale(part)
        wanted = (1, 3, row.last - row.first, column.last - column.first)
        if sr.shape != wanted:
            made = f"the upscaler made {tuple(sr.shape)} of {tuple(part.shape)}, not {wanted}"
            raise InputError(f"{made}; use one for scale {scale:g}")
        if progress:
            progress(number, len(down) * len(across))
        return sr[0].float().cpu()

    def joined(number: int, row: Piece) -> Tensor:
        """The results of a row of tiles, blended (3, n, W)."""
        band = torch.empty(3, row.last - row.first, width)
        parts = (enlarged(number * len(across) + place, row, column) for place, column in enumerate(across, 1))
        for first, stretch in _blended(across, parts, 2):
            band[..., first : first + stretch.shape[2]] = stretch
        return band

    return _blended(down, (joined(number, row) for number, row in enumerate(down)), 1)


def _blended(axis: list[Piece], parts: Iterable[Tensor], dim: int) -> Iterator[tuple[int, Tensor]]:
    """Tiles' results along an axis, ``dim`` of theirs, as finished stretches of it: (first pixel, values)."""
    fading = torch.empty(0)
    for (_, _, first, _, begin, full, leave, until), part in zip(axis, parts, strict=True):
        if full > begin:
            ramp = ((torch.arange(full - begin) + 0.5) / (full - begin) * (math.pi / 2)).sin().square()
            coming = part.narrow(dim, begin - first, full - begin)
            yield begin, fading.lerp(coming, ramp if dim == 2 else ramp[:, None])
        yield full, part.narrow(dim, full - first, leave - full)
        fading = part.narrow(dim, leave - first, until - leave).clone()  # a view would keep the whole part


@contextmanager
def evaluation_mode(upscale: object) -> Iterator[None]:
    """Evaluation mode for a network and its parts, each put back afterwards; nothing for any other callable."""
    modules = list(upscale.modules()) if isinstance(upscale, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
