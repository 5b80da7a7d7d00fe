"""Picture files, whole: pixels with all their bits, transparency, colour profile and EXIF, read and written.

``read`` makes a ``Picture`` of a PNG, JPEG, WebP or TIFF file, ``write`` a file of a ``Picture``. What a file holds is
kept where the format that is written can hold it; where it can't, and where pixels had to be converted, one of the
notes says so. (``srlib.data`` decodes images too, into the 8-bit RGB that networks are trained and scored on.)

How a file becomes pixels: 16 bits a channel stay 16, everything else becomes 8. Grey stays grey; black-and-white
becomes grey, a palette RGB, and CMYK is converted to RGB, through the file's profile where it has one. Alpha is kept as
a channel of its own. EXIF orientation is applied. Of several pictures in a file the first is read. Refused are pixels
of 32 bits, of floating point, with a sign, of L*a*b* and of 16-bit CMYK.
"""

import contextlib
import errno
import io
import logging
import os
import struct
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from srlib.data import LARGEST, PILLOW, check_extent, check_jpeg, check_png
from srlib.errors import InputError

FORMATS = {"png": (".png",), "jpeg": (".jpg", ".jpeg"), "webp": (".webp",), "tiff": (".tif", ".tiff")}
_PIXELS_A_BYTE = 50_000  # the most that is believed: white rows of a scan in Group 4's compression take a bit each
_FILE_BYTES = 4 << 30  # a file is read whole, and a TIFF file's offsets end here
_SIDES = {"png": 1_000_000, "jpeg": 65_500, "webp": 16_383, "tiff": 2**31 - 1}  # what each format can hold, in pixels
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_ORIENTATION, _EXIF, _GPS, _INTEROP = 0x0112, 0x8769, 0x8825, 0xA005
_WIDTH, _HEIGHT = 0xA002, 0xA003  # of the picture, in EXIF's own directory
# Tags of a TIFF directory that say how its pixels are stored, or its profile, or lie outside EXIF: not carried over
_STRUCTURE = {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290}
_STRUCTURE |= {291, 292, 293, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336, 338, 339}
_STRUCTURE |= {340, 341, 342, 347, 529, 530, 531, 532, 700, 33550, 33723, 33922, 34377, 34675, *range(512, 522)}
_COLOUR_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB")  # how a PNG says its colours without a profile


@dataclass(frozen=True)
class Picture:
    """A picture and what its file says about it.

    ``pixels`` is (H, W, C), uint8 or uint16; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), and alpha is
    not multiplied in. ``icc`` is the colour profile's bytes, ``dpi`` the resolution across and down, ``exif`` the
    directory by tag, those below it as dicts, ``chunks`` what a PNG says of its colours without a profile. ``notes``
    say, a few words each, what was converted or left out.
    """

    pixels: np.ndarray
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: Mapping[int, Any] = field(default_factory=dict, hash=False)
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def deep(self) -> bool:
        """Whether a channel has 16 bits."""
        return self.pixels.dtype == np.uint16

    @property
    def grey(self) -> bool:
        """Whether there is one channel of colour."""
        return self.pixels.shape[2] < 3

    @property
    def colours(self) -> np.ndarray:
        """The pixels without alpha: (H, W, 1 or 3)."""
        return self.pixels[..., : 1 if self.grey else 3]

    @property
    def alpha(self) -> np.ndarray | None:
        """The opacity (H, W), None where everything is opaque by nature."""
        return self.pixels[..., -1] if self.pixels.shape[2] in (2, 4) else None


class NoRoom(InputError):
    """Nothing more can be written there: the disk is full, or the folder may not be written to."""


def format_of(path: Path) -> str | None:
    """The format that a file name's suffix says: png, jpeg, webp or tiff; None for any other."""
    return next((name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes), None)


