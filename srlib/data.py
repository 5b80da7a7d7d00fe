"""Images decoded once, and the training batches that are cut from them.

A ``Store`` keeps the images of a set as uint8 arrays in a cache folder, one memory-mapped ``.npy`` file each, and their
LR images beside them. ``Patches`` and ``Queries`` are map-style datasets over the steps of a training: each batch is a
pure function of the seed and the step. ``loader`` reads them ahead in worker processes, so that a GPU doesn't wait.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyvips
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from srlib.datasets import ImageSet, few, find
from srlib.degradation import degrade
from srlib.errors import InputError, write
from srlib.resize import imresize

LARGEST = 2 * 89_478_485  # pixels of an image, where Pillow draws the line, too
CACHE_VERSION = 1  # raise it when decoding, or an output of imresize or degrade, changes
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Degradation = Literal["bicubic", "real-esrgan"]
Decoded = tuple[np.ndarray, tuple[str, ...]]  # pixels, and notes on what is odd

logging.getLogger("pyvips").setLevel(logging.ERROR)  # what it warns of is raised here, or does no harm
pyvips.cache_set_max(0)  # a picture is decoded once, and its memory given back


def open_image(file: Path) -> tuple[pyvips.Image, tuple[str, ...]]:
    """The picture in a file, decoded, and notes on what is odd, was converted or left out.

    It has 8 or 16 bits a channel, is grey or RGB, with alpha where the file has it, upright as EXIF says; of several
    pictures it is the first. The content decides the format. Palettes become RGB, CMYK goes through its profile to
    sRGB; other profiles stay attached. Raises InputError for a file that cannot be read, is no picture, lacks pixels,
    has more than ``LARGEST`` of them, or has floating-point ones.
    """
    try:
        image, notes = _read(file.read_bytes())
    except (pyvips.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read ({why}): fetch it again, or take it out") from None
    if image.format not in ("uchar", "ushort") or image.bands > 4:
        raise InputError(f"{file} has {image.bands} channels of {image.format}: save it as 8-bit or 16-bit RGB")
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk")
        notes += ("CMYK became sRGB",)
    if image.get_n_pages() > 1:
        notes += (f"the first of {image.get_n_pages()} pictures was taken",)
    return image.autorot(), notes


def _read(data: bytes) -> tuple[pyvips.Image, tuple[str, ...]]:
    """A picture with all its pixels, and a note on a JPEG that lacks its end marker, as phones' panoramas do."""
    if data.startswith(b"BM"):  # libvips doesn't read BMP
        try:
            return pyvips.Image.new_from_array(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), ()
        except UnidentifiedImageError:  # it would name an address in memory
            raise ValueError("it is no BMP picture") from None
    if not data.startswith(b"\xff\xd8"):
        return _decoded(data, "error"), ()
    told = ""  # by libvips, whose threads share one text, so that a line may be lost: it is asked twice
    for more, notes in ((b"", ()), (b"\xff\xd9", ("it has all its pixels, but no end marker",))):
        try:
            return _decoded(data + more, "warning"), notes  # with the marker missing pixels are a warning, too
        except pyvips.Error as error:
            told += str(error)
    if any(damage in told for damage in ("data segment", "Huffman", "instead of RST")):
        raise ValueError(told)
    return _decoded(data, "error"), ()  # a file cut short is one; libjpeg's other warnings are harmless


