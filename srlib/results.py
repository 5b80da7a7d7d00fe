"""The evidence of the book: which networks were trained, how they scored, and the weights that ship.

Four CSV files in ``book/results`` hold it, one line a run (``runs``), a score of an image (``scores``), a step of a
training (``curves``) and a timed network (``speed``). The run "bicubic" is bicubic interpolation of the same LR images.
Statistics are a groupby: ``means`` over images, ``gaps`` between runs, paired by seed and image.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import scipy.stats
from torch import nn

from srlib import checkpoints, papers
from srlib import runs as training
from srlib.data import Store
from srlib.errors import InputError
from srlib.evaluate import bicubic, score_under, upscaler
from srlib.models import takes_scale

STANDARD = "safmn"  # BasicSR's protocol, under which all networks are compared, beside each paper's own
SETS = ("photos/held-out", "Set5", "Set14")  # what runs are scored on
SCALES = (2, 3, 4)  # at which a network for every scale is scored
WEIGHTS = Path(__file__).parent / "weights"
BSD400 = "f96a368e4eeb133f0039fc381eabe4ce145e4d4c51c9ee2aed922e3c7447d7df"
SEEN = {BSD400: {("Set5", "woman")}}
"""Test images that were trained on, by the fingerprint of the training images: Set5's woman is BSDS500's photograph
302003, reduced 1.4 times. Mean scores hold them, as everybody's do; statements on chance leave them out."""

COLUMNS = {
    "runs": "run purpose model scale paper table row seed budget steps batch patch queries precision data fingerprint "
    "version commit device seconds finished collapsed_at weights command",
    "scores": "run dataset scale protocol lr image psnr ssim fingerprint",
    "curves": "run step loss psnr",
    "speed": "network what implementation units unit_ms seconds low high device threads conditions",
}
_TYPES = {"table": "string", "row": "string", "weights": "string", "scale": "Int64", "collapsed_at": "Int64"}


def folder(root: Path | str | None = None) -> Path | None:
    """Where the evidence lies: ``root``, else book/results beside the package or below the current folder; or None."""
    places = [Path(root)] if root else [Path(__file__).parents[1] / "book/results", Path("book/results")]
    return next((place for place in places if (place / "runs.csv").is_file()), None)


def _read(name: str, root: Path | str | None) -> pd.DataFrame:
    columns, where = COLUMNS[name].split(), folder(root)
    if where is None:
        print(f"no {name} are recorded here: book/results comes with srlib's repository")
        return pd.DataFrame(columns=columns)
    return pd.read_csv(where / f"{name}.csv", dtype={key: kind for key, kind in _TYPES.items() if key in columns})


def runs(root: Path | str | None = None) -> pd.DataFrame:
    """One line a run: its purpose (ships, equal, precision, ablation, mechanism), settings and provenance. ``scale`` is
    missing for a network for every scale; ``weights`` names the file of those that ship. An installation without the
    repository has no records: all four tables are empty."""
    return _read("runs", root)


def scores(root: Path | str | None = None) -> pd.DataFrame:
    """PSNR (dB) and SSIM of each image by run, dataset, scale and protocol; protocols of the standard one's arithmetic
    have its name. ``lr`` says where the LR images came from, ``fingerprint`` are 12 digits of the dataset's."""
    return _read("scores", root)


def curves(root: Path | str | None = None) -> pd.DataFrame:
    """Training loss, and at some steps PSNR (dB) on the held-out photographs; about 100 steps a run."""
    return _read("curves", root)


def speed(root: Path | str | None = None) -> pd.DataFrame:
    """Times of our and of released networks, in ``units`` of one convolution's time on the same machine
    (:func:`srlib.complexity.yardstick`)."""
    return _read("speed", root)


def _under(root: Path | str | None, datasets: Collection[str] | None, scale: int | None, protocol: str) -> pd.DataFrame:
    """The lines of ``scores`` under a protocol; None stands for all datasets, all scales."""
    found = scores(root)
    found = found[found.protocol == protocol]
    found = found if datasets is None else found[found.dataset.isin([*datasets])]
    return found if scale is None else found[found.scale == scale]


