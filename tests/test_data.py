"""How files become pixels, what a store holds, and which batches a seed and a step stand for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srlib import data, datasets
from srlib.data import Patches, Queries, Store, decode
from srlib.degradation import degrade
from srlib.errors import InputError
from srlib.resize import imresize


def save(path: Path, height: int, width: int, seed: int = 0, **options: object) -> np.ndarray:
    """Write a noise image and return its pixels (H, W, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three noise images of three sizes, none a multiple of 4."""
    for i, (height, width) in enumerate(((41, 57), (50, 38), (70, 63))):
        save(tmp_path / "images" / f"{'cab'[i]}.png", height, width, seed=i)
    return tmp_path / "images"


@pytest.fixture
def store(images: Path, cache: Path) -> Store:
    return Store.open(str(images), cache)


def encoded(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    pixels = decode(path)[0].transpose(1, 2, 0)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def test_colour_grey_and_palette_pixels_are_kept(tmp_path):
    pixels = save(tmp_path / "a.png", 5, 7)
    for suffix in ("png", "bmp", "tif", "gif"):
        image = Image.fromarray(pixels).convert("P") if suffix == "gif" else Image.fromarray(pixels)
        assert np.array_equal(encoded(image, tmp_path / f"b.{suffix}"), np.asarray(image.convert("RGB")))
    grey = encoded(Image.fromarray(pixels[..., 0]), tmp_path / "grey.png")
    assert np.array_equal(grey, np.repeat(pixels[..., :1], 3, axis=2))


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(9, 8, 7, 255), (9, 8, 7, 0), (0, 0, 0, 128)])
    assert encoded(image, tmp_path / "a.png").tolist() == [[[9, 8, 7], [255, 255, 255], [127, 127, 127]]]


def test_sixteen_bits_are_divided_and_rounded(tmp_path):
    wide = np.array([[0, 128, 129, 257, 385, 386, 65535, 65407, 65406]], np.uint16)
    grey = encoded(Image.fromarray(wide), tmp_path / "w.png")[..., 0]
    assert grey.tolist() == np.floor(wide / 257 + 0.5).astype(int).tolist()


def test_orientation_is_applied(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the corner that a quarter turn clockwise brings to the upper right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(pixels), tmp_path / "o.png", exif=exif)
    assert turned.shape == (6, 4, 3) and turned[0, 3].tolist() == [255] * 3 and turned.sum() == 3 * 255


def smooth_jpeg() -> bytes:
    buffer = io.BytesIO()
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(small).resize((90, 80), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_a_jpeg_with_all_its_pixels_is_read_and_half_a_one_refused(tmp_path):
    whole = smooth_jpeg()
    half = whole[: len(whole) * 2 // 3]
    file = tmp_path / "a.jpg"
    file.write_bytes(whole)
    pixels, _ = decode(file)
    assert np.array_equal(pixels, np.asarray(Image.open(file)).transpose(2, 0, 1)), "as Pillow decodes it"
    note = f"{file}: it has all its pixels, but no end marker"
    for odd, notes in ((whole[:-2], (note,)), (whole + b"appended by a phone" * 9, ())):
        file.write_bytes(odd)
        again, said = decode(file)
        assert np.array_equal(again, pixels) and said == notes
    for damaged in (half, half + b"\xff\xd9"):  # a decoder would fill it up with grey
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="a.jpg cannot be read .*premature end"):
            decode(file)


def test_what_is_no_picture_or_too_large_is_one_line(tmp_path, monkeypatch):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    save(tmp_path / "huge.bmp", 1, 1)
    header = (tmp_path / "huge.bmp").read_bytes()
    (tmp_path / "huge.bmp").write_bytes(header[:18] + 2 * (60_000).to_bytes(4, "little") + header[26:])
    cases = {"f.tif": "1 channels of float", "empty.png": "known format", "text.png": "known format"}
    cases["huge.bmp"] = "3600000000 pixels"
    for name, said in (cases | {"none.png": "No such file"}).items():
        with pytest.raises(InputError, match=f"{name} .*{said}") as error:
            decode(tmp_path / name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(data, "LARGEST", 100)
    save(tmp_path / "a.png", 11, 10)
    with pytest.raises(InputError, match="10x11 pixels, more than"):
        decode(tmp_path / "a.png")


def test_a_store_holds_what_the_files_show(images, store):
    assert (store.name, store.names, len(store), store.notes) == ("images", ("a", "b", "c"), 3, ())
    assert torch.equal(store.hr(2), torch.from_numpy(decode(images / "c.png")[0])) and store.hr(2).dtype == torch.uint8
    store.hr(2).zero_()
    assert store.hr(2).any(), "what is written to an image stays out of the cache"


def test_pixels_stay_in_files_that_are_mapped(store):
    """Once they are decoded: so that a training needs no more memory for more images."""
    mapped = data._mapped(store.images.files[0])
    assert isinstance(mapped, np.memmap) and np.shares_memory(store.images[0], mapped)


def test_lr_is_made_from_hr_cropped_to_multiples(store):
    lr, hr = store.pair(0, 3)
    assert (store.lr_origin(3), lr.shape, hr.shape) == ("matlab-bicubic", (3, 16, 12), (3, 48, 36))
    assert torch.equal(lr, imresize(hr, size=(16, 12)))


def test_nothing_is_decoded_twice_but_what_has_changed(images, cache, store, monkeypatch):
    opened: list[str] = []
    real = data.open_image
    monkeypatch.setattr(data, "open_image", lambda file: (opened.append(file.name), real(file))[1])
    assert Store.open(str(images), cache).fingerprint == store.fingerprint and opened == []
    save(images / "b.png", 70, 63, seed=9)  # of the same size
    assert Store.open(str(images), cache).fingerprint != store.fingerprint and opened == ["b.png"]


@pytest.mark.parametrize("length", [0, 50, 1000])
def test_a_file_of_the_cache_that_was_cut_short_is_made_anew(images, cache, store, length):
    file = store.images.files[0]
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:length])
    assert Store.open(str(images), cache).images.shapes == store.images.shapes and file.read_bytes() == whole


def test_the_fingerprint_is_of_pixels_and_names(images, cache, store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for file in images.iterdir():
        Image.open(file).save(tmp_path / "elsewhere" / f"{file.stem}.bmp")
    other = Store.open(str(tmp_path / "elsewhere"), cache)
    assert other.fingerprint == store.fingerprint and other.lr_fingerprint(2) == store.lr_fingerprint(2)
    (images / "a.png").rename(images / "d.png")
    assert Store.open(str(images), cache).fingerprint != store.fingerprint


FINGERPRINTS = {"photos/train": "1ba7b32ae8dd47af", "photos/held-out": "093465e124991b6d"}
FINGERPRINTS |= {"Set5": "756788d8f4308eda", "BSD400": "f96a368e4eeb133f"}


@pytest.mark.parametrize("spec", FINGERPRINTS)
def test_fingerprints_are_those_that_recorded_runs_hang_on(cache, request, spec):
    found = datasets.find(spec) if spec in datasets.PHOTOS else request.getfixturevalue("found")(spec)
    store = Store(found, cache)
    assert store.fingerprint.startswith(FINGERPRINTS[spec]) and store.notes == ()


def test_grey_is_told_from_grey_colours(tmp_path, cache):
    pixels = save(tmp_path / "g" / "a.png", 9, 8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "g" / "b.png")
    Image.fromarray(pixels[..., [0, 0, 0]]).save(tmp_path / "g" / "c.png")
    store = Store.open(str(tmp_path / "g"), cache)
    assert [store.grey(i) for i in range(3)] == [False, True, False] and torch.equal(store.hr(1), store.hr(2))


def test_distributed_lr_is_used_and_must_fit(images, cache, tmp_path):
    home = tmp_path / "set"
    home.mkdir()
    images.rename(home / "HR")
    for name, height, width in (("a", 25, 19), ("b", 35, 31), ("c", 20, 28)):
        pixels = save(home / "LR_bicubic" / "x2" / f"{name}x2.png", height, width)
    store = Store.open(str(home), cache)
    assert store.lr_origin(2) == "distributed" and store.lr_origin(3) == "matlab-bicubic"
    assert np.array_equal(store.lr(2, 2).permute(1, 2, 0), pixels)
    save(home / "LR_bicubic" / "x2" / "bx2.png", 9, 9)
    with pytest.raises(InputError, match="bx2.png is 9x9, but its HR image needs 31x35: fetch both of one release"):
        Store.open(str(home), cache).lr(0, 2)
    (home / "LR_bicubic" / "x2" / "bx2.png").write_text("no image")
    broken = Store.open(str(home), cache)
    assert (broken.name, broken.broken) == ("set (2 of 3 images)", ("b",))
    assert "bx2.png cannot be read" in broken.notes[0]
    assert torch.equal(broken.lr(1, 2), store.lr(2, 2)) and torch.equal(broken.hr(1), store.hr(2))
    (home / "LR_bicubic" / "x2" / "bx2.png").unlink()
    with pytest.raises(InputError, match="bx2.png cannot be read .*No such file"):
        Store.open(str(home), cache).lr(0, 2)


def test_what_cannot_be_is_one_line(store, images, cache, tmp_path):
    with pytest.raises(InputError, match="a is too small for x40"):
        store.lr(0, 40)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*: set SRLIB_CACHE"):
        Store.open(str(images), tmp_path / "file")


def cut(file: Path) -> None:
    """Break an image: half of its file is lost."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_broken_image_is_left_out_and_stops_no_other(images, cache):
    whole = Store.open(str(images), cache)
    cut(images / "b.png")
    for _ in range(2):  # decoded now, and from the cache
        store = Store.open(str(images), cache)
        assert (store.name, store.names, store.broken) == ("images (2 of 3 images)", ("a", "c"), ("b",))
        (note,) = store.notes
        assert "left out: " in note and "b.png cannot be read" in note and "\n" not in note
    assert torch.equal(store.pair(1, 2)[1], whole.pair(2, 2)[1]) and store.fingerprint != whole.fingerprint
    assert data.degraded(store).name == store.name and data.degraded(store).broken == ("b",)
    assert Patches(store, 2, 8, 2, 0)[0][0].shape == (2, 3, 8, 8)
    for name in "ac":
        (images / f"{name}.png").write_text("no image")
    with pytest.raises(InputError, match="images: none of its 3 images can be used: .*a.png cannot be read"):
        Store.open(str(images), cache)


def test_an_odd_image_is_read_with_a_line_each_time(images, cache):
    (images / "d.jpg").write_bytes(smooth_jpeg()[:-2])
    for _ in range(2):  # decoded now, and from the cache
        store = Store.open(str(images), cache)
        assert (store.name, store.broken, len(store)) == ("images", (), 4)
        assert store.notes == (f"{images / 'd.jpg'}: it has all its pixels, but no end marker",)


def test_a_degraded_store_is_fixed_and_says_so(store):
    made = data.degraded(store, seed=3)
    assert made.lr_origin(2) == made.lr_origin(4) == "real-esrgan, seed 3"
    assert (made.name, made.fingerprint) == (store.name, store.fingerprint)
    lr, hr = made.pair(1, 2)
    assert torch.equal(lr / 255, degrade(hr[None] / 255, 2, seed=3, index=1)[0])
    assert len({one.lr_fingerprint(2) for one in (store, made, data.degraded(store, 4))}) == 3


def positioned(image: torch.Tensor, turn: int) -> torch.Tensor:
    image = image.flip(1) if turn & 1 else image
    image = image.flip(2) if turn & 2 else image
    return (image.transpose(1, 2) if turn & 4 else image).float() / 255


def equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_patches_are_crops_flipped_and_turned(store):
    patches = Patches(store, scale=3, patch=5, batch=64, seed=1)
    lr, hr = patches[7]
    assert lr.shape == (64, 3, 5, 5) and hr.shape == (64, 3, 15, 15) and lr.dtype == hr.dtype == torch.float32
    drawn = list(patches._draw(7))
    for b, (i, y, x, turn) in enumerate(drawn):
        assert torch.equal(lr[b], positioned(store.lr(i, 3)[:, y : y + 5, x : x + 5], turn))
        assert torch.equal(hr[b], positioned(store.hr(i)[:, 3 * y : 3 * y + 15, 3 * x : 3 * x + 15], turn))
    assert {row[0] for row in drawn} == {0, 1, 2} and {row[3] for row in drawn} == set(range(8))


def test_the_draws_are_fixed_for_good(store):
    """The stream is part of what a seed means: a change would make old runs impossible to repeat."""
    drawn = [*Patches(store, 4, patch=8, batch=3, seed=0)._draw(1)]
    assert drawn == [(2, 1, 5, 7), (0, 1, 1, 0), (2, 1, 0, 0)]
    drawn = [list(row) for row in Queries(store, (1, 4), patch=8, batch=3, queries=3, seed=0)._draw(1)]
    assert [row[:5] for row in drawn] == [[2, 21, 16, 35, 0], [1, 9, 26, 10, 5], [0, 21, 0, 11, 6]]
    assert [row[5].tolist() for row in drawn] == [[2, 254, 284], [5, 9, 46], [90, 183, 214]]


def test_queries_are_pixels_of_the_crop_at_their_places(store):
    queries = Queries(store, (1, 4), patch=8, batch=48, queries=40, seed=1)
    lr, coord, cell, target = queries[7]
    assert (lr.shape, coord.shape, cell.shape, target.shape) == ((48, 3, 8, 8), (48, 40, 2), (48, 2), (48, 40, 3))
    assert {part.dtype for part in (lr, coord, cell, target)} == {torch.float32}
    for b, (i, side, y, x, turn, _) in enumerate(queries._draw(7)):
        crop = store.hr(i)[:, y : y + side, x : x + side]
        assert torch.equal(lr[b], positioned(imresize(crop.clone(), size=(8, 8)), turn))
        place = (coord[b] + 1) / cell[b] - 0.5  # in pixels of the crop
        row, column = place.round().long().T
        assert (place - place.round()).abs().max() < 1e-4
        assert torch.equal(target[b], positioned(crop, turn)[:, row, column].T)
        assert torch.equal(cell[b], torch.full((2,), 2 / side))
        assert len({*zip(row.tolist(), column.tolist(), strict=True)}) == 40


def test_real_esrgan_patches_are_degraded_hr_patches(store):
    options = {"scale": 3, "patch": 6, "batch": 4, "seed": 2}
    lr, hr = Patches(store, **options, degradation="real-esrgan")[5]
    assert torch.equal(hr, Patches(store, **options)[5][1]) and torch.equal(lr, degrade(hr, 3, seed=2, step=5))


@pytest.mark.parametrize("kind", ["bicubic", "real-esrgan", "queries"])
def test_a_batch_depends_on_seed_and_step_alone_and_may_be_made_in_parts(store, kind):
    def batches(seed: int = 5, batch: int = 6, **part: slice) -> Patches | Queries:
        if kind == "queries":
            return Queries(store, (1, 3), 8, batch, 20, seed, **part)
        return Patches(store, 2, 8, batch, seed, kind, **part)

    state = torch.get_rng_state()
    whole = batches()[3]
    assert equal(whole, batches()[3]) and torch.equal(torch.get_rng_state(), state)
    assert equal(whole, tuple(part[:6] for part in batches(batch=7)[3])), "a smaller batch is the start of a larger one"
    assert not torch.equal(whole[0], batches()[4][0]) and not torch.equal(whole[0], batches(seed=6)[3][0])
    assert equal(tuple(part[2:4] for part in whole), batches(part=slice(2, 4))[3]), "as a process makes its own part"


def test_what_does_not_fit_is_refused(store):
    with pytest.raises(InputError, match="images: a cannot hold a patch of 40x40 HR pixels: take smaller patches"):
        Patches(store, 4, 10, 1, 0)
    with pytest.raises(InputError, match="cannot hold a patch of 40x40"):
        Queries(store, (1, 4), 10, 1, 9, 0)
    with pytest.raises(InputError, match="65 queries exceed the 64 pixels"):
        Queries(store, (1, 4), 8, 1, 65, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_steps_in_order(store, workers):
    patches = Patches(store, 2, 8, 3, 1)
    state = torch.get_rng_state()
    loaded = list(data.loader(patches, 4, 9, workers))
    assert len(loaded) == 5 and all(equal(tuple(got), patches[4 + i]) for i, got in enumerate(loaded))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_loader_pins_memory_for_cuda(store):
    lr, _ = next(data.loader(Patches(store, 2, 8, 3, 1), 0, 2, device="cuda"))
    assert lr.is_pinned() and torch.equal(lr, Patches(store, 2, 8, 3, 1)[0][0])
