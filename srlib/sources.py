"""Data sets that the papers train and test on: who publishes them, how they lie on disk, whether they are whole, and
how they are fetched.

``SOURCES`` is the catalogue; ``found`` looks for its parts in a data folder, ``check`` looks at every image, ``get``
fetches a set that has a stable public address. An archive is downloaded beside the data (``.downloads``), where a
download that broke off is taken up again; its checksum is compared; and it is unpacked into a folder of its own, from
which whole images are moved to their place. Where the publisher's archive has no published checksum, that of the first
download is kept in ``.downloads/fetched.json`` and binds the next one.

Which addresses, sizes and checksums are known, and from where, is said with each archive. None of these archives is
part of this project. Torch isn't imported here, so that lists and errors come at once.
"""

import contextlib
import csv
import errno
import gzip
import io
import json
import os
import re
import shutil
import stat
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import srlib
from srlib.errors import InputError, expanded

if TYPE_CHECKING:
    from requests import Response, Session

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")  # as srlib.data reads them
SCALES = (2, 3, 4)  # at which LR images are distributed
CROPPED = 12  # distributions crop an HR image to multiples of a scale: by fewer pixels than this each way

DOWNLOADS = ".downloads"  # folder of archives and of what is half done, in the data folder
FETCHED = "fetched.json"  # file in it: the size and SHA-256 of each archive that was fetched, by address

MEMBERS = 100_000  # more files than any of these archives holds
DEEPEST = 8  # folders within folders in an archive
LARGEST = 256 << 20  # bytes of one image file
SWELLS = 20  # times that an archive may grow when unpacked: images are compressed already
SLACK = 64 << 20  # bytes that small archives may grow by, and that stay free on the disk
CHUNK = 1 << 20
PIECE = 1 << 16  # bytes of a download that are written at once: a connection that breaks off costs no more

_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before a download that gave nothing is tried again
_HOPS = 5  # redirections that are followed


@dataclass(frozen=True)
class Archive:
    """One file to fetch: its address, and where its folders go in the data folder.

    ``folders`` are pairs (folder in the archive, folder in the data folder); images outside of them are passed over.
    ``checksum`` is "sha256:..." or "md5:...", empty where none is published; ``size`` in bytes likewise None;
    ``checked_by`` says where both were read. ``lr`` marks an archive of nothing but LR images.
    """

    url: str
    folders: tuple[tuple[str, str], ...]
    checksum: str = ""
    size: int | None = None
    checked_by: str = ""
    lr: bool = False

    @property
    def file(self) -> str:
        """The name that it is kept under."""
        return PurePosixPath(urlsplit(self.url).path).name


