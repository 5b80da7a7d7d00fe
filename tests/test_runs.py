"""Runs: named by what decides their weights, trained once, resumed after a kill, honest about a collapse."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from srlib import checkpoints, papers, runs
from srlib.data import Store, degraded
from srlib.errors import InputError, Stopped
from srlib.evaluate import score
from srlib.models import names, takes_scale
from srlib.models.encoders import EDSR, ENCODERS
from srlib.models.moeisr import MoEISRConfig
from srlib.papers.seemore import REAL_WORLD
from srlib.train import make_objective


def images(make_images, place: Path, size: tuple[int, int] = (40, 48)) -> Store:
    return Store.open(str(make_images(place / "images", 2, size)), cache=place / "cache")


@pytest.fixture
def store(make_images, tmp_path) -> Store:
    return images(make_images, tmp_path)


@pytest.fixture
def trained(store, tmp_path) -> runs.Run:
    return tiny.train(store, tmp_path / "whole")


def same(one: runs.Run, other: runs.Run) -> None:
    """Check that two runs have the same weights, log and scores, and that nothing else is left."""
    weights = [load_file(run.folder / "model.safetensors") for run in (one, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in ("log", "validation"):
        assert one.log(name).drop(columns="seconds").equals(other.log(name).drop(columns="seconds"))
        assert (np.diff(other.log(name)["seconds"]) > 0).all(), "the time goes on where it was"
    assert one.metrics == other.metrics and one.held_out == other.held_out
    assert {path.name for path in other.folder.iterdir()} - {".lock"} == FILES


FILES = {"run.json", "model.safetensors", "log.csv", "validation.csv"}


def test_budgets_scale_the_papers_training():
    paper, short, smoke = (runs.training("safmn", name) for name in ("paper", "short", "smoke"))
    assert paper == papers.recipe("safmn").train
    assert (short.steps, short.batch, short.patch, short.ema_decay) == (20_000, 32, 64, 0.999)
    assert (smoke.steps, smoke.batch, smoke.patch, smoke.ema_decay) == (800, 4, 32, 0.95)
    assert replace(smoke, steps=paper.steps, batch=64, patch=64, ema_decay=0.999) == paper, "all else is the paper's"
    assert runs.training("safmn", "short", ablation=True).steps == 5_000
    assert runs.training("seemore-t", "smoke").steps == 650, "a network's own smoke settings"
    assert runs.training("safmn", "smoke", changes={"lr": 1e-4}).lr == 1e-4


def test_the_schedule_spans_the_steps_that_are_asked_for():
    usual = runs.training("seemore-t", "short")
    asked = runs.training("seemore-t", "short", steps=2000, batch=128, patch=24)
    assert usual.milestones == (10_000, 16_000, 18_000, 19_000)
    assert asked == replace(usual, steps=2000, batch=128, patch=24, milestones=(1000, 1600, 1800, 1900))
    with pytest.raises(InputError, match="steps"):
        runs.training("safmn", "smoke", steps=0)


def test_the_equal_budget_trains_all_networks_alike():
    apart = {"queries": 0, "scales": (1.0, 4.0)}
    settings = {model: runs.training(model, "equal") for model in names()}
    assert len({replace(one, **apart) for one in settings.values()}) == 1
    safmn = settings["safmn"]
    assert (safmn.steps, safmn.batch, safmn.patch, safmn.schedule) == (600, 4, 32, "cosine")
    assert safmn.fft_weight == safmn.ema_decay == 0
    assert all(takes_scale(model) or one.scales == (4.0, 4.0) for model, one in settings.items())


def test_what_decides_the_weights_is_another_run_and_a_name_is_not(store, monkeypatch):
    base = tiny.configure(store)
    assert base.slug == f"safmn-x2-24-{base.key}"
    assert replace(base, data="elsewhere", budget="short").key == base.key
    others = [
        tiny.configure(store, seed=1),
        tiny.configure(store, changes={"lr": 2e-3}),
        replace(base, scale=3),
        replace(base, network={**base.network, "norm": "none"}),
        replace(base, fingerprint="0"),
        replace(base, lr_fingerprint="0"),
        replace(base, start="safmn-x2-12-000000000000"),
    ]
    assert replace(base, fingerprint="0", lr_fingerprint="0").key == "66cf623d158d", "earlier runs are not found again"
    keys = {base.key, *(other.key for other in others)}
    monkeypatch.setattr(runs, "TRAINING_VERSION", runs.TRAINING_VERSION + 1)
    assert len(keys | {base.key}) == 2 + len(others)


def test_rows_bring_their_own_network_scale_and_training(store):
    row = next(row for row in papers.rows("safmn", "3") if row.train)
    config = runs.configure_row(row, store)
    assert config.scale == row.scale and config.train.steps == runs.BUDGETS["smoke"].ablation_steps
    assert all(getattr(config.train, key) == value for key, value in row.train.items())
    with pytest.raises(InputError, match="no budget 'tiny'"):
        runs.configure_row(row, store, budget="tiny")


def test_the_paper_budget_refuses_the_photographs(store, monkeypatch):
    monkeypatch.setattr(store, "name", "photos/train")
    with pytest.raises(InputError, match="--data DF2K"):
        runs.configure("safmn", 4, store, budget="paper")
    with pytest.raises(InputError, match="leave out steps, batch and patch"):
        runs.training("safmn", "paper", steps=2)


def test_a_run_leaves_its_whole_record(trained, store):
    assert {path.name for path in trained.folder.iterdir()} - {".lock"} == FILES
    assert trained.finished and trained.ending == "24 steps"
    assert list(trained.log()["step"]) == list(range(1, 25)), "few steps, so a row each"
    assert list(trained.log("validation")["step"]) == [6, 12, 18, 24]
    last, held_out = trained.log("validation").iloc[-1], trained.held_out
    assert (last["psnr"], last["ssim"]) == (held_out["psnr"], held_out["ssim"])
    again = score(trained.network(), store, 2, papers.recipe("safmn").protocol)
    assert held_out["psnr"] == pytest.approx(again.psnr, abs=1e-9) and held_out["dataset"] == store.name
    made_by = {"commit", "command", "version", "software", "device", "seconds", "processes", "finished"}
    assert made_by <= trained.provenance.keys()
    assert trained.config["fingerprint"] == store.fingerprint and trained.config["budget"] == "smoke"


def test_images_that_cannot_be_scored_are_told_before_the_training(store, make_images, tmp_path):
    config, small = runs.configure("safmn", 4, store, patch=8), Store.open(str(make_images(tmp_path / "small", 1, 3)))
    with pytest.raises(InputError, match="0 is too small for x4"):
        runs.train_or_load(config, store, small, root=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_loaded(trained, store, tmp_path):
    before = (trained.folder / "model.safetensors").stat().st_mtime_ns
    assert tiny.train(store, tmp_path / "whole").record == trained.record
    assert before == (trained.folder / "model.safetensors").stat().st_mtime_ns


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(trained, store, tmp_path):
    """With kill -9: at random moments, and while a checkpoint is half written."""
    seed = random.randrange(10**6)
    chance, root = random.Random(seed), tmp_path / "killed"

    def half_written() -> None:
        def dies(*_: object) -> None:
            if any(root.glob("*/state-*.pt")):
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = dies
        tiny.train_slowly(store, root)

    kills = 0
    for number in range(4):
        whole = partial(tiny.train_slowly, store, root)
        process = tiny.fork(whole if number % 2 else half_written, tmp_path / "said")
        if number % 2:
            time.sleep(chance.uniform(0.1, 0.4))
            process.kill()
        kills += tiny.ended(process) == -signal.SIGKILL
    print("seed", seed, [path.name for path in root.glob("*/*")])
    assert kills >= 2 and any(root.glob("*/*.tmp")) and not any(root.glob("*/run.json"))
    same(trained, tiny.train(store, root))


def test_a_run_stopped_within_a_row_of_its_log_goes_on_there(store, tmp_path, monkeypatch):
    for steps in range(1, 3000):
        row, save, validate = runs.rhythm(steps)
        assert save % row == validate % save == 0
    monkeypatch.setattr(runs, "rhythm", lambda steps: (4, 8, 8))
    whole = tiny.train(store, tmp_path / "whole")
    with monkeypatch.context() as first:
        first.setattr(runs, "stops", lambda fabric, asked, step: step == 6)
        with pytest.raises(Stopped):
            tiny.train(store, tmp_path / "runs")
    same(whole, tiny.train(store, tmp_path / "runs"))


def test_patches_that_do_not_fit_leave_no_folder(store, tmp_path):
    with pytest.raises(InputError, match="patch|small"):
        tiny.train(store, tmp_path / "runs", patch=64)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_network_for_every_scale_is_trained_and_scored_at_x4(make_images, tmp_path, monkeypatch, precision):
    monkeypatch.setitem(ENCODERS, "edsr", partial(EDSR, blocks=1))
    store = images(make_images, tmp_path, (56, 64))
    part = Store(replace(store.image_set, name="DIV2K_val", whole=100), store.cache.parent)
    settings = {"steps": 4, "batch": 2, "patch": 6, "changes": {"queries": 20}, "precision": precision}
    experts = MoEISRConfig(depths=(2, 3), hidden=8)
    config = runs.configure("moeisr-liif-b-edsr", None, store, network=experts, **settings)
    run = runs.train_or_load(config, store, part, root=tmp_path / "runs", device="cpu")
    assert run.folder.name.startswith("moeisr-liif-b-edsr-any-4-") and config.lr_fingerprint == ""
    assert (run.held_out["scale"], run.held_out["protocol"]) == (4, "liif-div2k"), "that of the whole dataset"
    assert run.held_out["dataset"] == "DIV2K_val (2 of 100 images)" and math.isfinite(run.metrics["loss"])
    assert run.network().config == experts
    with pytest.raises(InputError, match="go on from a run for one scale"):
        runs.fine_tune(run, store, REAL_WORLD)


def test_fine_tuning_goes_on_from_a_run(trained, store, tmp_path):
    """SeemoRe, Appendix B.2: from the trained weights, by Real-ESRGAN's degradation, L1 alone, half the steps."""
    assert runs.fine_tune(trained, store, REAL_WORLD, budget="paper").train.steps == 250_000
    config = runs.fine_tune(trained, store, REAL_WORLD, steps=3, batch=2, patch=8)
    assert (config.train.degradation, config.train.fft_weight, config.start) == ("real-esrgan", 0, trained.folder.name)
    start = runs.initial(config, trained.folder.parent).state_dict()
    assert all(torch.equal(value, start[key]) for key, value in trained.network().state_dict().items())
    run = runs.train_or_load(config, store, degraded(store, 0), root=trained.folder.parent, device="cpu")
    moved = [(value - start[key]).abs().max().item() for key, value in run.network().state_dict().items()]
    assert 0 < max(moved) < 0.01 and run.held_out["lr_origin"].startswith("real-esrgan")


