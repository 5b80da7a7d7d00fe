"""The evidence of the book: which networks were trained, how they scored, and the weights that ship.

Five CSV files in ``book/results`` hold it, one line for each run (``runs``), score of an image (``scores``), step of
a training (``curves``), share of an expert (``routing``) and timed network (``speed``). The run "bicubic" is bicubic
interpolation of the same LR images. Statistics are a groupby: ``means`` over images, ``gaps`` between runs, image by
image.
"""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import safetensors
import scipy.stats
from filelock import FileLock
from torch import nn

from srlib import checkpoints, papers
from srlib import runs as training
from srlib.data import Store
from srlib.errors import InputError, say, write
from srlib.evaluate import bicubic, score_under, upscaler
from srlib.models import default_config, takes_scale

STANDARD = "safmn"  # BasicSR's protocol, under which all networks are compared, beside each paper's own
SETS = ("photos/held-out", "Set5", "Set14")  # what runs are scored on
SCALES = (2, 3, 4)  # at which a network for every scale is scored
WEIGHTS = Path(__file__).parent / "weights"
SEEN = {"f96a368e4eeb133f0039fc381eabe4ce145e4d4c51c9ee2aed922e3c7447d7df": {("Set5", "woman")}}
"""Test images that were trained on, by the fingerprint of the training images, here BSD400: Set5's woman is BSDS500's
photograph 302003, reduced 1.4 times. Mean scores hold them, as everybody's do; statements on chance leave them out."""
ALIKE = "steps batch patch fingerprint version precision budget".split()  # in which runs agree that are compared

COLUMNS = {
    "runs": "run purpose model scale paper table row seed budget steps batch patch queries precision data fingerprint "
    "version commit device seconds finished collapsed_at weights command",
    "scores": "run dataset scale protocol lr image psnr ssim fingerprint",
    "curves": "run step loss psnr",
    "routing": "run place part expert share",
    "speed": "network what implementation units unit_ms seconds low high device threads conditions",
}
_TYPES: Any = {"table": "string", "row": "string", "weights": "string", "scale": "Int64", "collapsed_at": "Int64"}
_parsed = cache(lambda path, changed: pd.read_csv(path, dtype=_TYPES))  # once for each time that the file was changed
_say_once = cache(say)


def folder() -> Path | None:
    """Where the evidence lies: book/results beside the package or below the current folder; None where it is not."""
    places = (Path(__file__).parents[1] / "book/results", Path("book/results"))
    return next((place for place in places if (place / "runs.csv").is_file()), None)


def _read(name: str) -> pd.DataFrame:
    if (where := folder()) is None:
        _say_once("no runs are recorded here: book/results comes with srlib's repository")
        return pd.DataFrame(columns=COLUMNS[name].split())
    path = where / f"{name}.csv"
    return _parsed(path, path.stat().st_mtime_ns).copy()


def runs() -> pd.DataFrame:
    """One line a run: its purpose (ships, equal, precision, ablation), settings and provenance. ``scale`` is
    missing for a network for every scale; ``weights`` names the file of those that ship. An installation without the
    repository has no records: all five tables are empty."""
    return _read("runs")


def scores() -> pd.DataFrame:
    """PSNR (dB) and SSIM of each image by run, dataset, scale and protocol; protocols of the standard one's arithmetic
    have its name. ``lr`` says where the LR images came from, ``fingerprint`` are 12 digits of the dataset's."""
    return _read("scores")


def curves() -> pd.DataFrame:
    """Training loss at about 100 steps a run, and at about 10 of them PSNR (dB) on the held-out photographs."""
    return _read("curves")


