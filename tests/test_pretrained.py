"""What ships is whole, is what its record says, and beats bicubic; what is kept of a run can be made again."""

import hashlib
import json
import math
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srlib import pictures, pretrained, runs
from srlib.data import Store, find, folder
from srlib.errors import InputError
from srlib.models import create, default_config
from srlib.models.safmn import SAFMNConfig

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "book" / "results" / "trained"
NAMES = [path.stem for path in pretrained.files()]
HELD_OUT = pretrained.SETS[0]


@pytest.fixture
def srlib(in_process, capsys):
    """Run the command in this process; returns exit code, standard output and standard error."""
    return in_process(capsys)


def shipped(name: str) -> pretrained.Shipped:
    return pretrained.Shipped.read(pretrained.FOLDER / f"{name}.safetensors")


def record(name: str) -> dict[str, Any]:
    return runs.read_json(RECORDS / f"{name}.json")


# --- what ships -------------------------------------------------------------------------------------------------------


def test_something_ships_and_all_together_is_small():
    assert "safmn-x4" in NAMES
    assert sum(path.stat().st_size for path in pretrained.files()) < 8e6
    assert {path.stem for path in RECORDS.glob("*.json")} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_what_its_record_says(name):
    one, kept = shipped(name), record(name)
    said = kept["weights"]
    assert said["file"] == one.path.name and said["precision"] == one.precision
    assert said["sha256"] == hashlib.sha256(one.path.read_bytes()).hexdigest()
    assert (said["moved"] is not None and said["moved"] <= pretrained.LIMIT) == (one.precision == "float16")
    kinds = {tensor.dtype for tensor in load_file(one.path).values() if tensor.is_floating_point()}
    assert kinds == {getattr(torch, one.precision)}
    assert (one.model, one.scale) == (kept["config"]["model"], kept["config"]["scale"])
    assert one.training["train"] == kept["config"]["train"] and list(one.training["command"]) == kept["command"]
    assert one.provenance == kept["provenance"]
    network = create(one.model, one.scale, pretrained=True)
    assert json.loads(json.dumps(asdict(network.config))) == kept["config"]["network"] and not network.training
    assert all(value.dtype == torch.float32 for value in network.parameters())
    for score in kept["scores"]:
        found = pretrained.scored(one.scores, score["dataset"], score["scale"], score["protocol"]["name"])
        base = pretrained.scored(kept["bicubic"], score["dataset"], score["scale"], score["protocol"]["name"])
        assert (found["psnr"], found["bicubic_psnr"]) == (score["psnr"], base["psnr"])
    assert {"log", "validation"} <= {path.suffixes[0][1:] for path in RECORDS.glob(f"{name}.*.csv")}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_beat_bicubic_on_every_photograph_and_score_as_recorded(name):
    """At every scale that they were scored at."""
    one, kept = shipped(name), record(name)
    assert one.serves == one.scales and (one.scale is None or one.scales == (one.scale,))
    store, network = Store.open(find(HELD_OUT)), one.network()
    for scale in one.scales:
        found = pretrained.score_all(network, one.model, [store], [scale])
        baseline = pretrained.score_all(None, one.model, [store], [scale])
        for mine, its in zip(found, baseline, strict=True):
            known = pretrained.scored(kept["scores"], HELD_OUT, scale, mine.protocol.name)
            assert mine.psnr == pytest.approx(known["psnr"], abs=0.005)
            assert mine.ssim == pytest.approx(known["ssim"], abs=0.001)
            gains = {a.name: a.psnr - b.psnr for a, b in zip(mine.images, its.images, strict=True)}
            assert len(gains) == 4
            assert min(gains.values()) > 0, gains


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_command_asks_for_the_same_run(name, srlib, data_root, tmp_path, monkeypatch):
    """The same key: network, training, images and code. Nothing is trained."""
    kept, asked = record(name), []

    def seen(config: runs.RunConfig, *_: Any, **__: Any) -> runs.Run:
        asked.append(config)
        raise InputError("seen")

    monkeypatch.setattr(runs, "train_or_load", seen)
    if not kept["config"]["data"].startswith("photos") and not (data_root / "train" / kept["config"]["data"]).is_dir():
        pytest.skip(f"no training images {kept['config']['data']} in the data folder")
    code, _, err = srlib(*kept["command"][1:], "--data-root", data_root, "--runs", tmp_path)
    assert (code, err) == (2, "srlib: seen\n")
    assert asked[0].fingerprint == kept["config"]["fingerprint"]
    assert asked[0].slug == kept["run"], "the training code has changed: train it again by its command, and keep it"


