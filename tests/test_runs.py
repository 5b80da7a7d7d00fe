"""Runs: trained once, found again, never served for another configuration; weights that are loaded strictly."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from srlib import runs
from srlib.data import Store, degraded, find, folder
from srlib.errors import InputError
from srlib.models import create, names, takes_scale
from srlib.models.encoders import EDSR, ENCODERS
from srlib.models.moeisr import MoEISRConfig
from srlib.models.safmn import SAFMNConfig
from srlib.train import TrainConfig

TINY = SAFMNConfig(scale=2, blocks=1, channels=8)
QUICK = TrainConfig(steps=12, batch=2, patch=8, ema_decay=0.5)
EXPERTS = MoEISRConfig(depths=(2, 3), hidden=8)
ASKED = TrainConfig(
    steps=4, batch=2, patch=6, fft_weight=0, ema_decay=0, queries=20, l1_weight=3000.0, balance_weight=1.0
)
ANY = [name for name in names() if not takes_scale(name)]


def images(path: Path, seed: int = 0) -> Store:
    path.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for i in range(2):
        small = Image.fromarray(noise.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        small.resize((40, 32), Image.Resampling.BILINEAR).save(path / f"{i}.png")
    return Store.open(folder(path), cache=path.parent / "cache")


def config_of(store: Store, **changes) -> runs.RunConfig:
    return replace(runs.configure("safmn", 2, store, network=TINY), train=replace(QUICK, **changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store) -> runs.Run:
    return runs.train_or_load(config_of(store), store, store, root=tmp_path_factory.mktemp("runs"), device="cpu")


def test_a_run_leaves_its_whole_record(trained, store):
    assert {path.name for path in trained.folder.iterdir()} >= {
        "config.json", "model.safetensors", "log.csv", "validation.csv", "provenance.json", "metrics.json",
    }  # fmt: skip
    assert not list(trained.folder.glob("state*")) and not list(trained.folder.glob("*.tmp"))
    assert trained.metrics["steps"] == 12 and trained.metrics["collapsed_at"] is None
    assert trained.held_out["protocol"]["name"] == "safmn"
    assert {"commit", "torch", "device", "seed", "fingerprint", "seconds"} <= trained.provenance.keys()
    assert trained.provenance["fingerprint"] == store.fingerprint
    assert list(trained.log()["step"]) == list(range(1, 13)), "12 steps are few enough for a row each"
    assert trained.log("validation")["psnr"][-1] == pytest.approx(trained.held_out["psnr"])


def test_the_saved_network_scores_what_the_record_says(trained, store):
    from srlib import metrics
    from srlib.evaluate import score

    again = score(trained.network(), store, 2, metrics.protocol("safmn"))
    assert again.psnr == pytest.approx(trained.held_out["psnr"], abs=1e-9)


def test_a_length_takes_the_place_of_a_budgets_steps_batch_and_patch():
    usual = runs.training("seemore-t", "short")
    asked = runs.training("seemore-t", "short", length=runs.Length(steps=2000, batch=8, patch=24))
    assert (asked.steps, asked.batch, asked.patch) == (2000, 8, 24)
    share = [round(one * 2000 / usual.steps) for one in usual.milestones]
    assert asked.milestones == pytest.approx(share, abs=1), "the schedule spans the steps"
    same = replace(usual, steps=2000, batch=8, patch=24, milestones=asked.milestones)
    assert asked == same, "all else is the budget's"
    assert runs.training("seemore-t", "short", length=runs.Length()) == usual
    assert runs.training("safmn", "smoke", length=runs.Length(batch=128)).batch == 128, "more than the budget's, too"
    some = runs.Length(steps=5000, patch=8)
    assert some.options == ["--steps", "5000", "--patch", "8"]
    assert some.words("short") == ["short", "5,000 steps", "LR patch 8"]
    for name in ("steps", "batch", "patch"):
        for value in (0, -1, 2**63):
            with pytest.raises(InputError, match=f"{name} is {value}: give a whole number from 1 up"):
                runs.Length(**{name: value})


def test_the_equal_budget_trains_all_networks_alike():
    """Steps, batch, patch, optimiser, schedule and losses; a network for every scale asks for pixels at x4 alone."""
    apart = {"queries", "scales"}
    settings = {
        model: {key: value for key, value in vars(runs.training(model, "equal")).items() if key not in apart}
        for model in runs.RECIPES
    }
    first = settings["safmn"]
    assert all(one == first for one in settings.values())
    assert (first["steps"], first["batch"], first["patch"], first["schedule"]) == (600, 4, 32, "cosine")
    assert (first["fft_weight"], first["balance_weight"], first["ema_decay"], first["l1_weight"]) == (0, 0, 0, 1)
    for model in runs.RECIPES:
        one = runs.training(model, "equal")
        assert (one.queries > 0) == (not takes_scale(model))
        assert takes_scale(model) or one.scales == (4.0, 4.0)


@pytest.mark.parametrize("model", ["safmn", "seemore-t", "moeisr-liif-s-edsr"])
@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ("equal", {"seed": 2}),
        ("smoke", {"length": runs.Length(steps=1000, batch=8)}),
        ("short", {"length": runs.Length(steps=2000, batch=8, patch=24), "precision": "bf16-mixed"}),
        ("short", {"length": runs.Length(batch=16), "seed": 1}),
    ],
)
def test_a_run_of_any_length_is_made_again_by_the_command_of_its_record(model, budget, options, store):
    """What the command's options ask for is the configuration that was recorded."""
    scale = 4 if takes_scale(model) else None
    config = runs.configure(model, scale, store, budget=budget, **options)
    found = runs.origin(config.record())
    words = list(found.command)
    assert words[:3] == ["srlib", "train", model] and ("--scale" in words) == (scale is not None)
    given = {name: words[words.index(f"--{name}") + 1] for name in ("steps", "batch", "patch") if f"--{name}" in words}
    seed = int(words[words.index("--seed") + 1]) if "--seed" in words else 0
    precision = words[words.index("--precision") + 1] if "--precision" in words else "32-true"
    length = runs.Length(**{name: int(value) for name, value in given.items()})
    ablation = "--ablation" in words
    again = runs.configure(
        model, scale, store, budget=words[words.index("--budget") + 1], ablation=ablation, seed=seed,
        precision=precision, length=length,
    )  # fmt: skip
    assert again.key == config.key
    assert found.length == length and found.label == ", ".join(length.words(found.budget))