def routing() -> pd.DataFrame:
    """How often the experts of trained networks are used, by run: what ``Paper.routing`` of their papers finds."""
    return _read("routing")


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
    """Mean PSNR (dB) and SSIM over images, one line a run, dataset, scale and origin of the LR images (``lr``), with
    ``gain``: PSNR above that of bicubic on these. Without ``ids`` all runs, without ``scale`` all scales."""
    found, keys = scores(), ["dataset", "scale", "lr"]
    found = found[(found.protocol == protocol) & found.dataset.isin([*datasets])]
    found = found[found.scale == scale] if scale else found
    found = found.groupby(["run", *keys], sort=False)[["psnr", "ssim"]].mean().reset_index()
    base = found[found.run == "bicubic"].set_index(keys).psnr.rename("bicubic")
    found["gain"] = found.psnr - found.join(base, keys).bicubic
    return found if ids is None else found[found.run.isin([*ids])].reset_index(drop=True)


class Gap(NamedTuple):
    """A mean difference in dB and the bounds of its 95 % interval, NaN where no seed is repeated, or of a
    single image, which can't tell."""

    mean: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """As "+0.31 (+0.12 to +0.48)"."""
        bounds = "" if math.isnan(self.low) else f" ({self.low:+.2f} to {self.high:+.2f})"
        return f"{self.mean:+.2f}{bounds}".replace("-", "\N{MINUS SIGN}")


def gaps(one: Sequence[str], other: Sequence[str], scale: int = 4, like: pd.DataFrame | None = None) -> Gap:
    """How far the runs ``one`` (ids) lie above the runs ``other``: PSNR in dB under the standard protocol, image by
    image, without images that either was trained on. The interval is that of ``interval``; of ``like``, lines of
    ``runs``, those that were trained alike tell how far seeds scatter, too.

    Raises InputError for runs without a common image, and for runs that were trained otherwise; only runs whose purpose
    is "precision" may differ from the others in that.
    """
    about, wide = runs(), _by_image([*one, *other], scale)
    used = about[about.run.isin([*one, *other])]
    alike = [name for name in ALIKE if name != "precision" or "precision" not in [*used.purpose]]
    if apart := [name for name in alike if used[name].nunique(dropna=False) > 1]:
        raise InputError(f"the runs differ in {', '.join(apart)}: compare runs trained alike")
    if wide.empty:
        raise InputError(f"{', '.join(one)} and {', '.join(other)} share no image at x{scale}")
    others = about[:0] if like is None else like[~like.run.isin(used.run)].merge(used[ALIKE].drop_duplicates())
    return interval(wide[[*one]].to_numpy().T, wide[[*other]].to_numpy().T, _several(others, scale))


def reach(table: pd.DataFrame, scale: int = 4) -> tuple[float, int]:
    """How far apart two trainings of one network end whose difference is the seed alone, in 95 % of cases, and the
    degrees of freedom: Student's bound for a difference of mean PSNR (dB) over the images that ``gaps`` takes, pooled
    from the rows of ``runs`` that were trained alike with several seeds; NaN where there are none."""
    variance, free = _scatter(_several(table, scale))
    return float(scipy.stats.t.ppf(0.975, free or 1) * math.sqrt(2 * variance)), free


def _several(table: pd.DataFrame, scale: int) -> list[np.ndarray]:
    """PSNR (seeds, images) of each row of ``runs`` that was trained alike with several seeds and did not collapse."""
    keys = ["model", "scale", "table", "row", *ALIKE]
    groups = table[table.collapsed_at.isna()].drop_duplicates([*keys, "seed"]).groupby(keys, dropna=False).run
    found = [_by_image(ids, scale).to_numpy().T for _, ids in groups if len(ids) > 1]
    return [psnr for psnr in found if psnr.size]


def _scatter(groups: Sequence[np.ndarray]) -> tuple[float, int]:
    """The variance of a mean over images from seed to seed, pooled from groups (seeds, images), and its degrees of
    freedom; NaN where no group has two seeds."""
    free = sum(len(group) - 1 for group in groups)
    return (sum(group.mean(1).var() * len(group) for group in groups) / free if free else math.nan), free


