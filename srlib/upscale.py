"""Enlarging picture files, one by one: by a network in tiles, or by bicubic interpolation.

Colours go through the network, three channels in [0, 1] of all the bits that the file has; what comes out is clamped
and rounded to the bits of the file that is written. Grey is enlarged as three equal channels, of which the luma becomes
the grey of the output. Alpha is enlarged by MATLAB's bicubic. Fully transparent pixels often hide black: they first
take the colour of the nearest visible pixel, so that no dark fringe grows into the visible ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from srlib import tiles
from srlib.data import eight_bits
from srlib.datasets import SUFFIXES, is_image, scan
from srlib.errors import InputError
from srlib.pictures import FORMATS, SIDES, Picture, format_of, read, write
from srlib.resize import enlarged_size, imresize

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range: what a viewer makes of colour as grey
_ROWS = 256  # of a band of bicubic


class Job(NamedTuple):
    """A picture to enlarge: from which file, and into which."""

    source: Path
    target: Path


def jobs(sources: Sequence[str], out: str, format: str | None = None) -> tuple[list[Job], tuple[str, ...]]:
    """What to make of files, folders and glob patterns, and where; and notes on files that are left out.

    A folder stands for the pictures in it and in folders below it, whose tree is kept. One file, named or matched, goes
    into the file ``out`` if that has a suffix and is no folder; everything else goes into the folder ``out``, by the
    same name, with the suffix of ``format`` where one is named, and .png where its own says no format that can be
    written.

    Raises InputError where that suffix says no format, or another than ``format``, where nothing is found, two pictures
    would become one file, or one that is read be replaced.
    """
    place = Path(os.path.expanduser(out))
    found, notes = _sources(sources, place.resolve())
    if place.is_file() and len(found) > 1:
        raise InputError(f"{out} is a file, and several pictures need a folder: name a folder")
    folders = any(Path(os.path.expanduser(source)).is_dir() for source in sources)
    single = len(found) == 1 and not folders and not place.is_dir() and place.suffix
    if single and (format_of(place) is None or format not in (None, format_of(place))):
        raise InputError(f"{out} says another format than .png, .jpg, .webp, .tif or --format: give one of these")
    made: dict[Path, Job] = {}
    for file, name in found.items():
        kind = format or format_of(file) or "png"
        suffix = file.suffix if kind == format_of(file) else FORMATS[kind][0]
        stem = name.with_suffix("") if format_of(file) or file.suffix.lower() in SUFFIXES else name
        job = Job(file, place if single else place / f"{stem}{suffix}")
        other = made.setdefault(job.target.resolve(), job)
        if other is not job:
            raise InputError(f"{other.source} and {file} would both become {job.target}: use two folders")
    for file in found:
        if file.resolve() in made:
            raise InputError(f"{file} is a picture that is to be read: name another output")
    return list(made.values()), notes


def _sources(sources: Sequence[str], out: Path) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """The files, each with the name that it gets in a folder, and notes; a folder ``out`` in a source is left out."""
    found: dict[Path, Path] = {}
    notes: tuple[str, ...] = ()
    for source in sources:
        path = Path(os.path.expanduser(source))
        if path.is_dir():
            holds_out = path.resolve() in out.parents
            for folder in [path, *sorted(one for one in path.rglob("*") if one.is_dir())]:
                hidden = any(part.startswith(".") for part in folder.relative_to(path).parts)
                if not hidden and not (holds_out and folder.resolve().is_relative_to(out)):
                    images, _, more = scan(folder)
                    notes += more
                    found |= {file: file.relative_to(path) for file in images}
        elif path.exists():
            found[path] = Path(path.name)
        elif not has_magic(source):
            raise InputError(f"{source} is not there: name a file, a folder or a pattern")
        else:  # brackets may be part of a name ("scan [1]/*.jpg")
            matches = glob(str(path), recursive=True) or glob(str(path).replace("[", "[[]"), recursive=True)
            found |= {file: Path(file.name) for file in map(Path, sorted(matches)) if file.is_file() and is_image(file)}
    if not found:
        raise InputError(f"no pictures in {', '.join(sources)}: name files, folders or patterns that hold some")
    return found, notes


def enlarge_file(
    job: Job,
    upscaler: tiles.Upscaler | None,
    scale: float,
    *,
    force: bool = False,
    beside: bool = False,
    quality: int = 95,
    **tiling: Any,
) -> tuple[str, tuple[str, ...]]:
    """Enlarge one picture into its file, and tell what became of it, and notes. Without an upscaler it is bicubic.

    It is done, kept (the file was there already, or another process has finished it meanwhile) or failed, and then the
    note says why. ``beside`` puts bicubic interpolation to the left. ``tiling`` is that of ``enlarge``.
    """
    if os.path.lexists(job.target) and not force:
        return "kept", ()
    kind = format_of(job.target)
    try:
        picture = read(job.source)
        height, width = enlarged_size(picture.pixels.shape[:2], scale)
        if kind in SIDES and max(height, width * (1 + beside)) > SIDES[kind]:
            raise InputError(f"{job.target}: {kind} ends at {SIDES[kind]} pixels a side: choose PNG or TIFF")
        notes = picture.notes
        if kind in ("jpeg", "webp") and picture.pixels.dtype == np.uint16:
            picture = replace(picture, pixels=eight_bits(picture.pixels))
            notes += (f"16 bits became 8, as {kind} has no more",)
        if kind == "jpeg" and picture.alpha is not None:
            notes += ("transparency was laid over white",)
        large = enlarge(picture, upscaler, scale, **tiling)
        if beside:
            pixels = (enlarge(picture, None, scale).pixels, large.pixels)
            large = replace(large, pixels=np.concatenate(pixels, axis=1))
        written = write(large, job.target, quality=quality, force=force)
    except InputError as error:
        return "failed", (str(error),)
    except (MemoryError, RuntimeError) as error:
        if not tiles.out_of_memory(error):
            raise
        return "failed", (f"{job.source}: not enough memory",)
    return ("done" if written else "kept"), notes


def enlarge(picture: Picture, upscaler: tiles.Upscaler | None, scale: float, **tiling: Any) -> Picture:
    """The picture enlarged, with as many bits, by bicubic without an upscaler; sides are ``resize.enlarged_size``.

    ``tiling`` (tile, overlap, device) is that of ``tiles.enlarge``. Raises InputError as that does, and where the
    network's output is not finite.
    """
    colours, alpha = picture.colours, picture.alpha
    size = enlarged_size(colours.shape[:2], scale)
    large = np.empty((*size, picture.pixels.shape[2]), colours.dtype)
    out, top = large[..., : colours.shape[2]], np.iinfo(colours.dtype).max
    if alpha is not None:
        _bicubic(alpha, large[..., -1:])
        colours = bleed(colours, alpha[..., 0])
    if upscaler is None:
        _bicubic(colours, out)
        return replace(picture, pixels=large)
    lr = torch.from_numpy(np.broadcast_to(colours, (*colours.shape[:2], 3)).transpose(2, 0, 1).copy())
    sr = tiles.enlarge(upscaler, lr, scale, **tiling)
    if not sr.sum().isfinite():  # of the sum alone, as an image of 200 megapixels takes gigabytes
        raise InputError("the network's output is not finite: its weights are damaged, give others")
    if colours.shape[2] == 1:
        sr = (sr * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    out[:] = sr.mul_(top).round_().clamp_(0, top).permute(1, 2, 0).numpy()
    return replace(picture, pixels=large)


def _bicubic(pixels: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (H, W, C) with ``imresize`` of ``pixels`` (h, w, C): one axis of the whole, the other in bands.

    8 bits are rounded after each axis, as in MATLAB, and 16 bits once.
    """
    (height, width), (rows, columns) = pixels.shape[:2], out.shape[:2]
    if rows * width > columns * height:  # imresize begins with the axis of the smaller scale
        return _bicubic(pixels.swapaxes(0, 1), out.swapaxes(0, 1))
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    if image.dtype == torch.uint16:
        image = image.to(torch.float64)
    image = imresize(image, size=(rows, width))
    for first in range(0, rows, _ROWS):
        band = image[:, first : first + _ROWS]
        band = imresize(band, size=(band.shape[1], columns))
        band = band.round().clamp(0, 65535) if band.is_floating_point() else band
        out[first : first + _ROWS] = band.permute(1, 2, 0).numpy()


def bleed(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, C) where each fully transparent pixel has that of the nearest pixel that is not."""
    if alpha.all() or not alpha.any():
        return colours
    rows, columns = distance_transform_edt(alpha == 0, return_distances=False, return_indices=True)
    return colours[rows, columns]
