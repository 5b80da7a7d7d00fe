"""Runs: one folder per configuration, found again by the hash of everything that determines its weights.

A run's folder, ``runs/safmn-x4-500-1a2b3c4d5e6f`` (for a network for every scale ``runs/liif-edsr-any-...``), holds
``config.json`` (what determines the weights), ``model.safetensors`` (weights that name their network), ``log.csv`` and
``validation.csv``, ``provenance.json`` (who made it, when, with what) and, last of all and only for a run that came to
its end, ``metrics.json``; then ``held_out.json``, its scores. While a run trains, two states (``state-400.pt``) beside
them let it resume: see :mod:`srlib.checkpoints`.
"""

import ast
import hashlib
import json
import os
import platform
import subprocess
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import srlib
from srlib import data as data_module
from srlib import metrics, papers
from srlib.checkpoints import States, decode, encode, finite, write
from srlib.complexity import describe_device
from srlib.errors import InputError, Stopped
from srlib.evaluate import AtScale, score
from srlib.logs import Log, read_csv
from srlib.models import config_class, create, default_config, names, takes_scale
from srlib.processes import NOT_BEGUN, Group, Signals, held
from srlib.train import Diverged, State, TrainConfig, Watch, make_objective, train


@dataclass(frozen=True)
class Recipe:
    """How a paper trains and scores its network: the full schedule and the name of the evaluation protocol.

    ``protocols`` names another one for data sets that the paper scores in another way.
    """

    train: TrainConfig
    protocol: str
    protocols: Mapping[str, str] = field(default_factory=dict)

    def protocol_on(self, dataset: str) -> str:
        """The name of the protocol for a data set."""
        return self.protocols.get(dataset, self.protocol)


@dataclass(frozen=True)
class Budget:
    """How much of a paper's training is run. Optimiser, schedule shape and losses stay the paper's; the cosine spans
    the steps given.

    ``ablation_steps`` is the length for an ablation table's rows; ``batch`` and ``patch`` (LR pixels) are the most that
    are taken of the paper's own, None for these; ``ema_decay`` shrinks with the number of steps, as an average over the
    last thousand of five hundred steps would hold little but the start. ``own`` has settings for some models: fewer
    steps for those that take longer over each, and for MoEISR and its backbones smaller patches, fewer queries and ten
    times the learning rate, as a few hundred steps at the paper's lead nowhere. ``common`` has settings that all models
    share in place of their papers'.
    """

    name: str
    steps: int | None
    ablation_steps: int | None
    batch: int | None
    patch: int | None
    ema_decay: float | None
    meaning: str
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)


TRAINING_CODE = ("models.layers", "losses", "train", "resize", "data", "degradation")
PARTS = {"srlib.models.moeisr": ("srlib.models.encoders",)}  # other files that a model's is made of
VALIDATION_SCALE = 4  # at which networks for every scale are scored while they train, and at the end
SEEMORE = TrainConfig(  # Table 6, and the release, which averages no weights
    batch=32,
    schedule="multistep",
    milestones=(250_000, 400_000, 450_000, 475_000),
    fft_weight=0.1,
    ema_decay=0.0,
)
SSIU = TrainConfig(  # Section IV-A, and the release: 290 epochs of 40 passes over DF2K, no average of weights
    steps=290 * 40 * 3450 // 40,
    batch=40,
    optimizer="adamw",
    weight_decay=1e-4,
    lr_final=1e-6,
    fft_weight=0.01,
    ema_decay=0.0,
)
LIIF = TrainConfig(  # its release, and LTE's: 1000 epochs of 20 passes over DIV2K's 800 images, no average of weights
    steps=1000 * 20 * 800 // 16,
    batch=16,
    patch=48,
    betas=(0.9, 0.999),
    lr=1e-4,
    schedule="multistep",
    milestones=(200_000, 400_000, 600_000, 800_000),
    fft_weight=0.0,
    ema_decay=0.0,
    queries=2304,
)
LIIF_SWINIR = replace(  # with SwinIR as the encoder: twice the batch, half the steps, milestones at 500 epochs and on
    LIIF, steps=1000 * 20 * 800 // 32, batch=32, milestones=(250_000, 400_000, 450_000, 475_000)
)


def _liif(name: str) -> TrainConfig:
    """The training of a network for every scale: its backbone's, with MoEISR's losses (alpha and beta, Section 4)."""
    usual = LIIF_SWINIR if name.endswith("swinir") else LIIF
    return replace(usual, l1_weight=3000.0, balance_weight=1.0) if name.startswith("moeisr") else usual


RECIPES = {
    "safmn": Recipe(TrainConfig(), protocol="safmn"),
    "seemore-t": Recipe(SEEMORE, protocol="seemore"),
    "seemore-b": Recipe(SEEMORE, protocol="seemore"),
    "seemore-l": Recipe(SEEMORE, protocol="seemore-l"),
    "ssiu": Recipe(SSIU, protocol="ssiu"),
}
RECIPES |= {
    name: Recipe(_liif(name), protocol="liif", protocols={"DIV2K_val": "liif-div2k"})
    for name in names()
    if name.startswith(("liif", "lte", "moeisr"))
}

