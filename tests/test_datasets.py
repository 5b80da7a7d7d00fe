"""What is found by a name or a folder, what is said of sets that are not whole, and how datasets are fetched."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from srlib import datasets
from srlib.errors import InputError


def fill(folder: Path, names: list[str], size: tuple[int, int] = (24, 32), suffix: str = ".png") -> Path:
    """Small images, ``size`` is (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (9, 8, 7)).save(folder / (name + suffix))
    return folder


def manga(root: Path, n: int) -> Path:
    return fill(root / "benchmark" / "Manga109" / "HR", [f"{i:03}" for i in range(n)])


def test_the_photographs_are_split_without_overlap():
    train, held_out = datasets.find("photos/train"), datasets.find("photos/held-out")
    assert (len(train.files), len(held_out.files)) == (11, 4) and not {*train.names} & {*held_out.names}
    assert train.title == "photos/train" and train.notes == ()


def test_finding_imports_neither_torch_nor_scikit_image():
    code = "import sys; from srlib import datasets; datasets.find('photos/train')"
    code += "; assert not {'torch', 'skimage', 'pooch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_sorted_and_what_it_leaves_out_is_said(tmp_path):
    folder = fill(tmp_path / "mine", ["b", "a", ".hidden"])
    fill(folder, ["c"], suffix=".jpg")
    (folder / "c.jpg").rename(folder / "photo")  # known by its content
    fill(folder, ["D"], suffix=".JPG")
    (folder / "a.png").rename(folder / "a.jfif")
    (folder / "notes.txt").write_text("no image")
    (folder / "e.png").symlink_to("nowhere.png")
    found = datasets.find(str(folder))
    assert [file.name for file in found.files] == ["D.JPG", "a.jfif", "b.png", "photo"]
    assert found.title == "mine (4 of 5 images)", "a link that leads nowhere counts"
    left_out = ("links that lead nowhere: e.png", "no images: notes.txt")
    assert found.notes == tuple(f"{folder}: left out, {one}" for one in left_out)
    fill(folder, ["b"], suffix=".bmp")
    assert datasets.find(str(folder)).names[2:4] == ("b.bmp", "b.png"), "names stay different"


