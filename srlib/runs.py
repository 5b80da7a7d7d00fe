"""Runs: one folder for each configuration, found again by the hash of what decides its weights.

A run's folder, ``runs/safmn-x4-800-1a2b3c4d5e6f``, holds ``model.safetensors``, ``log.csv``, ``validation.csv`` and
``run.json``: what decides the weights, how the run ended, its scores, and who made it. While it trains, three
checkpoints (``state-400.pt``) in it let it resume.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import srlib
from srlib import checkpoints, data, papers
from srlib.complexity import describe_device
from srlib.errors import InputError, Stopped, write
from srlib.evaluate import score, upscaler
from srlib.logs import Diverged, Log
from srlib.models import configuration, create, default_config
from srlib.parallel import launch, lock, once, part, pick_device, signals, stops
from srlib.train import State, TrainConfig, make_objective, train

TRAINING_VERSION = 1  # raise it by hand when a change alters trained weights: earlier runs are then other runs
VALIDATION_SCALE = 4  # at which networks for every scale are scored while they train, and at the end


@dataclass(frozen=True)
class Budget:
    """How much of a paper's training is run: steps (None: the paper's own), steps of a row of an ablation table, and
    the most that is taken of its batch, patch and average of weights."""

    steps: int | None = None
    ablation_steps: int | None = None
    batch: int = sys.maxsize
    patch: int = sys.maxsize
    ema_decay: float = 1.0


BUDGETS = {
    # proves that the path works, in minutes on two CPU cores; its scores say nothing about a paper
    "smoke": Budget(steps=800, ablation_steps=120, batch=4, patch=32, ema_decay=0.95),
    # a fair, small training
    "short": Budget(steps=20_000, ablation_steps=5_000, batch=32, patch=64, ema_decay=0.999),
    # ``EQUAL`` in place of the paper's settings; short enough for several seeds on two CPU cores
    "equal": Budget(steps=600, ablation_steps=600),
    "paper": Budget(),
}
# the same for all models, with L1 loss alone, and at x4 alone for networks for every scale
EQUAL: dict[str, Any] = {"batch": 4, "patch": 32, "optimizer": "adam", "betas": (0.9, 0.99), "weight_decay": 0.0}
EQUAL |= {"lr": 1e-3, "lr_final": 1e-5, "schedule": "cosine", "milestones": (), "fft_weight": 0.0, "ema_decay": 0.0}
AT_X4 = {"queries": 576, "scales": (4.0, 4.0), "l1_weight": 1.0, "balance_weight": 0.0}


def training(
    model: str, budget: str, *, ablation: bool = False, changes: Mapping[str, Any] | None = None, **settings: Any
) -> TrainConfig:
    """The paper's training of ``model`` at a budget. ``changes`` are settings in place of the paper's, such as those of
    a row of a table; ``settings`` (steps, batch, patch, seed, precision) take the place of the budget's, where they are
    not None. The schedule spans the steps: milestones stay at the same fractions.

    Raises InputError for an unknown model or budget, and for settings that no training can use.
    """
    if budget not in BUDGETS:
        raise InputError(f"no budget {budget!r}: choose one of {', '.join(BUDGETS)}")
    cut, recipe = BUDGETS[budget], papers.recipe(model)
    own = dict(recipe.smoke) if budget == "smoke" else {}
    if budget == "equal":
        own = EQUAL | (AT_X4 if recipe.train.queries else {})
    usual = own.pop("steps", cut.steps)
    full = replace(recipe.train, **{**own, **(changes or {})})
    used: dict[str, Any] = {"steps": (cut.ablation_steps if ablation else usual) or full.steps}
    used |= {name: min(getattr(full, name), getattr(cut, name)) for name in ("batch", "patch", "ema_decay")}
    given = {name: value for name, value in settings.items() if value is not None}
    if budget == "paper" and {"steps", "batch", "patch"} & {*given}:
        raise InputError("the paper budget is the paper's whole training: leave out steps, batch and patch")
    used |= given
    used["milestones"] = tuple(round(milestone * used["steps"] / full.steps) for milestone in full.milestones)
    return replace(full, **used)


@dataclass(frozen=True)
class RunConfig:
    """What decides a run's weights, up to rounding: ``network`` is the model's configuration, ``fingerprint`` the hash
    of the training images, ``lr_fingerprint`` that of their LR images ("" where LR patches are made of HR ones),
    ``start`` the folder of the run that it goes on from. ``scale`` is None for a network for every scale. ``data``, the
    images' name, and ``budget`` only tell where it comes from. (Several processes draw other noise for MoEISR.)"""

    model: str
    scale: int | None
    network: Mapping[str, Any]
    train: TrainConfig
    data: str
    fingerprint: str
    lr_fingerprint: str
    start: str = ""
    budget: str = ""

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits over what decides the weights, and ``TRAINING_VERSION``."""
        fields = {**asdict(self), "data": "", "budget": "", "version": TRAINING_VERSION}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def slug(self) -> str:
        """The name of the run's folder: model, scale, steps and key."""
        scale = "any" if self.scale is None else f"x{self.scale}"
        return f"{self.model}-{scale}-{self.train.steps}-{self.key}"


