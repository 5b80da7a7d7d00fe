"""What the papers claim: every printed table as data, beside what this library computes, with a verdict for each cell.

``table("safmn", 3)`` gives Table 3 of SAFMN's paper. A table's printed cells lie in a CSV file in the folder data; the
paper's module (``srlib.papers.safmn``, ``srlib.papers.seemore`` and so on) says which configuration each printed row
is, and its ledger explains each count that doesn't come out as printed. Importing this package imports no torch: names,
labels and slugs are cheap.

Verdicts: "exact", ours rounds to the printed digits; "within", inside the tolerance (a count: one unit of the last
printed digit; PSNR 0.02 dB, SSIM 0.0006); "differs", neither; "not-run", with the reason in the note.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlib.errors import InputError

if TYPE_CHECKING:
    from srlib.complexity import Counts
    from srlib.metrics import Protocol

PAPERS = ("safmn", "seemore", "ssiu", "moeisr")
VERDICTS = ("exact", "within", "differs", "not-run")
STATIC = ("params", "flops", "macs", "acts")
SCALING = {"": Decimal(1), "K": Decimal("1E3"), "M": Decimal("1E6"), "G": Decimal("1E9"), "T": Decimal("1E12")}
TOLERANCE = {"psnr": Decimal("0.02"), "ssim": Decimal("0.0006")}
KEPT = ("trained", "equal", "precision", "ablations")  # folders of the book's own runs, which fill no cell
LARGEST = {"psnr": 200, "ssim": 1}  # the largest means that images can have; a record with another is damaged

_DATA = Path(__file__).parent / "data"
_COLUMNS = (  # of the CSV files there: a table's cells, a paper's settings, the sizes of a benchmark's images
    ("row", "variant", "scale", "dataset", "metric", "value", "unit", "note"),
    ("key", "value", "source"),
    ("image", "width", "height"),
)
_NUMBERS = {"scale": r"[1-9]\d?", "width": r"[1-9]\d*", "height": r"[1-9]\d*"}
_METRICS = (*STATIC, *TOLERANCE, "niqe", "brisque", "gpu_memory", "runtime", "time")
_UNITS = (*SCALING, "dB", "%", "MB", "ms", "us")
_Counted = dict[tuple[str, Any], "Counts"]  # by model and configuration
_Score = tuple[dict[str, float], "Protocol | None", str, str]  # means, how they are printed, a note, the record's file


@dataclass(frozen=True)
class Row:
    """A printed row that this library can build.

    ``label``: as printed. ``config``: the network's configuration, of ``model``. ``variant``: the printed row's further
    keys, or the first of them, where the label alone doesn't name it, else "". ``train``: the settings of the training
    that the row changes.
    """

    label: str
    config: Any
    model: str
    variant: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, with the variant in brackets where there is one: "SeemoRe-T (kernel=3)"."""
        return _name(self.label, self.variant)

    @property
    def slug(self) -> str:
        """The name as part of a file's name or a test's."""
        return slug(self.name)

    @property
    def scale(self) -> int | None:
        """The network's scale; None for a network that serves all the scales that its row is printed at."""
        return getattr(self.config, "scale", None)

    def stands_for(self, label: str, variant: str, scale: int) -> bool:
        """Whether a printed row, with all its further keys, at this scale is this one."""
        keys = variant == self.variant or not self.variant or variant.startswith(f"{self.variant};")
        return label == self.label and keys and self.scale in (None, scale)


@dataclass(frozen=True)
class Cell:
    """One printed number and ours.

    ``row`` and ``variant`` are the printed row, ``printed`` the printed text, ``ours`` our number in the printed
    ``unit`` (None where there is none), ``verdict`` one of ``VERDICTS``, ``note`` what has to be said about it.
    ``record`` names the cell in the table's record, no other cell so: "safmn-table-3#baseline-group-baseline-x4-flops".
    ``source`` is the file of the score record that ours is read from, below the folder of records; "" for a count.
    """

    row: str
    variant: str
    scale: int
    dataset: str
    metric: str
    printed: str
    ours: float | None
    unit: str
    verdict: str
    note: str
    record: str = ""
    source: str = ""

    @property
    def ours_text(self) -> str:
        """Ours with two digits more than printed, so that one can see which way it rounds; "" where there is none."""
        if self.ours is None:
            return ""
        return str(Decimal(repr(self.ours)).quantize(last_digit(self.printed) / 100, ROUND_HALF_EVEN))


