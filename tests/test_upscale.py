"""Picture files keep what they hold, and `srlib upscale` makes of each what it promises, or says why not."""

import csv
import errno
import io
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from srlib import cli, pictures, tiles, upscale
from srlib.errors import InputError
from srlib.models import create
from srlib.models.safmn import SAFMNConfig
from srlib.pictures import Picture
from srlib.resize import imresize

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height: int, width: int, channels: int, depth: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Pixels (H, W, C) of noise, alpha among them not zero everywhere."""
    top = np.iinfo(depth).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype=depth, endpoint=True)


def smooth(height: int, width: int, channels: int, depth: Any = np.uint8) -> np.ndarray:
    """Pixels of slow waves, which lossy formats keep nearly."""
    rows, columns, channel = np.ogrid[:height, :width, :channels]
    waves = 0.5 + 0.4 * np.sin(rows / 9 + channel) * np.cos(columns / 7 - channel)
    return (waves * np.iinfo(depth).max).astype(depth)


def exif_of(**below: Any) -> Image.Exif:
    """EXIF with a maker, a description, an exposure and a place."""
    exif = Image.Exif()
    exif[0x010F], exif[0x010E] = "Maker", "a picture"
    exif[0x8769] = {0x9003: "2026:01:02 03:04:05", 0xA002: 999, 0xA003: 888, 0xA005: {1: "R98"}} | below
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif


@pytest.fixture
def srlib(in_process, monkeypatch, capfd, tmp_path):
    """Run the command in this process; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRLIB_PROGRESS", "line")

    return in_process(capfd)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of a small SAFMN's weights at x2, as a run writes it."""
    from srlib import runs

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    runs.save(create("safmn", 2, SAFMNConfig(blocks=1, channels=8)), "safmn", path)
    return path


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_written_without_loss_is_read_again(tmp_path, channels, depth, suffix):
    made = Picture(noise(37, 53, channels, depth), ICC, (300.0, 150.0), dict(exif_of()))
    path = tmp_path / f"a{suffix}"
    assert pictures.write(made, path) == ()
    found = pictures.read(path)
    assert found.pixels.dtype == depth and np.array_equal(found.pixels, made.pixels)
    assert found.icc == ICC and found.notes == ()
    assert found.dpi == pytest.approx((300, 150), abs=0.02)
    assert found.exif[0x010F] == "Maker" and found.exif[0x8769][0x9003] == "2026:01:02 03:04:05"
    assert (found.exif[0x8769][0xA002], found.exif[0x8769][0xA003]) == (53, 37)
    assert found.exif[0x8769][0xA005] == {1: "R98"} and found.exif[0x8825][1] == "N"
    assert os.listdir(tmp_path) == [path.name]
    others = (imagecodecs.png_decode(path.read_bytes()) if suffix == ".png" else tifffile.imread(path),)
    assert all(np.array_equal(other.reshape(made.pixels.shape), made.pixels) for other in others)
    if (suffix, depth, channels) == (".tif", np.uint16, 2):
        return  # Pillow cannot open it
    with Image.open(path) as seen:
        seen.load()
        assert seen.size == (53, 37) and seen.info["icc_profile"] == ICC and seen.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize(("suffix", "channels"), [(".jpg", 1), (".jpg", 3), (".webp", 3), (".webp", 4)])
