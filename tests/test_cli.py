"""The command line: each command by its options, its exit codes, and one line for what can't be done."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import srlib
from srlib import cli, complexity, datasets, models, results, runs
from srlib.errors import Stopped
from srlib.models import create

Srlib = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Srlib]:
    """Run the command in this process, away from any data."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    usual = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, usual)  # that of `upscale` ends the process


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two small images."""
    noise = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(noise.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smoke budget of three steps."""
    budget = replace(runs.BUDGETS["smoke"], steps=3, ablation_steps=2, batch=2, patch=8)
    monkeypatch.setitem(runs.BUDGETS, "smoke", budget)


def refused(result: Result) -> str:
    """The line on standard error that ends a command with exit code 2."""
    assert result.exit_code == 2 and result.stderr.startswith("srlib: "), result.output
    return result.stderr.splitlines()[-1]


def frame(result: Result) -> pd.DataFrame:
    """What was printed as CSV."""
    assert result.exit_code == 0, result.output
    return pd.read_csv(io.StringIO(result.stdout))


def test_help_needs_no_torch_and_so_comes_at_once() -> None:
    flags = [sys.executable, "-X", "importtime", "-m", "srlib", "--help"]
    done = subprocess.run(flags, capture_output=True, text=True, check=True, timeout=60)
    found = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in found and not {"torch", "numpy", "pandas"} & found


