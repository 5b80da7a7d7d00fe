"""What a picture file holds is read, and written again into each format that can hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from srlib import pictures
from srlib.errors import InputError
from srlib.pictures import Picture

CASES = [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint8, ".tif"), (np.uint16, ".tif")]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(channels: int = 3, depth: type = np.uint8, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max + 1, (*size, channels)).astype(depth)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth, suffix", CASES)
def test_what_is_written_without_loss_is_read_again(tmp_path, channels, depth, suffix):
    picture = Picture(noise(channels, depth), dpi=(300, 150))
    assert pictures.write(picture, tmp_path / f"a{suffix}")
    found = pictures.read(tmp_path / f"a{suffix}")
    assert found.pixels.dtype == depth and np.array_equal(found.pixels, picture.pixels)
    assert np.allclose(found.dpi, (300, 150), atol=0.1)


def test_webp_keeps_colours_and_transparency(tmp_path):
    pixels = np.full((20, 30, 4), 200, np.uint8)
    pixels[:10, :, 0], pixels[:, 15:, 3] = 40, 90
    pictures.write(Picture(pixels), tmp_path / "a.webp")
    assert np.abs(pictures.read(tmp_path / "a.webp").pixels.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_has_colours_at_full_resolution(tmp_path, channels):
    rows, columns = np.mgrid[:40, :60]
    smooth = np.stack([(3 * rows + 50 * c) % 256 // 2 + columns for c in range(channels)], -1).astype(np.uint8)
    pictures.write(Picture(smooth), tmp_path / "a.jpg", quality=98)
    assert np.abs(pictures.read(tmp_path / "a.jpg").pixels.astype(int) - smooth).mean() < 2
    with Image.open(tmp_path / "a.jpg") as opened:
        assert channels == 1 or [layer[1:3] for layer in opened.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_picture_is_turned_as_a_viewer_turns_it_and_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = orientation, "a camera"
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[:12, :12] = 255
    Image.fromarray(pixels).save(tmp_path / "in.jpg", exif=exif, icc_profile=PROFILE, quality=95)
    picture = pictures.read(tmp_path / "in.jpg")
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert picture.pixels.shape[:2] == ((24, 48) if orientation < 5 else (48, 24))
    assert picture.pixels[corner[orientation]].min() > 240
    pictures.write(picture, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as opened:
        assert opened.getexif().get(0x0112, 1) == 1 and opened.info["icc_profile"] == PROFILE
        assert suffix == ".tif" or opened.getexif()[0x0110] == "a camera"
    again = pictures.read(tmp_path / f"out{suffix}")
    assert again.pixels.shape == picture.pixels.shape and again.pixels[corner[orientation]].min() > 240


def test_each_kind_of_file_is_read(tmp_path):
    image = Image.fromarray(noise(3, size=(16, 24))).resize((48, 32), Image.Resampling.BICUBIC)
    alpha = image.copy()
    alpha.putalpha(image.getchannel(0))
    kinds = {
        "palette.png": (image.convert("P"), {}, 3, ""),
        "see-through.png": (image.convert("P"), {"transparency": 3}, 4, ""),
        "la.png": (alpha.convert("LA"), {}, 2, ""),
        "a.gif": (image.convert("P"), {}, 3, ""),
        "a.bmp": (image, {}, 3, ""),
        "alpha.webp": (alpha, {"lossless": True, "exact": True}, 4, ""),
        "fax.tif": (image.convert("1"), {"compression": "group4"}, 1, ""),
        "zip.tif": (alpha, {"compression": "tiff_adobe_deflate"}, 4, ""),
        "pages.tif": (image, {"save_all": True, "append_images": [image]}, 3, "the first of 2 pictures was taken"),
    }
    for name, (opened, options, channels, said) in kinds.items():
        opened.save(tmp_path / name, **options)
        found = pictures.read(tmp_path / name)
        wanted = np.asarray(Image.open(tmp_path / name).convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
        assert np.array_equal(found.pixels, wanted.reshape(32, 48, channels)), name
        assert said in "".join(found.notes) and bool(said) == bool(found.notes), name


@pytest.mark.parametrize("kept", [True, False], ids=["with APP14", "without"])
def test_cmyk_becomes_srgb(tmp_path, kept):
    """White paper stays white, and full black ink and full inks get dark."""
    inks = Image.new("CMYK", (48, 16), (0, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (16, 0, 32, 16))
    inks.paste((255, 255, 255, 255), (32, 0, 48, 16))
    file = tmp_path / "a.jpg"
    inks.save(file, quality=100)
    content = file.read_bytes()
    if not kept:  # Adobe's marker; the inks are inverted without it, too
        start = content.index(b"\xff\xee")
        content = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]
        file.write_bytes(content)
    found = pictures.read(file)
    white, black, all_inks = (found.pixels[8, x].mean() for x in (8, 24, 40))
    assert found.notes == ("CMYK became sRGB",) and found.pixels.shape == (16, 48, 3)
    assert white > 250 and black < 60 and all_inks < 60


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(image: object, path: str, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise pyvips.Error("no space left")

    file = tmp_path / "a.png"
    with monkeypatch.context() as patch:
        patch.setattr(pyvips.Image, "pngsave", broken, raising=False)
        with pytest.raises(InputError, match="a.png cannot be written .no space left"):
            pictures.write(Picture(noise()), file)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .*(Not a directory|File exists)"):
        pictures.write(Picture(noise()), tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="its suffix says no format"):
        pictures.write(Picture(noise()), tmp_path / "a.gif")
