"""Images: where they are, how they are decoded, and how training patches are cut from them.

An ``ImageSet`` is a list of files: the embedded photographs (``photos``), any folder (``folder``) or a benchmark in the
layout that it is distributed in (``benchmark``); ``find`` takes any of these as one string. A ``Store`` holds the
decoded images of a set as uint8 in one memory-mapped file; it is made once and found again by the content of the image
files. ``Patches`` cuts training batches from a store, and ``Queries`` those of networks for every scale: each batch is
a pure function of the seed and the step.

How a file becomes pixels: EXIF orientation is applied; grey, palette, black-and-white and CMYK images become RGB; what
is transparent is laid over white; 16-bit grey is divided by 257 and rounded, and 16-bit colour keeps its high byte (all
that Pillow hands out); of several frames the first is taken; colour profiles are not applied. Floating-point images are
refused. So are a file that was cut off, a PNG whose checksums are wrong, and an image of more than 178 million pixels,
or of many more than its bytes can be a photograph of, before memory is taken for them.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import struct
import threading
import time
import uuid
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from srlib import degradation as real
from srlib.errors import InputError, expanded
from srlib.resize import contributions, imresize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # no others of Pillow's, of which one runs a program (EPS)
LARGEST = 2 * 89_478_485  # the most that an image may have: what Pillow refuses too
_PLAIN_PIXELS = 1 << 25  # an image of more must have ...
_PIXELS_A_BYTE = 200  # ... a byte for so many, several times what a photograph at JPEG's lowest quality has

# width x height as shipped in scikit-image 0.26; "grey" ones become RGB by repeating the channel
PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",  # 512x512, NASA, public domain
        "brick.png",  # 512x512 grey, CC0
        "coins.png",  # 384x303 grey, no known copyright restrictions
        "grass.png",  # 512x512 grey, CC0
        "gravel.png",  # 512x512 grey, CC0
        "hubble_deep_field.jpg",  # 1000x872, NASA, public domain
        "ihc.png",  # 512x512, stained tissue, no known copyright restrictions
        "moon.png",  # 512x512 grey, the surface of the moon
        "motorcycle_left.png",  # 741x500, Middlebury 2014 stereo
        "motorcycle_right.png",  # 741x500, the same scene, hence the same side of the split
        "retina.jpg",  # 1411x1411, CC0
    ),
    "held-out": (
        "camera.png",  # 512x512 grey, CC0
        "chelsea.png",  # 451x300, CC0
        "coffee.png",  # 600x400, CC0
        "rocket.jpg",  # 640x427, SpaceX, public domain
    ),
}

# benchmark -> number of images
BENCHMARKS: dict[str, int] = {
    "Set5": 5,
    "Set14": 14,
    "BSD100": 100,
    "Urban100": 100,
    "Manga109": 109,
    "DIV2K_val": 100,
}

# other folders, relative to the data or benchmark folder, that a set is found in: (HR, LR)
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "BSD100": (("B100/HR", "B100/LR_bicubic"),),
    "DIV2K_val": (
        ("DIV2K/DIV2K_valid_HR", "DIV2K/DIV2K_valid_LR_bicubic"),
        ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic"),
    ),
    "DIV2K_train": (
        ("DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_LR_bicubic"),
        ("DIV2K_train_HR", "DIV2K_train_LR_bicubic"),
    ),
    "Flickr2K": (("Flickr2K/Flickr2K_HR", "Flickr2K/Flickr2K_LR_bicubic"),),
}

# set -> the sets that it is made of
_JOINED = {"DF2K": ("DIV2K_train", "Flickr2K")}

_STORE_FORMAT = 1  # part of each store's key: raise it when decoding or the layout on disk changes
_LR_FORMAT = 1  # likewise for LR images: raise it when an output of ``imresize`` changes
_DEGRADED_FORMAT = 1  # likewise when an output of ``degrade`` changes
_RESIDENT_BYTES = 4 << 30
_RACY_NS = 2_000_000_000  # a file touched this recently could change again without a new time stamp

_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment with a length, or the end

Degradation = Literal["bicubic", "real-esrgan"]


@dataclass(frozen=True)
class ImageSet:
    """A named, ordered list of image files; ``lr_files`` gives the distributed LR files by scale, in the same order."""

    name: str
    files: tuple[Path, ...]
    lr_files: Mapping[int, tuple[Path, ...]] = field(default_factory=dict, hash=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names: file names without suffix, or with it where two files would share a name."""
        stems = Counter(file.stem for file in self.files)
        return tuple(file.stem if stems[file.stem] == 1 else file.name for file in self.files)


@dataclass(frozen=True)
class Availability:
    """Whether a known benchmark is there: how many images it has, how many were found, and in which HR folder."""

    name: str
    expected: int
    found: int
    path: Path | None

    @property
    def present(self) -> bool:
        """True if all of the benchmark's images were found."""
        return self.found == self.expected


def photos(split: str) -> ImageSet:
    """The photographs that scikit-image ships inside its wheel; ``split`` is "train" (11 images) or "held-out" (4).

    Nothing is downloaded and scikit-image is not imported. Drawings, text, masks, test patterns, crops and the cell (a
    phase image computed from a hologram) are left out, and so is the clock, which is blurred by motion. The licences
    are in the docstrings of ``skimage.data``: public domain, CC0 or no known restrictions; the motorcycle is of the
    Middlebury 2014 stereo benchmark. Raises InputError for another split or where scikit-image or one of the files is
    missing.
    """
    if split not in PHOTOS:
        raise InputError(f"no photographs called {split!r}: use photos/train or photos/held-out instead")
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the embedded photographs need scikit-image: install it, or name a folder of images instead")
    root = Path(spec.submodule_search_locations[0]) / "data"
    files = tuple(root / name for name in PHOTOS[split])
    for file in files:
        if not file.is_file():
            raise InputError(f"no {file.name} in {root}: install scikit-image 0.26, or name a folder of images instead")
    return ImageSet(f"photos/{split}", files)


