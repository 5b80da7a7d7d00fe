"""Kept runs: what was trained for the book, read from the records that ``srlib keep`` leaves in its folder.

``book/results/trained`` has the runs whose weights ship, ``equal`` those that were trained alike for the comparison,
``precision`` some of these once more in mixed precision, ``ablations`` the rows of printed tables, a folder a table
("safmn-3"). A record holds a run's configuration, command
and provenance, its scores image by image and bicubic interpolation's; its two logs lie beside it. Nothing here trains
or scores: figures are put side by side, with what can be said of chance (:mod:`srlib.stats`).
"""

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from srlib import metrics, papers
from srlib.errors import InputError
from srlib.logs import read_csv
from srlib.models import default_config
from srlib.pretrained import SEEN, STANDARD, scored, shares
from srlib.runs import CONFIG, METRICS, Kinds, checked, read_json, recipe
from srlib.stats import Interval, Spread, crossed, rank_correlation, reach, spread

RESULTS = "book/results"
"""The folder of the book's records, seen from the project's."""

TITLES = {
    "safmn": "SAFMN", "seemore-t": "SeemoRe-T", "ssiu": "SSIU", "moeisr-liif-s-edsr": "MoEISR",
    "moeisr-lte-s-edsr": "MoEISR-LTE",
}  # fmt: skip
"""The networks that are trained for the book, and their titles; all but the last are compared with each other."""

RECORD: Kinds = {
    "run": (str,), "config": (dict,), "metrics": (dict,), "provenance": (dict,), "held_out": (dict,),
    "command": (list,), "scores": (list,), "bicubic": (list,),
}  # fmt: skip

Standing = Literal["larger", "smaller", "no seeds"]