def test_lossy_files_keep_all_but_the_last_digits(tmp_path, suffix, channels):
    pixels = smooth(40, 56, channels)
    made = Picture(pixels, ICC, (72.0, 72.0), dict(exif_of()))
    assert pictures.write(made, tmp_path / f"a{suffix}") == ()
    found = pictures.read(tmp_path / f"a{suffix}")
    assert found.pixels.shape == pixels.shape and found.icc == ICC
    assert np.abs(found.pixels.astype(int) - pixels).mean() < (1 if suffix == ".jpg" else 3)
    assert found.exif[0x010E] == "a picture" and found.exif[0x8769][0xA002] == 56
    if suffix == ".jpg":
        with Image.open(tmp_path / "a.jpg") as seen:
            assert channels == 1 or seen.layer[0][1:3] == seen.layer[1][1:3] == (1, 1), "colours at full resolution"
    else:
        assert pictures.write(made, tmp_path / "b.webp", lossless=True) == ()
        assert np.array_equal(pictures.read(tmp_path / "b.webp").pixels, pixels)


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    """A file of pixels with the tag of EXIF that says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    elif pixels.dtype == np.uint16:
        pictures.write(Picture(pixels), path)
        whole = path.read_bytes()
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        path.write_bytes(whole[:33] + chunk + whole[33:])
    else:
        Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "depth"),
    [(".png", np.uint8), (".png", np.uint16), (".jpg", np.uint8), (".webp", np.uint8), (".tif", np.uint8),
     (".tif", np.uint16)],
)  # fmt: skip
def test_a_picture_is_turned_as_a_viewer_turns_it_and_once(tmp_path, orientation, suffix, depth):
    pixels = noise(12, 20, 3, depth)
    save_turned(tmp_path / f"a{suffix}", pixels, orientation)
    found = pictures.read(tmp_path / f"a{suffix}")
    upright = Image.fromarray(pixels if depth == np.uint8 else (pixels >> 8).astype(np.uint8))
    if suffix == ".jpg":
        with Image.open(tmp_path / "a.jpg") as opened:
            upright = opened.copy()
    upright.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(upright))
    shown = found.pixels if depth == np.uint8 else (found.pixels >> 8).astype(np.uint8)
    assert np.array_equal(shown, wanted)
    assert ("turned upright as EXIF says" in found.notes) == (orientation > 1)
    pictures.write(found, tmp_path / "b.png")
    again = pictures.read(tmp_path / "b.png")
    assert again.exif[0x0112] == 1 and np.array_equal(again.pixels, found.pixels)


def test_what_is_no_grey_or_rgb_is_converted_and_said(tmp_path):
    rgb = Image.fromarray(smooth(20, 30, 3))
    cases: dict[str, tuple[Image.Image, dict[str, Any], int, str]] = {
        "palette.png": (rgb.quantize(16), {}, 3, "palette became RGB"),
        "seen-through.png": (rgb.quantize(16), {"transparency": 3}, 4, "palette became RGB"),
        "ink.tif": (rgb.convert("1"), {"compression": "group4"}, 1, "black and white became grey"),
        "print.jpg": (rgb.convert("CMYK"), {}, 3, "CMYK became RGB, without a colour profile"),
        "print.tif": (rgb.convert("CMYK"), {"icc_profile": b"broken"}, 3, "without a colour profile"),
        "key.png": (rgb, {"transparency": tuple(rgb.getpixel((3, 4)))}, 4, ""),
        "grey-key.png": (rgb.convert("L"), {"transparency": 99}, 2, ""),
        "jpeg.tif": (rgb, {"compression": "jpeg"}, 3, ""),
        "print-jpeg.tif": (rgb.convert("CMYK"), {"compression": "jpeg"}, 3, "CMYK became RGB"),
        "video.tif": (rgb.convert("YCbCr"), {}, 3, ""),
        "palette.tif": (rgb.quantize(16), {"compression": "tiff_lzw"}, 3, "palette became RGB"),
        "raw-ink.tif": (rgb.convert("1"), {}, 1, "black and white became grey"),
        "two.png": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}, 3, "the first of 2 pictures"),
        "two.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}, 3, "the first of 2 pictures"),
        "two.tif": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}, 3, "the first of 2 pictures"),
    }
    for name, (image, options, channels, said) in cases.items():
        image.save(tmp_path / name, **options)
        found = pictures.read(tmp_path / name)
        assert found.pixels.shape == (20, 30, channels), name
        assert said in "; ".join(found.notes) and bool(said) == bool(found.notes), (name, found.notes)
        with Image.open(tmp_path / name) as opened:
            wanted = np.asarray(opened.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
        if "jpeg" in name:  # two decoders round differently
            assert np.abs(found.pixels.astype(int) - wanted.reshape(found.pixels.shape)).max() <= 6, name
        else:
            assert np.array_equal(found.pixels, wanted.reshape(found.pixels.shape)), name
    assert pictures.read(tmp_path / "print.tif").icc is None, "a profile of other colours than the pixels' is not kept"


def profile_of_one_ink() -> bytes:
    """An ICC profile of CMYK (version 2, a table of 2x2x2x2 corners, lut8) of a press whose inks are all grey: black
    has L* 0, any of the others 128 / 255 of white's 100, and a* = b* = 0."""
    corners = [0 if k & 1 else 255 if k == 0 else 128 for k in range(16)]  # the last ink changes fastest: K
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536 * (k % 4 == 0) for k in range(9)))
    table += 4 * ramp + b"".join(bytes((light, 128, 128)) for light in corners) + 3 * ramp
    table += bytes(-len(table) % 4)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    d50 = struct.pack(">3i", *(round(65536 * part) for part in (0.9642, 1, 0.8249)))
    header = struct.pack(">IIIIII", 144 + len(table), 0, 0x02400000, *struct.unpack(">III", b"prtrCMYKLab "))
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50
    return header.ljust(128, b"\0") + tags + table


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk_is_converted_through_its_profile(tmp_path, suffix):
    """L* 50.2 is a luminance of 0.186, and with it (1.055 * 0.186 ** (1 / 2.4) - 0.055) * 255 = 119 in sRGB."""
    printed = Image.new("CMYK", (32, 16), (255, 0, 0, 0))
    printed.paste((0, 0, 0, 0), (16, 0, 32, 16))
    options = {"quality": 100} if suffix == ".jpg" else {}
    printed.save(tmp_path / f"a{suffix}", icc_profile=profile_of_one_ink(), **options)
    found = pictures.read(tmp_path / f"a{suffix}")
    assert found.notes == ("CMYK became sRGB through its colour profile",) and found.icc is None
    assert np.abs(found.pixels[:, :16].astype(int) - 119).max() <= 2 and found.pixels[:, 16:].min() >= 253


def test_cmyk_with_a_profile_of_rgb_is_converted_without(tmp_path):
    Image.new("CMYK", (9, 8), (10, 200, 30, 40)).save(tmp_path / "a.tif", icc_profile=ICC)
    found = pictures.read(tmp_path / "a.tif")
    assert found.notes == ("CMYK became RGB, without a colour profile",) and found.icc is None


def test_a_16_bit_colour_that_is_declared_transparent_becomes_alpha(tmp_path):
    pixels = noise(6, 7, 3, np.uint16)
    pictures.write(Picture(pixels), tmp_path / "a.png")
    whole, body = (tmp_path / "a.png").read_bytes(), pixels[2, 3].astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    found = pictures.read(tmp_path / "a.png")
    assert np.array_equal(found.colours, pixels) and found.alpha is not None
    assert found.alpha[2, 3] == 0 and (found.alpha == 65535).sum() == 41