def folder(path: str | Path) -> ImageSet:
    """The images that lie directly in a folder (not in folders below it), sorted by file name.

    Suffixes: png, jpg, jpeg, bmp, webp, tif, tiff in any case; hidden files are passed over. The set is named by the
    folder. Raises InputError where the folder is missing or holds no image.
    """
    path = expanded(path)
    if not os.path.isdir(path):
        raise InputError(f"{path} is not a folder: name an existing folder of images instead")
    files = _images(path)
    if not files:
        below = [child.name for child in sorted(path.iterdir()) if os.path.isdir(child) and _images(child)]
        mend = (
            f"name a folder below it instead ({', '.join(below[:5])})"
            if below
            else f"put {', '.join(SUFFIXES)} files there"
        )
        raise InputError(f"{path} holds no images: {mend}")
    return ImageSet(path.resolve().name, files)


def benchmark(name: str, root: str | Path | None = None) -> ImageSet:
    """A benchmark in the usual layout: HR images and, where they are, LR images such as ``LR_bicubic/X4/babyx4.png``.

    ``root`` is the data folder that holds benchmark/, or that folder itself; None means the environment variable
    SRLIB_DATA. BSD100 is also found as B100, DIV2K_val as DIV2K/DIV2K_valid_HR. LR files are looked up when a scale is
    first used: a scale without a folder X<s> is made from HR instead. DF2K is DIV2K_train and Flickr2K together, its LR
    images those of the scales that both have. Raises InputError where the root or the benchmark is missing or empty.
    """
    if name in _JOINED:
        return _joined(name, [benchmark(part, root) for part in _JOINED[name]])
    name = "BSD100" if name == "B100" else name
    base = _data_root(root)
    if base is None:
        raise InputError(
            f"{name} needs a data folder: set SRLIB_DATA or --data-root to the one with benchmark/{name}/HR"
        )
    found = _layout(name, base)
    if found is None:
        home = base / "benchmark" / name / "HR"
        raise InputError(f"no {name} in {base}: put its images in {home}, or name another data folder")
    return _benchmark(name, *found)


def find(spec: str, root: str | Path | None = None) -> ImageSet:
    """An image set by one string: "photos/train", "photos/held-out", a benchmark's name, or the path of a folder.

    A path may be relative to the working folder or to the data folder (``root``, else SRLIB_DATA). A folder that has
    HR/ in it is read as a benchmark with its LR files. Raises InputError with the choices where nothing fits, and for
    a data folder that is named but not there, unless photographs are asked for.
    """
    if spec.split("/")[0] == "photos":
        return photos(spec.removeprefix("photos").removeprefix("/"))
    base = _data_root(root)
    if spec in BENCHMARKS or spec in _LAYOUTS or spec in _JOINED:
        return benchmark(spec, base)
    for path in [expanded(spec)] + ([base / spec] if base else []):
        if spec and os.path.isdir(path):
            if os.path.isdir(path / "HR"):
                return _benchmark(path.resolve().name, path / "HR", path / "LR_bicubic")
            return folder(path)
    if base is not None and spec and (found := _layout(spec, base)):
        return _benchmark(spec, *found)
    where = f" in {base}" if base else " (SRLIB_DATA is not set)"
    choices = ", ".join([*(f"photos/{split}" for split in PHOTOS), *BENCHMARKS])
    raise InputError(f"no images called {spec!r}{where}: use {choices} or a folder's path instead")


def datasets(root: str | Path | None = None) -> list[Availability]:
    """The benchmarks that the papers use, and whether they are in the data folder (``root``, else SRLIB_DATA).

    Where no data folder is named, none of them is; one that is named but not there raises InputError.
    """
    base = _data_root(root)
    rows = []
    for name, expected in BENCHMARKS.items():
        found = _layout(name, base) if base is not None else None
        rows.append(Availability(name, expected, len(_images(found[0])) if found else 0, found[0] if found else None))
    return rows


def _data_root(root: str | Path | None) -> Path | None:
    """The data folder that the argument or else SRLIB_DATA names, None where neither does; it must be a folder."""
    named = root or os.environ.get("SRLIB_DATA")
    if not named:
        return None
    base = expanded(named)
    if not os.path.isdir(base):
        mend = "name" if root else "set SRLIB_DATA to"
        raise InputError(f"no data folder {base}: {mend} the one with benchmark/Set5/HR, or leave it out")
    return base


def _images(path: Path) -> tuple[Path, ...]:
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    except OSError as error:
        raise _unreadable(path, error) from error
    return tuple(sorted((file for file in files if os.path.isfile(file)), key=lambda file: file.name))


def _layout(name: str, base: Path) -> tuple[Path, Path] | None:
    """The HR and LR folders of a benchmark under a data or benchmark folder, None where there is no HR folder."""
    for parent in (base / "benchmark", base):
        for hr, lr in ((f"{name}/HR", f"{name}/LR_bicubic"), *_LAYOUTS.get(name, ())):
            if os.path.isdir(parent / hr):
                return parent / hr, parent / lr
    return None


def _benchmark(name: str, hr: Path, lr: Path) -> ImageSet:
    files = folder(hr).files
    found = [child for child in sorted(lr.iterdir()) if child.is_dir()] if lr.is_dir() else []
    scales = {int(child.name[1:]): child for child in found if child.name[0] == "X" and child.name[1:].isdecimal()}
    return ImageSet(name, files, {s: tuple(x / f"{file.stem}x{s}.png" for file in files) for s, x in scales.items()})


def _joined(name: str, parts: Sequence[ImageSet]) -> ImageSet:
    scales = set.intersection(*(set(part.lr_files) for part in parts))
    lr_files = {scale: sum((part.lr_files[scale] for part in parts), ()) for scale in sorted(scales)}
    return ImageSet(name, sum((part.files for part in parts), ()), lr_files)


