"""Which files are enlarged into which, what becomes of each kind of picture, and that one failure stops no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srlib import pictures, upscale
from srlib.errors import InputError
from srlib.pictures import Picture
from srlib.resize import imresize
from srlib.upscale import Job, enlarge, enlarge_file, jobs

ROOT = Path(__file__).resolve().parent.parent


def nearest(image: Tensor) -> Tensor:
    """A network that repeats each pixel."""
    return F.interpolate(image, scale_factor=2, mode="nearest")


def noise(channels: int = 3, depth: type = np.uint8, size: tuple[int, int] = (9, 13)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max + 1, (*size, channels)).astype(depth)


def save(path: Path, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, "JPEG" if "j" in path.suffix else "PNG")
    return path


def names(made: list[Job], out: Path) -> dict[str, str]:
    return {job.source.name: str(job.target.relative_to(out)) for job in made}


def test_a_folder_keeps_its_tree_and_names_what_it_leaves_out(tmp_path):
    home, out = tmp_path / "holiday", tmp_path / "holiday" / "large"
    for name in ("b.png", "sub/a.jpg", "sub/deeper/c.jfif", "v1.2", "a.b.gif", ".hidden/d.png", "large/old.png"):
        save(home / name)
    (home / "diary.txt").write_text("not a picture")
    made, notes = jobs([str(home)], str(out))
    assert names(made, out) == {
        "b.png": "b.png",
        "a.jpg": "sub/a.jpg",
        "c.jfif": "sub/deeper/c.jfif",
        "v1.2": "v1.2.png",  # of a name without a picture's suffix nothing is replaced
        "a.b.gif": "a.b.png",
    }
    assert notes == (f"{home}: left out, no images: diary.txt",)
    assert names(jobs([str(home)], str(out), "webp")[0], out)["a.jpg"] == "sub/a.webp"
    assert names(jobs([str(home / "sub")], str(home))[0], home) == {"a.jpg": "a.jpg", "c.jfif": "deeper/c.jfif"}


@pytest.mark.parametrize("folder", ["scan [1]", "scan 1", "100% *"])
def test_patterns_match_and_brackets_may_be_part_of_a_name(tmp_path, folder):
    save(tmp_path / folder / "a.jpg")
    save(tmp_path / folder / "b.png")
    made, _ = jobs([str(tmp_path / folder / "*.jpg")], str(tmp_path / "out"))
    assert names(made, tmp_path / "out") == {"a.jpg": "a.jpg"}


def test_one_file_goes_into_a_file_or_a_folder_also_by_a_pattern_and_a_quoted_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = save(tmp_path / "one" / "a.jpg")
    for source in (str(tmp_path / "one" / "*.jpg"), "~/one/a.jpg", "~/one/*.jpg"):
        assert jobs([source], "~/large.png")[0] == [Job(one, tmp_path / "large.png")]
    assert jobs(["~/one/a.jpg"], "~/large")[0] == [Job(one, tmp_path / "large" / "a.jpg")]
    assert jobs(["~/one"], "~/large.v2")[0] == [Job(one, tmp_path / "large.v2" / "a.jpg")]


def test_what_cannot_be_is_one_line(tmp_path):
    one, other = str(save(tmp_path / "a.png")), str(save(tmp_path / "sub" / "a.png"))
    for sources, out, said in (
        ([one, other], "out", "a.png and .* would both become"),
        ([one], str(tmp_path), "a.png is a picture that is to be read"),
        ([one], "large.gif", "another format than .png, .jpg"),
        ([one, str(tmp_path / "sub")], one, "is a file, and several pictures need a folder"),
        ([str(tmp_path / "*.tif")], "out", "no pictures in .*tif: name files"),
    ):
        with pytest.raises(InputError, match=said) as error:
            jobs(sources, out)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--format"):
        jobs([one], "large.png", "webp")


@pytest.mark.parametrize("scale", [2, 2.5, 3.3])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_bicubic_in_bands_is_imresize(monkeypatch, scale, depth):
    monkeypatch.setattr(upscale, "_ROWS", 8)
    pixels = noise(3, depth, (15, 21))
    made = enlarge(Picture(pixels), None, scale).pixels.transpose(2, 0, 1)
    whole = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    whole = whole if depth == np.uint8 else whole.to(torch.float64)
    wanted = imresize(whole, size=made.shape[1:]).numpy().clip(0, np.iinfo(depth).max)
    assert made.dtype == depth and np.array_equal(made, np.rint(wanted).astype(depth))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_is_what_the_network_makes_of_it(channels, depth):
    """Colours by the network, with all their bits and in tiles; grey is the luma of three equal channels; alpha is
    enlarged by bicubic interpolation."""
    pixels = noise(channels, depth, (40, 50))
    if channels in (2, 4):
        pixels[..., -1] |= 1  # nothing is fully transparent
    made = enlarge(Picture(pixels), nearest, 2, tile=32, overlap=8)
    wanted = pixels.repeat(2, axis=0).repeat(2, axis=1)
    assert made.pixels.dtype == depth and np.array_equal(made.colours, Picture(wanted).colours)
    if channels in (2, 4):
        assert np.array_equal(made.alpha, enlarge(Picture(pixels[..., -1:]), None, 2).pixels)


def test_grey_is_the_luma_of_what_the_network_makes_of_it():
    apart = torch.tensor([1, 0.5, 0.25])[:, None, None]
    made = enlarge(Picture(grey := noise(1)), lambda x: nearest(x) * apart, 2).pixels
    assert np.abs(made - grey.repeat(2, 0).repeat(2, 1) * (0.299 + 0.587 / 2 + 0.114 / 4)).max() <= 0.51


def test_hidden_black_makes_no_dark_fringe():
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, 4:] = 0  # transparent, and black
    assert enlarge(Picture(pixels), None, 2).pixels[..., :3].min() == 200


def test_damaged_weights_are_said():
    with pytest.raises(InputError, match="not finite"):
        enlarge(Picture(noise()), lambda x: nearest(x) * float("nan"), 2)


def test_a_file_is_done_once_and_told_as_a_row(tmp_path):
    job = Job(save(tmp_path / "a.png"), tmp_path / "out" / "a.png")
    assert enlarge_file(job, nearest, 2) == ("done", ())
    assert np.array_equal(pictures.read(job.target).pixels, noise().repeat(2, 0).repeat(2, 1))
    assert enlarge_file(job, None, 2) == ("kept", ())
    assert enlarge_file(job, None, 2, force=True) == ("done", ())
    job.source.write_bytes(b"damaged")
    status, notes = enlarge_file(job, None, 2, force=True)
    assert status == "failed" and "a.png cannot be read" in notes[0]


def test_a_picture_that_another_process_finished_meanwhile_stays(tmp_path):
    job = Job(save(tmp_path / "a.png"), save(tmp_path / "out" / "a.png"))
    job.target.unlink()

    def slow(image: Tensor) -> Tensor:
        job.target.write_bytes(b"from another process")
        return nearest(image)

    assert enlarge_file(job, slow, 2) == ("kept", ()) and job.target.read_bytes() == b"from another process"
    assert [path.name for path in job.target.parent.iterdir()] == ["a.png"]


def test_what_a_format_cannot_hold_is_said(tmp_path):
    pictures.write(Picture(noise(4, np.uint16)), tmp_path / "a.png")
    _, notes = enlarge_file(Job(tmp_path / "a.png", tmp_path / "a.jpg"), None, 2)
    assert notes == ("16 bits became 8, as jpeg has no more", "transparency was laid over white")
    assert pictures.read(tmp_path / "a.jpg").pixels.shape == (18, 26, 3)
    status, notes = enlarge_file(Job(tmp_path / "a.png", tmp_path / "a.webp"), None, 2000)
    assert status == "failed" and "webp ends at 16383 pixels a side" in notes[0]


def test_beside_has_bicubic_on_the_left(tmp_path):
    job = Job(save(tmp_path / "a.png"), tmp_path / "b.png")
    enlarge_file(job, nearest, 2, beside=True)
    left, right = np.split(pictures.read(job.target).pixels, 2, axis=1)
    assert np.array_equal(left, enlarge(Picture(noise()), None, 2).pixels)
    assert np.array_equal(right, noise().repeat(2, 0).repeat(2, 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from Linux")
def test_a_photograph_of_3_megapixels_is_enlarged_in_1_6_gb(tmp_path):
    """So one of 12 in 6: the libraries take a quarter of a gigabyte, the rest grows as the pixels do. Measured is
    the memory in use, as threads reserve more addresses than that."""
    pictures.write(Picture(np.full((1500, 2000, 3), 99, np.uint8)), tmp_path / "a.png")
    code = (
        "import re, torch; from pathlib import Path; from torch.nn import functional as F\n"
        "from srlib import upscale; torch.set_num_threads(1)\n"
        "for name, net in (('bicubic', None), ('network', lambda x: F.interpolate(x, scale_factor=4))):\n"
        "    done = upscale.enlarge_file(upscale.Job(Path('a.png'), Path(name + '.png')), net, 4)\n"
        "    assert done == ('done', ()), done\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 2**20)"
    )
    settings: Any = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.6