def test_a_folder_may_have_any_name_and_place(tmp_path, monkeypatch):
    fill(tmp_path / "photos" / "mine", ["a"])
    fill(tmp_path / "data" / "train" / "BSD400", ["a"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    assert datasets.find("photos/mine").name == "mine"
    assert datasets.find("train/BSD400", "data") == datasets.find("BSD400", "data")
    assert datasets.find("BSD400", "data").name == "BSD400"
    with pytest.raises(InputError, match="train holds no images: name a folder below it .BSD400"):
        datasets.find("data/train")
    with pytest.raises(InputError, match="no images called 'none'.*photos/train.*Set5"):
        datasets.find("none")


def test_a_known_set_that_is_not_whole_says_so_in_its_name(tmp_path):
    manga(tmp_path, 9)
    home = tmp_path / "benchmark" / "Manga109"
    for spec in ("Manga109", "manga109", str(home), str(home / "HR")):
        found = datasets.find(spec, tmp_path)
        assert found.title == "Manga109 (9 of 109 images)" and found.notes == ("9 of the 109 images of Manga109",)
    manga(tmp_path, 109)
    found = datasets.find("Manga109", tmp_path)
    assert (found.title, found.notes, len(found.files)) == ("Manga109", (), 109)
    (tmp_path / datasets.DATASETS["BSD100"].hr[0]).mkdir(parents=True)  # empty, and passed over
    fill(tmp_path / "benchmark" / "B100" / "HR", ["1"])
    assert {datasets.find(name, tmp_path).title for name in ("BSD100", "b100")} == {"BSD100 (1 of 100 images)"}
    fill(tmp_path / "benchmark" / "Manga109" / "HR", ["extra"])
    assert datasets.find("Manga109", tmp_path).title == "Manga109 (110 of 109 images)"


def test_other_images_are_not_the_known_set(tmp_path):
    home = tmp_path / "benchmark" / "Set5" / "HR"
    for name, size in zip("abcde", datasets.DATASETS["Set5"].sizes, strict=True):
        fill(home, [name], (size[0] - 8, size[1]))  # cropped, as distributions do
    assert datasets.find("Set5", tmp_path).title == "Set5"
    fill(home, ["c"], (90, 90))
    found = datasets.find("Set5", tmp_path)
    assert found.title == "Set5 (4 of 5 images)" and found.names == tuple("abde")
    assert "c.png is 90x90, not 256x256" in found.notes[0]


def test_lr_folders_in_either_case_and_others_by_name(tmp_path):
    manga(tmp_path, 2)
    home = tmp_path / "benchmark" / "Manga109"
    for folder in ("X2", "x4", "X4_old"):
        fill(home / "LR_bicubic" / folder, ["000"])
    found = datasets.find("Manga109", tmp_path)
    assert [file.name for file in found.lr_files[4]] == ["000x4.png", "001x4.png"] and set(found.lr_files) == {2, 4}
    assert found.lr_files[4][0].parent.name == "x4"
    assert found.notes[-1].endswith("LR_bicubic: not used: X4_old; LR images lie in folders such as X2 or x4")
    assert set(datasets.find(str(home)).lr_files) == {2, 4}


def test_df2k_is_two_sets_with_the_scales_of_both(tmp_path):
    for name, scales in (("DIV2K/DIV2K_train", "24"), ("Flickr2K/Flickr2K", "23")):
        fill(tmp_path / f"{name}_HR", ["0001", "0002"])
        for scale in scales:
            fill(tmp_path / f"{name}_LR_bicubic" / f"X{scale}", ["0001"])
    found = datasets.find("DF2K", tmp_path)
    assert datasets.find(str(tmp_path / "DIV2K" / "DIV2K_train_HR")).title == "DIV2K_train (2 of 800 images)"
    assert found.title == "DF2K (4 of 3450 images)" and set(found.lr_files) == {2} and len(found.lr_files[2]) == 4
    (tmp_path / "train" / "DF2K").mkdir(parents=True)
    assert datasets.find("df2k", tmp_path) == found, "an empty folder is none"
    fill(tmp_path / "train" / "DF2K" / "HR", ["a", "b", "c"])
    for spec in ("df2k", str(tmp_path / "train" / "DF2K")):
        found = datasets.find(spec, tmp_path)
        assert (found.title, found.names, found.notes) == ("DF2K", ("a", "b", "c"), ())


def test_a_data_folder_that_is_named_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no data folder .*nowhere: name the one with benchmark/Set5/HR"):
        datasets.find("Set5", tmp_path / "nowhere")
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="set SRLIB_DATA to the one"):
        datasets.listing()
    assert datasets.find("photos/train").files, "these need none"
    monkeypatch.delenv("SRLIB_DATA")
    with pytest.raises(InputError, match="no Set5 here: SRLIB_DATA names no data folder; its 5 images go to benchmark"):
        datasets.find("Set5")
    with pytest.raises(InputError, match="no Manga109 in .*ask for it at http"):
        datasets.find("Manga109", tmp_path)


def test_the_list_says_what_is_here(tmp_path):
    manga(tmp_path, 3)
    fill(tmp_path / "benchmark" / "Manga109" / "LR_bicubic" / "X4", ["000x4"])
    rows = datasets.listing(tmp_path)
    assert {row.name for row in rows} == {*datasets.DATASETS}
    assert [(row.what, row.found, row.expected) for row in rows if row.found] == [("HR", 3, 109), ("x4", 1, 109)]
    assert datasets.listing(tmp_path, ["manga109"])[0].problems == ("3 of the 109 images of Manga109",)
    assert {row.name for row in datasets.listing(tmp_path, ["DIV2K"])} == {"DIV2K_train", "DIV2K_val"}
    with pytest.raises(InputError, match="no dataset called 'Set6': choose one of Set5"):
        datasets.listing(tmp_path, ["Set6"])


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set5 as an archive that was fetched by hand into the data folder: no network is needed."""
    import pooch

    root = tmp_path / "data"
    (root / ".downloads").mkdir(parents=True)
    file = root / ".downloads" / "five.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, size in zip("abcde", datasets.DATASETS["Set5"].sizes, strict=True):
            fill(tmp_path / "five", [name], tuple(size))
            archive.write(tmp_path / "five" / f"{name}.png", f"benchmark/Set5/HR/{name}.png")
        archive.writestr("benchmark/Other/HR/a.png", b"")
    entry = {"url": "https://nowhere.invalid/five.zip", "folders": ["benchmark/Set5"], "into": "."}
    entry["checksum"] = f"sha256:{pooch.file_hash(str(file))}"
    monkeypatch.setitem(datasets.DATASETS, "Set5", replace(datasets.DATASETS["Set5"], archives=(entry,)))
    return root


def test_get_unpacks_checks_and_cleans_up(offered):
    said: list[str] = []
    (offered / "benchmark" / "Set5" / "HR").mkdir(parents=True)  # as an interrupted call may leave it
    rows = datasets.get("Set5", offered, say=said.append)
    assert [(row.found, row.problems) for row in rows] == [(5, ())] and "terms of use" in said[0]
    assert not (offered / ".downloads" / "five.zip").exists() and not (offered / "benchmark" / "Other").exists()
    assert datasets.find("Set5", offered).title == "Set5"
    datasets.get("Set5", offered, say=said.append)
    assert sum(line.startswith("from") for line in said) == 1, "what is whole is not fetched again"


def test_an_archive_with_another_checksum_is_not_unpacked(offered, monkeypatch):
    import pooch

    def damaged(url: str, file: str, _: object) -> None:
        Path(file).write_bytes(b"something else")

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: damaged)
    with pytest.raises(InputError, match="five.zip could not be fetched into .*new.*does not match the known hash"):
        datasets.get("Set5", offered / "new", say=lambda _: None)
    assert not (offered / "new" / "benchmark").exists() and (offered / "new").is_dir(), "the folder is made"
    with pytest.raises(InputError, match="ask for it at .*on application to the publisher"):
        datasets.get("Manga109", offered, say=lambda _: None)
