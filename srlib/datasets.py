"""Datasets that the papers train and test on: who publishes them, where they lie, whether they are whole, how to get
them.

The catalogue is ``datasets.toml``. ``find`` turns a name or a folder into an ``ImageSet``, ``listing`` and ``check``
tell what is in the data folder, ``get`` fetches what has a public address; no archive is part of this project. Torch
isn't imported here, so that lists and errors come at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlib.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
CROPPED = 12  # distributions crop HR to multiples of a scale: by fewer pixels than this each way

# Photographs as shipped in scikit-image 0.26: public domain, CC0 or without known copyright restrictions (see the
# docstrings of skimage.data); the motorcycle is of the Middlebury 2014 stereo benchmark, both views in one split.
PHOTOS: dict[str, tuple[str, ...]] = {
    "photos/train": (
        *("astronaut.png", "brick.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
        *("moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg"),
    ),
    "photos/held-out": ("camera.png", "chelsea.png", "coffee.png", "rocket.jpg"),
}


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is published, an entry of ``datasets.toml``."""

    name: str
    images: int
    about: str
    publisher: str
    page: str
    terms: str
    hr: tuple[str, ...]
    archives: tuple[Mapping[str, Any], ...]
    aliases: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def place(self, base: Path) -> Path | None:
        """The folder of HR images below a data folder, or below the folder of the benchmarks itself."""
        places = [parent / hr.removeprefix("benchmark/") for parent in (base / "benchmark", base) for hr in self.hr]
        return next((place for place in places if place.is_dir()), None)

    def absent(self, base: Path | None) -> str:
        """What to do where there is nothing of it."""
        where = f"in {base}" if base else "here: SRLIB_DATA names no data folder"
        get = f"`srlib data get {self.name}` fetches it" if self.archives else f"ask for it at {self.page}"
        return f"no {self.name} {where}; its {self.images} images go to {self.hr[0]} there, and {get}"

    def faults(self, files: Sequence[Path]) -> tuple[str, ...]:
        """What keeps files from being this dataset: a line on their number, or one on each that is another image."""
        if len(files) != self.images:
            return (f"{len(files)} of the {self.images} images of {self.name}",)
        return tuple(
            f"{file.name} is {size[0]}x{size[1]}, not {right[0]}x{right[1]}: it is another image"
            for file, right in zip(files, self.sizes, strict=False)
            if (size := _size(file)) and any(abs(a - b) >= CROPPED for a, b in zip(size, right, strict=True))
        )


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height as the file's header says, None where it can't be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        return None


_TABLES = tomllib.loads((Path(__file__).parent / "datasets.toml").read_text(encoding="utf-8"))

#: The catalogue, by the name that ``find`` takes.
#:
#: :meta hide-value:
DATASETS: dict[str, Dataset] = {
    name: Dataset(name, **entry | {"archives": tuple(_TABLES["archives"][file] for file in entry["archives"])})
    for name, entry in _TABLES["datasets"].items()
}
GROUPS = {"df2k": ("DIV2K_train", "Flickr2K"), "div2k": ("DIV2K_train", "DIV2K_val")}


def known(name: str) -> Dataset | None:
    """The dataset of a name or alias in any case, None where there is none."""
    names = (one for one in DATASETS.values() if name.lower() in (each.lower() for each in (one.name, *one.aliases)))
    return next(names, None)


@dataclass(frozen=True)
class ImageSet:
    """A named, ordered list of image files.

    ``lr_files`` are the distributed LR files by scale, in the same order. ``notes`` name what was left out and why,
    one line each. A set that isn't whole says so in its name, "Set14 (9 of 14 images)"; ``whole`` is the number of
    images that it should have.
    """

    name: str
    files: tuple[Path, ...]
    lr_files: Mapping[int, tuple[Path, ...]] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    whole: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names: file names without suffix, or with it where two files would share a name."""
        stems = Counter(file.stem for file in self.files)
        return tuple(file.stem if stems[file.stem] == 1 else file.name for file in self.files)

    def without(self, places: Collection[int], notes: tuple[str, ...]) -> ImageSet:
        """The set without the images at some places, named accordingly; unchanged where there are none."""
        if not places:
            return self
        kept = [i for i in range(len(self.files)) if i not in places]
        lr_files = {scale: tuple(files[i] for i in kept) for scale, files in self.lr_files.items()}
        whole = self.whole or len(self.files)
        name = _titled(re.sub(r" \(\d+ of \d+ images\)$", "", self.name), len(kept), whole)
        return ImageSet(name, tuple(self.files[i] for i in kept), lr_files, self.notes + notes, whole)


def _titled(name: str, found: int, whole: int) -> str:
    return name if found == whole else f"{name} ({found} of {whole} images)"


def few(names: Collection[str]) -> str:
    """The first names of many."""
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def is_image(path: Path) -> bool:
    """Whether a file is to be read as an image: by its suffix in any case, or else by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(SIGNATURES) or (head.startswith(b"RIFF") and head.endswith(b"WEBP"))