def record_name(paper: str, number: int | str) -> str:
    """The name of a printed table's record: "safmn-table-3"."""
    return f"{paper}-table-{number}"


@dataclass(frozen=True)
class Table:
    """A printed table: ``cells`` in the paper's order."""

    paper: str
    number: int | str
    cells: tuple[Cell, ...]

    @property
    def record(self) -> str:
        """The name of the table's record: "safmn-table-3"."""
        return record_name(self.paper, self.number)

    @property
    def configs(self) -> tuple[Row, ...]:
        """The rows that this library builds, with their configurations: ``rows``."""
        return rows(self.paper, self.number)

    def cell(self, row: str, metric: str, scale: int | None = None, dataset: str = "") -> Cell:
        """The one cell with this row (its label, or the name with its variant in brackets), metric, scale (None:
        whichever there is) and data set. Raises ``InputError``."""
        found = [
            c for c in self.cells
            if row in (c.row, _name(c.row, c.variant)) and (c.metric, c.dataset) == (metric, dataset)
            and scale in (None, c.scale)
        ]  # fmt: skip
        if len(found) != 1:
            raise InputError(
                f"table {self.number} of {self.paper} has {len(found)} cells for row {row!r}, metric {metric!r}, "
                f"scale {scale}, data set {dataset!r}; give the printed label and, where needed, variant and scale"
            )
        return found[0]

    def csv(self) -> str:
        """The table as CSV, one line a printed cell; the columns are the fields of ``Cell`` up to ``note``."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(Cell)]
        writer.writerow(names[: names.index("note") + 1])
        for c in self.cells:
            writer.writerow(
                (c.row, c.variant, c.scale, c.dataset, c.metric, c.printed, c.ours_text, c.unit, c.verdict, c.note)
            )
        return text.getvalue()

    def described(self) -> dict[str, Any]:
        """All that the book shows of the table, as JSON data: its ``networks`` and its ``cells``.

        A cell has the fields of ``Cell``, and ``how`` ours came about: "counted", with its ``network`` (a place in the
        list of them), "scored", with the ``source``, or "not run". A network has its ``row``, ``model`` and ``config``,
        and, where it is counted for an output of 1280x720, ``lr``, the LR image's height and width.
        """
        networks: list[dict[str, Any]] = []
        cells = []
        for cell in self.cells:
            how: dict[str, Any] = {"how": "not run" if cell.ours is None else "scored" if cell.source else "counted"}
            found = _built(self.configs, cell.row, cell.variant, cell.scale) if how["how"] == "counted" else None
            if found:
                network = _described(found)
                if network not in networks:
                    networks.append(network)
                how["network"] = networks.index(network)
            cells.append(asdict(cell) | {"ours_text": cell.ours_text} | how)
        known = {"record": self.record, "paper": self.paper, "number": self.number, "counts": self.counts()}
        return known | {"networks": networks, "cells": cells}

    def counts(self) -> dict[str, int]:
        """How many cells have each verdict, in the order of ``VERDICTS``."""
        found = Counter(cell.verdict for cell in self.cells)
        return {name: found[name] for name in VERDICTS}


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: something printed that isn't what comes out, or that the paper leaves open.

    ``kind`` is "cell" (a printed number that isn't met to the last digit), "print" (the paper contradicts itself, or
    misprints), "release" (paper and released code differ, or only the code says it) or "choice" (neither says it; ours
    is the choice that meets the printed counts). Cells name ``table``, ``row``, ``scale`` and ``metric``, and their
    ``ours``, ``verdict`` and ``record`` are those of the cell; the other kinds have a ``row`` that names the subject,
    and may have no table. ``evidence`` is what can be checked.
    """

    kind: str
    table: int | str | None
    row: str
    scale: int | None
    metric: str
    printed: str
    ours: str
    verdict: str
    explanation: str
    evidence: str
    dataset: str = ""
    record: str = ""