def test_a_finished_run_is_loaded_not_trained(trained, store):
    before = (trained.folder / "model.safetensors").stat().st_mtime_ns
    again = runs.train_or_load(config_of(store), store, store, root=trained.folder.parent, device="cpu")
    assert again.folder == trained.folder
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_data_or_code_is_another_run(trained, store, tmp_path, monkeypatch):
    base = config_of(store)
    assert base.slug == trained.folder.name
    others = [
        config_of(store, seed=1),
        config_of(store, lr=2e-3),
        replace(base, scale=3),
        replace(base, network={**base.network, "norm": "none"}),
        config_of(images(tmp_path / "other", seed=1)),
        replace(base, lr_fingerprint="0"),
        replace(base, start="safmn-x2-12-000000000000"),
        config_of(store, degradation="real-esrgan"),
        replace(base, contract="000000000000"),
    ]
    assert len({base.key, *(other.key for other in others)}) == 1 + len(others)


def test_the_same_images_elsewhere_are_the_same_run(store, tmp_path):
    moved = images(tmp_path / "moved")
    assert config_of(moved).data != config_of(store).data and config_of(moved).key == config_of(store).key


def test_a_folder_with_another_configuration_is_refused(trained, store, tmp_path):
    stale = tmp_path / config_of(store).slug
    stale.mkdir()
    (stale / "config.json").write_text(json.dumps(config_of(store, lr=5e-4).record()))
    (stale / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="delete the folder"):  # nothing is served from it
        runs.train_or_load(config_of(store), store, store, root=tmp_path, device="cpu")


