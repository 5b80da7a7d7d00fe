"""Images of any size: large ones are enlarged in overlapping tiles, which are blended.

In the middle of an overlap, over ``RAMP`` LR pixels at most, one tile's result fades into the next one's along a raised
cosine; nearer to its edge, where a tile lacks what lies beyond, nothing of it is used. Tiles that overlap by more than
a network looks around change nothing but the last digits; for one that looks at the whole image they are an
approximation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any, NamedTuple

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


class Piece(NamedTuple):
    """A tile along one axis: LR pixels ``start`` to ``end``, output pixels ``first`` to ``last`` and their weights,
    which sum to 1 with those of its neighbours."""

    start: int
    end: int
    first: int
    last: int
    weight: Tensor


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
    starts, ramp = [*range(0, side - length, step), side - length], min(RAMP, overlap // 2)

    def output(edge: int) -> int:
        """How many output pixels have their centres before an LR pixel."""
        return -((side - 2 * edge * large) // (2 * side))

    place, rises = torch.arange(large) + 0.5, [torch.ones(large)]
    for before, start in pairwise(starts):
        middle = start + (before + length - start - ramp) // 2
        begin, full = output(middle), output(middle + ramp)
        rises.append((((place - begin) / max(full - begin, 0.5)).clamp(0, 1) * (math.pi / 2)).sin().square())
    found = []
    for start, rise, after in zip(starts, rises, [*rises[1:], torch.zeros(large)], strict=True):
        first, last = output(start), output(start + length)
        found.append(Piece(start, start + length, first, last, (rise - after)[first:last]))
    return found


def enlarge(
    upscale: Upscaler, lr: Tensor, scale: float, tile: int | None = None, overlap: int = OVERLAP, device: Device = "cpu"
) -> Tensor:
    """Enlarge one image: float32 (3, H, W) of ``enlarged_size`` on the CPU, neither clamped nor rounded.

    ``upscale`` takes float32 images in [0, 1], 1x3xhxw on ``device``, and returns them enlarged; a network for every
    scale comes in ``srlib.evaluate.AtScale``. A network is in evaluation mode meanwhile. ``lr`` (3, h, w) is uint8,
    uint16, or floating point in [0, 1].

    ``tile`` and ``overlap`` are in LR pixels; None is 384 on a CPU and 640 on other devices, 0 the whole image. An
    image of no more pixels than a tile's is enlarged whole, as is any at a fractional scale, but with ``AtScale``.
    Where the memory is too small, tiles are halved and a warning says so.

    Raises InputError for an image or upscaler that can't be, and where the memory is too small for any tile.
    """
    if lr.ndim != 3 or lr.shape[0] != 3 or not lr.numel() or not (lr.dtype in LEVELS or lr.is_floating_point()):
        raise InputError(f"give images (3, h, w) of 8 or 16 bits or in [0, 1], not {tuple(lr.shape)} of {lr.dtype}")
    if tile and tile < ALIGN:
        raise InputError(f"a tile of {tile} pixels is too small: give {ALIGN} or more, or 0 for the whole image")
    device, (height, width) = torch.device(device), lr.shape[1:]
    tile = (TILE_CPU if device.type == "cpu" else TILE_GPU) if tile is None else tile
    tileable = float(scale).is_integer() or hasattr(upscale, "window")  # tiles' results lie on the output's pixels
    if not tile or height * width <= tile**2 or not tileable:
        tile = max(height, width)
    large = torch.zeros(3, *enlarged_size(lr.shape[1:], scale))
    while True:
        try:
            with torch.no_grad(), evaluation_mode(upscale):
                return _blended(upscale, lr, scale, tile, min(overlap, tile // 2), device, large.zero_())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        half = tile // (2 * ALIGN) * ALIGN
        if half < SMALLEST or not tileable:
            size = f"{min(tile, width)} x {min(tile, height)} pixels"
            raise InputError(f"the memory of {device} is too small for {size}: close programs, or change --device")
        warnings.warn(f"out of memory in tiles of {tile} pixels: going on in tiles of {half}", stacklevel=2)
        tile = half


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; on a CPU torch has none of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _blended(
    upscale: Any, lr: Tensor, scale: float, tile: int, overlap: int, device: torch.device, large: Tensor
) -> Tensor:
    """``large`` (3, H, W), which holds zeros, filled with the weighted sum of an image's tiles."""
    height, width = large.shape[1:]
    down, across = pieces(lr.shape[1], height, tile, overlap), pieces(lr.shape[2], width, tile, overlap)
    for row, column in product(down, across):
        part = lr[:, row.start : row.end, column.start : column.end].to(device)
        part = part[None].to(torch.float32) / LEVELS.get(part.dtype, 1)
        rows, columns = slice(row.first, row.last), slice(column.first, column.last)
        if hasattr(upscale, "window"):
            sr = upscale.window(part, (row.start, column.start), tuple(lr.shape[1:]), rows, columns)
        else:
            sr = upscale(part)
        wanted = (1, 3, row.last - row.first, column.last - column.first)
        if sr.shape != wanted:
            made = f"the upscaler made {tuple(sr.shape)} of {tuple(part.shape)}, not {wanted}"
            raise InputError(f"{made}; use one for scale {scale:g}")
        large[:, rows, columns] += sr[0].float().cpu() * column.weight * row.weight[:, None]
    return large


@contextmanager
def evaluation_mode(upscale: object) -> Iterator[None]:
    """Evaluation mode for a network and its parts, put back afterwards; nothing for any other callable."""
    trained = [part for part in upscale.modules() if part.training] if isinstance(upscale, nn.Module) else []
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True