def collapsing(monkeypatch: pytest.MonkeyPatch, at: int, factor: float) -> None:
    """Have the loss of each step from ``at`` on be so many times what it is; the weights go on as they are."""
    count = iter(range(1, 10**6))

    def objective(config):
        usual = make_objective(config)
        return lambda network, batch: usual(network, batch) * (factor if next(count) >= at else 1)

    monkeypatch.setattr(runs, "make_objective", objective)


@pytest.mark.parametrize(("at", "factor", "reason"), [(19, 50.0, "2 times its median"), (20, math.inf, "not finite")])
def test_a_collapse_keeps_the_last_good_weights(store, tmp_path, monkeypatch, at, factor, reason):
    """Checkpoints of while the loss was high are no good ones, nor is that whose weights gave the first high loss."""
    saved, save = {}, checkpoints.save

    def keep(folder, parts):
        saved[parts["step"]] = {key: value.clone() for key, value in parts["average"].items()}
        save(folder, parts)

    monkeypatch.setattr(checkpoints, "save", keep)
    collapsing(monkeypatch, at, factor)
    run = tiny.train(store, tmp_path / "runs", steps=40)
    assert run.metrics["collapsed_at"] == at and reason in run.metrics["collapse"]
    assert run.ending == f"collapsed at step {at}" and run.metrics["weights_at"] == 10
    assert (run.metrics["loss"] is None) == (factor == math.inf)
    kept = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(value, saved[10][f"module.{key}"]) for key, value in kept.items())
    assert {path.name for path in run.folder.iterdir()} - {".lock"} == FILES
    with pytest.raises(InputError, match=f"collapsed at step {at}: go on from a run"):
        runs.fine_tune(run, store, REAL_WORLD)


