"""Image sets, stores and patches: what is found, what is decoded, what is cut, and what bad input is told."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srlib import data, evaluate
from srlib.data import ImageSet, Patches, Queries, Store
from srlib.degradation import degrade
from srlib.errors import InputError
from srlib.metrics import protocol
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


def left_in(cache: Path) -> list[str]:
    """Whatever a build may have left behind in the stores' folder."""
    return [path.name for path in (cache / "stores").glob("*")] if (cache / "stores").exists() else []


# --- image sets -----------------------------------------------------------------------------------


def test_photos_are_split_without_overlap() -> None:
    train, held = data.photos("train"), data.photos("held-out")
    assert len(train.files) == 11 and len(held.files) == 4
    assert not set(train.names) & set(held.names)
    assert set(held.names) == {"camera", "chelsea", "coffee", "rocket"}
    assert {"motorcycle_left", "motorcycle_right"} <= set(train.names)
    assert all(file.is_file() for file in train.files + held.files)
    with pytest.raises(InputError, match="photos/held-out"):
        data.photos("test")


def test_photos_do_not_import_scikit_image() -> None:
    code = "import sys; from srlib.data import photos; photos('train'); print({'skimage', 'pooch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_photos_have_the_documented_sizes(tmp_path: Path) -> None:
    source = Path(data.__file__).read_text()
    for split, count in (("train", 11), ("held-out", 4)):
        for file in data.photos(split).files:
            width, height = map(int, re.search(rf'"{file.name}",  # (\d+)x(\d+)', source).groups())
            with Image.open(file) as image:
                assert image.size == (width, height)
        assert len(data.PHOTOS[split]) == count


def test_a_folder_is_sorted_and_passes_over_the_rest(images: Path) -> None:
    (images / "notes.txt").write_text("no image")
    (images / "._a.png").write_bytes(b"a system's leavings")
    save(images / "B.JPG", 9, 9)
    save(images / "below" / "z.png", 9, 9)
    assert data.folder(images).names == ("B", "a", "b", "c")
    assert data.folder(images).name == "images"


def test_names_stay_different(images: Path) -> None:
    save(images / "a.bmp", 9, 9)
    assert data.folder(images).names == ("a.bmp", "a.png", "b", "c")