def test_every_command_has_help_and_an_example_and_the_version_is_the_packages(command: Srlib) -> None:
    commands = {"train", "evaluate", "upscale", "export", "table", "complexity", "weights", "record", "doctor", "data"}
    assert all(f"\n  {name} " in command("--help").stdout for name in commands)
    assert all(f"Example: srlib {name}" in command(name, "-h").stdout for name in commands - {"data"})
    assert command("--version").stdout == f"{srlib.__version__}\n"
    assert command().exit_code == 2 and "Usage" in command().output


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("train", "nothing"), "safmn"),
        (("train", "safmn", "--table", "3"), "--table and --row go together"),
        (("train", "safmn", "--table", "3", "--row", "nothing"), "nothing"),
        (("train", "seemore-b", "--table", "4a", "--row", "Baseline"), "seemore-t"),
        (("train", "safmn", "--data", "nowhere"), "nowhere"),
        (("evaluate", "--scale", "4"), "--record RUN"),
        (("evaluate", "safmn", "--weights", "none.pth"), "none.pth"),
        (("evaluate", "--record", "none.json"), "none.json is no run"),
        (("evaluate", "bicubic", "--protocol", "nothing"), "nothing"),
        (("evaluate", "bicubic", "--record", "none.json"), "none.json is no run"),
        (("evaluate", "bicubic", "--weights", "none.pth"), "bicubic has no weights"),
        (("upscale", __file__, "out", "--model", "bicubic", "--weights", "none.pth"), "bicubic has no weights"),
        (("upscale", "none.png", "out.png"), "none.png"),
        (("table", "safmn", "99"), "99"),
        (("complexity", "nothing"), "nothing"),
        (("data", "list", "nothing", "--data-root", "."), "nothing"),
        (("evaluate", "safmn", "--device", "cpu", "--precision", "fp16"), "--precision bf16"),
        (("evaluate", "bicubic", "--precision", "bf16"), "leave out --weights and --precision"),
        (("export", "bicubic", "out.onnx"), "name a model"),
        (("export", "safmn", "README.md"), "give one such as safmn.onnx"),
        (("record", "none.json", "x", "--purpose", "ships"), "none.json is no run"),
        (("record", __file__, "x", "--purpose", "ships"), "test_cli.py is no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command: Srlib, arguments: tuple[str, ...], mend: str) -> None:
    assert mend in refused(command(*arguments))


def test_a_reader_that_leaves_early_ends_the_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    listing = [sys.executable, "-m", "srlib", "data", "list"]
    done = subprocess.run(listing, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_run_is_trained_found_again_scored_and_recorded(
    command: Srlib, images: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "safmn", "--scale", "2", "--data", images, "--held-out", images, "--record", "deep/run.json")
    first = command(*train)
    assert first.exit_code == 0, first.output
    assert "3 steps" in first.stdout and "images x2 PSNR" in first.stdout and "LR: " in first.stdout
    assert command(*train).stdout.splitlines() == first.stdout.splitlines()[-1:], "found, not trained"
    said = json.loads(Path("deep/run.json").read_text())
    assert Path(said["run"]).is_dir() and not Path(said["run"]).is_absolute()
    scores = frame(command("evaluate", "--record", "deep/run.json", "--data", images, "--csv"))
    assert list(scores.model) == ["safmn", "bicubic"] and f"{scores.psnr[0]:.2f} dB" in first.stdout
    same = frame(command("evaluate", "--record", said["run"], "--data", images, "--csv"))
    assert same.equals(scores), "a run is its folder, too"
    for more in (("--scale", "4"), ("bicubic",), ("--weights", "model.safetensors")):
        assert "name no other, and leave out" in refused(command("evaluate", "--record", said["run"], *more))
    seen: list[object] = []

    def keep(run: runs.Run, *given: object, **named: str) -> pd.DataFrame:
        seen.extend((run.folder, *given[:2], named))
        return pd.DataFrame({"psnr": [1.0]})

    monkeypatch.setattr("srlib.results.record", keep)
    assert command("record", "deep/run.json", "equal-safmn-seed0", "--purpose", "equal").exit_code == 0
    assert seen == [Path(said["run"]), "equal-safmn-seed0", "equal", {"table": "", "row": ""}]


def test_a_tables_row_is_trained_by_its_label_or_slug(command: Srlib, images: Path, tiny: None) -> None:
    given = ("--data", images, "--held-out", images)
    by_label = command("train", "safmn", "--table", "3", "--row", "CCM -> Channel MLP", *given)
    assert by_label.exit_code == 0 and "2 steps" in by_label.stdout, by_label.output
    by_slug = command("train", "safmn", "--table", "3", "--row", "ccm-to-channel-mlp", *given)
    assert by_slug.stdout.splitlines() == by_label.stdout.splitlines()[-1:], "found, not trained"


def test_a_stopped_training_exits_with_75(
    command: Srlib, images: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object, **named: object) -> None:
        assert (named["device"], named["compile"], named["wait"]) == ("cpu", True, False)
        raise Stopped("stopped by SIGTERM at step 2; the same command resumes")

    monkeypatch.setattr(runs, "train_or_load", stopped)
    how = ("--device", "cpu", "--compile", "--no-wait")
    result = command("train", "safmn", "--scale", "2", "--data", images, "--held-out", images, *how)
    began, ended = result.stderr.splitlines()
    assert began.startswith("srlib: runs/safmn-x2-3-") and began.endswith(": 3 steps of batch 2 on images")
    assert result.exit_code == 75 and ended == "srlib: stopped by SIGTERM at step 2; the same command resumes"


def test_scores_say_their_protocol_and_where_lr_images_come_from(command: Srlib, images: Path) -> None:
    given = ("evaluate", "bicubic", "--scale", "2", "--data", images, "--csv")
    scores = frame(command(*given, "--protocol", "liif", "--protocol", "safmn"))
    assert list(scores) == ["dataset", "scale", "model", "protocol", "lr", "psnr", "ssim"]
    assert list(scores.protocol) == ["liif", "safmn"] and scores.lr.notna().all()
    by_image = frame(command(*given, "--protocol", "liif", "--images"))
    assert len(by_image) == 2 and by_image.psnr.mean() == pytest.approx(scores.psnr[0])
    assert "luma" in frame(command(*given, "--luma")).protocol[0]


def test_the_list_and_the_scores_agree_on_what_is_whole(command: Srlib, tmp_path: Path) -> None:
    folder = tmp_path / "benchmark" / "Set5" / "HR"
    folder.mkdir(parents=True)
    for name, size in zip("abcde", datasets.DATASETS["Set5"].sizes, strict=True):
        Image.new("RGB", size).save(folder / f"{name}.png")
    (folder / "readme.txt").write_text("about them")
    listed = ("data", "list", "Set5", "--data-root", tmp_path)
    assert command(*listed).exit_code == 0 and "no images: readme.txt" in command(*listed).stderr
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:100])
    result = command(*listed)
    assert result.exit_code == 1 and result.stdout.split()[-4:-1] == ["HR", "5", "4"], result.stdout
    assert "a.png cannot be read" in result.stderr
    result = command("evaluate", "bicubic", "--data", "Set5", "--data-root", tmp_path, "--csv")
    assert result.exit_code == 1 and "Set5 (4 of 5 images),4,bicubic" in result.stdout


