"""Printed tables beside ours, a verdict for each cell and a trend for each row of an ablation.

Counts are made now; scores of bicubic and of trained networks come from ``srlib.results``. Verdicts: "exact", ours
rounds to the printed digits; "within", inside the tolerance (a count: one unit of the last printed digit; PSNR 0.02 dB,
SSIM 0.0006); "differs", neither; "not-run", with the reason in the note. Scores of networks that were trained for less
than the paper's steps get no verdict: they stand beside the printed ones as ``trained``, and a row's gap to the table's
baseline has a trend: "agrees", "opposite" or "undecided" (``results.trend``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import pandas as pd

from srlib import complexity, papers, results
from srlib.errors import InputError
from srlib.models import create, default_config

VERDICTS = ("exact", "within", "differs", "not-run")
TRENDS = ("agrees", "opposite", "undecided")
COUNTED = ("params", "flops", "macs", "acts")
TOLERANCE = {"psnr": "0.02", "ssim": "0.0006"}
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
claims = papers.claims
Cell = dict[Any, Any]  # one line of a printed table
CSV = "row variant scale dataset metric printed ours unit verdict note trained budget trend".split()
NUMBERS = "ours trained gap_printed gap gap_low gap_high".split()
COLUMNS = ["paper", "table", *CSV, "own", *NUMBERS[2:], "runs", "anchor"]


def table(paper: str, number: str, counts: bool = True) -> pd.DataFrame:
    """A printed table, one line a cell, in ``COLUMNS``; without ``counts`` nothing is counted.

    ``ours`` is in the printed ``unit``, NaN where there is none. ``own`` tells the paper's own networks from its peers.
    ``trained`` is the score of the network as trained here, ``budget`` how, ``runs`` the ids of its runs. In an
    ablation ``gap_printed`` is the cell's PSNR above the baseline's in print, and ``gap`` ours with a 95 % interval,
    over all images that the runs are scored on. Raises ``InputError`` for an unknown paper or table.
    """
    evidence, rows = _Evidence(paper, number), papers.rows(paper, number)
    lines = []
    for cell in papers.printed(paper, number).to_dict("records"):
        row, found = _built(rows, cell), dict[str, Any](ours=None, why="", budget="", trend="", runs="")
        if row and cell["metric"] in COUNTED and counts:
            found["ours"], found["why"] = _counted(row, cell)
        elif row and cell["metric"] in TOLERANCE:
            found |= evidence.trained(row, cell)
        elif cell["row"] == "Bicubic":
            found |= evidence.bicubic(cell)
        found["verdict"] = _verdict(row, cell, found["ours"])
        if found["verdict"] == "not-run":
            found["why"] = found["why"] or _not_run(evidence.paper, number, row, cell)
        found["note"] = "; ".join(filter(None, (cell["note"], found["why"])))
        found |= {"own": evidence.paper.own(number, cell["row"]), "anchor": _anchor(paper, number, cell)}
        lines.append({"paper": paper, "table": number} | cell | found)
    return pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))


def all_tables(counts: bool = True) -> list[pd.DataFrame]:
    """Every table of every paper, in order."""
    return [table(paper, number, counts) for paper in papers.all_papers() for number in papers.tables(paper)]


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV; ours with two digits more than printed, so that one can see which way it rounds."""
    digits = {name: list(map(_digits, frame[name], frame.printed)) for name in ("ours", "trained")}
    return frame.assign(**digits)[CSV].to_csv(index=False)


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
    """How many cells have each verdict and each trend, one line a table: own networks, then peers."""
    cells = pd.concat(frames, ignore_index=True).sort_values("own", ascending=False, kind="stable")
    marks = {mark: cells.verdict.eq(mark) | cells.trend.eq(mark) for mark in (*VERDICTS, *TRENDS)}
    keys = ["paper", "table", "own"]
    return cells[keys].assign(**marks).groupby(keys, sort=False).sum().reset_index()


def ledger(paper: str | None = None) -> pd.DataFrame:
    """The ledger of a paper, or of all: one line a difference (``papers.ledger``), with the numbers, verdict and anchor
    of the cell where it explains one. Raises ``InputError`` for an entry that explains no cell."""
    lines = []
    for slug in [paper] if paper else papers.all_papers():
        entries = papers.ledger(slug).assign(paper=slug, verdict="", anchor="")
        for name, mark in (("row", " | "), ("scale", " ")):  # an entry may explain several rows and scales
            entries = entries.assign(**{name: entries[name].str.split(mark, regex=False)}).explode(name)
        cells = {number: table(slug, number) for number in entries[entries.kind == "cell"].table.unique()}
        lines += [_joined(entry, cells) for entry in entries.to_dict("records")]
    return pd.DataFrame(lines)


