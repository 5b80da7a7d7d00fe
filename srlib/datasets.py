"""Datasets that the papers train and test on: who publishes them, where they lie, whether they are whole, how to get
them.

The catalogue is ``datasets.toml``. ``find`` turns a name or a folder into an ``ImageSet``, ``listing`` tells what is in
the data folder, ``get`` fetches what has a public address; no archive is part of this project. Torch isn't imported
here, so that lists and errors come at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from srlib.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
CROPPED = 12  # distributions crop HR to multiples of a scale: by fewer pixels than this each way


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is published, an entry of ``datasets.toml``, which says what the fields mean."""

    name: str
    images: int
    publisher: str
    page: str
    terms: str
    hr: tuple[str, ...]
    archives: tuple[Mapping[str, Any], ...]
    aliases: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


_TABLES = tomllib.loads((Path(__file__).parent / "datasets.toml").read_text(encoding="utf-8"))

#: The catalogue, by the name that ``find`` takes.
#:
#: :meta hide-value:
DATASETS: dict[str, Dataset] = {
    name: Dataset(name, **entry | {"archives": tuple(_TABLES["archives"][file] for file in entry["archives"])})
    for name, entry in _TABLES["datasets"].items()
}
PHOTOS: dict[str, tuple[str, ...]] = {f"photos/{part}": tuple(files) for part, files in _TABLES["photos"].items()}
GROUPS = {"DF2K": ("DIV2K_train", "Flickr2K"), "DIV2K": ("DIV2K_train", "DIV2K_val")}


def known(name: str) -> list[Dataset]:
    """The datasets of a name or alias in any case: one, the two of DIV2K or DF2K, or none."""
    wanted = [part.lower() for part in GROUPS.get(name.upper(), (name,))]
    return [one for one in DATASETS.values() if any(each.lower() in wanted for each in (one.name, *one.aliases))]


@dataclass(frozen=True)
class ImageSet:
    """A named, ordered list of image files.

    ``lr_files`` are the distributed LR files by scale, in the same order. ``notes`` say in a line each what was left
    out and why; ``broken`` are the names of those that cannot be decoded. ``whole`` is the number of images that there
    should be, 0 where nobody says.
    """

    name: str
    files: tuple[Path, ...]
    lr_files: Mapping[int, tuple[Path, ...]] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    whole: int = 0
    broken: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name, which says so of a set that isn't whole: "Set14 (9 of 14 images)"."""
        found = len(self.files)
        return f"{self.name} ({found} of {self.whole} images)" if self.whole not in (0, found) else self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names: file names without suffix, or with it where two files would share a name."""
        stems = Counter(file.stem for file in self.files)
        return tuple(file.stem if stems[file.stem] == 1 else file.name for file in self.files)

    def without(self, broken: Mapping[int, str]) -> ImageSet:
        """The set without the images at these places, with a note on each. Raises InputError where none is left."""
        if len(broken) == len(self.files):
            raise InputError(f"{self.name}: none of its {len(self.files)} images can be used: {broken[0]}")

        def kept(values: Sequence[Path]) -> tuple[Path, ...]:
            return tuple(value for place, value in enumerate(values) if place not in broken)

        lr_files = {scale: kept(files) for scale, files in self.lr_files.items()}
        notes = self.notes + tuple(f"left out: {broken[place]}" for place in sorted(broken))
        names = self.broken + tuple(self.names[place] for place in sorted(broken))
        return ImageSet(self.name, kept(self.files), lr_files, notes, self.whole or len(self.files), names)


def few(names: Collection[str]) -> str:
    """The first names of many."""
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height as the file's header says, None where it is that of no image."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def is_image(path: Path) -> bool:
    """Whether a file is to be read as an image: by its suffix in any case, or else by its content."""
    return path.suffix.lower() in SUFFIXES or _size(path) is not None


def scan(folder: Path) -> tuple[list[Path], int, tuple[str, ...]]:
    """The images directly in a folder, by name; how many there should be; notes on what is left out.

    Hidden files are passed over; a link to an image that leads nowhere counts as missing. Raises InputError for a
    folder that cannot be read.
    """
    try:
        inside = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name a folder of images") from None
    files = {path: is_image(path) for path in inside if path.is_file()}
    images = [path for path, shows in files.items() if shows]
    others = [path.name for path, shows in files.items() if not shows]
    dangling = [path.name for path in inside if not path.exists() and path.suffix.lower() in SUFFIXES]
    left_out = {"links that lead nowhere": dangling, "no images": others}
    notes = tuple(f"{folder}: left out, {why}: {few(names)}" for why, names in left_out.items() if names)
    return images, len(images) + len(dangling), notes


def data_root(root: str | Path | None = None) -> Path | None:
    """The data folder: ``root``, else the one that SRLIB_DATA names, else None. Raises InputError if it isn't there."""
    named = root or os.environ.get("SRLIB_DATA")
    base = Path(os.path.expanduser(named)).absolute() if named else None
    if base and not base.is_dir():
        mend = "name" if root else "set SRLIB_DATA to"
        raise InputError(f"no data folder {base}: {mend} the one with benchmark/Set5/HR, make it, or leave it out")
    return base


