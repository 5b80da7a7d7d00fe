"""Printed tables beside ours, a verdict for each cell and a trend for each row of an ablation.

Counts are made now; scores of bicubic and of trained networks come from ``srlib.results``. Verdicts: "exact", ours
rounds to the printed digits; "within", inside the tolerance (a count: one unit of the last printed digit; PSNR 0.02 dB,
SSIM 0.0006); "differs", neither; "not-run", with the reason in the note. Scores of networks that were trained for less
than the paper's steps get no verdict: they stand beside the printed ones as ``trained``, and a row's gap to the table's
baseline has a trend: "agrees", "opposite" or "undecided" (``results.trend``). All rows of a table are then taken from
trainings of one length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import cache, partial
from typing import Any

import pandas as pd
import torch

from srlib import complexity, papers, results
from srlib.errors import InputError
from srlib.models import create

VERDICTS = ("exact", "within", "differs", "not-run")
TRENDS = ("agrees", "opposite", "undecided")
COUNTED = ("params", "flops", "macs", "acts")
TOLERANCE = {"psnr": "0.02", "ssim": "0.0006"}
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
TOLD = "row variant scale dataset metric printed ours unit verdict note trained budget trend".split()
TOLD += "gap gap_low gap_high runs".split()  # by ``srlib table``
NUMBERS = "ours trained gap_printed gap gap_low gap_high".split()
COLUMNS = ["paper", "table", *TOLD, "own", "gap_printed", "name", "training", "steps", "ended"]
MENTION = re.compile(r"\{(\w+)(?:: (.+?))?\}")  # of a table, and of a row of it, in the evidence of a claim
Cell = dict[Any, Any]  # one line of a printed table


def table(paper: str, number: str, counts: bool = True, runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """A printed table, one line a cell, in ``COLUMNS``; without ``counts`` nothing is counted.

    ``ours`` is in the printed ``unit``, NaN where there is none. ``own`` tells the paper's own networks from its peers,
    ``name`` is the row's with its variant. ``trained`` is the score of the network as trained here, ``budget`` how,
    ``runs`` the ids of its runs; they are among the given lines of ``results.runs``, by default all. In an ablation
    ``gap_printed`` is the cell's PSNR above the baseline's in print, and ``gap`` ours with a 95 % interval
    (``results.gaps``, over all images, with the seeds of all recorded ablations of the paper). All its rows are of one
    ``training``, that which most of them had, of these the longest. Where one ``ended`` in a collapse, the row has the
    weights of before, as in SAFMN's Table 3, and its trend is undecided. Raises ``InputError`` for an unknown paper or
    table.
    """
    evidence, lines = _Evidence(paper, number, results.runs() if runs is None else runs), []
    for cell, row in evidence.cells:
        found = dict[str, Any](
            ours=None, why="", budget="", trend="", runs="", verdict="not-run", training="", ended=""
        )
        about, tolerance = evidence.paper, TOLERANCE.get(cell["metric"])
        if row and cell["metric"] in COUNTED and counts:
            found["ours"], found["why"] = _counted(row, cell)
        elif row and tolerance:
            found |= evidence.trained(row, cell)
        elif cell["row"] == "Bicubic" and (mean := evidence.mean("bicubic", cell, about.bicubic)):
            found |= {"ours": mean, "why": f"protocol {about.bicubic}"}
        if found["ours"] is not None:
            found["verdict"] = verdict(cell["printed"], found["ours"], tolerance)
        elif not found["why"]:
            found["why"] = _not_run(about, number, row, cell)
        found["note"] = "; ".join(filter(None, (cell["note"], found["why"])))
        found |= {"own": about.own(number, cell["row"]), "name": row.name if row else cell["row"]}
        lines.append({"paper": paper, "table": number} | cell | found)
    return pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))


def all_tables() -> list[pd.DataFrame]:
    """Every table of every paper, in order."""
    return [table(paper, number) for paper in papers.all_papers() for number in papers.tables(paper)]


def verdict(printed: str, ours: float, tolerance: str | None = None) -> str:
    """Compare a printed text with our number, both in the printed unit: "exact", "within" or "differs".

    Ours is exact if it rounds to the printed digits; a tie may go up or to the even digit, as programs do both. The
    tolerance is one unit of the last printed digit where none is given.
    """
    number, digit = Decimal(str(ours)), Decimal(1).scaleb(-papers.decimals(printed))
    if any(number.quantize(digit, tie) == Decimal(printed) for tie in (ROUND_HALF_UP, ROUND_HALF_EVEN)):
        return "exact"
    return "within" if abs(number - Decimal(printed)) <= Decimal(tolerance or digit) else "differs"


def ledger(paper: str | None = None) -> pd.DataFrame:
    """The ledger of a paper, or of all: one line a difference (``papers.ledger``), with the numbers and verdict of the
    cell where it explains one. Raises ``InputError`` for an entry that explains no cell."""
    lines = []
    for slug in [paper] if paper else papers.all_papers():
        entries = papers.ledger(slug).assign(paper=slug, verdict="")
        for name, mark in (("row", " | "), ("scale", " ")):  # an entry may explain several rows and scales
            entries = entries.assign(**{name: entries[name].str.split(mark, regex=False)}).explode(name)
        cells = {number: table(slug, number) for number in entries[entries.kind == "cell"].table.unique()}
        for entry in entries.to_dict("records"):
            lines.append(entry | (_explained(entry, cells[entry["table"]]) if entry["kind"] == "cell" else {}))
    return pd.DataFrame(lines)


def ablation(paper: str, number: str, dataset: str | None = None, *, lengths: bool = False) -> pd.DataFrame:
    """One line a row of an ablation table: the printed PSNR (dB) on ``dataset``, by default the first in print, its gap
    to the baseline's, and ours with interval and trend, and as text. With ``lengths`` rows that are also recorded after
    other trainings than the table's have a line for each of these, too, at the end, the longest first. Raises
    ``InputError`` for a table without PSNR."""
    frames, runs = [table(paper, number, counts=False)], results.runs()
    parts = [part for _, part in _of_rows(paper, number, runs).groupby(results.ALIKE)] if lengths else []
    for part in reversed(parts):
        frame = table(paper, number, False, runs[runs.run.isin(part.run)])
        if frame.training.max() not in [one.training.max() for one in frames]:
            frames.append(frame[frame.gap.notna()])
    cells = pd.concat(frames).query("metric == 'psnr'")
    if cells.empty:
        raise InputError(f"table {number} of {paper} has no PSNR: give the number of an ablation")
    cells = cells[cells.dataset == (dataset or cells.dataset.iloc[0])].reset_index(drop=True)
    found = zip(cells.gap, cells.gap_low, cells.gap_high, strict=True)
    cells["ours"] = ["" if pd.isna(gap) else results.Gap(gap, low, high).text for gap, low, high in found]
    return cells


def own_table(paper: str, name: str) -> pd.DataFrame:
    """A table of our own, whose rows no paper prints: one line a trained row, with the ids of its ``runs``, its
    ``training``, how it ``ended`` where it collapsed, its ``psnr`` (dB) at x4 on the held-out photographs, a mean over
    seeds, and its ``gap`` to the baseline's (``results.gaps``, over all images) as text."""
    rows, lines = papers.rows(paper, name), []
    (baseline,) = (row.name for row in rows if row.baseline)
    runs = _most(_of_rows(paper, name, results.runs()), baseline)
    parts = {row.name: runs[runs["row"] == row.name] for row in rows}
    means = results.means(runs.run, results.SETS[:1], 4).set_index("run").psnr
    for row, mine in parts.items():
        if mine.empty:
            continue
        base = parts[baseline] if row != baseline else runs[:0]
        gap = results.gaps([*mine.run], [*base.run], like=_ablations(paper)).text if len(base) else ""
        lines.append({"row": row, "psnr": means[mine.run].mean(), "gap": gap} | _trained(mine))
    return pd.DataFrame(lines, columns=["row", "psnr", "gap", "runs", "training", "ended"])


