"""Printed tables beside ours, a verdict for each cell and a trend for each row of an ablation.

Counts are made now; bicubic's scores and those of trained networks are read from ``srlib.results``. Verdicts: "exact",
ours rounds to the printed digits; "within", inside the tolerance (a count: one unit of the last printed digit; PSNR
0.02 dB, SSIM 0.0006); "differs", neither; "not-run", with the reason in the note. PSNR and SSIM of networks that were
trained for less than the paper's steps get no verdict: they stand beside the printed ones as ``trained``, and the gap
to the table's baseline has a trend: "agrees", "opposite" or "undecided" (``results.trend``).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import pandas as pd

from srlib import complexity, papers, results
from srlib.errors import InputError
from srlib.models import create, default_config

VERDICTS = ("exact", "within", "differs", "not-run")
COUNTED = ("params", "flops", "macs", "acts")
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
TOLERANCE = {"psnr": "0.02", "ssim": "0.0006"}
CSV = "row variant scale dataset metric printed ours unit verdict note trained budget trend".split()
COLUMNS = "paper table row variant scale dataset metric printed ours unit verdict note own trained budget trend".split()
COLUMNS += "gap_printed gap gap_low gap_high runs anchor".split()


def table(paper: str, number: str, counts: bool = True) -> pd.DataFrame:
    """A printed table, one line a cell, in ``COLUMNS``.

    ``ours`` is in the printed ``unit``, NaN where there is none; without ``counts`` nothing is counted. ``own`` tells
    the paper's own networks from its peers. ``trained`` is the score of the network as trained here, ``budget`` how
    that was, ``runs`` the ids of its runs. In an ablation table ``gap_printed`` is the cell's PSNR above the baseline's
    in print, ``gap`` ours with a 95 % interval, over all images that the runs are scored on. Raises ``InputError`` for
    an unknown paper or table.
    """
    about, cells = papers.paper(paper), papers.printed(paper, number).rename(columns={"value": "printed"})
    evidence = _Evidence(about, number)
    lines = []
    for cell in cells.to_dict("records"):
        row = _built(papers.rows(paper, number), cell)
        known = dict.fromkeys(COLUMNS) | {"paper": paper, "table": number} | cell
        known |= {"own": about.own(number, cell["row"]), "anchor": _anchor(paper, number, cell)}
        if row and cell["metric"] in TOLERANCE:
            known |= evidence.of(row, cell)
        ours, note = known["ours"], "" if known["ours"] is None else f"trained as in print, {known['budget']}"
        if row and counts and cell["metric"] in COUNTED:
            ours, note = _counted(row, cell)
        elif cell["row"] == "Bicubic":
            ours, note = evidence.bicubic(cell)
        known["ours"] = ours
        known["note"] = "; ".join(filter(None, (cell["note"], note or _not_run(about, number, row, cell))))
        known["verdict"] = _verdict(row, cell, ours)
        lines.append(known)
    frame = pd.DataFrame(lines, columns=COLUMNS)
    numbers = ["ours", "trained", "gap_printed", "gap", "gap_low", "gap_high"]
    return frame.astype(dict.fromkeys(numbers, float)).fillna({"budget": "", "trend": "", "runs": ""})


def all_tables(counts: bool = True) -> list[pd.DataFrame]:
    """Every table of every paper, in order."""
    return [table(paper, number, counts) for paper in papers.all_papers() for number in papers.tables(paper)]


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV; ours with two digits more than printed, so that one can see which way it rounds."""
    shown = frame.assign(
        ours=[_digits(ours, printed) for ours, printed in zip(frame.ours, frame.printed, strict=True)],
        trained=[_digits(ours, printed) for ours, printed in zip(frame.trained, frame.printed, strict=True)],
    )
    return shown[CSV].to_csv(index=False)


def verdict(printed: str, ours: float | Decimal, tolerance: str | None = None) -> str:
    """Compare a printed text with our number, both in the printed unit: "exact", "within" or "differs".

    Ours is exact if it rounds to the printed digits; a tie may go up or to the even digit, as programs do both. The
    tolerance is one unit of the last printed digit where none is given.
    """
    ours, digit = Decimal(str(ours)), _last_digit(printed)
    if any(ours.quantize(digit, tie) == Decimal(printed) for tie in (ROUND_HALF_UP, ROUND_HALF_EVEN)):
        return "exact"
    return "within" if abs(ours - Decimal(printed)) <= Decimal(tolerance or digit) else "differs"


