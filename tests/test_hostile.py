"""Hostile and broken input: never a traceback, never code executed, never a wrong number in silence.

Each test gives something broken to what reads it, and asks for one of two answers: InputError with one line, or what
the whole input would have given. SRLIB_FUZZ=1000 tries a thousand random examples in each test instead of a few, others
at each run.
"""

import contextlib
import io
import json
import logging
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import typing
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import typer.main
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile, PngImagePlugin

from srlib import checkpoints, cli, data, logs, metrics, papers, pictures, runs
from srlib.errors import InputError
from srlib.models import create, default_config, names, takes_scale
from srlib.models.safmn import SAFMNConfig
from srlib.train import State, TrainConfig

FUZZ = int(os.environ.get("SRLIB_FUZZ", "0"))
ROOT = Path(__file__).resolve().parent.parent
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def fuzz(examples: int) -> settings:
    """Settings of a property-based test: so many examples, always the same, or as many others as SRLIB_FUZZ says."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=FUZZ or examples, derandomize=not FUZZ, deadline=None, database=None, suppress_health_check=quiet
    )


def told(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call gives, or None where it raises InputError with one line; a warning is an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return call(*arguments, **named)
    except InputError as error:
        text = str(error)
        assert text.strip() and "\n" not in text and "Traceback" not in text, text
        return None


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes after one to three accidents: a flipped bit, a cut, bytes put in, taken out or written over."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.integers(0, max(0, min(64, len(found) - 1))), st.integers(0, max(0, len(found) - 1))))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("flip", "cut", "put", "take", "double", "extreme", "append", "zero"))):
            case "flip" if found:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del found[at:]
            case "put":
                found[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "take":
                del found[at : at + length]
            case "double":
                found[at:at] = found[at : at + length]
            case "extreme":
                value, order = draw(st.sampled_from(EXTREMES)), draw(st.sampled_from((">I", "<I", ">H", "<H")))
                packed = struct.pack(order, value & (0xFFFFFFFF if order[1] == "I" else 0xFFFF))
                found[at : at + len(packed)] = packed
            case "append":
                found += draw(st.binary(max_size=60))
            case "zero":
                found[at : at + length] = bytes(len(found[at : at + length]))
    return bytes(found)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, with the numbers that Python's json knows beyond the standard."""
    plain = st.one_of(
        st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=8),
        st.sampled_from((10**400, 1e308, -1, 0, "4", "nan", "../..", "photos/train")),
    )  # fmt: skip
    return st.recursive(plain, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part))


@st.composite
def replaced(draw: st.DrawFn, record: dict[str, Any]) -> Any:
    """A record with one of its values, however deep, taken out or replaced by any other."""
    copy = json.loads(json.dumps(record))
    place, key = copy, draw(st.sampled_from(sorted(copy)))
    while isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
        place = place[key]
        key = draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
    if isinstance(place, dict) and draw(st.integers(0, 4)) == 0:
        del place[key]
    else:
        place[key] = draw(json_values())
    return copy


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run ``srlib`` in this process, in an empty folder; gives exit code and output, having looked at what was said."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srlib", *map(str, arguments)])
        code: Any = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                cli.main()
            except SystemExit as stop:
                code = 0 if stop.code is None else stop.code
        out, err = capsys.readouterr()
        assert code in (0, 1, 2), (arguments, code, err)
        assert "Traceback" not in err and err.count("\n") <= 1, err
        said = err == "" or "weights of srlib's own" in err  # beside JSON and CSV, where they are used
        assert said if code == 0 else err.startswith("srlib: ") or code == 1 or out, (arguments, code, err)
        return code, out, err

    return run


# --- images ----------------------------------------------------------------------------------------------------------


@cache
def samples() -> dict[str, bytes]:
    """Small images of each format and of many kinds."""
    noise = np.random.default_rng(1)
    rgb = np.kron(noise.integers(0, 256, (3, 4, 3)), np.ones((6, 6, 1))).astype(np.uint8)  # 18x24
    rgb += noise.integers(0, 9, rgb.shape, dtype=np.uint8)
    picture, palette = Image.fromarray(rgb), Image.fromarray(rgb).quantize(8)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 50, zip=True)
    wide = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    alpha = Image.fromarray(np.dstack([rgb, rgb[..., 1]]))
    frames = {"save_all": True, "append_images": [picture.rotate(180)]}
    made = {
        "rgb.png": (picture, {"pnginfo": info}), "palette.png": (palette, {"transparency": 3}),
        "wide.png": (wide, {}), "alpha.png": (alpha, {}), "moving.png": (picture, frames),
        "plain.jpg": (picture, {"quality": 90}), "progressive.jpg": (picture, {"progressive": True}),
        "cmyk.jpg": (picture.convert("CMYK"), {}), "turned.jpg": (picture, {"exif": orientation}),
        "grey.jpg": (picture.convert("L"), {"restart_marker_blocks": 1}),
        "lossy.webp": (picture, {}), "lossless.webp": (alpha, {"lossless": True}), "moving.webp": (picture, frames),
        "rgb.bmp": (picture, {}), "palette.bmp": (palette, {}),
        "raw.tif": (picture, {}), "lzw.tif": (picture, {"compression": "tiff_lzw"}),
        "deflate.tif": (picture, {"compression": "tiff_adobe_deflate"}), "wide.tif": (wide, {}),
        "jpeg.tif": (picture, {"compression": "jpeg"}), "fax.tif": (picture.convert("1"), {"compression": "group4"}),
        "moving.tif": (picture, frames),
    }  # fmt: skip
    found = {}
    for name, (image, options) in made.items():
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper())
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found


@cache
def pixels(name: str) -> np.ndarray:
    """What a whole sample is decoded to."""
    return data.decode(samples()[name], name)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says it has some size, with correct sums."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + head + bytes(99)


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height), (279, 99)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 110) + bytes(102) + table + bytes(4)


BOMBS = {
    "png": png(13000, 13000, zlib.compress(bytes(1000))), "far.png": png(2**31 - 1, 2**31 - 1),
    "bmp": bmp(13000, 13000), "upside.bmp": bmp(13000, -13000),
    "tif": tiff(13000, 13000), "far.tif": tiff(10**9, 10**9),
}  # fmt: skip


@fuzz(60)
@given(st.data())
def test_a_damaged_image_is_refused_or_read(capfd: pytest.CaptureFixture[str], draws: st.DataObject) -> None:
    """What Pillow or a library below it says of the damage is not printed."""
    name = draws.draw(st.sampled_from(sorted(samples())))
    found = told(data.decode, draws.draw(mutated(samples()[name])), "photograph")
    if found is not None:
        assert found.dtype == np.uint8 and found.ndim == 3 and len(found) == 3 and found.size
        assert found.flags["C_CONTIGUOUS"]
    assert capfd.readouterr() == ("", "")


