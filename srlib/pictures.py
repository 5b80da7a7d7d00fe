"""Picture files with all that they hold: 8 or 16 bits, transparency, colour profile, EXIF, XMP and resolution.

libvips reads and writes them (``srlib.data.open_image`` says how a file becomes pixels). ``srlib.data`` decodes images,
too, into the 8-bit RGB that networks are trained and scored on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from srlib.data import open_image
from srlib.errors import InputError

FORMATS = {"png": [".png"], "jpeg": [".jpg", ".jpeg", ".jfif", ".jpe"], "webp": [".webp"], "tiff": [".tif", ".tiff"]}
SIDES = {"jpeg": 65_500, "webp": 16_383}  # pixels a side, where these formats end


@dataclass(frozen=True)
class Picture:
    """``pixels`` (H, W, C), uint8 or uint16, where C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    ``dpi`` is the resolution across and down; ``metadata`` are libvips' fields of profile, EXIF and XMP, each with its
    type. ``notes`` say what was odd or converted.
    """

    pixels: np.ndarray
    dpi: tuple[float, float] = (72.0, 72.0)
    metadata: Mapping[str, tuple[int, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def colours(self) -> np.ndarray:
        """The pixels without alpha: (H, W, 1 or 3)."""
        return self.pixels[..., : 1 if self.pixels.shape[2] < 3 else 3]

    @property
    def alpha(self) -> np.ndarray | None:
        """The opacity (H, W, 1), None where everything is opaque."""
        return None if self.pixels.shape[2] % 2 else self.pixels[..., -1:]


def format_of(path: Path) -> str | None:
    """The format that a file name's suffix says: png, jpeg, webp or tiff; None for any other."""
    return next((name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes), None)


def read(path: str | Path) -> Picture:
    """The picture in a file, upright; its content decides on the format. Raises InputError as ``open_image`` does."""
    image, notes = open_image(Path(path))
    kept = [name for name in image.get_fields() if name.startswith(("exif-", "icc-profile-data", "xmp-data"))]
    metadata = {name: (image.get_typeof(name), image.get(name)) for name in kept}
    pixels = image.numpy().reshape(image.height, image.width, image.bands)
    return Picture(pixels, (image.xres * 25.4, image.yres * 25.4), metadata, notes)


def part_of(path: Path) -> Path:
    """Where this process writes a file that is not whole yet."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write(picture: Picture, path: str | Path, *, quality: int = 95, force: bool = False) -> bool:
    """Write a picture in the format that the suffix says; False where a file is there already and isn't replaced.

    JPEG and WebP hold 8 bits; in JPEG, what is transparent is laid over white. ``quality`` is that of JPEG, whose
    colours are stored at full resolution, and of WebP. The file is written beside its place and moved there when it is
    whole. Raises InputError for an unknown suffix and where nothing can be written.
    """
    path = Path(path)
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{path}: its suffix says no format: use .png, .jpg, .webp or .tif")
    image = pyvips.Image.new_from_array(np.ascontiguousarray(picture.pixels))
    spaces = {"uchar": ("b-w", "srgb"), "ushort": ("grey16", "rgb16")}[image.format]
    image = image.copy(interpretation=spaces[image.bands > 2], xres=picture.dpi[0] / 25.4, yres=picture.dpi[1] / 25.4)
    for name, (kind_of_field, value) in picture.metadata.items():
        image.set_type(kind_of_field, name, value)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    options: dict[str, dict[str, Any]] = {
        "png": {"compression": 3},
        "jpeg": {"Q": quality, "subsample_mode": "off", "background": 255},
        "webp": {"Q": quality},
        "tiff": {"compression": "deflate", "predictor": "horizontal", "bigtiff": picture.pixels.nbytes > 3 << 30},
    }
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            getattr(image, f"{kind}save")(str(part), **options[kind])
            if path.exists() and not force:
                return False
            part.replace(path)
            return True
        finally:
            part.unlink(missing_ok=True)
    except (pyvips.Error, OSError) as error:
        raise InputError(f"{path} cannot be written ({' '.join(str(error).split())})") from None