def test_a_collapse_is_the_same_whether_interrupted_or_not(store, tmp_path, monkeypatch):
    """Stopped while the loss is high: the watch goes on where it was, and the good checkpoint is still there."""
    with monkeypatch.context() as first:
        collapsing(first, 19, 50.0)
        first.setattr(runs, "stops", lambda fabric, asked, step: step == 22)
        with pytest.raises(Stopped, match="stopped at step 22, saved"):
            tiny.train(store, tmp_path / "runs", steps=40)
    collapsing(monkeypatch, 1, 50.0)
    run = tiny.train(store, tmp_path / "runs", steps=40)
    assert run.provenance["resumed_at"] == 22
    assert (run.metrics["collapsed_at"], run.metrics["weights_at"]) == (19, 10)


def test_weights_that_are_not_finite_never_take_the_place_of_good_ones(store, tmp_path, monkeypatch):
    """In the last step, whose weights no loss looks at any more."""
    after = runs.Session.after_step

    def poison(self, state, loss):
        if state.step == 24:
            next(state.network.parameters()).data[0] = math.nan
        after(self, state, loss)

    monkeypatch.setattr(runs.Session, "after_step", poison)
    run = tiny.train(store, tmp_path / "runs")
    assert run.metrics["collapsed_at"] == 24 and run.metrics["weights_at"] == 18


def test_the_commit_is_recorded_or_why_there_is_none(monkeypatch):
    if (Path(runs.__file__).parents[1] / ".git").exists():
        assert runs.commit()[:12].isalnum()
    runs.commit.cache_clear()
    told = subprocess.CompletedProcess("git", 128, "", "fatal: detected dubious ownership in repository\nTo add ...")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    assert runs.commit() == "unknown (fatal: detected dubious ownership in repository)"
    runs.commit.cache_clear()


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="delete the folder and train again"):
        runs.Run(tmp_path).metrics["loss"]