@dataclass(frozen=True)
class Explanation:
    """What a paper's ledger says of one cell in each of ``rows``; ``ledger`` adds printed, ours and the verdict."""

    table: int | str
    rows: tuple[str, ...]
    scale: int
    metric: str
    text: str
    evidence: str
    dataset: str = ""


def difference(
    kind: str, row: str, printed: str, ours: str, text: str, evidence: str, table: int | str | None = None
) -> Entry:
    """A ledger entry that is about no single cell."""
    return Entry(kind, table, row, None, "", printed, ours, "", text, evidence)


def paper_of(model: str) -> str:
    """The paper whose network ``model`` is. Raises ``InputError`` for a model of no paper."""
    for paper in PAPERS:
        if model in _module(paper).PROTOCOLS:
            return paper
    known = ", ".join(model for paper in PAPERS for model in _module(paper).PROTOCOLS)
    raise InputError(f"model {model!r} is of no paper; choose one of: {known}")


def protocol(model: str, dataset: str = "") -> str:
    """The name of the evaluation protocol under which a model's printed scores were taken on a data set, one of
    ``metrics.PROTOCOLS``; "" is any that has none of its own. Raises ``InputError`` for a model of no paper."""
    module = _module(paper_of(model))
    return getattr(module, "DATASET_PROTOCOLS", {}).get(dataset, module.PROTOCOLS[model])


def slug(label: str) -> str:
    """A printed label as a name for folders, files and tests: lower-case letters, digits and single hyphens.

    "CCM -> Channel MLP" gives "ccm-to-channel-mlp". Raises ``InputError`` for a label without a letter or digit.
    """
    name = re.sub(r"[^a-z0-9]+", "-", label.lower().replace("->", " to ")).strip("-")
    if not name:
        raise InputError(f"label {label!r} has no letter or digit to make a name of; give a printed row's label")
    return name


def tables() -> list[tuple[str, int | str]]:
    """Every table that there is, as (paper, number), in order; a number with a letter is text ("3a")."""
    numbers = [re.fullmatch(r"(\w+)_table(\d+)(\w*)", path.stem) for path in _DATA.glob("*_table*.csv")]
    found = [(n[1], int(n[2]), n[3]) for n in numbers if n and n[1] in PAPERS]
    found.sort(key=lambda key: (PAPERS.index(key[0]), *key[1:]))
    return [(paper, f"{number}{letter}" if letter else number) for paper, number, letter in found]


def rows(paper: str, number: int | str) -> tuple[Row, ...]:
    """The rows of a table that this library builds; empty for a table of measured times."""
    number = _number(paper, number)
    return _module(paper).rows().get(number, ())


def row(paper: str, number: int | str, label: str, scale: int | None = None) -> Row:
    """The row of a table with this printed label, name or slug: the name where several rows have one label, ``scale``
    where a row is printed at several.

    Raises ``InputError`` for a paper, table or row that there isn't, and for a row that this library can't build.
    """
    known = rows(paper, number)
    found = [r for r in known if label in (r.label, r.name, r.slug) and (scale is None or r.scale in (None, scale))]
    if len(found) == 1:
        return found[0]
    names = dict.fromkeys(r.name for r in found)
    if len(names) > 1:
        raise InputError(f"table {number} of {paper} has several rows {label!r}; name one of: {'; '.join(names)}")
    if found:
        scales = ", ".join(str(r.scale) for r in found)
        raise InputError(f"table {number} of {paper} prints {label!r} at scales {scales}; name one of them")
    choices = "; ".join(dict.fromkeys(r.name for r in known)) or "none, it prints measurements"
    at = "" if scale is None else f" at scale {scale}"
    raise InputError(f"table {number} of {paper} has no row {label!r}{at} that can be built; choose one of: {choices}")