def summary(frame: pd.DataFrame) -> str:
    """What the trained rows of an ablation (with lengths) say, as a list in Markdown: after each training which agree
    with print, which are opposite, undecided or collapsed; and which have another trend after a longer one."""
    rows = frame[frame.ours != ""].sort_values("steps", ascending=False, kind="stable")
    told = rows.trend.where(rows.ended == "", "collapsed")
    rows, lines = rows.assign(told=told, code="`" + rows["name"] + "`"), []
    for training, part in rows.groupby("training", sort=False):
        words = [f"{word}: {len(names)} ({', '.join(names)})" for word, names in part.groupby("told").code]
        lines.append(f"- **{training}:** {'; '.join(words)}.")
    several = rows[rows.code.duplicated(keep=False)].groupby("code", sort=False).told
    changed = [f"{code} from {told.iloc[-1]} to {told.iloc[0]}" for code, told in several if told.nunique() > 1]
    if len(several):
        lines.append(
            f"- **With the longer training** {len(changed)} of {len(several)} rows changed: "
            f"{'; '.join(changed) or 'none'}."
        )
    return "\n".join(lines) or "No row beside the baseline is trained yet."


def claims() -> pd.DataFrame:
    """What all papers say in words (``papers.claims``), with what is recorded now: in the evidence, "{3: CCM -> None}"
    stands for our gap in PSNR of that row to the baseline of Table 3, which may be a table of our own, and "{3}" for
    the training of its rows; a row that had another one says which."""

    @cache
    def trained(paper: str, number: str) -> pd.DataFrame:
        if number in papers.tables(paper):
            return ablation(paper, number, lengths=True)
        return own_table(paper, number).rename(columns={"row": "name", "gap": "ours"})

    def told(paper: str, mention: re.Match[str]) -> str:
        (number, row), frame = mention.groups(), trained(paper, mention[1])
        usual = next(filter(None, frame.training), "")  # the rows' own comes first
        if row is None:
            return f"after {usual}" if usual else "no row trained yet"
        lines = frame[(frame["name"] == papers.row(paper, number, row).name) & (frame.ours != "")]
        if lines.empty:
            return "untrained"
        line = lines.iloc[0]
        gap = line.ended or f"{line.ours} dB"
        return gap if line.training == usual else f"{gap}, after {line.training}"

    found = papers.claims()
    texts = zip(found.paper, found.evidence, strict=True)
    return found.assign(evidence=[MENTION.sub(partial(told, paper), text) for paper, text in texts])