def configure(
    model: str, scale: int | None, store: data.Store, *, network: Any = None, budget: str = "smoke", **settings: Any
) -> RunConfig:
    """The configuration of a run: a model (``network``: its configuration, the released one where it is None), a scale
    (None for a network for every scale), training images and a budget; ``settings`` as :func:`training` takes them.

    Raises InputError for unknown names, a scale that the model lacks, and the paper budget on the photographs.
    """
    if budget == "paper" and store.name.startswith("photos/"):
        raise InputError(
            "the paper budget needs the paper's images: give --data DF2K, or for MoEISR and its backbones DIV2K_train"
        )
    train_config = training(model, budget, **settings)
    config: Any = configuration(model, scale, network)
    reduced = "" if scale is None or train_config.degradation != "bicubic" else store.lr_fingerprint(scale)
    return RunConfig(model, scale, asdict(config), train_config, store.name, store.fingerprint, reduced, budget=budget)


def configure_row(row: papers.Row, store: data.Store, *, scale: int | None = None, **settings: Any) -> RunConfig:
    """The configuration of a run of one row of an ablation table: its network and training, at the budget's length for
    ablations. ``scale`` None is the row's own; ``settings`` as :func:`configure` takes them, which says what raises."""
    settings = {"network": row.config, "ablation": True, "changes": row.train, **settings}
    return configure(row.model, scale or row.scale, store, **settings)


def fine_tune(run: Run, store: data.Store, changes: Mapping[str, Any], **settings: Any) -> RunConfig:
    """The configuration of a run that goes on from ``run``, with ``changes`` in place of the paper's settings, such as
    ``REAL_WORLD`` of :mod:`srlib.papers.seemore`. The schedule begins anew. Raises InputError for a run that collapsed,
    and one for every scale."""
    model, scale = run.config["model"], run.config["scale"]
    if scale is None or run.metrics["collapsed_at"]:
        raise InputError(f"{run.folder.name} {run.ending}: go on from a run for one scale that came to its end")
    settings = {"network": run.network().config, "ablation": True, "changes": changes, **settings}
    return replace(configure(model, scale, store, **settings), start=run.folder.name)


@dataclass(frozen=True)
class Run:
    """A run in its folder; ``run.json``, its record, is what a training writes last.

    Parts of the record: ``config`` (its RunConfig); ``metrics`` (steps, the last mean loss or None if not finite,
    collapsed_at: a step or None, collapse: how it showed, weights_at: the step whose weights are kept); ``held_out``
    (dataset, lr_origin, scale, protocol, psnr, ssim); ``provenance`` (commit, command, version, device, seconds and
    more). Reading a record that is missing or damaged raises InputError.
    """

    folder: Path
    config = property(lambda self: self.record["config"])
    metrics = property(lambda self: self.record["metrics"])
    held_out = property(lambda self: self.record["held_out"])
    provenance = property(lambda self: self.record["provenance"])

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / "run.json").exists()

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        """All that is known of it, as JSON data."""
        path = self.folder / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path} ({error}): delete the folder and train again") from None

    @property
    def ending(self) -> str:
        """How it ended, in words: "800 steps", or "collapsed at step 40"."""
        collapsed_at = self.metrics["collapsed_at"]
        return f"collapsed at step {collapsed_at}" if collapsed_at else f"{self.metrics['steps']:,} steps"

    def log(self, name: str = "log") -> pd.DataFrame:
        """``log.csv`` (step, loss, lr, seconds), or ``validation.csv`` (step, psnr, ssim, seconds)."""
        return pd.read_csv(self.folder / f"{name}.csv")

    def network(self, device: str | torch.device = "cpu") -> nn.Module:
        """The trained network, in evaluation mode."""
        return checkpoints.load(self.folder / "model.safetensors").to(device)