def read(path: Path) -> Picture:
    """The picture in a file, by the rules at the top of this module; the content decides on the format, not the name.

    Raises InputError for a file that is missing, damaged, no picture, of another format, of pixels that are refused, or
    of more than ``srlib.data.LARGEST`` of them.
    """
    data = _bytes(path)
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # what it would say of a damaged file is said by the error
    try:
        with PILLOW.strict(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _read_tiff(data, str(path))
            return _read_other(data, str(path))
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path} {_unknown(data)}") from error
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is: reduce it, or cut it into parts first") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        telling = isinstance(error, (OSError, ValueError, SyntaxError, RuntimeError)) and str(error)
        reason = f" ({' '.join(str(error).split())})" if telling else ""
        raise InputError(f"{path} is damaged and cannot be decoded{reason}") from error
    finally:
        logger.setLevel(level)


def _unknown(data: bytes) -> str:
    """What to say of a file whose beginning is that of no format that is read."""
    if not data:
        return "is empty: fetch or save it again"
    for start, name in ((b"BM", "BMP"), (b"GIF8", "GIF"), (b"%PDF", "PDF"), (b"\0\0\0", "HEIC or AVIF")):
        if data.startswith(start) and (name != "HEIC or AVIF" or data[4:8] == b"ftyp"):
            return f"is a {name} file: save it as PNG first"
    return "is no PNG, JPEG, WebP or TIFF picture, or damaged from its beginning: fetch it again, or save it as PNG"


def over_white(picture: Picture) -> Picture:
    """A picture with what is transparent laid over white, for a format without alpha; unchanged where it has none."""
    if picture.alpha is None:
        return picture
    top = np.iinfo(picture.pixels.dtype).max
    laid = np.empty_like(picture.colours)
    rows = max(1, (1 << 20) // picture.size[1])  # at a time, as they are in double precision
    for first in range(0, picture.size[0], rows):
        band = slice(first, first + rows)
        alpha = picture.alpha[band, :, None] / top
        laid[band] = np.rint(picture.colours[band] * alpha + top * (1 - alpha))
    return replace(picture, pixels=laid, notes=(*picture.notes, "transparency was laid over white"))


def check_size(kind: str, pixels: tuple[int, ...], itemsize: int) -> None:
    """Raise InputError where a format cannot hold a picture of ``pixels`` (H, W, C) with so many bytes a channel."""
    height, width, channels = pixels
    if max(height, width) > _SIDES[kind]:
        mend = "choose a smaller --scale, or " + ("PNG or TIFF" if kind in ("jpeg", "webp") else "cut it into parts")
        raise InputError(
            f"{width}x{height} is too large for {kind}, which ends at {_SIDES[kind]} pixels a side: {mend}"
        )
    if kind == "tiff" and height * width * channels * itemsize > _FILE_BYTES - (64 << 20):
        raise InputError(f"{width}x{height} makes a TIFF file of more than 4 GiB, where the format ends: take PNG")


def write(
    picture: Picture, path: Path, *, quality: int = 95, lossless: bool = False, replace_it: bool = False
) -> tuple[str, ...]:
    """Write a picture into a file of the format that its suffix says, and return notes on what that cannot hold.

    JPEG and WebP are 8-bit and JPEG has no alpha: a picture that has is refused (``over_white`` lays it over white).
    ``quality`` is that of JPEG, whose colours are stored at full resolution, and of WebP, unless it is ``lossless``.
    EXIF's orientation is set to upright and its size of the picture to this one's; a thumbnail is not kept.

    The file is written beside its place, flushed to the disk and moved there: there is a whole file or none. Raises
    InputError for a suffix of no format and a file that is there already, unless ``replace_it``; NoRoom where nothing
    can be written.
    """
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{path}: no picture format has the suffix {path.suffix!r}: {_suffixes()}")
    check_size(kind, picture.pixels.shape, picture.pixels.itemsize)
    if picture.deep and kind in ("jpeg", "webp"):
        raise InputError(f"{path}: {kind} has 8 bits a channel and the picture 16: make it 8-bit first")
    if picture.alpha is not None and kind == "jpeg":
        raise InputError(f"{path}: jpeg has no transparency: lay the picture over white first")
    if os.path.lexists(path) and not replace_it:
        raise InputError(f"{path} is there already: give --force to replace it, or another name")
    exif, notes = _exif_bytes(picture)
    if kind != "png" and _matter(dict(picture.chunks)) and picture.icc is None:
        notes += (f"the PNG's own gamma or colour space has no place in {kind}",)
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.part")
    try:
        with open(part, "xb") as file:
            if kind == "png":
                _write_png(file, picture, exif)
            elif kind == "tiff":
                _write_tiff(file, picture)
            else:
                notes += _write_lossy(file, picture, kind, exif, quality, lossless)
            file.flush()
            os.fsync(file.fileno())
        _place(part, path, replace_it)
    except OSError as error:
        kind_of_error = NoRoom if error.errno in _NO_ROOM else InputError
        raise kind_of_error(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)
    return notes


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file" if path.exists() else f"no picture at {path}")
        if path.stat().st_size > _FILE_BYTES:
            raise InputError(f"{path} has more than 4 GiB: reduce it, or cut it into parts first")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _suffixes() -> str:
    return "use " + ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)


