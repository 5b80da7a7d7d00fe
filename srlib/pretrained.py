"""Weights that come with srlib, and the records that are kept of trainings.

``keep`` scores a finished run and writes a kept record: what ``srlib train --record`` wrote, the command that makes the
run again, its scores and those of bicubic interpolation on the same LR images, beside its two log curves. Where asked
to, it also ships the weights: ``srlib/weights/NAME.safetensors``, in half precision where that moves no data set's mean
PSNR by more than ``LIMIT``. Such a file says what it holds and how it was trained and scored, and carries a hash of all
that, so that the weights are whole or are refused. None of them is a paper's: they were trained here, for a part of the
paper's steps.
"""

import copy
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import srlib
from srlib import metrics, runs
from srlib.checkpoints import write
from srlib.data import Store
from srlib.data import find as find_images
from srlib.errors import InputError
from srlib.evaluate import Scores, bicubic, compare, outputs
from srlib.models import default_config, takes_scale

FOLDER = Path(__file__).parent / "weights"
SETS = ("photos/held-out", "Set5", "Set14")  # on which kept runs are scored
SCALES = (2, 3, 4)  # at which networks for every scale are, as far as they were trained for them
STANDARD = "safmn"  # one protocol for all networks, BasicSR's, beside each paper's own
LIMIT = 0.01  # dB by which half precision may move the mean PSNR of a data set

BSD400 = "f96a368e4eeb133f0039fc381eabe4ce145e4d4c51c9ee2aed922e3c7447d7df"
SEEN: Mapping[str, Mapping[str, tuple[str, ...]]] = {BSD400: {"Set5": ("woman",)}}
"""Test images that are training images, too, by the fingerprint of these: Set5's woman is BSDS500's photograph 302003,
made 1.4 times smaller. Scores of Set5 hold it, as everybody's do; where chance is spoken of it is left out."""

Precision = Literal["float16", "float32"]


def protocols(model: str, dataset: str) -> list[metrics.Protocol]:
    """The paper's protocol for a model on a data set, and the standard one where its arithmetic is another."""
    own, standard = metrics.protocol(runs.recipe(model).protocol_on(dataset)), metrics.protocol(STANDARD)
    return [own] if same_arithmetic(own, standard) else [own, standard]


def same_arithmetic(one: metrics.Protocol, other: metrics.Protocol) -> bool:
    """Whether two protocols give the same scores, whatever they are called."""
    return one == replace(other, name=one.name, about=one.about, lr_origin=one.lr_origin)


def scored(scores: Sequence[Mapping[str, Any]], dataset: str, scale: float, protocol: str = STANDARD) -> dict[str, Any]:
    """The score of a kept record's list ("scores" or "bicubic"), or of ``Shipped.scores``, on a data set, at a scale,
    under the protocol of that name or one that gives the same scores. Raises InputError where there is none."""
    wanted = metrics.protocol(protocol)
    for one in scores:
        if (one["dataset"], one["scale"]) == (dataset, scale):
            its = one["protocol"]
            if same_arithmetic(wanted, metrics.protocol(its if isinstance(its, str) else its["name"])):
                return dict(one)
    raise InputError(f"no score on {dataset} x{scale:g} under the {protocol} protocol: keep the run again")


def shares(model: str, train: Mapping[str, Any]) -> tuple[float, float]:
    """Which part of its paper's training some settings are: of the steps, and of the LR pixels (of a network for every
    scale, the queries) that are learnt from, all steps together."""
    paper = asdict(runs.recipe(model).train)
    steps = train["steps"] / paper["steps"]
    mine, its = (each["batch"] * (each["queries"] or each["patch"] ** 2) for each in (train, paper))
    return steps, steps * mine / its


# --- keeping a run ---------------------------------------------------------------------------------------------------


