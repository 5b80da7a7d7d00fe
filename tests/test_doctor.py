"""The doctor: its known values come from other implementations, what is broken is seen, and costs are those of the
conventions that they name."""

import csv
import io
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from test_resize import exact

from srlib import data, doctor, evaluate, metrics, resize
from srlib.errors import InputError


@pytest.fixture
def srlib(in_process, monkeypatch, capsys, tmp_path):
    """Run the command in this process; returns exit code, standard output and standard error."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)

    return in_process(capsys)


@pytest.fixture
def store(tmp_path, monkeypatch) -> data.Store:
    """Crops of two photographs, one of them grey."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "crops").mkdir()
    for file in data.photos("held-out").files[:2]:
        with Image.open(file) as image:
            image.crop((100, 100, 196, 180)).save(tmp_path / "crops" / file.name)
    return data.Store.open(data.folder(tmp_path / "crops"))


# --- known values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), doctor.RESIZED)
def test_known_images_are_those_of_rational_arithmetic(old, new):
    image = doctor.pattern(12)[:old, :old]
    assert doctor.RESIZED[old, new] == exact(image, (new, new), (Fraction(new, old),) * 2, eight_bits=True)


def planes(image: torch.Tensor, name: str) -> np.ndarray:
    """What a protocol compares at scale 4, in numpy."""
    values = image.numpy().astype(np.float64)
    if name == "liif-div2k":
        return values[:, 10:-10, 10:-10]
    red, green, blue = values[:, 4:-4, 4:-4]
    luma = (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 16
    return (np.floor(luma + 0.5) if name == "matlab" else luma)[None]


@pytest.mark.parametrize("name", doctor.SCORED)
def test_known_scores_are_those_of_numpy_and_scikit_image(name):
    sr, hr = (planes(image, name) for image in doctor.scored_pair())
    psnr = 10 * math.log10(255**2 / np.mean((sr - hr) ** 2))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = np.mean([structural_similarity(one, other, **options) for one, other in zip(sr, hr, strict=True)])
    assert doctor.SCORED[name] == pytest.approx((psnr, ssim), abs=1e-9)


def verdicts(root: Path | None = None) -> dict[str, str]:
    return {check.name: check.verdict for check in doctor.checks(root)}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Away from any data, with a cache of its own."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)


def test_what_is_right_passes_and_what_is_not_there_is_not_run(alone):
    found = verdicts()
    assert found.pop("LR images of Set5, value by value") == "not run"
    assert len(found) == 2 + 4 + 3 + 1 + 1 and set(found.values()) == {"ok"}


def another_cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' kernel with OpenCV's a = -0.75."""
    x, a = x.abs(), -0.75
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "another kernel": (lambda patch: patch.setattr(resize, "_cubic", another_cubic), "1/2 1/3 imresize"),
    "another luma": (lambda patch: patch.setattr(metrics, "luma", lambda x, _: x.mean(1, True)), "matlab safmn"),
    "another SSIM": (lambda patch: patch.setattr(metrics, "ssim", lambda *_: torch.ones(1)), "SSIM"),
    "another decoder": (lambda patch: patch.setattr(data, "decode", darker), "photographs"),
    "no photographs": (lambda patch: patch.setitem(data.PHOTOS, "held-out", ("gone.png",)), "photographs"),
    "no resizing": (lambda patch: patch.setattr(doctor, "imresize", failing), "imresize"),
}
decode = data.decode


def darker(content: bytes, label: str) -> np.ndarray:
    return np.maximum(decode(content, label), 1) - 1


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_fails_and_the_rest_is_checked_all_the_same(alone, monkeypatch, how):
    harm, words = BROKEN[how]
    harm(monkeypatch)
    found = verdicts()
    failed = [name for name, verdict in found.items() if verdict == "failed"]
    assert len(found) == 12 and failed
    hit = [name for name in found if any(word in name for word in words.split())]
    assert set(failed) == set(hit)


def test_one_value_of_set5_is_enough_to_fail(alone, tmp_path):
    home = tmp_path / "data" / "benchmark" / "Set5"
    rng = np.random.default_rng(0)
    hr = torch.from_numpy(rng.integers(0, 256, (3, 24, 20), dtype=np.uint8))
    lr = resize.imresize(hr, size=(12, 10))
    for folder, name, image in (("HR", "baby", hr), ("LR_bicubic/X2", "babyx2", lr)):
        (home / folder).mkdir(parents=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(home / folder / f"{name}.png")
    name = "LR images of Set5, value by value"
    assert verdicts(tmp_path / "data")[name] == "ok"
    lr[1, 5, 5] ^= 1
    Image.fromarray(lr.permute(1, 2, 0).numpy()).save(home / "LR_bicubic/X2/babyx2.png")
    (check,) = [check for check in doctor.checks(tmp_path / "data") if check.name == name]
    assert check.verdict == "failed" and check.found == "1 of 360 values differ"


def test_the_distributed_images_are_met_to_the_last_value(data_root):
    (check,) = [check for check in doctor.checks(data_root) if check.name.startswith("LR images of Set5")]
    assert check.verdict == "ok" and check.found == "0 of 719952 values differ"


# --- costs -----------------------------------------------------------------------------------------------------------


def test_opencvs_convention_by_hand():
    """At one half, the four nearest pixels weighted -3, 19, 19 and -3 of 32; those at the edge are repeated."""
    line = torch.tensor([0, 40, 200, 90, 10, 255, 30, 70], dtype=torch.uint8)
    padded = [line[0].item(), *line.tolist(), line[-1].item()]
    by_hand = [sum(w * v for w, v in zip((-3, 19, 19, -3), padded[i : i + 4], strict=True)) / 32 for i in (0, 2, 4, 6)]
    found = doctor.opencv(line.expand(3, 8, 8), (8, 4))
    assert found[0, 3].tolist() == [min(max(round(value), 0), 255) for value in by_hand]


def test_costs_are_distances_from_the_first_row_which_is_the_standard_score(store):
    rows = doctor.costs(store)
    scored = evaluate.score(evaluate.bicubic(4), store, 4, metrics.protocol("matlab"))
    assert (rows[0].psnr, rows[0].ssim) == pytest.approx((scored.psnr, scored.ssim), abs=1e-9)
    assert (rows[0].psnr_cost, rows[0].ssim_cost) == (0, 0)
    for row in rows:
        assert row.psnr_cost == row.psnr - rows[0].psnr and row.ssim_cost == row.ssim - rows[0].ssim


def test_each_row_changes_what_it_names(store):
    rows = {row.convention: row for row in doctor.costs(store)}
    rgb = metrics.Protocol("rgb", "", channel="rgb")
    scored = evaluate.score(evaluate.bicubic(4), store, 4, rgb)
    row = rows["RGB in place of luma"]
    assert (row.psnr, row.ssim) == pytest.approx((scored.psnr, scored.ssim), abs=1e-9)
    red, green, blue = 0.299, 0.587, 0.114
    expected = []
    for i in range(len(store)):
        lr, hr = store.pair(i, 4)
        enlarged = resize.imresize(lr, size=(hr.shape[1], hr.shape[2]))
        both = (hr.double().numpy(), enlarged.double().numpy())
        full = [np.floor(red * x[0] + green * x[1] + blue * x[2] + 0.5) for x in both]
        error = (full[0] - full[1])[4:-4, 4:-4]
        expected.append(10 * math.log10(255**2 / float((error**2).mean())))
    assert rows["full-range luma"].psnr == pytest.approx(np.mean(expected), abs=1e-3)
    names = "LR images saved as JPEG, quality"
    assert rows[f"{names} 75"].psnr_cost < rows[f"{names} 90"].psnr_cost < 0
    assert rows["LR images by OpenCV's bicubic"].psnr_cost < -0.1 < rows["LR images by Pillow's bicubic"].psnr_cost
    window = rows["SSIM's window 7x7 in place of 11x11"]
    assert window.psnr_cost == 0 and window.ssim_cost != 0
    assert len(rows) == 14 and len({(row.psnr, row.ssim) for row in rows.values()}) == 14


def test_costs_need_images(store, monkeypatch):
    monkeypatch.setattr(data.Store, "__len__", lambda _: 0)
    with pytest.raises(InputError, match="no images to score"):
        doctor.costs(store)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, store):
    """Costs on small images: the real ones take seconds."""
    real = doctor.costs
    monkeypatch.setattr(doctor, "costs", lambda _: real(store))


def test_the_doctor_speaks_in_tables_json_and_csv(srlib, quick):
    code, out, _ = srlib("doctor")
    assert code == 0 and "as it should be" in out and "imresize, 12x12 to 6x6" in out and torch.__version__ in out
    code, out, _ = srlib("doctor", "--json")
    told = json.loads(out)
    assert code == 0 and set(told) == {"installation", "checks", "costs"}
    assert {"srlib", "torch", "cpu", "cuda", "threads", "free memory", "cache", "data"} <= set(told["installation"])
    assert {row["verdict"] for row in told["checks"]} == {"ok", "not run"}
    code, out, _ = srlib("doctor", "--csv")
    assert code == 0 and [row["convention"] for row in csv.DictReader(io.StringIO(out))][0] == "as it should be"
    assert srlib("doctor", "--json", "--csv")[0] == 2


def test_a_failed_check_is_exit_code_1(srlib, quick, monkeypatch):
    monkeypatch.setattr(resize, "_cubic", another_cubic)
    code, out, err = srlib("doctor")
    assert code == 1 and "failed" in out and "6 of 12 checks failed (bicubic weights, 1/2" in err
    assert len(err.splitlines()) == 1


def test_without_photographs_the_rest_is_told(srlib, monkeypatch):
    monkeypatch.setitem(data.PHOTOS, "held-out", ("gone.png",))
    code, out, err = srlib("doctor")
    assert code == 1 and "no costs: no gone.png" in out and "photographs, as decoded" in err


def test_a_data_folder_that_is_not_there_is_one_line(srlib, tmp_path):
    code, _, err = srlib("doctor", "--data-root", tmp_path / "none")
    assert code == 2 and "no data folder" in err and len(err.splitlines()) == 1
