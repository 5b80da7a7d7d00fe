"""Enlarging pictures: one by a network, in tiles, or by bicubic interpolation; and many of them, file by file.

Colours go through the network, three channels in [0, 1] of all the bits that the file has; what comes out is clamped
and rounded to the bits of the file that is written. Grey is enlarged as three equal channels, of which the luma (0.299
R + 0.587 G + 0.114 B, what a viewer makes of colour as grey) becomes the grey of the output. Alpha is enlarged by
MATLAB's bicubic. Fully transparent pixels often hide black: they first take the colour of the nearest visible pixel, so
that no dark fringe grows into the visible ones.
"""

import errno
import glob
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srlib import pictures, tiles
from srlib.checkpoints import say
from srlib.errors import InputError, expanded
from srlib.models import names, takes_scale
from srlib.pictures import Picture
from srlib.resize import contributions

_OTHERS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd")  # pictures, too, and not read
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range
_BLEEDING = 10  # bytes for a pixel of the input: where the nearest visible pixel is, and two masks
_BAND_BYTES = 64 << 20  # of a band of bicubic in double precision

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A picture to enlarge: from which file, and into which."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Method:
    """How pictures are enlarged: by an upscaler, as ``srlib.runs.upscaler`` makes one of a network, or by bicubic
    interpolation where that is None.

    ``tile``, ``overlap`` (LR pixels) and ``memory`` (bytes) are the wishes that ``srlib.tiles.plan`` takes.
    ``beside``: the picture by bicubic interpolation is put to the left of that by the upscaler.
    """

    scale: float
    upscale: nn.Module | None = None
    device: str = "cpu"
    tile: int | None = None
    overlap: int | None = None
    memory: int | None = None
    beside: bool = False