def test_an_interrupted_run_goes_on_and_ends_the_same(trained, store, tmp_path, monkeypatch):
    writes = runs.Log.training

    def interrupted(self, step, *arguments):
        if step == 8:
            raise KeyboardInterrupt
        return writes(self, step, *arguments)

    monkeypatch.setattr(runs.Log, "training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.train_or_load(config_of(store), store, store, root=tmp_path, device="cpu")
    assert not (tmp_path / config_of(store).slug / "metrics.json").exists()
    monkeypatch.setattr(runs.Log, "training", writes)
    resumed = runs.train_or_load(config_of(store), store, store, root=tmp_path, device="cpu")
    assert resumed.provenance["resumed_at"] == 6
    whole, parts = (load_file(run.folder / "model.safetensors") for run in (trained, resumed))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    np.testing.assert_array_equal(resumed.log()["loss"], trained.log()["loss"])
    np.testing.assert_array_equal(resumed.log()["step"], trained.log()["step"])


def test_other_held_out_images_are_scored_anew(trained, store, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(trained.folder, root / trained.folder.name)
    other = images(tmp_path / "other", seed=3)
    again = runs.train_or_load(config_of(store), store, other, root=root, device="cpu")
    assert again.held_out["fingerprint"] == other.fingerprint
    assert again.held_out["psnr"] != trained.held_out["psnr"]
    assert again.metrics == trained.metrics, "the training is not done again"


def test_a_run_stopped_after_its_last_state_keeps_its_figures(trained, store, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "save", lambda *arguments: sys.exit("stopped"))
    with pytest.raises(SystemExit):
        runs.train_or_load(config_of(store), store, store, root=tmp_path, device="cpu")
    monkeypatch.undo()
    resumed = runs.train_or_load(config_of(store), store, store, root=tmp_path, device="cpu")
    assert resumed.metrics["loss"] == trained.metrics["loss"]
    assert resumed.provenance["resumed_at"] == 12 and resumed.provenance["seconds"] > 0


def test_what_cannot_be_trained_leaves_no_folder(store, tmp_path):
    for config, words in ((config_of(store, patch=64), "patch"), (replace(config_of(store), model="resnet"), "resnet")):
        with pytest.raises(InputError, match=words):
            runs.train_or_load(config, store, store, root=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("steps", [1, 3, 12, 120, 499, 500, 800, 12_345, 20_000, 500_000])
def test_states_are_saved_only_after_their_losses_were_seen(steps):
    rhythm = runs.Rhythm.of(steps)
    assert rhythm.save % rhythm.log == 0 and rhythm.validate % rhythm.save == 0
    assert rhythm.save <= 1000 and 1 <= steps // rhythm.validate <= 12


def test_a_collapse_is_recorded_with_the_last_good_weights(store, tmp_path):
    config = replace(config_of(store), train=replace(QUICK, lr=1e30))
    run = runs.train_or_load(config, store, store, root=tmp_path, device="cpu")
    assert 1 < run.metrics["collapsed_at"] <= 12 and run.metrics["loss"] is None
    assert run.ending == f"collapsed at step {run.metrics['collapsed_at']}"
    assert np.isnan(run.log()["loss"][-1]) or np.isinf(run.log()["loss"][-1])
    assert all(torch.isfinite(value).all() for value in load_file(run.folder / "model.safetensors").values())


def test_the_contract_ignores_comments_and_sees_code(tmp_path, monkeypatch):
    import ast

    code = '"""A module."""\ndef f(x):\n    """Doc."""\n    return x + 1\n'
    parse = lambda text: ast.unparse(runs.without_docstrings(ast.parse(text)))  # noqa: E731
    assert parse(code) == parse("def f(x):\n    # why\n    return (x + 1)\n")
    assert parse(code) != parse(code.replace("+ 1", "+ 2"))
    assert runs.contract("srlib.models.safmn") != runs.contract("srlib.models.layers")


def test_budgets_scale_the_papers_training():
    paper, short, smoke = (runs.training("safmn", name) for name in ("paper", "short", "smoke"))
    assert (paper.steps, paper.batch, paper.patch, paper.lr, paper.ema_decay) == (500_000, 64, 64, 1e-3, 0.999)
    assert (short.steps, short.batch, short.patch) == (20_000, 32, 64)
    assert smoke.steps < short.steps and smoke.lr == paper.lr and smoke.lr_final == paper.lr_final
    assert runs.training("safmn", "short", ablation=True).steps == 5_000
    assert runs.training("safmn", "smoke", changes={"lr": 1e-4}).lr == 1e-4


@pytest.mark.parametrize("model", ["seemore-t", "seemore-b", "seemore-l"])
def test_seemore_is_trained_as_table_6_says(model):
    paper, short = runs.training(model, "paper"), runs.training(model, "short")
    assert (paper.steps, paper.batch, paper.patch, paper.lr) == (500_000, 32, 64, 1e-3)
    assert (paper.schedule, paper.milestones, paper.lr_decay) == (
        "multistep",
        (250_000, 400_000, 450_000, 475_000),
        0.5,
    )
    assert (paper.optimizer, paper.betas, paper.fft_weight, paper.ema_decay) == ("adam", (0.9, 0.99), 0.1, 0.0)
    assert (short.steps, short.milestones, short.ema_decay) == (20_000, (10_000, 16_000, 18_000, 19_000), 0.0)


@pytest.mark.parametrize("model", ANY)
def test_networks_for_every_scale_are_trained_as_liif_is(model):
    """Section 4 and LIIF's release; with SwinIR twice the batch, half the steps and later milestones."""
    paper, short, smoke = (runs.training(model, name) for name in ("paper", "short", "smoke"))
    shared = (paper.patch, paper.queries, paper.scales, paper.lr, paper.optimizer, paper.betas, paper.schedule)
    assert shared == (48, 2304, (1.0, 4.0), 1e-4, "adam", (0.9, 0.999), "multistep")
    assert (paper.fft_weight, paper.ema_decay, paper.expert_weights) == (0, 0, ())
    swinir = model.endswith("swinir")
    epoch = 20 * 800 // paper.batch
    assert (paper.batch, paper.steps) == ((32, 500_000) if swinir else (16, 1_000_000)) and paper.steps == 1000 * epoch
    assert [at // epoch for at in paper.milestones] == ([500, 800, 900, 950] if swinir else [200, 400, 600, 800])
    weights = (3000, 1) if model.startswith("moeisr") else (1, 0)
    assert (paper.l1_weight, paper.balance_weight) == weights
    assert (short.steps, short.batch, short.patch, short.queries) == (20_000, paper.batch, 48, 2304)
    assert short.milestones == tuple(at * 20_000 // paper.steps for at in paper.milestones)
    assert smoke.steps <= 400 and smoke.batch <= 4 and smoke.queries <= smoke.patch**2 and smoke.lr == 10 * paper.lr


def test_recipes_score_as_the_papers_do():
    from srlib import papers
    from srlib.data import BENCHMARKS

    for model in names():
        for dataset in ("photos/held-out", *BENCHMARKS):
            assert runs.recipe(model).protocol_on(dataset) == papers.protocol(model, dataset)


@pytest.fixture(scope="module")
def photographs(smooth_images) -> Store:
    """Images large enough to be scored at x4."""
    folder_ = smooth_images(2, (9, 8), (54, 48), Image.Resampling.BICUBIC)
    return Store.open(folder(folder_), cache=folder_.parent / "cache")


@pytest.fixture
def small_encoder(monkeypatch) -> None:
    """EDSR of one block, so that a step takes no time."""
    monkeypatch.setitem(ENCODERS, "edsr", partial(EDSR, blocks=1))


def asked(store: Store, **changes) -> runs.RunConfig:
    config = runs.configure("moeisr-liif-b-edsr", None, store, network=EXPERTS)
    return replace(config, train=replace(ASKED, **changes))



def test_a_network_for_every_scale_trains_with_mixed_precision(photographs, small_encoder, tmp_path):
    config = asked(photographs, precision="bf16-mixed")
    run = runs.train_or_load(config, photographs, photographs, root=tmp_path, device="cpu")
    assert run.metrics["steps"] == 4 and np.isfinite(run.metrics["loss"])


def test_a_run_for_every_scale_is_trained_scored_at_x4_and_loaded(photographs, small_encoder, tmp_path):
    config = asked(photographs)
    run = runs.train_or_load(config, photographs, photographs, root=tmp_path, device="cpu")
    assert run.folder.name.startswith("moeisr-liif-b-edsr-any-4-") and config.lr_fingerprint == ""
    assert run.config["scale"] is None and run.config["network"]["depths"] == [2, 3]
    assert (run.held_out["scale"], run.held_out["protocol"]["name"]) == (4, "liif")
    assert run.log("validation")["psnr"][-1] == pytest.approx(run.held_out["psnr"])
    network = run.network()
    assert network.config == EXPERTS and not network.training
    for scale in (None, 2, 3):
        loaded = runs.load(run.folder / "model.safetensors", "moeisr-liif-b-edsr", scale).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())
    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    runs.train_or_load(config, photographs, photographs, root=tmp_path, device="cpu")
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="fine-tune a network for one scale"):
        runs.fine_tune(run, photographs)


def test_an_interrupted_run_for_every_scale_ends_the_same(photographs, small_encoder, tmp_path, monkeypatch):
    whole = runs.train_or_load(asked(photographs), photographs, photographs, root=tmp_path / "a", device="cpu")
    writes = runs.Log.training

    def interrupted(self, step, *arguments):
        if step == 3:
            raise KeyboardInterrupt
        return writes(self, step, *arguments)

    monkeypatch.setattr(runs.Log, "training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.train_or_load(asked(photographs), photographs, photographs, root=tmp_path / "b", device="cpu")
    monkeypatch.setattr(runs.Log, "training", writes)
    resumed = runs.train_or_load(asked(photographs), photographs, photographs, root=tmp_path / "b", device="cpu")
    assert resumed.provenance["resumed_at"] == 2
    files = [load_file(run.folder / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_settings_for_every_scale_make_another_run(photographs):
    base = asked(photographs)
    changes = ({"queries": 21}, {"scales": (1.0, 3.0)}, {"l1_weight": 1.0}, {"balance_weight": 0.0})
    others = [asked(photographs, **change) for change in (*changes, {"expert_weights": (1.0, 3.7)})]
    assert len({base.key, *(other.key for other in others)}) == 6
    assert runs.contract("srlib.models.moeisr") != runs.code_hash(
        "srlib.models.moeisr", *(f"srlib.{name}" for name in runs.TRAINING_CODE)
    )


def test_what_a_network_for_every_scale_cannot_use_is_refused(photographs):
    with pytest.raises(InputError, match="leave it out"):
        runs.configure("liif-edsr", 4, photographs)
    with pytest.raises(InputError, match="expert_weights are .* one for each expert of moeisr-liif-b-edsr"):
        runs.configure(
            "moeisr-liif-b-edsr", None, photographs, network=EXPERTS, changes={"expert_weights": (1.0, 1.0, 1.0)}
        )
    with pytest.raises(InputError, match="got none: give it"):
        runs.configure("safmn", None, photographs)


def test_an_upscaler_is_a_network_at_a_scale():
    fixed, free = create("safmn", 2, TINY).eval(), create("moeisr-liif-b-edsr", config=EXPERTS).eval()
    assert runs.upscaler(fixed, 2) is fixed
    x = torch.rand(1, 3, 6, 7)
    with torch.inference_mode():
        assert torch.equal(runs.upscaler(free, 2.5)(x), free(x, size=(15, 18)))


def test_rows_bring_their_own_network_scale_and_training():
    held_out = Store.open(find("photos/held-out"))
    config = runs.configure_row("seemore-t", "12", "SeemoRe-T (L1=1.0;FFT=0.2)", None, held_out)
    assert (config.scale, config.train.fft_weight, config.train.steps) == (2, 0.2, runs.BUDGETS["smoke"].ablation_steps)
    config = runs.configure_row("seemore-t", "4c", "seemore-t-kernel-3", None, held_out)
    assert config.network["kernel"] == 3
    with pytest.raises(InputError, match="train seemore-b"):
        runs.configure_row("seemore-t", "13", "SeemoRe-B", None, held_out)
    with pytest.raises(InputError, match="several|no ablation"):
        runs.configure_row("seemore-t", 1, "SeemoRe-T (ours)", 2, held_out)
    for table, label in ((1, "EDSR-MoEISR(LIIF) -b"), (2, "RDN-LIIF"), (3, "EDSR-LIIF")):
        with pytest.raises(InputError, match="no ablation"):
            runs.configure_row("moeisr-liif-b-edsr", table, label, None, held_out)
    for model, scale, queries in (("safmn", 4, 10), ("liif-edsr", None, 0)):
        with pytest.raises(InputError, match=f"queries is {queries} for {model}"):
            runs.configure(model, scale, held_out, changes={"queries": queries, "fft_weight": 0.0})


def test_fine_tuning_goes_on_from_a_run(trained, store, tmp_path):
    """Appendix B.2: from the trained weights, by Real-ESRGAN's degradation, with L1 alone and half the steps."""
    config = runs.fine_tune(trained, store)
    assert (config.train.degradation, config.train.fft_weight, config.start) == ("real-esrgan", 0, trained.folder.name)
    assert config.network == trained.config["network"] and config.scale == 2
    paper = runs.fine_tune(trained, store, budget="paper").train
    assert (paper.steps, paper.batch, paper.schedule) == (250_000, 64, "cosine")
    start = runs.initial(config, trained.folder.parent).state_dict()
    assert all(torch.equal(value, start[key]) for key, value in trained.network().state_dict().items())
    config = replace(config, train=replace(config.train, steps=3, batch=2, patch=8))
    run = runs.train_or_load(config, store, degraded(store), root=trained.folder.parent, device="cpu")
    assert run.metrics["steps"] == 3 and run.held_out["lr_origin"].startswith("real-esrgan")
    after = run.network().state_dict()
    moved = max((after[key] - value).abs().max().item() for key, value in start.items())
    assert 0 < moved < 0.01
    with pytest.raises(InputError, match="no weights|no record"):
        runs.train_or_load(replace(config, start="gone"), store, store, root=trained.folder.parent, device="cpu")


@pytest.mark.parametrize("call", [
    lambda: runs.training("safmn", "tiny"),
    lambda: runs.training("resnet", "smoke"),
    lambda: runs.pick_device("tpu"),
    lambda: runs.Run(Path("nowhere")).metrics,
])  # fmt: skip
def test_unknown_names_are_one_line(call):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value) and ":" in str(error.value)


def test_the_paper_budget_refuses_the_embedded_photographs():
    class Photos:
        name = "photos/train"

    with pytest.raises(InputError, match="--data"):
        runs.configure("safmn", 4, Photos(), budget="paper")


def test_weights_of_another_model_or_scale_are_refused(trained, tmp_path):
    path = trained.folder / "model.safetensors"
    with pytest.raises(InputError, match="x2, not x4"):
        runs.load(path, scale=4)
    with pytest.raises(InputError, match="safmn, not seemore"):
        runs.load(path, model="seemore-t")
    with pytest.raises(InputError, match="no weights at"):
        runs.load(tmp_path / "missing.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut.safetensors is no whole"):
        runs.load(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="load_released"):
        runs.load(foreign)


@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {"params": {key: value * 0 for key, value in weights.items()}, "params_ema": weights},
    lambda weights: {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}},
    lambda weights: {"model": {"name": "safmn", "sd": weights}, "optimizer": {"sd": {}}, "epoch": 1000},
])  # fmt: skip
def test_released_weights_load_through_their_wrappers(wrap, tmp_path):
    weights = create("safmn", 2, TINY).state_dict()
    torch.save(wrap(weights), tmp_path / "released.pth")
    loaded = runs.load_released(create("safmn", 2, TINY), tmp_path / "released.pth").state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_released_weights_must_fit(tmp_path):
    network = create("safmn", 2, TINY)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for wrong, reason in (
        (create("safmn", 4, TINY).state_dict(), r"to_img.0.bias is \(48,\) instead of \(12,\)"),
        ({}, "lacks"),
        ({**before, "more": torch.zeros(1)}, "has more"),
        ({"params": 3}, "no state dictionary"),
    ):
        with pytest.raises(InputError, match=reason):
            runs.load_released(network, wrong)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_what_a_release_never_uses_is_passed_over_where_the_module_says_so():
    """The names count at the module that declares them, and a network saved by srlib must fit to the letter."""
    tiny = {"blocks": 1, "channels": 4}
    network = torch.nn.Sequential(EDSR(**tiny), torch.nn.Conv2d(4, 3, 1))
    weights = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
    shifts = {f"0.{name}": torch.zeros(1) for name in EDSR.UNUSED}
    loaded = runs.load_released(network, {**weights, **shifts}).state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[key], weights[key]) for key in weights)
    runs.load_released(network[0], {key[2:]: value for key, value in {**weights, **shifts}.items() if key[0] == "0"})
    for foreign in ("1.sub_mean.weight", "sub_mean.weight", "0.sub_mean.more"):
        with pytest.raises(InputError, match=f"has {foreign}"):
            runs.load_released(network, {**weights, foreign: torch.zeros(1)})
    with pytest.raises(InputError, match="0.add_mean.bias"):
        runs.load_strictly(network, {**weights, **shifts}, "a file of ours")