# ---- reading ----


def _read_other(data: bytes, label: str) -> Picture:
    """A PNG, JPEG or WebP file's picture."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
        check_extent(opened.size, len(data), label, _PIXELS_A_BYTE)
        if opened.format == "PNG":
            check_png(data)
        count = getattr(opened, "n_frames", 1)
        opened.load()
        if opened.format in ("JPEG", "MPO"):
            check_jpeg(data, opened)
        exif = _loaded(opened.getexif)
        icc, dpi = opened.info.get("icc_profile"), opened.info.get("dpi")
        deep = opened.format == "PNG" and data[24] == 16
        pixels, icc, notes = (_deep_png(data), icc, ()) if deep else _plain(opened, icc, label)
        chunks = tuple(_png_chunks(data)) if opened.format == "PNG" else ()
    if count > 1:
        notes += (f"the first of {count} pictures was taken",)
    return _upright(pixels, exif, icc, dpi, chunks, notes)


def _read_tiff(data: bytes, label: str) -> Picture:
    """A TIFF file's first picture, through tifffile, which reads every way of storing pixels and says what is wrong."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        check_extent((page.imagewidth, page.imagelength), len(data), label, _PIXELS_A_BYTE)
        if page.tilelength * page.tilewidth > LARGEST:
            raise InputError(f"{label} says that its tiles are larger than itself: it is damaged, or a bomb")
        _check_tiff(page, label)
        exif = _loaded(lambda: _tiff_exif(data))
        icc = page.tags.valueof(34675)
        pixels, icc, notes = _tiff_pixels(page, icc if isinstance(icc, bytes) else None, label)
        (entries,) = struct.unpack_from(file.byteorder + ("Q" if file.is_bigtiff else "H"), data, page.offset)
        if entries > len(page.tags):
            notes += ("some of its tags are damaged and left out",)
        count = len(file.pages)
    if count > 1:
        notes += (f"the first of {count} pictures was taken",)
    return _upright(pixels, exif, icc, None, (), notes)


def _check_tiff(page: Any, label: str) -> None:
    """Raise InputError for pixels of which nobody knows the range, and colours for which there is no conversion."""
    stored = getattr(page.photometric, "name", "unknown")
    known = {"MINISBLACK": (1, 2, 4, 8, 16), "MINISWHITE": (1, 2, 4, 8, 16), "RGB": (8, 16), "PALETTE": (1, 2, 4, 8)}
    known |= {"SEPARATED": (8,), "YCBCR": (8,)}
    kinds = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
    kind = kinds.get(page.sampleformat, "")
    if kind or page.bitspersample not in known.get(stored, ()):
        names = {"MINISBLACK": "grey", "MINISWHITE": "grey", "SEPARATED": "CMYK", "CIELAB": "L*a*b*"}
        what = f"{page.bitspersample}-bit {kind or names.get(stored, stored)} pixels"
        raise InputError(f"{label} has {what}, which are not read: save it as 8-bit or 16-bit grey or RGB first")
    if page.samplesperpixel > 8:
        raise InputError(f"{label} has {page.samplesperpixel} channels: save it as grey or RGB first")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise InputError(f"{label} is no flat picture: its axes are {page.axes}")