@dataclass(frozen=True)
class Part:
    """Images that are used together, by the name that ``srlib.data.find`` takes.

    ``home`` is the pair of folders (HR, LR), relative to the data folder, that ``get`` fills; ``others`` are pairs that
    are found as well. The LR image of HR/NAME.png at scale 4 is LR/X4/NAMEx4.png. ``names`` are the images' names
    without suffix where they follow a pattern, else empty. ``sides`` are the least and the greatest length in pixels
    that the longer side may have, None where nothing is known of it.
    """

    name: str
    images: int
    home: tuple[str, str]
    others: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    sides: tuple[int, int] | None = None

    @property
    def layouts(self) -> tuple[tuple[str, str], ...]:
        """Every pair of folders (HR, LR) that is looked for, below the data folder and below benchmark/ in it."""
        usual = (f"{self.name}/HR", f"{self.name}/LR_bicubic")
        home = (self.home[0].removeprefix("benchmark/"), self.home[1].removeprefix("benchmark/"))
        return tuple(dict.fromkeys((usual, home, *self.others)))

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The HR folders of the other layouts than ``home``."""
        return tuple(hr for hr, _ in self.layouts if hr != self.home[0].removeprefix("benchmark/"))


@dataclass(frozen=True)
class Source:
    """A data set as it is published; ``made_of`` names the sets that one without archives of its own is made of."""

    name: str
    about: str
    publisher: str
    page: str
    terms: str
    parts: tuple[Part, ...]
    archives: tuple[Archive, ...] = ()
    made_of: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """The number of HR images."""
        return sum(part.images for part in self.parts)

    @property
    def gettable(self) -> bool:
        """Whether ``get`` can fetch it."""
        return bool(self.archives or self.made_of)


_TFDS = "TensorFlow Datasets' checksums of DIV2K"
_TORCHSR = "torchSR's list of data sets"

_BENCHMARK = partial(
    Archive,
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
    checksum="md5:4ace41d33c2384b97e6b320cd0afd6ba",
    checked_by=_TORCHSR,
)


def _benchmark_part(name: str, images: int, **known: Any) -> Part:
    return Part(name, images, (f"benchmark/{name}/HR", f"benchmark/{name}/LR_bicubic"), **known)


def _div2k(split: str, name: str, numbers: range) -> Part:
    folders = (f"DIV2K_{split}_HR", f"DIV2K_{split}_LR_bicubic")
    home = (f"DIV2K/{folders[0]}", f"DIV2K/{folders[1]}")
    names = tuple(f"{number:04d}" for number in numbers)
    return Part(name, len(numbers), home, (folders,), names, sides=(2000, 2100))


def _div2k_archive(name: str, size: int, sha256: str) -> Archive:
    folder, _, at = name.partition("_X")
    inside = f"{folder}/X{at}" if at else folder
    return Archive(
        f"https://data.vision.ee.ethz.ch/cvl/DIV2K/{name}.zip",
        ((inside, f"DIV2K/{inside}"),),
        f"sha256:{sha256}",
        size,
        _TFDS,
        lr=bool(at),
    )


_DIV2K = (
    ("DIV2K_train_HR", 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
    ("DIV2K_valid_HR", 448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
    ("DIV2K_train_LR_bicubic_X2", 925390592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    ("DIV2K_train_LR_bicubic_X3", 427847282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    ("DIV2K_train_LR_bicubic_X4", 246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    ("DIV2K_valid_LR_bicubic_X2", 117763600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"),
    ("DIV2K_valid_LR_bicubic_X3", 54513392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"),
    ("DIV2K_valid_LR_bicubic_X4", 31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
)
_DIV2K_TRAIN = _div2k("train", "DIV2K_train", range(1, 801))
_FLICKR2K = Part(
    "Flickr2K",
    2650,
    ("Flickr2K/Flickr2K_HR", "Flickr2K/Flickr2K_LR_bicubic"),
    names=tuple(f"{number:06d}" for number in range(1, 2651)),
)
_EDSR = "the authors of EDSR (Lim et al., CVPRW 2017)"

#: The catalogue, by name.
#:
#: :meta hide-value:
SOURCES: dict[str, Source] = {
    one.name: one
    for one in (
        Source(
            "DIV2K",
            "photographs with 2K pixels along one side, for training and validation",
            "ETH Zurich (Agustsson and Timofte, CVPRW 2017)",
            "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
            "academic research only; the images' copyright stays with their owners",
            (_DIV2K_TRAIN, _div2k("valid", "DIV2K_val", range(801, 901))),
            tuple(_div2k_archive(*row) for row in _DIV2K),
        ),
        Source(
            "Flickr2K",
            "photographs with 2K pixels along one side, for training",
            _EDSR,
            "https://github.com/limbee/NTIRE2017",
            "none stated: the photographs are from Flickr, their copyright stays with their owners",
            (_FLICKR2K,),
            (
                Archive(
                    "https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",
                    (
                        ("Flickr2K/Flickr2K_HR", "Flickr2K/Flickr2K_HR"),
                        ("Flickr2K/Flickr2K_LR_bicubic", "Flickr2K/Flickr2K_LR_bicubic"),
                    ),
                    "md5:5d3f39443d5e9489bff8963f8f26cb03",
                    checked_by=_TORCHSR,
                ),
            ),
        ),
        Source(
            "DF2K",
            "DIV2K's training images and Flickr2K's together, which is no archive of its own",
            "see DIV2K and Flickr2K",
            "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
            "those of DIV2K and of Flickr2K",
            (_DIV2K_TRAIN, _FLICKR2K),
            made_of=("DIV2K", "Flickr2K"),
        ),
        Source(
            "Set5",
            "five small images, for tests",
            "Bevilacqua et al., BMVC 2012",
            "http://people.rennes.inria.fr/Aline.Roumy/results/SR_BMVC12.html",
            "none stated; used for research",
            (_benchmark_part("Set5", 5),),
            (_BENCHMARK((("benchmark/Set5", "benchmark/Set5"),)),),
        ),
        Source(
            "Set14",
            "fourteen images, for tests",
            "Zeyde et al., Curves and Surfaces 2010",
            "https://sites.google.com/site/romanzeyde/research-interests",
            "none stated; used for research",
            (_benchmark_part("Set14", 14),),
            (_BENCHMARK((("benchmark/Set14", "benchmark/Set14"),)),),
        ),
        Source(
            "BSD100",
            "the hundred test photographs of Berkeley's segmentation data set (printed as B100), for tests",
            "UC Berkeley (Martin et al., ICCV 2001)",
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/",
            "non-commercial research and teaching only",
            (_benchmark_part("BSD100", 100, others=(("B100/HR", "B100/LR_bicubic"),), sides=(470, 481)),),
            (_BENCHMARK((("benchmark/B100", "benchmark/BSD100"),)),),
        ),
        Source(
            "Urban100",
            "a hundred photographs of buildings, for tests",
            "Huang et al., CVPR 2015",
            "https://github.com/jbhuang0604/SelfExSR",
            "none stated: the photographs are from Flickr; used for research",
            (_benchmark_part("Urban100", 100, names=tuple(f"img_{number:03d}" for number in range(1, 101))),),
            (_BENCHMARK((("benchmark/Urban100", "benchmark/Urban100"),)),),
        ),
        Source(
            "Manga109",
            "109 pages, one of each of 109 Japanese comics, for tests",
            "the University of Tokyo (Matsui et al., 2017)",
            "http://www.manga109.org/en/",
            "academic use, no redistribution; on application to the publisher, hence no address to fetch it from",
            (_benchmark_part("Manga109", 109),),
        ),
    )
}


def source(name: str) -> Source:
    """The data set of that name, in any case; B100 is BSD100. Raises InputError with the choices where there is
    none."""
    known = {one.lower(): one for one in SOURCES} | {"b100": "BSD100"}
    known |= {part.name.lower(): one.name for one in SOURCES.values() if not one.made_of for part in one.parts}
    if name.lower() not in known:
        raise InputError(f"no data set called {name!r}: choose one of {', '.join(SOURCES)}")
    return SOURCES[known[name.lower()]]


def data_root(root: str | Path | None = None, *, make: bool = False) -> Path | None:
    """The data folder: ``root``, else the one that SRLIB_DATA names, else None.

    Raises InputError where the one that is named isn't there, or, with ``make``, where none is named or it can't be
    made.
    """
    named = root or os.environ.get("SRLIB_DATA")
    if not named:
        if make:
            raise InputError("no data folder: name one with --data-root, or set SRLIB_DATA to it")
        return None
    base = expanded(named)
    if make:
        try:
            base.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {base} ({error.strerror}): name another --data-root") from None
    elif not base.is_dir():
        mend = "name" if root else "set SRLIB_DATA to"
        raise InputError(f"no data folder {base}: {mend} the one with benchmark/Set5/HR, or leave it out")
    return base


# --- what is there ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What of a set, or of a part of it, is in a data folder: HR images, and the scales that have LR images.

    ``name`` is the one that ``srlib.data.find`` takes; ``folder`` is that of the HR images, None where there is none
    and for a set that is made of others.
    """

    name: str
    source: Source
    expected: int
    images: int
    folder: Path | None = None
    scales: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """One row of ``srlib data list``."""
        return {
            "name": self.name,
            "set": self.source.name,
            "images": self.expected,
            "found": self.images,
            "lr": " ".join(f"x{scale}" for scale in self.scales),
            "folder": str(self.folder or ""),
            "publisher": self.source.publisher,
            "page": self.source.page,
            "terms": self.source.terms,
            "get": f"srlib data get {self.source.name}" if self.source.gettable else "",
        }