def test_tiff_in_all_its_ways(tmp_path):
    pixels = noise(40, 36, 3, np.uint16)
    path = tmp_path / "a.tif"
    ways: list[dict[str, Any]] = [
        {}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}, {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 7}, {"compression": "zstd"}, {"compression": "packbits"},
    ]  # fmt: skip
    for way in ways:
        tifffile.imwrite(path, pixels, photometric="rgb", **way)
        assert np.array_equal(pictures.read(path).pixels, pixels), way
    tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(pictures.read(path).pixels, pixels)
    tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite")
    assert np.array_equal(pictures.read(path).pixels[..., 0], 65535 - pixels[..., 0])
    both = np.concatenate((pixels, noise(40, 36, 1, np.uint16, seed=1)), 2)
    tifffile.imwrite(path, both, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(pictures.read(path).pixels, both)
    tifffile.imwrite(path, both, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(pictures.read(path).pixels, pixels)
    assert pictures.read(path).notes == ("1 extra channel was left out",)


def test_tiff_of_few_bits_and_of_video_colours(tmp_path):
    levels = noise(20, 30, 1)[..., 0] // 16
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="minisblack", bitspersample=4)
    assert np.array_equal(pictures.read(tmp_path / "a.tif").pixels[..., 0], levels * 17)
    pixels = smooth(32, 48, 3)
    video = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    tifffile.imwrite(tmp_path / "b.tif", video, photometric="ycbcr", compression="jpeg")
    assert np.abs(pictures.read(tmp_path / "b.tif").pixels.astype(int) - pixels).mean() < 6


def test_premultiplied_alpha_is_divided_out(tmp_path):
    alpha = np.full((4, 5, 1), 128, np.uint8)
    alpha[0] = 0
    straight = np.full((4, 5, 3), 200, np.uint8)
    within = np.rint(straight * (alpha / 255)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate((within, alpha), 2), photometric="rgb", extrasamples=[1])
    found = pictures.read(tmp_path / "a.tif")
    assert np.array_equal(found.pixels[..., 3:], alpha) and (found.pixels[0, :, :3] == 0).all()
    assert np.abs(found.pixels[1:, :, :3].astype(int) - 200).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "said"),
    [(np.float32, "32-bit floating-point"), (np.uint32, "32-bit grey"), (np.int16, "16-bit signed"),
     (np.float16, "16-bit floating-point")],
)  # fmt: skip
def test_pixels_whose_range_nobody_knows_are_refused(tmp_path, dtype, said):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 6), dtype), photometric="minisblack")
    with pytest.raises(InputError, match=f"a.tif has {said} pixels, which are not read: save it as 8-bit"):
        pictures.read(tmp_path / "a.tif")


def test_other_files_are_refused_in_one_line(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.new("LAB", (8, 8)).save(tmp_path / "lab.tif")
    tifffile.imwrite(tmp_path / "deep-cmyk.tif", noise(8, 8, 4, np.uint16), photometric="separated")
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in {
        "a.gif": "is a GIF file", "text.png": "no PNG, JPEG, WebP or TIFF", "empty.png": "is empty",
        "lab.tif": r"8-bit L\*a\*b\* pixels",
        "deep-cmyk.tif": "16-bit CMYK pixels", "pipe.png": "not a file", "none.png": "no picture at",
        ".": "not a file",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=said) as caught:
            pictures.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def bomb(kind: str) -> bytes:
    """A small file that says of itself that it is huge: in its sides, its channels or its tiles."""
    if kind == "sides.png":
        body = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        chunks = (b"IDAT", b"IEND")
        ends = b"".join(struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name)) for name in chunks)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + ends
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64), np.uint16), photometric="minisblack", compression="zlib", tile=(32, 32))
    whole = bytearray(file.getvalue())
    tags = {"sides.tif": (256, 257), "channels.tif": (277,), "tiles.tif": (322, 323)}[kind]
    with tifffile.TiffFile(io.BytesIO(whole)) as opened:
        for tag in tags:
            value = 60_000 if tag == 277 else 40_000
            format = "<HIH" if tag == 277 else "<HII"
            place = opened.pages.first.tags[tag].offset + 2
            struct.pack_into(format, whole, place, 3 if tag == 277 else 4, 1, value)
    return bytes(whole)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("sides.png", "40000x40000, more than 178 million pixels: cut it into parts"),
     ("sides.tif", "40000x40000, more than 178 million pixels"), ("channels.tif", "60000 channels: save it as grey"),
     ("tiles.tif", "or a bomb")],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_goes_off(tmp_path, kind, said):
    (tmp_path / kind).write_bytes(bomb(kind))
    tracemalloc.start()
    with pytest.raises(InputError, match=said):
        pictures.read(tmp_path / kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


def test_a_scanned_page_is_no_bomb(tmp_path):
    """A4 at 600 dots an inch in black and white, of which three kilobytes are enough."""
    page = Image.new("1", (4960, 7016), 1)
    page.putpixel((2000, 3000), 0)
    page.save(tmp_path / "a.tif", compression="group4")
    assert (tmp_path / "a.tif").stat().st_size < 3500
    found = pictures.read(tmp_path / "a.tif")
    assert found.size == (7016, 4960) and found.pixels[3000, 2000] == 0 and found.pixels.mean() > 254.9


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, bytes]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    kinds = [("a.png", 4, np.uint8), ("b.png", 3, np.uint16), ("c.tif", 3, np.uint8), ("d.tif", 2, np.uint16)]
    for name, channels, depth in (*kinds, ("e.jpg", 3, np.uint8), ("f.webp", 3, np.uint8)):
        pictures.write(Picture(noise(24, 31, channels, depth), ICC, (96, 96), dict(exif_of())), folder / name)
        found[name] = (folder / name).read_bytes()
    Image.fromarray(noise(24, 31, 3)).quantize(20).save(folder / "g.tif", compression="tiff_lzw")
    found["g.tif"] = (folder / "g.tif").read_bytes()
    return found


@pytest.mark.parametrize("name", ["a.png", "b.png", "c.tif", "d.tif", "e.jpg", "f.webp", "g.tif"])
def test_a_file_that_was_cut_off_is_called_damaged(tmp_path, whole_files, name):
    data, path = whole_files[name], tmp_path / name
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        path.write_bytes(data[: int(share * len(data))])
        try:
            said = "; ".join(pictures.read(path).notes)
            assert name.endswith(".tif") and share >= 0.9, "a TIFF's description comes last"
        except InputError as error:
            said = str(error)
        assert "damaged" in said and "\n" not in said


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(["a.png", "b.png", "c.tif", "d.tif", "e.jpg", "f.webp", "g.tif"]), st.data())
def test_broken_bytes_are_an_input_error_or_a_picture(whole_files, tmp_path_factory, name, data):
    broken = bytearray(whole_files[name])
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"broken-{name}"
    path.write_bytes(bytes(broken))
    try:
        found = pictures.read(path)
    except InputError as error:
        assert "\n" not in str(error) and name in str(error)
    else:
        assert found.pixels.dtype in (np.uint8, np.uint16) and 1 <= found.pixels.shape[2] <= 4
        pictures.write(found, path.with_suffix(".tiff"), replace_it=True)