def scan(folder: Path) -> tuple[list[Path], list[Path], tuple[str, ...]]:
    """The images directly in a folder, by name; links to images that lead nowhere; notes on what is left out.

    Hidden files are passed over. Raises InputError for a folder that cannot be read.
    """
    try:
        inside = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name a folder of images") from None
    files = {path: is_image(path) for path in inside if path.is_file()}
    dangling = [path for path in inside if not path.exists() and path.suffix.lower() in SUFFIXES]
    others = [path.name for path, image in files.items() if not image]
    left_out = {"links that lead nowhere": [path.name for path in dangling], "no images": others}
    notes = tuple(f"{folder}: left out, {why}: {few(names)}" for why, names in left_out.items() if names)
    return [path for path, image in files.items() if image], dangling, notes


def data_root(root: str | Path | None = None, *, must: bool = False) -> Path | None:
    """The data folder: ``root``, else the one that SRLIB_DATA names, else None, or InputError if there ``must`` be
    one. InputError, too, where the one that is named isn't there."""
    named = root or os.environ.get("SRLIB_DATA")
    if not named:
        if must:
            raise InputError("no data folder: name one with --data-root, or set SRLIB_DATA to it")
        return None
    base = Path(named).expanduser().absolute()
    if not base.is_dir():
        mend = "name" if root else "set SRLIB_DATA to"
        raise InputError(f"no data folder {base}: {mend} the one with benchmark/Set5/HR, or leave it out")
    return base


def find(spec: str, root: str | Path | None = None) -> ImageSet:
    """An image set by one string: "photos/train", "photos/held-out", a dataset's name, or the path of a folder.

    Names are taken in any case, and by their aliases ("B100"). A path may be relative to the working folder, to the
    data folder (``root``, else SRLIB_DATA) or to benchmark/ or train/ in it; of a folder with HR/ in it that one is
    taken, and its LR files. Raises InputError with the choices where nothing fits.
    """
    if spec in PHOTOS:
        return _photos(spec)
    base = data_root(root)
    if spec.lower() == "df2k":
        return _joined("DF2K", [find(part, base) for part in GROUPS["df2k"]])
    dataset = known(spec)
    if dataset and base and (place := dataset.place(base)):
        return _image_set(dataset.name, place)
    below = [base / folder / spec for folder in ("", "benchmark", "train")] if base else []
    for path in [Path(os.path.expanduser(spec)), *below]:
        if spec and os.path.isdir(path):
            return _image_set(path.resolve().name, path / "HR" if (path / "HR").is_dir() else path)
    if dataset:
        raise InputError(dataset.absent(base))
    where = f" in {base}" if base else " (SRLIB_DATA is not set)"
    raise InputError(f"no images called {spec!r}{where}: use {', '.join([*PHOTOS, *DATASETS])} or a folder's path")


def _photos(name: str) -> ImageSet:
    """Photographs of scikit-image's wheel: nothing is downloaded, and scikit-image isn't imported."""
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise InputError("the embedded photographs need scikit-image: install it, or name a folder of images")
    home = Path(package.submodule_search_locations[0]) / "data"
    files = tuple(home / file for file in PHOTOS[name])
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"no {few(missing)} in {home}: install scikit-image 0.26, or name a folder of images")
    return ImageSet(name, files, whole=len(files))


def _image_set(name: str, hr: Path) -> ImageSet:
    """The set in a folder, which is whole where nothing of it dangles and, of a dataset, all images are there."""
    files, dangling, notes = scan(hr)
    if not files:
        below = few(sorted(child.name for child in hr.iterdir() if child.is_dir()))
        mend = f"name a folder below it ({below})" if below else f"put {', '.join(SUFFIXES)} files there"
        raise InputError("; ".join([f"{hr} holds no images: {mend}", *notes]))
    whole, right = len(files) + len(dangling), len(files)
    if dataset := known(name):
        faults = dataset.faults(files)
        name, whole, notes = dataset.name, dataset.images, notes + faults
        right -= len(faults) if right == whole else 0
    lr_files, lr_notes = _lr_files(hr, files)
    return ImageSet(_titled(name, right, whole), tuple(files), lr_files, notes + lr_notes, whole)


def _lr_files(hr: Path, files: list[Path]) -> tuple[dict[int, tuple[Path, ...]], tuple[str, ...]]:
    """The LR file of each HR file by scale, in X4 or x4 beside the HR folder, and a note on other folders there."""
    lr = hr.with_name(hr.name.removesuffix("HR") + "LR_bicubic")
    folders = sorted(child for child in lr.iterdir() if child.is_dir()) if lr.is_dir() else []
    scales = {folder: int(folder.name[1:]) for folder in folders if re.fullmatch(r"[Xx][1-9]\d*", folder.name)}
    found: dict[int, tuple[Path, ...]] = {}
    for folder, scale in scales.items():
        found.setdefault(scale, tuple(folder / f"{file.stem}x{scale}.png" for file in files))
    others = [folder.name for folder in folders if folder not in scales]
    return found, (f"{lr}: not used: {few(others)}; LR images lie in X2, X3, X4",) * bool(others)