def ablation(paper: str, number: str, dataset: str | None = None) -> pd.DataFrame:
    """One line a row of an ablation table: the printed PSNR (dB) on ``dataset``, by default the first in print, its gap
    to the baseline's, and ours with interval and trend. Raises ``InputError`` for a table without a baseline."""
    if not any(row.baseline for row in papers.rows(paper, number)):
        raise InputError(f"table {number} of {paper} has no baseline: it is no ablation")
    cells = table(paper, number, counts=False).query("metric == 'psnr'")
    names = "row variant scale dataset printed gap_printed gap gap_low gap_high trend trained budget runs".split()
    return cells[cells.dataset == (dataset or cells.dataset.iloc[0])][names].reset_index(drop=True)


class _Evidence:
    """What trained networks and bicubic scored, as far as one table asks for it."""

    def __init__(self, paper: str, number: str) -> None:
        self.paper, self.number, self.runs = papers.paper(paper), number, results.runs()
        scores = results.scores().groupby(["run", "dataset", "scale", "protocol"])[["psnr", "ssim"]]
        self.means: dict[Any, dict[Any, float]] = scores.mean().to_dict("index")
        rows, cells = papers.rows(paper, number), papers.printed(paper, number).query("metric == 'psnr'")
        self.baseline = next((row for row in rows if row.baseline), None)
        named = ((cell, _built(rows, cell)) for cell in cells.to_dict("records"))
        base = [cell for cell, row in named if row and row.baseline]
        self.printed = {(cell["dataset"], cell["scale"]): Decimal(cell["printed"]) for cell in base}

    def bicubic(self, cell: Cell) -> dict[str, Any]:
        """Bicubic's mean for a cell, and how it was scored."""
        protocol = self.paper.bicubic
        found = self.means.get(("bicubic", cell["dataset"], cell["scale"], protocol))
        return {"ours": found[cell["metric"]], "why": f"protocol {protocol}"} if found else {}

    def trained(self, row: papers.Row, cell: Cell) -> dict[str, Any]:
        """What a row's runs say of a cell: their mean, which is ours where they are the paper's whole training, and the
        gap to the baseline with its trend."""
        found: dict[str, Any] = {}
        mine, other = self._runs(row), self._runs(self.baseline) if self.baseline else None
        base = self.printed.get((cell["dataset"], cell["scale"]))
        if other is not None and not row.baseline and cell["metric"] == "psnr" and base is not None:
            found["gap_printed"] = float(Decimal(cell["printed"]) - base)
            steps = max({*mine.steps} & {*other.steps}, default=None)  # a gap is between trainings of one length
            mine, other = mine[mine.steps == (steps or mine.steps.max())], other[other.steps == steps]
            if steps and cell["scale"] in results.SCALES:
                gap = results.gaps([*mine.run], [*other.run], scale=cell["scale"])
                found |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
                found["trend"] = results.trend(found["gap_printed"], gap)
        protocol, usual = papers.recipe(row.model).protocol_on(cell["dataset"]), papers.protocol(results.STANDARD)
        name = usual.name if protocol.same_arithmetic(usual) else protocol.name
        means = [self.means.get((run, cell["dataset"], cell["scale"], name), {}) for run in mine.run]
        if means and all(means):
            found["trained"] = sum(mean[cell["metric"]] for mean in means) / len(means)
        if "trained" in found or "gap" in found:
            one, seeds = mine.iloc[0], f", {len(mine)} seeds" * (len(mine) > 1)
            found["budget"] = f"{one.steps:,} steps of batch {one.batch} on {one['data']}{seeds}"
            found["runs"] = " ".join(mine.run)
        if "trained" in found and (mine.budget == "paper").all():
            found |= {"ours": found["trained"], "why": f"{found['budget']}, protocol {name}"}
        return found

    def _runs(self, row: papers.Row) -> pd.DataFrame:
        """The runs of a row: an ablation's own; else those of weights that ship, or of the paper's whole training."""
        runs = self.runs[self.runs.model == row.model]
        if self.baseline:
            mine = (runs.purpose == "ablation") & (runs.paper == self.paper.slug) & (runs.table == self.number)
            return runs[mine & (runs["row"] == row.name)]
        usual = default_config(row.model)
        released = row.config == (usual if row.scale is None else replace(usual, scale=row.scale))
        at_scale = runs.scale.isna() if row.scale is None else runs.scale == row.scale
        return runs[at_scale & ((runs.purpose == "ships") | (runs.budget == "paper")) & released]