def keep(
    record: Mapping[str, Any],
    run: runs.Run,
    name: str,
    into: Path,
    *,
    sets: Sequence[str] = SETS,
    data_root: Path | None = None,
    scales: Sequence[int] | None = None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """Score a finished run and write ``into/NAME.json``, ``NAME.log.csv`` and ``NAME.validation.csv``; with
    ``weights``, a folder, also ``weights/NAME.safetensors``, whose scores are then the record's. Returns the record.

    ``record`` is what ``srlib train --record`` wrote of the ``run``. ``scales`` is for networks for every scale, those
    of ``SCALES`` that it was trained for where it is None. Raises InputError where an image set is missing, the record
    is of another run, no command makes the run again, and for weights of a run that collapsed, of another network than
    its paper's, or of a training that is a table's row or has not the paper's losses (budget equal).
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"{name!r} is no name for a record: give one for files, such as safmn-x4")
    config = run.config
    if record.get("config") != config:
        raise InputError(f"the record is not of {run.folder.name} as it is: train it again with --record")
    again = runs.origin(config, record.get("budget"))
    if again is None:
        raise InputError(f"no command of srlib makes {run.folder.name} again: keep a run that `srlib train` made")
    if weights is not None:
        check_shippable(run, name, sets)
        if record.get("table") or again.budget == "equal":
            raise InputError(f"{run.folder.name} is not trained as its paper trains: leave --weights out")
    model, places = config["model"], [config["scale"]]
    if config["scale"] is None:
        least, most = config["train"]["scales"]
        places = list(scales or (scale for scale in SCALES if least <= scale <= most))
    elif scales and list(scales) != places:
        raise InputError(f"{run.folder.name} enlarges {config['scale']} times: leave --scale out")
    stores = [Store.open(find_images(one, data_root)) for one in sets]
    for place in (into, weights):
        if place is not None:
            runs.check_writable(place / "x.json")
    network, shipped = run.network(), None
    scores, baseline = (score_all(one, model, stores, places) for one in (network, None))
    if weights is not None:
        half = score_all(halved(network), model, stores, places)
        apart = [abs(one.psnr - other.psnr) for one, other in zip(half, scores, strict=True)]
        moved = max(apart) if all(map(math.isfinite, apart)) else None  # None: it can't hold these weights at all
        precision: Precision = "float32" if moved is None or moved > LIMIT else "float16"
        scores = half if precision == "float16" else scores
        file = weights / f"{name}.safetensors"
        ship(run, again.command, precision, scores, baseline, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shipped = {"file": file.name, "sha256": digest, "precision": precision, "moved": moved}
    for curve in ("log", "validation"):
        write(into / f"{name}.{curve}.csv", (run.folder / f"{curve}.csv").read_bytes())
    kept = dict(record) | {
        "command": list(again.command),
        "scores": [one.record() for one in scores],
        "bicubic": [one.record() for one in baseline],
        "weights": shipped,
    }
    runs.write_json(into / f"{name}.json", kept)
    return kept


def check_shippable(run: runs.Run, name: str, sets: Sequence[str]) -> None:
    """Raise InputError for weights that are not to be shipped, or not under that name or with scores on these sets."""
    config, collapsed_at = run.config, run.metrics["collapsed_at"]
    usual, wanted = default_config(config["model"]), file_name(config["model"], config["scale"])
    usual = usual if config["scale"] is None else replace(usual, scale=config["scale"])
    if collapsed_at:
        raise InputError(f"{run.folder.name} collapsed at step {collapsed_at}: ship a run that came to its end")
    if config.get("start") or config["network"] != json.loads(json.dumps(asdict(usual))):
        raise InputError(f"{run.folder.name} is no {config['model']} as its paper builds it: leave --weights out")
    if f"{name}.safetensors" != wanted:
        raise InputError(f"these weights are found by their name, {wanted}: give --name {Path(wanted).stem}")
    if SETS[0] not in sets:
        raise InputError(f"shipped weights need scores on {SETS[0]}: name it with --data as well")


def file_name(model: str, scale: int | None) -> str:
    """The name of a shipped file: "safmn-x4.safetensors"; without a scale for a network for every scale."""
    return f"{model}.safetensors" if scale is None else f"{model}-x{scale}.safetensors"


def score_all(network: nn.Module | None, model: str, stores: Sequence[Store], scales: Sequence[int]) -> list[Scores]:
    """The scores of a model's network, or of bicubic interpolation for None, at each scale on each store under each of
    ``protocols``; images are enlarged whole, once."""
    found = []
    for scale in scales:
        upscale = bicubic(scale) if network is None else runs.upscaler(network, scale)
        for store in stores:
            made = outputs(upscale, store, scale)
            found += [compare(made, store, scale, one) for one in protocols(model, store.name)]
    return found


def halved(network: nn.Module) -> nn.Module:
    """A copy of a network whose floating-point values went through half precision."""
    twin = copy.deepcopy(network)
    twin.load_state_dict({key: rounded(value, "float16").to(value.dtype) for key, value in twin.state_dict().items()})
    return twin


def rounded(value: Tensor, precision: Precision) -> Tensor:
    """A tensor's floating-point values in a precision; others as they are."""
    return value.to(getattr(torch, precision)) if value.is_floating_point() else value


def ship(
    run: runs.Run,
    command: Sequence[str],
    precision: Precision,
    scores: Sequence[Scores],
    baseline: Sequence[Scores],
    path: Path,
) -> None:
    """Write a run's weights in a precision, with what :class:`Shipped` reads from them; atomic. ``baseline`` are
    bicubic's ``scores``, one for one."""
    config, network = run.config, run.network()
    training = {name: config[name] for name in ("scale", "train", "data", "fingerprint")} | {"command": list(command)}
    metadata = {
        "srlib": srlib.__version__,
        "model": config["model"],
        "config": json.dumps(asdict(network.config)),
        "training": json.dumps(training),
        "provenance": json.dumps(run.provenance),
        "precision": precision,
        "scores": json.dumps([summary(one, other) for one, other in zip(scores, baseline, strict=True)]),
    }
    tensors = {key: rounded(value.detach(), precision).contiguous() for key, value in network.state_dict().items()}
    write(path, safetensors.torch.save(tensors, metadata | {"digest": digest_of(tensors, metadata)}))


def summary(one: Scores, other: Scores) -> dict[str, Any]:
    """Means of a score beside bicubic's, and the least gain over it on an image, in dB."""
    found = {"dataset": one.dataset, "scale": one.scale, "protocol": one.protocol.name}
    means = {"psnr": one.psnr, "ssim": one.ssim, "bicubic_psnr": other.psnr, "bicubic_ssim": other.ssim}
    gains = [mine.psnr - its.psnr for mine, its in zip(one.images, other.images, strict=True)]
    return found | means | {"least_gain": min(gains)}


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of all that a shipped file says but the hash itself."""
    digest = hashlib.sha256(json.dumps({**metadata, "digest": ""}, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


# --- what ships ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shipped:
    """A file of weights that comes with srlib: its model, its scale (None for every one), and what it says of itself.

    ``training`` has the training's settings ("train"), the images' name and fingerprint, the scale and the command that
    makes the run again; ``provenance`` is the run's; ``scores`` are means on each data set under each protocol, beside
    bicubic's, with the least gain on an image.
    """

    path: Path
    model: str
    scale: int | None
    training: Mapping[str, Any]
    provenance: Mapping[str, Any]
    precision: str
    scores: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Shipped":
        """What a file holds. Raises InputError where it is not as it was shipped."""
        tensors, metadata = runs.read_tensors(path)
        if metadata.get("digest") != digest_of(tensors, metadata):
            raise InputError(f"{path.name} is not as it was shipped with srlib: install srlib again")
        training, provenance, scores = (json.loads(metadata[name]) for name in ("training", "provenance", "scores"))
        return cls(
            path, metadata["model"], training["scale"], training, provenance, metadata["precision"], scores
        )  # fmt: skip

    @property
    def at(self) -> str:
        """What it enlarges by, in words."""
        return "for every scale" if self.scale is None else f"x{self.scale}"

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales at which it was scored."""
        return tuple(sorted({one["scale"] for one in self.scores}))

    @property
    def serves(self) -> tuple[int, ...]:
        """Those of them at which it beats bicubic interpolation on every held-out photograph."""
        lost = {one["scale"] for one in self.scores if one["dataset"] == SETS[0] and not one["least_gain"] > 0}
        return tuple(scale for scale in self.scales if scale not in lost)

    @property
    def line(self) -> str:
        """What it is and how it was trained, in one line."""
        done = self.training["train"]
        steps, pixels = (f"1/{1 / share:,.0f}" for share in shares(self.model, done))
        return (
            f"{self.model} {self.at}: weights of srlib's own, {done['steps']:,} steps of batch {done['batch']} (LR "
            f"patches of {done['patch']}) on {self.training['data']}, {steps} of the paper's steps and {pixels} of its "
            "pixels; not the paper's weights"
        )

    def line_at(self, scale: float) -> str:
        """The same, with what there is to say of a scale where it is not known to beat bicubic interpolation."""
        if scale in self.serves:
            return self.line
        if scale in self.scales:
            return f"{self.line}; at x{scale:g} it does not beat bicubic on every photograph that it was tested on"
        return f"{self.line}; tested at {', '.join(f'x{one}' for one in self.scales)}, not at x{scale:g}"

    def row(self, scale: int) -> dict[str, Any]:
        """All of it at a scale, as one flat row; PSNR under the standard protocol. ``share`` and ``pixels`` are the
        parts of the paper's training (:func:`shares`)."""
        done = self.training["train"]
        found = {"file": self.path.name, "model": self.model, "scale": scale}
        found |= {name: done[name] for name in ("steps", "batch", "patch")} | {"data": self.training["data"]}
        found |= dict(zip(("share", "pixels"), shares(self.model, done), strict=True))
        found |= {"bytes": self.path.stat().st_size}
        found |= {"precision": self.precision, "beats_bicubic": scale in self.serves}
        found |= {"command": shlex.join(self.training["command"])}
        for dataset in dict.fromkeys(one["dataset"] for one in self.scores):
            one = scored(self.scores, dataset, scale)
            found |= {f"{dataset} psnr": one["psnr"], f"{dataset} bicubic": one["bicubic_psnr"]}
        return found

    def network(self) -> nn.Module:
        """The network with these weights, whole precision, in evaluation mode on the CPU."""
        return runs.load(self.path, self.model, self.scale)


def available(folder: Path | None = None) -> tuple[Shipped, ...]:
    """All weights that come with srlib, by name. Raises InputError where one is not as it was shipped."""
    return tuple(Shipped.read(path) for path in files(folder))


def files(folder: Path | None = None) -> list[Path]:
    """The shipped files, by name, looked at by their names alone."""
    return sorted((folder or FOLDER).glob("*.safetensors"))


def find(model: str, scale: int | None = None) -> Shipped:
    """The shipped weights of a model; of one for one scale those of ``scale``, of one for every scale for any.

    Raises InputError where there are none, with those that there are, and where the file is not as it was shipped.
    """
    scale = scale if takes_scale(model) else None
    path = FOLDER / file_name(model, scale)
    if not path.is_file():
        at, mend = ("", "") if scale is None else (f" x{scale}", f" --scale {scale}")
        known = ", ".join(one.stem for one in files()) or "none"
        raise InputError(
            f"no weights of {model}{at} come with srlib (there are: {known}): train some (srlib train {model}{mend}), "
            "or name a file with --weights, or a run with --record"
        )
    return Shipped.read(path)


def usual(scale: float) -> str:
    """The model that enlarges pictures where none is named: SAFMN if its weights for that scale ship, else one for
    every scale. Raises InputError where there is none."""
    known = [path.name for path in files()]
    if f"safmn-x{scale:g}.safetensors" in known:
        return "safmn"
    for name in known:
        if not takes_scale(model := name.removesuffix(".safetensors").split("-x")[0]):
            return model
    raise InputError(
        f"no weights that enlarge {scale:g} times come with srlib: give --model NAME with --weights FILE, or --record "
        "RUN.json, or --model bicubic"
    )


def load(model: str, scale: int | None = None) -> nn.Module:
    """The network of :func:`find`, in evaluation mode on the CPU."""
    return find(model, scale).network()