def _joined(name: str, parts: list[ImageSet]) -> ImageSet:
    """Sets one after the other, with the LR images of the scales that all of them have."""
    scales = set.intersection(*(set(part.lr_files) for part in parts))
    lr_files = {scale: sum((part.lr_files[scale] for part in parts), ()) for scale in sorted(scales)}
    files, notes = sum((part.files for part in parts), ()), sum((part.notes for part in parts), ())
    whole = sum(part.whole for part in parts)
    return ImageSet(_titled(name, len(files), whole), files, lr_files, notes, whole)


@dataclass(frozen=True)
class Status:
    """The HR images of a dataset, or its LR images at a scale ("x4"): how many there should be and are, and where."""

    name: str
    what: str
    expected: int
    found: int
    folder: Path | None = None
    problems: tuple[str, ...] = ()


def members(name: str) -> list[Dataset]:
    """The datasets that a name stands for: one, or the two of DIV2K or DF2K. Raises InputError with the choices."""
    found = [known(part) for part in GROUPS.get(name.lower(), (name,))]
    if None in found:
        raise InputError(f"no dataset called {name!r}: choose one of {', '.join([*DATASETS, 'DIV2K', 'DF2K'])}")
    return [one for one in found if one]


def listing(root: str | Path | None = None) -> list[Status]:
    """Every dataset, and how much of it is in the data folder: HR, and each scale that has LR images."""
    base = data_root(root)
    return [row for dataset in DATASETS.values() for row in _status(dataset, base)]


def check(name: str, root: str | Path | None = None) -> list[Status]:
    """The same of one dataset, or of the two of DIV2K or DF2K. Raises InputError where no data folder is named."""
    base = data_root(root, must=True)
    return [row for dataset in members(name) for row in _status(dataset, base)]


def _status(dataset: Dataset, base: Path | None) -> list[Status]:
    place = dataset.place(base) if base else None
    if place is None:
        return [Status(dataset.name, "HR", dataset.images, 0, None, (dataset.absent(base),))]
    files, _, notes = scan(place)
    rows = [Status(dataset.name, "HR", dataset.images, len(files), place, notes + dataset.faults(files))]
    for scale, lr_files in _lr_files(place, files)[0].items():
        there, folder = sum(file.is_file() for file in lr_files), lr_files[0].parent if lr_files else None
        missing = (f"{there} of {len(files)} LR images at x{scale}",) * (there < len(files))
        rows.append(Status(dataset.name, f"x{scale}", dataset.images, there, folder, missing))
    return rows


def get(
    name: str, root: str | Path | None = None, *, hr_only: bool = False, say: Callable[[str], None] = print
) -> list[Status]:
    """Fetch a dataset into the data folder (``root``, else SRLIB_DATA), and check it.

    An archive is downloaded into .downloads/ there, its checksum compared, unpacked and removed. One that lies there
    already is taken as it is, so that a large one can be fetched by other means (``curl -C - -O`` goes on where it
    stopped). What is there whole isn't fetched again. ``hr_only`` leaves out archives of LR images, which are made
    from HR when needed. ``say`` gets the terms of use. Raises InputError for a dataset without a public address and
    for a download that fails.
    """
    import pooch

    base = data_root(root, must=True)
    assert base is not None
    for dataset in members(name):
        if not dataset.archives:
            raise InputError(f"{dataset.absent(base)} ({dataset.terms})")
        say(f"{dataset.name}, published by {dataset.publisher}, {dataset.page}; terms of use: {dataset.terms}")
        whole = {row.what for row in _status(dataset, base) if row.found == row.expected}
        for archive in dataset.archives:
            url = archive["url"]
            scale = re.search(r"_LR_bicubic_X(\d)", url)
            if (f"x{scale[1]}" if scale else "HR") in whole or (scale and hr_only):
                continue
            say(f"from {url}")
            unpack = (pooch.Unzip if url.endswith(".zip") else pooch.Untar)(archive["folders"], base / archive["into"])
            try:
                file = pooch.retrieve(url, archive["checksum"], Path(url).name, base / ".downloads", progressbar=True)
                # Called here: as its processor it would skip a folder that an interrupted call has half unpacked.
                unpack(file, "download", None)
            except (OSError, ValueError) as error:
                raise InputError(f"{url} could not be fetched into {base} ({error}): try again") from None
            Path(file).unlink()
    return check(name, base)