def found(root: str | Path | None = None) -> list[Found]:
    """Every part of the catalogue, and what of it is in the data folder (``root``, else SRLIB_DATA).

    Raises InputError for a folder that is named but not there.
    """
    base = data_root(root)
    rows: dict[str, Found] = {}
    for one in SOURCES.values():
        if one.made_of:
            parts = [rows[part.name] for part in one.parts]
            scales = set.intersection(*(set(part.scales) for part in parts))
            number = sum(part.images for part in parts)
            rows[one.name] = Found(one.name, one, one.images, number, None, tuple(sorted(scales)))
            continue
        for part in one.parts:
            places = place(part, base) if base else None
            if places is None:
                rows[part.name] = Found(part.name, one, part.images, 0)
                continue
            hr, lr = places
            scales = tuple(sorted(lr_folders(lr)))
            rows[part.name] = Found(part.name, one, part.images, len(images(hr)), hr, scales)
    return list(rows.values())


def place(part: Part, base: Path) -> tuple[Path, Path] | None:
    """The HR and LR folders of a part below a data or benchmark folder, None where there is no HR folder."""
    for parent in (base / "benchmark", base):
        for hr, lr in part.layouts:
            if (parent / hr).is_dir():
                return parent / hr, parent / lr
    return None


def images(folder: Path) -> list[Path]:
    """The image files that lie directly in a folder, by name; hidden files are passed over."""
    there = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted((file for file in there if file.is_file()), key=lambda file: file.name)


def lr_folders(lr: Path) -> dict[int, Path]:
    """The folders X2, X3 ... of a folder of LR images, by scale."""
    there = [child for child in sorted(lr.iterdir()) if child.is_dir()] if lr.is_dir() else []
    return {int(child.name[1:]): child for child in there if child.name[0] == "X" and child.name[1:].isdecimal()}


# --- whether it is whole ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """The HR images of a part, or its LR images at one scale: how many there should be and are, and what is wrong."""

    part: str
    what: str
    expected: int
    found: int
    folder: str
    problems: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """True where nothing is missing or wrong."""
        return not self.problems


def check(
    name: str,
    root: str | Path | None = None,
    *,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Checked]:
    """Look at every image of a data set: counts, names, sizes, and LR images against HR.

    An HR image must have the size that is known of it, or be cropped by fewer than 12 pixels each way, as distributions
    do; an LR image must have HR's size divided by the scale and rounded down. A scale without a folder is no fault: its
    LR images are made from HR. Each image's header is read; ``deep`` decodes all of it. ``progress`` is called with the
    number of images done and to do. Raises InputError for an unknown set, or where no data folder is named.
    """
    one = source(name)
    base = data_root(root)
    if base is None:
        raise InputError("no data folder: name one with --data-root, or set SRLIB_DATA to it")
    rows = []
    for part in one.parts:
        places = place(part, base)
        if places is None:
            rows.append(Checked(part.name, "HR", part.images, 0, "", (_absent(one, part, base),)))
            continue
        rows += _checked(part, *places, deep, progress)
    return rows