def table(paper: str, number: int | str, counts: bool = True, records: Path | None = None) -> Table:
    """A printed table with ours and a verdict for each cell.

    Parameters, multiply-adds and activations are counted now, a fraction of a second a row; with ``counts`` False they
    are left out, and torch isn't imported. Where multiply-adds depend on the image's route, ours is the count of one
    that uses all ranks alike if that rounds to print, else the attainable one nearest to print; the note gives the
    range. Where they depend on the authors' trained mapper there are none of ours; the note gives the bounds, and the
    printed one's place between them. ``records`` is a folder of records of ``srlib evaluate --out``, from which PSNR
    and SSIM are read: bicubic interpolation's, and those of runs at the paper's own budget, scored under its own
    protocol. A run fills each printed row of its paper that is its network, trained as it was. Where a protocol's
    release rounds its means up, a mean's verdict is that of the number so printed, and the note gives it; ours stays
    the mean itself.
    Raises ``InputError`` for an unknown paper or table, and for records that can't be read.
    """
    return _fill(paper, number, counts, records, {})


def all_tables(counts: bool = True, records: Path | None = None) -> tuple[Table, ...]:
    """Every table of every paper, as ``table`` gives it; a network that several tables print is counted once."""
    counted: _Counted = {}
    return tuple(_fill(paper, number, counts, records, counted) for paper, number in tables())


def ledger(paper: str, filled: Iterable[Table] = ()) -> tuple[Entry, ...]:
    """Every printed cell that is explained, and every difference between paper, release and ours.

    The numbers are read from the tables in ``filled`` (say, those of ``all_tables``); a table that isn't among them is
    filled now, with counts and without score records. Scores need an explanation only where they differ. Raises
    ``InputError`` for an unknown paper, and if an explanation names a cell that there isn't, or a count that is exact.
    """
    module = _module(paper)
    counted: _Counted = {}
    given = {t.number: t for t in filled if t.paper == paper}
    missing = dict.fromkeys(e.table for e in module.EXPLANATIONS if e.table not in given)
    given |= {number: _fill(paper, number, True, None, counted) for number in missing}
    entries = []
    for explanation in module.EXPLANATIONS:
        for label in explanation.rows:
            cell = given[explanation.table].cell(label, explanation.metric, explanation.scale, explanation.dataset)
            if cell.verdict == "differs" or (cell.verdict == "within" and cell.metric in STATIC):
                entries.append(
                    Entry(
                        kind="cell",
                        table=explanation.table,
                        row=label,
                        scale=cell.scale,
                        metric=cell.metric,
                        printed=f"{cell.printed} {cell.unit}".strip(),
                        ours=f"{cell.ours_text} {cell.unit}".strip(),
                        verdict=cell.verdict,
                        explanation=explanation.text,
                        evidence=explanation.evidence,
                        dataset=cell.dataset,
                        record=cell.record,
                    )
                )
            elif cell.metric in STATIC:
                raise InputError(
                    f"the ledger of {paper} explains {label!r} in table {explanation.table}, but that cell is "
                    f"{cell.verdict}; take the entry out"
                )
    return (*entries, *differences(paper))


def differences(paper: str) -> tuple[Entry, ...]:
    """The ledger without its cells: differences between paper, release and ours. Nothing is counted for it."""
    return _module(paper).DIFFERENCES


def route_macs(model: str, config: Any, lr_size: tuple[int, int]) -> tuple[int, int] | None:
    """The least and the most multiply-adds that an image of ``lr_size`` (height, width) can take, for a network that
    chooses by image what it computes; None for one that computes the same for all. Raises ``InputError`` for an unknown
    model."""
    module = _module(paper_of(model))
    return module.route_macs(config, lr_size) if hasattr(module, "route_macs") else None