def _tiff_pixels(page: Any, icc: bytes | None, label: str) -> tuple[np.ndarray, bytes | None, tuple[str, ...]]:
    """The pixels of a page as grey or RGB, with or without alpha; the profile, unless its conversion used it up."""
    if 0 in page.databytecounts or not page.databytecounts:
        raise InputError(f"{label} is damaged: parts of its pixels are missing")
    pixels = page.asarray()
    pixels = pixels.transpose(1, 2, 0) if page.axes == "SYX" else pixels
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    stored, bits = page.photometric.name, page.bitspersample
    channels = {"RGB": 3, "YCBCR": 3, "SEPARATED": 4}.get(stored, 1)
    if pixels.shape[2] < channels or 0 in pixels.shape:
        raise InputError(f"{label} is damaged: it calls itself {stored} and has {pixels.shape[2]} channels")
    colours, alpha, notes = _split_tiff(pixels, channels, [int(kind) for kind in page.extrasamples])
    if stored == "PALETTE":
        if page.colormap is None:
            raise InputError(f"{label} is damaged: its palette is missing")
        table = np.asarray(page.colormap).T >> 8
        colours, notes = table[colours[..., 0]].astype(np.uint8), (*notes, "the palette became RGB")
    elif stored == "SEPARATED":
        opened = Image.frombytes("CMYK", colours.shape[1::-1], np.ascontiguousarray(colours).tobytes())
        colours, how = _rgb_of_cmyk(opened, icc)
        icc, notes = None, (*notes, how)
    elif stored == "YCBCR" and int(page.compression) not in (6, 7):  # JPEG's decoder has made RGB of it
        opened = Image.frombytes("YCbCr", colours.shape[1::-1], np.ascontiguousarray(colours).tobytes())
        colours = np.asarray(opened.convert("RGB"))
    elif bits < 8:
        colours = (colours.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        notes = (*notes, "black and white became grey") if bits == 1 else notes
    if stored == "MINISWHITE":
        colours = np.iinfo(colours.dtype).max - colours
    if alpha is None:
        return colours, icc, notes
    if 1 in page.extrasamples:
        top = np.iinfo(colours.dtype).max
        whole = np.divide(colours * float(top), alpha, out=np.zeros(colours.shape), where=alpha > 0)
        colours = np.rint(np.minimum(whole, top)).astype(colours.dtype)
    return np.concatenate((colours, alpha), axis=2), icc, notes


def _split_tiff(
    pixels: np.ndarray, channels: int, extra: list[int]
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Colours and alpha (H, W, 1) of pixels that have ``extra`` channels, and a note on those that are neither."""
    opacity = next((k for k, kind in enumerate(extra) if kind in (1, 2) and channels + k < pixels.shape[2]), None)
    left = pixels.shape[2] - channels - (opacity is not None)
    notes = (f"{left} extra channel{'s were' if left > 1 else ' was'} left out",) if left else ()
    alpha = None if opacity is None else pixels[..., channels + opacity, None]
    return pixels[..., :channels], alpha, notes


def _plain(opened: Image.Image, icc: bytes | None, label: str) -> tuple[np.ndarray, bytes | None, tuple[str, ...]]:
    """What Pillow decoded, as 8-bit grey or RGB with or without alpha; CMYK's profile is used up by its conversion."""
    mode, notes = opened.mode, ()
    if mode in ("1", "L", "LA", "La"):
        target = "LA" if opened.has_transparency_data else "L"
        notes = ("black and white became grey",) * (mode == "1")
    elif mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"):
        target = "RGBA" if opened.has_transparency_data else "RGB"
        notes = ("the palette became RGB",) * mode.startswith("P")
    elif mode == "CMYK":
        pixels, how = _rgb_of_cmyk(opened, icc)
        return pixels, None, (how,)
    else:
        raise InputError(f"{label} has pixels of Pillow's mode {mode}: save it as 8-bit or 16-bit grey or RGB first")
    pixels = np.asarray(opened if mode == target else opened.convert(target))
    return pixels if pixels.ndim == 3 else pixels[..., None], icc, notes


def _rgb_of_cmyk(opened: Image.Image, icc: bytes | None) -> tuple[np.ndarray, str]:
    if icc is not None:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(opened, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # None is for a conversion in place
            return np.asarray(converted), "CMYK became sRGB through its colour profile"
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile, or one that is not for CMYK
    return np.asarray(opened.convert("RGB")), "CMYK became RGB, without a colour profile"


def _deep_png(data: bytes) -> np.ndarray:
    """The pixels of a 16-bit PNG; one colour that is declared transparent becomes alpha."""
    import imagecodecs

    pixels = imagecodecs.png_decode(_bare_png(data))
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    key = next((body for name, body in _chunks(data) if name == b"tRNS"), b"")
    if pixels.shape[2] in (1, 3) and len(key) == 2 * pixels.shape[2]:
        see_through = (pixels == np.frombuffer(key, ">u2")).all(axis=2, keepdims=True)
        pixels = np.concatenate((pixels, np.where(see_through, 0, 65535).astype(np.uint16)), axis=2)
    return pixels


def _bare_png(data: bytes) -> bytes:
    """A PNG file without the chunks that its pixels don't need, of which a decoder could only complain."""
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name[:1].isupper():
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk of a PNG file, but for the pixels, as far as it is whole."""
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name != b"IDAT":
            yield name, data[place + 8 : place + 8 + length]
        place += 12 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((name, body) for name, body in _chunks(data) if name in _COLOUR_CHUNKS)


def _matter(chunks: Mapping[bytes, bytes]) -> bool:
    """Whether a PNG's chunks say anything but sRGB, which is what a picture without a profile is taken for."""
    if b"cICP" in chunks:
        return True
    return b"sRGB" not in chunks and chunks.get(b"gAMA", struct.pack(">I", 45455)) != struct.pack(">I", 45455)


def _tiff_exif(data: bytes) -> Image.Exif:
    """The directory of a TIFF file, which is laid out as EXIF data is."""
    exif = Image.Exif()
    exif.load(data)
    return exif


def _loaded(make: Any) -> dict[int, Any] | None:
    """EXIF as nested dicts, without what describes the file's own pixels and its thumbnail; None for broken EXIF."""
    try:
        exif = make()
        found = {tag: exif[tag] for tag in list(exif) if tag not in _STRUCTURE}
        for tag in (_EXIF, _GPS):
            below = dict(exif.get_ifd(tag)) if found.pop(tag, None) is not None else {}
            if tag == _EXIF and below.pop(_INTEROP, None) is not None and (interop := dict(exif.get_ifd(_INTEROP))):
                below[_INTEROP] = interop
            if below:
                found[tag] = below
    except MemoryError:
        raise
    except Exception:  # Pillow's reader raises KeyError, TypeError, struct.error, SyntaxError and more
        return None
    return found


def _upright(
    pixels: np.ndarray,
    exif: dict[int, Any] | None,
    icc: bytes | None,
    dpi: Any,
    chunks: tuple[tuple[bytes, bytes], ...],
    notes: tuple[str, ...],
) -> Picture:
    """The picture as it is to be looked at: rows and columns in the order that EXIF's orientation says."""
    if exif is None:
        exif, notes = {}, (*notes, "EXIF was unreadable and is left out")
    turn = exif.get(_ORIENTATION, 1)
    turn = turn if turn in range(1, 9) else 1
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn != 1:
        notes += ("turned upright as EXIF says",)
    found = _resolution(dpi, exif)
    if turn >= 5:
        found = found and found[::-1]
        exif |= {282: exif[283], 283: exif[282]} if 282 in exif and 283 in exif else {}
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    return Picture(pixels, icc or None, found, exif, chunks, notes)


def _resolution(dpi: Any, exif: Mapping[int, Any]) -> tuple[float, float] | None:
    """Pixels an inch, across and down, None where the file says nothing that can be believed."""
    try:
        if dpi is None and 282 in exif and exif.get(296, 2) in (2, 3):
            unit = 2.54 if exif.get(296, 2) == 3 else 1.0
            dpi = (float(exif[282]) * unit, float(exif.get(283, exif[282])) * unit)
        found = (float(dpi[0]), float(dpi[1])) if dpi is not None else (0.0, 0.0)
    except (TypeError, ValueError, ZeroDivisionError, IndexError, OverflowError):
        return None
    return found if all(0.5 <= number <= 60_000 for number in found) else None


# ---- writing ----


def _mended(picture: Picture) -> dict[int, Any]:
    """The picture's EXIF with its orientation and size put right."""
    exif = dict(picture.exif)
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = 1
    if _EXIF in exif:
        height, width = picture.size
        below = dict(exif[_EXIF])
        below |= {tag: side for tag, side in ((_WIDTH, width), (_HEIGHT, height)) if tag in below}
        exif[_EXIF] = below
    return exif


def _exif_bytes(picture: Picture) -> tuple[bytes, tuple[str, ...]]:
    """EXIF as it stands in a file, beginning with its TIFF header; nothing, and a note, where it cannot be written."""
    if not picture.exif:
        return b"", ()
    try:
        exif = Image.Exif()
        for tag, value in _mended(picture).items():
            exif[tag] = value
        return exif.tobytes().removeprefix(b"Exif\0\0"), ()
    except MemoryError:
        raise
    except Exception as error:  # struct.error and more, for values that are not of their tag's type
        return b"", (f"EXIF could not be kept ({' '.join(str(error).split()) or type(error).__name__})",)


def _image(pixels: np.ndarray) -> Image.Image:
    """8-bit pixels for Pillow, whose mode follows from the number of channels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _write_png(file: IO[bytes], picture: Picture, exif: bytes) -> None:
    """The encoder's file, with the chunks that say what the pixels mean put after its header."""
    if picture.deep:
        import imagecodecs

        pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
        encoded = memoryview(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=3))
    else:
        buffer = io.BytesIO()
        _image(picture.pixels).save(buffer, "PNG", compress_level=3)
        encoded = buffer.getbuffer()
    chunks = [] if picture.icc else list(picture.chunks)
    if picture.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc, 9)))
    if picture.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(number / 0.0254) for number in picture.dpi), 1)))
    if exif:
        chunks.append((b"eXIf", exif))
    header = 33  # signature and IHDR
    file.write(encoded[:header])
    for name, body in chunks:
        file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    file.write(encoded[header:])