def scoreboard(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """How many cells have each verdict and each trend, one line a table, the paper's own networks and peers apart."""
    cells = pd.concat(frames).replace({"trend": {"": None}})
    keys = [cells.paper, cells.table, cells.own]
    found = pd.concat([pd.crosstab(keys, cells[name]) for name in ("verdict", "trend")], axis=1)
    found = found.reindex(columns=[*VERDICTS, "agrees", "opposite", "undecided"]).fillna(0).astype(int).reset_index()
    order = {place: i for i, place in enumerate(zip(cells.paper, cells.table, strict=True))}
    places = [(order[paper, number], not own) for paper, number, own in found.iloc[:, :3].itertuples(index=False)]
    return found.iloc[sorted(range(len(found)), key=lambda i: places[i])].reset_index(drop=True)


def ledger(paper: str | None = None) -> pd.DataFrame:
    """The ledger of a paper, or of all: one line a difference (``papers.ledger``), with the numbers, verdict and anchor
    of the cell where it explains one. Raises ``InputError`` for an entry that explains no cell."""
    frames = []
    for one in [paper] if paper else papers.all_papers():
        entries = papers.ledger(one).assign(paper=one, verdict="", anchor="")
        cells = pd.concat([table(one, number) for number in entries[entries.kind == "cell"].table.unique()] or [None])
        for name, mark in (("row", " | "), ("scale", " ")):  # an entry may explain several rows and scales
            entries = entries.assign(**{name: entries[name].str.split(mark, regex=False)}).explode(name)
        frames.append(pd.DataFrame([_joined(entry, cells) for entry in entries.to_dict("records")]))
    return pd.concat(frames, ignore_index=True)


def claims() -> pd.DataFrame:
    """What the papers say in words, with our evidence and a verdict."""
    return papers.claims()


def ablation(paper: str, number: str, dataset: str | None = None) -> pd.DataFrame:
    """One line a row of an ablation table: the printed PSNR (dB) on ``dataset``, by default the first in print, its gap
    to the baseline's, and ours with interval and trend. Raises ``InputError`` for a table without a baseline."""
    if number not in papers.paper(paper).baselines:
        raise InputError(f"table {number} of {paper} has no baseline: it is no ablation")
    cells = table(paper, number, counts=False).query("metric == 'psnr'")
    cells = cells[cells.dataset == (dataset or cells.dataset.iloc[0])]
    names = "row variant scale dataset printed gap_printed trained gap gap_low gap_high trend budget runs".split()
    return cells[names].reset_index(drop=True)


class _Evidence:
    """What trained networks and bicubic scored, as far as one table asks for it."""

    def __init__(self, about: papers.Paper, number: str) -> None:
        self.about, self.number, self.runs = about, number, results.runs()
        scores = results.scores().groupby(["run", "dataset", "scale", "protocol"])[["psnr", "ssim"]]
        self.means: dict[Any, dict[str, float]] = scores.mean().to_dict("index")
        cells = papers.printed(about.slug, number).query("metric == 'psnr'")
        built = papers.rows(about.slug, number)
        self.baseline = next((row for row in built if row.name == about.baselines.get(number)), None)
        self.printed = {
            cell["dataset"]: float(cell["value"])
            for cell in cells.to_dict("records")
            if self.baseline and _built(built, cell) is self.baseline
        }

    def bicubic(self, cell: dict[str, Any]) -> tuple[float | None, str]:
        """Bicubic's mean for a cell, and how it was scored."""
        found = self.means.get(("bicubic", cell["dataset"], cell["scale"], self.about.bicubic), {})
        return found.get(cell["metric"]), f"protocol {self.about.bicubic}" * bool(found)

    def of(self, row: papers.Row, cell: dict[str, Any]) -> dict[str, Any]:
        """What a row's runs say of a cell: trained, budget, runs; ours where they are the paper's whole training; the
        gap to the baseline and its trend."""
        mine = self._runs(row, cell["scale"])
        if mine.empty:
            return {}
        one = mine.iloc[0]
        budget = f"{one.steps:,} steps of batch {one.batch} on {one['data']}" + f", {len(mine)} seeds" * (len(mine) > 1)
        found = {"budget": budget, "runs": " ".join(mine.run)}
        protocol = papers.of(row.model).recipes[row.model].protocol_on(cell["dataset"])
        usual = papers.protocol(results.STANDARD)
        name = usual.name if protocol.same_arithmetic(usual) else protocol.name
        means = [self.means.get((run, cell["dataset"], cell["scale"], name)) for run in mine.run]
        if means and all(means):
            found["trained"] = sum(one[cell["metric"]] for one in means if one) / len(means)
            found |= {"ours": found["trained"]} if (mine.budget == "paper").all() else {}
        other = self._runs(self.baseline, cell["scale"]) if self.baseline else mine
        if cell["metric"] == "psnr" and cell["dataset"] in self.printed and row is not self.baseline and len(other):
            gap = results.gaps([*mine.run], [*other.run], scale=cell["scale"])
            printed = float(cell["printed"]) - self.printed[cell["dataset"]]
            found |= {"gap_printed": round(printed, 4), "gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
            found["trend"] = results.trend(found["gap_printed"], gap)
        return found

    def _runs(self, row: papers.Row, scale: int) -> pd.DataFrame:
        """The runs of a row: an ablation's own, of the longest training; else the weights that ship, or paper runs."""
        runs = self.runs[(self.runs.model == row.model) & (self.runs.scale.isna() | (self.runs.scale == scale))]
        if self.number in self.about.baselines:
            mine = runs[(runs.purpose == "ablation") & (runs.paper == self.about.slug)]
            mine = mine[(mine.table == self.number) & (mine["row"] == row.name)]
        else:
            usual = default_config(row.model)
            released = create(row.model, row.scale, usual).config == row.config if row.scale else usual == row.config
            mine = runs[(runs.purpose == "ships") | (runs.budget == "paper")] if released else runs.iloc[:0]
        return mine[mine.steps == mine.steps.max()]


def _built(rows: Iterable[papers.Row], cell: dict[str, Any]) -> papers.Row | None:
    """The row that stands for a printed cell's; of two, the one that names its variant is meant."""
    found = (row for row in rows if row.stands_for(cell["row"], cell["variant"], cell["scale"]))
    return max(found, key=lambda row: len(row.variant), default=None)


@cache
def _counts(model: str, config: Any) -> complexity.Counts:
    """What a network costs for an output of 1280x720."""
    return complexity.count(create(model, config.scale, config), complexity.lr_size(config.scale))


def _counted(row: papers.Row, cell: dict[str, Any]) -> tuple[float | None, str]:
    """A row's count in the printed unit, and a note."""
    unit, rule = UNITS.get(cell["unit"], 1), papers.of(row.model).macs
    if cell["metric"] in ("flops", "macs") and rule:
        size = complexity.lr_size(row.scale) if row.scale else (0, 0)
        ours, note = rule(row, cell, size, lambda: _counts(row.model, row.config).macs)
        return None if ours is None else ours / unit, note
    found = _counts(row.model, row.config)
    return {"params": found.params, "acts": found.acts}.get(cell["metric"], found.macs) / unit, ""


def _verdict(row: papers.Row | None, cell: dict[str, Any], ours: float | None) -> str:
    if ours is None:
        return "not-run"
    if row and cell["metric"] in TOLERANCE:  # SSIU's release rounds the means that it prints up
        digits = -int(_last_digit(cell["printed"]).as_tuple().exponent)
        ours = papers.recipe(row.model).protocol_on(cell["dataset"]).printed(ours, digits)
    return verdict(cell["printed"], ours, TOLERANCE.get(cell["metric"]))


def _not_run(about: papers.Paper, number: str, row: papers.Row | None, cell: dict[str, Any]) -> str:
    """Why a printed cell has no number of ours."""
    if number in about.not_run:
        return about.not_run[number]
    if cell["row"] == "Bicubic":
        return f"bicubic has no scores on {cell['dataset']}"
    if not about.own(number, cell["row"]):
        return "peer, as printed"
    if cell["metric"] in ("time", "gpu_memory", "runtime"):
        return f"needs the paper's {about.hardware} (the page has its own measurement)"
    if cell["metric"] in COUNTED:
        return "not counted in this call"
    train = papers.recipe(row.model if row else about.main).train
    return f"not run at the paper's budget ({train.steps:,} steps of batch {train.batch} on {about.train_data})"


def _joined(entry: dict[str, Any], cells: pd.DataFrame) -> dict[str, Any]:
    """An entry of the ledger with what the tables say of its cell."""
    if entry["kind"] != "cell":
        return entry
    names = cells.row.where(cells.variant == "", cells.row + " (" + cells.variant + ")")
    place = (names == entry["row"]) | (cells.row == entry["row"])
    for key in ("table", "metric", "dataset"):
        place &= cells[key] == entry[key]
    found = cells[place & (cells.scale == int(entry["scale"]))]
    if len(found) != 1:
        raise InputError(f"the ledger of {entry['paper']} explains {len(found)} cells by {entry['row']!r}; name one")
    cell = found.iloc[0]
    ours = _digits(cell.ours, cell.printed)
    shown = {"printed": f"{cell.printed} {cell.unit}".strip(), "ours": f"{ours} {cell.unit}".strip()}
    return entry | shown | {"verdict": cell.verdict, "anchor": cell.anchor}


def _anchor(paper: str, number: str, cell: dict[str, Any]) -> str:
    what = papers.slug(f"{cell['row']} {cell['variant']} x{cell['scale']} {cell['dataset']} {cell['metric']}")
    return f"{paper}-table-{number}-{what}"


def _last_digit(printed: str) -> Decimal:
    """What one unit of the last printed digit is worth: 0.01 for "76.70", 1 for "228"."""
    return Decimal(1).scaleb(int(Decimal(printed).as_tuple().exponent))


def _digits(ours: float, printed: str) -> str:
    """Ours with two digits more than printed; "" where there is none."""
    return "" if pd.isna(ours) else str(Decimal(repr(float(ours))).quantize(_last_digit(printed) / 100, ROUND_HALF_EVEN))