def _absent(one: Source, part: Part, base: Path) -> str:
    """What to do where a part isn't there at all."""
    get = f"`srlib data get {one.name}` fetches it" if one.gettable else f"ask its publisher, {one.page}"
    example = part.names[0] if part.names else "NAME"
    lr = f"LR images, where you have them, as {_home(part.home[1], base)}/X4/{example}x4.png"
    return f"not there: its {part.images} images go to {_home(part.home[0], base)}; {lr}; {get}"


def _home(folder: str, base: Path) -> Path:
    """A folder of the data folder, which may be the folder of the benchmarks itself."""
    return base / (folder.removeprefix("benchmark/") if base.name == "benchmark" else folder)


def _checked(part: Part, hr: Path, lr: Path, deep: bool, progress: Callable[[int, int], None] | None) -> list[Checked]:
    files = images(hr)
    scales = lr_folders(lr)
    wanted = {scale: [folder / f"{file.stem}x{scale}.png" for file in files] for scale, folder in scales.items()}
    every = files + [file for named in wanted.values() for file in named]
    sizes: dict[Path, tuple[int, int] | str] = {}
    with ThreadPoolExecutor() as pool:
        for done, (file, size) in enumerate(zip(every, pool.map(partial(_size, deep=deep), every), strict=True), 1):
            sizes[file] = size
            if progress:
                progress(done, len(every))
    faults = tuple(_hr_problems(part, files, [sizes[file] for file in files]))
    rows = [Checked(part.name, "HR", part.images, len(files), str(hr), faults)]
    for scale, named in wanted.items():
        pairs = zip(named, files, strict=True)
        problems = [problem for small, large in pairs for problem in _pair(sizes, small, large, scale)]
        missing = [file for file in named if not file.is_file()]
        extra = sorted(set(images(scales[scale])) - set(named))
        if missing:
            problems.insert(0, f"no {_few([file.name for file in missing])}: fetch LR and HR of one release")
        if extra:
            problems.append(f"{_few([file.name for file in extra])} belong to no HR image: take them out")
        number = len(named) - len(missing)
        rows.append(Checked(part.name, f"x{scale}", part.images, number, str(scales[scale]), tuple(problems)))
    return rows


def _hr_problems(part: Part, files: list[Path], sizes: list[tuple[int, int] | str]) -> Iterator[str]:
    """What is wrong with the HR images of a part, of which ``sizes`` are width and height, or why there are none."""
    stems = [file.stem for file in files]
    missing = [name for name in part.names if name not in stems]
    if missing and len(missing) < part.images:
        yield f"no {_few(missing)}: fetch them again"
    if len(files) != part.images:
        yield f"{len(files)} images, {part.images} expected: " + (
            "take out what is not of this set" if len(files) > part.images else "fetch the rest"
        )
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        yield f"{_few(twice)} is there in two formats: take one out"
    known = known_sizes(part.name)
    in_order = list(known.values()) if len(known) == len(files) and not known.keys() & set(stems) else None
    for i, (file, size) in enumerate(zip(files, sizes, strict=True)):
        if isinstance(size, str):
            yield f"{file.name} {size}: fetch it again"
            continue
        right = known.get(file.stem) or (in_order[i] if in_order else None)
        if right and not all(abs(side - full) < CROPPED for side, full in zip(size, right, strict=True)):
            yield f"{file.name} is {size[0]}x{size[1]}, not {right[0]}x{right[1]}: it is another image"
        elif part.sides and not part.sides[0] <= max(size) <= part.sides[1]:
            yield (
                f"{file.name} is {size[0]}x{size[1]}, but the longer side of a {part.name} image has"
                f" {part.sides[0]} to {part.sides[1]} pixels: it is another image, or cut up"
            )