def test_a_folder_without_images_names_those_below(images: Path) -> None:
    with pytest.raises(InputError, match=r"holds no images.*images"):
        data.folder(images.parent)
    (images.parent / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images: put .png"):
        data.folder(images.parent / "empty")
    with pytest.raises(InputError, match="not a folder"):
        data.folder(images / "a.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with a Set5 of two images: x2 distributed, the other scales to be made."""
    for name in ("one", "two"):
        save(tmp_path / "data/benchmark/Set5/HR" / f"{name}.png", 21, 30)
        save(tmp_path / "data/benchmark/Set5/LR_bicubic/X2" / f"{name}x2.png", 10, 15, seed=7)
    return tmp_path / "data"


def test_a_benchmark_is_found_from_either_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    found = [data.benchmark("Set5", root), data.benchmark("Set5", root / "benchmark"), data.find("Set5", str(root))]
    found.append(data.find(str(root / "benchmark" / "Set5")))
    found.append(data.find("benchmark/Set5", root))
    with pytest.raises(InputError, match="SRLIB_DATA"):
        data.find("Set5")
    monkeypatch.setenv("SRLIB_DATA", str(root))
    found.append(data.find("Set5"))
    assert len({(one.name, one.files, one.lr_files[2]) for one in found}) == 1
    assert found[0].names == ("one", "two") and set(found[0].lr_files) == {2}


def test_other_names_that_benchmarks_are_distributed_under(root: Path) -> None:
    save(root / "benchmark/B100/HR/1.png", 8, 8)
    save(root / "DIV2K/DIV2K_valid_HR/0801.png", 8, 8)
    save(root / "DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4.png", 2, 2)
    assert data.benchmark("BSD100", root).names == ("1",)
    assert data.benchmark("DIV2K_val", root).lr_files[4][0].is_file()


def test_what_is_not_there(root: Path) -> None:
    with pytest.raises(InputError, match="no Set14 in"):
        data.benchmark("Set14", root)
    (root / "benchmark/Set14/HR").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        data.benchmark("Set14", root)
    for spec in ("Set55", "", "photos", "photos/"):
        with pytest.raises(InputError, match="photos/held-out"):
            data.find(spec, root)


def test_datasets_tells_what_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    rows = {row.name: row for row in data.datasets(root)}
    assert {row.name: row.expected for row in rows.values()} == data.BENCHMARKS
    assert (rows["Set5"].found, rows["Set5"].present, rows["Urban100"].found) == (2, False, 0)
    for i in range(3):
        save(root / "benchmark/Set5/HR" / f"{i}.png", 8, 8)
    assert data.datasets(root)[0].present
    assert not any(row.found for row in data.datasets())


def test_a_data_folder_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a slip of the pen would look like a folder without benchmarks."""
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    nowhere = tmp_path / "nowhere"
    (tmp_path / "file").write_text("no folder")
    for root in (nowhere, tmp_path / "file", str(nowhere)):
        for ask in (data.datasets, lambda root: data.benchmark("Set5", root), lambda root: data.find("Set5", root)):
            with pytest.raises(InputError, match=f"no data folder {root}: name the one with benchmark"):
                ask(root)
    monkeypatch.setenv("SRLIB_DATA", str(nowhere))
    with pytest.raises(InputError, match=f"no data folder {nowhere}: set SRLIB_DATA to the one with benchmark"):
        data.datasets()
    assert len(data.find("photos/held-out").files) == 4  # these lie elsewhere
    monkeypatch.setenv("SRLIB_DATA", "")
    assert not any(row.found for row in data.datasets(""))


# --- decoding -------------------------------------------------------------------------------------


def encoded(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return data.decode(path.read_bytes(), path.name).transpose(1, 2, 0)


def test_colour_and_grey_pixels_are_kept(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", 5, 7)
    for suffix in ("png", "bmp", "tif"):
        assert np.array_equal(encoded(Image.fromarray(pixels), tmp_path / f"b.{suffix}"), pixels)
    grey = encoded(Image.fromarray(pixels[..., 0]), tmp_path / "grey.png")
    assert np.array_equal(grey, np.repeat(pixels[..., :1], 3, axis=2))


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    assert encoded(image, tmp_path / "p.png").tolist() == [[[40, 50, 60], [10, 20, 30]]]
    assert encoded(image, tmp_path / "t.png", transparency=1).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(9, 8, 7, 255), (9, 8, 7, 0), (0, 0, 0, 128)])
    assert encoded(image, tmp_path / "a.png").tolist() == [[[9, 8, 7], [255, 255, 255], [127, 127, 127]]]


def test_sixteen_bits_are_divided_and_rounded(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 257, 385, 386, 65535, 65407, 65406]], np.uint16)
    for suffix in ("png", "tif"):
        grey = encoded(Image.fromarray(wide), tmp_path / f"w.{suffix}")[..., 0]
        assert grey.tolist() == np.floor(wide / 257 + 0.5).astype(int).tolist()


def test_what_has_no_eight_bit_reading_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f.tif has floating-point pixels: save it"):
        encoded(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "f.tif")
    with pytest.raises(InputError, match=r"i.tif has more than 16 bits"):
        encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), tmp_path / "i.tif")


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the corner that a quarter turn clockwise brings to the upper right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(pixels), tmp_path / "o.png", exif=exif)
    assert turned.shape == (6, 4, 3) and turned[0, 3].tolist() == [255] * 3 and turned.sum() == 3 * 255


# --- stores ---------------------------------------------------------------------------------------


def test_a_store_holds_what_the_files_show(images: Path, cache: Path) -> None:
    store = Store.open(data.folder(images), cache)
    assert (store.name, store.names, len(store)) == ("images", ("a", "b", "c"), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, name in enumerate(store.names):
            hr = store.hr(i)
            assert hr.dtype == torch.uint8
            assert np.array_equal(hr.permute(1, 2, 0).numpy(), np.asarray(Image.open(images / f"{name}.png")))
    assert [name.startswith(".") for name in left_in(cache)] == [False]


def test_writing_to_an_image_does_not_reach_the_store(images: Path, cache: Path) -> None:
    store = Store.open(data.folder(images), cache)
    before = store.hr(0).clone()
    store.hr(0).zero_()
    assert torch.equal(store.hr(0), before)


def test_lr_is_made_from_hr_cropped_to_multiples(images: Path, cache: Path) -> None:
    store = Store.open(data.folder(images), cache)
    assert store.lr_origin(4) == "matlab-bicubic"
    for i in range(3):
        lr, hr = store.pair(i, 4)
        assert tuple(hr.shape) == (3, 4 * lr.shape[1], 4 * lr.shape[2])
        assert torch.equal(hr, store.hr(i)[:, : hr.shape[1], : hr.shape[2]])
        assert store.hr(i).shape[1] - hr.shape[1] < 4 and store.hr(i).shape[2] - hr.shape[2] < 4
        assert torch.equal(lr, imresize(hr, scale=1 / 4))
    assert torch.equal(store.lr(1, 1), store.hr(1))


def test_making_lr_keeps_the_number_of_threads(images: Path, cache: Path) -> None:
    torch.set_num_threads(2)
    Store.open(data.folder(images), cache).build_lr(2)
    assert torch.get_num_threads() == 2


def test_nothing_is_decoded_or_read_twice(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images.iterdir():
        os.utime(file, (1_000_000, 1_000_000))
    monkeypatch.setattr(data, "_RACY_NS", 0)
    first = Store.open(data.folder(images), cache).build_lr(2)

    def never(*_: object) -> None:
        raise AssertionError("read again")

    for name in ("_read", "decode", "imresize"):
        monkeypatch.setattr(data, name, never)
    again = Store.open(data.folder(images), cache)
    assert again.fingerprint == first.fingerprint and torch.equal(again.lr(2, 2), first.lr(2, 2))


def test_a_change_of_the_same_size_makes_a_new_store(images: Path, cache: Path) -> None:
    """The file was just written, so that its time stamps prove nothing: it must be read again."""
    first = Store.open(data.folder(images), cache)
    file = images / "a.png"
    status, other = file.stat(), bytearray(file.read_bytes())
    pixels = save(file, 50, 38, seed=99, compress_level=0)
    other = Store.open(data.folder(images), cache)
    assert other.fingerprint != first.fingerprint and np.array_equal(other.hr(0).permute(1, 2, 0).numpy(), pixels)
    flipped = bytearray(file.read_bytes())
    Image.fromarray(255 - pixels).save(file, compress_level=0)
    assert len(flipped) == file.stat().st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert np.array_equal(Store.open(data.folder(images), cache).hr(0).permute(1, 2, 0).numpy(), 255 - pixels)


def test_old_files_that_change_are_noticed(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_RACY_NS", 0)
    file = images / "a.png"
    first = Store.open(data.folder(images), cache)
    save(file, 50, 38, seed=99)
    os.utime(file, (1_000_000, 1_000_000))
    assert Store.open(data.folder(images), cache).fingerprint != first.fingerprint


def test_the_fingerprint_is_of_pixels_and_names(images: Path, cache: Path, tmp_path: Path) -> None:
    first = Store.open(data.folder(images), cache)
    moved = Path(shutil.copytree(images, tmp_path / "elsewhere"))
    Image.open(moved / "a.png").save(moved / "a.bmp")
    (moved / "a.png").unlink()
    again = Store.open(data.folder(moved), tmp_path / "other cache")
    assert again.fingerprint == first.fingerprint and again.key != first.key
    (moved / "a.bmp").rename(moved / "a1.bmp")
    assert Store.open(data.folder(moved), cache).fingerprint != first.fingerprint


def test_the_cache_is_where_the_environment_says(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLIB_CACHE", str(cache / "named"))
    Store.open(data.folder(images))
    assert len(left_in(cache / "named")) == 1


def test_progress_is_told(images: Path, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    Store.open(data.folder(images), cache, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_broken_image_is_named_and_nothing_is_left(images: Path, cache: Path, damage: str) -> None:
    file = images / "b.png"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not an image"}[damage])
    with pytest.raises(InputError, match=r"b\.png cannot be decoded .*: fetch it again") as caught:
        Store.open(data.folder(images), cache)
    assert "\n" not in str(caught.value)
    assert left_in(cache) == []
    file.write_bytes(whole)
    assert len(Store.open(data.folder(images), cache)) == 3


def test_a_vanished_image_is_named(images: Path, cache: Path) -> None:
    found = data.folder(images)
    (images / "c.png").unlink()
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        Store.open(found, cache)
    with pytest.raises(InputError, match="no images"):
        Store.open(ImageSet("none", ()), cache)


def test_a_damaged_store_is_made_again(images: Path, cache: Path) -> None:
    first = Store.open(data.folder(images), cache)
    for name, content in (("images.bin", b"short"), ("index.json", b"{"), ("index.json", b"{}")):
        (cache / "stores" / first.key / name).write_bytes(content)
        again = Store.open(data.folder(images), cache)
        assert again.fingerprint == first.fingerprint
        assert np.array_equal(again.hr(0).permute(1, 2, 0).numpy(), np.asarray(Image.open(images / "a.png")))
    assert left_in(cache) == [first.key]


@pytest.mark.parametrize("racy", [0, 10**18])  # with and without file hashes to remember
def test_a_cache_that_cannot_be_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, racy: int
) -> None:
    monkeypatch.setattr(data, "_RACY_NS", racy)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to .*SRLIB_CACHE"):
        Store.open(data.folder(images), tmp_path / "file")


def test_interrupted_builds_are_swept_after_a_day(images: Path, cache: Path) -> None:
    for name, age in ((".building-old", 90_000), (".building-new", 10)):
        (cache / "stores" / name).mkdir(parents=True)
        when = (cache / "stores" / name).stat().st_mtime - age
        os.utime(cache / "stores" / name, (when, when))
    Store.open(data.folder(images), cache)
    assert [name for name in left_in(cache) if name.startswith(".")] == [".building-new"]


def _build(images: Path, cache: Path, start: object, answers: object) -> None:
    start.wait()
    store = Store.open(data.folder(images), cache).build_lr(2)
    answers.put((store.fingerprint, store.lr_fingerprint(2)))


def test_two_processes_build_the_same_store(images: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    start, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build, args=(images, cache, start, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    results = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(results) == 1 and [process.exitcode for process in processes] == [0, 0]
    assert len(left_in(cache)) == 2 and not any(name.startswith(".") for name in left_in(cache))


def test_who_comes_second_takes_what_is_there(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes the same store while this one builds it: the finished one stays."""
    first = Store.open(data.folder(images), cache)
    entry = cache / "stores" / first.key / "images.bin"
    inode = entry.stat().st_ino
    look, looks = data._Flat.open, []

    def not_at_first(home: Path) -> data._Flat | None:
        looks.append(home)
        return None if len(looks) == 1 else look(home)

    monkeypatch.setattr(data._Flat, "open", not_at_first)
    assert Store.open(data.folder(images), cache).fingerprint == first.fingerprint
    assert len(looks) > 1 and entry.stat().st_ino == inode and left_in(cache) == [first.key]


# --- LR files -------------------------------------------------------------------------------------


def test_distributed_lr_is_used_where_it_is(root: Path, cache: Path) -> None:
    store = Store.open(data.find("Set5", root), cache)
    assert [store.lr_origin(scale) for scale in (2, 3)] == ["distributed", "matlab-bicubic"]
    lr, hr = store.pair(0, 2)
    shown = np.asarray(Image.open(root / "benchmark/Set5/LR_bicubic/X2/onex2.png"))
    assert np.array_equal(lr.permute(1, 2, 0).numpy(), shown) and tuple(hr.shape) == (3, 20, 30)
    made = store.lr_fingerprint(2)
    save(root / "benchmark/Set5/LR_bicubic/X2/onex2.png", 10, 15, seed=8)
    again = Store.open(data.find("Set5", root), cache)
    assert again.fingerprint == store.fingerprint and again.lr_fingerprint(2) != made


def test_lr_that_is_missing_or_does_not_fit(root: Path, cache: Path) -> None:
    store = Store.open(data.find("Set5", root), cache)
    save(root / "benchmark/Set5/LR_bicubic/X2/twox2.png", 11, 15)
    with pytest.raises(InputError, match=r"twox2.png is 15x11 but HR 30x21 needs 15x10: fetch"):
        store.build_lr(2)
    assert left_in(cache) == [store.key]
    (root / "benchmark/Set5/LR_bicubic/X2/twox2.png").unlink()
    with pytest.raises(InputError, match=r"twox2.png is missing: fetch it, or remove .*X2"):
        store.lr(0, 2)
    assert store.lr(0, 3).shape[1:] == (7, 10)  # the other scales still work


@pytest.mark.parametrize("scale", [0, -2, 2.5, True, 22])
def test_scales_that_are_not_possible(root: Path, cache: Path, scale: object) -> None:
    with pytest.raises(InputError, match="scale"):
        Store.open(data.find("Set5", root), cache).build_lr(scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_made_here_is_set5_as_distributed(data_root: Path, cache: Path, scale: int) -> None:
    found = data.benchmark("Set5", data_root)
    given = Store.open(found, cache)
    made = Store.open(ImageSet("Set5", found.files), cache)
    assert given.lr_origin(scale) == "distributed" and made.lr_origin(scale) == "matlab-bicubic"
    assert given.lr_fingerprint(scale) == made.lr_fingerprint(scale)
    assert all(torch.equal(given.lr(i, scale), made.lr(i, scale)) for i in range(5))


# --- patches --------------------------------------------------------------------------------------


@pytest.fixture
def store(images: Path, cache: Path) -> Store:
    return Store.open(data.folder(images), cache)


@pytest.mark.parametrize("resident", [False, True])
def test_patches_are_crops_flipped_and_turned(store: Store, resident: bool) -> None:
    """Each patch equals a plain crop, flipped and transposed, at the place that was drawn; all eight occur."""
    patches = Patches(store, scale=3, patch=5, batch=64, seed=1, resident=resident)
    lr, hr = patches.batch(7)
    assert lr.shape == (64, 3, 5, 5) and hr.shape == (64, 3, 15, 15) and lr.dtype == hr.dtype == torch.float32
    for b, (i, y, x, turn) in enumerate(zip(*patches._draw(7), strict=True)):
        for got, image, factor in ((lr[b], store.lr(i, 3), 1), (hr[b], store.hr(i), 3)):
            side = 5 * factor
            crop = image[:, y * factor : y * factor + side, x * factor : x * factor + side]
            crop = crop.flip(1) if turn & 1 else crop
            crop = crop.flip(2) if turn & 2 else crop
            crop = crop.transpose(1, 2) if turn & 4 else crop
            assert torch.equal(got, crop.to(torch.float32) / 255)
    assert set(patches._draw(7)[3].tolist()) == set(range(8))
    assert set(patches._draw(7)[0].tolist()) == {0, 1, 2}


def test_lr_is_the_reduced_hr_patch_away_from_its_borders(store: Store) -> None:
    """Bicubic reduction commutes with flips and turns, but for the rounding between the passes."""
    lr, hr = Patches(store, scale=2, patch=12, batch=32, seed=3).batch(0)
    reduced = imresize(hr, scale=0.5).clamp(0, 1)
    assert (reduced - lr)[:, :, 2:-2, 2:-2].abs().max() <= 2.5 / 255
    off = (reduced[:, :, 2:-2, 3:-1] - lr[:, :, 2:-2, 2:-2]).abs().max()
    assert off > 0.2  # one LR pixel aside nothing fits


def test_a_batch_depends_on_seed_and_step_alone(store: Store, images: Path, cache: Path) -> None:
    patches = Patches(store, patch=8, batch=4, seed=5)
    later, earlier = patches.batch(1000), patches.batch(3)
    torch.manual_seed(1)
    np.random.seed(1)
    other = Patches(Store.open(data.folder(images), cache), patch=8, batch=4, seed=5)
    for step, batch in ((3, earlier), (1000, later)):
        assert all(torch.equal(a, b) for a, b in zip(other.batch(step), batch, strict=True))
    assert not torch.equal(earlier[0], later[0])
    assert not torch.equal(Patches(store, patch=8, batch=4, seed=6).batch(3)[0], earlier[0])
    assert torch.equal(Patches(store, patch=8, batch=9, seed=5).batch(3)[1][:4], earlier[1])
    state = torch.get_rng_state()
    patches.batch(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_draws_are_fixed_for_good(store: Store) -> None:
    """The stream is part of what a seed means: a change would make old runs impossible to repeat."""
    image, y, x, turn = Patches(store, patch=8, batch=3, seed=0)._draw(1)
    assert [image.tolist(), y.tolist(), x.tolist(), turn.tolist()] == [[2, 0, 2], [1, 1, 1], [5, 1, 0], [7, 0, 0]]


def test_the_whole_grid_is_drawn_and_evenly(store: Store) -> None:
    patches = Patches(store, scale=4, patch=8, batch=4000, seed=0)
    image, y, x, turn = patches._draw(0)
    for i, (height, width) in enumerate(((12, 9), (17, 15), (10, 14))):
        here = image == i
        assert abs(here.mean() - 1 / 3) < 0.04
        assert set(y[here].tolist()) == set(range(height - 7)) and set(x[here].tolist()) == set(range(width - 7))
    assert np.abs(np.bincount(turn, minlength=8) / 4000 - 1 / 8).max() < 0.03


def test_a_patch_may_be_the_whole_image(tmp_path: Path, cache: Path) -> None:
    save(tmp_path / "one" / "a.png", 32, 32)
    store = Store.open(data.folder(tmp_path / "one"), cache)
    lr, hr = Patches(store, scale=4, patch=8, batch=16).batch(0)
    for patches, image in ((lr, store.lr(0, 4)), (hr, store.hr(0))):
        values = (image / 255).flatten().sort().values
        assert all(torch.equal(patch.flatten().sort().values, values) for patch in patches)


def test_patches_refuse_what_does_not_fit(store: Store) -> None:
    said = "1 of 3 images of images cannot hold a patch of 10x10 at x4: a, the smallest, is 9x12 there; .* 40 pixels"
    with pytest.raises(InputError, match=said):
        Patches(store, scale=4, patch=10)
    with pytest.raises(InputError, match="3 of 3 images .*: a, the smallest"):
        Patches(store, scale=4, patch=40)
    for bad in ({"patch": 0}, {"batch": 0}, {"seed": -1}, {"seed": 2**63}, {"seed": 1.7}):
        with pytest.raises(InputError, match="whole number"):
            Patches(store, **bad)
    Patches(store, patch=4, seed=2**63 - 1).batch(0)
    with pytest.raises(InputError, match="step -1"):
        Patches(store, patch=4).batch(-1)


def test_the_index_is_readable(store: Store, cache: Path) -> None:
    index = json.loads((cache / "stores" / store.key / "index.json").read_text())
    assert index["columns"] == ["name", "height", "width", "offset"] and index["images"][0] == ["a", 50, 38, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [None, False])
def test_cuda_gives_the_same_batch(store: Store, resident: bool | None) -> None:
    expected = Patches(store, patch=8, seed=2).batch(11)
    got = Patches(store, patch=8, seed=2, device="cuda", resident=resident).batch(11)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, got, strict=True))


# --- queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [False, True])
def test_queries_are_pixels_of_the_crop_at_their_places(store: Store, resident: bool) -> None:
    """LR is the reduced crop, flipped and turned; a query's colour is that of the turned crop at its place."""
    queries = Queries(store, patch=8, batch=48, queries=40, seed=1, resident=resident)
    lr, coord, cell, target = queries.batch(7)
    assert (lr.shape, coord.shape, cell.shape, target.shape) == ((48, 3, 8, 8), (48, 40, 2), (48, 2), (48, 40, 3))
    assert {part.dtype for part in (lr, coord, cell, target)} == {torch.float32}
    drawn = queries._draw(7)
    for b, (i, side, y, x, turn, _) in enumerate(zip(*drawn, strict=True)):
        crop = store.hr(i)[:, y : y + side, x : x + side]
        turned = []
        for patch in (imresize(crop.clone(), size=(8, 8)), crop):
            patch = patch.flip(1) if turn & 1 else patch
            patch = patch.flip(2) if turn & 2 else patch
            turned.append((patch.transpose(1, 2) if turn & 4 else patch).to(torch.float32) / 255)
        assert torch.equal(lr[b], turned[0])
        place = (coord[b] + 1) / cell[b] - 0.5  # in pixels of the crop
        row, column = place.round().long().T
        assert (place - place.round()).abs().max() < 1e-4 and torch.equal(target[b], turned[1][:, row, column].T)
        assert torch.equal(cell[b], torch.full((2,), 2 / side))
        assert len({*zip(row.tolist(), column.tolist(), strict=True)}) == 40
    assert set(drawn[0].tolist()) == {0, 1, 2} and set(drawn[4].tolist()) == set(range(8))


def test_scales_places_and_pixels_are_drawn_evenly(store: Store) -> None:
    image, side, y, x, turn, chosen = Queries(store, patch=8, batch=6000, queries=4, seed=0)._draw(0)
    assert (side.min(), side.max()) == (8, 32)
    assert np.abs(np.bincount(side, minlength=33)[9:32] / 6000 - 1 / 24).max() < 0.01  # the two ends: half as often
    assert abs((image == 1).mean() - 1 / 3) < 0.03 and np.abs(np.bincount(turn) / 6000 - 1 / 8).max() < 0.02
    for i, (height, width) in enumerate(store._hr.sizes):
        here = image == i
        assert y[here].min() == x[here].min() == 0
        assert (y + side)[here].max() == height and (x + side)[here].max() == width
    part = chosen / side[:, None] ** 2
    assert abs(part.mean() - 0.5) < 0.01 and part.max() < 1 and (np.diff(chosen) > 0).all()


def test_all_pixels_may_be_asked(store: Store) -> None:
    lr, coord, _, target = Queries(store, (1, 1), patch=6, batch=2, queries=36).batch(0)
    assert torch.equal(target, lr.flatten(2).mT)
    assert torch.allclose(coord[0, [0, -1]], torch.tensor([[-5 / 6, -5 / 6], [5 / 6, 5 / 6]]))
    Queries(store, patch=1, batch=2, queries=1).batch(0)


def test_a_batch_of_queries_depends_on_seed_and_step_alone(store: Store) -> None:
    options = {"patch": 8, "queries": 20}
    batch = Queries(store, **options, batch=3, seed=5).batch(3)
    state = torch.get_rng_state()
    larger = Queries(store, **options, batch=5, seed=5, resident=True).batch(3)
    assert all(torch.equal(a, b[:3]) for a, b in zip(batch, larger, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    for other in (Queries(store, **options, batch=3, seed=6).batch(3), Queries(store, **options, seed=5).batch(4)):
        assert not torch.equal(other[0][:3], batch[0])


def test_the_draws_of_queries_are_fixed_for_good(store: Store) -> None:
    drawn = Queries(store, patch=8, batch=3, queries=3, seed=0)._draw(1)
    pixels = [[2, 254, 284], [5, 9, 46], [90, 183, 214]]
    assert [part.tolist() for part in drawn] == [[2, 1, 0], [21, 9, 21], [16, 26, 0], [35, 10, 11], [0, 5, 6], pixels]


def test_queries_refuse_what_does_not_work(store: Store) -> None:
    said = "1 of 3 images of images cannot hold a patch of 40x40: a, the smallest, is 38x50; .* at least 40 pixels"
    cases = [
        ({"patch": 10, "queries": 1}, said),
        ({"patch": 8, "queries": 65}, "8x8 has 64 pixels at x1, fewer than 65 queries: give at most 64"),
        ({"patch": 8, "queries": 0}, "queries 0 do not work"),
        ({"patch": 8, "queries": 9, "scales": (4, 1)}, "scales"),
        ({"patch": 8, "queries": 9, "scales": (0.5, 1)}, "from 1 on"),
        ({"patch": 8, "queries": 9, "scales": (1, 2, 3)}, "the least and the greatest"),
        ({"patch": 8, "queries": 9, "seed": -1}, "whole number"),
    ]
    for options, words in cases:
        with pytest.raises(InputError, match=words) as error:
            Queries(store, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="step -1"):
        Queries(store, patch=4, queries=4).batch(-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [None, False])
def test_cuda_gives_the_same_queries(store: Store, resident: bool | None) -> None:
    options = {"patch": 8, "queries": 20, "seed": 2}
    expected = Queries(store, **options).batch(11)
    got = Queries(store, **options, device="cuda", resident=resident).batch(11)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, got, strict=True))


# --- Real-ESRGAN's degradation --------------------------------------------------------------------


@pytest.mark.parametrize("resident", [False, True])
def test_degraded_patches_have_the_same_hr_patches(store: Store, cache: Path, resident: bool) -> None:
    plain = Patches(store, scale=3, patch=6, batch=4, seed=2)
    names = sorted(left_in(cache))
    patches = Patches(store, scale=3, patch=6, batch=4, seed=2, degradation="real-esrgan", resident=resident)
    lr, hr = patches.batch(5)
    assert torch.equal(hr, plain.batch(5)[1])
    assert torch.equal(lr, degrade(hr, 3, seed=2, step=5)) and not torch.equal(lr, plain.batch(5)[0])
    assert all(torch.equal(a, b) for a, b in zip(patches.batch(5), (lr, hr), strict=True))
    assert torch.equal(Patches(store, scale=3, patch=6, batch=7, seed=2, degradation="real-esrgan").batch(5)[0][:4], lr)
    assert sorted(left_in(cache)) == names


def test_degraded_patches_need_no_lr_images(store: Store, cache: Path) -> None:
    before = left_in(cache)
    Patches(store, scale=2, patch=6, degradation="real-esrgan").batch(0)
    assert left_in(cache) == before


def test_unknown_degradations_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match="no degradation called 'blur': use bicubic or real-esrgan instead"):
        Patches(store, patch=4, degradation="blur")
    with pytest.raises(InputError, match="cannot hold a patch"):
        Patches(store, scale=4, patch=10, degradation="real-esrgan")


def test_a_degraded_store_is_fixed_and_says_so(root: Path, cache: Path) -> None:
    plain = Store.open(data.find("Set5", root), cache)
    store = data.degraded(plain, seed=3)
    assert [store.lr_origin(scale) for scale in (2, 4)] == ["real-esrgan, seed 3"] * 2
    assert (store.name, store.names, store.fingerprint) == (plain.name, plain.names, plain.fingerprint)
    lr, hr = store.pair(1, 2)
    assert lr.dtype == torch.uint8 and tuple(lr.shape) == (3, 10, 15) and tuple(hr.shape) == (3, 20, 30)
    assert torch.equal(lr / 255, degrade(hr[None] / 255, 2, seed=3, index=1)[0])
    assert torch.equal(data.degraded(Store.open(data.find("Set5", root), cache), 3).lr(1, 2), lr)
    assert len({one.lr_fingerprint(2) for one in (plain, store, data.degraded(plain, 4))}) == 3
    assert plain.lr_origin(2) == "distributed"
    scores = evaluate.score(evaluate.bicubic(2), store, 2, replace(protocol("matlab"), ssim_window=5))
    assert scores.lr_origin == "real-esrgan, seed 3"
    with pytest.raises(InputError, match="seed -1"):
        data.degraded(plain, -1)