def find(spec: str, root: str | Path | None = None) -> ImageSet:
    """An image set by one string: "photos/train", "photos/held-out", a dataset's name, or the path of a folder.

    Names are taken in any case, and by their aliases ("B100"). A path may be relative to the working folder, to the
    data folder (``root``, else SRLIB_DATA) or to benchmark/ or train/ in it; of a folder with HR/ in it that one is
    taken, and its LR files. DIV2K and DF2K are joined of their parts where no such folder holds their images. Raises
    InputError with the choices where nothing fits.
    """
    if spec.lower() in PHOTOS:
        return _photos(spec.lower())
    base, datasets = data_root(root), known(spec)
    several = len(datasets) > 1
    places = [base / hr for one in datasets for hr in one.hr] if base and not several else []
    for name in (spec, spec.upper()) if several else (spec,):
        places += [Path(os.path.expanduser(name)), *(base / part / name for part in ("", "benchmark", "train") if base)]
    folders = [place / "HR" if (place / "HR").is_dir() else place for place in places if place.is_dir()]
    if folders and not datasets:
        place = folders[0].resolve()
        return _image_set(place.parent.name if place.name == "HR" else place.name, folders[0])
    full = next((folder for folder in folders if scan(folder)[0]), None)
    if full or (folders and not several):
        return _image_set(spec.upper() if several else datasets[0].name, full or folders[0])
    if several:
        return _joined(spec.upper(), [find(one.name, base) for one in datasets])
    where = f"in {base}" if base else "here: SRLIB_DATA names no data folder"
    if datasets:
        one = datasets[0]
        get = f"`srlib data get {one.name}` fetches it" if one.archives else f"ask for it at {one.page}"
        raise InputError(f"no {one.name} {where}; its {one.images} images go to {one.hr[0]} there, and {get}")
    raise InputError(
        f"no images called {spec!r} {where}; use {', '.join([*PHOTOS, *DATASETS, *GROUPS])} or a folder's path"
    )


def _photos(name: str) -> ImageSet:
    """Photographs of scikit-image's wheel: nothing is downloaded, and scikit-image isn't imported."""
    package = importlib.util.find_spec("skimage")
    folders = package.submodule_search_locations if package else None
    files = tuple(Path(folder) / "data" / file for folder in folders or () for file in PHOTOS[name])
    if not files or not all(file.is_file() for file in files):
        raise InputError("the embedded photographs are those of scikit-image 0.26: install it, or name a folder")
    return ImageSet(name, files)


def _image_set(name: str, hr: Path) -> ImageSet:
    """The set in a folder; of a dataset's name, as of its folder DIV2K_valid_HR, the images of that dataset."""
    files, whole, notes = scan(hr)
    if len(datasets := known(name.removesuffix("_HR"))) == 1:
        name, whole, sizes = datasets[0].name, datasets[0].images, datasets[0].sizes
        notes += (f"{len(files)} of the {whole} images of {name}",) * (len(files) != whole)
        for file, (width, height) in list(zip(files, sizes, strict=False)) if len(files) == whole else ():
            found = _size(file) or (width, height)
            if max(abs(found[0] - width), abs(found[1] - height)) >= CROPPED:
                notes += (f"{file.name} is {found[0]}x{found[1]}, not {width}x{height}: another image, left out",)
                files.remove(file)
    if not files:
        below = few(sorted(child.name for child in hr.iterdir() if child.is_dir()))
        mend = f"name a folder below it ({below})" if below else f"put {', '.join(SUFFIXES)} files there"
        raise InputError("; ".join([f"{hr} holds no images: {mend}", *notes]))
    lr_files, lr_notes = _lr_files(hr, files)
    return ImageSet(name, tuple(files), lr_files, notes + lr_notes, whole)