@pytest.mark.parametrize("name", NAMES)
def test_the_line_names_weights_and_training_and_never_as_the_papers(name):
    one = shipped(name)
    done = one.training["train"]
    for part in (one.model, one.at, f"{done['steps']:,} steps", f"batch {done['batch']}", one.training["data"]):
        assert part in one.line
    steps, pixels = pretrained.shares(one.model, done)
    assert f"1/{1 / steps:,.0f} of the paper's steps and 1/{1 / pixels:,.0f} of its pixels" in one.line
    assert "\n" not in one.line and "not the paper's weights" in one.line
    assert one.line_at(one.serves[0]) == one.line and "not at x7.5" in one.line_at(7.5)
    lost = replace(one, scores=[dict(score, least_gain=-0.1) for score in one.scores])
    assert lost.serves == () and "does not beat bicubic" in lost.line_at(one.scales[0])


def test_a_network_with_shipped_weights_says_how_they_were_trained(capsys):
    line = pretrained.find("safmn", 4).line
    made, loaded = create("safmn", 4, pretrained=True), pretrained.load("safmn", 4)
    assert capsys.readouterr() == ("", f"srlib: {line}\n")
    for mine, its in zip(made.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_what_does_not_ship_is_said_with_what_does():
    with pytest.raises(InputError, match=r"no weights of safmn x3 come with srlib \(there are: .*safmn-x4"):
        create("safmn", 3, pretrained=True)
    with pytest.raises(InputError, match="srlib train lte-rdn"):
        create("lte-rdn", pretrained=True)
    with pytest.raises(InputError, match="unknown model 'resnet'"):
        create("resnet", 4, pretrained=True)
    with pytest.raises(InputError, match="built for one scale and got none"):
        create("safmn", pretrained=True)
    with pytest.raises(InputError, match="the released configuration of safmn"):
        create("safmn", 4, SAFMNConfig(blocks=4), pretrained=True)
    same = create("safmn", 4, default_config("safmn"), pretrained=True)
    assert same.config == replace(default_config("safmn"), scale=4)


def test_a_damaged_file_is_refused_and_the_doctor_sees_it(tmp_path, monkeypatch, srlib):
    from srlib import doctor

    content = bytearray((pretrained.FOLDER / "safmn-x4.safetensors").read_bytes())
    content[-9] ^= 1  # a bit of a weight: it is still a number
    (tmp_path / "safmn-x4.safetensors").write_bytes(content)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="safmn-x4.safetensors is not as it was shipped"):
        create("safmn", 4, pretrained=True)
    (found,) = [one for one in doctor.checks() if one.name == "weights that ship"]
    assert found.passed is False and "not as it was shipped" in found.found
    for command in (("weights",), ("evaluate", "safmn"), ("upscale", ROOT / "book/_static/book.png", "o.png")):
        code, out, err = srlib(*command)
        assert code == 2 and out == "" and err.count("\n") == 1 and "install srlib again" in err
    (tmp_path / "safmn-x4.safetensors").write_bytes(content[:2000])
    with pytest.raises(InputError, match="no whole safetensors file"):
        pretrained.load("safmn", 4)
    (tmp_path / "safmn-x4.safetensors").unlink()
    runs.save(create("safmn", 4), "safmn", tmp_path / "safmn-x4.safetensors")  # a run's own, which says less
    with pytest.raises(InputError, match="not as it was shipped"):
        pretrained.load("safmn", 4)
    (tmp_path / "safmn-x4.safetensors").unlink()
    assert srlib("weights")[2].startswith("srlib: no weights come with this srlib")
    assert "give --model NAME" in srlib("upscale", ROOT / "book/_static/book.png", "o.png")[2]