@dataclass(frozen=True)
class Saving:
    """How pictures are written: see ``srlib.pictures.write``. ``replace_it``: also where a file is there already."""

    quality: int = 95
    lossless: bool = False
    replace_it: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a job: ``status`` is done, kept (the output was there already) or failed, and then ``notes`` say
    why. Sizes are (height, width); ``tiles`` were computed, of ``tile`` LR pixels a side, None for the whole picture
    at once."""

    job: Job
    status: str
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    out_size: tuple[int, int] | None = None
    tiles: int | None = None
    tile: int | None = None
    overlap: int | None = None
    seconds: float | None = None

    def record(self) -> dict[str, Any]:
        """All of it as one flat row."""
        height, width = self.size or (None, None)
        out_height, out_width = self.out_size or (None, None)
        return {
            "input": str(self.job.source),
            "output": str(self.job.target),
            "status": self.status,
            "width": width,
            "height": height,
            "out_width": out_width,
            "out_height": out_height,
            "tiles": self.tiles,
            "tile": self.tile,
            "overlap": self.overlap,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "notes": "; ".join(self.notes),
        }


def jobs(sources: Sequence[str], out: str, kind: str | None = None) -> tuple[list[Job], bool]:
    """What to make of files, folders and glob patterns, and where; and whether that is to be treated as several
    pictures, as a folder and a pattern are even if there is one.

    A folder stands for the pictures that lie directly in it, by their suffix, hidden ones left out; so does a pattern
    for those that it matches. One file goes into the file ``out``, or into the folder if that is one; everything else
    goes into a folder, by the same name, with the suffix of the format ``kind`` where one is named.

    Raises InputError where nothing is found, a suffix says no format, a file's name is given for several, two would
    become the same file, or one would replace a picture that is read.
    """
    if kind is not None and kind not in pictures.FORMATS:
        raise InputError(f"no format {kind!r}: choose one of {', '.join(pictures.FORMATS)}")
    files, several, others = _files(sources)
    place = expanded(out)
    if several or place.is_dir() or out.endswith(("/", os.sep)):
        if place.exists() and not place.is_dir() or (several and not place.exists() and pictures.format_of(place)):
            raise InputError(f"{out} is a file's name, and a folder is needed for several pictures: name a folder")
        made = [Job(file, place / _renamed(file, kind)) for file in files]
    else:
        named = pictures.format_of(place)
        if named is None:
            known = ", ".join(pictures.FORMATS["png"] + pictures.FORMATS["jpeg"] + (".webp", ".tif", ".tiff"))
            raise InputError(f"{out} is no folder, and its suffix says no format: use {known}, or make the folder")
        if kind not in (None, named):
            raise InputError(f"{out} says {named} and --format says {kind}: leave --format out")
        made = [Job(files[0], place)]
    _check_apart(made)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        say(f"left out, as no PNG, JPEG, WebP or TIFF by their suffix: {', '.join(others[:3])}{more}")
    return made, several


def _files(sources: Sequence[str]) -> tuple[list[Path], bool, list[str]]:
    """The files, each once; whether they are to be treated as several; and pictures of folders that are not read."""
    found: dict[Path, None] = {}
    several, others = len(sources) > 1, []
    for source in sources:
        path = expanded(source)
        if path.is_dir():
            several, inside = True, _pictures(path.iterdir())
            if not inside:
                raise InputError(f"{source} holds no PNG, JPEG, WebP or TIFF files: name a folder that does")
            others += sorted(one.name for one in path.iterdir() if one.suffix.lower() in _OTHERS)
        elif not os.path.lexists(path) and glob.has_magic(source):
            several, inside = True, _pictures(map(Path, glob.glob(str(path), recursive=True)))
            if not inside:
                raise InputError(f"no PNG, JPEG, WebP or TIFF file matches {source}: check the pattern")
        else:
            inside = [path]
        found |= dict.fromkeys(inside)
    return list(found), several, others


def _pictures(paths: Any) -> list[Path]:
    kept = (path for path in paths if pictures.format_of(path) and not path.name.startswith(".") and path.is_file())
    return sorted(kept)


def _renamed(file: Path, kind: str | None) -> str:
    named = pictures.format_of(file)
    if named is None and kind is None:
        raise InputError(f"{file}: the suffix says no format to write: give --format")
    return file.name if kind in (None, named) else file.stem + pictures.FORMATS[kind][0]


def _check_apart(made: Sequence[Job]) -> None:
    """Raise InputError where two jobs write the same file, or one writes a file that another one reads."""
    writes: dict[str, Path] = {}
    reads = {os.path.realpath(job.source) for job in made}
    for job in made:
        target = os.path.realpath(job.target)
        if target in writes:
            raise InputError(
                f"{writes[target]} and {job.source} would both become {job.target}: enlarge them into two folders"
            )
        writes[target] = job.source
        if target in reads or (job.source.exists() and job.target.exists() and job.source.samefile(job.target)):
            raise InputError(f"{job.target} is a picture that is to be read: name another output")


def check_model(model: str, scale: float) -> None:
    """Raise InputError for a name that is neither a network's nor bicubic, and a scale that it cannot have."""
    if model != "bicubic" and model not in names():
        raise InputError(f"unknown model {model!r}: choose bicubic or one of {', '.join(names())}")
    if not (math.isfinite(scale) and 1 <= scale <= 64):
        raise InputError(f"scale {scale:g} does not enlarge: give a number from 1 to 64")
    if model != "bicubic" and takes_scale(model) and scale != int(scale):
        raise InputError(
            f"{model} enlarges by whole numbers, not {scale:g}: choose a model for every scale, such as liif-edsr"
        )


