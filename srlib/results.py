"""The evidence of the book: which networks were trained, how they scored, and the weights that ship.

Four CSV files in ``book/results`` hold it, one line a run (``runs``), a score of an image (``scores``), a step of a
training (``curves``) and a timed network (``speed``). The run "bicubic" is bicubic interpolation of the same LR images.
Statistics are a groupby: ``means`` over images, ``gaps`` between runs, paired by seed and image.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import safetensors
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
_say_once = cache(lambda line: print(line, file=sys.stderr))
_TYPES = {"table": "string", "row": "string", "weights": "string", "scale": "Int64", "collapsed_at": "Int64"}


def folder() -> Path | None:
    """Where the evidence lies: book/results beside the package or below the current folder; None where it is not."""
    places = (Path(__file__).parents[1] / "book/results", Path("book/results"))
    return next((place for place in places if (place / "runs.csv").is_file()), None)


def _read(name: str) -> pd.DataFrame:
    if (where := folder()) is None:
        _say_once("no runs are recorded here: book/results comes with srlib's repository")
        return pd.DataFrame(columns=COLUMNS[name].split())
    return pd.read_csv(where / f"{name}.csv", dtype=_TYPES)


def runs() -> pd.DataFrame:
    """One line a run: its purpose (ships, equal, precision, ablation, mechanism), settings and provenance. ``scale`` is
    missing for a network for every scale; ``weights`` names the file of those that ship. An installation without the
    repository has no records: all four tables are empty."""
    return _read("runs")


def scores() -> pd.DataFrame:
    """PSNR (dB) and SSIM of each image by run, dataset, scale and protocol; protocols of the standard one's arithmetic
    have its name. ``lr`` says where the LR images came from, ``fingerprint`` are 12 digits of the dataset's."""
    return _read("scores")


def curves() -> pd.DataFrame:
    """Training loss, and at some steps PSNR (dB) on the held-out photographs; about 100 steps a run."""
    return _read("curves")


def speed() -> pd.DataFrame:
    """Times of our and of released networks, in ``units`` of one convolution's time on the same machine
    (:func:`srlib.complexity.yardstick`)."""
    return _read("speed")


def means(
    ids: Collection[str] | None = None,
    datasets: Collection[str] = SETS,
    scale: int | None = None,
    protocol: str = STANDARD,
) -> pd.DataFrame:
    """Mean PSNR (dB) and SSIM over images, one line a run, dataset and scale, with ``gain``: PSNR above bicubic's.
    Without ``ids`` all runs, without ``scale`` all scales."""
    found, keys = scores(), ["dataset", "scale"]
    found = found[(found.protocol == protocol) & found.dataset.isin([*datasets])]
    found = found[found.scale == scale] if scale else found
    found = found.groupby(["run", *keys], sort=False)[["psnr", "ssim"]].mean().reset_index()
    base = found[found.run == "bicubic"].set_index(keys).psnr.rename("bicubic")
    found["gain"] = found.psnr - found.join(base, keys).bicubic
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


def gaps(one: Collection[str], other: Collection[str], scale: int = 4) -> Gap:
    """How far the runs ``one`` lie above the runs ``other`` (ids; ["bicubic"] for the baseline): PSNR in dB under the
    standard protocol, paired by seed and image. Seeds that only one side has are left out, and images that either was
    trained on. Raises InputError for runs without a common seed and image, and for runs that were trained otherwise;
    only runs whose purpose is "precision" may differ from the others in that."""
    about, found = runs().set_index("run"), scores()
    used = about[about.index.isin([*one, *other])]
    settings = ["steps", "batch", "patch", "fingerprint"] + ["precision"] * ("precision" not in [*used.purpose])
    if len(used[settings].drop_duplicates()) > 1:
        raise InputError("the runs differ in steps, batch, patch, precision or images: compare runs trained alike")
    seen = set().union(*(SEEN.get(images, set()) for images in used.fingerprint))
    found = found[(found.protocol == STANDARD) & (found.scale == scale) & found.dataset.isin(SETS)]
    found = found[[place not in seen for place in zip(found.dataset, found.image, strict=True)]]
    found = found.assign(seed=found.run.map(about.seed))
    keys = ["dataset", "image"] + ["seed"] * ("bicubic" not in [*one, *other])
    pairs = found[found.run.isin([*one])].merge(found[found.run.isin([*other])], on=keys, suffixes=("", "_other"))
    if pairs.empty:
        raise InputError(f"{', '.join(one)} and {', '.join(other)} share no seed and image at x{scale}")
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