SMOKE = "proves that the path works, in minutes on two CPU cores; its scores say nothing about a paper"
SHORT = "a fair, small training: about ten minutes on a data-centre GPU"
EQUAL = (
    "the same training for all models: batch, steps, optimiser, schedule and loss (L1 alone, at x4 alone), no average "
    "of weights; short enough for several seeds on two CPU cores"
)
QUERIES = {"steps": 400, "patch": 24, "queries": 576, "lr": 1e-3}
OWN = {"seemore-t": {"steps": 650}, "ssiu": {"steps": 300}}
OWN |= {name: QUERIES for name, one in RECIPES.items() if one.train.queries}
ALIKE = {"optimizer": "adam", "betas": (0.9, 0.99), "weight_decay": 0.0, "lr": 1e-3, "lr_final": 1e-5}
ALIKE |= {"schedule": "cosine", "milestones": (), "fft_weight": 0.0, "ema_decay": 0.0}
AT_X4 = {"patch": 32, "queries": 576, "scales": (4.0, 4.0), "l1_weight": 1.0, "balance_weight": 0.0}
OWN_AT_X4 = {name: AT_X4 for name, one in RECIPES.items() if one.train.queries}
BUDGETS = {
    "smoke": Budget("smoke", 800, 120, batch=4, patch=32, ema_decay=0.95, meaning=SMOKE, own=OWN),
    "short": Budget("short", 20_000, 5_000, batch=32, patch=64, ema_decay=0.999, meaning=SHORT),
    "equal": Budget("equal", 600, 600, 4, 32, ema_decay=None, meaning=EQUAL, own=OWN_AT_X4, common=ALIKE),
    "paper": Budget("paper", None, None, None, None, None, meaning="the paper's full schedule, batch and data"),
}


@dataclass(frozen=True)
class Length:
    """How long a training is, where it is not a budget's own: ``steps``, ``batch`` and ``patch`` (LR pixels), None for
    the budget's. The schedule spans the steps. Raises InputError for numbers below 1."""

    steps: int | None = None
    batch: int | None = None
    patch: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 1 <= value < 2**63:
                raise InputError(f"{name} is {value}: give a whole number from 1 up")

    def words(self, budget: str) -> list[str]:
        """The budget's name, and what takes the place of its own, in words: "short", "batch 16"."""
        steps, batch, patch = f"{self.steps or 0:,} steps", f"batch {self.batch}", f"LR patch {self.patch}"
        known = {"steps": steps, "batch": batch, "patch": patch}
        return [budget, *(words for name, words in known.items() if getattr(self, name))]

    @property
    def options(self) -> list[str]:
        """The options of ``srlib train`` that ask for it."""
        return [part for name, value in asdict(self).items() if value for part in (f"--{name}", str(value))]