def settings(paper: str) -> list[dict[str, str]]:
    """A paper's training and model settings as printed: key, value ("not stated" where it is silent) and source."""
    _check_paper(paper)
    return _read(_DATA / f"{paper}_settings.csv")


def last_digit(printed: str) -> Decimal:
    """What one unit of the last printed digit is worth: 0.01 for "76.70", 1 for "228"."""
    return Decimal(1).scaleb(int(Decimal(printed).as_tuple().exponent))


def verdict(printed: str, ours: Decimal, tolerance: Decimal | None = None) -> str:
    """Compare a printed text with our number, both in the printed unit: "exact", "within" or "differs".

    Ours is exact if it rounds to the printed digits; a tie may go up or to the even digit, as programs do both. The
    tolerance is one unit of the last printed digit where none is given.
    """
    digit = last_digit(printed)
    if any(ours.quantize(digit, tie) == Decimal(printed) for tie in (ROUND_HALF_UP, ROUND_HALF_EVEN)):
        return "exact"
    return "within" if abs(ours - Decimal(printed)) <= (digit if tolerance is None else tolerance) else "differs"


def _check_paper(paper: str) -> None:
    if paper not in PAPERS:
        raise InputError(f"unknown paper {paper!r}; choose one of: {', '.join(PAPERS)}")


def _module(paper: str) -> Any:
    _check_paper(paper)
    return import_module(f"srlib.papers.{paper}")


def _read(path: Path) -> list[dict[str, str]]:
    """The lines of one of the CSV files of printed numbers.

    Raises ``InputError`` that names file and line where something is not as it was written: a column, a number, a
    metric, a unit, a quote that is never closed, or a line that is there twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path.name} can't be read ({error}); install srlib again") from None
    columns, *cells = lines or [[]]
    if tuple(columns) not in _COLUMNS:
        raise InputError(f"{path.name} has the columns {','.join(columns)!r:.80}; install srlib again")
    rows, seen = [], set()
    for place, line in enumerate(cells, 2):
        row = dict(zip(columns, line, strict=False))
        keys = tuple(line[:5] if "metric" in row else line[:1])
        if len(line) != len(columns) or keys in seen or not _sound(row):
            what = "is there twice" if keys in seen else "is no line of such a table"
            raise InputError(f"line {place} of {path.name} {what}: {','.join(line)!r:.80}; install srlib again")
        seen.add(keys)
        rows.append(row)
    return rows


def _sound(row: Mapping[str, str]) -> bool:
    """Whether a line of a CSV file has numbers, a metric and a unit where it should."""
    numbers = _NUMBERS | ({"value": r"\d+(\.\d+)?"} if "metric" in row else {})
    return (
        all(re.fullmatch(pattern, row[name], re.ASCII) for name, pattern in numbers.items() if name in row)
        and all(value.isprintable() for value in row.values())
        and row.get("metric", "psnr") in _METRICS
        and row.get("unit", "") in _UNITS
    )


def _number(paper: str, number: int | str) -> int | str:
    """A table's number as ``tables`` gives it: "3" is 3. Raises ``InputError`` for an unknown paper or table."""
    _check_paper(paper)
    known = {str(n): n for name, n in tables() if name == paper}
    if str(number) not in known:
        raise InputError(f"{paper} has no table {number}; choose one of: {', '.join(known)}")
    return known[str(number)]


def _name(label: str, variant: str) -> str:
    return f"{label} ({variant})" if variant else label