def _by_image(ids: Collection[str], scale: int) -> pd.DataFrame:
    """PSNR (dB) of images, one a line, under the standard protocol, by run; of the images that all were scored on and
    none was trained on."""
    found, used = scores(), runs().query("run in @ids")
    found = found[(found.protocol == STANDARD) & (found.scale == scale) & found.dataset.isin(SETS)]
    wide = found.pivot(index=["dataset", "image"], columns="run", values="psnr").reindex(columns=[*ids])
    seen = set().union(*(SEEN.get(images, set()) for images in used.fingerprint))
    return wide[[image not in seen for image in wide.index]].dropna()


def interval(first: np.ndarray, second: np.ndarray, others: Sequence[np.ndarray] = ()) -> Gap:
    """The mean of ``first`` (seeds, images) less that of ``second``, another network on the same images, with an
    interval of 95 % or more. Each may be a single seed where others have several.

    Both networks, and ``others`` that were trained alike, are taken to scatter alike from seed to seed, so one variance
    s^2 is pooled from the seeds' means of all; the difference has s^2 (1/m + 1/n), for m and n seeds, and as many
    degrees of freedom as there are seeds less networks. A single seed adds nothing to s^2: the interval is then too
    narrow for a network whose training is less steady than the others'. The images' part is the variance of the
    differences over their number. The squares of the two parts' half widths, each by Student's t, add up: as the
    interaction of seeds and images is in both, that is wide rather than narrow. That runs of one seed saw the same
    patches isn't used.
    """
    gap, (seeds, free) = first.mean(0) - second.mean(0), _scatter([first, second, *others])
    mean, degrees = float(gap.mean()), np.array([free, len(gap) - 1])
    if degrees.min() < 1:
        return Gap(mean, math.nan, math.nan)
    parts = np.array([seeds * (1 / len(first) + 1 / len(second)), gap.var(ddof=1) / len(gap)])
    half = float(np.sqrt((parts * scipy.stats.t.ppf(0.975, degrees) ** 2).sum()))
    return Gap(mean, mean - half, mean + half)


def trend(printed_gap: float, gap: Gap) -> Literal["agrees", "opposite", "undecided"]:
    """Whether our gap has the printed one's sign; undecided where its interval holds 0, or the printed one is 0."""
    if not (gap.low > 0 or gap.high < 0) or not printed_gap:
        return "undecided"
    return "agrees" if (gap.mean > 0) == (printed_gap > 0) else "opposite"