def test_a_dataset_that_cannot_be_scored_stops_no_other(command: Srlib, images: Path) -> None:
    (lr := images.parent / "other" / "LR_bicubic" / "X2").mkdir(parents=True)
    shutil.copytree(images, lr.parents[1] / "HR")
    given = ("evaluate", "bicubic", "--scale", "2", "--csv", "--data", "other")
    assert "other x2 is not scored: other/LR_bicubic/X2/0x2.png cannot be read" in refused(command(*given))
    result = command(*given, "--data", images)
    assert result.exit_code == 1 and result.stdout.splitlines()[1].startswith("images,2,bicubic"), result.output
    assert len(result.stdout.splitlines()) == 2 and "0x2.png cannot be read" in result.stderr


def test_released_weights_are_scored(command: Srlib, images: Path) -> None:
    torch.save({"params": create("safmn", 2).state_dict()}, "released.pth")
    given = ("evaluate", "safmn", "--data", images, "--weights", "released.pth", "--csv", "--scale")
    assert list(frame(command(*given, "2")).model) == ["safmn", "bicubic"]
    result = command(*given, "4")
    assert result.exit_code == 2 and "released.pth does not fit" in result.stderr


def test_pictures_are_enlarged_and_left_when_they_are_there(command: Srlib, images: Path) -> None:
    one = ("upscale", images / "0.png", "large.png")
    assert command(*one).exit_code == 0 and Image.open("large.png").size == (288, 256)
    assert "is there already" in refused(command(*one))
    assert "is there already" in refused(command("upscale", "./images/0.png", "large.png"))
    assert command(*one, "--model", "bicubic", "--scale", "2.5", "--force").exit_code == 0
    assert Image.open("large.png").size == (180, 160)
    (images / "below").mkdir()
    (images / "1.png").rename(images / "below" / "1.png")
    folder = ("upscale", images / "below", "kept", "--model", "bicubic")
    assert command(*folder).stdout == "kept/1.png: done\n" and command(*folder).stdout == "kept/1.png: kept\n"
    assert command(*folder).exit_code == 0
    several = ("upscale", images, "out", "--model", "bicubic", "--scale", "2", "--format", "webp")
    assert command(*several).exit_code == command(*several).exit_code == 0
    (images / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = command(*several)
    assert result.exit_code == 1 and "2.png" in result.stderr and len(list(Path("out").rglob("*.webp"))) == 2
    result = command("upscale", images / "0.png", "x.png", "--model", "safmn", "--scale", "2.5")
    assert "whole number" in refused(result)
    usual = [command("upscale", images / "0.png", f"x{scale}.png", "--scale", scale).stderr for scale in ("2", "2.5")]
    assert [said.split(":")[1] for said in usual] == [" safmn", " moeisr-lte-s-edsr"]


def test_an_image_that_cannot_be_read_stops_no_other_and_gives_exit_code_1(command: Srlib, images: Path) -> None:
    smooth = Image.fromarray(np.zeros((64, 72, 3), np.uint8)).resize((300, 300))
    smooth.save(images / "phone.jpg")
    whole = (images / "phone.jpg").read_bytes()
    (images / "phone.jpg").write_bytes(whole[:-2])  # all its pixels, but no end marker
    evaluate = ("evaluate", "bicubic", "--data", images, "--csv")
    result = command(*evaluate)
    assert list(frame(result).dataset) == ["images"] and "phone.jpg: it has all its pixels" in result.stderr
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:900])
    result = command(*evaluate)
    assert result.exit_code == 1 and "images (2 of 3 images),4,bicubic" in result.stdout
    assert "1.png cannot be read" in result.stderr
    result = command("upscale", images, "out", "--model", "bicubic")
    assert result.exit_code == 1 and sorted(path.name for path in Path("out").iterdir()) == ["0.png", "phone.jpg"]
    assert "phone.jpg: it has all its pixels" in result.stderr and "1.png cannot be read" in result.stderr