def test_broken_exif_costs_nothing_but_itself(tmp_path):
    image = Image.new("RGB", (8, 9), "red")
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    found = pictures.read(tmp_path / "a.jpg")
    assert found.size == (9, 8)
    odd = Picture(found.pixels, exif={0x010F: "Maker", 0x8769: {0x9003: object()}})
    for suffix in (".png", ".tif", ".jpg"):
        (note,) = pictures.write(odd, tmp_path / f"b{suffix}")
        assert "EXIF could not be kept" in note and pictures.read(tmp_path / f"b{suffix}").size == (9, 8)
    long = Picture(found.pixels, exif={0x010E: "x" * 70_000})
    assert pictures.write(long, tmp_path / "long.jpg") == ("EXIF is too long for JPEG and is left out",)


def test_a_png_says_its_colours_as_before(tmp_path):
    chunks = ((b"gAMA", struct.pack(">I", 100_000)), (b"cHRM", struct.pack(">8I", *range(8))))
    made = Picture(noise(5, 5, 3), chunks=chunks)
    pictures.write(made, tmp_path / "a.png")
    found = pictures.read(tmp_path / "a.png")
    assert found.chunks == chunks
    assert pictures.write(found, tmp_path / "b.tif") == ("the PNG's own gamma or colour space has no place in tiff",)


def test_a_profile_for_grey_stays_with_grey(tmp_path):
    profile = ICC[:16] + b"GRAY" + ICC[20:]
    made = Picture(smooth(12, 14, 1), profile)
    notes = pictures.write(made, tmp_path / "a.webp")
    assert notes == (
        "WebP has no grey: it is stored as RGB",
        "the grey colour profile does not fit RGB and is left out",
    )
    assert pictures.read(tmp_path / "a.webp").icc is None
    assert pictures.write(made, tmp_path / "a.jpg") == () and pictures.read(tmp_path / "a.jpg").icc == profile