def decode(data: bytes, label: str) -> np.ndarray:
    """The pixels of an encoded image as a uint8 array (3, H, W), by the rules at the top of this module.

    ``label`` names the image in the InputError that a truncated, corrupt, oversized or floating-point image raises. The
    content decides the format, not the name: PNG, JPEG, BMP, WebP or TIFF.
    """
    try:
        with PILLOW.strict(), Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            check_extent(opened.size, len(data), label)
            if opened.format == "PNG":
                check_png(data)
            opened.load()
            if opened.format in ("JPEG", "MPO"):
                check_jpeg(data, opened)
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                return _sixteen_bits(image, label)
            if image.mode == "F":
                raise InputError(f"{label} has floating-point pixels: save it as an 8-bit PNG instead")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is no PNG, JPEG, BMP, WebP or TIFF image, or damaged where it says so"
        raise InputError(
            f"{label} cannot be decoded ({reason}): fetch it again, or take it out of the folder"
        ) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Pillow:
    """Pillow's settings, which are the whole process's, as ``decode`` needs them in however many threads: a file that
    was cut off is an error, whatever another library has switched on, ``check_extent`` says what is too large, and
    nothing is printed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Set them when the first enters, put them back when the last leaves."""
        with self.lock:
            self.users += 1
            if self.users == 1:
                self._set()
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.undo.close()

    def _set(self) -> None:
        for module, name, value in ((ImageFile, "LOAD_TRUNCATED_IMAGES", False), (Image, "MAX_IMAGE_PIXELS", None)):
            self.undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        self.undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"PIL\b")
        silence, log = logging.NullHandler(), logging.getLogger("PIL")
        log.addHandler(silence)  # else Python prints what no program has asked for
        self.undo.callback(log.removeHandler, silence)
        with contextlib.suppress(OSError, AttributeError):  # libtiff prints by itself; no harm where it is out of reach
            handle = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
            handle.argtypes, handle.restype = [ctypes.c_void_p], ctypes.c_void_p
            self.undo.callback(handle, handle(None))


PILLOW = Pillow()


def check_extent(size: tuple[int, int], nbytes: int, label: str, per_byte: int = _PIXELS_A_BYTE) -> None:
    """Raise InputError for an image (width, height) that is too large to be opened, before memory is taken for it: of
    more pixels than ``LARGEST``, or than its bytes can hold at ``per_byte`` pixels each."""
    width, height = size
    pixels = width * height
    if pixels < 1:
        raise InputError(f"{label} is {width}x{height}, without a pixel: take it out of the folder")
    if pixels > LARGEST:
        raise InputError(
            f"{label} says that it is {width}x{height}, more than {LARGEST // 10**6} million pixels: cut it into parts"
        )
    if pixels > max(_PLAIN_PIXELS, per_byte * nbytes):
        raise InputError(
            f"{label} says that it is {width}x{height}, but its {nbytes} bytes can hold no image of that size: "
            "fetch it again, or take it out of the folder"
        )