def test_sigterm_leaves_nothing_half_written(images: Path, tmp_path: Path) -> None:
    """It comes in the middle of writing the second of two pictures."""
    code = (
        "import os, pyvips, signal, sys; from functools import partial; from srlib import cli\n"
        "save = partial(pyvips.Operation.call, 'pngsave')\n"
        "def end(image, path, **options):\n"
        "    save(image, path, **options)\n"
        "    '1.png' in path and os.kill(os.getpid(), signal.SIGTERM)\n"
        "pyvips.Image.pngsave = end\n"
        "cli.app(['upscale', *sys.argv[1:], '--model', 'bicubic'])"
    )
    done = subprocess.run([sys.executable, "-c", code, images, tmp_path / "out"], capture_output=True, timeout=60)
    assert done.returncode == 143 and [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"], done.stderr


def test_half_precision_is_named_and_refused_where_it_loses(command: Srlib, images: Path) -> None:
    given = ("evaluate", "safmn", "--scale", "2", "--data", images, "--device", "cpu", "--csv")
    damaged = {key: 1e30 * weight for key, weight in create("safmn", 2).state_dict().items()}
    torch.save({"params": damaged}, "damaged.pth")
    torch.save({"params": create("safmn", 2).state_dict()}, "own.pth")
    own = (*given, "--weights", "own.pth", "--precision")
    full, half = (frame(command(*own, precision)) for precision in ("32-true", "bf16"))
    assert list(half.model) == ["safmn in bf16", "bicubic"]
    assert half.psnr[0] != full.psnr[0] and half.psnr[0] == pytest.approx(full.psnr[0], abs=0.1)
    assert "damaged" in refused(command(*given, "--weights", "damaged.pth"))
    assert "not finite" in refused(command(*given, "--weights", "damaged.pth", "--precision", "bf16"))


def test_the_weights_that_ship_are_listed_with_their_gain(command: Srlib) -> None:
    found = frame(command("weights", "--csv"))
    assert "30.42" in command("weights").stdout and "32.18" in command("table", "safmn", "1").stdout
    assert {"safmn", "seemore-t", "ssiu"} <= set(found.model) and (found["photos/held-out gain"] > 0.5).all()
    assert set(found["photos/held-out lr"]) == {"matlab-bicubic"} and set(found["Set5 lr"]) == {"distributed"}


def test_a_table_prints_as_csv(command: Srlib) -> None:
    cells = frame(command("table", "safmn", "2", "--csv"))
    assert len(cells) == 12 and set(cells.verdict) == {"not-run"}
    assert list(cells)[:10] == "row,variant,scale,dataset,metric,printed,ours,unit,verdict,note".split(",")
    assert list(frame(command("table", "ssiu", "s3b", "--csv"))) == "row psnr gap runs training ended".split()


def test_counts_are_the_printed_ones(command: Srlib, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAFMN's Table 1 at x4: 0.24 M parameters, 14 G FLOPs; Table 3 prints 239.52 K, 76.70 M activations."""
    row = frame(command("complexity", "safmn", "--csv")).iloc[0]
    assert (row.params, row.lr_height, row.lr_width) == (239_520, 180, 320)
    assert round(row.macs / 1e9) == 14 and round(row.acts / 1e6, 1) == 76.7
    monkeypatch.setattr("srlib.complexity.latency", partial(complexity.latency, warmup=0, repeats=1))
    any_scale = frame(command("complexity", "moeisr-lte-s-edsr", "--csv", "--time")).iloc[0]
    assert any_scale.macs > any_scale.params > 1_000_000 and 0 < any_scale.minimum <= any_scale.units


def test_datasets_are_listed_and_the_doctor_finds_nothing(command: Srlib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "get", lambda name, root, say: print(name, root) or [])
    assert command("data", "get", "Set5", "--data-root", "here").stdout.startswith("Set5 here")
    assert "Urban100" in command("data", "list").stdout
    assert "no data folder" in refused(command("data", "list", "Set5"))
    result = command("doctor")
    assert result.exit_code == 0 and result.stdout.count(": ok") == 2 and srlib.__version__ in result.stdout


def test_a_check_that_fails_is_named_and_exit_code_1(command: Srlib, monkeypatch: pytest.MonkeyPatch) -> None:
    one = results.shipped(4).head(1)
    monkeypatch.setattr("srlib.results.shipped", lambda scale: one)
    monkeypatch.setattr("srlib.results.load", lambda model: create(model, 4 if models.takes_scale(model) else None))
    result = command("doctor")
    assert result.exit_code == 1 and "weights and metrics: FAILED" in result.stdout and "resizing: ok" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("srlib: a check failed")