def enlarge_all(made: Sequence[Job], method: Method, saving: Saving, watched: bool = False) -> Iterator[Result]:
    """Enlarge picture after picture; one that cannot be is reported, and the next one's turn comes.

    Each is written whole when it is finished. ``watched``: draw a progress bar. Raises NoRoom where nothing can be
    written any more.
    """
    from tqdm.auto import tqdm

    for number, job in enumerate(made, 1):
        count = f"{number}/{len(made)} " if len(made) > 1 else ""
        with tqdm(desc=count + job.source.name, unit="tile", leave=False, disable=not watched) as bar:

            def progress(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            try:
                result = enlarge_file(job, method, saving, progress)
            except pictures.NoRoom:
                raise
            except InputError as error:
                result = Result(job, "failed", (str(error),))
        yield result


def enlarge_file(job: Job, method: Method, saving: Saving, progress: Progress | None = None) -> Result:
    """Enlarge one picture into its file; raises InputError where it cannot be read, enlarged or written."""
    if os.path.lexists(job.target) and not saving.replace_it:
        return Result(job, "kept")
    began = time.perf_counter()
    kind = pictures.format_of(job.target)
    assert kind is not None  # ``jobs`` has seen to it
    try:
        picture = pictures.read(job.source)
        size = picture.size
        if kind == "jpeg":
            picture = pictures.over_white(picture)
        deep = picture.deep and kind in ("png", "tiff")
        if picture.deep and not deep:
            picture = replace(picture, notes=(*picture.notes, f"16 bits became 8, as {kind} has no more"))
        large, plan, count = enlarge(picture, method, np.uint16 if deep else np.uint8, kind, progress)
        _make_folder(job.target.parent)
        notes = pictures.write(large, job.target, **vars(saving))
    except InputError as error:
        if str(job.source) in str(error) or str(job.target) in str(error):
            raise
        raise type(error)(f"{job.source}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_little_memory(job.source) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # what PyTorch's CPU allocator says
            raise
        raise _too_little_memory(job.source) from error
    seconds = time.perf_counter() - began
    tile, overlap = (plan.tile, plan.overlap if plan.tile else None) if plan else (None, None)
    return Result(job, "done", large.notes + notes, size, large.size, count, tile, overlap, seconds)


def enlarge(
    picture: Picture, method: Method, depth: type = np.uint8, kind: str = "png", progress: Progress | None = None
) -> tuple[Picture, tiles.Plan | None, int]:
    """The picture, enlarged, in ``depth``, uint8 or uint16; the plan of its tiles, None for bicubic; and their number.

    The sides are multiplied by the scale and rounded; ``method.beside`` makes it twice as wide. Raises InputError where
    a file of the format ``kind`` cannot hold the result, the memory cannot, or the network's output is not finite.
    """
    height, width = (max(1, round(side * method.scale)) for side in picture.size)
    hidden = picture.alpha is not None and not picture.alpha.all()
    beside = (_BLEEDING + picture.pixels.itemsize * 3) * math.prod(picture.size) if hidden else 0
    whole = (height, width * (2 if method.beside else 1), picture.pixels.shape[2])
    check_room(whole, np.dtype(depth).itemsize, kind, beside)
    large = np.empty(whole, depth)
    channels = picture.colours.shape[2]
    colours = bleed(picture.colours, picture.alpha) if hidden else picture.colours
    plan, count, notes = None, 1, ()
    if method.upscale is None or method.beside:
        for first, rows in bicubic(colours, (height, width), depth, progress if method.upscale is None else None):
            large[first : first + len(rows), :width, :channels] = rows
    if method.upscale is not None:
        plan, count, notes = _by_network(colours, large[:, -width:, :channels], method, progress)
    if picture.alpha is not None:
        for first, rows in bicubic(picture.alpha[..., None], (height, width), depth):
            for half in range(0, whole[1], width):
                large[first : first + len(rows), half : half + width, channels:] = rows
    return replace(picture, pixels=large, notes=picture.notes + notes), plan, count


def _by_network(
    colours: np.ndarray, large: np.ndarray, method: Method, progress: Progress | None
) -> tuple[tiles.Plan, int, tuple[str, ...]]:
    """Fill ``large`` (H, W, 1 or 3) with what the network makes of ``colours``; the plan that was used, which may have
    smaller tiles than the first one, their number, and what there is to say."""
    assert method.upscale is not None
    plan = tiles.plan(
        method.upscale, (colours.shape[0], colours.shape[1]), method.scale,
        device=method.device, memory=method.memory, tile=method.tile, overlap=method.overlap,
    )  # fmt: skip
    grey = colours.shape[2] == 1
    lr = torch.from_numpy(np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)).transpose(2, 0, 1)))
    top = float(np.iinfo(large.dtype).max)
    bands = tiles.bands(method.upscale, lr, method.scale, plan, device=method.device, progress=progress)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for first, band in bands:
            if not torch.isfinite(band).all():
                raise InputError("the network's output is not finite: its weights are damaged, give others")
            rows = luma(band) if grey else band
            levels = (rows * top).round().clamp(0, top).to(torch.int32)
            large[first : first + levels.shape[1]] = levels.permute(1, 2, 0).numpy()
    notes = tuple(str(one.message) for one in said if "memory" in str(one.message))
    if bands.used.tile and not method.tile and not hasattr(method.upscale, "window"):  # those for every scale are local
        notes += (_changed(lr, method, bands),)
    return bands.used, bands.count, notes