def _decoded(data: bytes, fail_on: str) -> pyvips.Image:
    image = pyvips.Image.new_from_buffer(data, "", fail_on=fail_on)
    if image.width * image.height > LARGEST:
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than {LARGEST // 10**6} million")
    return image.copy_memory()


def decode(file: str | Path) -> Decoded:
    """An image file as networks are trained and scored on it: uint8 (3, H, W), RGB, or (1, H, W), grey; and notes.

    What is transparent is laid over white, 16 bits are divided by 257 and rounded. Notes and errors are those of
    ``open_image``.
    """
    image, notes = open_image(Path(file))
    if image.hasalpha():
        image = image.flatten(background=[255 if image.format == "uchar" else 65535])
    pixels = eight_bits(image.numpy().reshape(image.height, image.width, -1).transpose(2, 0, 1))
    return pixels, tuple(f"{file}: {note}" for note in notes)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 8 or 16 bits as those of 8."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.int32) + 128) // 257).astype(np.uint8)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode(errors="surrogateescape")).hexdigest()[:32]


def _stamp(file: Path) -> list[Any]:
    """What tells a file from others and from what it was before: path, size and times; no times where it is gone."""
    status = file.stat() if file.exists() else None
    return [os.path.realpath(file), *((status.st_size, status.st_mtime_ns, status.st_ctime_ns) if status else ())]


@lru_cache(maxsize=512)
def _mapped(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r")


class _Cached:
    """Images in the cache, KEY.npy each, uint8 (3, H, W) or, of a grey one, (1, H, W); KEY.txt has its notes, if any.

    ``make(i)`` gives what is not there; ``problems`` say by i which images it could not make, and why."""

    def __init__(self, cache: Path, keys: Sequence[str], make: Callable[[int], Decoded]) -> None:
        self.files = [cache / f"{key}.npy" for key in keys]
        self.problems: dict[int, str] = {}

        def shape(i: int) -> tuple[int, ...]:
            try:
                return np.load(self.files[i], mmap_mode="r").shape
            except (FileNotFoundError, EOFError, ValueError):  # not there yet, or cut short
                pass
            try:
                image, notes = make(i)
            except InputError as error:
                self.problems[i] = str(error)
                return ()
            if notes:
                write(self.files[i].with_suffix(".txt"), "\n".join(notes).encode(errors="surrogateescape"))
            content = io.BytesIO()
            np.save(content, image)
            write(self.files[i], content.getbuffer())
            return image.shape

        try:
            cache.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(min(8, CORES)) as pool:
                self.shapes = list(pool.map(shape, range(len(keys))))
        except (OSError, InputError) as error:  # of the folder, or of a file in it
            why = getattr(error.__cause__ or error, "strerror", error)
            raise InputError(f"cannot write to {cache} ({why}): set SRLIB_CACHE to another folder") from None
        beside = [file.with_suffix(".txt") for file in self.files]
        noted = [file.read_text("utf-8", "surrogateescape") for file in beside if file.exists()]
        self.notes = tuple(line for text in noted for line in text.splitlines())

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, memory-mapped: uint8 (3, H, W)."""
        return np.broadcast_to(_mapped(self.files[i]), (3, *self.shapes[i][1:]))

    def fingerprint(self, names: Sequence[str]) -> str:
        """sha256 over names, sizes and pixels, computed once."""
        memo = self.files[0].with_name(f"{_digest([file.name for file in self.files], names)}.sha256")
        if not memo.exists():
            digest = hashlib.sha256()
            for i, (name, (_, height, width)) in enumerate(zip(names, self.shapes, strict=True)):
                digest.update(f"{name}\0{height}x{width}\0".encode(errors="surrogateescape"))
                digest.update(np.ascontiguousarray(self[i]).data)
            write(memo, digest.hexdigest().encode())
        return memo.read_text()


class Store:
    """The decoded images of a set, and their LR images at each scale: uint8 tensors (3, H, W), RGB.

    LR images are the distributed files where the set has them; else HR is cropped to multiples of the scale and reduced
    by ``imresize``, or by Real-ESRGAN's degradation where there is a ``seed`` (see ``degraded``).

    An image is left out if its HR file or an LR file of it, at whatever scale, cannot be decoded: ``broken`` has its
    name, ``notes`` a line on it, and ``name`` says that the set is not whole.

    ``cache`` is a folder, else SRLIB_CACHE, else ~/.cache/srlib; images are found there by their files' paths, sizes
    and time stamps. Raises InputError where every image is broken, and for a cache that cannot be written.
    """

    def __init__(self, image_set: ImageSet, cache: str | Path | None = None, seed: int | None = None) -> None:
        place = Path(os.path.expanduser(cache or os.environ.get("SRLIB_CACHE") or "~/.cache/srlib"))
        self.cache, self.seed = place / "images", seed
        self.images, self._distributed = self._decoded(image_set)
        broken = dict(self.images.problems)
        for scale, lr in self._distributed.items():  # a file that is not there matters where its scale is used
            broken |= {i: why for i, why in lr.problems.items() if image_set.lr_files[scale][i].exists()}
        if broken:
            image_set = image_set.without(broken)
            self.images, self._distributed = self._decoded(image_set)
        self.image_set, self._lr = image_set, dict[int, _Cached]()
        self.name, self.names, self.broken = image_set.title, image_set.names, image_set.broken
        decoded = (self.images, *self._distributed.values())
        self.notes = image_set.notes + tuple(note for images in decoded for note in images.notes)

    def _decoded(self, image_set: ImageSet) -> tuple[_Cached, dict[int, _Cached]]:
        """HR images, and by scale the distributed LR images."""

        def cached(files: Sequence[Path]) -> _Cached:
            keys = [_digest(CACHE_VERSION, _stamp(file)) for file in files]
            return _Cached(self.cache, keys, lambda i: decode(files[i]))

        return cached(image_set.files), {scale: cached(files) for scale, files in image_set.lr_files.items()}

    @classmethod
    def open(cls, spec: str, cache: str | Path | None = None) -> Store:
        """The store of what ``datasets.find`` finds by a string."""
        return cls(find(spec), cache)

    @property
    def fingerprint(self) -> str:
        """sha256 over the decoded images, their names and order: the same on every machine, wherever the files lie."""
        return self.images.fingerprint(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def hr(self, i: int) -> Tensor:
        """Image ``i`` as it was decoded: uint8 (3, H, W)."""
        return torch.from_numpy(self.images[i].copy())

    def grey(self, i: int) -> bool:
        """Whether image ``i`` is stored with one channel, which MATLAB evaluations take for the luma itself."""
        return self.images.shapes[i][0] == 1

    def lr(self, i: int, scale: int) -> Tensor:
        """The LR image of image ``i``: uint8 (3, h, w), HR's sides divided by the scale and rounded down."""
        return torch.from_numpy(self.reduced(scale)[i].copy())

    def pair(self, i: int, scale: int) -> tuple[Tensor, Tensor]:
        """LR and HR of image ``i``: uint8 (3, h, w) and (3, scale h, scale w); HR is cropped at its far edges."""
        lr = self.lr(i, scale)
        return lr, self.hr(i)[:, : scale * lr.shape[1], : scale * lr.shape[2]]

    def lr_origin(self, scale: int) -> str:
        """Where the LR images come from: "distributed", "matlab-bicubic" or "real-esrgan, seed 0"."""
        if self.seed is not None:
            return f"real-esrgan, seed {self.seed}"
        return "distributed" if scale in self._distributed else "matlab-bicubic"

    def lr_fingerprint(self, scale: int) -> str:
        """sha256 over the LR images as ``fingerprint`` is over the HR images."""
        return self.reduced(scale).fingerprint(self.names)

    def reduced(self, scale: int) -> _Cached:
        """The LR images of a scale, made on first use.

        Raises InputError for an image smaller than the scale, and for a distributed LR file that is missing or of
        another size.
        """
        if scale not in self._lr:
            sizes = [(height // scale, width // scale) for _, height, width in self.images.shapes]
            lr = self._distributed.get(scale) or self._made(scale, sizes)
            if lr.problems:
                mend = ""
                if scale in self._distributed:
                    mend = f", or remove {self.image_set.lr_files[scale][0].parent} to have it made from HR"
                raise InputError(lr.problems[min(lr.problems)] + mend)
            for file, (_, h, w), size in zip(self.image_set.lr_files.get(scale, ()), lr.shapes, sizes, strict=False):
                if (h, w) != size:
                    wrong = f"{file} is {w}x{h}, but its HR image needs {size[1]}x{size[0]}: fetch both of one release"
                    raise InputError(f"{wrong}, or remove {file.parent} to have it made from HR")
            self._lr[scale] = lr
        return self._lr[scale]

    def _made(self, scale: int, sizes: Sequence[tuple[int, int]]) -> _Cached:
        """LR images of these sizes, made from HR."""

        def make(i: int) -> Decoded:
            height, width = sizes[i]
            if not height or not width:
                raise InputError(f"{self.names[i]} is too small for x{scale}: use a smaller scale or leave it out")
            hr = self.hr(i)[:, : height * scale, : width * scale]
            if self.seed is None:
                return imresize(hr, size=sizes[i]).numpy(), ()
            lr = degrade(hr[None] / 255, scale, self.seed, index=i)[0]
            return (lr * 255).round().to(torch.uint8).numpy(), ()

        origin = self.lr_origin(scale)
        files = enumerate(self.images.files)  # an image's place decides on its degradation
        return _Cached(self.cache, [f"{file.stem}-x{scale}-{_digest(origin, i)}" for i, file in files], make)


def degraded(store: Store, seed: int = 0) -> Store:
    """A fixed test set for real-world super-resolution: a store's images, with LR images by Real-ESRGAN's degradation.

    Image i is degraded by what (``seed``, step 0, index i) decides, at every scale.
    """
    return Store(replace(store.image_set, lr_files={}), store.cache.parent, seed)


def _words(seed: int, step: int) -> np.random.PCG64:
    """The source of a step's draws: raw words of PCG64, whose streams are fixed for good."""
    return np.random.PCG64(np.random.SeedSequence((seed, step)))


def _cut(image: np.ndarray, y: int, x: int, side: int, turn: int = 0) -> np.ndarray:
    """A patch (3, side, side) in one of eight positions: bit 0 of ``turn`` reverses rows, bit 1 columns, bit 2 then
    swaps the axes."""
    patch = image[:, y : y + side, x : x + side][:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return patch.transpose(0, 2, 1) if turn & 4 else patch


def _in_unit_range(pixels: list[np.ndarray]) -> Tensor:
    """uint8 arrays of one shape as one float32 tensor in [0, 1]."""
    return torch.from_numpy(np.divide(np.stack(pixels), np.float32(255), dtype=np.float32))


def _check_room(store: Store, patch: int) -> None:
    """Raise InputError where an image is smaller than a patch of so many HR pixels."""
    small = [name for name, shape in zip(store.names, store.images.shapes, strict=True) if min(shape[1:]) < patch]
    if small:
        lack = f"{store.name}: {few(small)} cannot hold a patch of {patch}x{patch} HR pixels"
        raise InputError(f"{lack}: take smaller patches, or leave these images out")


@dataclass
class Patches(Dataset[tuple[Tensor, Tensor]]):
    """Training batches of aligned LR and HR patches: ``patches[step]`` is a pure function of seed and step.

    An image is drawn uniformly (small images as often as large ones), then a position uniformly on its LR grid, then
    one of the eight flips and quarter turns. A smaller batch is the start of a larger one. ``patch`` is in LR pixels.
    ``degradation`` "bicubic" cuts LR patches from the store's LR images, "real-esrgan" makes them from the HR patches
    (which are not sharpened: Real-ESRGAN sharpens what its network learns from, SeemoRe's Appendix B.2 doesn't say so).
    ``part`` is the part of each batch that is made, as for one of several processes.
    """

    store: Store
    scale: int
    patch: int
    batch: int
    seed: int
    degradation: Degradation = "bicubic"
    part: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        _check_room(self.store, self.patch * self.scale)
        self._lr = self.store.reduced(self.scale) if self.degradation == "bicubic" else None

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """LR (B, 3, p, p) and HR (B, 3, s p, s p) of a step, float32 in [0, 1]."""
        drawn, hr, s = list(self._draw(step)), self.store.images, self.scale
        target = _in_unit_range([_cut(hr[i], y * s, x * s, self.patch * s, turn) for i, y, x, turn in drawn])
        if not self._lr:
            return degrade(target, s, self.seed, step, range(self.batch)[self.part].start), target
        return _in_unit_range([_cut(self._lr[i], y, x, self.patch, turn) for i, y, x, turn in drawn]), target

    def _draw(self, step: int) -> Iterator[tuple[int, int, int, int]]:
        """Image, y and x on its LR grid, and turn of each sample."""
        words = _words(self.seed, step).random_raw(4 * self.batch).reshape(self.batch, 4)
        for sample in words[self.part].tolist():
            image, y, x, turn = (word >> 32 for word in sample)  # numbers below 2^32
            image = image * len(self.store) >> 32
            height, width = (side // self.scale - self.patch + 1 for side in self.store.images.shapes[image][1:])
            yield image, y * height >> 32, x * width >> 32, turn >> 29


@dataclass
class Queries(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Training batches for a network that serves every scale (LIIF; MoEISR, Section 3.4): ``queries[step]``, a pure
    function of seed and step.

    For each sample an image is drawn uniformly, a scale s uniformly between the two ``scales``, an HR crop of round(s
    ``patch``) pixels each way, its LR patch made by ``imresize`` as 8-bit images are, one of the eight flips and
    quarter turns for both, and ``queries`` different pixels of the HR patch, in the order of reading. ``patch`` is in
    LR pixels; ``part`` as for ``Patches``.
    """

    store: Store
    scales: tuple[float, float]
    patch: int
    batch: int
    queries: int
    seed: int
    part: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        least, most = map(self._side, self.scales)
        if self.queries > least**2:
            raise InputError(
                f"{self.queries} queries exceed the {least**2} pixels of the smallest patch: take larger patches"
            )
        _check_room(self.store, most)

    def _side(self, scale: float) -> int:
        return math.floor(self.patch * scale + 0.5)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A step's LR patches (B, 3, p, p) in [0, 1], places (B, Q, 2) of HR pixels' centres as (y, x) in [-1, 1] over
        the patch, cells (B, 2), a pixel's height and width in the same units, and colours (B, Q, 3) in [0, 1]."""
        lr, coord, cell, target = [], [], [], []
        for i, side, y, x, turn, chosen in self._draw(step):
            crop = _cut(self.store.images[i], y, x, side)
            small = imresize(torch.from_numpy(crop.copy()), size=(self.patch, self.patch)).numpy()
            row, column = np.divmod(chosen, side)  # in the turned patch
            lr.append(_cut(small, 0, 0, self.patch, turn))
            target.append(_cut(crop, 0, 0, side, turn)[:, row, column].T)
            coord.append((2 * np.stack([row, column], -1) + 1) / side - 1)
            cell.append((2 / side, 2 / side))
        places, cells = (torch.from_numpy(np.array(part, np.float32)) for part in (coord, cell))
        return _in_unit_range(lr), places, cells, _in_unit_range(target)

    def _draw(self, step: int) -> Iterator[tuple[int, int, int, int, int, np.ndarray]]:
        """Image, HR side, corner (y, x) and turn of each sample, and its pixels (Q), counted in rows of the turned HR
        patch."""
        source, part = _words(self.seed, step), range(self.batch)[self.part]
        least, most = self.scales
        for number in range(part.stop):
            high = [int(word) >> 32 for word in source.random_raw(5)]  # five numbers below 2^32
            image = high[0] * len(self.store) >> 32
            side = self._side(least + (most - least) * high[1] * 2.0**-32)
            words = source.random_raw(side**2)
            if number in part:
                _, height, width = self.store.images.shapes[image]
                y, x = (height - side + 1) * high[2] >> 32, (width - side + 1) * high[3] >> 32
                bits = np.uint64((side**2 - 1).bit_length())  # a pixel's number takes the place of the last bits
                keys = words >> bits << bits | np.arange(side**2, dtype=np.uint64)
                chosen = np.partition(keys, self.queries - 1)[: self.queries] & (np.uint64(1) << bits) - np.uint64(1)
                yield image, side, y, x, high[4] >> 29, np.sort(chosen.astype(np.int64))


def loader(
    batches: Patches | Queries, first: int, last: int, workers: int | None = None, device: str | torch.device = "cpu"
) -> Iterator[Any]:
    """The batches of steps ``first`` to ``last`` - 1, in order, on the CPU; in pinned memory for a CUDA ``device``.

    ``workers`` processes make them ahead: by default 1 to 7 for a CUDA device, as its part of the node's cores allows,
    and none for a CPU, which is busy itself. They don't change the batches, nor torch's random numbers.
    """
    cuda = torch.device(device).type == "cuda"
    if workers is None:
        part = CORES // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun's processes on this node
        workers = max(1, min(7, part - 1)) if cuda else 0
    generator = torch.Generator()  # else a loader takes a number from torch's own
    steps = range(first, last)
    made = DataLoader(batches, None, sampler=steps, num_workers=workers, pin_memory=cuda, generator=generator)
    return iter(made)