class _Evidence:
    """The cells of a table with the rows that stand for them, and what trained networks and bicubic scored there."""

    def __init__(self, paper: str, number: str, runs: pd.DataFrame) -> None:
        self.paper, self.number = papers.paper(paper), number
        scores = results.scores().groupby(["run", "dataset", "scale", "protocol"])[["psnr", "ssim"]]
        self.means: dict[Any, Any] = scores.mean().to_dict("index")
        rows, cells = papers.rows(paper, number), papers.printed(paper, number).to_dict("records")
        self.cells = [(cell, _built(rows, cell)) for cell in cells]
        self.baseline = next((row for row in rows if row.baseline), None)
        base = [cell for cell, row in self.cells if row and row.baseline and cell["metric"] == "psnr"]
        self.printed = {(cell["dataset"], cell["scale"]): float(cell["printed"]) for cell in base}
        self.like, self.runs = _ablations(paper), runs
        if self.baseline:
            self.runs = _most(_of_rows(paper, number, runs), self.baseline.name)

    def mean(self, run: str, cell: Cell, protocol: str) -> float | None:
        """A run's mean score for a cell; None where it has none."""
        return self.means.get((run, cell["dataset"], cell["scale"], protocol), {}).get(cell["metric"])

    def trained(self, row: papers.Row, cell: Cell) -> dict[str, Any]:
        """What a row's runs say of a cell: their mean, ours if they are the whole training, and the gap's trend."""
        found, mine = dict[str, Any](), self.runs_of(row)
        base = self.printed.get((cell["dataset"], cell["scale"]))
        if self.baseline and base and cell["metric"] == "psnr" and not row.baseline:
            found["gap_printed"], other = round(float(cell["printed"]) - base, 4), self.runs_of(self.baseline)
            if len(mine) and len(other):
                with suppress(InputError):  # they share no image at this scale
                    gap = results.gaps([*mine.run], [*other.run], cell["scale"], self.like)
                    found |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
                    whole = pd.concat([mine, other]).collapsed_at.isna().all()
                    found["trend"] = results.trend(found["gap_printed"], gap) if whole else "undecided"
        protocol, usual = papers.recipe(row.model).protocol_on(cell["dataset"]), papers.protocol(results.STANDARD)
        name = usual.name if protocol.same_arithmetic(usual) else protocol.name
        means = [mean for run in mine.run if (mean := self.mean(run, cell, name))]
        if means and len(means) == len(mine):
            found["trained"] = sum(means) / len(means)
        if "trained" in found or (self.baseline and len(mine)):
            found |= _trained(mine)
            seeds = f"{len(mine)} seeds" if len(mine) > 1 else ""
            found["budget"] = ", ".join(filter(None, (found["training"], seeds, found["ended"])))
        if "trained" in found and (mine.budget == "paper").all():
            ours = protocol.printed(found["trained"], papers.decimals(cell["printed"]))  # SSIU's release rounds up
            found |= {"ours": ours, "why": f"{found['budget']}, protocol {name}"}
        return found

    def runs_of(self, row: papers.Row) -> pd.DataFrame:
        """The runs of a row: an ablation's own; else the paper's whole training, or, without one, what ships."""
        if self.baseline:
            return self.runs[self.runs["row"] == row.name]
        runs = self.runs[(self.runs.model == row.model) & (self.runs.purpose != "ablation")]
        runs = runs[(runs.scale.fillna(0) == (row.scale or 0)) & row.released]
        whole = runs[runs.budget == "paper"]
        return whole if len(whole) else runs[runs.purpose == "ships"]


def _ablations(paper: str) -> pd.DataFrame:
    """All recorded runs of a paper's ablations, which tell how far seeds scatter."""
    return results.runs().query("purpose == 'ablation' and paper == @paper")


