"""What the papers claim: one file a paper, and its tables, rows, settings, ledger and claims in the folder data.

A file that lies here ends in ``PAPER`` and is found; nothing else lists papers. The functions below look into all of
them: ``recipe("safmn")`` is how SAFMN trains, ``rows("safmn", "3")`` the networks of its Table 3, ``printed("safmn",
"3")`` that table's cells. Table numbers are text ("3", "4c"). An unknown name raises ``InputError`` with those known.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from srlib.errors import InputError
from srlib.metrics import MATLAB, Protocol
from srlib.models import default_config
from srlib.train import TrainConfig

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Row:
    """A row of a table, printed or our own, that this library builds: a network, and what sets its training apart."""

    label: str  # as printed, where it is
    config: Any  # of the network
    model: str
    variant: str = ""  # the printed row's further keys, or the first of them, where the label alone doesn't name it
    train: Mapping[str, Any] = field(default_factory=dict)  # the settings of the training that the row changes
    baseline: bool = False  # whether the other rows of its table, an ablation, are compared with it

    @property
    def name(self) -> str:
        """The label, with the variant in brackets where there is one: "SeemoRe-T (kernel=3)"."""
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def slug(self) -> str:
        """The name for commands and folders."""
        return slug(self.name)

    @property
    def scale(self) -> int | None:
        """The network's scale; None for a network that serves all the scales that its row is printed at."""
        return getattr(self.config, "scale", None)

    @property
    def released(self) -> bool:
        """Whether it is a network as released, trained by its paper's recipe."""
        usual = vars(recipe(self.model).train)
        return self.config == default_config(self.model, self.scale) and self.train.items() <= usual.items()

    @property
    def key(self) -> tuple[Any, ...]:
        """The network and how it is trained, at a short budget and at the paper's: rows of one key have one run."""
        usual = recipe(self.model)
        trains = (replace(usual.train, **{**settings, **self.train}) for settings in (usual.smoke, {}))
        return self.model, self.config, *trains

    def stands_for(self, label: str, variant: str, scale: int) -> bool:
        """Whether a printed row, with all its further keys, at this scale is this one."""
        keys = not self.variant or f"{variant};".startswith(f"{self.variant};")
        return label == self.label and keys and self.scale in (None, scale)


@dataclass(frozen=True)
class Recipe:
    """How a paper trains and scores a network."""

    train: TrainConfig  # the paper's whole training
    protocol: Protocol  # how its printed scores were taken
    protocols: Mapping[str, Protocol] = field(default_factory=dict)  # by dataset, where one is scored in another way
    smoke: Mapping[str, Any] = field(default_factory=dict)  # settings that the smoke budget needs for this network

    def protocol_on(self, dataset: str) -> Protocol:
        """The protocol for a dataset."""
        return self.protocols.get(dataset, self.protocol)


# A row, a printed line of it, the LR image's size and the plain count -> ours (None where it can't be told), a note.
MacsRule = Callable[[Row, Mapping[Any, Any], tuple[int, int], Callable[[], int]], tuple[float | None, str]]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """All that the library knows of a paper; each paper's file ends in one."""

    slug: str
    name: str  # of its network: "SAFMN"
    title: str
    order: int  # its place among the papers
    colour: str  # #rrggbb, readable on white and on the dark page
    marker: str  # matplotlib's, so that a chart reads without colours
    main: str  # the model that stands for the paper where papers are compared
    titles: Mapping[str, str]  # model -> its name in print
    recipes: Mapping[str, Recipe]  # model -> how it is trained and scored
    bicubic: str = "matlab-luma"  # the protocol of its bicubic rows: by default that of rows copied by many papers
    peer_tables: tuple[str, ...]  # the tables that hold other papers' networks, too
    own_rows: str  # a regular expression for the labels there of the paper's own rows
    not_run: Mapping[str, str] = field(default_factory=dict)  # table -> why it has no numbers of ours
    macs: MacsRule | None = None  # how multiply-adds are counted where the plain count isn't the paper's
    routing: Callable[[Any], pd.DataFrame] | None = None  # network -> how often it uses which expert, for routing.csv

    def own(self, table: str, label: str) -> bool:
        """Whether a printed row is one of the paper's own networks."""
        return table not in self.peer_tables or re.search(self.own_rows, label) is not None


@cache
def all_papers() -> dict[str, Paper]:
    """Every paper by its slug, in order."""
    found = [import_module(f"{__name__}.{file.name}").PAPER for file in pkgutil.iter_modules(__path__)]
    return {paper.slug: paper for paper in sorted(found, key=lambda paper: paper.order)}


def paper(slug: str) -> Paper:
    """The paper of that name for files and commands."""
    return _pick(all_papers(), slug, "unknown paper")