def _built(rows: Iterable[papers.Row], cell: Cell) -> papers.Row | None:
    """The row that stands for a printed cell's; of two, the one that names its variant is meant."""
    found = (row for row in rows if row.stands_for(cell["row"], cell["variant"], cell["scale"]))
    return max(found, key=lambda row: len(row.variant), default=None)


@cache
def _counts(model: str, config: Any) -> complexity.Counts:
    """What a network costs for an output of 1280x720."""
    return complexity.count(create(model, config.scale, config), complexity.lr_size(config.scale))


def _counted(row: papers.Row, cell: Cell) -> tuple[float | None, str]:
    """A row's count in the printed unit, and a note."""
    unit, rule = UNITS.get(cell["unit"], 1), papers.of(row.model).macs
    if rule and cell["metric"] in ("flops", "macs"):
        size = complexity.lr_size(row.scale) if row.scale else (0, 0)
        ours, note = rule(row, cell, size, lambda: _counts(row.model, row.config).macs)
        return None if ours is None else ours / unit, note
    found = _counts(row.model, row.config)
    return {"params": found.params, "acts": found.acts}.get(cell["metric"], found.macs) / unit, ""


def _verdict(row: papers.Row | None, cell: Cell, ours: float | None) -> str:
    if ours is not None and row and cell["metric"] in TOLERANCE:  # SSIU's release rounds the means that it prints up
        digits = -int(_last_digit(cell["printed"]).as_tuple().exponent)
        ours = papers.recipe(row.model).protocol_on(cell["dataset"]).printed(ours, digits)
    return "not-run" if ours is None else verdict(cell["printed"], ours, TOLERANCE.get(cell["metric"]))


def _not_run(about: papers.Paper, number: str, row: papers.Row | None, cell: Cell) -> str:
    """Why a printed cell has no number of ours."""
    if number in about.not_run:
        return about.not_run[number]
    if cell["row"] == "Bicubic":
        return f"bicubic has no scores on {cell['dataset']}"
    if not about.own(number, cell["row"]):
        return "peer, as printed"
    if cell["metric"] in ("time", "gpu_memory", "runtime"):
        return "needs the paper's GPU (the page has its own measurement)"
    if cell["metric"] in COUNTED:
        return "not counted in this call"
    train = papers.recipe(row.model if row else about.main).train
    return f"not run at the paper's budget ({train.steps:,} steps of batch {train.batch})"


def _joined(entry: Cell, cells: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """An entry of the ledger with what the tables say of its cell."""
    if entry["kind"] != "cell":
        return entry
    found = cells[entry["table"]].query(f"scale == {entry['scale']}")
    names = found.row + (" (" + found.variant + ")").where(found.variant != "", "")
    found = found[((names == entry["row"]) | (found.row == entry["row"])) & (found.metric == entry["metric"])]
    found = found[found.dataset == entry["dataset"]]
    if len(found) != 1:
        raise InputError(f"the ledger of {entry['paper']} explains {len(found)} cells by {entry['row']!r}; name one")
    cell = found.iloc[0]
    shown = {"printed": cell.printed, "ours": _digits(cell.ours, cell.printed)}
    numbers = {name: f"{text} {cell.unit}".strip() for name, text in shown.items()}
    return entry | numbers | {"verdict": cell.verdict, "anchor": cell.anchor}


def _anchor(paper: str, number: str, cell: Cell) -> str:
    what = papers.slug(f"{cell['row']} {cell['variant']} x{cell['scale']} {cell['dataset']} {cell['metric']}")
    return f"{paper}-table-{number}-{what}"


def _last_digit(printed: str) -> Decimal:
    """What one unit of the last printed digit is worth: 0.01 for "76.70", 1 for "228"."""
    return Decimal(1).scaleb(int(Decimal(printed).as_tuple().exponent))


def _digits(ours: float, printed: str) -> str:
    """Ours with two digits more than printed; "" where there is none."""
    return (
        "" if pd.isna(ours) else str(Decimal(repr(float(ours))).quantize(_last_digit(printed) / 100, ROUND_HALF_EVEN))
    )