def check_png(data: bytes) -> None:
    """Raise ValueError where a chunk of a PNG is damaged or the end is missing: Pillow does not check the sums of what
    holds the pixels."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        start, at = at + 4, at + 12 + length
        if at > len(data) or zlib.crc32(view[start : at - 4]) != int.from_bytes(view[at - 4 : at], "big"):
            raise ValueError(f"its part {kind.decode('latin-1')!r} is damaged or cut off")


def check_jpeg(data: bytes, opened: Image.Image) -> None:
    """Raise ValueError where a JPEG's end comes before its last pixels: the decoder fills up what is missing with one
    colour and says nothing.

    So it is decoded a second time, with bytes without sense before the end: they change no pixel of a whole image, as
    nobody reads them, and some of one that lacks any. A progressive image that ends between two of its passes is whole
    but for detail, and is read.
    """
    at, marker = 2, b""
    while marker != b"\xff\xd9":
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise ValueError("its end is missing")
        marker, end = found[0], found.start()
        at = found.end() + (int.from_bytes(data[found.end() : found.end() + 2], "big") if marker != b"\xff\xd9" else 0)
    with Image.open(io.BytesIO(data[:end] + b"\xb5\x5a\xd3" * 80 + marker), formats=("JPEG",)) as other:
        if not np.array_equal(np.asarray(other), np.asarray(opened)):
            raise ValueError("it ends before its last pixels")


def _sixteen_bits(image: Image.Image, label: str) -> np.ndarray:
    wide = np.asarray(image).astype(np.int64)  # (H, W)
    if wide.min() < 0 or wide.max() > 65535:
        raise InputError(f"{label} has more than 16 bits a pixel: save it as an 8-bit PNG instead")
    grey = ((wide + 128) // 257).astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0)


class Store:
    """The decoded images of a set as uint8 in one memory-mapped file, and their LR images in another one a scale.

    A store lies in a folder of the cache whose name is a hash of the image files' bytes, names and order, so that a
    changed image gives a new store and the same images in another place give the same one. It is written beside its
    place and renamed: there is a whole store or none, and processes that build the same one at the same time do not
    harm each other. Tensors are uint8, CHW, RGB; they are private views of the file, so that writing to one changes
    neither file nor store.
    """

    def __init__(self, image_set: ImageSet, cache: Path, key: str, hr: "_Flat") -> None:
        """Use ``Store.open``."""
        self.image_set = image_set
        self.cache = cache
        self.key = key
        self._hr = hr
        self._lr: dict[int, _Flat] = {}

    @classmethod
    def open(
        cls, image_set: ImageSet, cache: str | Path | None = None, progress: Callable[[int, int], None] | None = None
    ) -> "Store":
        """The store of an image set, built if it is not in the cache yet.

        ``cache`` is a folder, None means the environment variable SRLIB_CACHE, else ~/.cache/srlib. File hashes are
        remembered by path, size and time stamps, so that only new and changed files are read when a store is opened
        again. ``progress`` is called with the number of images done and to do while a store is built. Raises InputError
        for an empty set, an image that is missing or cannot be decoded, or a cache that cannot be written.
        """
        if not image_set.files:
            raise InputError(f"{image_set.name} has no images: name a folder of images instead")
        place = expanded(cache or os.environ.get("SRLIB_CACHE") or "~/.cache/srlib")
        hashes = _file_hashes(image_set.files, place)
        key = _digest(["hr", _STORE_FORMAT, *zip(image_set.names, hashes, strict=True)])
        home = place / "stores" / key
        flat = _Flat.open(home)
        if flat is None:
            images = _decoded(image_set.files, hashes)
            flat = _Flat.build(home, image_set.names, images, progress)
        return cls(image_set, place, key, flat)

    @property
    def name(self) -> str:
        """The image set's name."""
        return self.image_set.name

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, in order."""
        return self._hr.names

    @property
    def fingerprint(self) -> str:
        """sha256 over the decoded images, their names and order: the same on every machine, wherever the files lie."""
        return self._hr.fingerprint

    def __len__(self) -> int:
        """The number of images."""
        return len(self._hr.names)

    def __repr__(self) -> str:
        """Name, number of images and the start of the fingerprint."""
        return f"Store({self.name!r}, {len(self)} images, {self.fingerprint[:12]})"

    def hr(self, i: int) -> Tensor:
        """Image ``i`` as it was decoded: uint8 (3, H, W)."""
        return self._hr.image(i)

    def grey(self, i: int) -> bool:
        """Whether image ``i`` is stored with one channel, which MATLAB evaluations take for the luma itself."""
        with PILLOW.strict(), Image.open(self.image_set.files[i], formats=_FORMATS) as image:
            return image.mode in ("1", "L", "I;16")

    def lr(self, i: int, scale: int) -> Tensor:
        """The LR image of image ``i``: uint8 (3, h, w); the LR images of a scale are made or decoded on first use."""
        return self.build_lr(scale)._lr[scale].image(i)

    def pair(self, i: int, scale: int) -> tuple[Tensor, Tensor]:
        """LR and HR of image ``i``: uint8 (3, h, w) and (3, scale h, scale w); HR is cropped at its far edges."""
        lr = self.lr(i, scale)
        return lr, self.hr(i)[:, : scale * lr.shape[1], : scale * lr.shape[2]]

    def lr_origin(self, scale: int) -> str:
        """Where the LR images come from: "distributed" files, or "matlab-bicubic" made here from HR."""
        return "distributed" if scale in self.image_set.lr_files else "matlab-bicubic"

    def lr_fingerprint(self, scale: int) -> str:
        """sha256 over the LR images as ``fingerprint`` is over the HR images."""
        return self.build_lr(scale)._lr[scale].fingerprint

    def build_lr(self, scale: int, progress: Callable[[int, int], None] | None = None) -> "Store":
        """Make or open the LR images of a scale, return the store; ``lr``, ``pair`` and ``Patches`` do so themselves.

        Distributed files are used where the set has them; otherwise HR is cropped to multiples of the scale and reduced
        by ``imresize``. Raises InputError for a scale that is not a positive integer, an image smaller than the scale,
        a missing LR file, or one whose size is not HR's divided by the scale and rounded down.
        """
        _check_scale(scale)
        if scale in self._lr:
            return self
        sizes = self._lr_sizes(scale)
        if self.lr_origin(scale) == "distributed":
            files = self.image_set.lr_files[scale]
            for file in files:
                if not file.is_file():
                    raise InputError(
                        f"{file} is missing: fetch it, or remove {file.parent} to have x{scale} made from HR"
                    )
            hashes = _file_hashes(files, self.cache)
            key = _digest(["distributed", _STORE_FORMAT, *hashes])
            images = (
                self._fitting(*row, scale) for row in zip(self._hr.sizes, files, _decoded(files, hashes), strict=True)
            )
        else:
            key = _digest(self._recipe())
            cropped = [(slice(None), slice(scale * height), slice(scale * width)) for height, width in sizes]
            images = _ahead(lambda i: self._reduced(self.hr(i)[cropped[i]], i, scale), len(self))
        home = self.cache / "stores" / f"{self.key}-x{scale}-{key[:16]}"
        flat = _Flat.open(home)
        if flat is None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # several small images at a time instead of several threads an image
            try:
                flat = _Flat.build(home, self.names, images, progress)
            finally:
                torch.set_num_threads(threads)
        self._lr[scale] = flat
        return self

    @staticmethod
    def _fitting(size: tuple[int, int], file: Path, lr: np.ndarray, scale: int) -> np.ndarray:
        height, width = size
        if lr.shape[1:] != (height // scale, width // scale):
            raise InputError(
                f"{file} is {lr.shape[2]}x{lr.shape[1]} but HR {width}x{height} needs "
                f"{width // scale}x{height // scale}: "
                f"fetch HR and LR of one release, or remove {file.parent} to have x{scale} made from HR"
            )
        return lr

    def _lr_sizes(self, scale: int) -> list[tuple[int, int]]:
        """Height and width of each LR image, HR's divided by the scale and rounded down."""
        _check_scale(scale)
        for name, (height, width) in zip(self.names, self._hr.sizes, strict=True):
            if min(height, width) < scale:
                raise InputError(
                    f"{name} is {width}x{height}, too small for x{scale}: use a smaller scale or leave it out"
                )
        return [(height // scale, width // scale) for height, width in self._hr.sizes]

    def _recipe(self) -> list[object]:
        """What identifies ``_reduced`` in the key of LR images that are made here."""
        return ["matlab-bicubic", _LR_FORMAT]

    def _reduced(self, hr: Tensor, i: int, scale: int) -> np.ndarray:
        """The LR image (3, h, w) of image ``i``, made from ``hr``: the image cropped to multiples of the scale."""
        return imresize(hr, size=(hr.shape[1] // scale, hr.shape[2] // scale)).numpy()


class DegradedStore(Store):
    """The same images with LR images by Real-ESRGAN's degradation, at any scale: made once, then fixed.

    Image i is degraded by what (``seed``, step 0, index i) decides; distributed LR files are not used. ``lr_origin``
    says "real-esrgan, seed 0".
    """

    def __init__(self, store: Store, seed: int = 0) -> None:
        """``store`` has the HR images; ``seed`` is a whole number from 0 on, anything else raises InputError."""
        super().__init__(store.image_set, store.cache, store.key, store._hr)
        self.seed = real.check_draw("seed", seed)

    def lr_origin(self, scale: int) -> str:
        """How the LR images were made, at every scale."""
        return f"real-esrgan, seed {self.seed}"

    def _recipe(self) -> list[object]:
        return ["real-esrgan", _DEGRADED_FORMAT, self.seed, repr(real.RealEsrgan())]

    def _reduced(self, hr: Tensor, i: int, scale: int) -> np.ndarray:
        lr = real.degrade(hr[None].to(torch.float32) / 255, scale, self.seed, index=i)[0]
        return (lr * 255).round().to(torch.uint8).numpy()


def degraded(store: Store, seed: int = 0) -> Store:
    """A fixed version of a test set for real-world super-resolution: its images, with LR images by Real-ESRGAN's
    degradation. Use it wherever a store is used, as in ``evaluate.score``."""
    return DegradedStore(store, seed)


def _check_scale(scale: int) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise InputError(f"scale {scale!r} is not possible: give a whole number from 1 on, such as 2, 3 or 4")


class Patches:
    """Training batches of aligned LR and HR patches, each batch a pure function of (seed, step).

    An image is drawn uniformly (small images as often as large ones), then a position uniformly on its LR grid, then
    one of the eight flips and quarter turns; the HR patch is ``scale`` times the LR patch, its corner ``scale`` times
    LR's. The draws are raw words of numpy's PCG64 seeded by SeedSequence((seed, step)), whose streams are fixed, and
    are made on the CPU: the same batch on every device and machine, whatever was drawn before. A smaller batch is the
    start of a larger one.

    ``degradation`` says where LR patches come from: "bicubic" cuts them from the store's LR images, "real-esrgan" makes
    them from the HR patches, which are drawn all the same, by ``srlib.degradation`` with the same seed and step. The HR
    patches are not sharpened: Real-ESRGAN sharpens what its network learns from, SeemoRe's Appendix B.2 doesn't say so.

    ``patch`` is in LR pixels. On an accelerator the whole store becomes one uint8 tensor there if it needs at most 4
    GiB and a quarter of the free memory, and each batch is one gather; otherwise patches are cut from the memory map
    and sent. ``resident`` forces one or the other. Raises InputError, when it is made, for a size that is not
    positive, a seed that is negative or has more than 63 bits, an unknown degradation, and an image smaller than the
    patch.
    """

    def __init__(
        self,
        store: Store,
        scale: int = 4,
        patch: int = 64,
        batch: int = 16,
        seed: int = 0,
        device: str | torch.device = "cpu",
        resident: bool | None = None,
        degradation: Degradation = "bicubic",
    ) -> None:
        """See the class."""
        if degradation not in get_args(Degradation):
            raise InputError(f"no degradation called {degradation!r}: use {' or '.join(get_args(Degradation))} instead")
        if patch < 1 or batch < 1:
            raise InputError(f"patch {patch} and batch {batch} do not work: give whole numbers from 1 on")
        self.scale, self.patch, self.size, self.device = scale, patch, batch, torch.device(device)
        self.seed, self.degradation = real.check_draw("seed", seed), degradation
        sizes = store._lr_sizes(scale)
        hr, lr = store._hr, None if degradation == "real-esrgan" else store.build_lr(scale)._lr[scale]
        _check_room(store, sizes, patch, scale)
        self._rooms = np.array(sizes, np.uint64) - np.uint64(patch - 1)  # (N, 2) positions along y and x
        if resident is None:
            nbytes = hr.nbytes + (lr.nbytes if lr else 0)
            resident = self.device.type != "cpu" and nbytes <= _room(self.device)
        # A tensor, because CUDA multiplies by the reciprocal of a number, which is not the same in the last bit.
        self._white = torch.tensor(255.0, dtype=torch.float32, device=self.device)
        self._hr = _Source(hr, hr.tensor(self.device) if resident else None)
        self._lr = _Source(lr, lr.tensor(self.device) if resident else None) if lr else None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """LR (B, 3, p, p) and HR (B, 3, sp, sp) of a step (from 0 on): float32 in [0, 1] on the device."""
        image, y, x, turn = self._draw(step)
        side = self.patch * self.scale
        hr = self._patches(self._hr, _cuts(self._hr.flat, image, y * self.scale, x * self.scale, turn, side), side)
        if self._lr is None:
            return real.degrade(hr, self.scale, self.seed, step), hr
        return self._patches(self._lr, _cuts(self._lr.flat, image, y, x, turn, self.patch), self.patch), hr

    def _patches(self, source: "_Source", cuts: np.ndarray, side: int) -> Tensor:
        """The patches (B, 3, side, side), float32 in [0, 1] on the device."""
        if source.resident is not None:
            return _gather(source.resident, torch.from_numpy(cuts).to(self.device), side) / self._white
        pieces = _cut(source.flat.map, cuts, side)
        if self.device.type == "cpu":  # numpy's one thread is as fast, and does not wait for others on a busy machine
            return torch.from_numpy(np.divide(pieces, np.float32(255), dtype=np.float32))
        return _sent(pieces, self.device) / self._white

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        source = _words(self.seed, step)
        words = source.random_raw(4 * self.size).reshape(self.size, 4)
        high, shift = words >> np.uint64(32), np.uint64(32)
        image = (high[:, 0] * np.uint64(len(self._rooms)) >> shift).astype(np.int64)
        y, x = ((high[:, 1:3] * self._rooms[image]) >> shift).astype(np.int64).T
        return image, y, x, (words[:, 3] >> np.uint64(61)).astype(np.int64)


class Queries:
    """Training batches for a network that serves every scale (LIIF; MoEISR, Section 3.4), each a pure function of
    (seed, step).

    For each sample an image is drawn uniformly, a scale s uniformly between the two ``scales``, an HR crop of round(s
    ``patch``) pixels each way, its LR patch made by ``imresize`` as 8-bit images are, one of the eight flips and
    quarter turns for both, and ``queries`` different pixels of the HR patch, in the order of reading. Draws are raw
    words of numpy's PCG64, as those of ``Patches`` are: the same batch on every device and machine, and a smaller batch
    is the start of a larger one.

    ``patch`` is in LR pixels. ``device`` and ``resident`` mean what they mean for ``Patches``, but that HR alone is
    kept. Raises InputError, when it is made, for a size that is not positive, scales that are not two numbers from 1
    on, more queries than the smallest HR patch has pixels, a seed that is negative or has more than 63 bits, and an
    image smaller than the largest HR patch.
    """

    def __init__(
        self,
        store: Store,
        scales: tuple[float, float] = (1.0, 4.0),
        patch: int = 48,
        batch: int = 16,
        queries: int = 2304,
        seed: int = 0,
        device: str | torch.device = "cpu",
        resident: bool | None = None,
    ) -> None:
        """See the class."""
        if patch < 1 or batch < 1 or queries < 1:
            raise InputError(
                f"patch {patch}, batch {batch} and queries {queries} do not work: give whole numbers from 1 on"
            )
        if len(scales) != 2 or not 1 <= scales[0] <= scales[1] < math.inf:
            raise InputError(f"scales {scales} do not work: give the least and the greatest, from 1 on, such as (1, 4)")
        self.scales, self.patch, self.size, self.queries = scales, patch, batch, queries
        self.seed, self.device = real.check_draw("seed", seed), torch.device(device)
        least = _side(patch, scales[0])
        if queries > least**2:
            raise InputError(
                f"a patch of {patch}x{patch} has {least**2} pixels at x{scales[0]:g}, fewer than {queries} queries: "
                f"give at most {least**2}, or larger patches"
            )
        hr = store._hr
        _check_room(store, hr.sizes, _side(patch, scales[1]))
        if resident is None:
            resident = self.device.type != "cpu" and hr.nbytes <= _room(self.device)
        self._white = torch.tensor(255.0, dtype=torch.float32, device=self.device)
        self._hr = _Source(hr, hr.tensor(self.device) if resident else None)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A step's (from 0 on) LR patches (B, 3, p, p) in [0, 1], places (B, Q, 2) of HR pixels' centres as (y, x) in
        [-1, 1] over the patch, cells (B, 2), a pixel's height and width in the same units, and colours (B, Q, 3) in
        [0, 1], all float32 on the device."""
        flat, (image, side, y, x, turn, chosen) = self._hr.flat, self._draw(step)
        row, column = np.divmod(chosen, side[:, None])  # (B, Q) in the turned patch
        coord = (2 * np.stack([row, column], -1) + 1) / side[:, None, None] - 1
        cell = np.repeat(2 / side[:, None], 2, axis=1)
        first, plane, rows, columns = _cuts(flat, image, y, x, turn, side).T[:, :, None]
        pixels = (first + row * rows + column * columns)[..., None] + np.arange(3) * plane[..., None]  # (B, Q, 3)
        upright = _cuts(flat, image, y, x, np.zeros_like(turn), side)
        if self._hr.resident is None:
            crops = [_cut(flat.map, upright[b : b + 1], int(side[b]))[0] for b in range(self.size)]
            reduced = [imresize(torch.from_numpy(crop), size=(self.patch, self.patch)).numpy() for crop in crops]
            lr = _sent(np.stack([_turned(one, int(t)) for one, t in zip(reduced, turn, strict=True)]), self.device)
            target = _sent(np.asarray(flat.map[pixels]), self.device)
        else:
            cuts = torch.from_numpy(upright).to(self.device)
            lr = _turned_all(_reduced(self._hr.resident, cuts, side, self.patch), turn)
            target = self._hr.resident[_sent(pixels, self.device)]
        places, cells = (_sent(part.astype(np.float32), self.device) for part in (coord, cell))
        return lr / self._white, places, cells, target / self._white

    def _draw(self, step: int) -> tuple[np.ndarray, ...]:
        """Image, HR side, corner (y, x) and turn of each sample (B), and its pixels (B, Q), counted in rows of the
        turned HR patch."""
        source, drawn = _words(self.seed, step), []
        for _ in range(self.size):
            high = [int(word) >> 32 for word in source.random_raw(5)]  # five numbers below 2^32
            image = high[0] * len(self._hr.flat.sizes) >> 32
            least, most = self.scales
            side = _side(self.patch, least + (most - least) * high[1] * 2.0**-32)
            y, x = (
                (length - side + 1) * at >> 32 for length, at in zip(self._hr.flat.sizes[image], high[2:4], strict=True)
            )
            bits = np.uint64((side**2 - 1).bit_length())  # a pixel's number takes the place of its word's last bits
            keys = source.random_raw(side**2) >> bits << bits | np.arange(side**2, dtype=np.uint64)
            chosen = np.partition(keys, self.queries - 1)[: self.queries] & (np.uint64(1) << bits) - np.uint64(1)
            drawn.append((image, side, y, x, high[4] >> 29, np.sort(chosen.astype(np.int64))))
        return tuple(np.array(part) for part in zip(*drawn, strict=True))


def _side(patch: int, scale: float) -> int:
    """The side of the HR patch at a scale, in pixels."""
    return math.floor(patch * scale + 0.5)


def _words(seed: int, step: int) -> np.random.PCG64:
    """The source of a step's draws."""
    if step < 0:
        raise InputError(f"step {step} is negative: count steps from 0")
    return np.random.PCG64(np.random.SeedSequence((seed, step)))


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _check_room(store: Store, sizes: Sequence[tuple[int, int]], patch: int, scale: int = 1) -> None:
    """Raise InputError where an image, of these sizes at a scale, is smaller than a patch."""
    smallest = min(range(len(sizes)), key=lambda i: min(sizes[i]))
    height, width = sizes[smallest]
    if min(height, width) < patch:
        small = sum(min(size) < patch for size in sizes)
        where = f" at x{scale}" if scale > 1 else ""
        raise InputError(
            f"{small} of {len(sizes)} images of {store.name} cannot hold a patch of {patch}x{patch}{where}: "
            f"{store.names[smallest]}, the smallest, is {width}x{height}{' there' if where else ''}; take images of at "
            f"least {patch * scale} pixels each way and leave out smaller ones"
        )


def _turned(patch: np.ndarray, turn: int) -> np.ndarray:
    """A patch (3, p, p) flipped and turned as ``_cuts`` says."""
    patch = patch[:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return patch.transpose(0, 2, 1) if turn & 4 else patch


def _turned_all(patches: Tensor, turn: np.ndarray) -> Tensor:
    """The same for a batch (B, 3, p, p) of them, on its device."""
    side = patches.shape[-1]
    numbers = np.arange(side**2).reshape(1, side, side)
    order = torch.from_numpy(np.stack([_turned(numbers, t).flatten() for t in turn.tolist()])).to(patches.device)
    return patches.flatten(2).gather(2, order[:, None].expand(-1, 3, -1)).view_as(patches)


def _reduced(data: Tensor, cuts: Tensor, sides: np.ndarray, patch: int) -> Tensor:
    """What ``imresize`` makes of HR patches of different sides, ``patch`` pixels each way: (B, 3, p, p), from the flat
    tensor on its device and ``_cuts`` that turn nothing.

    The same sums in the same order, but for terms of weight 0 after them, which change none.
    """
    taps, weights = _all_contributions(tuple(sides.tolist()), patch)
    taps, weights = taps.to(data.device), weights.to(data.device)  # (P, B, p) each
    first, plane, rows, _ = cuts[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    column = torch.arange(int(sides.max()), device=data.device).minimum(cuts.new_tensor(sides)[:, None] - 1)  # (B, S)
    top = first + torch.arange(3, device=data.device)[:, None, None] * plane + column[:, None, None]

    def summed(pixels: Callable[[Tensor], Tensor]) -> Tensor:
        total = sum(pixels(tap).double() * weight[:, None, :, None] for tap, weight in zip(taps, weights, strict=True))
        return cast(Tensor, total).add_(0.5).floor_().clamp_(0, 255)  # halves up, as in imresize

    narrow = summed(lambda tap: data[top + tap[:, None, :, None] * rows]).transpose(2, 3)  # (B, 3, S, p)
    lr = summed(lambda tap: narrow.gather(2, tap[:, None, :, None].expand(-1, 3, -1, patch)))  # (B, 3, p, p)
    return lr.transpose(2, 3).to(torch.uint8)


def _all_contributions(sides: tuple[int, ...], patch: int) -> tuple[Tensor, Tensor]:
    """``contributions`` from each of some sides to ``patch``: taps and weights, (P, B, p) each, with taps of weight 0
    for sides that need fewer."""
    found = [_contributions(side, patch) for side in sides]
    most = max(len(taps) for taps, _ in found)
    taps, weights = ([F.pad(part, (0, 0, 0, most - len(part))) for part in parts] for parts in zip(*found, strict=True))
    return torch.stack(taps, 1), torch.stack(weights, 1)


@lru_cache(maxsize=1024)
def _contributions(side: int, patch: int) -> tuple[Tensor, Tensor]:
    return contributions(side, patch, patch / side)


def _room(device: torch.device) -> int:
    return min(_RESIDENT_BYTES, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else _RESIDENT_BYTES


def _cuts(flat: "_Flat", image: np.ndarray, y: np.ndarray, x: np.ndarray, turn: np.ndarray, side: int) -> np.ndarray:
    """Where each patch lies in the flat store: (B, 4) int64 of first byte and steps along channel, row and column.

    Pixel (c, i, j) of a patch lies at first + c * step_c + i * step_i + j * step_j, for each flip and quarter turn: bit
    0 of ``turn`` reverses the rows, bit 1 the columns, bit 2 swaps the two axes after that.
    """
    heights, widths = flat.extents[image].T
    down, right = (turn & 1) == 1, (turn & 2) == 2
    first = flat.offsets[image] + (y + down * (side - 1)) * widths + x + right * (side - 1)
    rows, columns = np.where(down, -widths, widths), np.where(right, -1, 1)
    swap = (turn & 4) == 4
    return np.stack([first, heights * widths, np.where(swap, columns, rows), np.where(swap, rows, columns)], axis=1)


def _cut(data: np.ndarray, cuts: np.ndarray, side: int) -> np.ndarray:
    """The patches (B, 3, side, side) copied from the memory map, one strided view each."""
    patches = np.empty((len(cuts), 3, side, side), np.uint8)
    for patch, (first, *steps) in zip(patches, cuts.tolist(), strict=True):
        patch[...] = np.ndarray((3, side, side), np.uint8, data, first, steps)
    return patches


def _gather(data: Tensor, cuts: Tensor, side: int) -> Tensor:
    """The same patches in one gather from the flat tensor, on its device."""
    first, plane, rows, columns = cuts[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    line = torch.arange(side, device=data.device)
    channel = torch.arange(3, device=data.device)[:, None, None]
    return data[first + channel * plane + line[:, None] * rows + line * columns]  # (B, 3, side, side)


class _Entry(NamedTuple):
    name: str
    height: int
    width: int
    offset: int


class _Flat:
    """One folder with images.bin (uint8, CHW an image, one after the other) and index.json."""

    def __init__(self, home: Path, entries: Sequence[_Entry], fingerprint: str) -> None:
        self.path = home / "images.bin"
        self.fingerprint = fingerprint
        self.names = tuple(entry.name for entry in entries)
        self.sizes = tuple((entry.height, entry.width) for entry in entries)
        self.extents = np.array(self.sizes, np.int64)  # (N, 2)
        self.offsets = np.array([entry.offset for entry in entries], np.int64)
        self.nbytes = entries[-1].offset + 3 * entries[-1].height * entries[-1].width
        self.map = np.memmap(self.path, np.uint8, "r", shape=(self.nbytes,))

    @classmethod
    def open(cls, home: Path) -> "_Flat | None":
        """What lies in a folder, or None where nothing whole does."""
        try:
            index = json.loads((home / "index.json").read_text(encoding="utf-8"))
            flat = cls(home, [_Entry(*row) for row in index["images"]], index["fingerprint"])
            return flat if flat.path.stat().st_size == flat.nbytes else None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    @classmethod
    def build(
        cls, home: Path, names: Sequence[str], images: Iterable[np.ndarray], progress: Callable[[int, int], None] | None
    ) -> "_Flat":
        """Write the images beside their place and rename the folder into it; who comes second takes what is there."""
        temporary = home.parent / f".building-{uuid.uuid4().hex}"
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            _sweep(home.parent)
            temporary.mkdir()
            entries, fingerprint = _write_images(temporary / "images.bin", names, images, progress)
            index = {"fingerprint": fingerprint, "columns": _Entry._fields, "images": entries}
            _write_text(temporary / "index.json", json.dumps(index))
            _synchronise(temporary)
            _put(temporary, home)
            _synchronise(home.parent)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"cannot write to {home.parent} ({reason}): set SRLIB_CACHE to a folder with room instead"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        flat = cls.open(home)
        if flat is None:
            raise InputError(f"the image cache {home} vanished while it was opened: run the same again")
        return flat

    def image(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W), copied on write: torch wants memory that it may write to."""
        shape = (3, *self.sizes[i])
        return torch.from_numpy(np.memmap(self.path, np.uint8, "c", offset=int(self.offsets[i]), shape=shape))

    def tensor(self, device: torch.device) -> Tensor:
        """The whole file as a flat uint8 tensor on a device."""
        return torch.from_numpy(np.fromfile(self.path, np.uint8)).to(device)


class _Source(NamedTuple):
    """Where patches are cut from: a file and, where it lies on the device too, its bytes there."""

    flat: _Flat
    resident: Tensor | None


def _write_images(
    path: Path, names: Sequence[str], images: Iterable[np.ndarray], progress: Callable[[int, int], None] | None
) -> tuple[list[_Entry], str]:
    entries: list[_Entry] = []
    offset, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for name, image in zip(names, images, strict=True):
            _, height, width = image.shape
            data = np.ascontiguousarray(image).data
            digest.update(f"{name}\0{height}x{width}\0".encode(errors="surrogateescape"))
            digest.update(data)
            file.write(data)
            entries.append(_Entry(name, height, width, offset))
            offset += image.size
            if progress is not None:
                progress(len(entries), len(names))
        file.flush()
        os.fsync(file.fileno())
    return entries, digest.hexdigest()


def _put(temporary: Path, home: Path) -> None:
    """Rename a folder into place; a whole one that is there stays, a damaged one gives way."""
    for _ in range(3):
        try:
            os.replace(temporary, home)
            return
        except OSError:
            if not home.exists():
                raise
        if _Flat.open(home) is not None:
            return
        damaged = home.parent / f".building-{uuid.uuid4().hex}"
        try:
            os.replace(home, damaged)
        except FileNotFoundError:  # another process was quicker
            continue
        shutil.rmtree(damaged, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove what builds that were killed more than a day ago have left."""
    for left in place.glob(".building-*"):
        try:
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue


def _synchronise(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")).hexdigest()


def _unreadable(file: Path, error: OSError) -> InputError:
    return InputError(f"{file} cannot be read ({error.strerror}): check that the file exists and may be read")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _decoded(files: Sequence[Path], hashes: Sequence[str]) -> Iterator[np.ndarray]:
    """The images in order; each is checked to be the file that was hashed."""

    def one(i: int) -> np.ndarray:
        data = _read(files[i])
        if hashlib.sha256(data).hexdigest() != hashes[i]:
            raise InputError(f"{files[i]} changed while it was read: run the same again")
        return decode(data, str(files[i]))

    return _ahead(one, len(files))


def _ahead(function: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """function(0), function(1), ... in order, a few of them computed ahead by threads."""
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in range(count):
                waiting.append(pool.submit(function, i))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _file_hashes(files: Sequence[Path], cache: Path) -> list[str]:
    """sha256 of each file's bytes; an index in the cache remembers those of unchanged files (path, size, times)."""
    folders = {file.parent: file.parent.resolve() for file in files}
    indexes = {parent: cache / "hashes" / f"{_digest(str(real))[:32]}.json" for parent, real in folders.items()}
    tables = {parent: _read_index(path) for parent, path in indexes.items()}
    hashes, changed = [], set()
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise _unreadable(file, error) from error
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = tables[file.parent].get(file.name)
        if known is not None and known[:-1] == stamp:
            hashes.append(cast(str, known[-1]))
            continue
        hashes.append(hashlib.sha256(_read(file)).hexdigest())
        if time.time_ns() - max(stamp[1:]) > _RACY_NS:
            tables[file.parent][file.name] = [*stamp, hashes[-1]]
            changed.add(file.parent)
    for parent in changed:
        _write_index(indexes[parent], tables[parent])
    return hashes


def _read_index(path: Path) -> dict[str, list[int | str]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: row for name, row in table.items() if len(row) == 4}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_index(path: Path, table: dict[str, list[int | str]]) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_text(temporary, json.dumps(table))
        os.replace(temporary, path)
    except OSError:  # a cache that cannot be written costs time, not correctness
        with contextlib.suppress(OSError):
            temporary.unlink()