def _fill(paper: str, number: int | str, counts: bool, records: Path | None, counted: _Counted) -> Table:
    """Build a table; ``counted`` keeps what a network was found to cost, so that one call counts it once."""
    number = _number(paper, number)
    printed, module = _read(_DATA / f"{paper}_table{number}.csv"), _module(paper)
    scores = _scores(paper, number, records)
    built = rows(paper, number) if counts else ()
    cells = []
    for line in printed:
        label, variant, scale = line["row"], line["variant"], int(line["scale"])
        dataset, metric = line["dataset"], line["metric"]
        ours, shown, notes, source = None, None, [line["note"]], ""
        known = _built(built, label, variant, scale)
        score = scores.get((label, scale, variant, dataset)) or scores.get((label, scale, "", dataset))
        if metric in STATIC and known:
            if hasattr(module, "cost"):
                ours, note = module.cost(known, line)
            else:
                ours, note = _cost(known, metric, Decimal(line["value"]) * SCALING[line["unit"]], counted)
                ours /= SCALING[line["unit"]]
            notes.append(note)
        elif metric in TOLERANCE and score:
            means, scored, note, source = score
            ours = Decimal(repr(means[metric]))
            notes.append(note)
            if scored and scored.means == "up":
                shown = _rounded_up(means[metric], line["value"], scored)
                notes.append(f"rounded up to {shown}, as its release prints it")
        else:
            notes.append(module.not_run(number, label, dataset, metric))
        outcome = "not-run" if ours is None else verdict(line["value"], shown or ours, TOLERANCE.get(metric))
        anchor = slug(f"{label} {variant} x{scale} {dataset} {metric}")
        cells.append(
            Cell(
                row=label,
                variant=variant,
                scale=scale,
                dataset=dataset,
                metric=metric,
                printed=line["value"],
                ours=None if ours is None else float(ours),
                unit=line["unit"],
                verdict=outcome,
                note="; ".join(filter(None, notes)),
                record=f"{record_name(paper, number)}#{anchor}",
                source=source,
            )
        )
    return Table(paper, number, tuple(cells))


def _built(known: Iterable[Row], label: str, variant: str, scale: int) -> Row | None:
    """The row that stands for a printed one at a scale; of two, the one that names its variant is meant."""
    found = (row for row in known if row.stands_for(label, variant, scale))
    return max(found, key=lambda row: len(row.variant), default=None)


def _described(row: Row) -> dict[str, Any]:
    """The network of a row as JSON data."""
    from srlib.complexity import lr_size

    network = {"row": row.name, "model": row.model, "config": _as_json(asdict(row.config))}
    return network if row.scale is None else network | {"lr": list(lr_size(row.scale))}


def _rounded_up(mean: float, printed: str, scored: Protocol) -> Decimal:
    """A mean as the release of the protocol ``scored`` prints it, with as many digits as ``printed``."""
    digit = last_digit(printed)
    return Decimal(repr(scored.printed(mean, -int(digit.as_tuple().exponent)))).quantize(digit)


def _cost(row: Row, metric: str, printed: Decimal, counted: _Counted) -> tuple[Decimal, str]:
    """A row's count, the nearest to the printed one where it depends on the route, and what has to be said of it."""
    from srlib.complexity import count, lr_size
    from srlib.models import create

    network, size = create(row.model, row.config.scale, row.config), lr_size(row.config.scale)
    if metric == "params":
        return Decimal(sum(p.numel() for p in network.parameters())), ""
    if (row.model, row.config) not in counted:
        counted[row.model, row.config] = count(network, size)
    found = counted[row.model, row.config]
    if metric in ("flops", "macs"):
        return _module(paper_of(row.model)).macs(row.config, size, found.macs, printed)
    return Decimal(found.acts), ""