def of(model: str) -> Paper:
    """The paper that trains ``model``."""
    return _pick({name: one for one in all_papers().values() for name in one.recipes}, model, "no paper has a model")


def recipe(model: str) -> Recipe:
    """How a paper trains and scores ``model``."""
    return of(model).recipes[model]


def title(model: str) -> str:
    """A model's name in print; a model of no paper, such as "bicubic", keeps its own."""
    return next((one.titles[model] for one in all_papers().values() if model in one.titles), model)


def protocols() -> dict[str, Protocol]:
    """The evaluation protocols by name: MATLAB's, and those of all recipes."""
    recipes = [recipe for one in all_papers().values() for recipe in one.recipes.values()]
    used = [protocol for recipe in recipes for protocol in (recipe.protocol, *recipe.protocols.values())]
    return {one.name: one for one in (MATLAB, *used)}


def protocol(name: str) -> Protocol:
    """The evaluation protocol of that name."""
    return _pick(protocols(), name, "unknown protocol")


def slug(label: str) -> str:
    """A printed label as a name for folders and files: "CCM -> Channel MLP" gives "ccm-to-channel-mlp"."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("->", " to ")).strip("-")


def tables(slug: str) -> tuple[str, ...]:
    """The numbers of a paper's tables, in order."""
    numbers = [path.stem.rpartition("_table")[2] for path in DATA.glob(f"{paper(slug).slug}_table*.csv")]
    return tuple(sorted(numbers, key=lambda number: (int(re.sub(r"\D", "", number)), number)))


def printed(slug: str, number: str) -> pd.DataFrame:
    """A table's printed cells, one a line: row, variant, scale, dataset, metric, printed (text), unit and note."""
    _pick(dict.fromkeys(tables(slug)), number, f"{slug} has no table")
    return read(slug, f"table{number}").astype({"scale": int})


@cache
def rows(slug: str, number: str) -> tuple[Row, ...]:
    """The rows of a table that this library builds, in the paper's order; empty for a table of measured times. A table
    may be ours, of trainings that no paper prints. In the file, ``network`` and ``train`` are what a row has other than
    the released network and the paper's training."""
    lines, found = read(slug, "rows"), []
    _pick(dict.fromkeys([*tables(slug), *lines.table]), number, f"{slug} has no table")
    for line in lines[lines.table == number].to_dict("records"):
        network, train = (tomllib.loads(line[key].replace(";", "\n")) for key in ("network", "train"))
        config = replace(default_config(line["model"]), **network)
        found.append(Row(line["row"], config, line["model"], line["variant"], train, bool(line["baseline"])))
    return tuple(found)


def row(slug: str, number: str, label: str, scale: int | None = None) -> Row:
    """The row of a table with this printed label, name or slug; ``scale`` where it is printed at several."""
    known = rows(slug, number)
    named = [one for one in known if label in (one.label, one.name, one.slug)]
    found = [one for one in named if scale is None or one.scale in (None, scale)]
    if len(found) == 1:
        return found[0]
    names = [f"{one.name}, scale {one.scale}" if one.scale else one.name for one in named or known]
    choices = "; ".join(names) or "none"
    raise InputError(f"table {number} of {slug} has {len(found) or 'no'} rows {label!r}; choose one of: {choices}")


def settings(slug: str) -> pd.DataFrame:
    """A paper's settings as printed: key, value ("not stated" where it is silent) and source."""
    return read(slug, "settings")


def ledger(slug: str) -> pd.DataFrame:
    """What differs between print, release and ours, one line each. ``kind`` is "cell" (a printed number that isn't met
    to the last digit), "print" (the paper contradicts itself, or misprints), "release" (paper and released code differ,
    or only the code says it) or "choice" (neither says it)."""
    return read(slug, "ledger")


def claims() -> pd.DataFrame:
    """What all papers say in words, with our evidence, where rows stand for their gaps (``tables.claims``), and a
    verdict."""
    return pd.concat([read(slug, "claims").assign(paper=slug) for slug in all_papers()], ignore_index=True)


def decimals(printed: str) -> int:
    """How many digits follow the point of a printed number: 2 for "76.70"."""
    return len(printed.partition(".")[2])


def read(slug: str, what: str) -> pd.DataFrame:
    """A paper's CSV file ``<slug>_<what>.csv``, all text."""
    return pd.read_csv(DATA / f"{paper(slug).slug}_{what}.csv", dtype=str, keep_default_na=False)


def _pick(known: Mapping[str, Any], name: str, problem: str) -> Any:
    if name not in known:
        raise InputError(f"{problem} {name!r}; choose one of: {', '.join(known)}")
    return known[name]