def record(
    run: training.Run, run_id: str, purpose: str, stores: Sequence[Store], *, table: str = "", row: str = ""
) -> pd.DataFrame:
    """Score a finished run and write its lines, and bicubic's, in place of older ones of that id; returns the means.

    One that "ships" writes its weights, too, in half precision, whose scores are then the run's. Raises InputError
    where there are no records, for the baseline's id, and for weights that collapsed, are not scored on the held-out
    photographs, or are no better there than those that ship.
    """
    where, config, train = folder(), run.config, run.config["train"]
    if where is None:
        raise InputError("there are no records here: start in the project's folder")
    if run_id == "bicubic":
        raise InputError("bicubic is the baseline's id: give the run another, such as equal-safmn-seed0")
    if purpose == "ships" and SETS[0] not in [store.name for store in stores]:
        raise InputError(f"weights ship by their score on {SETS[0]}: name it among the data, too")
    network, model, weights = run.network().eval(), config["model"], ""
    network = network.half().float() if purpose == "ships" else network
    low, high = train["scales"]
    scales = [config["scale"]] if config["scale"] else [scale for scale in SCALES if low <= scale <= high]
    base = pd.concat(_scored("bicubic", bicubic(scale), model, stores, scale) for scale in scales)
    mine = pd.concat(_scored(run_id, upscaler(network, scale), model, stores, scale) for scale in scales)
    if purpose == "ships":
        weights = _file(model, config["scale"])
        ours = mine[(mine.dataset == SETS[0]) & (mine.protocol == STANDARD)].psnr.mean()
        best = means(runs().query("weights == @weights").run, SETS[:1]).psnr.mean()
        if run.metrics["collapsed_at"] or not (ours > best or math.isnan(best)):
            raise InputError(f"{run.folder.name} {run.ending} with {ours:.2f} dB, {best:.2f} dB ship: keep those")
        settings = json.dumps({key: config[key] for key in ("scale", "train", "data", "fingerprint")})
        about = {"training": settings, "provenance": json.dumps(run.provenance), "precision": "float16"}
        checkpoints.save_network(network.half(), model, WEIGHTS / weights, **about)
    log, validation = (pd.DataFrame(run.log(name)) for name in ("log", "validation"))
    thin = log.iloc[:: max(1, len(log) // 100)][["step", "loss"]].merge(validation[["step", "psnr"]], "outer", "step")
    thin = thin.assign(run=run_id, loss=thin.loss.map("{:.6g}".format), psnr=thin.psnr.round(4)).astype({"step": int})
    said = {**config, **train, **run.provenance, **run.metrics, "run": run_id, "purpose": purpose, "weights": weights}
    said |= {"paper": papers.of(model).slug, "table": table, "row": row}
    _write(where / "runs.csv", pd.DataFrame([said]), ["run"])
    _write(where / "scores.csv", pd.concat([base, mine]), ["run", "dataset", "scale", "protocol", "image"])
    _write(where / "curves.csv", thin, ["run", "step"])
    return means([run_id], scale=config["scale"])


def _scored(run_id: str, upscale: Callable[..., Any], model: str, stores: Sequence[Store], scale: int) -> pd.DataFrame:
    """Lines of ``scores`` under the standard protocol and, where it is another, the paper's own."""
    standard, lines = papers.protocol(STANDARD), []
    for store in stores:
        own = papers.recipe(model).protocol_on(store.image_set.name)
        protocols = [standard] if own.same_arithmetic(standard) else [own, standard]
        for found in score_under(upscale, store, scale, protocols):
            lines.append(found.frame().assign(run=run_id, fingerprint=found.fingerprint[:12]))
    return pd.concat(lines)


def _write(path: Path, frame: pd.DataFrame, keys: list[str]) -> None:
    """Write a run's lines in place of its older ones, the baseline's only where they are new; the baseline comes first,
    then run by run."""
    old = pd.read_csv(path, dtype=str, keep_default_na=False)
    text = io.StringIO(frame.reindex(columns=old.columns).to_csv(index=False))
    new = pd.read_csv(text, dtype=str, keep_default_na=False)
    both = pd.concat([old[(old.run == "bicubic") | ~old.run.isin(new.run)], new]).drop_duplicates(keys)
    both = both.sort_values("run", key=lambda run: run.where(run != "bicubic", ""), kind="stable")
    checkpoints.write(path, both.to_csv(index=False, lineterminator="\n").encode())


def shipped() -> pd.DataFrame:
    """The weights that come with srlib, one line a file: model, scale (missing: every scale), steps, batch, patch,
    data, precision (of the training), and its size in bytes; from the files' own metadata, so without records too."""
    lines = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            said = file.metadata()
        settings = json.loads(said["training"])
        line = {"file": path.name, "model": said["model"], "bytes": path.stat().st_size}
        lines.append(settings | settings["train"] | line)
    columns = "file model scale data steps batch patch precision bytes".split()
    return pd.DataFrame(lines, columns=columns).astype({"scale": "Int64"})


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


class Trained(NamedTuple):
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