def test_pickled_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"params": Bomb()}, protocol=2))
    with pytest.raises(InputError, match="bomb.pth"):
        runs.load_released(create("safmn", 2, TINY), tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("scale", [2, 4])
def test_released_implementation_gives_the_golden_output(golden, scale):
    tensors = load_file(golden / f"safmn_x{scale}.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    network = runs.load_released(create("safmn", scale), weights).eval()
    with torch.inference_mode():
        output = network(tensors["input"])
    torch.testing.assert_close(output, tensors["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model", "scale", "options", "command"),
    [
        ("safmn", 3, {}, "safmn --scale 3 --budget smoke"),
        ("ssiu", 2, {"seed": 7, "ablation": True}, "ssiu --scale 2 --ablation --budget smoke --seed 7"),
        ("moeisr-lte-s-edsr", None, {"budget": "short"}, "moeisr-lte-s-edsr --budget short"),
    ],
)
def test_a_recorded_run_names_the_command_that_makes_it(store, model, scale, options, command):
    found = runs.origin(runs.configure(model, scale, store, **options).record())
    seed = " --seed 7" if "seed" in options else ""
    assert " ".join(found.command) == f"srlib train {command.removesuffix(seed)} --data {store.name}{seed}"
    assert (found.budget, found.table, found.row) == (options.get("budget", "smoke"), None, None)


def test_a_recorded_row_names_its_table(store):
    """By its network, and where that is the usual one, by its training."""
    for label in ("CCM -> Channel MLP", "LN -> None, lr=1x10^-4"):
        found = runs.origin(runs.configure_row("safmn", 3, label, None, store, budget="short").record())
        expected = ["safmn", "--scale", "4", "--table", "3", "--row", label, "--budget", "short"]
        assert list(found.command) == ["srlib", "train", *expected, "--data", store.name]
        assert (found.table, found.row) == (3, label)


def test_a_fine_tuned_run_names_the_record_that_it_goes_on_from(store):
    base = runs.configure("seemore-t", 4, store, ablation=True, changes=runs.tuned("seemore-t"))
    command = runs.origin(replace(base, start="seemore-t-x4-650-0123456789ab").record()).command
    assert command[:5] == ("srlib", "train", "seemore-t", "--fine-tune", "seemore-t-x4-650-0123456789ab.json")


def test_a_run_of_settings_of_its_own_names_no_command(store):
    assert runs.origin(config_of(store).record()) is None
    assert runs.origin(runs.configure("safmn", 2, store, network=TINY).record()) is None