def _pair(sizes: dict[Path, tuple[int, int] | str], lr: Path, hr: Path, scale: int) -> Iterator[str]:
    """What is wrong with one LR image; nothing where it is missing, which is told for all together."""
    small, large = sizes[lr], sizes[hr]
    if isinstance(small, str):
        if lr.is_file():
            yield f"{lr.name} {small}: fetch it again"
    elif not isinstance(large, str) and small != (large[0] // scale, large[1] // scale):
        yield (
            f"{lr.name} is {small[0]}x{small[1]}, but HR {large[0]}x{large[1]} needs"
            f" {large[0] // scale}x{large[1] // scale}: fetch LR and HR of one release"
        )


def _size(file: Path, deep: bool) -> tuple[int, int] | str:
    """Width and height of an image, or why they can't be told."""
    from PIL import Image

    try:
        if deep:
            from srlib.data import decode  # which imports torch

            return decode(file.read_bytes(), file.name).shape[:0:-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP", "TIFF")) as image:
                return image.size
    except InputError as error:
        return str(error).removeprefix(f"{file.name} ")
    except FileNotFoundError:
        return "is missing"
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = "no image that Pillow can read" if "identify" in str(error) else " ".join(str(error).split())
        return f"cannot be decoded ({reason or type(error).__name__})"


def _few(names: list[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@cache
def known_sizes(name: str) -> dict[str, tuple[int, int]]:
    """Width and height of the images of a set by name, in the set's order; empty where they are not known."""
    text = resources.files("srlib").joinpath("image_sizes.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return {row["image"]: (int(row["width"]), int(row["height"])) for row in rows if row["set"] == name}


# --- fetching --------------------------------------------------------------------------------------------------------


def get(
    name: str,
    root: str | Path | None = None,
    *,
    force: bool = False,
    hr_only: bool = False,
    say: Callable[[str], None] = print,
) -> list[Checked]:
    """Fetch a data set into the data folder (``root``, else SRLIB_DATA; made where it isn't there), and check it.

    What is there whole is not fetched again, and no file is replaced, but with ``force``. ``hr_only`` leaves out
    archives of nothing but LR images, which are made from HR when they are needed. ``say`` is given one line at a time:
    the terms of use first. Interrupted at any moment, the same call goes on. Raises InputError for a set without a
    public address, for an answer that is not the archive, for one that is damaged, has another checksum, or could do
    harm when unpacked, and where there is no room on the disk; the data folder is as it was then.
    """
    one = source(name)
    if one.made_of:
        return [row for other in one.made_of for row in get(other, root, force=force, hr_only=hr_only, say=say)]
    if not one.gettable:
        raise InputError(
            f"{one.name} has no public address ({one.terms}): ask for it at {one.page},"
            f" and put its {one.images} images in {one.parts[0].home[0]} in the data folder"
        )
    base = data_root(root, make=True)
    assert base is not None
    say(f"{one.name}, published by {one.publisher}, {one.page}; terms of use: {one.terms}")
    archives = [archive for archive in one.archives if not (hr_only and archive.lr)]
    work = base / DOWNLOADS
    with _alone(work, base):
        for archive in archives:
            if not force and _there(one, archive, base):
                say(f"{archive.file}: there already; --force fetches it again")
                continue
            if force:
                (work / archive.file).unlink(missing_ok=True)
            file = _fetch(archive, one, work, say)
            _install(archive, one, file, base, force, say)
            others = _shared(archive, one, base)
            if others:
                say(f"{archive.file}: kept in {work} for {', '.join(others)}")
            else:
                file.unlink()
    return check(one.name, base)


def _there(one: Source, archive: Archive, base: Path) -> bool:
    """Whether every folder that the archive fills has as many images as it should."""
    for part, scale in _wanted(one, archive):
        places = place(part, base)
        if places is None:
            return False
        folder = places[1] / f"X{scale}" if scale else places[0]
        if not folder.is_dir() or len(images(folder)) != part.images:
            return False
    return True


def _wanted(one: Source, archive: Archive) -> list[tuple[Part, int]]:
    """What an archive must hold: a part's LR images at a scale, or, as scale 0, its HR images."""
    return [
        (part, scale)
        for _, target in archive.folders
        for part in one.parts
        for scale in (SCALES if archive.lr else (0,))
        if PurePosixPath(f"{part.home[1]}/X{scale}" if scale else part.home[0]).is_relative_to(target)
    ]


def _shared(archive: Archive, one: Source, base: Path) -> list[str]:
    """The other sets that aren't there yet and would be unpacked from the same file."""
    return [
        each.name
        for each in SOURCES.values()
        for other in each.archives
        if other.url == archive.url and each is not one and not _there(each, other, base)
    ]


@contextlib.contextmanager
def _alone(work: Path, base: Path) -> Iterator[None]:
    """The folder of downloads, for this process alone; half-made files of one that was killed are swept out."""
    from filelock import FileLock, Timeout

    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", timeout=0)
        with lock:
            for left in (*work.glob("tmp*"), *work.glob("unpacked.*")):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield
    except Timeout:
        raise InputError(f"another `srlib data get` is at work in {base}: wait for it to end") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to {base} ({reason}): make room, or name another --data-root") from None


def _fetch(archive: Archive, one: Source, work: Path, say: Callable[[str], None]) -> Path:
    """Download an archive, or find the one that was; its checksum is compared, or remembered for the next time."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    notes = _notes(work)
    first = notes.get(archive.url, {}).get("sha256")
    known = archive.checksum or (f"sha256:{first}" if first else None)
    download = _Download(archive, one, work)
    if not (work / archive.file).is_file():
        say(f"{archive.file}: from {archive.url}")
    try:
        path = pooch.retrieve(archive.url, known, fname=archive.file, path=work, downloader=download)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        download.drop()
        algorithm, _, wanted = (known or "").partition(":")
        mend = f"ask the publisher, {one.page}"
        whose = f"published ({archive.checked_by})"
        if not archive.checksum:
            whose, mend = "of the first download", f"remove its lines from {work / FETCHED} to trust the new one"
        raise InputError(
            f"{archive.file} from {archive.url} is not the file that was expected: its {algorithm.upper()} is not"
            f" {wanted}, the one {whose}; nothing was unpacked. Try again; if it stays so, {mend}"
        ) from None
    download.drop()
    file = Path(path)
    sha256 = pooch.file_hash(str(file))
    if archive.checksum:
        say(f"{archive.file}: {archive.checksum.split(':')[0].upper()} is the published one ({archive.checked_by})")
    elif first:
        say(f"{archive.file}: no published checksum; SHA-256 is that of the first download")
    else:
        say(f"{archive.file}: no published checksum; this download's SHA-256 is {sha256}, kept in {work / FETCHED}")
    _write(work / FETCHED, notes | {archive.url: {"sha256": sha256, "bytes": file.stat().st_size}})
    return file


def _notes(work: Path) -> dict[str, dict[str, Any]]:
    """What is remembered of earlier downloads, by address; InputError where the file is damaged."""
    try:
        notes = json.loads((work / FETCHED).read_text(encoding="utf-8"))
        if isinstance(notes, dict) and all(isinstance(note, dict) for note in notes.values()):
            return notes
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    raise InputError(f"{work / FETCHED} is damaged: look at it, or remove it to trust the next downloads as the first")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    half = path.with_name(f"tmp.{path.name}")
    half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(half, path)


class _Busy(Exception):
    """The server asks to try again later."""


class _Download:
    """A downloader for pooch that takes up a download that broke off, over HTTP, and follows redirections only to
    HTTP(S) addresses, never from HTTPS to HTTP.

    What has arrived is in FILE.part, with what the server said of the whole file in FILE.part.json.
    """

    def __init__(self, archive: Archive, one: Source, work: Path) -> None:
        self.archive, self.one, self.work = archive, one, work
        self.part = work / f"{archive.file}.part"
        self.told = work / f"{archive.file}.part.json"

    def drop(self) -> None:
        """Remove what has arrived."""
        self.part.unlink(missing_ok=True)
        self.told.unlink(missing_ok=True)

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Download ``url`` into ``output_file``, which pooch has made."""
        import requests
        import urllib3

        tries = 0
        with requests.Session() as session, self._bar() as bar:
            session.headers.update({"User-Agent": f"srlib/{srlib.__version__}", "Accept-Encoding": "identity"})
            while True:
                before = self._arrived()
                try:
                    if self._more(session, url, bar):
                        break
                    reason = "the connection broke off"
                except (_Busy, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    reason = _reason(error)
                tries = 0 if self._arrived() > before else tries + 1
                if tries > len(_WAITS):
                    mend = "nothing of it is here: give the command again where there is a network"
                    if self._arrived():
                        mend = f"{_mib(self._arrived())} of it are here: the same command goes on from there"
                    raise InputError(f"{url} could not be fetched ({reason}); {mend}")
                time.sleep(_WAITS[max(0, tries - 1)] if _WAITS else 0)
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)  # kept beside it until the checksum is known: a kill costs nothing
        except OSError:
            os.replace(self.part, output_file)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Any]:
        from tqdm.auto import tqdm

        from srlib.logs import someone_watches

        title = self.archive.file
        with tqdm(desc=title, unit="B", unit_scale=True, unit_divisor=1024, disable=not someone_watches()) as bar:
            yield bar

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _more(self, session: "Session", url: str, bar: Any) -> bool:
        """One request, for what is missing; True when the file is whole."""
        offset = self._arrived()
        told = _read(self.told) if offset else {}
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        validator = told.get("etag") or told.get("modified")
        if offset and isinstance(validator, str) and not validator.startswith("W/"):
            headers["If-Range"] = validator
        answer = self._answer(session, url, headers)
        try:
            whole = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if answer.status_code == 416:
                if whole and whole[2] == str(offset):
                    return True
                self.drop()  # longer than the file: it was another one
                return False
            if answer.status_code >= 500 or answer.status_code in (408, 429):
                raise _Busy(f"the server answers {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise InputError(
                    f"{url} answers {answer.status_code} {answer.reason}: it may have moved; see {self.one.page}"
                )
            if answer.status_code == 206 and offset and (not whole or whole[1] != str(offset)):
                self.drop()
                return False
            if answer.status_code == 200:
                offset = 0
            length = answer.headers.get("Content-Length", "")
            total = offset + int(length) if length.isdecimal() else None
            self._check_length(total, url)
            _check_room(self.work, (total or 0) - offset + (total or 0), self.archive.file)
            _write(self.told, {"etag": answer.headers.get("ETag"), "modified": answer.headers.get("Last-Modified")})
            bar.total, bar.n = total, offset
            bar.refresh()
            return self._save(answer, offset, total, bar)
        finally:
            answer.close()

    def _answer(self, session: "Session", url: str, headers: dict[str, str]) -> "Response":
        """The answer to a request, redirections followed with care."""
        for _ in range(_HOPS + 1):
            answer = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=(10, 60))
            if answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            new = urljoin(url, answer.headers.get("Location", ""))
            allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
            if urlsplit(new).scheme not in allowed:
                raise InputError(f"{url} redirects to {new}, which is not followed: see {self.one.page}")
            url = new
        raise InputError(f"{self.archive.url} redirects more than {_HOPS} times: see {self.one.page}")

    def _check_length(self, total: int | None, url: str) -> None:
        if self.archive.size is not None and total is not None and total != self.archive.size:
            raise InputError(
                f"{url} offers {total} bytes, but the archive has {self.archive.size} ({self.archive.checked_by}):"
                f" it is another file; see {self.one.page}"
            )

    def _save(self, answer: "Response", offset: int, total: int | None, bar: Any) -> bool:
        """Append the answer's body to what has arrived; True when all of it came."""
        limit = self.archive.size or total
        with open(self.part, "r+b" if self.part.exists() else "w+b") as file:
            file.truncate(offset)
            file.seek(offset)
            try:
                for piece in answer.raw.stream(PIECE, decode_content=False):
                    file.write(piece)
                    bar.update(len(piece))
                    if limit is not None and file.tell() > limit:
                        break
                    if total is None:
                        _check_room(self.work, PIECE, self.archive.file)
            finally:
                file.flush()
                os.fsync(file.fileno())
            arrived = file.tell()
        if limit is not None and arrived > limit:
            self.drop()
            raise InputError(
                f"{self.archive.url} sends more than the {limit} bytes that the archive has: it is another file, and"
                f" nothing of it was kept; see {self.one.page}"
            )
        return total is None or arrived == total


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file, empty where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    text = " ".join(str(error).split())
    if "NameResolution" in text or "getaddrinfo" in text:
        return "the server's name is not known here; is there a network?"
    if "timed out" in text.lower():
        return "the server did not answer in time"
    if "refused" in text:
        return "the connection was refused"
    if "IncompleteRead" in text or "broken" in text or "reset" in text:
        return "the connection broke off"
    return text[:120] or type(error).__name__


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _check_room(folder: Path, needed: int, what: str) -> None:
    """Raise InputError where the disk has less than ``needed`` bytes, and some to spare, free."""
    free = shutil.disk_usage(folder).free
    if free < needed + SLACK:
        raise InputError(
            f"{what} needs {_mib(needed + SLACK)} to be fetched and unpacked, {_mib(free)} are free in {folder}:"
            " make room, or name another --data-root"
        )


# --- unpacking -------------------------------------------------------------------------------------------------------


def _install(archive: Archive, one: Source, file: Path, base: Path, force: bool, say: Callable[[str], None]) -> None:
    """Unpack an archive beside the data, see that it holds what it should, and move its images to their places."""
    stage = file.with_name(f"unpacked.{archive.file}")
    try:
        unpack(file, stage, archive.folders)
        wanted = {f"{part.home[1]}/X{scale}" if scale else part.home[0]: part for part, scale in _wanted(one, archive)}
        more = {f"{part.home[1]}/X{scale}": part for part in one.parts for scale in lr_folders(stage / part.home[1])}
        for folder, part in (wanted | more).items():
            number = len(images(stage / folder)) if (stage / folder).is_dir() else 0
            if number != part.images:
                raise InputError(
                    f"{archive.file} holds {number} images for {folder}, {part.images} expected: it is another archive,"
                    f" and nothing of it was kept; see {one.page}"
                )
        broken = [path.name for path in _files(stage) if isinstance(_size(path, deep=False), str)]
        if broken:
            raise InputError(f"{archive.file} holds {_few(broken)}, which no decoder reads: nothing of it was kept")
        kept = _move(stage, base, force)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    if kept:
        say(f"{len(kept)} files were there with another content and were left ({_few(kept)}): --force replaces them")


def unpack(file: Path, stage: Path, folders: tuple[tuple[str, str], ...]) -> None:
    """Unpack the images of a zip, tar or tar.gz into an empty folder, those of ``folders`` alone.

    ``folders`` are pairs (folder in the archive, at any depth; folder in ``stage``). Raises InputError, whatever it
    has unpacked by then, for a damaged archive and for one that could do harm: a member outside its folder (absolute,
    "..", a drive's letter, a backslash), a link, a device or another thing that is no plain file, two members of one
    name, a sparse or encrypted one, one that is packed in another way than by deflate, too many members, folders too
    deep, or more bytes than images could come to.
    """
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    size = file.stat().st_size
    budget = _Budget(file.name, size * SWELLS + SLACK)
    _check_room(stage, size, file.name)
    with open(file, "rb") as opened:
        start = opened.read(512)
    try:
        if start[:4] == b"PK\x03\x04":
            _unzip(file, stage, folders, budget)
        elif start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
            _untar(file, stage, folders, budget, zipped=start[:2] == b"\x1f\x8b")
        else:
            raise InputError(f"{file.name} is no zip, tar or tar.gz archive: what was fetched is something else")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged archives raise almost anything, OSError without a number among it
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file.name} is damaged ({reason}): fetch it again with --force") from None


class _Budget:
    """What an archive may come to: members, bytes, and each name once."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit
        self.bytes = 0
        self.seen: set[str] = set()

    def refuse(self, why: str) -> InputError:
        return InputError(f"{self.name} {why}: it is not what its publisher offers, and nothing of it was kept")

    def spend(self, size: int) -> None:
        self.bytes += size
        if size < 0 or self.bytes > self.limit:
            raise self.refuse(f"would unpack to more than {_mib(self.limit)}")

    def member(self, name: str) -> PurePosixPath:
        """The path of a member, if it stays in its folder."""
        path = PurePosixPath(name)
        outside = path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name)
        if outside or any(ord(letter) < 32 for letter in name):
            raise self.refuse(f"has a member outside its folder ({name[:80]!r})")
        if len(path.parts) > DEEPEST + 1 or any(len(piece.encode()) > 255 for piece in path.parts):
            raise self.refuse(f"has folders too deep or names too long ({name[:80]!r})")
        return path

    def once(self, path: PurePosixPath) -> None:
        """Count a file; no other may have its name, also where case doesn't tell names apart."""
        key = str(path).lower()
        if key in self.seen:
            raise self.refuse(f"has two members called {str(path)[:80]!r}")
        self.seen.add(key)
        if len(self.seen) > MEMBERS:
            raise self.refuse(f"has more than {MEMBERS} members")


def _target(path: PurePosixPath, folders: tuple[tuple[str, str], ...]) -> PurePosixPath | None:
    """Where an image goes, None for what isn't wanted."""
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return None
    for inside, target in folders:
        wanted = PurePosixPath(inside).parts
        for i in range(len(path.parts) - len(wanted)):
            if path.parts[i : i + len(wanted)] == wanted:
                return PurePosixPath(target, *path.parts[i + len(wanted) :])
    return None


def _unzip(file: Path, stage: Path, folders: tuple[tuple[str, str], ...], budget: _Budget) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise budget.refuse(f"has more than {MEMBERS} members")
        for member in members:  # all names first: nothing is written of an archive that is refused for one
            path = budget.member(member.orig_filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise budget.refuse(f"has a link or a device ({member.filename[:80]!r})")
            if member.flag_bits & 1:
                raise budget.refuse(f"has an encrypted member ({member.filename[:80]!r})")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise budget.refuse(f"has a member that isn't stored or deflated ({member.filename[:80]!r})")
            if not member.is_dir():
                budget.once(path)
                budget.spend(member.file_size)
        budget.bytes = 0
        for member in members:
            goes = None if member.is_dir() else _target(PurePosixPath(member.filename), folders)
            if goes:
                with archive.open(member) as opened:
                    _copy(opened, stage / goes, budget)


def _untar(file: Path, stage: Path, folders: tuple[tuple[str, str], ...], budget: _Budget, *, zipped: bool) -> None:
    with contextlib.ExitStack() as stack:
        plain: Any = stack.enter_context(gzip.open(file, "rb") if zipped else open(file, "rb"))
        archive = stack.enter_context(tarfile.open(fileobj=_Metered(plain, budget), mode="r:"))
        while (member := archive.next()) is not None:
            path = budget.member(member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise budget.refuse(f"has a link, a device or a sparse file ({member.name[:80]!r})")
            budget.once(path)
            goes = _target(path, folders)
            if goes:
                opened = archive.extractfile(member)
                assert opened is not None
                _copy(opened, stage / goes, budget)
            archive.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise


class _Metered:
    """A file that is read from the start on: no further than the budget, and never much at a time."""

    def __init__(self, file: IO[bytes], budget: _Budget) -> None:
        self.file, self.budget = file, budget

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 64 * CHUNK or self.file.tell() + size > self.budget.limit + 64 * CHUNK:
            raise self.budget.refuse("has a header that no archive of images needs")
        return self.file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or not 0 <= place <= self.budget.limit + 64 * CHUNK:
            raise self.budget.refuse(f"would unpack to more than {_mib(self.budget.limit)}")
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _copy(opened: IO[bytes], path: Path, budget: _Budget) -> None:
    """Write one member, counting the bytes that really come, whatever its header says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    if path.exists():
        raise budget.refuse(f"has two images for {path.name[:80]!r}")
    with open(path, "xb") as file:
        while chunk := opened.read(CHUNK):
            size += len(chunk)
            if size > LARGEST:
                raise budget.refuse(f"has an image of more than {_mib(LARGEST)} ({path.name[:80]!r})")
            budget.spend(len(chunk))
            file.write(chunk)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _move(stage: Path, base: Path, force: bool) -> list[str]:
    """Move unpacked images to their places; the names of those that were there with another content and were left.

    A folder that isn't there yet appears whole, HR after LR.
    """
    left = []
    folders = {file.parent for file in _files(stage)}
    for folder in sorted(folders, key=lambda folder: (folder.name.endswith("HR"), folder)):
        to = _home(folder.relative_to(stage).as_posix(), base)
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            _rename(folder, to)
            continue
        for file in images(folder):
            new = to / file.name
            if force or not new.exists():
                _rename(file, new)
            elif new.stat().st_size != file.stat().st_size or new.read_bytes() != file.read_bytes():
                left.append(new.name)
    return left


def _rename(old: Path, new: Path) -> None:
    """Put a file or folder in its place at once, on whichever disk that is."""
    try:
        os.replace(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        half = new.with_name(f".{new.name}.part")
        if old.is_dir():
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(old, half)
        else:
            shutil.copyfile(old, half)
        os.replace(half, new)