def _of_rows(paper: str, number: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs of a table's rows, each under the row's name. A run that is recorded for a row of another table
    is taken, too, where it is the same network, trained alike; one that is recorded for both counts once."""
    mine = runs[(runs.purpose == "ablation") & (runs.paper == paper)]
    scales = mine.scale.astype(object).where(mine.scale.notna(), None)
    names = {row.key: row.name for row in papers.rows(paper, number)}
    keys = [papers.row(paper, *at).key for at in zip(mine.table, mine["row"], scales, strict=True)]
    mine = mine.assign(row=pd.Series(keys, mine.index, object).map(names)).dropna(subset="row")
    return mine.drop_duplicates(["row", "seed", *results.ALIKE])


def _most(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """An ablation's runs of one training: that in which most rows stand beside the baseline, of these the longest."""

    def rank(part: pd.DataFrame) -> tuple[int, int, int]:
        rows = {*part["row"]}
        return (len(rows) - 1) * (baseline in rows), len(rows), part.steps.iloc[0]

    return max((part for _, part in runs.groupby(results.ALIKE)), key=rank, default=runs)


def _trained(runs: pd.DataFrame) -> dict[str, Any]:
    """What runs that were trained alike had, at which steps they ended in a collapse ("": none did), and their ids."""
    one, steps = runs.iloc[0], ", ".join(f"{step:,}" for step in runs.collapsed_at.dropna())
    half = " in bf16" * (one.precision == "bf16-mixed")
    training = f"{one.steps:,} steps of batch {one.batch}, patch {one.patch}, on {one['data']}{half}"
    ended = f"collapsed at step {steps}" if steps else ""
    return {"training": training, "steps": one.steps, "ended": ended, "runs": " ".join(runs.run)}


def _built(rows: Iterable[papers.Row], cell: Cell) -> papers.Row | None:
    """The row that stands for a printed cell's; of two, the one that names its variant is meant."""
    found = (row for row in rows if row.stands_for(cell["row"], cell["variant"], cell["scale"]))
    return max(found, key=lambda row: len(row.variant), default=None)


@cache
def _counts(model: str, config: Any) -> complexity.Counts:
    """What a network costs for an output of 1280x720; one for every scale for an LR image of 48x48 pixels."""
    scale = getattr(config, "scale", None)
    with torch.device("meta"):  # without memory, and at once
        network = create(model, scale, config)
    return complexity.count(network, complexity.lr_size(scale) if scale else (48, 48))


def _counted(row: papers.Row, cell: Cell) -> tuple[float | None, str]:
    """A row's count in the printed unit, and a note."""
    unit, rule = UNITS.get(cell["unit"], 1), papers.of(row.model).macs
    if rule and cell["metric"] in ("flops", "macs"):
        size = complexity.lr_size(row.scale) if row.scale else (0, 0)
        ours, note = rule(row, cell, size, lambda: _counts(row.model, row.config).macs)
        return None if ours is None else ours / unit, note
    kind = "macs" if cell["metric"] == "flops" else cell["metric"]
    return getattr(_counts(row.model, row.config), kind) / unit, ""


def _not_run(about: papers.Paper, number: str, row: papers.Row | None, cell: Cell) -> str:
    """Why a printed cell has no number of ours."""
    if number in about.not_run:
        return about.not_run[number]
    if cell["row"] == "Bicubic":
        return f"bicubic has no scores on {cell['dataset']}"
    if not about.own(number, cell["row"]):
        return "peer, as printed"
    if cell["metric"] in ("time", "gpu_memory", "runtime"):
        return "needs the paper's GPU (times and memory of ours are on the page Speed)"
    if cell["metric"] in COUNTED:
        return "not counted in this call"
    train = papers.recipe(row.model if row else about.main).train
    return f"not run at the paper's budget ({train.steps:,} steps of batch {train.batch})"


def _explained(entry: Cell, cells: pd.DataFrame) -> dict[str, str]:
    """What the table's cells say of the one that an entry of the ledger explains."""
    names, keys = cells.row + " (" + cells.variant + ")", ["scale", "metric", "dataset"]
    found = cells[cells.row.eq(entry["row"]) | names.eq(entry["row"])]
    found = found[found[keys].astype(str).eq([entry[key] for key in keys]).all(axis=1)]
    if len(found) != 1:
        raise InputError(f"the ledger of {entry['paper']} explains {len(found)} cells by {entry['row']!r}; name one")
    cell = found.iloc[0]
    ours = "" if pd.isna(cell.ours) else f"{cell.ours:.{papers.decimals(cell.printed) + 2}f} {cell.unit}".strip()
    return {"printed": f"{cell.printed} {cell.unit}".strip(), "ours": ours, "verdict": cell.verdict}