def _write_lossy(
    file: IO[bytes], picture: Picture, kind: str, exif: bytes, quality: int, lossless: bool
) -> tuple[str, ...]:
    """JPEG or WebP through Pillow; notes on what it cannot hold."""
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = {"quality": quality}
    if kind == "jpeg":
        options["subsampling"] = 0
        if picture.dpi:
            options["dpi"] = picture.dpi
        if len(exif) > 65_500:
            exif, notes = b"", ("EXIF is too long for JPEG and is left out",)
    else:
        options |= {"lossless": lossless, "exact": lossless}
        notes = ("WebP has no grey: it is stored as RGB",) * picture.grey
    if exif:
        options["exif"] = b"Exif\0\0" + exif
    if picture.icc and kind == "webp" and picture.icc[16:20] == b"GRAY":
        notes += ("the grey colour profile does not fit RGB and is left out",)
    elif picture.icc:
        options["icc_profile"] = picture.icc
    _image(picture.pixels).save(file, kind.upper(), **options)
    return notes


def _write_tiff(file: IO[bytes], picture: Picture) -> None:
    """A baseline TIFF: strips, each row as differences to the pixel before it, deflated; then the directory."""
    height, width, channels = picture.pixels.shape
    rows = max(1, (1 << 20) // (width * channels * picture.pixels.itemsize))
    file.write(b"II*\0\0\0\0\0")
    places, lengths = [], []
    for first in range(0, height, rows):
        strip = picture.pixels[first : first + rows].astype(picture.pixels.dtype.newbyteorder("<"))
        strip[:, 1:] -= picture.pixels[first : first + rows, :-1]
        packed = zlib.compress(strip.tobytes(), 3)
        places.append(file.tell())
        lengths.append(len(packed))
        file.write(packed)
    file.write(b"\0" * (file.tell() % 2))
    place = file.tell()
    for exif in (_mended(picture), {}):
        try:
            directory = _with_offsets(_directory(picture, exif, lengths, rows).tobytes(place), place, places)
            break
        except MemoryError:
            raise
        except Exception:  # ``_exif_bytes`` has said that this EXIF cannot be written
            if not exif:
                raise
    file.write(directory)
    file.seek(4)
    file.write(struct.pack("<I", place))


def _directory(picture: Picture, exif: Mapping[int, Any], lengths: list[int], rows: int) -> ImageFileDirectory_v2:
    """The TIFF directory of a picture whose strips are written: how it is stored, and its EXIF beside that; without
    the strips' places, as Pillow takes them to come after the directory."""
    height, width, channels = picture.pixels.shape
    directory = ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    for tag, value in exif.items():
        directory[tag] = value
    if picture.dpi and 282 not in exif:
        directory[282], directory[283], directory[296] = *picture.dpi, 2
    directory[256], directory[257], directory[258] = width, height, (8 * picture.pixels.itemsize,) * channels
    directory[259], directory[317], directory[284] = 8, 2, 1  # deflate, horizontal differences, channels interleaved
    directory[262] = 1 if picture.grey else 2
    directory[277], directory[339] = channels, (1,) * channels
    directory.tagtype[273] = directory.tagtype[279] = 4
    directory[273], directory[278], directory[279] = (0,) * len(lengths), rows, tuple(lengths)
    if picture.alpha is not None:
        directory[338] = 2
    if picture.icc:
        directory.tagtype[34675] = 7
        directory[34675] = picture.icc
    return directory


def _with_offsets(directory: bytes, place: int, offsets: list[int]) -> bytes:
    """The bytes of a directory that stands at ``place`` in its file, with the strips' offsets (tag 273) put in."""
    patched = bytearray(directory)
    entry = next(at for at in range(2, len(directory), 12) if struct.unpack_from("<H", directory, at)[0] == 273)
    at = entry + 8 if len(offsets) == 1 else struct.unpack_from("<I", directory, entry + 8)[0] - place
    struct.pack_into(f"<{len(offsets)}I", patched, at, *offsets)
    return bytes(patched)


def _place(part: Path, path: Path, replace_it: bool) -> None:
    """Move a finished file to its place; one that appeared there meanwhile stays, unless it may be replaced."""
    if replace_it:
        os.replace(part, path)
    else:
        try:
            os.link(part, path)
        except FileExistsError:
            raise InputError(f"{path} is there already: give --force to replace it, or another name") from None
        except OSError:  # a file system without hard links
            os.rename(part, path)
    with contextlib.suppress(OSError):  # the file is there; not every system can flush a folder, or may open it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