def test_a_folder_that_cannot_be_flushed_has_its_file_all_the_same(tmp_path, monkeypatch):
    flush, folders = os.fsync, []

    def refuse(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            folders.append(number)
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(number)

    monkeypatch.setattr(os, "fsync", refuse)
    assert pictures.write(Picture(noise(5, 6, 3)), tmp_path / "a.png") == () and folders
    assert pictures.read(tmp_path / "a.png").size == (5, 6)


def test_white_is_laid_under_in_bands(tmp_path):
    """A band is 2^20 pixels; in double precision the whole would be 8 times the input for each of several copies."""
    picture = Picture(noise(2500, 1000, 4))
    tracemalloc.start()
    laid = pictures.over_white(picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 * 8 and laid.notes == ("transparency was laid over white",)
    alpha = picture.pixels[..., 3:] / 255
    assert np.array_equal(laid.pixels, np.rint(picture.colours * alpha + 255 * (1 - alpha)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made, path = Picture(noise(5, 6, 3)), tmp_path / "a.png"
    pictures.write(made, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is there already: give --force"):
        pictures.write(Picture(noise(5, 6, 3, seed=1)), path)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(pictures.NoRoom, match="cannot be written .No space left on device"):
        pictures.write(Picture(noise(5, 6, 3, seed=1)), path, replace_it=True)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
    place = pictures._place
    monkeypatch.setattr(pictures, "_place", lambda *a: (tmp_path / "b.png").write_text("mine") and place(*a))
    with pytest.raises(InputError, match="there already"):
        pictures.write(made, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_text() == "mine", "a file that appears meanwhile is nobody's to replace"
    monkeypatch.undo()
    pictures.write(Picture(noise(5, 6, 3, seed=1)), path, replace_it=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_grey_is_written_however_its_array_came_about(tmp_path, suffix):
    pixels = noise(8, 9, 1, np.uint16)[..., 0]
    for odd in (pixels[..., None], np.asfortranarray(pixels)[..., None], pixels[::2, ::-1, None]):
        pictures.write(Picture(odd), tmp_path / f"a{suffix}", replace_it=True)
        assert np.array_equal(pictures.read(tmp_path / f"a{suffix}").pixels, odd)


def test_formats_end_somewhere():
    for kind, size, said in (
        ("webp", (16_384, 10, 3), "ends at 16383"), ("jpeg", (10, 65_501, 3), "ends at 65500"),
        ("tiff", (40_000, 40_000, 3), "4 GiB"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            pictures.check_size(kind, size, 1)
    pictures.check_size("png", (40_000, 40_000, 3), 1)
    with pytest.raises(InputError, match="GiB are free|are free: choose a smaller --scale"):
        upscale.check_room((400_000, 400_000, 4), 2, "png")
    upscale.check_room((10, 10, 4), 1, "png")
    with pytest.raises(InputError, match="are free"):
        upscale.check_room((10, 10, 4), 1, "png", beside=1 << 50)


# --- enlarging --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 4), st.floats(1, 5), st.integers(1, 40), st.booleans())
def test_bicubic_in_bands_is_imresize(height, width, channels, scale, rows, deep):
    pixels = noise(height, width, channels, np.uint16 if deep else np.uint8)
    size = tuple(max(1, round(side * scale)) for side in (height, width))
    image = torch.from_numpy(pixels.astype(np.float64) / 65535 if deep else pixels).permute(2, 0, 1)
    wanted = imresize(image, size=size).permute(1, 2, 0).numpy()
    before, upscale._BAND_BYTES = upscale._BAND_BYTES, 8 * size[1] * channels * rows
    try:
        bands = list(upscale.bicubic(pixels, size, pixels.dtype.type))
    finally:
        upscale._BAND_BYTES = before
    made = np.concatenate([band for _, band in bands])
    assert [first for first, _ in bands] == list(range(0, size[0], rows))
    if deep:
        assert np.abs(made.astype(int) - np.clip(wanted * 65535, 0, 65535)).max() <= 0.5 + 1e-6
    else:
        assert np.array_equal(made, wanted)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize(("channels", "depth"), [(3, np.uint8), (3, np.uint16), (1, np.uint8), (4, np.uint8)])
def test_a_picture_is_what_the_network_makes_of_it(weights, tile, channels, depth):
    network = cli.read_weights(weights, "safmn", 2).eval()
    pixels = np.maximum(noise(24, 40, channels, depth), 1)  # nothing is fully transparent
    large, plan, count = upscale.enlarge(Picture(pixels), upscale.Method(2, network, tile=tile), depth)
    top = np.iinfo(depth).max
    lr = torch.from_numpy(np.broadcast_to(pixels[..., : 1 if channels == 1 else 3], (24, 40, 3)).astype(np.float32))
    with torch.inference_mode():
        asked = network if tile is None else tiles.Tiled(network, 2, plan)
        sr = asked(lr.permute(2, 0, 1).contiguous()[None] / top)[0]
    wanted = (sr * top).round().clamp(0, top).permute(1, 2, 0).numpy().astype(depth)
    if channels == 1:
        grey = (0.299 * sr[0].double() + 0.587 * sr[1].double() + 0.114 * sr[2].double()).float()
        wanted = (grey * top).round().clamp(0, top)[..., None].numpy().astype(depth)
    assert large.pixels.dtype == depth and np.array_equal(large.colours, wanted)
    assert (count == 1) == (tile is None) and plan.tile == tile
    if channels == 4:
        alpha = imresize(torch.from_numpy(pixels[None, ..., 3]), scale=2)[0].numpy()
        assert np.array_equal(large.alpha, alpha)


def test_memory_is_that_of_the_output_and_a_band(monkeypatch):
    monkeypatch.setattr(upscale, "_BAND_BYTES", 1 << 18)
    picture = Picture(noise(300, 320, 4))
    upscale.enlarge(picture, upscale.Method(1))
    tracemalloc.start()
    large, _, _ = upscale.enlarge(picture, upscale.Method(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * large.pixels.nbytes, "a float copy of the whole would be 8 times as large"


@pytest.mark.skipif(not os.environ.get("SRLIB_BIG"), reason="takes minutes: set SRLIB_BIG=1 to enlarge 12 megapixels")
def test_a_large_photograph_is_enlarged_in_6_gb(tmp_path):
    from srlib import runs

    runs.save(create("safmn", 4), "safmn", tmp_path / "model.safetensors")
    pictures.write(Picture(smooth(3000, 4000, 3)), tmp_path / "a.jpg")
    code = "from srlib import cli; cli.main(); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", code, "upscale", "a.jpg", "b.png", "--model", "safmn"]
    command += ["--weights", "model.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) * 1024 < 6e9
    assert struct.unpack(">II", (tmp_path / "b.png").read_bytes()[16:24]) == (16000, 12000)  # too large for Pillow


def test_equal_channels_have_themselves_as_luma():
    levels = torch.arange(65536, dtype=torch.float32).reshape(1, 256, 256) / 65535
    assert torch.equal((upscale.luma(levels.expand(3, -1, -1)) * 65535).round(), (levels * 65535).round())


def test_hidden_black_makes_no_dark_fringe():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (250, 200, 150, 255)
    large, _, _ = upscale.enlarge(Picture(pixels), upscale.Method(3))
    seen = large.pixels[large.alpha > 0]
    assert (seen[:, :3] == (250, 200, 150)).all() and 0 < (large.alpha == 255).sum() < large.alpha.size
    empty = np.zeros((4, 4, 2), np.uint8)
    assert (upscale.enlarge(Picture(empty), upscale.Method(2))[0].pixels == 0).all()


def test_a_model_for_every_scale_takes_any(monkeypatch):
    from functools import partial

    from srlib import runs
    from srlib.models.encoders import EDSR, ENCODERS

    monkeypatch.setitem(ENCODERS, "edsr", partial(EDSR, blocks=1))
    torch.manual_seed(0)
    network = create("moeisr-lte-s-edsr").eval()
    pixels = noise(9, 14, 3)
    large, _, _ = upscale.enlarge(Picture(pixels), upscale.Method(2.5, runs.upscaler(network, 2.5)))
    with torch.inference_mode():
        sr = network(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255, size=(22, 35))[0]
    wanted = (sr * 255).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(large.pixels, wanted)


class Broken(torch.nn.Module):
    """An upscaler that fails in the way it is told."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        if isinstance(self.how, Exception):
            raise self.how
        return torch.full((1, 3, 2 * lr.shape[2], 2 * lr.shape[3]), self.how)


@pytest.mark.parametrize(
    ("how", "said"),
    [(float("nan"), "not finite"), (torch.OutOfMemoryError("x"), "memory"), (MemoryError(), "memory"),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory")],
)  # fmt: skip
def test_what_a_network_cannot_do_is_said_in_one_line(tmp_path, how, said):
    pictures.write(Picture(noise(8, 8, 3)), tmp_path / "a.png")
    job = upscale.Job(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(InputError, match=f"a.png.*{said}") as caught:
        upscale.enlarge_file(job, upscale.Method(2, Broken(how)), upscale.Saving())
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == ["a.png"]


class Tight(torch.nn.Module):
    """Nearest neighbours, twice as large, for which the memory ends at 80 pixels a side."""

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        if max(lr.shape[2:]) > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("tile", "used"), [(None, 80), (112, 64)])
def test_the_row_names_the_tiles_that_the_memory_had_room_for(tmp_path, tile, used):
    pictures.write(Picture(noise(96, 150, 3)), tmp_path / "a.png")
    job, done = upscale.Job(tmp_path / "a.png", tmp_path / "b.png"), []

    def counted(lr: torch.Tensor) -> torch.Tensor:
        made = Tight()(lr)
        done.append(lr.shape)
        return made

    found = upscale.enlarge_file(job, upscale.Method(2, counted, tile=tile), upscale.Saving())
    assert found.tile == used and found.tiles == len(done) > 2 and "out of memory" in found.notes[0]
    whole = pictures.read(tmp_path / "a.png").pixels
    assert np.array_equal(pictures.read(tmp_path / "b.png").pixels, whole.repeat(2, 0).repeat(2, 1))


def test_tiles_that_the_memory_asks_for_are_said(tmp_path):
    network = create("safmn", 2, SAFMNConfig(blocks=1, channels=8)).eval()
    picture = Picture(noise(300, 320, 3))
    assert upscale.enlarge(picture, upscale.Method(2, network, tile=64))[0].notes == ()
    large, plan, _ = upscale.enlarge(picture, upscale.Method(2, network, memory=12 << 20))
    assert f"tiles of {plan.tile} that share {plan.overlap} pixels" in large.notes[0] and "dB" not in large.notes[0]


def test_what_tiles_change_is_measured_on_a_strip_from_the_middle(monkeypatch):
    monkeypatch.setattr(tiles, "plan", lambda *a, **k: tiles.Plan(96, 32))
    network, pixels = create("safmn", 2, SAFMNConfig(blocks=1, channels=8)).eval(), noise(420, 500, 3)
    large, _, count = upscale.enlarge(Picture(pixels), upscale.Method(2, network))
    strip = torch.from_numpy(pixels[186:234, 154:346]).permute(2, 0, 1)
    wanted = tiles.difference(network, strip, 2, 96, 32)
    assert count >= 30 and 0 < wanted.largest < 255
    assert f"192x48 from the middle, {wanted.psnr:.1f} dB and at most {wanted.largest} of 255" in large.notes[0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def holiday(tmp_path) -> Path:
    """A folder of pictures with names as people give them, and what else lies in such folders."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    for k, name in enumerate(["über den Wolken.png", "-dash.jpg", "a [1].webp", "b.tif"]):
        pictures.write(Picture(smooth(20 + k, 30, 3)), folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    (folder / "deeper").mkdir()
    pictures.write(Picture(smooth(9, 9, 3)), folder / "deeper" / "c.png")
    return folder


def test_a_folder_is_enlarged_by_a_network(srlib, holiday, weights, tmp_path):
    command = ("upscale", holiday, "out", "--model", "safmn", "--scale", "2", "--weights", weights)
    code, out, err = srlib(*command, "--json")
    rows = json.loads(out)
    names = sorted(["über den Wolken.png", "-dash.jpg", "a [1].webp", "b.tif"])
    assert (code, err) == (0, "") and sorted(os.listdir(tmp_path / "out")) == names
    assert [Path(row["output"]).name for row in rows] == names and {row["status"] for row in rows} == {"done"}
    for row in rows:
        with Image.open(row["output"]) as made, Image.open(row["input"]) as given:
            assert made.size == (row["out_width"], row["out_height"]) == (2 * given.width, 2 * given.height)
            assert made.format == given.format and row["tile"] is None and row["seconds"] >= 0
    before = (tmp_path / "out" / "b.tif").read_bytes()
    (tmp_path / "out" / "-dash.jpg").unlink()
    code, out, err = srlib(*command, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["status"] for row in rows] == ["done", "kept", "kept", "kept"]
    assert err == "srlib: outputs that were there already and were left: 3; --force replaces them\n"
    code, out, _ = srlib(*command, "--force", "--tile", "16")
    assert code == 0 and " of 16" in out and "kept" not in out and (tmp_path / "out" / "b.tif").read_bytes() != before


def test_what_a_folder_holds_beside_pictures_is_named(srlib, tmp_path):
    (tmp_path / "mixed").mkdir()
    Image.fromarray(noise(5, 6, 3)).save(tmp_path / "mixed" / "a.png")
    for name in ("b.bmp", "c.GIF", "d.heic", "z.psd", "notes.txt", ".hidden"):
        (tmp_path / "mixed" / name).write_bytes(b"")
    code, _, err = srlib("upscale", "mixed", "out", "--model", "bicubic", "--scale", "2")
    assert code == 0 and os.listdir(tmp_path / "out") == ["a.png"]
    left = "b.bmp, c.GIF, d.heic and 1 more"
    assert err == f"srlib: left out, as no PNG, JPEG, WebP or TIFF by their suffix: {left}\n"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b"BM\6", "is a BMP file"),
        (b"GIF89a", "is a GIF file"),
        (b"\0\0\0\x1cftypavif", "HEIC or AVIF"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_name(content, said, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=said):
        pictures.read(tmp_path / "a.png")


def test_bicubic_is_imresize_and_all_of_a_file_is_kept(srlib, tmp_path):
    pixels = noise(21, 34, 3)
    exif = exif_of()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "in.png", icc_profile=ICC, exif=exif, dpi=(240, 240))
    code, out, err = srlib("upscale", "in.png", "out.tif", "--model", "bicubic", "--scale", "3")
    assert code == 0 and "21x34" in out and "63x102" in out and err == "srlib: in.png: turned upright as EXIF says\n"
    upright = torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, -1))).permute(2, 0, 1)
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), imresize(upright, scale=3).permute(1, 2, 0).numpy())
    found = pictures.read(tmp_path / "out.tif")
    assert found.icc == ICC and found.exif[0x0112] == 1 and found.exif[0x8769][0xA002] == 63
    assert found.dpi == pytest.approx((240, 240), abs=0.02)


@pytest.mark.parametrize(
    ("name", "channels", "depth", "target", "said"),
    [
        ("a.png", 3, np.uint16, "b.tif", ""), ("a.tif", 1, np.uint16, "b.png", ""),
        ("a.png", 4, np.uint16, "b.webp", "16 bits became 8, as webp has no more"),
        ("a.tif", 3, np.uint16, "b.jpg", "16 bits became 8, as jpeg has no more"),
        ("a.png", 4, np.uint8, "b.jpg", "transparency was laid over white"),
        ("a.png", 1, np.uint8, "b.webp", "WebP has no grey: it is stored as RGB"),
        ("a.jpg", 1, np.uint8, "b.jpg", ""), ("a.png", 2, np.uint8, "b.png", ""),
    ],
)  # fmt: skip
def test_each_kind_of_picture_comes_out_as_promised(srlib, tmp_path, name, channels, depth, target, said):
    pictures.write(Picture(smooth(20, 26, channels, depth)), tmp_path / name)
    code, _, err = srlib("upscale", name, target, "--model", "bicubic", "--scale", "2.5")
    assert code == 0 and err == (f"srlib: {name}: {said}\n" if said else "")
    found = pictures.read(tmp_path / target)
    kept = target.endswith((".png", ".tif"))
    assert found.size == (50, 65) and found.deep == (kept and depth == np.uint16)
    assert found.grey == (channels < 3 and target != "b.webp")
    assert (found.alpha is None) == (channels in (1, 3) or target == "b.jpg")
    if said.startswith("16 bits"):
        exact = smooth(20, 26, channels, depth).astype(float)[..., :3] / 257
        wanted = imresize(torch.from_numpy(exact).permute(2, 0, 1), size=(50, 65)).permute(1, 2, 0).numpy()
        assert np.abs(found.colours - wanted).mean() < 3


def test_damaged_pictures_are_said_and_the_rest_is_done(srlib, holiday, tmp_path):
    for name in ("bad.png", "bad.jpg", "bad.webp", "bad.tif"):
        pictures.write(Picture(noise(40, 40, 3)), holiday / name)
        (holiday / name).write_bytes((holiday / name).read_bytes()[:700])
    code, out, err = srlib("upscale", holiday, "out", "--model", "bicubic", "--scale", "2", "--json")
    rows = {Path(row["input"]).name: row for row in json.loads(out)}
    assert code == 1 and len(rows) == 8 and err.count("\n") == 4
    for name, row in rows.items():
        assert row["status"] == ("failed" if name.startswith("bad") else "done"), name
        assert (tmp_path / "out" / name).exists() != name.startswith("bad")
        assert not name.startswith("bad") or (str(holiday / name) in err and "damaged" in row["notes"])
    code, out, err = srlib("upscale", holiday / "bad.png", "one.png", "--model", "bicubic")
    assert code == 2 and out == "" and err.count("\n") == 1 and "bad.png is damaged" in err


def test_patterns_and_many_names(srlib, holiday, tmp_path):
    code, out, _ = srlib("upscale", "holiday/*.[jt]*", "o1", "--model", "bicubic", "--scale", "1", "--json")
    assert code == 0 and sorted(os.listdir("o1")) == ["-dash.jpg", "b.tif"]
    code, out, _ = srlib("upscale", "holiday/**/*.png", "o2", "--model", "bicubic", "--scale", "1", "--format", "jpeg")
    assert code == 0 and sorted(os.listdir("o2")) == ["c.jpg", "über den Wolken.jpg"]
    code, _, _ = srlib("upscale", "holiday/a [1].webp", "o3/", "--model", "bicubic", "--scale", "1", "--lossless")
    assert code == 0 and os.listdir("o3") == ["a [1].webp"]
    assert np.array_equal(pictures.read(Path("o3/a [1].webp")).pixels, pictures.read(holiday / "a [1].webp").pixels)


def test_names_that_begin_with_a_dash(srlib, holiday, tmp_path):
    (tmp_path / "-dash.jpg").write_bytes((holiday / "-dash.jpg").read_bytes())
    code, _, err = srlib("upscale", "--model", "bicubic", "--scale", "1", "--", "-dash.jpg", "-large.png")
    assert (code, err) == (0, "") and pictures.read(tmp_path / "-large.png").size == (21, 30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("holiday", "out.png", "--model", "bicubic"), "a folder is needed for several pictures"),
        (("holiday", "file.txt", "--model", "bicubic"), "a folder is needed"),
        (("holiday/b.tif", "out.xyz", "--model", "bicubic"), "its suffix says no format"),
        (("holiday/b.tif", "out", "--model", "bicubic"), "make the folder"),
        (("holiday/b.tif", "out.png", "--model", "bicubic", "--format", "jpeg"), "leave --format out"),
        (("holiday/b.tif", "o/", "--model", "bicubic", "--format", "gif"), "choose one of png, jpeg, webp, tiff"),
        (("holiday/b.tif", "holiday/b.tif", "--model", "bicubic", "--force"), "a picture that is to be read"),
        (("holiday", "holiday", "--model", "bicubic", "--force"), "a picture that is to be read"),
        (("twins", "o", "--model", "bicubic", "--format", "png"), "would both become o/a.png"),
        (("empty", "o", "--model", "bicubic"), "holds no PNG, JPEG, WebP or TIFF"),
        (("*.bmp", "o", "--model", "bicubic"), "matches *.bmp"),
        (("none.png", "o.png", "--model", "bicubic"), "no picture at none.png"),
        (("holiday/b.tif", "twins/a.png", "--model", "bicubic"), "twins/a.png is there already: give another name"),
        (("holiday/b.tif", "o.png", "--weights", "none.pth"), "no model: --weights go with its name"),
        (("holiday/b.tif", "o.png", "--model", "resnet"), "unknown model 'resnet'"),
        (("holiday/b.tif", "o.png", "--model", ""), "unknown model ''"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--scale", "7"), "no weights of safmn x7 come with srlib"),
        (("holiday/b.tif", "o.png", "--model", "lte-rdn"), "no weights of lte-rdn come with srlib (there are: "),
        (("holiday/b.tif", "o.png", "--scale", "0.5"), "0.5"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--beside"), "name another model"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--weights", "none.pth"), "no weights at none.pth"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--weights", "none.pth"), "bicubic has no weights"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--scale", "2.5"), "by whole numbers, not 2.5"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--scale", "0.5"), "scale 0.5 does not enlarge"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--scale", "nan"), "scale nan"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--scale", "inf"), "scale inf"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--quality", "0"), "from 1 to 100"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--memory", "-1"), "above 0"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--memory", "1"), "are for a network"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--tile", "-1"), "tile"),
        (("holiday/b.tif", "o.png", "--model", "safmn", "--tile", "32", "--overlap", "99"), "overlap"),
        (("holiday/b.tif", "o.png", "--record", "none.json"), "no record at none.json"),
        (("holiday/b.tif", "o.png", "--record", "r", "--weights", "w"), "give one of them"),
        (("holiday/b.tif", "o.png", "--model", "bicubic", "--json", "--csv"), "give one of them"),
        (("holiday/b.tif", "file.txt/o.png", "--model", "bicubic"), "no folder can be made"),
        (("holiday/b.tif",), "srlib upscale {IN}... {OUT}`. See"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(srlib, holiday, tmp_path, arguments, said):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "twins").mkdir()
    for suffix in (".png", ".jpg"):
        pictures.write(Picture(smooth(8, 8, 3)), tmp_path / "twins" / f"a{suffix}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = srlib("upscale", *arguments)
    assert code == 2 and out == "" and said in err and err.startswith("srlib: ") and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_weights_that_ship_are_used_where_none_are_named(srlib, holiday, tmp_path):
    from srlib import pretrained

    line = pretrained.find("safmn", 4).line
    code, out, err = srlib("upscale", holiday / "b.tif", "o.png")
    assert (code, err) == (0, "") and out.startswith(line) and pictures.read(Path("o.png")).size == (92, 120)
    code, out, err = srlib("upscale", holiday / "b.tif", "p.png", "--model", "safmn", "--scale", "4", "--json")
    assert code == 0 and err == f"srlib: {line}\n" and json.loads(out)[0]["status"] == "done"
    assert np.array_equal(pictures.read(Path("o.png")).pixels, pictures.read(Path("p.png")).pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_beside_has_bicubic_on_the_left(srlib, tmp_path, weights, channels):
    pictures.write(Picture(noise(9, 12, channels)), tmp_path / "a.png")
    usual = ("--scale", "2", "--model")
    both = (*usual, "safmn", "--weights", weights)
    assert srlib("upscale", "a.png", "both.png", *both, "--beside")[0] == 0
    assert srlib("upscale", "a.png", "left.png", *usual, "bicubic")[0] == 0
    assert srlib("upscale", "a.png", "right.png", *both)[0] == 0
    found, left, right = (pictures.read(Path(f"{name}.png")).pixels for name in ("both", "left", "right"))
    assert np.array_equal(found, np.concatenate([left, right], 1))


def test_the_record_of_a_run_names_model_and_scale(srlib, holiday, tmp_path, weights):
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(weights.read_bytes())
    config = {"model": "safmn", "scale": 2, "network": {}, "train": {}, "data": "photos/train"}
    (run / "config.json").write_text(json.dumps(config))
    Path("record.json").write_text(json.dumps({"run": "tiny"}))
    code, out, err = srlib("upscale", holiday / "b.tif", "o.png", "--record", "record.json")
    assert (code, err) == (0, "") and pictures.read(Path("o.png")).size == (46, 60)
    code, _, err = srlib("upscale", holiday / "b.tif", "p.png", "--record", "record.json", "--scale", "4")
    assert code == 2 and "enlarges 2 times: leave --scale out" in err


def test_a_disk_without_room_ends_it_at_once(srlib, holiday, monkeypatch):
    written = []

    def full(*arguments: Any, **options: Any) -> tuple[str, ...]:
        written.append(arguments)
        if len(written) == 1:
            return ()
        raise pictures.NoRoom("out/a [1].webp cannot be written (No space left on device)")

    monkeypatch.setattr(pictures, "write", full)
    code, out, err = srlib("upscale", "holiday", "out", "--model", "bicubic", "--scale", "2", "--json")
    assert code == 2 and len(written) == 2 and "No space left on device" in err and err.count("\n") == 1
    assert [(row["output"], row["status"]) for row in json.loads(out)] == [("out/-dash.jpg", "done")]


def test_a_folder_with_one_picture_is_done_again_as_others_are(srlib, tmp_path):
    (tmp_path / "one").mkdir()
    pictures.write(Picture(smooth(8, 9, 3)), tmp_path / "one" / "a.png")
    for source in ("one", "one/*.png"):
        for status in ("done", "kept"):
            code, out, _ = srlib("upscale", source, f"out{len(source)}", "--model", "bicubic", "--json")
            assert code == 0 and [row["status"] for row in json.loads(out)] == [status]
    (tmp_path / "one" / "a.png").write_bytes(b"\x89PNG")
    code, out, err = srlib("upscale", "one", "out", "--model", "bicubic", "--json")
    assert code == 1 and json.loads(out)[0]["status"] == "failed" and "a.png" in err


def test_a_folder_that_may_not_be_written_to(srlib, holiday, monkeypatch):
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pictures, "open", refuse, raising=False)  # as root, who runs some tests, may write anywhere
    code, out, err = srlib("upscale", holiday, "out", "--model", "bicubic", "--scale", "1")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "-dash.jpg cannot be written (Permission denied)" in err and os.listdir("out") == []


@pytest.mark.parametrize(("ends", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_process_that_is_stopped_leaves_no_half_file(tmp_path, ends, code):
    """Stopped while it writes its second picture: the first one is whole, and of the second there is nothing."""
    for name, side in (("a.png", 8), ("b.png", 900)):
        pictures.write(Picture(noise(side, side, 3)), tmp_path / name)
    command = [sys.executable, "-m", "srlib", "upscale", "a.png", "b.png", "out", "--model", "bicubic", "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background may ignore
    )  # fmt: skip
    deadline, first = time.monotonic() + 100, tmp_path / "out" / "a.png"

    def second_begun() -> bool:
        try:
            return any(not part.samefile(first) for part in tmp_path.glob("out/.*.part"))
        except FileNotFoundError:  # the first one is not there yet, or is just being moved
            return False

    while not second_begun():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(ends)
    out, err = process.communicate(timeout=60)
    assert [row["output"] for row in json.loads(out)] == ["out/a.png"]
    assert process.returncode == code and "same command goes on" in err and err.count("\n") == 1
    assert os.listdir(tmp_path / "out") == ["a.png"] and pictures.read(tmp_path / "out" / "a.png").size == (32, 32)


def environment() -> dict[str, str]:
    return os.environ | {"SRLIB_PROGRESS": "line", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def test_help_says_what_happens_to_each_kind(srlib):
    code, out, _ = srlib("upscale", "--help")
    text = " ".join(out.split())
    assert code == 0 and all(word in text for word in ("16 bits", "Grey", "Transparency", "CMYK", "EXIF", "--force"))
    assert re.search(r"Example: srlib upscale photo\.jpg large\.png", text)