def _lr_files(hr: Path, files: list[Path]) -> tuple[dict[int, tuple[Path, ...]], tuple[str, ...]]:
    """The LR file of each HR file by scale, in X4 or x4 beside the HR folder, and a note on other folders there."""
    lr = hr.with_name(hr.name.removesuffix("HR") + "LR_bicubic")
    found: dict[int, tuple[Path, ...]] = {}
    others = []
    for folder in sorted(child for child in lr.glob("*") if child.is_dir()):
        if named := re.fullmatch(r"[Xx]([1-9]\d*)", folder.name):
            found.setdefault(int(named[1]), tuple(folder / f"{file.stem}x{named[1]}.png" for file in files))
        else:
            others.append(folder.name)
    return found, (f"{lr}: not used: {few(others)}; LR images lie in folders such as X2 or x4",) * bool(others)


def _joined(name: str, parts: list[ImageSet]) -> ImageSet:
    """Sets one after the other, with the LR images of the scales that all of them have."""
    scales = set.intersection(*(set(part.lr_files) for part in parts))
    lr_files = {scale: sum((part.lr_files[scale] for part in parts), ()) for scale in sorted(scales)}
    files, notes = sum((part.files for part in parts), ()), sum((part.notes for part in parts), ())
    return ImageSet(name, files, lr_files, notes, sum(part.whole for part in parts))


@dataclass(frozen=True)
class Status:
    """The HR images of a dataset, or its LR images at a scale ("x4"): how many there should be and are, and where."""

    name: str
    what: str
    expected: int
    found: int
    folder: Path | None = None
    problems: tuple[str, ...] = ()


def listing(
    root: str | Path | None = None,
    names: Collection[str] = (),
    view: Callable[[ImageSet], ImageSet] = lambda found: found,
) -> list[Status]:
    """Every dataset, or those of ``names``, and how much of it is in the data folder: HR, and each scale that has LR
    images. ``view`` may leave out images of what is found, as a store does those that cannot be decoded. Raises
    InputError for a name that is none, and where no data folder is named for them."""
    base, rows = data_root(root), []
    for name in names:
        if not known(name):
            raise InputError(f"no dataset called {name!r}: choose one of {', '.join([*DATASETS, *GROUPS])}")
    if names and base is None:
        raise InputError("no data folder: name one with --data-root, or set SRLIB_DATA to it")
    for dataset in (one for name in names or DATASETS for one in known(name)):
        try:
            found = view(find(dataset.name, base))
        except InputError as error:
            rows.append(Status(dataset.name, "HR", dataset.images, 0, None, (str(error),)))
            continue
        images = {"HR": found.files} | {f"x{scale}": files for scale, files in found.lr_files.items()}
        for what, files in images.items():
            there = sum(file.is_file() for file in files)
            missing = (f"{there} of {len(files)} LR images at {what}",) * (there < len(files))
            problems = found.notes if what == "HR" else missing
            rows.append(Status(dataset.name, what, dataset.images, there, files[0].parent, problems))
    return rows


def get(name: str, root: str | Path | None = None, *, say: Callable[[str], None] = print) -> list[Status]:
    """Fetch a dataset into the data folder (``root``, made where it is missing, else SRLIB_DATA), and check it.

    An archive is downloaded into .downloads/ there, its checksum compared, unpacked and removed. One that lies there
    already, with the right checksum, is taken, so that a large one can be fetched by other means (``curl -C - -O`` goes
    on where it stopped). What is there whole isn't fetched again. LR images are made from HR when needed. ``say`` gets
    the terms of use. Raises InputError for a dataset without a public address and for a download that fails.
    """
    import pooch

    if root and any(one.archives for one in known(name)):
        with suppress(FileExistsError):  # a file of that name: data_root says so
            Path(os.path.expanduser(root)).mkdir(parents=True, exist_ok=True)
    here, base = listing(root, [name]), data_root(root) or Path()
    for dataset in known(name):
        say(f"{dataset.name}, published by {dataset.publisher}, {dataset.page}; terms of use: {dataset.terms}")
        if not dataset.archives:
            raise InputError(f"{dataset.name} has no public address: ask for it at {dataset.page} ({dataset.terms})")
        whole = any(row.found == row.expected for row in here if (row.name, row.what) == (dataset.name, "HR"))
        for archive in () if whole else dataset.archives:
            url = archive["url"]
            say(f"from {url}")
            unpack = (pooch.Unzip if url.endswith(".zip") else pooch.Untar)(archive["folders"], base / archive["into"])
            try:
                file = pooch.retrieve(url, archive["checksum"], Path(url).name, base / ".downloads", progressbar=True)
                # Called here: as its processor it would skip a folder that an interrupted call has half unpacked.
                unpack(file, "download", None)
            except (OSError, ValueError) as error:
                raise InputError(f"{url} could not be fetched into {base} ({error}): try again") from None
            Path(file).unlink()
    return listing(base, [name])