def test_the_list_of_weights(srlib):
    code, out, err = srlib("weights", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert {row["file"] for row in rows} == {f"{name}.safetensors" for name in NAMES}
    for row in rows:
        kept = record(row["file"].removesuffix(".safetensors"))
        known = pretrained.scored(kept["scores"], HELD_OUT, row["scale"])
        assert row[f"{HELD_OUT} psnr"] == known["psnr"] and row["command"] == shlex.join(kept["command"])
    code, out, _ = srlib("weights")
    assert code == 0 and all(row["model"] in out for row in rows)


def test_scores_come_with_the_line_of_the_weights(srlib, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images" / "a.png")
    line = pretrained.find("safmn", 4).line
    code, out, err = srlib("evaluate", "safmn", "--data", tmp_path / "images", "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "") and out.startswith(line)
    assert runs.read_json(tmp_path / "scores.json")["line"] == line
    code, out, err = srlib("evaluate", "safmn", "--data", tmp_path / "images", "--csv")
    assert (code, err) == (0, f"srlib: {line}\n") and out.startswith("dataset,")


def test_the_model_that_is_taken_where_none_is_named(monkeypatch, tmp_path):
    assert pretrained.usual(4) == pretrained.usual(4.0) == "safmn"
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    for name in ("safmn-x3", "moeisr-lte-b-rdn", "ssiu-x2"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [pretrained.usual(scale) for scale in (2, 3, 2.5)] == ["moeisr-lte-b-rdn", "safmn", "moeisr-lte-b-rdn"]


# --- the picture of the README ----------------------------------------------------------------------------------------


def test_the_command_that_the_readme_prints_makes_its_picture(srlib, tmp_path):
    text = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^\$ srlib (upscale book/\S+ book/\S+ --beside.*)$", text, re.M)
    command, source, target, *options = shlex.split(line)
    assert f"]({target})" in text
    assert (ROOT / source).stat().st_size + (ROOT / target).stat().st_size < 300_000
    assert srlib(command, ROOT / source, tmp_path / "made.png", *options)[0] == 0
    made, kept = (pictures.read(path).pixels.astype(int) for path in (tmp_path / "made.png", ROOT / target))
    assert made.shape == kept.shape, "make the picture again by the README's command, with --force"
    half = made.shape[1] // 2
    assert np.array_equal(made[:, :half], kept[:, :half]), "bicubic is exact"
    apart = np.abs(made - kept)
    assert apart.max() <= 3 and apart.mean() < 0.02, "make the picture again by the README's command, with --force"
    assert np.abs(made[:, :half] - made[:, half:]).mean() > 1, "there is a difference to be seen"


def test_the_small_picture_is_of_a_held_out_photograph():
    (path,) = (ROOT / "book" / "_static").glob("*-small.png")
    store = Store.open(find(HELD_OUT))
    lr = store.lr(store.names.index(path.stem.removesuffix("-small")), 4).numpy()
    small = pictures.read(path).pixels.transpose(2, 0, 1)
    height, width = small.shape[1:]
    windows = np.lib.stride_tricks.sliding_window_view(lr, small.shape)[0]
    assert (windows == small).all((-1, -2, -3)).any(), f"{width}x{height} of its LR image at x4"


# --- keeping a run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(smooth_images) -> Path:
    """A folder with two small smooth images."""
    return smooth_images(2, (10, 8), (60, 48), Image.Resampling.BILINEAR)


class Kept:
    """A tiny run that the smoke budget makes, and its record."""

    def __init__(self, model: str, scale: int | None, images: Path, home: Path) -> None:
        store = Store.open(folder(images), cache=home / "cache")
        self.config = runs.configure(model, scale, store, length=runs.Length(2, 2, 8))
        self.run = runs.train_or_load(self.config, store, store, root=home / "runs", device="cpu")
        self.record = self.run.record() | {"budget": "smoke", "table": None, "row": None}
        self.path, self.runs = home / "record.json", home / "runs"
        runs.write_json(self.path, self.record)


@pytest.fixture
def usual(monkeypatch):
    """Networks and trainings that take no time, as the papers' own."""
    import srlib.models.moeisr as moeisr
    import srlib.models.safmn as safmn

    monkeypatch.setitem(safmn.CONFIGS, "safmn", SAFMNConfig(blocks=1, channels=8))
    small = replace(moeisr.CONFIGS["moeisr-liif-s-edsr"], hidden=8)
    monkeypatch.setitem(moeisr.CONFIGS, "moeisr-liif-s-edsr", small)
    cut = runs.BUDGETS["smoke"]
    own = {"moeisr-liif-s-edsr": {"steps": 2, "patch": 8, "queries": 50}}
    monkeypatch.setitem(runs.BUDGETS, "smoke", replace(cut, own=own))


@pytest.fixture
def kept(usual, images, tmp_path) -> Kept:
    return Kept("safmn", 2, images, tmp_path)


def test_a_kept_run_has_scores_command_curves_and_weights(kept, images, tmp_path, srlib, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    into, weights = tmp_path / "kept", tmp_path / "weights"
    arguments = ("keep", kept.path, "--name", "safmn-x2", "--into", into, "--runs", kept.runs, "--data", images)
    code, out, err = srlib(*arguments, "--weights", weights, "--json")
    assert (code, err) == (0, "")
    found = runs.read_json(into / "safmn-x2.json")
    assert {key: found[key] for key in kept.record} == kept.record
    assert found["command"][:3] == ["srlib", "train", "safmn"] and found["command"][-2:] == ["--data", "images"]
    assert {"--steps", "--batch", "--patch"} <= set(found["command"])
    (score,), (base,) = found["scores"], found["bicubic"]
    assert score["dataset"] == base["dataset"] == "images" and len(score["images"]) == 2
    assert score["psnr"] == pytest.approx(found["held_out"]["psnr"], abs=pretrained.LIMIT)
    assert json.loads(out)[0]["psnr"] == score["psnr"] and json.loads(out)[0]["bicubic"] == base["psnr"]
    for curve in ("log", "validation"):
        assert (into / f"safmn-x2.{curve}.csv").read_bytes() == (kept.run.folder / f"{curve}.csv").read_bytes()
    file = weights / "safmn-x2.safetensors"
    assert found["weights"]["file"] == file.name and found["weights"]["precision"] == "float16"
    assert found["weights"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not [path for path in tmp_path.rglob("*.tmp")]
    network, whole = runs.load(file, "safmn", 2), kept.run.network()  # as any file of ours
    for mine, its in zip(network.parameters(), whole.parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, its.half().float())
    monkeypatch.setattr(pretrained, "SETS", (HELD_OUT, "Set5", "Set14"))
    assert pretrained.Shipped.read(file).training["data"] == "images"


def test_what_half_precision_moves_too_far_is_kept_whole(kept, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    sizes = {}
    for limit, precision in ((math.inf, "float16"), (0.0, "float32")):
        monkeypatch.setattr(pretrained, "LIMIT", limit)
        weights = tmp_path / precision
        found = pretrained.keep(
            kept.record, kept.run, "safmn-x2", tmp_path / "kept", sets=[str(images)], weights=weights
        )
        sizes[precision] = (weights / "safmn-x2.safetensors").stat().st_size
        assert found["weights"]["precision"] == precision and found["weights"]["moved"] > 0
        one = pretrained.Shipped.read(weights / "safmn-x2.safetensors")
        store = Store.open(folder(images))
        again = pretrained.score_all(one.network(), "safmn", [store], [2])
        assert [score.psnr for score in again] == [score["psnr"] for score in found["scores"]]
    assert sizes["float32"] > 1.2 * sizes["float16"]


def test_weights_that_half_precision_cannot_hold_are_kept_whole(kept, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    network = kept.run.network()
    with torch.no_grad():
        network.to_feat.weight *= 1e6
        network.to_feat.bias.zero_()
    runs.save(network, "safmn", kept.run.folder / "model.safetensors")
    found = pretrained.keep(kept.record, kept.run, "safmn-x2", tmp_path, sets=[str(images)], weights=tmp_path)
    assert (found["weights"]["precision"], found["weights"]["moved"]) == ("float32", None)
    assert all(math.isfinite(score["psnr"]) for score in found["scores"])


def test_a_network_for_every_scale_is_scored_where_it_was_trained(usual, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    model = "moeisr-liif-s-edsr"
    one = Kept(model, None, images, tmp_path)
    found = pretrained.keep(one.record, one.run, model, tmp_path, sets=[str(images)], weights=tmp_path)
    assert [(score["scale"], score["protocol"]["name"]) for score in found["scores"]] == [
        (scale, protocol) for scale in (2, 3, 4) for protocol in ("liif", "safmn")
    ]
    file = pretrained.Shipped.read(tmp_path / f"{model}.safetensors")
    assert file.scale is None and file.at == "for every scale" and file.scales == (2, 3, 4)
    assert torch.isfinite(file.network()(torch.rand(1, 3, 8, 9), size=(20, 21))).all()
    alone = pretrained.keep(one.record, one.run, model, tmp_path, sets=[str(images)], scales=[3])
    assert {score["scale"] for score in alone["scores"]} == {3} and alone["weights"] is None
    at_x4 = dict(one.config.record()["train"], scales=[4.0, 4.0])
    runs.write_json(one.run.folder / "config.json", one.config.record() | {"train": at_x4})
    monkeypatch.setattr(runs, "origin", lambda *_: runs.Origin(("srlib", "train"), "equal", runs.Length()))
    changed = one.record | {"config": one.run.config}
    found = pretrained.keep(changed, one.run, "a", tmp_path, sets=[str(images)])
    assert {score["scale"] for score in found["scores"]} == {4}


def test_the_share_of_a_papers_training():
    """SAFMN's has 500,000 steps of 64 patches of 64 pixels a side; MoEISR's a million of 16 with 2,304 queries each."""
    train = {"steps": 20_000, "batch": 16, "patch": 32, "queries": 0}
    assert pretrained.shares("safmn", train) == (1 / 25, pytest.approx(1 / 400))
    train = {"steps": 10_000, "batch": 8, "patch": 24, "queries": 576}
    assert pretrained.shares("moeisr-liif-s-edsr", train) == (1 / 100, pytest.approx(1 / 800))


def test_protocols_are_the_papers_own_and_one_for_all():
    for model, expected in {
        "safmn": ["safmn"], "seemore-t": ["seemore"], "ssiu": ["ssiu", "safmn"], "lte-rdn": ["liif", "safmn"],
    }.items():  # fmt: skip
        assert [one.name for one in pretrained.protocols(model, "Set5")] == expected
    scores = [{"dataset": "Set5", "scale": 4, "protocol": {"name": "seemore"}, "psnr": 30.0}]
    assert pretrained.scored(scores, "Set5", 4)["psnr"] == 30.0
    with pytest.raises(InputError, match="no score on Set5 x4 under the ssiu protocol"):
        pretrained.scored(scores, "Set5", 4, "ssiu")


def test_a_row_of_a_table_is_kept_and_not_shipped(kept, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    row = kept.record | {"table": "3", "row": "a"}
    with pytest.raises(InputError, match="is not trained as its paper trains: leave --weights out"):
        pretrained.keep(row, kept.run, "safmn-x2", tmp_path / "a", sets=[str(images)], weights=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    found = pretrained.keep(row, kept.run, "a-seed0", tmp_path, sets=[str(images)])
    assert len(found["bicubic"]) == len(found["scores"]) == 1 and found["weights"] is None


def test_a_training_of_the_comparison_is_not_shipped(kept, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SETS", (str(images), "Set5", "Set14"))
    monkeypatch.setattr(runs, "origin", lambda *_: runs.Origin(("srlib", "train"), "equal", runs.Length()))
    with pytest.raises(InputError, match="is not trained as its paper trains: leave --weights out"):
        pretrained.keep(kept.record, kept.run, "safmn-x2", tmp_path / "a", sets=[str(images)], weights=tmp_path / "a")


def test_what_is_not_to_be_kept_or_shipped(kept, images, tmp_path, monkeypatch, srlib):
    sets, into = [str(images)], tmp_path / "kept"

    def refused(said: str, record: Any = kept.record, name: str = "safmn-x2", **options: Any) -> None:
        with pytest.raises(InputError, match=said):
            pretrained.keep(record, kept.run, name, into, **{"sets": sets} | options)
        assert not into.exists()

    for name in ("", "../a", ".hidden", "a/b"):
        refused("is no name for a record", name=name)
    refused("the record is not of", record=kept.record | {"config": {}})
    refused("leave --scale out", scales=[4])
    refused("no images called 'nowhere'", sets=["nowhere"])
    refused("give --name safmn-x2", name="mine", weights=into)
    refused(f"need scores on {HELD_OUT}", weights=into)
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    refused("SRLIB_DATA", sets=pretrained.SETS)
    arguments = ("keep", kept.path, "--name", "a", "--into", into)
    code, out, err = srlib(*arguments, "--runs", kept.runs)
    assert code == 2 and out == "" and err.count("\n") == 1 and "SRLIB_DATA" in err
    code, out, err = srlib(*arguments, "--runs", tmp_path)
    assert code == 2 and out == "" and err.count("\n") == 1
    other = dict(kept.config.record(), network=dict(kept.config.network, blocks=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "config", other)
        refused("no command of srlib makes", record=kept.record | {"config": other})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "metrics", kept.run.metrics | {"collapsed_at": 2})
        refused("collapsed at step 2", weights=into)
    with pytest.MonkeyPatch.context() as patch:
        import srlib.models.safmn as safmn

        patch.setattr(runs, "origin", lambda *_: runs.Origin(("srlib", "train"), "smoke", runs.Length()))
        patch.setitem(safmn.CONFIGS, "safmn", SAFMNConfig(blocks=3, channels=8))
        refused("as its paper builds it", weights=into)
    shutil.rmtree(kept.run.folder)
    code, _, err = srlib(*arguments, "--runs", kept.runs)
    assert code == 2 and err.count("\n") == 1