def _changed(lr: Tensor, method: Method, bands: tiles.Bands) -> str:
    """What there is to say of a picture that was enlarged in tiles.

    Where there are so many that it takes no tenth of the time, it is measured on a strip from the picture's middle, as
    large as a tile, twice as wide and half as tall: whole, and in tiles of that width.
    """
    assert method.upscale is not None and bands.used.tile is not None
    tile, overlap = bands.used.tile, bands.used.overlap
    said = f"tiles of {tile} that share {overlap} pixels are not exactly what the whole at once would give"
    if bands.count >= 30 and lr.shape[2] >= 2 * tile and bands.used == bands.plan:
        top, left = (lr.shape[1] - tile // 2) // 2, lr.shape[2] // 2 - tile
        strip = lr[:, top : top + tile // 2, left : left + 2 * tile]
        found = tiles.difference(method.upscale, strip, method.scale, tile, overlap, device=method.device)
        apart = f"{found.psnr:.1f} dB and at most {found.largest} of 255 lie between them"
        said += f": in a strip of {strip.shape[2]}x{strip.shape[1]} from the middle, "
        said += apart if found.largest else "no 8-bit value differs"
    return said + '; see the page "Images of any size"'


def luma(rgb: Tensor) -> Tensor:
    """The luma (1, H, W) of colours (3, H, W), in full range."""
    weights = torch.tensor(_LUMA, dtype=torch.float64)[:, None, None]
    return (rgb.double() * weights).sum(0, keepdim=True).to(rgb.dtype)


def bicubic(
    pixels: np.ndarray, size: tuple[int, int], depth: type = np.uint8, progress: Progress | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """``srlib.resize.imresize`` of pixels (h, w, C) to a size, in bands: the first row and the rows (n, W, C) of each.

    8-bit pixels give what imresize gives of uint8, rounded after each of the two passes. 16-bit ones give what it gives
    of floating point, clamped and rounded once, to ``depth``.
    """
    scales = [new / old for new, old in zip(size, pixels.shape[:2], strict=True)]
    axes = [contributions(old, new, s) for old, new, s in zip(pixels.shape[:2], size, scales, strict=True)]
    (row_taps, row_weights), (column_taps, column_weights) = [(taps.numpy(), weights.numpy()) for taps, weights in axes]
    whole = pixels.dtype == np.uint8
    source_top, top = np.iinfo(pixels.dtype).max, np.iinfo(depth).max
    n = max(1, _BAND_BYTES // (8 * size[1] * pixels.shape[2]))
    for first in range(0, size[0], n):
        rows = slice(first, first + n)
        taps = row_taps[:, rows]
        start = int(taps.min())
        band = pixels[start : int(taps.max()) + 1]
        passes = [(0, taps - start, row_weights[:, rows]), (1, column_taps, column_weights)]
        for axis, places, weights in sorted(passes, key=lambda one: scales[one[0]]):  # as imresize orders them
            band = _resampled(band, axis, places, weights)
            if whole:
                band = np.clip(np.floor(band + 0.5), 0, 255)
        if not whole:
            band = np.rint(np.clip(band * (top / source_top), 0, top))
        yield first, band.astype(depth)
        if progress:
            progress(min(size[0], first + n), size[0])


def _resampled(pixels: np.ndarray, axis: int, taps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of the samples along an axis, in double precision and the order of the taps."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total = pixels.take(taps[0], axis) * weights[0].reshape(shape)
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        total += pixels.take(tap, axis) * weight.reshape(shape)
    return total


def bleed(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, C) where each fully transparent pixel has that of the nearest pixel that is not."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    filled = colours.copy()
    for row, unseen in enumerate(hidden):
        filled[row, unseen] = colours[nearest[0, row, unseen], nearest[1, row, unseen]]
    return filled


def check_room(pixels: tuple[int, int, int], itemsize: int, kind: str, beside: int = 0) -> None:
    """Raise InputError where a file of a format, or the free memory, cannot hold a picture of ``pixels`` (H, W, C), or
    before it the bytes ``beside`` that its making takes."""
    pictures.check_size(kind, pixels, itemsize)
    large = pixels[0] * pixels[1] * pixels[2] * itemsize
    needed = large + max(beside, large + 4 * pixels[0] * pixels[1])  # the picture, an encoder's copy, and its output
    free = tiles.free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"a picture of {pixels[1]}x{pixels[0]} needs {needed / 2**30:.1f} GiB to be written, and {free / 2**30:.1f}"
            " are free: choose a smaller --scale, or cut the picture into parts"
        )


def _too_little_memory(source: Path) -> InputError:
    return InputError(f"{source}: there is not enough memory: give a smaller --tile, such as 128, or a smaller --scale")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = pictures.NoRoom if error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC) else InputError
        raise kind(f"no folder can be made at {folder} ({error.strerror})") from error


class Terminated(BaseException):
    """The process was asked to end, by SIGTERM."""


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind what runs in this context, as Ctrl-C does, so that half a file is taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