def means(
    ids: Collection[str] | None = None,
    datasets: Collection[str] | None = SETS,
    scale: int | None = None,
    protocol: str = STANDARD,
    root: Path | str | None = None,
) -> pd.DataFrame:
    """Mean PSNR (dB) and SSIM over images, one line a run, dataset and scale, with ``gain``: PSNR above bicubic's."""
    found = _under(root, datasets, scale, protocol)
    found = found.groupby(["run", "dataset", "scale"], sort=False)[["psnr", "ssim"]].mean().reset_index()
    base = found[found.run == "bicubic"].set_index(["dataset", "scale"]).psnr.rename("bicubic")
    found = found.join(base, ["dataset", "scale"])
    found = found.assign(gain=found.psnr - found.bicubic).drop(columns="bicubic")
    return found if ids is None else found[found.run.isin([*ids])].reset_index(drop=True)


class Gap(NamedTuple):
    """A mean difference in dB, the bounds of its 95 % interval (NaN for one seed, which can't tell), and the number of
    pairs of scores."""

    mean: float
    low: float
    high: float
    n: int = 0

    @property
    def text(self) -> str:
        """As "+0.31 (+0.12 to +0.48)"."""
        bounds = "" if math.isnan(self.low) else f" ({self.low:+.2f} to {self.high:+.2f})"
        return f"{self.mean:+.2f}{bounds}".replace("-", "\N{MINUS SIGN}")


def gaps(
    one: Collection[str],
    other: Collection[str],
    datasets: Collection[str] | None = None,
    scale: int = 4,
    protocol: str = STANDARD,
    root: Path | str | None = None,
) -> Gap:
    """How far the runs ``one`` lie above the runs ``other`` (ids; ["bicubic"] for the baseline): PSNR in dB, paired by
    seed and image. Seeds that only one side has are left out, and images that either was trained on. Raises InputError
    for runs without a common seed and image, and for runs that differ in steps, batch, patch or training images."""
    about = runs(root).set_index("run")
    used = about[about.index.isin([*one, *other])]
    if len(used[["steps", "batch", "patch", "fingerprint"]].drop_duplicates()) > 1:
        raise InputError(
            "the runs differ in steps, batch, patch or training images: compare runs that are trained alike"
        )
    seen = set().union(*(SEEN.get(images, set()) for images in used.fingerprint))
    found = _under(root, datasets, scale, protocol)
    found = found[[place not in seen for place in zip(found.dataset, found.image, strict=True)]]
    found = found.assign(seed=found.run.map(about.seed))
    keys = ["dataset", "image"] + ["seed"] * ("bicubic" not in [*one, *other])
    pairs = found[found.run.isin([*one])].merge(found[found.run.isin([*other])], on=keys, suffixes=("", "_other"))
    if pairs.empty:
        raise InputError(
            f"{', '.join(one)} and {', '.join(other)} share no seed and image at x{scale} under {protocol}"
        )
    pairs["gap"] = pairs.psnr - pairs.psnr_other
    return crossed(pairs.pivot(index="run", columns=["dataset", "image"], values="gap").dropna(axis=1).to_numpy())


def crossed(samples: np.ndarray) -> Gap:
    """The mean of samples (seeds, images) with its 95 % interval, seeds and images both being draws of many.

    The variance is that of the two-way layout with random effects: of the seeds' means over their number, plus that of
    the images' means over theirs, less the interaction, which is in both, and at least the larger of the two. Student's
    interval with Satterthwaite's (1946) degrees of freedom; a bootstrap over three seeds would be too narrow.
    """
    mean, (seeds, images) = float(samples.mean()), samples.shape
    if min(seeds, images) < 2:
        return Gap(mean, math.nan, math.nan, samples.size)
    by_seed, by_image = samples.mean(1), samples.mean(0)
    rest = samples - by_seed[:, None] - by_image + mean
    parts = np.array([by_seed.var(ddof=1) / seeds, by_image.var(ddof=1) / images])
    both = (rest**2).sum() / ((seeds - 1) * (images - 1)) / samples.size
    free = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    variance, degrees = parts.max(), free[parts.argmax()]
    if parts.sum() - both > variance:
        variance = parts.sum() - both
        degrees = max(variance**2 / (np.array([*parts, both]) ** 2 / free).sum(), free[:2].min())
    half = float(scipy.stats.t.ppf(0.975, degrees) * math.sqrt(variance))
    return Gap(mean, mean - half, mean + half, samples.size)