@dataclass(frozen=True)
class Kept:
    """One kept run; ``name`` is that of its record in the book: "equal-safmn-seed0"."""

    name: str
    path: Path
    record: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The network's name in ``srlib.models``."""
        return self.record["config"]["model"]

    @property
    def title(self) -> str:
        """The network's title, its paper's where there is one."""
        return TITLES.get(self.model, self.model)

    @property
    def scale(self) -> int | None:
        """The scale that it was trained for; None for a network for every scale."""
        return self.record["config"]["scale"]

    @property
    def train(self) -> Mapping[str, Any]:
        """How it was trained: the fields of ``srlib.train.TrainConfig``."""
        return self.record["config"]["train"]

    @property
    def seed(self) -> int:
        """The seed of weights, batches and draws."""
        return self.train["seed"]

    @property
    def ending(self) -> str:
        """How its training ended, in words, as ``Run.ending``."""
        collapsed_at = self.record["metrics"]["collapsed_at"]
        return f"collapsed at step {collapsed_at}" if collapsed_at else f"{self.record['metrics']['steps']:,} steps"

    @property
    def share(self) -> str:
        """Its steps as a share of the paper's: "1/25"."""
        return f"1/{1 / shares(self.model, self.train)[0]:,.0f}"

    @property
    def pixels(self) -> str:
        """The pixels that it learnt from as a share of the paper's: "1/400"."""
        return f"1/{1 / shares(self.model, self.train)[1]:,.0f}"

    def seen(self, dataset: str) -> tuple[str, ...]:
        """The images of a data set that it was trained on (:data:`srlib.pretrained.SEEN`)."""
        return SEEN.get(self.record["config"]["fingerprint"], {}).get(dataset, ())

    @property
    def command(self) -> str:
        """The one command that makes the run again, for a shell."""
        return shell(self.record["command"])

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that it is scored on, in their order."""
        return tuple(dict.fromkeys(score["dataset"] for score in self.record["scores"]))

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that it is scored at, in their order."""
        return tuple(dict.fromkeys(score["scale"] for score in self.record["scores"]))

    def protocol_on(self, dataset: str) -> metrics.Protocol:
        """Its paper's protocol for a data set."""
        return metrics.protocol(recipe(self.model).protocol_on(dataset))

    def score(
        self, dataset: str, protocol: str = STANDARD, scale: int = 4, of: Literal["scores", "bicubic"] = "scores"
    ) -> Mapping[str, Any]:
        """One of its scores, as ``Scores.record`` gives it, or bicubic interpolation's of the same images.

        A protocol is found by its arithmetic: those of SAFMN and SeemoRe are one, and scored once. Raises InputError
        where there is none.
        """
        try:
            return scored(self.record[of], dataset, scale, protocol)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def psnr(
        self,
        datasets: Sequence[str] = (),
        protocol: str = STANDARD,
        scale: int = 4,
        of: Literal["scores", "bicubic"] = "scores",
    ) -> np.ndarray:
        """The PSNR of each image of some data sets (none named: all), (images,) float64, in their order; without those
        that it was trained on."""
        scores = [self.score(dataset, protocol, scale, of) for dataset in datasets or self.datasets]
        return np.array([image["psnr"] for score in scores for image in self._unseen(score)], dtype=np.float64)

    def _unseen(self, score: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [image for image in score["images"] if image["name"] not in self.seen(score["dataset"])]

    def images(self, datasets: Sequence[str], scale: int = 4) -> tuple[tuple[str, str], ...]:
        """The images of ``psnr``: the fingerprint of the data set, and the name of each."""
        scores = [self.score(dataset, scale=scale) for dataset in datasets]
        return tuple((score["fingerprint"], image["name"]) for score in scores for image in self._unseen(score))

    def log(self, part: Literal["log", "validation"] = "log") -> dict[str, np.ndarray]:
        """The columns of the log beside the record: step, loss, lr, seconds; or step, psnr, ssim, seconds."""
        rows = read_csv(self.path.with_name(f"{self.path.stem}.{part}.csv"))
        return {key: np.array([row[key] for row in rows]) for key in rows[0]} if rows else {}

    def gain(self) -> dict[str, np.ndarray]:
        """How far it was above bicubic interpolation on the held-out images while it trained: ``step`` and ``gain`` in
        dB, the mean over images.

        Both under the protocol of its paper, under which a run scores itself on its way.
        """
        held, columns = self.record["held_out"], self.log("validation")
        base = self.score(held["dataset"], held["protocol"]["name"], held["scale"], "bicubic")["psnr"]
        return {"step": columns["step"], "gain": columns["psnr"] - base}


def shell(words: Sequence[str]) -> str:
    """A recorded command as one types it."""
    return shlex.join(words)


def read(part: str, root: Path | str = RESULTS) -> tuple[Kept, ...]:
    """The kept runs in a folder of the book's records, "trained", "equal" or "ablations/safmn-3", by name; none where
    there is no such folder. What else lies there, such as times, is passed over.

    Raises InputError for a record that is damaged, and where there is no folder of records.
    """
    if not Path(root).is_dir():
        raise InputError(f"no folder of records at {root}: start in the project's folder, or give its path")
    found = []
    for path in sorted((Path(root) / part).rglob("*.json")):
        record = read_json(path)
        if "run" not in record:
            continue
        checked(record, RECORD, path)
        checked(record["config"], CONFIG, path)
        checked(record["metrics"], METRICS, path)
        name = path.relative_to(root).with_suffix("").as_posix().replace("/", "-")
        found.append(Kept(name, path, record))
    return tuple(found)


def by_seed(found: Iterable[Kept]) -> dict[str, dict[int, Kept]]:
    """Kept runs by model, in the order of ``TITLES``, and by seed. Raises InputError for two of one model and seed."""
    runs: dict[str, dict[int, Kept]] = {}
    for one in sorted(found, key=lambda one: (_place(one.model), one.model, one.seed)):
        _add(runs.setdefault(one.model, {}), one)
    return runs


def _add(runs: dict[int, Kept], one: Kept) -> None:
    """Add a run to others of its kind, by its seed."""
    if one.seed in runs:
        raise InputError(f"{one.path} and {runs[one.seed].path} are of one network and seed: keep one of them")
    runs[one.seed] = one


def _place(model: str) -> int:
    return [*TITLES, model].index(model)


def shared(found: Iterable[Kept]) -> tuple[str, ...]:
    """The data sets that all of some runs are scored on."""
    sets = [one.datasets for one in found]
    return tuple(name for name in sets[0] if all(name in other for other in sets)) if sets else ()


def gaps(
    one: Mapping[int, Kept], other: Mapping[int, Kept], datasets: Sequence[str] = (), scale: int = 4
) -> np.ndarray:
    """How far the runs ``one`` lie above ``other``, PSNR in dB under the protocol ``STANDARD``: (seeds, images).

    Runs of one seed are set against each other, and images likewise; seeds that only one side has are left out. No data
    set named: those that all share. Raises InputError for runs that share no seed, that differ in steps, batch, patch
    or training images, and for scores of other images.
    """
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        raise InputError("the runs share no seed; train both with the same seeds")
    sets = tuple(datasets) or shared([*one.values(), *other.values()])
    runs = [side[seed] for side in (one, other) for seed in seeds]
    lengths = {tuple(run.train[name] for name in ("steps", "batch", "patch")) for run in runs}
    if len(lengths) > 1 or len({run.record["config"]["fingerprint"] for run in runs}) > 1:
        raise InputError("the runs differ in steps, batch, patch or training images; train both alike")
    if not sets or len({run.images(sets, scale) for run in runs}) > 1:
        raise InputError("the runs were not scored on the same images; keep them again on the same data sets")
    mine, theirs = ([side[seed].psnr(sets, scale=scale) for seed in seeds] for side in (one, other))
    return np.stack(mine) - np.stack(theirs)


def surely(samples: np.ndarray) -> Interval | None:
    """The mean of gaps (seeds, images) with its interval over both (:func:`srlib.stats.crossed`); None for one seed
    alone, of which it can't be said."""
    return crossed(samples) if min(samples.shape) > 1 else None


def settings(found: Iterable[Kept]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of training that some runs share, by name; and those that differ between models, by name and then by
    title. The seed is neither."""
    runs = list(found)
    alike, apart = {}, {}
    for name in (name for name in (runs[0].train if runs else ()) if name != "seed"):
        values = {one.title: one.train.get(name) for one in runs}
        if any(one.train.get(name) != runs[0].train[name] for one in runs):
            apart[name] = values
        else:
            alike[name] = runs[0].train[name]
    return alike, apart


def over_seeds(found: Mapping[int, Kept], dataset: str, scale: int = 4) -> Spread:
    """The mean PSNR of runs that differ in their seed alone, on a data set under the protocol ``STANDARD``."""
    return spread([one.score(dataset, scale=scale)["psnr"] for one in found.values()])


def gains(found: Mapping[int, Kept]) -> tuple[np.ndarray, np.ndarray]:
    """The steps (n,) at which runs that differ in their seed alone scored themselves, and their gain over bicubic
    interpolation there in dB (runs, n): ``Kept.gain`` of each. Raises InputError where they scored at other steps."""
    curves = [one.gain() for one in found.values()]
    if not curves or any(curve["step"].tolist() != curves[0]["step"].tolist() for curve in curves):
        raise InputError("the runs were not scored at the same steps: give runs of one length")
    return curves[0]["step"], np.stack([curve["gain"] for curve in curves])


def step_times(root: Path | str = RESULTS) -> dict[str, Any]:
    """What :func:`srlib.profiling.record_steps` wrote of a training step of the comparison; {} where it was not timed.

    The seconds in the runs' own records are no measure: several trained at once.
    """
    path = Path(root) / "equal" / "steps.json"
    return read_json(path) if path.is_file() else {}


def printed(model: str, scale: int, dataset: str) -> dict[str, papers.Cell]:
    """The printed scores of a paper's own network, as trained in the paper, at a scale on a data set, by metric; the
    first of its tables that has them is taken, and nothing is where none has."""
    paper, found = papers.paper_of(model), {}
    for name, number in papers.tables():
        if name != paper:
            continue
        own = [r for r in papers.rows(paper, number) if r.model == model and not r.train and _is_own(r)]
        for cell in papers.table(paper, number, counts=False).cells if own else ():
            here = (cell.scale, cell.dataset) == (scale, dataset) and cell.metric in papers.TOLERANCE
            if here and any(row.stands_for(cell.row, cell.variant, scale) for row in own):
                found.setdefault(cell.metric, cell)
    return found


def _is_own(row: papers.Row) -> bool:
    """Whether a row's network is the paper's own, whatever its scale."""
    return asdict(row.config) | {"scale": 0} == asdict(default_config(row.model)) | {"scale": 0}


# --- ablation tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblationRow:
    """A row of a printed ablation table: its ``printed`` PSNR by data set, and its kept ``runs`` by seed."""

    row: papers.Row
    printed: Mapping[str, float]
    runs: Mapping[int, Kept]

    @property
    def name(self) -> str:
        """The row's printed name."""
        return self.row.name

    @property
    def ending(self) -> str:
        """How its trainings ended, in words; "not trained" without any."""
        collapsed = sum(bool(one.record["metrics"]["collapsed_at"]) for one in self.runs.values())
        ended = f"{len(self.runs)} {'seed' if len(self.runs) == 1 else 'seeds'}" if self.runs else "not trained"
        return f"{ended}, {collapsed} collapsed" if collapsed else ended


@dataclass(frozen=True)
class Gap:
    """How far a row lies above the paper's own network: ``printed`` in dB by data set, ours as samples (seeds, images)
    or None where the two share no seed."""

    printed: Mapping[str, float]
    samples: np.ndarray | None

    @property
    def interval(self) -> Interval | None:
        """Our mean gap, with its interval over seeds and images; None with less than two seeds."""
        return None if self.samples is None else surely(self.samples)

    @property
    def spread(self) -> Spread | None:
        """The gaps of the seeds, each the mean over images; None without a seed."""
        return None if self.samples is None else spread(self.samples.mean(1).tolist())

    def standing(self, dataset: str, reach: float | None) -> Standing:
        """Whether the printed gap on a data set is larger than the ``reach`` of chance (:meth:`Ablation.reach`, dB);
        "no seeds" where this row has less than two."""
        if reach is None or self.samples is None or len(self.samples) < 2:
            return "no seeds"
        return "larger" if abs(self.printed[dataset]) > reach else "smaller"


@dataclass(frozen=True)
class Pair:
    """Two rows of which print puts ``better`` above ``worse`` by ``printed`` dB, and our gap of the same two."""

    better: str
    worse: str
    printed: float
    ours: Interval

    @property
    def outcome(self) -> Literal["met", "swapped", "open"]:
        """Whether our interval lies wholly on the printed side, wholly on the other, or holds 0."""
        return "open" if not self.ours.sure else "met" if self.ours.low > 0 else "swapped"


@dataclass(frozen=True)
class Ablation:
    """A printed ablation table with what is trained of it: all ``rows`` in the paper's order."""

    paper: str
    number: int | str
    rows: tuple[AblationRow, ...]

    @property
    def record(self) -> str:
        """The name of the printed table's record in the book."""
        return papers.record_name(self.paper, self.number)

    @cached_property
    def own(self) -> AblationRow:
        """The row that is the paper's own network, from which the gaps are counted. Raises InputError for a table that
        has none."""
        for row in self.rows:
            if _is_own(row.row) and not row.row.train:
                return row
        raise InputError(f"table {self.number} of {self.paper} has no row of the paper's own network to compare with")

    @property
    def trained(self) -> tuple[AblationRow, ...]:
        """The rows that have runs."""
        return tuple(row for row in self.rows if row.runs)

    @property
    def scale(self) -> int:
        """The scale that all rows are printed and trained at."""
        return int(self.own.row.scale or 4)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that the table prints PSNR on."""
        return tuple(self.own.printed)

    @property
    def scored_on(self) -> tuple[str, ...]:
        """The data sets that all of our runs are scored on."""
        return shared(one for row in self.rows for one in row.runs.values())

    def gap(self, row: AblationRow) -> Gap:
        """How far a row lies above the paper's own network."""
        above = {name: round(value - self.own.printed[name], 6) for name, value in row.printed.items()}
        if not set(row.runs) & set(self.own.runs):
            return Gap(above, None)
        return Gap(above, gaps(row.runs, self.own.runs, self.scored_on, self.scale))

    def short(self, row: AblationRow) -> str:
        """What tells a row from the others: its label, or the variant where several have one label."""
        alone = sum(other.row.label == row.row.label for other in self.rows) == 1
        return row.row.label if alone or not row.row.variant else row.row.variant.replace(";", ", ")

    def lines(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table as this book shows it, columns and rows of text: how each row was trained, our mean PSNR
        over images and seeds, its printed gap on each data set, our mean gap with its interval and the gaps of the
        seeds, and how the printed ones stand to the reach of chance."""
        where = [name.removesuffix("_val") for name in self.datasets]
        columns = ("row", "trained", "our PSNR (dB)", *(f"printed gap, {name} (dB)" for name in where))
        columns += ("our gap (dB), 95 %", "seeds' gaps (dB)")
        columns += tuple(f"to chance, the one printed for {name} is" for name in where)
        rows, means, most = [], self.means(), self.reach()
        for row in self.rows:
            gap = self.gap(row)
            mean = f"{means[row.name]:.2f}" if row.name in means else "–"
            first = self.short(row), row.ending, mean, *(_signed(gap.printed[name]) for name in self.datasets)
            if row is self.own:
                rows.append((*first, *["–"] * (2 + len(where))))
                continue
            found, between = gap.interval, gap.spread
            ours = found.text(signed=True) if found else _signed(between.mean) if between else "–"
            ends = f"{_signed(between.low)} to {_signed(between.high)}" if between and found else "–"
            rows.append((*first, ours, ends, *(gap.standing(name, most) for name in self.datasets)))
        return columns, rows

    def links(self, columns: Sequence[str]) -> dict[str, str]:
        """The records that ``lines`` lead to: printed gaps to the table's, each row to its run with the lowest seed."""
        rows = {self.short(row): next(iter(row.runs.values())).name for row in self.trained}
        return rows | {name: self.record for name in columns if name.startswith("printed gap")}

    def intervals(self, dataset: str) -> tuple[dict[str, Interval], dict[str, float]]:
        """Our gaps with their intervals, and those that are printed on a data set, of the rows that have both."""
        found = {self.short(row): self.gap(row) for row in self.rows if row is not self.own}
        values = {name: gap.interval for name, gap in found.items() if gap.interval is not None}
        return values, {name: found[name].printed[dataset] for name in values}

    def summary(self) -> str:
        """What the table comes to, in a few lines: where bicubic interpolation lies, the reach of chance, how many
        printed gaps are larger, and whether the rows are in the printed order."""
        lines, base, means, noise, most = [], self.bicubic(), self.means(), self.noise(), self.reach()
        if base is not None:
            above = sum(mean > base for mean in means.values())
            lines.append(
                f"Bicubic interpolation reaches {base:.2f} dB on the same images; {above} of the {len(means)} rows "
                "that are trained lie above it."
            )
        if noise is None or most is None:
            lines.append("There are no two seeds to compare.")
        else:
            lines.append(
                f"From seed to seed a row's gap varies with a standard deviation of {noise:.3f} dB (all rows "
                "together): of trainings like these, one pair that differs by chance alone shows a gap within "
                f"\u00b1{most:.2f} dB in 19 of 20 cases."
            )
        for name in self.datasets:
            kinds = [self.gap(row).standing(name, most) for row in self.rows if row is not self.own]
            counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in get_args(Standing) if kind in kinds)
            lines.append(f"Printed gaps on {name}, to that: {counted}.")
            outcomes = [pair.outcome for pair in self.pairs(name)]
            if outcomes:
                met, swapped, still = (outcomes.count(kind) for kind in ("met", "swapped", "open"))
                related = self.correlation(name)
                ranks = "" if related is None else f"; rank correlation of the rows {related:+.2f}"
                lines.append(
                    f"Of {len(outcomes)} pairs of rows that print tells apart there, {met} have the printed order "
                    f"here, {swapped} the other one, and {still} are not told apart{ranks}."
                )
        return "\n".join(textwrap.fill(line, 88, subsequent_indent="  ") for line in lines)

    def swapped(self, dataset: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The pairs that print puts in one order on a data set and our intervals in the other, the largest printed gap
        first: columns and rows of text."""
        columns = ("printed above", "printed below", f"printed gap, {dataset} (dB)", "our gap (dB), 95 %")
        found = sorted((p for p in self.pairs(dataset) if p.outcome == "swapped"), key=lambda p: -p.printed)
        return columns, [(p.better, p.worse, _signed(p.printed), p.ours.text(signed=True)) for p in found]

    def means(self) -> dict[str, float]:
        """The mean PSNR of each trained row over seeds and images, by name."""
        return {
            row.name: float(np.mean([one.psnr(self.scored_on, scale=self.scale) for one in row.runs.values()]))
            for row in self.trained
        }

    def bicubic(self) -> float | None:
        """The mean PSNR of bicubic interpolation over the images that all runs are scored on; None without runs."""
        for one in (one for row in self.trained for one in row.runs.values()):
            return float(one.psnr(self.scored_on, scale=self.scale, of="bicubic").mean())
        return None

    def pairs(self, dataset: str) -> tuple[Pair, ...]:
        """All pairs of rows that print tells apart on a data set, and that share two seeds or more here."""
        found = []
        for pair in combinations(self.trained, 2):
            better, worse = sorted(pair, key=lambda row: -row.printed[dataset])
            above = round(better.printed[dataset] - worse.printed[dataset], 6)
            if above and len(set(better.runs) & set(worse.runs)) > 1:
                ours = surely(gaps(better.runs, worse.runs, self.scored_on, self.scale))
                if ours is not None:
                    found.append(Pair(self.short(better), self.short(worse), above, ours))
        return tuple(found)

    def correlation(self, dataset: str) -> float | None:
        """Spearman's rank correlation of the printed PSNR on a data set with our mean PSNR, over the trained rows; None
        for fewer than three rows, and where all are equal."""
        ours = self.means()
        if len(ours) < 3:
            return None
        try:
            return rank_correlation([row.printed[dataset] for row in self.trained], list(ours.values()))
        except InputError:
            return None

    def noise(self) -> float | None:
        """How far one row's gap lies from its mean from seed to seed, in dB: the pooled standard deviation of all rows
        that have two seeds or more; None without any."""
        found = self._seeds()
        freedom = sum(len(means) - 1 for means in found)
        squares = sum(float(np.var(means)) * len(means) for means in found)
        return float(np.sqrt(squares / freedom)) if found else None

    def reach(self) -> float | None:
        """How far from 0, in dB, the gap of a pair of trainings lies in 95 % of cases where nothing but chance parts
        them (:func:`srlib.stats.reach` of ``noise``); None without two seeds. All rows share the trainings of the
        paper's own network, so that a little less is known than their number says."""
        noise = self.noise()
        return None if noise is None else reach(noise, sum(len(means) - 1 for means in self._seeds()))

    def _seeds(self) -> list[np.ndarray]:
        """For each row that has two seeds or more: its gaps, (seeds,), each the mean over images."""
        found = [self.gap(row).samples for row in self.trained if row is not self.own]
        return [samples.mean(1) for samples in found if samples is not None and len(samples) > 1]


def _signed(value: float) -> str:
    """A gap as it is shown: "+0.12"."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212")


def ablation(paper: str, number: int | str, root: Path | str = RESULTS) -> Ablation:
    """A printed ablation table with its kept runs, of which there may be none.

    Raises InputError for a table that there isn't, a record that is damaged or of no row of that table, and for two of
    one row and seed.
    """
    cells = [cell for cell in papers.table(paper, number, counts=False).cells if cell.metric == "psnr"]
    runs: dict[str, dict[int, Kept]] = {}
    for one in read(f"ablations/{paper}-{number}", root):
        label = one.record.get("row")
        if str(one.record.get("table")) != str(number) or not isinstance(label, str):
            raise InputError(f"{one.path} is of no row of table {number}: keep it in the folder of its own table")
        _add(runs.setdefault(papers.row(paper, number, label).name, {}), one)
    rows = []
    for row in papers.rows(paper, number):
        at = [c for c in cells if row.stands_for(c.row, c.variant, c.scale)]
        seeds = dict(sorted(runs.get(row.name, {}).items()))
        rows.append(AblationRow(row, {c.dataset: float(c.printed) for c in at}, seeds))
    return Ablation(paper, number, tuple(rows))