def record(
    run: training.Run, run_id: str, purpose: str, stores: Sequence[Store], *, table: str = "", row: str = ""
) -> pd.DataFrame:
    """Score a finished run and write its lines in place of older ones of that id, and bicubic's where they are new;
    returns the means.

    ``row`` of ``table`` is a printed label, a name or a slug (``papers.row``), and its name is what is written. A run
    that "ships" writes its weights, too, in half precision, whose scores are then the run's. Raises InputError where
    there are no records, for the baseline's id, without the held-out photographs, for an ablation without its row, for
    another network or training than the row's or, without a row, another than the released network, for other HR or LR
    images than those of the records, and for weights that may not ship: of a variant, where others ship under another
    id, or no better than these and bicubic.
    """
    where, config = folder(), run.config
    model, scale, train, weights = config["model"], config["scale"], config["train"], ""
    if where is None:
        raise InputError("there are no records here: start in the project's folder")
    if run_id == "bicubic":
        raise InputError("bicubic is the baseline's id: give the run another, such as equal-safmn-seed0")
    if SETS[0] not in [store.name for store in stores]:
        raise InputError(f"runs are compared on {SETS[0]}: name it among the data, too")
    if purpose == "ablation" and not row:
        raise InputError("which row of which table? give the file that srlib train --table --row --record wrote")
    paper, network = papers.of(model), run.network()
    asked = papers.row(paper.slug, table, row, scale) if row else papers.Row(model, default_config(model, scale), model)
    if network.config != asked.config or any(train[name] != value for name, value in asked.train.items()):
        raise InputError(f"{run.folder.name} is no run of {asked.name}: give the row that it was trained for")
    if purpose == "ships":
        if not asked.released:
            raise InputError(f"{asked.name} is a variant of {model}: only the network as released ships")
        weights, network = _ships_as(model, scale, run_id), network.half().float()
    scales = [scale] if scale else [one for one in SCALES if train["scales"][0] <= one <= train["scales"][1]]
    base = pd.concat(_scored("bicubic", bicubic(one), model, stores, one) for one in scales)
    known = base.merge(scores().query("run == 'bicubic'"), on=["dataset", "scale", "protocol", "image"])
    if len(other := known[known.lr_x.ne(known.lr_y) | known.fingerprint_x.ne(known.fingerprint_y)]):
        one = other.iloc[0]
        told = f"{one.dataset} x{one.scale} here ({one.fingerprint_x}, LR {one.lr_x}) is not that of the records"
        raise InputError(f"{told} ({one.fingerprint_y}, LR {one.lr_y}): `srlib data get` has it, or give other --data")
    mine = pd.concat(_scored(run_id, upscaler(network, one), model, stores, one) for one in scales)
    routed = paper.routing(network).assign(run=run_id).round({"share": 6}) if paper.routing else pd.DataFrame()
    log, validation, loss = run.log(), run.log("validation"), "{:.6g}".format
    every = max(1, len(log) // 100)
    thin = log[["step", "loss"]][every - 1 :: every].merge(validation[["step", "psnr"]], "outer", "step")
    thin = thin.assign(run=run_id, loss=thin.loss.map(loss, na_action="ignore"), psnr=thin.psnr.round(4))
    made = run.provenance | {"command": _anywhere(run.provenance["command"])}
    said = {**config, **train, **made, **run.metrics, "run": run_id, "purpose": purpose, "weights": weights}
    said |= {"paper": paper.slug, "table": table, "row": asked.name if row else ""}
    if (several := made["processes"]) > 1:
        said["device"] += f" in each of {several} processes"
    with FileLock(where / ".lock"):  # of two at once the later would lose the other's lines
        if weights:
            _must_be_better(run, weights, mine, base)
            settings = json.dumps({key: config[key] for key in ("scale", "train", "data", "fingerprint")})
            about = {"training": settings, "provenance": json.dumps(made), "precision": "float16"}
            checkpoints.save_network(network.half(), model, WEIGHTS / weights, **about)
        _write(where / "runs.csv", run_id, pd.DataFrame([said]), ["run"])
        _write(where / "scores.csv", run_id, pd.concat([base, mine]), "run dataset scale protocol image".split())
        _write(where / "curves.csv", run_id, thin, ["run", "step"])
        _write(where / "routing.csv", run_id, routed, ["run", "place", "part", "expert"])
    return means([run_id], scale=scale)


def _anywhere(command: str) -> str:
    """A command without the places on one machine that --runs, --record and --data-root name."""
    words, places = shlex.split(command), ("--runs", "--record", "--data-root")
    pairs = zip(["", *words], words, strict=False)
    return shlex.join(word for before, word in pairs if before not in places and word.split("=")[0] not in places)


def _ships_as(model: str, scale: int | None, run_id: str) -> str:
    """The file that a run's weights become. Raises InputError where others' ship under another id."""
    file = _file(model, scale)
    if others := {*runs().query("weights == @file").run} - {run_id}:
        raise InputError(f"{file} ships as {others.pop()}: record it under that id")
    return file


def _must_be_better(run: training.Run, weights: str, mine: pd.DataFrame, base: pd.DataFrame) -> None:
    """Raise InputError unless a run, which scored ``mine``, came to its end with a higher PSNR on the held-out
    photographs than the ``weights`` that ship and than bicubic, which scored ``base``."""
    held_out = f"dataset == {SETS[0]!r} and protocol == {STANDARD!r}"
    ours, usual = (lines.query(held_out).psnr.mean() for lines in (mine, base))
    earlier = means(runs().query("weights == @weights").run, SETS[:1]).psnr.mean()
    others = {"those that ship": earlier, "bicubic": usual}
    told = ", ".join(f"{name} {psnr:.2f} dB" for name, psnr in others.items() if not math.isnan(psnr))
    if run.metrics["collapsed_at"] or any(ours <= psnr for psnr in others.values()):
        raise InputError(f"{run.folder.name} {run.ending} with {ours:.2f} dB, {told}: it must be better to ship")


def _scored(run_id: str, upscale: Callable[..., Any], model: str, stores: Sequence[Store], scale: int) -> pd.DataFrame:
    """Lines of ``scores`` under the standard protocol and, where it is another, the paper's own."""
    standard, lines = papers.protocol(STANDARD), []
    for store in stores:
        own = papers.recipe(model).protocol_on(store.image_set.name)
        protocols = [standard] if own.same_arithmetic(standard) else [own, standard]
        for found in score_under(upscale, store, scale, protocols):
            lines.append(found.frame().assign(run=run_id, fingerprint=found.fingerprint[:12]))
    return pd.concat(lines)


def _write(path: Path, run_id: str, frame: pd.DataFrame, keys: list[str]) -> None:
    """Write a run's lines in place of its older ones, the baseline's only where they are new; the baseline comes first,
    then run by run. Numbers stay the text that they are in the file."""
    as_text: Any = {"dtype": str, "keep_default_na": False}
    old = pd.read_csv(path, **as_text)
    new = pd.read_csv(io.StringIO(frame.reindex(columns=old.columns).to_csv(index=False)), **as_text)
    both = pd.concat([old[old.run != run_id], new]).drop_duplicates(keys)
    both = both.sort_values("run", key=lambda run: run.where(run != "bicubic", ""), kind="stable")
    write(path, both.to_csv(index=False, lineterminator="\n").encode())


def shipped(scale: int | None = None) -> pd.DataFrame:
    """The weights that come with srlib, all or those that enlarge ``scale`` times, one line a file: model, scale
    (missing: every scale), steps, batch, patch, data, precision (of the training), and its size in bytes; from the
    files' own metadata, so without records too."""
    lines = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            said = file.metadata()
        settings = json.loads(said["training"])
        line = {"file": path.name, "model": said["model"], "bytes": path.stat().st_size}
        lines.append(settings | settings["train"] | line)
    columns = "file model scale data steps batch patch precision bytes".split()
    found = pd.DataFrame(lines, columns=columns).astype({"scale": "Int64"})
    return found if scale is None else found[found.scale.fillna(scale) == scale]


def load(model: str, scale: int | None = None) -> nn.Module:
    """The network with the weights that ship, float32, in evaluation mode on the CPU; ``scale`` None is 4. Raises
    InputError where there are none, with those that there are."""
    path = WEIGHTS / _file(model, scale)
    if not path.is_file():
        known = ", ".join(path.stem for path in sorted(WEIGHTS.glob("*.safetensors")))
        raise InputError(f"no weights {path.stem} come with srlib (there are {known}): train some with srlib train")
    return checkpoints.load(path, model, (scale or 4) if takes_scale(model) else None)


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
    """A trained network: for the budget "recorded" the weights that ship, else a run of that budget on ``train_data``,
    found in the folder runs or trained now, with the ``settings`` of :func:`srlib.runs.configure`, and ``device``."""
    if budget == "recorded":
        network = load(model, scale)
        line = shipped().set_index("file").loc[_file(model, scale)]
        return Trained(network, f"{line.steps:,} steps of batch {line.batch} on {line['data']}")
    store, device = Store.open(train_data), settings.pop("device", "auto")
    config = training.configure(model, scale if takes_scale(model) else None, store, budget=budget, **settings)
    run = training.train_or_load(config, store, Store.open(SETS[0]), device=device, title=f"{model}, {budget}")
    return Trained(run.network(), f"{run.ending} of batch {config.train.batch} on {config.data}", run)