def trend(printed_gap: float, gap: Gap) -> Literal["agrees", "opposite", "undecided"]:
    """Whether our gap has the printed one's sign; undecided where its interval holds 0, or the printed one is 0."""
    if not (gap.low > 0 or gap.high < 0) or not printed_gap:
        return "undecided"
    return "agrees" if (gap.mean > 0) == (printed_gap > 0) else "opposite"


# --- recording a run --------------------------------------------------------------------------------------------------


def record(
    run: training.Run,
    run_id: str,
    purpose: str,
    stores: Sequence[Store] | None = None,
    *,
    table: str = "",
    row: str = "",
    ship: bool = False,
    root: Path | str | None = None,
) -> pd.DataFrame:
    """Score a finished run and write its lines, and bicubic's, in place of older ones of that id; returns the means.

    ``stores`` None: those of ``SETS`` that are here and whole. ``ship`` also writes the weights, in half precision,
    whose scores are then the run's. Raises InputError where there are no records, and for weights to ship that
    collapsed, or are no better on the held-out photographs than those that ship.
    """
    where, config, train = folder(root), run.config, run.config["train"]
    if where is None:
        raise InputError("there are no records here: start in the project's folder, or name that of its runs.csv")
    network, model = run.network().eval(), config["model"]
    network = network.half().float() if ship else network
    low, high = train["scales"]
    scales = [config["scale"]] if config["scale"] else [scale for scale in SCALES if low <= scale <= high]
    stores = _whole() if stores is None else stores
    base = pd.concat(_scored("bicubic", bicubic(scale), model, stores, scale) for scale in scales)
    mine = pd.concat(_scored(run_id, upscaler(network, scale), model, stores, scale) for scale in scales)
    file = _file(model, config["scale"]) if ship else ""
    if ship:
        _ship(run, network, file, mine, root)
    log, validation = (pd.DataFrame(run.log(name)) for name in ("log", "validation"))
    thin = log.iloc[:: max(1, len(log) // 100)][["step", "loss"]].merge(validation[["step", "psnr"]], "outer", "step")
    thin = thin.assign(run=run_id, loss=thin.loss.map("{:.6g}".format), psnr=thin.psnr.round(4)).astype({"step": int})
    said = {**config, **train, **run.provenance, **run.metrics, "run": run_id, "purpose": purpose, "weights": file}
    said |= {"paper": papers.of(model).slug, "table": table, "row": row, "version": training.TRAINING_VERSION}
    _write(where, "runs", pd.DataFrame([said]))
    _write(where, "scores", pd.concat([base, mine]))
    _write(where, "curves", thin)
    return means([run_id], scale=config["scale"], root=root)


def _whole() -> list[Store]:
    """The stores of ``SETS`` that are here and whole."""
    found = []
    for name in SETS:
        try:
            found.append(Store.open(name))
        except InputError as error:
            print(f"not scored on {name}: {error}")
    return [store for store in found if store.name in SETS]


def _scored(run_id: str, upscale: Callable[..., Any], model: str, stores: Sequence[Store], scale: int) -> pd.DataFrame:
    """Lines of ``scores`` under the standard protocol and, where it is another, the paper's own."""
    standard, lines = papers.protocol(STANDARD), []
    for store in stores:
        own = papers.recipe(model).protocol_on(store.name)
        protocols = [standard] if own.same_arithmetic(standard) else [own, standard]
        for found in score_under(upscale, store, scale, protocols):
            lines.append(found.frame().assign(run=run_id, fingerprint=found.fingerprint[:12]))
    return pd.concat(lines)


def _write(where: Path, name: str, frame: pd.DataFrame) -> None:
    """Write a run's lines in place of its older ones, the baseline's only where they are new; the baseline comes first,
    then run by run."""
    path = where / f"{name}.csv"
    old = pd.read_csv(path, dtype=str, keep_default_na=False)
    text = io.StringIO(frame.reindex(columns=old.columns).to_csv(index=False))
    new = pd.read_csv(text, dtype=str, keep_default_na=False)
    kept = old[(old.run == "bicubic") | ~old.run.isin(new.run)]
    both = pd.concat([kept, new])
    if name == "scores":
        both = both.drop_duplicates(["run", "dataset", "scale", "protocol", "image"])
    both = both.sort_values("run", key=lambda run: run.where(run != "bicubic", ""), kind="stable")
    checkpoints.write(path, both.to_csv(index=False, lineterminator="\n").encode())


def _ship(run: training.Run, network: nn.Module, file: str, found: pd.DataFrame, root: Path | str | None) -> None:
    """Write the weights in half precision. Raises InputError for weights that are no better than those that ship."""
    ships = runs(root)
    before = ships[ships.weights == file].run.tolist()
    mine = found[(found.dataset == SETS[0]) & (found.protocol == STANDARD)].psnr.mean()
    its = means(before, SETS[:1], root=root).psnr.mean()
    if run.metrics["collapsed_at"] or not (mine > its or math.isnan(its)):
        raise InputError(f"{run.folder.name} {run.ending} with {mine:.2f} dB, {its:.2f} dB ship: keep those")
    config = run.config
    settings = {key: config[key] for key in ("scale", "train", "data", "fingerprint")}
    metadata = {"model": config["model"], "config": json.dumps(config["network"]), "training": json.dumps(settings)}
    metadata |= {"provenance": json.dumps(run.provenance), "precision": "float16"}
    tensors = {key: value.contiguous() for key, value in network.half().state_dict().items()}
    checkpoints.write(WEIGHTS / file, safetensors.torch.save(tensors, metadata))
    network.float()


# --- the weights that ship --------------------------------------------------------------------------------------------


def shipped() -> pd.DataFrame:
    """The weights that come with srlib, one line a file: model, scale (missing: every scale), steps, batch, patch,
    data, precision (of the training), and its size in bytes; from the files' own metadata, so without records too."""
    lines = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            said = file.metadata()
        settings = json.loads(said["training"])
        line = {"file": path.name, "model": said["model"], "scale": settings["scale"], "data": settings["data"]}
        keys = ("steps", "batch", "patch", "precision")
        lines.append(line | {key: settings["train"][key] for key in keys} | {"bytes": path.stat().st_size})
    return pd.DataFrame(lines).astype({"scale": "Int64"})


def load(model: str, scale: int | None = None) -> nn.Module:
    """The network with the weights that ship, float32, in evaluation mode on the CPU; ``scale`` None is 4. Raises
    InputError where there are none, with those that there are."""
    path = WEIGHTS / _file(model, scale)
    if not path.is_file():
        known = ", ".join(path.stem for path in sorted(WEIGHTS.glob("*.safetensors")))
        raise InputError(f"no weights {path.stem} come with srlib (there are {known}): train some with srlib train")
    return checkpoints.load(path, model, (scale or 4) if takes_scale(model) else None).eval()


def _file(model: str, scale: int | None) -> str:
    return f"{model}-x{scale or 4}.safetensors" if takes_scale(model) else f"{model}.safetensors"


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, how it was trained, in words ("20,000 steps of batch 16 on BSD400"), and its run,
    None for weights that ship."""

    network: nn.Module
    caption: str
    run: training.Run | None = None


def trained(
    model: str, scale: int | None = 4, budget: str = "recorded", train_data: str = "photos/train", **settings: Any
) -> Trained:
    """A trained network: for the budget "recorded" the weights that ship, else a run of that budget, found in the
    folder runs or trained now. ``settings`` are those of :func:`srlib.runs.configure`, and ``device``."""
    if budget == "recorded":
        network = load(model, scale)
        line = shipped().set_index("file").loc[_file(model, scale)]
        return Trained(network, f"{line.steps:,} steps of batch {line.batch} on {line['data']}")
    store, device = Store.open(train_data), settings.pop("device", "auto")
    config = training.configure(model, scale if takes_scale(model) else None, store, budget=budget, **settings)
    run = training.train_or_load(config, store, Store.open(SETS[0]), device=device, title=f"{model}, {budget}")
    return Trained(run.network().eval(), f"{run.ending} of batch {config.train.batch} on {config.data}", run)
