"""The command line: what works prints figures, and bad input is one line that says how to mend it, with exit code 2."""

import csv
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srlib import cli
from srlib.errors import InputError
from srlib.models import create
from srlib.models.encoders import EDSR, ENCODERS
from srlib.models.safmn import SAFMNConfig


@pytest.fixture
def srlib(in_process, monkeypatch, capsys, tmp_path):
    """Run the command in this process, away from any data; returns exit code, standard output and standard error."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    return in_process(capsys)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder with two small images."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(noise.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "srlib", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout and "torch" not in done.stderr


def test_without_arguments_the_help_comes_as_it_is(srlib):
    for arguments, command in (((), "upscale"), (("data",), "check")):
        code, out, err = srlib(*arguments)
        assert (code, err) == (2, "") and out.count("\n") > 5 and f"\n  {command} " in out
    code, out, _ = srlib("data", "-h")
    assert code == 0 and "check" in out


def test_the_version_is_that_of_the_package(srlib):
    from srlib import __version__

    assert srlib("--version") == (0, f"{__version__}\n", "")


def test_a_wrong_option_leads_to_the_help_of_its_command(srlib):
    code, _, err = srlib("upscale", "--qqq")
    assert code == 2 and err.startswith("srlib: No such option: --qqq") and err.endswith(" upscale --help`.\n")


def test_a_table_prints_as_csv(srlib):
    code, out, _ = srlib("table", "safmn", "2", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 12
    assert list(rows[0]) == "row,variant,scale,dataset,metric,printed,ours,unit,verdict,note".split(",")
    assert {row["verdict"] for row in rows} == {"not-run"}


def test_all_tables_are_written_with_what_made_each_number(srlib, tmp_path, monkeypatch):
    from srlib import papers

    kept = [("safmn", 1), ("safmn", 5)]
    monkeypatch.setattr(papers, "tables", lambda: kept)
    results = Path(__file__).resolve().parent.parent / "book" / "results"
    code, out, _ = srlib("tables", tmp_path / "t", "--records", results)
    assert code == 0 and "2 tables, 559 printed cells" in out
    assert json.loads((tmp_path / "t/index.json").read_text())["tables"] == ["safmn-table-1", "safmn-table-5"]
    table = json.loads((tmp_path / "t/safmn-table-1.json").read_text())
    cells = {cell["record"].partition("#")[2]: cell for cell in table["cells"]}
    counted, scored = cells["safmn-ours-x4-flops"], cells["bicubic-x4-set5-psnr"]
    network = table["networks"][counted["network"]]
    assert counted["how"] == "counted" and (network["model"], network["lr"]) == ("safmn", [180, 320])
    assert network["config"]["scale"] == 4 and table["counts"]["exact"] > 0 and table["commit"]
    assert (scored["how"], scored["source"]) == ("scored", "bicubic/luma-x4.json") and "network" not in scored
    assert cells["carn-x4-set5-psnr"]["how"] == "not run"
    assert (tmp_path / "t/safmn-table-5.csv").read_text().count("\n") == 7


def test_complexity_prints_the_printed_parameters(srlib):
    code, out, _ = srlib("complexity", "safmn", "--scale", "4", "--height", "8", "--width", "8", "--json")
    assert code == 0 and json.loads(out)[0]["params"] == 239_520


def test_complexity_gives_the_range_over_routes(srlib):
    """6 groups of 36 channels: an expert's rank is worth 3 x 36 multiply-adds a pixel; all have 14, a route 2 to 8."""
    code, out, _ = srlib("complexity", "seemore-t", "--height", "8", "--width", "8", "--json")
    (row,) = json.loads(out)
    rank = 6 * 3 * 36 * 64
    assert code == 0 and row["params"] == 231_804
    assert (row["macs"] - row["macs_least"], row["macs"] - row["macs_most"]) == (12 * rank, 6 * rank)