def train_or_load(
    config: RunConfig,
    store: data.Store,
    held_out: data.Store,
    *,
    root: Path | str = "runs",
    device: str = "auto",
    compile: bool = False,
    wait: bool = True,
    title: str = "",
) -> Run:
    """The finished run of ``config``: read from ``root`` if it is there, resumed if it was interrupted, else trained.

    ``held_out`` images are scored while it trains and at the end, under the paper's protocol; a finished run keeps the
    scores of those that it was trained with. ``device`` is "auto", "cpu" or "cuda". Processes that torchrun started
    train it together.

    Raises Stopped where a signal ends the training, which is then saved: the same call resumes it. While another
    process trains that run, this one waits, or, without ``wait``, raises Stopped.
    """
    run = Run(Path(root) / config.slug)
    if run.finished and not torch.distributed.is_torchelastic_launched():  # several processes must agree on that
        return run
    fabric = launch(pick_device(device), config.train.precision)
    batches = make_batches(config, store, part(fabric, config.train.batch))
    once(fabric, lambda: held_out.reduced(config.scale or VALIDATION_SCALE).files)  # raises now what scoring would
    with lock(fabric, run.folder, wait), signals() as asked:
        if not once(fabric, lambda: run.finished):
            Session(config, held_out, run, fabric, asked, title or config.slug).train(batches, compile)
    return run


class Session:
    """One process's training of a run: the loop, its log and checkpoints, scores on the way, and how it ends."""

    def __init__(
        self, config: RunConfig, held_out: data.Store, run: Run, fabric: Fabric, asked: list[str], title: str
    ) -> None:
        self.config, self.held_out, self.run = config, held_out, run
        self.fabric, self.asked, self.steps = fabric, asked, config.train.steps
        row_every, self.save_every, self.validate_every = rhythm(self.steps)
        self.log = Log(row_every, self.steps, title, fabric)

    def train(self, batches: data.Patches | data.Queries, compile: bool) -> None:
        """Train the run, or resume it, and write what it leaves. Raises Stopped."""
        settings, fabric, collapse = self.config.train, self.fabric, None
        state = self.start()
        if found := once(fabric, lambda: checkpoints.restore(self.run.folder)):
            state.restore(found)
            self.log.restore(found["log"], state.step)
        made = {"compile": compile, "processes": fabric.world_size, "resumed_at": state.step}
        loader = data.loader(batches, state.step, self.steps, device=fabric.device)
        try:
            for loss in train(state, loader, make_objective(settings), settings, fabric, compile):
                self.after_step(state, loss)
        except Diverged as diverged:
            collapse = diverged
        except RuntimeError:
            if not self.asked:
                raise
            # a signal to all processes of a job ends those that make batches, too
            raise Stopped(f"stopped at step {state.step:,}; the same command resumes at the last checkpoint") from None
        finally:
            self.log.bar.close()
        once(fabric, lambda: self.finish(state, collapse, made))

    def start(self) -> State:
        """The state before the first step."""
        return State(initial(self.config, self.run.folder.parent).to(self.fabric.device), self.config.train)

    def after_step(self, state: State, loss: Tensor) -> None:
        """A row of the log, scores, a checkpoint, or the end where they are due. Raises Diverged and Stopped."""
        self.log.add_loss(loss, state)
        last = state.step == self.steps
        stop = stops(self.fabric, self.asked, state.step) and not last and state.finite()
        if not (stop or last or state.step % self.save_every == 0):
            return
        if not state.finite():  # these weights must not take the place of good ones
            raise Diverged(state.step, "the weights are not finite")
        log = self.log.parts()
        once(self.fabric, lambda: self.save(state, log))
        if stop:
            line = f"stopped at step {state.step:,}, saved; the same command resumes"
            raise Stopped(line) if self.fabric.is_global_zero else SystemExit(75)

    def save(self, state: State, log: Mapping[str, Any]) -> None:
        """Score the held-out images where it is time, and write a checkpoint and the log."""
        if state.step % self.validate_every == 0 and state.step < self.steps:  # the end is scored by finish
            self.log.add_scores(self.scores(state), state)
        checkpoints.save(self.run.folder, state.parts() | {"log": log})
        self.log.write(self.run.folder)

    def scores(self, state: State) -> dict[str, Any]:
        """The scores of a state's network on the held-out images, under the paper's protocol."""
        model, scale, held_out = self.config.model, self.config.scale or VALIDATION_SCALE, self.held_out
        protocol = papers.recipe(model).protocol_on(held_out.image_set.name)
        found = score(upscaler(state.network, scale), held_out, scale, protocol, self.fabric.device, tile=0)
        about = {"dataset": found.dataset, "lr_origin": found.lr_origin, "scale": scale, "protocol": protocol.name}
        return about | {"psnr": found.psnr, "ssim": found.ssim}

    def finish(self, state: State, collapse: Diverged | None, made: Mapping[str, Any]) -> None:
        """Write the weights and, last of all, the record. Of a run that collapsed these are the weights of the last
        good checkpoint, or those that it began with."""
        folder, seconds = self.run.folder, round(state.seconds, 1)
        if collapse:
            state = self.start()
            state.restore(checkpoints.restore(folder, before=collapse.step) or state.parts())
        checkpoints.save_network(state.network, self.config.model, folder / "model.safetensors")
        held_out = self.scores(state)
        if not collapse:
            self.log.add_scores(held_out, state)
        self.log.write(folder)
        loss = self.log.rows["log"][-1][1]
        ended = {
            "steps": self.steps,
            "loss": loss if math.isfinite(loss) else None,
            "collapsed_at": collapse and collapse.step,
            "collapse": collapse and collapse.reason,
            "weights_at": state.step,
        }
        origin = {**made, **provenance(self.fabric.device), "seconds": seconds}
        record = {"config": asdict(self.config), "metrics": ended, "held_out": held_out, "provenance": origin}
        write(folder / "run.json", json.dumps(record, indent=1).encode())
        checkpoints.clear(folder)


