"""Enlarging picture files, one by one: by a network in tiles, or by bicubic interpolation.

Colours go through the network, three channels in [0, 1] of all the bits that the file has; what comes out is clamped
and rounded to the bits of the file that is written. Grey is enlarged as three equal channels, of which the luma becomes
the grey of the output. Alpha is enlarged by MATLAB's bicubic. Fully transparent pixels often hide black: they first
take the colour of the nearest visible pixel, so that no dark fringe grows into the visible ones.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srlib import tiles
from srlib.datasets import is_image, scan
from srlib.errors import InputError
from srlib.pictures import FORMATS, SIDES, Picture, format_of, read, write
from srlib.resize import enlarged_size, imresize

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range: what a viewer makes of colour as grey
_ROWS = 256  # of a band of bicubic

Upscaler = Callable[[Tensor], Tensor] | None
"""What ``srlib.evaluate.upscaler`` makes of a network; None is bicubic interpolation."""


@dataclass(frozen=True)
class Job:
    """A picture to enlarge: from which file, and into which."""

    source: Path
    target: Path


def jobs(sources: Sequence[str], out: str, format: str | None = None) -> tuple[list[Job], tuple[str, ...]]:
    """What to make of files, folders and glob patterns, and where; and notes on files that are left out.

    A folder stands for the pictures in it and in folders below it, whose tree is kept. One file goes into the file
    ``out`` if its suffix says a format; everything else goes into the folder ``out``, by the same name, with the suffix
    of ``format`` where one is named, and .png where its own says no format that can be written.

    Raises InputError where nothing is found, two pictures would become one file, or one that is read be replaced.
    """
    found, notes = _sources(sources, Path(out).resolve())
    place = Path(out).expanduser()
    if len(sources) == 1 and Path(sources[0]).is_file() and not place.is_dir() and place.suffix:
        if format_of(place) is None or format not in (None, format_of(place)):
            raise InputError(f"{out} says another format than .png, .jpg, .webp, .tif or --format: give one of these")
        made = [Job(file, place) for file in found]
    elif place.is_file():
        raise InputError(f"{out} is a file, and several pictures need a folder: name a folder")
    else:
        made = []
        for file, name in found.items():
            kind = format or format_of(file) or "png"
            suffix = file.suffix if kind == format_of(file) else FORMATS[kind][0]
            made.append(Job(file, place / name.with_suffix(suffix)))
    targets: dict[Path, Path] = {}
    read_from = {file.resolve() for file in found}
    for job in made:
        target = job.target.resolve()
        if target in targets:
            raise InputError(f"{targets[target]} and {job.source} would both become {job.target}: use two folders")
        if target in read_from:
            raise InputError(f"{job.target} is a picture that is to be read: name another output")
        targets[target] = job.source
    return made, notes


def _sources(sources: Sequence[str], out: Path) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """The files, each with the name that it gets in a folder, and notes; what lies in the folder ``out`` is none."""
    found: dict[Path, Path] = {}
    notes: tuple[str, ...] = ()
    for source in sources:
        path = Path(source).expanduser()
        # Brackets may be part of a name ("scan [1]/*.jpg").
        patterns = [str(path), str(path).replace("[", "[[]")]
        if path.is_dir():
            for folder in [path, *sorted(one for one in path.rglob("*") if one.is_dir())]:
                hidden = any(part.startswith(".") for part in folder.relative_to(path).parts)
                if hidden or folder.resolve().is_relative_to(out):
                    continue
                images, _, more = scan(folder)
                notes += more
                found |= {file: file.relative_to(path) for file in images}
        elif os.path.lexists(path) or not glob.has_magic(source):
            found[path] = Path(path.name)
        else:
            matches = next(filter(None, (glob.glob(pattern, recursive=True) for pattern in patterns)), [])
            found |= {file: Path(file.name) for file in sorted(map(Path, matches)) if file.is_file() and is_image(file)}
    if not found:
        raise InputError(f"no pictures in {', '.join(sources)}: name files, folders or patterns that hold some")
    return found, notes


def enlarge_file(
    job: Job,
    upscaler: Upscaler,
    scale: float,
    *,
    force: bool = False,
    quality: int = 95,
    lossless: bool = False,
    beside: bool = False,
    **tiling: Any,
) -> dict[str, Any]:
    """Enlarge one picture into its file, and tell what became of it as one row.

    ``status`` is done, kept (the file was there already, or another process has finished it meanwhile) or failed, and
    then ``notes`` say why. ``beside`` puts bicubic interpolation to the left. ``tiling`` is that of ``enlarge``.
    """
    row = {"input": str(job.source), "output": str(job.target), "status": "kept", "notes": ""}
    if os.path.lexists(job.target) and not force:
        return row
    began, kind = time.perf_counter(), format_of(job.target)
    try:
        picture = read(job.source)
        height, width = enlarged_size(picture.pixels.shape[:2], scale)
        if kind in SIDES and max(height, width * (1 + beside)) > SIDES[kind]:
            raise InputError(f"{job.target}: {kind} ends at {SIDES[kind]} pixels a side: choose PNG or TIFF")
        picture = _for_format(picture, kind)
        large = enlarge(picture, upscaler, scale, **tiling)
        if beside:
            pixels = (enlarge(picture, None, scale).pixels, large.pixels)
            large = replace(large, pixels=np.concatenate(pixels, axis=1))
        written = write(large, job.target, quality=quality, lossless=lossless, force=force)
    except (InputError, MemoryError) as error:
        return row | {"status": "failed", "notes": str(error) or f"{job.source}: not enough memory"}
    sizes = dict(zip(("height", "width"), picture.pixels.shape, strict=False))
    sizes |= dict(zip(("out_height", "out_width"), large.pixels.shape, strict=False))
    seconds = round(time.perf_counter() - began, 2)
    return row | {"status": "done" if written else "kept", "notes": "; ".join(large.notes), **sizes, "seconds": seconds}


def _for_format(picture: Picture, kind: str | None) -> Picture:
    """A picture without what JPEG and WebP cannot hold, and notes on it."""
    pixels, notes = picture.pixels, picture.notes
    if kind in ("jpeg", "webp") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.int32) + 128) // 257).astype(np.uint8)
        notes += (f"16 bits became 8, as {kind} has no more",)
    picture = replace(picture, pixels=pixels, notes=notes)
    if kind == "jpeg" and picture.alpha is not None:
        opacity = picture.alpha / np.float32(255)
        laid = np.rint(picture.colours * opacity + 255 * (1 - opacity)).astype(np.uint8)
        picture = replace(picture, pixels=laid, notes=(*notes, "transparency was laid over white"))
    return picture


def enlarge(picture: Picture, upscaler: Upscaler, scale: float, **tiling: Any) -> Picture:
    """The picture enlarged, with as many bits; sides are ``resize.enlarged_size``.

    ``tiling`` (tile, overlap, device, progress) is that of ``tiles.bands``. Raises InputError as that does, and where
    the network's output is not finite.
    """
    size = enlarged_size(picture.pixels.shape[:2], scale)
    colours, alpha = picture.colours, picture.alpha
    large = np.empty((*size, picture.pixels.shape[2]), picture.pixels.dtype)
    if alpha is not None:
        _bicubic(alpha, large[..., -1:])
        colours = bleed(colours, alpha[..., 0])
    out = large[..., : colours.shape[2]]
    if upscaler is None:
        _bicubic(colours, out)
        return replace(picture, pixels=large)
    top = np.iinfo(large.dtype).max
    lr = torch.from_numpy(np.broadcast_to(colours, (*colours.shape[:2], 3)).transpose(2, 0, 1).copy())
    for first, band in tiles.bands(upscaler, lr, scale, **tiling):
        if not torch.isfinite(band).all():
            raise InputError("the network's output is not finite: its weights are damaged, give others")
        if colours.shape[2] == 1:
            band = (band.double() * torch.tensor(LUMA).double()[:, None, None]).sum(0, keepdim=True)
        levels = (band * top).round().clamp(0, top).to(torch.int32)
        out[first : first + levels.shape[1]] = levels.permute(1, 2, 0).numpy()
    return replace(picture, pixels=large)


def _bicubic(pixels: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (H, W, C) with ``imresize`` of ``pixels`` (h, w, C): one axis of the whole, the other in bands.

    8 bits are rounded after each axis, as in MATLAB, and 16 bits once.
    """
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    deep = image.dtype == torch.uint16
    image = image.to(torch.float64) if deep else image
    target = out.transpose(2, 0, 1)
    (height, width), (rows, columns) = image.shape[1:], target.shape[1:]
    first = 1 if rows / height <= columns / width else 2  # imresize begins with the axis of the smaller scale
    image = imresize(image, size=(rows, width) if first == 1 else (height, columns))
    for start in range(0, target.shape[first], _ROWS):
        band = image.narrow(first, start, min(_ROWS, target.shape[first] - start))
        size = (band.shape[1], columns) if first == 1 else (rows, band.shape[2])
        made = imresize(band, size=size).numpy()
        place = (slice(None),) * first + (slice(start, start + _ROWS),)
        target[place] = np.rint(made.clip(0, 65535)).astype(out.dtype) if deep else made


def bleed(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, C) where each fully transparent pixel has that of the nearest pixel that is not."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return colours[rows, columns]