def test_bicubic_is_scored_and_written_whole(srlib, photographs, tmp_path):
    out_file = tmp_path / "deep" / "scores.json"
    command = ("evaluate", "bicubic", "--scale", "2", "--data", photographs, "--protocol", "liif", "--csv")
    code, out, _ = srlib(*command, "--out", out_file)
    rows = list(csv.DictReader(io.StringIO(out)))
    record = json.loads(out_file.read_text())
    assert code == 0 and [row["protocol"] for row in rows] == ["liif"]
    assert record["bicubic"][0]["psnr"] == pytest.approx(float(rows[0]["psnr"]))
    assert record["bicubic"][0]["protocol"]["round_image"] is False


def test_released_weights_are_scored(srlib, photographs, tmp_path):
    torch.save({"params": create("safmn", 2).state_dict()}, tmp_path / "released.pth")
    command = ("evaluate", "safmn", "--scale", "2", "--data", photographs, "--json")
    code, out, _ = srlib(*command, "--weights", tmp_path / "released.pth")
    assert code == 0 and [row["model"] for row in json.loads(out)] == ["safmn", "bicubic"]
    code, _, err = srlib(*command[:3], "4", *command[4:], "--weights", tmp_path / "released.pth")
    assert code == 2 and "released.pth does not fit" in err


def test_a_run_is_trained_recorded_and_scored(srlib, photographs, tmp_path, monkeypatch):
    from srlib import runs

    monkeypatch.setitem(runs.BUDGETS, "smoke", runs.Budget("smoke", 3, 2, 2, 8, 0.5, "for this test"))
    monkeypatch.setattr("srlib.papers.safmn.rows", lambda: {3: (runs_row(),)})
    record = tmp_path / "record.json"
    command = ("train", "safmn", "--scale", "2", "--table", "3", "--row", "tiny", "--record", record)
    code, out, err = srlib(*command, "--data", photographs, "--held-out", photographs)
    assert (code, err) == (0, "") and "2 steps" in out
    kept = json.loads(record.read_text())
    assert kept["row"] == "tiny" and kept["config"]["network"]["blocks"] == 1 and kept["budget"] == "smoke"
    assert str(tmp_path) not in record.read_text(), "a record holds no path of this machine"
    code, out, _ = srlib("evaluate", "--record", record, "--data", photographs, "--out", tmp_path / "eval.json")
    scores = json.loads((tmp_path / "eval.json").read_text())
    assert code == 0 and scores["run"] == kept["run"]
    assert scores["scores"][0]["psnr"] == pytest.approx(kept["held_out"]["psnr"])


def test_a_model_for_every_scale_is_trained_recorded_and_scored(srlib, photographs, tmp_path, monkeypatch):
    from srlib import runs

    own = {"moeisr-lte-s-edsr": {"queries": 30}}
    monkeypatch.setitem(runs.BUDGETS, "smoke", runs.Budget("smoke", 2, 1, 2, 6, 0.5, "for this test", own))
    monkeypatch.setattr(cli, "ANY_SCALE", (2, 3))
    monkeypatch.setitem(ENCODERS, "edsr", partial(EDSR, blocks=1))
    record = tmp_path / "record.json"
    command = ("train", "moeisr-lte-s-edsr", "--record", record, "--data", photographs, "--held-out", photographs)
    code, out, err = srlib(*command)
    assert (code, err) == (0, "") and "for every scale" in out and " x4 PSNR " in out
    kept = json.loads(record.read_text())
    assert kept["config"]["scale"] is None and kept["config"]["train"]["queries"] == 30
    assert kept["run"].startswith("moeisr-lte-s-edsr-any-2-")
    code, out, _ = srlib(
        "evaluate", "--record", record, "--data", photographs, "--csv", "--out", tmp_path / "eval.json"
    )
    scores = json.loads((tmp_path / "eval.json").read_text())
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["scale"] for row in rows] == ["2", "3"] * 2
    assert {row["protocol"] for row in rows} == {"liif"}
    assert [one["scale"] for one in scores["scores"]] == [one["scale"] for one in scores["bicubic"]] == [2, 3]
    assert scores["scale"] is None and scores["model"] == "moeisr-lte-s-edsr"
    code, out, _ = srlib("evaluate", "--record", record, "--data", photographs, "--json", "--scale", "4")
    (ours, _) = json.loads(out)
    assert code == 0 and ours["scale"] == 4 and ours["psnr"] == pytest.approx(kept["held_out"]["psnr"])
    code, _, err = srlib("train", "moeisr-lte-s-edsr", "--fine-tune", record, "--data", photographs)
    assert code == 2 and "fine-tune a network for one scale" in err