def initial(config: RunConfig, root: Path) -> nn.Module:
    """The network that a run starts from: that of its ``start`` in ``root``, or a fresh one by the seed alone."""
    if config.start:
        return Run(root / config.start).network()
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        network = type(default_config(config.model))(**config.network)
        return create(config.model, config.scale, network)


def make_batches(config: RunConfig, store: data.Store, part: slice = slice(None)) -> data.Patches | data.Queries:
    """The training batches of a run, or a process's part of each. Raises InputError where an image is smaller than a
    patch."""
    own = config.train
    if config.scale is None:
        return data.Queries(store, own.scales, own.patch, own.batch, own.queries, own.seed, part=part)
    return data.Patches(store, config.scale, own.patch, own.batch, own.seed, own.degradation, part=part)


def rhythm(steps: int) -> tuple[int, int, int]:
    """After how many steps a run writes a row of its log, a checkpoint, and scores the held-out images. Each is a
    multiple of the one before, so that no checkpoint is written whose losses were not looked at."""
    log = min(max(1, steps // 100), 100)
    save = log * 10 if steps >= 500 else max(1, steps // 4 // log * log)
    return log, save, save * max(1, steps // 10 // save) if steps >= 500 else save


def provenance(device: torch.device) -> dict[str, Any]:
    """Who made a run: commit, command, versions, device and time."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "srlib")
    return {
        "commit": commit(),
        "command": shlex.join([program, *sys.argv[1:]]),
        "version": TRAINING_VERSION,
        "software": f"srlib {srlib.__version__}, torch {torch.__version__}, {platform.platform()}",
        "device": describe_device(device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def commit() -> str:
    """The commit that srlib runs from, with "+changes" where files differ from it; else "unknown" and git's reason."""
    # the first refuses a srlib that was installed into another project's checkout
    ask = "git ls-files --error-unmatch runs.py && git rev-parse --short=12 HEAD && git status --porcelain ."
    told = subprocess.run(ask, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    if told.returncode:
        return f"unknown ({told.stderr.splitlines()[0]})"
    _, found, *changes = told.stdout.splitlines()
    return found + ("+changes" if changes else "")