@fuzz(60)
@given(st.data())
def test_a_damaged_png_is_never_read_wrong(draws: st.DataObject) -> None:
    """Its parts have sums: whatever happens to it, it is refused or gives the same pixels."""
    name = draws.draw(st.sampled_from([name for name in sorted(samples()) if name.endswith(".png")]))
    found = told(data.decode, draws.draw(mutated(samples()[name])), name)
    assert found is None or np.array_equal(found, pixels(name))


@pytest.mark.parametrize("name", sorted(samples()))
def test_an_image_cut_off_anywhere_is_refused_or_whole(name: str) -> None:
    whole = samples()[name]
    for end in range(0, len(whole), 1 if FUZZ else 1 + len(whole) // 60):
        found = told(data.decode, whole[:end], name)
        assert found is None or np.array_equal(found, pixels(name)), end


@pytest.mark.parametrize("name", sorted(samples()))
def test_what_follows_an_image_does_not_matter(name: str) -> None:
    found = told(data.decode, samples()[name] + b"appended \0\xff\xd9", name)
    assert found is None or np.array_equal(found, pixels(name))


@fuzz(40)
@given(st.binary(max_size=300), st.sampled_from((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM")))
def test_random_bytes_are_no_image(body: bytes, start: bytes) -> None:
    assert told(data.decode, start + body, "noise") is None


def test_half_a_jpeg_is_refused_whatever_another_library_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's switch for truncated images is the whole process's: it is off while images are decoded, in any thread,
    and back as it was afterwards."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    half, filters = samples()["plain.jpg"][: len(samples()["plain.jpg"]) * 2 // 3], warnings.filters[:]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: told_quietly(half if i % 2 else samples()["plain.jpg"]), range(40)))
    assert [found is None for found in made] == [False, True] * 20
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == 5 and warnings.filters == filters
    assert not logging.getLogger("PIL").handlers


@pytest.mark.parametrize("read", ["scored", "enlarged"])
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str
)
def test_half_a_jpeg_with_an_end_is_refused(options: dict[str, Any], read: str, tmp_path: Path) -> None:
    """The decoder fills it up with grey and says nothing; an image with such a corner of its own is read."""
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    white = noise.copy()
    white[40:] = 255
    refused, whole = 0, np.empty(0)
    for pixels in (noise, white, np.full_like(noise, 128)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", **options)
        for end in (0, *range(20, 1200, 97)):
            content = buffer.getvalue() if not end else buffer.getvalue()[:-end] + b"\xff\xd9"
            if len(content) < 700:  # nothing but headers
                continue
            (tmp_path / "a.jpg").write_bytes(content)
            found = told(data.decode, content, "a") if read == "scored" else told(pictures.read, tmp_path / "a.jpg")
            if end and not options.get("progressive"):
                assert found is None or np.array_equal(found if read == "scored" else found.pixels, whole), end
                refused += found is None
            elif not end:
                assert found is not None
                whole = found if read == "scored" else found.pixels
    assert refused > 10 or options.get("progressive")


def told_quietly(content: bytes) -> np.ndarray | None:
    """``data.decode``, or None for InputError; without ``told``'s filters, which are no thread's own."""
    try:
        return data.decode(content, "photograph")
    except InputError:
        return None


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small file says of its size takes no memory: its pixels are not asked for."""
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="says that it is|cannot be decoded"):
        data.decode(BOMBS[name], name)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak of memory")
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    """As the operating system counts it, in a process of its own; the largest would be 300 GB."""
    for name, bomb in BOMBS.items():
        (tmp_path / f"bomb.{name}").write_bytes(bomb)
    script = (
        "import re, sys; from pathlib import Path\n"
        "from srlib.data import decode; from srlib.errors import InputError\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "for path in Path(sys.argv[1]).glob('bomb.*'):\n"
        "    try: decode(path.read_bytes(), path.name); print('decoded', path.name)\n"
        "    except InputError: pass\n"
        "print(peak() - before)"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024, "KiB"


def test_a_format_of_no_photograph_is_refused_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for EPS, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    assert told(data.decode, eps, "photograph.png") is None
    for kind in ("GIF", "PPM", "ICO", "TGA", "PCX"):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, kind)
        assert told(data.decode, buffer.getvalue(), "photograph.png") is None, kind


@fuzz(30)
@given(st.integers(0, 65535), st.sampled_from((1, 2, 3, 4, 5, 7, 9, 10, 12)), st.sampled_from(("jpg", "webp")))
@example(0, 3, "jpg")
@example(9, 3, "jpg")
def test_an_orientation_without_sense_turns_nothing(value: int, kind: int, suffix: str) -> None:
    body = struct.pack("<HHIHH", 0x0112, kind, 1, value, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + body + bytes(4)
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 10, 3), 99, np.uint8)).save(buffer, {"jpg": "JPEG"}.get(suffix, "WEBP"), exif=exif)
    found = told(data.decode, buffer.getvalue(), "photograph")
    assert found is None or found.shape == ((3, 10, 6) if kind == 3 and 5 <= value <= 8 else (3, 6, 10)) or kind != 3


@fuzz(8)
@given(st.data())
def test_evaluate_names_the_damaged_image(command: Callable[..., Any], draws: st.DataObject) -> None:
    """One broken image of a folder ends the scoring with its name, as a mean without it is another number."""
    folder = Path("images")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "a.png").write_bytes(samples()["rgb.png"])
    name = draws.draw(st.sampled_from(("rgb.png", "plain.jpg", "lossy.webp", "rgb.bmp")))
    (folder / f"b{Path(name).suffix}").write_bytes(samples()[name][: -draws.draw(st.integers(30, 200))])
    code, out, err = command("evaluate", "bicubic", "--data", folder, "--scale", "1", "--csv")
    assert code == 2 and not out and f"b{Path(name).suffix}" in err


def test_image_files_of_strange_kinds_are_passed_over_or_named(tmp_path: Path) -> None:
    """Folders, pipes and links in a circle are no images, whatever they are called."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    assert told(data.folder, tmp_path) is None
    (tmp_path / "real.png").write_bytes(samples()["rgb.png"])
    assert data.folder(tmp_path).names == ("real",)


@pytest.mark.parametrize("spec", ["a" * 5000, "a/" * 3000, "~nobody-here", "~nobody-here/x", "\0", "", " "])
def test_no_folder_has_such_a_name(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    assert told(data.find, spec) is None
    assert told(data.folder, spec or "nothing") is None
    assert told(data.benchmark, spec, spec) is None


def test_file_names_that_are_no_text_are_stored(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    try:
        (tmp_path / name).write_bytes(samples()["rgb.png"])
    except OSError:
        pytest.skip("this file system takes no such name")
    for _ in range(2):
        store = data.Store.open(data.folder(tmp_path), tmp_path / "cache")
        assert store.names == (os.fsdecode(b"\xff\xfe"),)
    assert np.array_equal(store.hr(0).numpy(), pixels("rgb.png"))


# --- weights ---------------------------------------------------------------------------------------------------------

TINY = SAFMNConfig(scale=2, blocks=1, channels=4, levels=2)


@cache
def tiny() -> dict[str, torch.Tensor]:
    """The weights of a small network."""
    torch.manual_seed(0)
    return create("safmn", 2, TINY).state_dict()


def fresh() -> torch.nn.Module:
    return create("safmn", 2, TINY)


@cache
def saved() -> bytes:
    """The file that a run writes of it."""
    return tensors_file(tiny(), {"srlib": "0", "model": "safmn", "config": json.dumps(asdict(TINY))})


def tensors_file(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return safetensors.torch.save(tensors, metadata)


def released(content: Any, zipped: bool = True) -> bytes:
    """The file that ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def loaded(folder: Path, content: bytes, name: str) -> torch.nn.Module | None:
    """What a file with some content gives, as srlib reads weights of its kind; None where it is refused."""
    path = folder / name
    path.write_bytes(content)
    network = told(runs.load, path) if name.endswith(".safetensors") else told(runs.load_released, fresh(), path)
    if network is not None:
        assert all(value.isfinite().all() for value in network.state_dict().values())
    return network


@fuzz(60)
@given(mutated(saved()))
def test_damaged_weights_are_refused_or_fit(tmp_path: Path, content: bytes) -> None:
    loaded(tmp_path, content, "model.safetensors")


@fuzz(60)
@given(st.booleans(), st.data())
def test_a_damaged_released_file_is_refused_or_the_same(tmp_path: Path, zipped: bool, draws: st.DataObject) -> None:
    """The zip format has sums: damage that is not refused changes no weight."""
    network = loaded(tmp_path, draws.draw(mutated(released({"params": tiny()}, zipped))), "released.pth")
    if network is not None and zipped:
        assert all(torch.equal(value, tiny()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "new.pth", "old.pth"])
def test_weights_cut_off_anywhere_are_refused(name: str, tmp_path: Path) -> None:
    whole = saved() if name.endswith("tensors") else released(tiny(), zipped=name.startswith("new"))
    for end in range(0, len(whole), 1 if FUZZ > 500 else 1 + len(whole) // 60):
        assert loaded(tmp_path, whole[:end], name) is None, end
    assert loaded(tmp_path, whole, name) is not None


class Call:
    """Something whose pickle calls a function with some arguments when it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("wrapped", ["bare", "old", "new", "values", "keys"])
@pytest.mark.parametrize("function", ["system", "eval", "exec", "run", "open", "load", "raw"])
def test_code_in_a_pickle_is_not_run(
    wrapped: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the environment asks torch for it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w').close()"
    calls = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, source),
        "exec": Call(exec, source),
        "run": Call(subprocess.run, ["touch", str(marker)]),
        "open": Call(open, str(marker), "w"),
        "load": Call(pickle.loads, pickle.dumps(Call(eval, source))),
    }
    raw = b"c__builtin__\neval\n(S" + repr(source).encode() + b"\ntR."
    if function == "raw":
        (tmp_path / "f.pth").write_bytes(raw)
        with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
            archive.writestr("archive/data.pkl", raw)
            archive.writestr("archive/version", b"3\n")
        assert loaded(tmp_path, (tmp_path / "z.pth").read_bytes(), "z.pth") is None
        content = raw
    else:
        held = {"values": {"params": tiny() | {"x": calls[function]}}, "keys": {"x": [calls[function]]}}
        held = held.get(wrapped, calls[function])
        content = pickle.dumps(held) if wrapped == "bare" else released(held, zipped=wrapped != "old")
    assert loaded(tmp_path, content, "f.pth") is None
    assert loaded(tmp_path, content, "f.safetensors") is None
    assert not marker.exists()


def changed(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return tiny() | {key: value}


KEY = "to_feat.weight"
WEIGHT = (4, 3, 3, 3)
REFUSED: dict[str, Callable[[], Any]] = {
    "nothing": dict, "list": lambda: [tiny()], "number": lambda: 7, "none": lambda: None, "text": lambda: "weights",
    "tensor": lambda: torch.zeros(3), "numbers for keys": lambda: dict(enumerate(tiny().values())),
    "one number for a key": lambda: tiny() | {5: torch.zeros(1)}, "not all tensors": lambda: tiny() | {"epoch": 3},
    "nested too deep": lambda: {"params": {"weights": {"model": tiny()}}}, "optimizer": lambda: {"optimizer": tiny()},
    "one missing": lambda: dict(list(tiny().items())[1:]), "one more": lambda: tiny() | {"foreign": torch.zeros(1)},
    "shape": lambda: changed(KEY, torch.zeros(4, 3, 3, 5)), "turned": lambda: changed(KEY, torch.zeros(3, 4, 3, 3)),
    "scalar": lambda: changed(KEY, torch.zeros(())), "no elements": lambda: changed(KEY, torch.zeros(0, 3, 3, 3)),
    "int64": lambda: changed(KEY, torch.ones(WEIGHT, dtype=torch.int64)),
    "uint8": lambda: changed(KEY, torch.ones(WEIGHT, dtype=torch.uint8)),
    "bool": lambda: changed(KEY, torch.ones(WEIGHT, dtype=torch.bool)),
    "complex": lambda: changed(KEY, torch.ones(WEIGHT, dtype=torch.complex64)),
    "sparse": lambda: changed(KEY, torch.ones(WEIGHT).to_sparse()),
    "quantised": lambda: changed(KEY, torch.quantize_per_tensor(torch.ones(WEIGHT), 0.1, 0, torch.qint8)),
    "meta": lambda: changed(KEY, torch.ones(WEIGHT, device="meta")),
    "nan": lambda: changed(KEY, torch.full(WEIGHT, math.nan)),
    "inf": lambda: changed(KEY, torch.full(WEIGHT, math.inf)),
    "one nan": lambda: changed(KEY, torch.ones(WEIGHT).index_fill(0, torch.tensor(2), math.nan)),
    "too large": lambda: changed(KEY, torch.full(WEIGHT, 1e300, dtype=torch.float64)),
    "another network": lambda: create("ssiu", 2).state_dict(), "another scale": lambda: create("safmn", 4).state_dict(),
}  # fmt: skip
TAKEN: dict[str, Callable[[], Any]] = {
    "plain": tiny, "params": lambda: {"params": tiny()}, "average first": lambda: {"params": {}, "params_ema": tiny()},
    "nested": lambda: {"model_state_dict": {"state_dict": tiny()}},
    "parallel": lambda: {f"module.{key}": value for key, value in tiny().items()},
    "double": lambda: {key: value.double() for key, value in tiny().items()},
    "parameters": lambda: {key: torch.nn.Parameter(value) for key, value in tiny().items()},
    "beside other things": lambda: {"params": tiny(), "epoch": 3, "log": [1.5, None, "x"]},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_refused(name: str, zipped: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on quantised tensors
        content = REFUSED[name]()
        file = released(content, zipped)
    assert loaded(tmp_path, file, "released.pth") is None
    if isinstance(content, dict):
        assert told(runs.load_released, fresh(), content) is None


@pytest.mark.parametrize("name", TAKEN)
def test_weights_in_another_wrapping_are_the_same(name: str, tmp_path: Path) -> None:
    network = loaded(tmp_path, released(TAKEN[name]()), "released.pth")
    assert network is not None
    assert all(torch.equal(value, tiny()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    halves = {key: value.to(dtype) for key, value in tiny().items()}
    network = loaded(tmp_path, released(halves), "released.pth")
    assert network is not None
    assert all(torch.equal(value, halves[key].float()) for key, value in network.state_dict().items())


def test_what_is_wrong_with_weights_is_named() -> None:
    for name, told_so in (("nan", f"{KEY} that are infinite or no numbers"), ("int64", f"int64 values as {KEY}")):
        with pytest.raises(InputError, match=told_so):
            runs.load_released(fresh(), REFUSED[name]())


def test_tensors_that_share_memory_or_claim_more_than_there_is(tmp_path: Path) -> None:
    """A view that repeats one number is as large as it says only when it is asked for."""
    one = torch.zeros(1)
    shared = {key: one.expand(value.shape) for key, value in tiny().items()}
    network = loaded(tmp_path, released(shared), "shared.pth")
    assert network is not None and not any(value.any() for value in network.state_dict().values())
    huge = released(changed(KEY, one.expand(10**6, 10**6)))
    assert len(huge) < 20_000 and loaded(tmp_path, huge, "huge.pth") is None


def test_a_zip_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("opened"))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", method) as archive:
            archive.writestr("archive/data.pkl", released(tiny()))
            archive.writestr("archive/data/0", bytes(10**6))
        assert told(runs.load_released, fresh(), tmp_path / "bomb.pth") is None


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle.pth").symlink_to(tmp_path / "circle.pth")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "closed.pth").write_bytes(b"")
    (tmp_path / "closed.pth").chmod(0)
    for name in ("circle.pth", "folder.safetensors", "folder.pth", "closed.pth", "missing", "a" * 5000, "\0.pth", ""):
        assert told(runs.load_released, fresh(), tmp_path / name) is None
        assert told(runs.load, tmp_path / name) is None


def raw_tensors(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file by hand."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@fuzz(60)
@given(replaced(header_of(saved())[0]))
@example(header_of(saved())[0] | {"to_feat.weight": {"dtype": "\n", "shape": [1], "data_offsets": [0, 4]}})
def test_a_header_that_lies_is_refused_or_fits(tmp_path: Path, header: Any) -> None:
    content = raw_tensors(json.dumps(header).encode(), header_of(saved())[1])
    network = loaded(tmp_path, content, "model.safetensors")
    if network is not None:
        assert all(torch.equal(value, tiny()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**63 - 1, 2**64 - 1])
def test_a_header_of_another_length_is_refused(length: int, tmp_path: Path) -> None:
    header, body = header_of(saved())
    assert loaded(tmp_path, raw_tensors(json.dumps(header).encode(), body, length), "model.safetensors") is None


def test_headers_of_no_sense_are_refused(tmp_path: Path) -> None:
    header, body = header_of(saved())
    text, first, second = json.dumps(header).encode(), *sorted(header.keys() - {"__metadata__"})[:2]
    twice = text[:-1] + b"," + json.dumps({first: header[first] | {"dtype": "I32"}}).encode()[1:]
    overlapping = json.dumps(header | {first: header[second]}).encode()
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    eight = text.replace(b"F32", b"F8_E4M3")
    for wrong in (twice, overlapping, deep, eight, b"", b"null", b"[]", b"{}", b"{", b"\xff"):
        assert loaded(tmp_path, raw_tensors(wrong, body), "model.safetensors") is None, wrong[:40]


def config_values() -> st.SearchStrategy[dict[str, Any]]:
    """A configuration of SAFMN in which one or two fields have any value, or which has a field that there isn't."""
    known = [field.name for field in fields(TINY)]
    value = st.one_of(json_values(), st.integers(-2, 40), st.sampled_from((10**9, 2**63, 1025, 1024, True, "none")))
    return st.dictionaries(st.sampled_from([*known, "depth"]), value, min_size=1, max_size=2)


@fuzz(60)
@given(config_values())
@example({"channels": 10**9})
@example({"blocks": 10**9})
@example({"channels": 1024, "blocks": 1024})
@example({"levels": 0})
@example({"depth": 3})
def test_a_configuration_of_another_network_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    """Before memory is taken for the network that it asks for."""
    config = asdict(TINY) | values
    metadata = {"model": "safmn", "config": json.dumps(config)}
    network = loaded(tmp_path, tensors_file(tiny(), metadata), "model.safetensors")
    if network is not None:
        same = {name: value for name, value in config.items() if name not in ("pooling", "gate", "modulation")}
        assert same == {name: asdict(TINY)[name] for name in same}


@pytest.mark.parametrize("name", names())
def test_every_network_can_be_looked_at_without_memory(name: str) -> None:
    """What ``load`` does before it builds the network of a file."""
    scale = 4 if takes_scale(name) else None
    with torch.device("meta"):
        network = create(name, scale)
    assert all(value.is_meta for value in network.state_dict().values())


@fuzz(30)
@given(st.text(max_size=30), st.one_of(st.text(max_size=30), json_values().map(json.dumps)))
@example("safmn", "[" * 100_000)
@example("safmn", "{}")
@example("nothing", "{}")
@example("ssiu", json.dumps(asdict(TINY)))
def test_metadata_of_no_network_are_refused(tmp_path: Path, model: str, config: str) -> None:
    metadata = {"model": model, "config": config}
    assert loaded(tmp_path, tensors_file(tiny(), metadata), "model.safetensors") is None


@cache
def states() -> dict[int, bytes]:
    """The files of a training's states after 2 and 4 steps."""
    torch.manual_seed(0)
    state = State(fresh(), TrainConfig(steps=9))
    found = {}
    for step in range(1, 5):
        for parameter in state.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
        state.schedule.step()
        state.step = step
        found[step] = checkpoints.encode(state.parts() | {"rows": [step]})
    return {2: found[2], 4: found[4]}


def weights_after(step: int) -> dict[str, torch.Tensor]:
    return checkpoints.decode(states()[step])["model"]


@fuzz(30)
@given(st.data())
def test_a_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], draws: st.DataObject
) -> None:
    """And nothing of it stays: weights, optimiser and schedule are those of one step."""
    for step, content in states().items():
        damaged = draws.draw(mutated(content)) if step == 4 else content
        (tmp_path / f"state-{step}.pt").write_bytes(damaged)
    state = State(fresh(), TrainConfig(steps=9))
    extra = checkpoints.States(tmp_path).restore(state)
    err = capfd.readouterr().err
    assert state.step in (2, 4) and extra == {"rows": [state.step]} and state.schedule.last_epoch == state.step
    assert all(torch.equal(value, weights_after(state.step)[key]) for key, value in state.model.state_dict().items())
    assert err.count("\n") == (state.step == 2) and err.startswith("srlib: state-4.pt is damaged" if err else "")


@pytest.mark.parametrize("function", ["plain", "zipped"])
def test_code_in_a_state_is_not_run(function: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    call = Call(eval, f"open({str(marker)!r}, 'w').close()")
    content = pickle.dumps(call) if function == "plain" else released({"model": call})
    (tmp_path / "state-4.pt").write_bytes(content)
    state = State(fresh(), TrainConfig(steps=9))
    assert checkpoints.States(tmp_path).restore(state) == {} and state.step == 0
    assert not marker.exists()


# --- tables and logs -------------------------------------------------------------------------------------------------

LOG = "step,loss,lr,seconds\r\n" + "".join(f"{step},0.{step},0.001,{step}.5\r\n" for step in (10, 20, 30, 40))


@fuzz(100)
@given(mutated(LOG.encode()))
def test_a_damaged_log_is_refused_or_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    rows = told(logs.read_csv, tmp_path / "log.csv") or []
    for row in rows:
        assert tuple(row) in (logs.Log.TRAINING, logs.Log.VALIDATION) and isinstance(row["step"], int)
        assert math.isfinite(row["seconds"])
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))


def test_a_log_cut_off_anywhere_gives_its_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG, newline="")
    whole = logs.read_csv(tmp_path / "log.csv")
    assert [row["step"] for row in whole] == [10, 20, 30, 40]
    for end in range(len(LOG) + 1):
        (tmp_path / "log.csv").write_text(LOG[:end], newline="")
        assert logs.read_csv(tmp_path / "log.csv") == whole[: max(0, LOG[:end].count("\n") - 1)]


WRONG_LINES = {
    "no number": ("0.20", "low"), "a letter": ("0.20", "0.2O"), "grouped": ("0.20", "0_20"), "empty": ("0.20", ""),
    "step not whole": ("20,", "20.0,"), "step negative": ("20,", "-20,"), "twice": ("20,0", "10,0"),
    "another column": ("lr", "rate"),
    "a column more": ("20,", "20,7,"), "a column less": ("20,0.20,", "20,"), "an open quote": ("20,0", '"20,0'),
    "zeros": ("20,0", "\0\0\0"), "lr infinite": ("0.001,20", "inf,20"), "huge step": ("20,", "1" * 5000 + ","),
    "other digits": ("20,", "\u0662\u0660,"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LINES)
def test_a_log_with_a_wrong_line_is_refused(name: str, tmp_path: Path) -> None:
    """Not passed over: what a reader drew of the rest would look whole."""
    wrong = LOG.replace(*WRONG_LINES[name], 1)
    assert wrong != LOG
    (tmp_path / "log.csv").write_text(wrong, newline="", encoding="utf-8")
    assert told(logs.read_csv, tmp_path / "log.csv") is None


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\r\n", "\n")])
def test_a_log_that_an_editor_saved_is_the_same(change: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LOG, newline="")
    (tmp_path / "b.csv").write_text(change(LOG), newline="", encoding="utf-8")
    assert logs.read_csv(tmp_path / "a.csv") == logs.read_csv(tmp_path / "b.csv")


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing.csv"):
        assert told(logs.read_csv, wrong) is None


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the printed tables that the library reads instead of its own."""
    folder = tmp_path / "printed"
    shutil.copytree(papers._DATA, folder)
    monkeypatch.setattr(papers, "_DATA", folder)
    return folder


@fuzz(60)
@given(st.sampled_from(("safmn_table5", "ssiu_settings", "moeisr_set14", "seemore_table3b")), st.data())
def test_a_damaged_table_is_refused_or_read(printed: Path, name: str, draws: st.DataObject) -> None:
    path, whole = printed / f"{name}.csv", (papers.Path(papers.__file__).parent / "data" / f"{name}.csv").read_bytes()
    path.write_bytes(draws.draw(mutated(whole)))
    rows = told(papers._read, path)
    columns = whole.splitlines()[0].decode().split(",")
    for row in rows or ():
        assert list(row) == columns and all(isinstance(value, str) and value.isprintable() for value in row.values())


TABLE_LINE = "Baseline,group=Baseline,4,,params,239.52,K,"
WRONG_CELLS = {
    "scale": TABLE_LINE.replace("4", "four"), "scale 0": TABLE_LINE.replace(",4,", ",0,"), "no cells": "no",
    "nan": TABLE_LINE.replace("239.52", "nan"), "infinite": TABLE_LINE.replace("239.52", "Infinity"),
    "power": TABLE_LINE.replace("239.52", "2e9"), "comma": TABLE_LINE.replace("239.52", "239;52"),
    "negative": TABLE_LINE.replace("239.52", "-239.52"), "empty": TABLE_LINE.replace("239.52", ""),
    "metric": TABLE_LINE.replace("params", "parameters"), "unit": TABLE_LINE.replace(",K,", ",k,"),
    "one more": TABLE_LINE + ",x", "one less": TABLE_LINE[:-1], "open quote": '"' + TABLE_LINE,
    "zero byte": TABLE_LINE.replace("Base", "Ba\0se"), "twice": TABLE_LINE + "\n" + TABLE_LINE,
    "twice and different": TABLE_LINE + "\n" + TABLE_LINE.replace("239", "240"), "blank": "",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CELLS)
def test_a_table_with_a_wrong_line_is_refused(name: str, printed: Path, command: Callable[..., Any]) -> None:
    path = printed / "safmn_table3.csv"
    whole = path.read_text(encoding="utf-8")
    assert TABLE_LINE in whole
    path.write_text(whole.replace(TABLE_LINE, WRONG_CELLS[name], 1), encoding="utf-8")
    code, out, err = command("table", "safmn", "3", "--csv")
    assert code == 2 and not out and "safmn_table3.csv" in err


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_a_table_that_an_editor_saved_is_the_same(change: Callable[[str], str], printed: Path) -> None:
    before = papers.table("safmn", 3, counts=False)
    path = printed / "safmn_table3.csv"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8", newline="")
    assert papers.table("safmn", 3, counts=False) == before


# --- records ---------------------------------------------------------------------------------------------------------


@cache
def score_record() -> dict[str, Any]:
    """What ``srlib evaluate bicubic --out`` would write of Set5."""
    one = {
        "dataset": "Set5", "fingerprint": "0", "lr_origin": "matlab-bicubic", "scale": 4, "psnr": 28.42, "ssim": 0.8104,
        "protocol": metrics.protocol("matlab-luma" if "matlab-luma" in metrics.PROTOCOLS else "matlab").record(),
        "images": [{"name": "baby", "psnr": 28.42, "ssim": 0.8104}],
    }  # fmt: skip
    one["protocol"]["name"] = papers._module("safmn").BICUBIC_PROTOCOL
    return {"model": "bicubic", "scale": 4, "commit": "0", "scores": [], "bicubic": [one]}


@fuzz(60)
@given(st.one_of(json_values(), replaced(score_record()), replaced(score_record())))
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"psnr": 10**400}]})
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"psnr": True}]})
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"ssim": 8104.0}]})
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"psnr": 1e308}]})
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"scale": [4]}]})
@example(score_record() | {"bicubic": [score_record()["bicubic"][0] | {"dataset": {"Set5": 1}}]})
def test_a_damaged_record_fills_no_cell_with_what_is_no_score(tmp_path: Path, record: Any) -> None:
    (tmp_path / "bicubic-x4.json").write_text(json.dumps(record))
    table = told(papers.table, "safmn", 1, counts=False, records=tmp_path)
    for cell in table.cells if table else ():
        limit = {"psnr": 200, "ssim": 1}.get(cell.metric, math.inf)
        assert cell.ours is None or (math.isfinite(cell.ours) and abs(cell.ours) <= limit)
        assert cell.ours_text.replace(".", "").lstrip("-").isdigit() or cell.ours is None


def test_a_whole_record_fills_its_cells(tmp_path: Path) -> None:
    (tmp_path / "bicubic-x4.json").write_text(json.dumps(score_record()))
    table = papers.table("safmn", 1, counts=False, records=tmp_path)
    assert table.cell("Bicubic", "psnr", 4, "Set5").ours == 28.42


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"\0", b"9" * 10_000])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert told(runs.read_json, path) is None
    assert told(papers.table, "safmn", 1, counts=False, records=tmp_path) is None


@cache
def parts() -> dict[str, Any]:
    """What the files of a finished run hold, and the record of it."""
    settings = TrainConfig(steps=2, batch=1, patch=8)
    config = runs.RunConfig("safmn", 2, asdict(TINY), settings, "images", "0", "0", "0")
    held_out = score_record()["bicubic"][0] | {"scale": 2}
    parts = {
        "config": config.record(), "metrics": {"steps": 2, "loss": 0.5, "collapsed_at": None}, "held_out": held_out,
        "provenance": {"commit": "0"},
    }  # fmt: skip
    return parts | {"record": {"run": config.slug} | parts}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run's folder, with the record of it beside it, in which some parts are others; gives the
    folder."""

    def write(**others: Any) -> Path:
        folder = tmp_path / "runs" / parts()["record"]["run"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(saved())
        for name, part in (parts() | others).items():
            path = tmp_path / "record.json" if name == "record" else folder / f"{name}.json"
            path.write_text(json.dumps(part))
        return folder

    return write


@fuzz(40)
@given(st.data())
def test_a_damaged_run_is_refused_or_scored(
    run: Callable[..., Path], command: Callable[..., Any], draws: st.DataObject
) -> None:
    """As a record, or as the folder that it names."""
    Path("images").mkdir(exist_ok=True)
    Path("images/a.png").write_bytes(samples()["rgb.png"])
    name = draws.draw(st.sampled_from(("record", "config", "config")))
    folder = run(**{name: draws.draw(st.one_of(replaced(parts()[name]), replaced(parts()[name]), json_values()))})
    options = (folder.parent.parent / "record.json", "--runs", folder.parent, "--data", "images")
    code, out, _ = command("evaluate", "--record", *options, "--json")
    if code == 0:
        assert [(row["model"], row["scale"]) for row in json.loads(out)] == [("safmn", 2), ("bicubic", 2)]
    code, *_ = command("train", "safmn", "--fine-tune", *options, "--held-out", "images")
    assert code == 2, "no patch fits into the image"


@fuzz(40)
@given(st.sampled_from(("config", "metrics", "held_out")), st.data())
def test_parts_of_a_run_are_refused_or_whole(run: Callable[..., Path], name: str, draws: st.DataObject) -> None:
    one = runs.Run(run(**{name: draws.draw(st.one_of(replaced(parts()[name]), json_values()))}))
    found, ending = told(getattr, one, name), told(lambda: one.ending)
    assert ending is None or "step" in ending
    if name == "held_out" and found:
        assert "nan" not in f"{found['psnr']:.2f} {found['ssim']:.4f}"


def test_a_whole_run_is_scored(run: Callable[..., Path], command: Callable[..., Any]) -> None:
    Path("images").mkdir()
    Path("images/a.png").write_bytes(samples()["wide.png"])
    folder = run()
    record = folder.parent.parent / "record.json"
    code, out, _ = command("evaluate", "--record", record, "--runs", folder.parent, "--data", "images", "--json")
    assert code == 0 and json.loads(out)[0]["scale"] == 2


def test_a_run_whose_weights_are_of_another_network_is_not_scored_as_its_own(run: Callable[..., Path]) -> None:
    folder = run(config=parts()["config"] | {"model": "ssiu"})
    assert told(runs.Run(folder).network) is None


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "../../x", "a/b", "\0", "a" * 5000, "\ud800", "\udcff"])
def test_a_record_that_names_a_place_elsewhere_is_refused(name: str, command: Callable[..., Any]) -> None:
    Path("record.json").write_text(json.dumps({"run": name}))
    code, _, err = command("evaluate", "--record", "record.json")
    assert code == 2 and err


# --- settings --------------------------------------------------------------------------------------------------------


def hostile() -> st.SearchStrategy[Any]:
    """A value of any kind."""
    plain = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=6), st.integers(),
        st.sampled_from((10**400, -(10**400), 2**63, 1e308, math.nan, math.inf, b"4", object(), "4", int, Ellipsis)),
    )  # fmt: skip
    return st.one_of(plain, st.lists(plain, max_size=3), st.lists(plain, max_size=3).map(tuple), st.sets(st.integers()))


def settings_of(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Any values for some of a dataclass's fields."""
    return st.dictionaries(st.sampled_from([field.name for field in fields(kind)]), hostile(), max_size=3)


@fuzz(150)
@given(settings_of(TrainConfig))
@example({"betas": None})
@example({"betas": (0.9,)})
@example({"lr": "1e-3"})
@example({"lr": 10**400})
@example({"milestones": [1]})
@example({"scales": (1, "4")})
@example({"ema_decay": math.nan})
def test_settings_of_a_training_are_refused_or_sound(values: dict[str, Any]) -> None:
    config = told(TrainConfig, **values)
    if config is not None:
        assert json.loads(json.dumps(asdict(config), allow_nan=False))
        assert told(runs.at_length, config, 10) is not None
        assert float(config.lr) > 0 and sum(map(float, (*config.betas, *config.scales, *config.expert_weights))) >= 0


@fuzz(150)
@given(st.sampled_from(("safmn", "seemore-t", "ssiu", "moeisr-lte-s-edsr")), st.data())
@example("safmn", None)
def test_a_networks_configuration_is_refused_or_sound(model: str, draws: st.DataObject | None) -> None:
    usual = default_config(model)
    values = {"channels": 2**62 * 4} if draws is None else draws.draw(settings_of(type(usual)))
    config = told(replace, usual, **values)
    numbers = [n for v in vars(config).values() for n in (v if isinstance(v, tuple) else (v,))] if config else []
    assume(not any(isinstance(number, int) and 64 < number <= 1024 for number in numbers) or not values)
    if config is not None:
        assert json.loads(json.dumps(asdict(config), allow_nan=False))
        with torch.device("meta"):
            told(create, model, 2 if takes_scale(model) else None, config)


@fuzz(150)
@given(settings_of(metrics.Protocol))
@example({"luma": None})
@example({"ssim_window": "11"})
@example({"ssim_sigma": 0})
@example({"border_at": ((4, None),)})
def test_a_protocol_is_refused_or_sound(values: dict[str, Any]) -> None:
    assume(isinstance(values.get("name", ""), str) and isinstance(values.get("about", ""), str))
    protocol = told(metrics.Protocol, **{"name": "own", "about": ""} | values)
    assume(protocol is None or (protocol.ssim_window < 100 and isinstance(protocol.lr_origin, str)))
    if protocol is not None:
        assert protocol.border(4) >= 0 and json.dumps(protocol.record(), allow_nan=False)
        image = torch.linspace(0, 1, 3 * 120 * 120).view(3, 120, 120)
        for metric in (metrics.psnr, metrics.ssim):
            found = told(metric, image, image * 0.9, protocol, 2)
            assert found is None or not found.isnan().any()


# --- the command line ------------------------------------------------------------------------------------------------

VALUES = (
    "", " ", "-", "--", "-1", "0", "1", "2", "4", "3", "nan", "inf", "1e9", "99999999999999999999", "bicubic", "safmn",
    "ssiu", "moeisr", "matlab", "smoke", "short", "paper", "cpu", "cuda", "auto", "images", "images/a.png",
    "record.json", "model.pth", "empty", "missing", "missing/deeper", "images/a.png/b", "null", "photos",
    "photos/none", "Set5", "*",
    "~nobody-here", "a" * 300, "\u00e9\u202e\U0001f600", "[bold]", "[/red]", "\n", "'\"", "$(touch ran)", ";touch ran",
    "32-true", "\udcff",
)  # fmt: skip


class Reached(Exception):
    """A command came to the work that the tests do without."""


def refuse(*arguments: Any, **named: Any) -> typing.NoReturn:
    raise Reached


def commands() -> list[tuple[tuple[str, ...], Any]]:
    """Every command there is, with the words that call it."""
    found, waiting = [], [((), typer.main.get_command(cli.app))]
    while waiting:
        words, one = waiting.pop()
        if hasattr(one, "commands"):
            waiting += [((*words, name), below) for name, below in one.commands.items()]
        else:
            found.append((words, one))
    return sorted(found, key=lambda pair: pair[0])


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command line: a command, values for its arguments, some of its options, each with any value."""
    words, one = draw(st.sampled_from(commands()))
    value = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), st.text(max_size=6))
    value = value.filter(lambda text: "\0" not in text and not os.path.isabs(text))
    line = list(words)
    for parameter in one.params:
        if parameter.param_type_name == "argument":
            one_value = parameter.nargs == 1
            line += draw(st.lists(value, min_size=one_value, max_size=1 if one_value else 2))
    options = [option for option in one.params if option.param_type_name == "option" and option.name != "help"]
    for option in draw(st.lists(st.sampled_from(options), max_size=3, unique_by=id)) if options else ():
        line.append(draw(st.sampled_from(option.opts)))
        line += [] if option.is_flag else [draw(value)]
    return line + draw(st.lists(value, max_size=1)) * draw(st.booleans())


@pytest.fixture
def workless(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``command`` among some files, without what takes long: training, timing, counting and fetching."""
    Path("images").mkdir()
    Path("empty").mkdir()
    Path("images/a.png").write_bytes(samples()["rgb.png"])
    Path("record.json").write_text(json.dumps({"run": "none"}))
    Path("model.pth").write_bytes(released(tiny()))
    if hasattr(os, "mkfifo"):
        with contextlib.suppress(PermissionError):
            os.mknod("null", 0o20666, os.makedev(1, 3))
    long = ("runs.train_or_load", "papers.all_tables", "papers.table", "complexity.count", "complexity.in_units")
    for target in (*long, "sources.get", "doctor.costs"):
        monkeypatch.setattr(f"srlib.{target}", refuse)
    monkeypatch.setattr(cli, "default_sets", refuse)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            return command(*arguments)
        except Reached:
            return 0, "", ""

    return run


@fuzz(150)
@given(lines())
@example(["evaluate", "bicubic", "--data", "a" * 300 * 20])
@example(["evaluate", "bicubic", "--data", "~nobody-here/x"])
@example(["train", "safmn", "--record", "null"])
@example(["evaluate", "--record", "null"])
@example(["speed", "liif-edsr", "--scale", "99999999999999999999"])
@example(["complexity", "liif-edsr", "--scale", "99999999999999999999"])
@example([])
def test_a_command_line_of_anything_is_one_line(workless: Callable[..., Any], line: list[str]) -> None:
    workless(*line)
    assert not Path("ran").exists() and Path("images/a.png").exists()
    assert not os.path.lexists("null") or Path("null").is_char_device(), "what is no file is never replaced"


USUAL = {
    ("train",): ["safmn", "--data", "images", "--held-out", "images"], ("evaluate",): ["bicubic", "--data", "images"],
    ("upscale",): ["images", "made", "--model", "bicubic"], ("table",): ["safmn", "3"], ("tables",): ["tables"],
    ("complexity",): ["safmn"], ("speed",): ["safmn"], ("data", "get"): ["Set5"],
    ("keep",): ["record.json", "--name", "a", "--into", "kept"],
}  # fmt: skip


@pytest.mark.parametrize("value", ["~nobody-here", "a" * 6000, "a/" * 3000, "", "\udcff", "images/a.png/b", "null"])
@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_each_option_takes_any_value(words: tuple[str, ...], value: str, workless: Callable[..., Any]) -> None:
    """One at a time, beside what the command usually has."""
    one = dict(commands())[words]
    options = [option for option in one.params if option.param_type_name == "option" and not option.is_flag]
    for option in options:
        workless(*words, *USUAL.get(words, []), option.opts[0], value)
    for place in range(len(USUAL.get(words, []))):
        workless(*words, *USUAL[words][:place], value, *USUAL[words][place + 1 :])
    assert not os.path.lexists("null") or Path("null").is_char_device(), "what is no file is never replaced"


def shell(line: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[bytes]:
    """A shell's command line with $SRLIB for ``srlib``, with some variables set, or unset by None."""
    known = dict(os.environ) | {"PYTHONPATH": str(ROOT), "SRLIB": f"{sys.executable} -m srlib"}
    known |= {"SRLIB_CACHE": str(cwd / "cache"), "SRLIB_DATA": None} | environment
    known = {key: value for key, value in known.items() if value is not None}
    done = subprocess.run(["bash", "-c", line], capture_output=True, cwd=cwd, env=known, stdin=subprocess.DEVNULL)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    return done


TABLE = "$SRLIB table safmn 5 --csv"


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
class TestSurroundings:
    """What a shell or a scheduler may do to the process."""

    def test_a_reader_that_leaves(self, tmp_path: Path) -> None:
        done = shell(f"{TABLE} | true; echo ${{PIPESTATUS[0]}}", tmp_path)
        assert done.stdout.strip() in (b"0", b"1") and not done.stderr

    def test_closed_streams(self, tmp_path: Path) -> None:
        done = shell(f"{TABLE} <&- >&-; echo $?; {TABLE} 2>&- | tail -n 1; $SRLIB nothing 2>&-; echo $?", tmp_path)
        assert done.stdout.split(b"\n")[0] == b"0" and done.stdout.split(b"\n")[-2] == b"2" and not done.stderr

    def test_a_terminal_without_letters(self, tmp_path: Path) -> None:
        plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
        assert shell("$SRLIB table ssiu 4", tmp_path, **plain).returncode == 0
        done = shell("$SRLIB table sáfmn 5", tmp_path, **plain)
        assert done.returncode == 2 and done.stderr.startswith(b"srlib: unknown paper")

    def test_no_home_and_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "gone").mkdir()
        done = shell(f"cd gone && rmdir ../gone && {TABLE}", tmp_path, HOME=None, USER=None)
        assert done.returncode == 2 and done.stderr.startswith(b"srlib: the working folder")
        assert shell(TABLE, tmp_path, HOME=None, USER=None).returncode == 0

    def test_file_names_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        for i, name in enumerate((b"\xff[bold]\xfe.png", b"a\nb.png")):
            try:
                (tmp_path / "images" / os.fsdecode(name)).write_bytes(samples()["rgb.png"])
            except OSError:
                pytest.skip(f"this file system takes no such name ({i})")
        done = shell("$SRLIB evaluate bicubic --scale 1 --data images --images", tmp_path)
        assert done.returncode == 0 and b"[bold]" in done.stdout and not done.stderr


# --- pictures to enlarge ---------------------------------------------------------------------------------------------


@cache
def picture(name: str) -> np.ndarray:
    """What ``srlib upscale`` reads of a whole sample."""
    path = Path(os.devnull).parent / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_bytes", lambda path: samples()[name])
        return pictures.read(path).pixels


@fuzz(80)
@given(st.data())
def test_a_damaged_picture_is_refused_or_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], draws: st.DataObject
) -> None:
    name = draws.draw(st.sampled_from([name for name in sorted(samples()) if not name.endswith(".bmp")]))
    (tmp_path / name).write_bytes(draws.draw(mutated(samples()[name])))
    found = told(pictures.read, tmp_path / name)
    if found is not None:
        assert found.pixels.dtype in (np.uint8, np.uint16) and found.pixels.shape[2] in (1, 2, 3, 4)
        assert not name.endswith(".png") or np.array_equal(found.pixels, picture(name))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in sorted(samples()) if not name.endswith(".bmp")])
def test_a_picture_cut_off_anywhere_is_refused_or_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = samples()[name]
    for end in range(0, len(whole), 1 if FUZZ else 1 + len(whole) // 60):
        (tmp_path / name).write_bytes(whole[:end])
        found = told(pictures.read, tmp_path / name)
        assert found is None or np.array_equal(found.pixels, picture(name)), end


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_no_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    (tmp_path / name).write_bytes(BOMBS[name])
    assert told(pictures.read, tmp_path / name) is None


@fuzz(10)
@given(st.data())
def test_upscale_names_the_damaged_picture_and_goes_on(
    workless: Callable[..., Any], capsys: pytest.CaptureFixture[str], draws: st.DataObject
) -> None:
    """Exit code 1, and the others are there."""
    shutil.rmtree("made", ignore_errors=True)
    name = draws.draw(st.sampled_from(("rgb.png", "plain.jpg", "lossy.webp", "raw.tif")))
    path = Path(f"images/b{Path(name).suffix}")
    path.write_bytes(samples()[name][: -draws.draw(st.integers(30, 300))])
    code, _, err = workless("upscale", "images", "made", "--model", "bicubic", "--scale", "2")
    path.unlink()
    assert code == 1 and str(path) in err and [made.name for made in Path("made").iterdir()] == ["a.png"]