def test_released_weights_for_every_scale_are_scored(srlib, photographs, tmp_path):
    spec = {"name": "liif", "args": {}, "sd": create("liif-edsr").state_dict()}
    torch.save({"model": spec, "epoch": 1000}, tmp_path / "released.pth")
    command = ("evaluate", "liif-edsr", "--weights", tmp_path / "released.pth", "--data", photographs, "--scale", "3")
    code, out, _ = srlib(*command, "--json")
    assert code == 0 and [(row["scale"], row["protocol"]) for row in json.loads(out)] == [(3, "liif")] * 2
    div2k = photographs.rename(tmp_path / "DIV2K_val")
    code, out, _ = srlib(*command[:5], div2k, *command[6:], "--json")
    assert code == 0 and {row["protocol"] for row in json.loads(out)} == {"liif-div2k"}


def test_complexity_of_a_model_for_every_scale_follows_the_papers_formula(srlib):
    """LIIF: 4 queries a pixel of an MLP 580-256-256-256-256-3; EDSR: a multiply-add a weight and pixel."""
    code, out, _ = srlib("complexity", "liif-edsr", "--scale", "2", "--height", "6", "--width", "8", "--json")
    (row,) = json.loads(out)
    mlp = 580 * 256 + 3 * 256**2 + 3 * 256
    encoder = 48 * 9 * (3 * 64 + 33 * 64**2)
    assert code == 0 and row["encoder_macs"] == encoder
    assert row["macs"] == row["macs_least"] == row["macs_most"] == encoder + 4 * 4 * 48 * mlp
    code, out, _ = srlib("complexity", "moeisr-liif-s-edsr", "--height", "6", "--width", "8", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["encoder_macs"] == encoder < row["macs_least"] < row["macs_most"] < row["macs"]
    assert row["macs_most"] - row["macs_least"] == 4 * 16 * 48 * 3 * 128**2


@pytest.mark.parametrize("model", ["safmn", "moeisr-liif-s-edsr"])
@pytest.mark.parametrize("training", [False, True])
def test_speed_times_an_image_or_a_step(srlib, model, training, monkeypatch):
    from srlib import complexity, runs

    def once(call, device):
        call()
        return complexity.Units(2.0, 1.0, 3.0, 1, 0.01, "this one")

    monkeypatch.setattr(complexity, "in_units", once)
    monkeypatch.setattr(complexity, "lr_size", lambda scale: (12, 16))
    threads = torch.get_num_threads()
    small = runs.replace(runs.recipe(model).train, patch=8, queries=min(50, runs.recipe(model).train.queries))
    monkeypatch.setitem(runs.RECIPES, model, runs.replace(runs.recipe(model), train=small))
    code, out, _ = srlib("speed", model, "--scale", "2", "--threads", "1", "--json", *["--training"] * training)
    torch.set_num_threads(threads)
    (row,) = json.loads(out)
    assert code == 0 and row["what"] == ("training step" if training else "image") and row["units"] == 2


def runs_row():
    from srlib.papers import Row

    return Row("tiny", SAFMNConfig(blocks=1, channels=8), "safmn")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "No such command"),
        (("train", "--foo"), "No such option"),
        (("train", "resnet"), "no training recipe for 'resnet'"),
        (("train", "safmn", "--budget", "tiny"), "no budget 'tiny': choose one of smoke, short, equal, paper"),
        (("train", "safmn", "--scale", "0"), "scale"),
        (("train", "safmn", "--scale", "x"), "scale"),
        (("train", "liif-edsr", "--scale", "4"), "trained for every scale at once: leave --scale out"),
        (("train", "liif-edsr", "--budget", "paper"), "--data FOLDER"),
        (("train", "moeisr-lte-b", "--scale", "4"), "no training recipe for 'moeisr-lte-b'"),
        (("evaluate", "liif-edsr"), "no weights of liif-edsr come with srlib"),
        (("complexity", "liif-edsr", "--scale", "0"), "scale 0"),
        (("speed", "liif-edsr", "--scale", "0", "--training"), "scale 0 makes no image"),
        (("train", "safmn", "--table", "3"), "--table and --row go together, as in: srlib train safmn --table 3 --row"),
        (("train", "seemore-l", "--row", "C2F"), "as in: srlib train seemore-l --table 8 --row"),
        (("train", "seemore-t", "--table", "15", "--row", "SeemoRe-T"), "table 15 of seemore has no row to train"),
        (("train", "seemore-t", "--table", "99", "--row", "SeemoRe-T"), "choose one of: 1, 2"),
        (("train", "safmn", "--table", "3", "--row", "LN -> XN"), "LN -> XN"),
        (("train", "safmn", "--budget", "paper"), "--data FOLDER"),
        (("train", "safmn", "--data", "nowhere"), "nowhere"),
        (("train", "safmn", "--device", "tpu"), "choose auto, cpu or cuda"),
        (("evaluate", "safmn", "--scale", "3"), "train some (srlib train safmn --scale 3)"),
        (("weights", "--json", "--csv"), "give one of them"),
        (("keep", "none.json", "--name", "a", "--into", "."), "no record at none.json"),
        (("keep", "none.json", "--into", "."), "Missing option"),
        (("train", "safmn", "--steps", "0"), "steps is 0: give a whole number from 1 up"),
        (("train", "safmn", "--batch", "-3"), "batch is -3: give a whole number from 1 up"),
        (("train", "ssiu", "--patch", "0"), "patch is 0: give a whole number from 1 up"),
        (("train", "moeisr-liif-s-edsr", "--patch", "20"), "fewer than 576 queries"),
        (("evaluate", "safmn", "--weights", "none.pth"), "no weights at none.pth"),
        (("evaluate", "--record", "none.json"), "no record at none.json"),
        (("train", "safmn", "--seed", "-1"), "seed is -1"),
        (("train", "safmn", "--precision", "fp8"), "choose one of 32-true, bf16-mixed"),
        (("train", "safmn", "--table", "1", "--row", "SAFMN (Ours)"), "no ablation"),
        (("train", "seemore-t", "--table", "13", "--row", "SeemoRe-B"), "train seemore-b"),
        (("train", "seemore-t", "--table", "4c", "--row", "SeemoRe-T"), "kernel=3"),
        (("train", "safmn", "--fine-tune", "none.json"), "no record at none.json"),
        (("train", "safmn", "--fine-tune", "none.json", "--scale", "2"), "leave --table and --scale out"),
        (("evaluate", "bicubic", "--degradation", "rain"), "choose bicubic or real-esrgan"),
        (("evaluate", "bicubic", "--weights", "none.pth"), "--weights go with a model"),
        (("evaluate", "--record", "."), "cannot be read"),
        (("evaluate",), "nothing to score: give bicubic, a model (srlib evaluate safmn, with --weights"),
        (("evaluate", "safmn", "--record", "none.json"), "leave out safmn"),
        (("evaluate", "bicubic", "--json", "--csv"), "give one of them"),
        (("table", "safmn", "2", "--json", "--csv"), "give one of them"),
        (("complexity", "safmn", "--json", "--csv"), "give one of them"),
        (("speed", "safmn", "--json", "--csv"), "give one of them"),
        (("evaluate", "bicubic", "--data", "Set5"), "SRLIB_DATA"),
        (("evaluate", "bicubic", "--data", "Set5", "--data-root", "nowhere"), "nowhere"),
        (("evaluate", "bicubic", "--scale", "0"), "scale 0"),
        (("evaluate", "bicubic", "--protocol", "ntsc"), "ntsc"),
        (("table", "safmn", "99"), "choose one of: 1, 2, 3, 4, 5"),
        (("table", "resnet", "1"), "unknown paper 'resnet'"),
        (("complexity", "resnet"), "unknown model 'resnet'"),
        (("complexity", "safmn", "--scale", "7"), "no scale 7"),
        (("complexity", "safmn", "--height", "0"), "0"),
        (("speed", "safmn", "--threads", "0"), "0 threads"),
        (("speed", "safmn", "--threads", "100000"), "100000 threads on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(srlib, tmp_path, arguments, said):
    before = set(tmp_path.rglob("*"))
    code, out, err = srlib(*arguments)
    assert code == 2 and out == ""
    assert said in err and err.startswith("srlib: ") and err.count("\n") == 1
    left = {path for path in set(tmp_path.rglob("*")) - before if "cache" not in path.parts}
    assert not left, "nothing is half-written"


def test_a_folder_below_train_is_found_by_its_name(photographs, tmp_path, monkeypatch):
    """A run's record calls its images by their folder's name; the data folder keeps them in train/."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").mkdir()
    photographs.rename(tmp_path / "data" / "train" / "Mine")
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    assert cli.open_store("Mine", tmp_path / "data").name == "Mine"
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))
    assert cli.open_store("Mine", None).fingerprint == cli.open_store("train/Mine", None).fingerprint
    with pytest.raises(InputError, match="no images called 'Yours' in .*; or set SRLIB_DATA to .* with train/Yours"):
        cli.open_store("Yours", None)
    with pytest.raises(InputError, match="folder's path instead$"):
        cli.open_store("", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.open_store("Mine", Path("~/data")).name == "Mine"
    (tmp_path / "here" / "Mine").mkdir(parents=True)
    (tmp_path / "here" / "Mine" / "broken.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="broken.png"):
        cli.open_store("Mine", None)


def test_images_too_small_to_train_on_are_named(srlib, photographs):
    Image.new("RGB", (60, 40)).save(photographs / "tiny.png")
    code, _, err = srlib("train", "safmn", "--data", photographs)
    assert code == 2 and err.count("\n") == 1 and "patch of at most" not in err
    assert "tiny, the smallest, is 15x10 there; take images of at least" in err


def test_the_example_of_a_row_is_one_that_can_be_trained(srlib):
    from srlib import papers
    from srlib.models import names

    for model in names():
        said = srlib("train", model, "--table", "3")[2].strip()
        ablated = ("liif-rdn", "moeisr-liif-b-rdn", "moeisr-liif-s-rdn")  # MoEISR's Tables 4 and 5
        if model.startswith(("liif", "lte", "moeisr")) and model not in ablated:
            assert f"no ablation table has a row of {model}: leave --table and --row out" in said
            continue
        number, label = said.split(" --table ")[-1].split(" --row ")
        assert papers.row(papers.paper_of(model), number, label.strip('"')).model == model


def test_a_truncated_image_is_named(srlib, photographs):
    whole = (photographs / "1.png").read_bytes()
    (photographs / "1.png").write_bytes(whole[: len(whole) // 2])
    code, _, err = srlib("evaluate", "bicubic", "--scale", "2", "--data", photographs)
    assert code == 2 and "1.png" in err and err.count("\n") == 1