def recipe(model: str) -> Recipe:
    """The recipe of ``model``; InputError for a model that has none."""
    if model not in RECIPES:
        raise InputError(f"no training recipe for {model!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[model]


def training(
    model: str,
    budget: str,
    *,
    ablation: bool = False,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    length: Length | None = None,
) -> TrainConfig:
    """The paper's training of ``model``, scaled to ``budget``; ``changes`` are settings that a row of a table has for
    itself, such as its learning rate, ``precision`` is Fabric's, ``length`` has what takes the place of the budget's
    own.

    Raises InputError for an unknown model or budget, and for settings that no training can use.
    """
    if budget not in BUDGETS:
        raise InputError(f"no budget {budget!r}: choose one of {', '.join(BUDGETS)}")
    cut = BUDGETS[budget]
    own = dict(cut.own.get(model, {}))
    usual_steps = own.pop("steps", cut.steps)
    full = replace(recipe(model).train, **cut.common | own | dict(changes or {}))
    steps = cut.ablation_steps if ablation else usual_steps
    length = length or Length()
    scaled = at_length(full, length.steps or steps or full.steps)
    return replace(
        scaled,
        batch=length.batch or min(full.batch, cut.batch or full.batch),
        patch=length.patch or min(full.patch, cut.patch or full.patch),
        ema_decay=full.ema_decay if cut.ema_decay is None else min(full.ema_decay, cut.ema_decay),
        seed=seed,
        precision=precision,
    )


def at_length(config: TrainConfig, steps: int) -> TrainConfig:
    """A training of ``steps`` steps with the milestones of ``config`` at the same fractions of it."""
    milestones = tuple(round(milestone * steps / config.steps) for milestone in config.milestones)
    return replace(config, steps=steps, milestones=milestones)


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's weights, up to rounding: ``network`` is the model's own configuration as a
    dictionary, ``data`` the training images' name, ``fingerprint`` the hash of their decoded content, ``contract``
    that of the code, ``start`` the folder's name of the run whose weights it goes on from ("" for fresh ones).
    ``scale`` is None for a network for every scale, and ``lr_fingerprint`` "" where LR patches are made of HR ones.
    """

    model: str
    scale: int | None
    network: Mapping[str, Any]
    train: TrainConfig
    data: str
    fingerprint: str
    lr_fingerprint: str
    contract: str
    start: str = ""

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits over all fields but ``data``: the same images under another name are the same
        run."""
        fields = {name: value for name, value in self.record().items() if name != "data"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def slug(self) -> str:
        """The name of the run's folder: model, scale, steps and key."""
        scale = "any" if self.scale is None else f"x{self.scale}"
        return f"{self.model}-{scale}-{self.train.steps}-{self.key}"

    @property
    def scored_at(self) -> int:
        """The scale at which held-out images are scored: its own, or ``VALIDATION_SCALE``."""
        return VALIDATION_SCALE if self.scale is None else self.scale

    def record(self) -> dict[str, Any]:
        """The configuration as JSON data."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Run:
    """A run in its folder, finished unless ``ended`` says otherwise."""

    folder: Path

    @property
    def ended(self) -> bool:
        """Whether it has come to its end; ``metrics.json`` is what a run writes last."""
        return (self.folder / "metrics.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """What determined the weights (``config.json``)."""
        return read_checked(self.folder / "config.json", CONFIG)

    @property
    def metrics(self) -> dict[str, Any]:
        """How it ended: steps, the last mean loss (None if not finite), the step of a collapse or None (and in words,
        how it showed), the step whose weights are kept."""
        return read_checked(self.folder / "metrics.json", METRICS)

    @property
    def held_out(self) -> dict[str, Any]:
        """The scores on the held-out images, as ``Scores.record`` gives them (``held_out.json``)."""
        path = self.folder / "held_out.json"
        record = read_checked(path, HELD_OUT)
        checked(record["protocol"], NAMED, path)
        return record

    @property
    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device, seed, data and wall time."""
        return read_json(self.folder / "provenance.json")

    @property
    def ending(self) -> str:
        """How it ended, in words: "800 steps", or "collapsed at step 40"."""
        collapsed_at = self.metrics["collapsed_at"]
        return f"collapsed at step {collapsed_at}" if collapsed_at else f"{self.metrics['steps']:,} steps"

    def log(self, name: str = "log") -> dict[str, np.ndarray]:
        """The columns of ``log.csv`` (step, loss, lr, seconds), or of ``validation.csv`` for ``name="validation"``."""
        rows = read_csv(self.folder / f"{name}.csv")
        return {key: np.array([row[key] for row in rows]) for key in rows[0]} if rows else {}

    def network(self, device: str | torch.device = "cpu") -> nn.Module:
        """The trained network, in evaluation mode."""
        return load(self.folder / "model.safetensors", self.config["model"], self.config["scale"]).to(device)

    def record(self) -> dict[str, Any]:
        """All that the book shows of a run, as JSON data; the folder's name only, no path."""
        parts = {"config": self.config, "metrics": self.metrics, "provenance": self.provenance}
        return {"run": self.folder.name} | parts | {"held_out": self.held_out}


def configure(
    model: str,
    scale: int | None,
    store: data_module.Store,
    *,
    network: Any = None,
    budget: str = "smoke",
    ablation: bool = False,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    length: Length | None = None,
) -> RunConfig:
    """The configuration of one run: a model (``network``: its config dataclass, default the paper's), its scale (None
    for a network for every scale), its data and a budget. ``changes`` are settings of the training that differ from the
    paper's usual ones, ``length`` has what differs from the budget's steps, batch and patch.

    Raises InputError for unknown names, for a scale that ``create`` refuses, and for the paper budget on the embedded
    photographs, which are no paper's data.
    """
    if budget == "paper" and store.name.startswith("photos"):
        images = "DIV2K's and Flickr2K's HR images" if takes_scale(model) else "DIV2K's HR images"
        raise InputError(f"the paper budget needs the paper's training images: give --data FOLDER ({images})")
    settings = training(
        model, budget, ablation=ablation, changes=changes, seed=seed, precision=precision, length=length
    )
    config = create(model, scale, network).config
    if bool(settings.queries) == takes_scale(model):
        needed = "give 0, as it learns from whole patches" if takes_scale(model) else "give a number from 1 up"
        raise InputError(f"queries is {settings.queries} for {model}: {needed}")
    if settings.expert_weights and len(settings.expert_weights) != len(getattr(config, "depths", ())):
        raise InputError(f"expert_weights are {settings.expert_weights}: give one for each expert of {model}, or ()")
    from_images = scale is not None and settings.degradation == "bicubic"  # else LR is made of HR patches
    reduced = store.lr_fingerprint(scale) if from_images else ""
    code = contract(type(config).__module__)
    return RunConfig(model, scale, asdict(config), settings, store.name, store.fingerprint, reduced, code)


def holds_the_networks(rows: Sequence[papers.Row]) -> bool:
    """Whether a table's rows are a paper's networks themselves, at several scales or for every one: no ablation."""
    if len({row.scale for row in rows}) > 1:
        return True
    return bool(rows) and all(
        row.scale is None and not row.train and row.config == default_config(row.model) for row in rows
    )


def configure_row(
    model: str,
    table: int | str,
    label: str,
    scale: int | None,
    store: data_module.Store,
    *,
    budget: str = "smoke",
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    length: Length | None = None,
) -> RunConfig:
    """The configuration of a run of one row of an ablation table, by its printed label: the row's network and training,
    and the budget's length for ablations. ``scale`` None is the row's own.

    Raises InputError for a table or row that there isn't, for a row of another model, and for a table that compares at
    several scales, whose rows are main runs.
    """
    paper = papers.paper_of(model)
    if holds_the_networks(papers.rows(paper, table)):
        raise InputError(
            f"table {table} holds {paper} itself, no ablation: train it without a table, and choose the scale if it "
            "has one"
        )
    row = papers.row(paper, table, label)
    if row.model != model:
        raise InputError(f"row {row.name!r} of table {table} is {row.model}, not {model}: train {row.model}")
    return configure(
        model, row.scale if scale is None else scale, store, network=row.config, budget=budget, ablation=True,
        changes=row.train, seed=seed, precision=precision, length=length,
    )  # fmt: skip


def fine_tune(
    start: Run,
    store: data_module.Store,
    *,
    budget: str = "smoke",
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    length: Length | None = None,
) -> RunConfig:
    """The configuration of a run that goes on from the finished run ``start`` for real-world images (SeemoRe, Appendix
    B.2): LR patches by Real-ESRGAN's degradation, L1 loss alone, half the paper's steps or the budget's length for
    ablations. The paper doesn't say at which learning rate: it is the usual schedule, from its start.

    Raises InputError as :func:`configure` does, for a start that collapsed, and for a network for every scale.
    """
    before, collapsed_at = start.config, start.metrics["collapsed_at"]
    if before["scale"] is None:
        raise InputError(f"{before['model']} learns from bicubic LR patches alone: fine-tune a network for one scale")
    if collapsed_at:
        raise InputError(f"{start.folder.name} collapsed at step {collapsed_at}: go on from a run that came to its end")
    model, scale = before["model"], before["scale"]
    config = configure(
        model, scale, store, network=network_config(model, before["network"], start.folder.name), budget=budget,
        ablation=True, changes=tuned(model), seed=seed, precision=precision, length=length,
    )  # fmt: skip
    return replace(config, start=start.folder.name)


def tuned(model: str) -> dict[str, Any]:
    """The settings of a fine-tuning for real-world images that differ from the paper's usual ones."""
    full = at_length(recipe(model).train, recipe(model).train.steps // 2)
    return {"steps": full.steps, "milestones": full.milestones, "fft_weight": 0.0, "degradation": "real-esrgan"}


@dataclass(frozen=True)
class Origin:
    """How a run is made again: ``command``, the arguments of ``srlib train``; its ``budget``, and the ``length`` that
    takes the place of the budget's own; and the ``table`` and ``row`` whose network and training it has, None for a
    paper's usual ones."""

    command: tuple[str, ...]
    budget: str
    length: Length
    table: int | str | None = None
    row: str | None = None

    @property
    def label(self) -> str:
        """The budget in words: "short", or "short, batch 16, LR patch 32"."""
        return ", ".join(self.length.words(self.budget))


def origin(config: Mapping[str, Any], budget: str | None = None) -> Origin | None:
    """How the run of a recorded configuration (``Run.config``) is made again by ``srlib train``; None for one whose
    network or training no budget, option or row of a table gives, such as one that a notebook configures.

    The images are named as the record names them, and the record of the run that a fine-tuning goes on from, by that
    run's name: "seemore-t-x4-650-0b1e948fa083.json". Where several budgets lead there, that with the fewest options is
    taken, but ``budget`` first, a label such as the one that ``srlib train`` records: "short, batch 16". Raises
    InputError for a model that there isn't.
    """
    model, scale, seed, precision = config["model"], config["scale"], *map(config["train"].get, ("seed", "precision"))
    usual = default_config(model)
    given = ["--data", config["data"]] + (["--seed", str(seed)] if seed else [])
    given += ["--precision", precision] if precision != TrainConfig.precision else []
    at = [] if scale is None else ["--scale", str(scale)]

    def same(network: Any, settings: TrainConfig) -> bool:
        network = network if scale is None else replace(network, scale=scale)
        found = json.loads(json.dumps([asdict(network), asdict(settings)]))
        return found == [config["network"], config["train"]]

    trained = config["train"]
    alone = {name: Length(**{name: trained[name]}) for name in ("steps", "batch", "patch")}
    whole = Length(trained["steps"], trained["batch"], trained["patch"])
    lengths = [Length(), *alone.values(), *(replace(whole, **{name: None}) for name in alone), whole]
    asked = [name for name in BUDGETS if budget and budget.split(",")[0] == name]
    for length, budget in [*product(lengths, asked), *product(lengths, BUDGETS)]:
        options: dict[str, Any] = {"budget": budget, "seed": seed, "precision": precision, "length": length}
        end = ("--budget", budget, *length.options, *given)
        if config.get("start"):
            settings = training(model, ablation=True, changes=tuned(model), **options)
            if trained == json.loads(json.dumps(asdict(settings))):
                return Origin(("srlib", "train", model, "--fine-tune", f"{config['start']}.json", *end), budget, length)
            continue
        for ablation in ([], ["--ablation"]):
            if same(usual, training(model, ablation=bool(ablation), **options)):
                return Origin(("srlib", "train", model, *at, *ablation, *end), budget, length)
        paper = papers.paper_of(model)
        for number in (number for name, number in papers.tables() if name == paper):
            rows = papers.rows(paper, number)
            for row in [] if holds_the_networks(rows) else rows:
                settings = training(row.model, ablation=True, changes=row.train, **options)
                if row.model == model and same(row.config, settings):
                    which = ("--table", str(number), "--row", row.name)
                    return Origin(("srlib", "train", model, *at, *which, *end), budget, length, number, row.name)
    return None


def train_or_load(
    config: RunConfig,
    store: data_module.Store,
    held_out: data_module.Store,
    *,
    root: Path | str = "runs",
    device: str = "auto",
    compile: bool = False,
    wait: bool = True,
    title: str = "",
) -> Run:
    """The finished run of ``config``: read from ``root`` if it is there, resumed if it was interrupted, else trained.

    ``held_out`` images are scored at points along the way under the paper's protocol, and at the end; a finished run is
    scored again where that was on other images or by other code. They are enlarged whole, so that scores don't
    depend on the free memory. ``device``: "auto", "cpu" or "cuda". A run of another
    configuration, other data or other code has another key, and so is never served in its place. A finished run that is
    scored is read whoever holds its lock.

    Raises Stopped where a signal ends the training, which is then saved: the same call goes on. While another process
    trains that run, this one waits for it, or, without ``wait``, raises Stopped at once. Processes that ``torchrun``
    has started train it together (:class:`srlib.processes.Group`).
    """
    where, folder = pick_device(device), Path(root) / config.slug
    protocol = metrics.protocol(recipe(config.model).protocol_on(held_out.name))
    scale, run, states = config.scored_at, Run(folder), States(folder)
    scored_by = [held_out.fingerprint, held_out.lr_fingerprint(scale), protocol.record(), scoring_contract()]
    if not run.ended:  # refuse what cannot be trained or scored before a folder is made
        make_patches(config, store, "cpu")
        smallest = min((held_out.pair(i, scale)[1] for i in range(len(held_out))), key=lambda hr: hr.numel())
        metrics.ssim(smallest, smallest, protocol, scale)
    group = Group.start(where, config.train.precision)
    if not run.ended:
        network = initial(config, Path(root))
        group.check(network, config.train.batch, compile, draws=bool(config.train.queries))

    def scored() -> bool:
        if run.config | {"data": ""} != config.record() | {"data": ""}:
            raise InputError(f"{folder}/config.json is not what the folder's name promises: delete the folder")
        known = json.loads(json.dumps(scored_by))
        return (folder / "held_out.json").exists() and run.held_out.get("scored_by") == known

    if group.once(lambda: run.ended and scored()):
        return run
    group.once(lambda: make_folder(folder))
    with group.together(), Signals() as signals, ExitStack() as lock:
        with signals.at_once(NOT_BEGUN):
            lock.enter_context(held(folder, group, wait, lambda: run.ended))
        if group.once(lambda: not run.ended):
            group.once(lambda: sweep(folder))
            session = Session(config, held_out, protocol, folder, group, signals, title or config.slug)
            session.train(make_patches(config, store, str(group.fabric.device)), compile)

        def finish() -> None:
            states.clear()
            if not scored():
                with signals.at_once(
                    f"stopped while scoring {folder.name}, which is trained; the same command goes on"
                ):
                    network = upscaler(run.network(where), scale)
                    scores = score(network, held_out, scale, protocol, device=where, tile=0)
                write_json(folder / "held_out.json", scores.record() | {"scored_by": scored_by})

        group.once(finish)
        return run


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()


def scale_of(network_config: Any) -> int | None:
    """The scale that a network's configuration holds; None for a network for every scale."""
    return getattr(network_config, "scale", None)


def upscaler(network: nn.Module, scale: float) -> nn.Module:
    """``network`` as an upscaler for ``score``: itself if it has one scale, else at ``scale``."""
    return AtScale(network, scale) if scale_of(network.config) is None else network


def make_patches(config: RunConfig, store: data_module.Store, device: str) -> data_module.Patches | data_module.Queries:
    """The training batches of a run. Raises InputError where an image is smaller than a patch."""
    settings = config.train
    if config.scale is None:
        return data_module.Queries(
            store, scales=settings.scales, patch=settings.patch, batch=settings.batch, queries=settings.queries,
            seed=settings.seed, device=device,
        )  # fmt: skip
    return data_module.Patches(
        store, scale=config.scale, patch=settings.patch, batch=settings.batch, seed=settings.seed, device=device,
        degradation=settings.degradation,
    )  # fmt: skip


class Session:
    """What surrounds the loop while a run is trained: its log and states, scores on the way, the watch over its loss,
    and when it ends."""

    def __init__(
        self,
        config: RunConfig,
        held_out: data_module.Store,
        protocol: metrics.Protocol,
        folder: Path,
        group: Group,
        signals: Signals,
        title: str,
    ) -> None:
        self.config, self.held_out, self.protocol, self.folder = config, held_out, protocol, folder
        self.group, self.signals, self.title = group, signals, title
        self.rhythm = Rhythm.of(config.train.steps)
        self.log = Log(folder, every=self.rhythm.log, total=config.train.steps, title=title, quiet=not group.first)
        self.states, self.watch = States(folder), Watch()
        self.state: State | None = None
        self.resumed_at = 0

    def train(self, patches: data_module.Patches | data_module.Queries, compile: bool) -> None:
        """Train the run, or go on with it, and write what it leaves. Raises Stopped, or InputError where the folder
        can't be written to: its last state is then as it was."""
        settings, group = self.config.train, self.group
        group.once(lambda: write_json(self.folder / "config.json", self.config.record()))
        collapse = None
        try:
            trained = train(
                initial(self.config, self.folder.parent), group.share(patches.batch),
                group.objective(make_objective(settings)), settings, group.fabric,
                on_start=self.on_start, on_step=self.on_step, on_save=self.on_save, save_every=self.rhythm.save,
                compile=compile,
            )  # fmt: skip
        except Diverged as diverged:
            collapse, trained = diverged, None
        except BaseException:
            self.log.close()
            raise
        group.once(lambda: self.finish(trained, collapse, compile))

    def on_start(self, state: State) -> None:
        """Go on from the last saved state, if there is one, with a log that ends where it does."""
        self.state = state

        def restored() -> bytes:
            extra = self.states.restore(state)
            return encode(state.parts() | extra) if self.group.size > 1 else extra

        found = self.group.once(restored)
        if self.group.size > 1:
            parts = decode(found)
            state.restore(parts)
            found = parts
        self.resumed_at = state.step
        pending = found.get("pending", torch.empty(0)).to(self.group.fabric.device)
        self.log.resume(state.step, pending.unbind())
        first = 1
        for row in self.group.once(lambda: self.log.rows("log.csv")):
            self.watch.row(first, row["loss"])
            first = int(row["step"]) + 1
        self.validate(state)

    def on_step(self, state: State, loss: Tensor) -> None:
        """Note the loss; raise Diverged where the training has collapsed, and Stopped where it is to stop."""
        rate, last = state.schedule.get_last_lr()[0], state.step == self.config.train.steps
        if losses := self.log.training(state.step, loss, rate, state.seconds, self.group.mean):
            self.watch.look(state.step - len(losses) + 1, losses, last)
        if self.group.stops(self.signals, state.step, self.rhythm.log) and self.sound(state):
            self.save(state)
            self.group.leave(Stopped(f"stopped at step {state.step:,}, saved; the same command goes on"))

    def sound(self, state: State) -> bool:
        """Whether the weights and the losses that have no row yet are finite. Where they aren't, the loop goes on to
        the row or the state that says so, and the step of a collapse does not depend on when a signal comes."""
        losses = self.group.mean(torch.stack(self.log.pending)) if self.log.pending else torch.empty(0)
        return finite([losses, state.model.state_dict(), state.average.state_dict()])

    def on_save(self, state: State) -> None:
        """Save the state, then score the held-out images where that is due."""
        self.save(state)
        self.validate(state)

    def save(self, state: State) -> None:
        """Save the state with the losses that have no row yet, after the rows that it goes with; raise Diverged where
        its weights are not finite, before it could take the place of good ones."""
        if not finite([state.model.state_dict(), state.average.state_dict()]):
            raise Diverged(state.step, "the weights are not finite")
        pending = self.log.pending
        losses = self.group.mean(torch.stack(pending)).cpu() if pending else torch.empty(0)

        def write_state() -> None:
            self.log.settle()
            self.states.save(state, {"pending": losses}, self.watch.since)

        self.group.once(write_state)

    def validate(self, state: State) -> None:
        """Score the held-out images where that is due after this step, and has not been done."""
        due = state.step % self.rhythm.validate == 0 or state.step == self.config.train.steps
        if not state.step or not due or not self.group.first:
            return
        if any(row["step"] == state.step for row in self.log.rows("validation.csv")):
            return
        network, scale = upscaler(state.average, self.config.scored_at), self.config.scored_at
        with self.signals.at_once(f"stopped at step {state.step:,}, saved; the same command goes on"):
            scores = score(network, self.held_out, scale, self.protocol, device=self.group.fabric.device, tile=0)
        self.log.validation(state.step, scores.psnr, scores.ssim, state.seconds)

    def finish(self, trained: nn.Module | None, collapse: Diverged | None, compile: bool) -> None:
        """Write the weights, who made them, and last of all how the run ended; say it in one line. Of a run that
        collapsed these are the weights of its last good state, or those that it began with."""
        config, device, steps = self.config, self.group.fabric.device, self.config.train.steps
        assert self.state is not None  # on_start has come first
        seconds, weights_at = self.state.seconds, steps
        if trained is None:
            state = State(initial(config, self.folder.parent), config.train)
            self.states.restore(state, collapse.step if collapse else None)
            trained, weights_at = state.average.eval(), state.step
        save(trained, config.model, self.folder / "model.safetensors")
        made_by = provenance(config, device, seconds, self.resumed_at, compile) | {"processes": self.group.size}
        write_json(self.folder / "provenance.json", made_by)
        rows, scores = self.log.rows("log.csv"), self.log.rows("validation.csv")
        loss = rows[-1]["loss"] if rows and np.isfinite(rows[-1]["loss"]) else None
        ended = {"collapsed_at": collapse.step, "collapse": collapse.reason} if collapse else {"collapsed_at": None}
        metrics_ = {"steps": steps, "loss": loss} | ended | {"weights_at": weights_at}
        self.log.settle()
        write_json(self.folder / "metrics.json", metrics_)
        self.states.clear()
        reached = f", held-out PSNR {scores[-1]['psnr']:.2f} dB" if scores else ""
        self.log.close(f"{self.title}: {Run(self.folder).ending}{reached}, {seconds:.0f} s on {device}")


@dataclass(frozen=True)
class Rhythm:
    """After how many steps a run writes a line of its log, saves its state, and scores the held-out images.

    Each is a multiple of the one before, so that no state is saved whose losses were not looked at.
    """

    log: int
    save: int
    validate: int

    @classmethod
    def of(cls, steps: int) -> "Rhythm":
        """A hundred lines or more, ten scores (four in a short run), a state at least every thousand steps."""
        log = min(max(1, steps // 100), 100)
        save = log * 10 if steps >= 500 else max(1, steps // 4 // log * log)
        return cls(log, save, save * max(1, steps // 10 // save) if steps >= 500 else save)


def initial(config: RunConfig, root: Path) -> nn.Module:
    """The network that a run starts from, in training mode: the one of the run in ``root`` that it goes on from, or a
    fresh one whose weights depend on the seed alone, whatever was drawn before."""
    if config.start:
        return Run(root / config.start).network().train()
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return create(config.model, config.scale, config_class(config.model)(**config.network))


def pick_device(device: str) -> str:
    """``device`` checked, with "auto" resolved: CUDA where there is some, else the CPU. InputError where it cannot be
    had."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("this torch sees no CUDA device: use --device cpu, or install a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


# --- weights on disk -------------------------------------------------------------------------------------------------


def save(model: nn.Module, name: str, path: Path) -> None:
    """Write ``model``'s weights to ``path`` as safetensors that name their network and configuration; atomic."""
    metadata = {"srlib": srlib.__version__, "model": name, "config": json.dumps(asdict(model.config))}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write(path, safetensors.torch.save(tensors, metadata))


def load(path: Path | str, model: str | None = None, scale: int | None = None) -> nn.Module:
    """The network that a file written by :func:`save` holds, in evaluation mode on the CPU.

    Raises InputError when the file is missing, damaged, no checkpoint of srlib, or of another ``model`` or ``scale``
    than asked for; a network for every scale has any.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if "model" not in metadata or "config" not in metadata:
        raise InputError(
            f"{path.name} does not say which network it holds: load foreign weights with srlib.runs.load_released"
        )
    found = metadata["model"]
    try:
        values = json.loads(metadata["config"])
    except (ValueError, RecursionError):
        raise InputError(f"{path.name} has a configuration that is no JSON: fetch or train it again") from None
    if model is not None and model != found:
        raise InputError(f"{path.name} holds {found}, not {model}: ask for {found}, or give {model}'s weights")
    config = network_config(found, values, path.name)
    own = scale_of(config)
    if scale is not None and own not in (None, scale):
        raise InputError(
            f"{path.name} holds weights for x{own}, not x{scale}: give the scale that it was trained for"
        )
    with torch.device("meta"):  # without memory: what the configuration asks for may be anything
        check_fit(create(found, own, config), tensors, path.name)
    network = create(found, own, config)
    load_strictly(network, tensors, path.name)
    return network.eval()


def network_config(model: str, values: Any, name: str) -> Any:
    """The configuration of a network from JSON data, as a file or record called ``name`` has it.

    Raises InputError for an unknown model and for data that is no configuration of it.
    """
    kind = config_class(model)
    known = [one.name for one in fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f"{name} has {type(values).__name__} as its configuration: fetch or train it again")
    if foreign := [key for key in values if key not in known]:
        raise InputError(f"{name} has a configuration with {foreign[0]!r:.50}, which {model} lacks: fetch it again")
    return kind(**values)


def load_released(model: nn.Module, weights: Mapping[str, Any] | Path | str) -> nn.Module:
    """Load weights under the names of the authors' released files into ``model``, strictly, and return it.

    ``weights`` is a state dictionary or a file (.safetensors; .pth and .pt are opened with ``weights_only=True``, so
    that no code in them is run). Wrappers are taken off: ``params_ema`` before ``params``, ``model_state_dict``,
    ``state_dict``, ``model`` and ``sd`` in it, and ``module.`` before each name. What a module names as ``UNUSED`` is
    passed over: tensors that the release stores beside its weights and never uses. Raises InputError for a missing or
    damaged file and for weights of another network or scale.
    """
    name = "the state dictionary"
    if not isinstance(weights, Mapping):
        path = Path(weights)
        name = path.name
        weights = read_tensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    for wrapper in ("params_ema", "params", "model_state_dict", "state_dict", "model", "sd"):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise InputError(
            f"{name} is no state dictionary of tensors: give a released .pth or .safetensors file of the model"
        )
    tensors = {key.removeprefix("module."): value for key, value in weights.items()}
    unused = {
        f"{place}.{tensor}" if place else tensor
        for place, module in model.named_modules()
        for tensor in getattr(module, "UNUSED", ())
    }
    load_strictly(model, {key: value for key, value in tensors.items() if key not in unused}, name)
    return model


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load ``tensors`` if they are the model's, else raise InputError that names the first difference: names and
    shapes, real numbers in each (of any floating-point format), none of them infinite or not a number."""
    check_fit(model, tensors, name)
    model.load_state_dict(tensors)


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError where ``tensors`` cannot be the model's weights; the model may be on the meta device."""
    expected = model.state_dict()
    missing, foreign = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape]
    wrong = None
    if missing:
        wrong = f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    elif foreign:
        wrong = f"it has {foreign[0]}, which the network lacks"
    elif shapes:
        key = min(shapes)
        wrong = f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
    if wrong:
        raise InputError(f"{name} does not fit {type(model).__name__} with this configuration and scale: {wrong}")
    for key, tensor in tensors.items():
        check_numbers(key, tensor, expected[key].dtype, name)


def check_numbers(key: str, tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raise InputError where a tensor of a file called ``name`` does not hold finite numbers of the kind of
    ``dtype``."""
    what = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        held = "no values" if tensor.is_meta else "quantised values" if tensor.is_quantized else "a sparse tensor"
        raise InputError(f"{name} has {held} as {key}: give a file of plain tensors")
    if tensor.is_floating_point() != dtype.is_floating_point or tensor.is_complex() or tensor.dtype == torch.bool:
        wanted = str(dtype).removeprefix("torch.")
        raise InputError(f"{name} has {what} values as {key}, where the network has {wanted}: give its own weights")
    if dtype.is_floating_point and not tensor.to(dtype).isfinite().all():
        raise InputError(
            f"{name} has values in {key} that are infinite or no numbers: its training failed, or it is damaged; give "
            "another file"
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; InputError when it is missing or damaged."""
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}: check the path, or train with `srlib train`")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # SafetensorError, OSError, and what a format that torch lacks leads to
        raise InputError(f"{path.name} is no whole safetensors file ({error}): fetch or train it again") from None


def read_pickle(path: Path) -> Any:
    """Contents of a .pth file, opened so that no code in it can run; InputError when it is missing, damaged or holds
    code, and when parts of it are compressed, which torch.save never does and which can grow without end."""
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}: check the path")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                    raise ValueError("compressed parts")
                if sum(part.file_size for part in parts) > path.stat().st_size:
                    raise ValueError("overlapping parts")
                if archive.testzip() is not None:  # torch does not look at the sums
                    raise ValueError("wrong sums")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise InputError(
            f"{path.name} cannot be opened as plain weights ({type(error).__name__}): it is damaged, or holds code"
        ) from None


# --- what makes runs comparable --------------------------------------------------------------------------------------


@cache
def contract(config_module: str) -> str:
    """Hash of the code that determines a run's weights: the model's file and what it is made of, layers, losses,
    training loop, resizing and data.

    Comments, docstrings and layout do not count; any other change to these files makes every earlier run of that model
    another run. So may another version of Python, which writes the same code differently.
    """
    return code_hash(config_module, *PARTS.get(config_module, ()), *(f"srlib.{name}" for name in TRAINING_CODE))


@cache
def scoring_contract() -> str:
    """Hash of the code that determines scores."""
    return code_hash(*(f"srlib.{name}" for name in ("metrics", "evaluate", "tiles", "resize", "data")))


def code_hash(*parts: str) -> str:
    """Hash of some modules' code without comments and docstrings."""
    digest = hashlib.sha256()
    for part in parts:
        tree = ast.parse(Path(str(import_module(part).__file__)).read_text(encoding="utf-8"))
        digest.update(ast.unparse(without_docstrings(tree)).encode())
    return digest.hexdigest()[:12]


def without_docstrings(tree: ast.AST) -> ast.AST:
    """``tree`` with every docstring taken out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def provenance(
    config: RunConfig, device: torch.device, seconds: float, resumed_at: int, compile: bool
) -> dict[str, Any]:
    """Who made a run: commit, versions, device, threads, seed, data and wall time of the training (all its
    processes)."""
    return {
        "commit": commit(),
        "srlib": srlib.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "compile": compile,
        "seed": config.train.seed,
        "data": config.data,
        "fingerprint": config.fingerprint,
        "seconds": round(seconds, 1),
        "resumed_at": resumed_at,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def commit() -> str:
    """The commit that srlib runs from, with "+changes" when files differ from it; "unknown" outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # a copy installed inside somebody else's repository is no checkout
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON record; InputError when it is missing, damaged or no record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no record at {path}: `srlib train --record` and `srlib evaluate --out` write them") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a JSON file") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no valid JSON: make it again, or name another file") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no record: name a file that `srlib train` or `srlib evaluate` wrote")
    return record


Kinds = Mapping[str, tuple[type | None, ...]]  # of a record's fields; None stands for null
CONFIG: Kinds = {"model": (str,), "scale": (int, None), "network": (dict,), "train": (dict,), "data": (str,)}
METRICS: Kinds = {"steps": (int,), "loss": (float, None), "collapsed_at": (int, None)}
HELD_OUT: Kinds = {"dataset": (str,), "scale": (int,), "protocol": (dict,), "psnr": (float,), "ssim": (float,)}
NAMED: Kinds = {"name": (str,)}


def read_checked(path: Path, kinds: Kinds) -> dict[str, Any]:
    """A JSON record whose fields are of some kinds; InputError also for one that lacks a field, or has another kind of
    value there, or a number that is none (NaN)."""
    return checked(read_json(path), kinds, path)


def checked(record: dict[str, Any], kinds: Kinds, path: Path) -> dict[str, Any]:
    """``record``, of a file, if its fields are of some kinds; else InputError."""
    for name, allowed in kinds.items():
        if name not in record:
            raise InputError(f"{path} lacks {name!r}: it is damaged; delete it and make it again")
        value = record[name]
        kind = float if isinstance(value, int) and float in allowed else None if value is None else type(value)
        if kind not in allowed or isinstance(value, bool) or value != value:
            raise InputError(f"{path} has {value!r:.50} as {name!r}: it is damaged; delete it and make it again")
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record in one atomic move; InputError where that is not possible."""
    check_writable(path)
    write(path, (json.dumps(record, indent=1) + "\n").encode())


def check_writable(path: Path) -> None:
    """Raise InputError where no record can be written at ``path``, before the work that it is to record."""
    make_folder(path.parent)
    if (os.path.lexists(path) and not os.path.isfile(path)) or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: name a file in a folder of yours, such as record.json")


def make_folder(path: Path) -> None:
    """Make ``path`` and its parents; InputError where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot write to {path} ({reason}): choose another folder") from None