def _scores(
    paper: str, number: int | str, records: Path | None
) -> dict[tuple[str, int, str, str], _Score]:
    """By (printed label, scale, variant, data set), PSNR and SSIM from a folder of records, the protocol that says how
    they are printed (None: to the nearest digit), what has to be said of them and the record's file.

    A record is what ``srlib evaluate --out`` writes, or a file "bicubic*.json" of one score. Its list "bicubic" is
    taken if it was scored as bicubic rows are, its list "scores" if it is that of a run at the paper's own budget under
    the paper's own protocol. Where records say the same thing, the first by name is taken.
    """
    found: dict[tuple[str, int, str, str], _Score] = {}
    bicubic = _module(paper).BICUBIC_PROTOCOL
    for path, content in _contents(records):
        alone = [content] if path.stem.startswith("bicubic") else []
        source = path.relative_to(str(records)).as_posix()
        for scale, dataset, scored, means in _means(content.get("bicubic", alone)):
            if scored == bicubic:
                found.setdefault(("Bicubic", scale, "", dataset), (means, None, f"protocol {scored}", source))
        own, ending = _own_rows(paper, number, content)
        for r in own:
            for scale, dataset, scored, means in _means(content.get("scores")):
                its = _evaluation(r.model, dataset)
                if scored == its.name and r.scale in (None, scale):
                    note = f"{ending}, protocol {scored}"
                    found.setdefault((r.label, scale, r.variant, dataset), (means, its, note, source))
    return found


def _evaluation(model: str, dataset: str) -> Protocol:
    """The evaluation protocol of a model's printed scores on a data set (imports torch)."""
    from srlib import metrics

    return metrics.protocol(protocol(model, dataset))


def _contents(records: Path | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The JSON objects in a folder and below, by name; those of the runs that are kept there are passed over."""
    if records is not None and not os.path.isdir(records):
        raise InputError(f"{records} is not a folder; give the folder of score records")
    for path in sorted(records.rglob("*.json")) if records else ():
        if path.relative_to(str(records)).parts[0] in KEPT:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"score record {path.name} can't be read: {error}; delete it and evaluate again") from None
        if isinstance(content, dict):
            yield path, content


def _own_rows(paper: str, number: int | str, content: dict[str, Any]) -> tuple[list[Row], str]:
    """The printed rows that an evaluated run fills in this table, and how it ended; none for any other record.

    Only a run at the paper's budget fills any: those of its model, scale and network, trained as it was. Of the
    training's settings, those are compared that some row changes. One that goes on from another run, or was trained for
    another degradation than bicubic reduction, fills none.
    """
    if content.get("budget") != "paper" or content.get("model") not in list(_module(paper).PROTOCOLS):
        return [], ""
    try:
        network, train = content["config"]["network"], content["config"]["train"]
        if content["config"].get("start") or train.get("degradation", "bicubic") != "bicubic":
            return [], ""
        collapsed_at = content.get("metrics", {}).get("collapsed_at")
        if type(train["steps"]) is not int or not isinstance(collapsed_at, int | None):
            return [], ""
        ending = f"collapsed at step {collapsed_at}" if collapsed_at else f"{train['steps']:,} steps"
        return [
            r for r in rows(paper, number)
            if (r.model, _as_json(asdict(r.config))) == (content["model"], network)
            and all(train[key] == _as_json(r.train.get(key, usual)) for key, usual in _module(paper).TRAIN.items())
        ], ending  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        return [], ""


def _as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file, where tuples are lists."""
    return json.loads(json.dumps(value))


def _means(scores: Any) -> Iterator[tuple[int, str, Any, dict[str, float]]]:
    """Scale, data set, protocol's name and means of each score in a record's list; what isn't one, has means that none
    can have (NaN, an infinite PSNR, an SSIM above 1), or was taken on other LR images than reduced ones, is passed
    over."""
    for score in scores if isinstance(scores, list) else ():
        if not isinstance(score, dict) or str(score.get("lr_origin")).startswith("real-esrgan"):
            continue
        numbers = {name: score.get(name) for name in ("scale", *TOLERANCE)}
        if any(isinstance(value, bool) or not isinstance(value, float | int) for value in numbers.values()):
            continue
        scale, means = numbers.pop("scale"), numbers
        dataset, protocol = score.get("dataset"), score.get("protocol")
        if isinstance(dataset, str) and isinstance(protocol, dict) and all(
            abs(value) <= LARGEST[metric] for metric, value in means.items()
        ):
            yield scale, dataset, protocol.get("name"), means
