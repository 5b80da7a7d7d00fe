"""A Sphinx extension that traces each number to its record.

It makes a page for every record in ``records/``: trained runs, printed tables with an anchor for each cell, score
records and chapters, and an index of all. In the pages of the book it turns ``<span data-record="NAME#ANCHOR">``, which
``srlib.viz`` writes around numbers, into links to them; the caption of each table and figure ends with a link to its
chapter's record; and each chapter ends with the commands that run it, and its downloads. Everything is read from what
the workflow left: executed notebooks, ``.cache/records``, ``runs`` and ``book/results``. A name that no record has is a
warning, and so fails the build.
"""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from srlib import viz

FOLDER = "records"  # of the record pages, in the book
SPAN = re.compile(r'<span class="((?:[\w-]+ )*srlib-record(?: [\w-]+)*)" data-record="([^"]*)">')
BLOCK = re.compile(r'<(?:div|figure) class="srlib-(?:table|viz)[ "]')
CAPTION = re.compile(r'(<p class="srlib-caption">.*?)(</p>)|(<figcaption>.*?)(</figcaption>)', re.DOTALL)
SHORT = 12  # digits of a fingerprint that are shown where the whole would crowd a table

logger = logging.getLogger(__name__)


# --- what the workflow left ------------------------------------------------------------------------------------------


@dataclass
class Record:
    """A page of its own: ``name``, the ``title``, the ``kind`` ("run", "table", "scores", "chapter" or "index"), its
    content as JSON ``data``, the ``anchors`` that one can link to, further ``files`` to download, by name, and the
    ``commit`` that last changed it where it is a file of the project."""

    name: str
    title: str
    kind: str
    data: dict[str, Any]
    anchors: frozenset[str] = frozenset()
    files: dict[str, str | Path] = field(default_factory=dict)
    commit: str = ""


@dataclass
class Records:
    """All records by name; ``used`` says which chapters lead to a record, by name of the record."""

    known: dict[str, Record]
    used: dict[str, list[str]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Record]:
        """The records of a kind, in order."""
        return [record for record in self.known.values() if record.kind == kind]

    def missing(self, links: Iterable[str]) -> list[str]:
        """Those of some links, "NAME" or "NAME#ANCHOR", that lead nowhere."""
        found = []
        for link in dict.fromkeys(links):
            name, _, anchor = link.partition("#")
            record = self.known.get(name)
            if record is None or (anchor and anchor not in record.anchors):
                found.append(link)
        return found

    def images(self) -> dict[str, str]:
        """The name of each image set that a run or a score names, by fingerprint."""
        names: dict[str, str] = {}
        for record in self.known.values():
            if record.kind == "run":
                names.setdefault(record.data["config"]["fingerprint"], record.data["config"]["data"])
            for score in scores_of(record.data):
                names.setdefault(score["fingerprint"], score["dataset"])
        return names


def collect(root: Path, chapters: Mapping[str, Path]) -> Records:
    """Everything that the workflow left below the project's folder ``root``, and the executed notebooks of the book by
    name, such as "safmn/3-tables"."""
    pages = {name: read(path) for name, path in sorted(chapters.items())}
    links = {name: links_of(page) for name, page in pages.items()}
    asked = [link.partition("#")[0] for found in links.values() for link in found]
    for page in pages.values():
        asked += made(page).get("runs", [])
    budgets = {made(page).get("parameters", {}).get("budget") for page in pages.values()} - {None}
    known = [
        *runs(root, asked, budgets),
        *tables(root / ".cache" / "records" / "tables"),
        *scores(root / "book" / "results"),
    ]
    known += [chapter(name, page, chapters[name], root) for name, page in pages.items()]
    records = Records({record.name: record for record in known})
    for overview in (tables_overview(records), Record("index", "All records", "index", {})):
        records.known[overview.name] = overview
    for name, found in links.items():
        read_there = [
            *made(pages[name]).get("runs", []),
            *(score_name(path) for path in made(pages[name]).get("scores", [])),
        ]
        for record in dict.fromkeys([*(link.partition("#")[0] for link in found), *read_there]):
            records.used.setdefault(record, []).append(name)
    return records


def read(path: Path) -> dict[str, Any]:
    """A JSON object in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def made(page: Mapping[str, Any]) -> dict[str, Any]:
    """What made an executed notebook, as notebooks/run.py keeps it; nothing for one that was run in another way."""
    return page.get("metadata", {}).get("srlib", {})


def links_of(page: Mapping[str, Any]) -> list[str]:
    """The records that a notebook's outputs and text cells lead to."""
    found: dict[str, None] = {}
    for cell in page["cells"]:
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
        texts += [output.get("data", {}).get("text/html", "") for output in cell.get("outputs", [])]
        for text in texts:
            found |= dict.fromkeys(link for _, link in SPAN.findall("".join(text)))
    return list(found)


def runs(root: Path, asked: Sequence[str], budgets: Container[str]) -> Iterator[Record]:
    """The runs that the workflow made with the chapters' ``budgets``, then those others that a page asks for, from the
    records and the runs' folders. What older builds left there with another budget is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / ".cache" / "records").glob("*/*/*.json")):
        content = read(path)
        name, budget = content.get("run"), path.parent.parent.name
        if not isinstance(name, str) or (budget not in budgets and name not in asked):
            continue
        one = found.setdefault(name, {"rows": [], "scores": [], "bicubic": []})
        one |= {key: content[key] for key in ("run", "config", "metrics", "provenance", "held_out")}
        one |= {key: content[key] for key in ("scores", "bicubic") if key in content}
        row = {key: content[key] for key in ("table", "row") if content.get(key)}
        if row and row not in one["rows"]:
            one["rows"].append(row)
    for name in asked:
        folder = root / "runs" / name
        if name not in found and all((folder / f"{part}.json").is_file() for part in PARTS):
            found[name] = {"run": name, "rows": [], "scores": [], "bicubic": []}
            found[name] |= {part: read(folder / f"{part}.json") for part in PARTS}
    for name, content in found.items():
        folder = root / "runs" / name
        logs = {part: folder / f"{part}.csv" for part in ("log", "validation") if (folder / f"{part}.csv").is_file()}
        yield Record(
            name, run_title(content), "run", content, files={f"{name}.{part}.csv": path for part, path in logs.items()}
        )


PARTS = ("config", "metrics", "provenance", "held_out")


def run_title(content: Mapping[str, Any]) -> str:
    """A run in a few words: "safmn x4, 800 steps"."""
    config = content["config"]
    at = "for every scale" if config["scale"] is None else f"\u00d7{config['scale']}"
    tuned = ", fine-tuned for real-world images" if config.get("start") else ""
    row = f", {content['rows'][0]['row']}" if content["rows"] else ""
    return f"{config['model']} {at}, {config['train']['steps']:,} steps{row}{tuned}"


def tables(folder: Path) -> Iterator[Record]:
    """The printed tables, as ``srlib tables`` writes them."""
    if not (folder / "index.json").is_file():
        return
    for name in read(folder / "index.json")["tables"]:
        content = read(folder / f"{name}.json")
        anchors = frozenset(cell["record"].partition("#")[2] for cell in content["cells"])
        title = f"{PAPERS.get(content['paper'], content['paper'])}, Table {content['number']}"
        yield Record(name, title, "table", content, anchors, {f"{name}.csv": folder / f"{name}.csv"})


PAPERS = {"safmn": "SAFMN", "seemore": "SeemoRe", "ssiu": "SSIU", "moeisr": "MoEISR"}


def tables_overview(records: Records) -> Record:
    """The record of all tables together, the one of the scoreboard's last line."""
    found = records.of("table")
    counts = {record.name: record.data["counts"] for record in found}
    return Record("tables", "Records of all printed tables", "index", {"counts": counts})


def score_name(path: str) -> str:
    """The name of the record of a file in book/results: "bicubic-luma-x2" of "bicubic/luma-x2.json"."""
    return path.removesuffix(".json").replace("/", "-")


def scores(folder: Path) -> Iterator[Record]:
    """The records in book/results: scores, measurements, and runs that are kept."""
    for path in sorted(folder.rglob("*.json")):
        place = path.relative_to(folder).as_posix()
        name, content = score_name(place), read(path)
        if "run" in content:
            yield kept_run(name, content, path)
            continue
        record = Record(name, f"book/results/{place}", "scores", content, frozenset(score_anchors(content)))
        record.commit = last_commit(path)
        yield record


def kept_run(name: str, content: dict[str, Any], path: Path) -> Record:
    """The record of a run that is kept in book/results, with the logs beside it."""
    row = {key: content[key] for key in ("table", "row") if content.get(key)}
    content = content | {"rows": [row] if row else []}
    logs = {part: path.with_name(f"{path.stem}.{part}.csv") for part in ("log", "validation")}
    files = {f"{name}.{part}.csv": log for part, log in logs.items() if log.is_file()}
    seed = content["config"]["train"].get("seed", 0)
    title = f"{run_title(content)}, seed {seed}, kept"
    return Record(name, title, "run", content, frozenset(score_anchors(content)), files, last_commit(path))


def last_commit(path: Path) -> str:
    """The commit that last changed a file; "unknown" outside a git checkout, and for a file that is in none."""
    asked = ["git", "-C", str(path.parent), "log", "-1", "--format=%h", "--abbrev=12", "--", path.name]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def scores_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores in a record of a run or of ``srlib evaluate --out``."""
    held = [content["held_out"]] if "held_out" in content else []
    lists = [content[key] for key in ("scores", "bicubic") if isinstance(content.get(key), list)]
    found = [*held, *(score for part in lists for score in part)]
    return [
        score for score in found if isinstance(score, dict) and {"fingerprint", "protocol", "images"} <= score.keys()
    ]


def score_anchors(content: Mapping[str, Any]) -> list[str]:
    """The anchors of a record's scores: "set5-x2-matlab"."""
    return [score_anchor(score) for score in scores_of(content)]


def score_anchor(score: Mapping[str, Any]) -> str:
    """The anchor of a score: its data set, scale and protocol."""
    place = f"{score['dataset']} x{score['scale']} {score['protocol']['name']}"
    return re.sub(r"[^a-z0-9]+", "-", place.lower()).strip("-")


def chapter_record(name: str) -> str:
    """The name of a chapter's record: "chapter-safmn-3-tables" of "safmn/3-tables"."""
    return f"chapter-{name.replace('/', '-')}"


def chapter(name: str, page: Mapping[str, Any], path: Path, root: Path) -> Record:
    """The record of an executed notebook."""
    first = next("".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown")
    title, paper = plain(first.partition("\n")[0].removeprefix("# ")), PAPERS.get(name.partition("/")[0], "")
    title = title if paper in title else f"{paper}: {title}"
    source = root / "notebooks" / f"{name}.ipynb"
    record = chapter_record(name)
    files: dict[str, str | Path] = {f"{record}.executed.ipynb": path}
    if source.is_file():
        files[f"{record}.ipynb"] = source
    content = {"chapter": name} | (made(page) or {"notebook": f"notebooks/{name}.ipynb"})
    return Record(record, title, "chapter", content, files=files)


def plain(text: str) -> str:
    """Markdown without its marks: links and roles by their text, no code marks."""
    text = re.sub(r"\{[\w:]+\}`(?:([^`<]*?) <[^`>]*>|([^`]*))`", lambda match: match[1] or match[2], text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", lambda match: match[1] or "", text).strip()


# --- pages -----------------------------------------------------------------------------------------------------------


def body(record: Record, records: Records) -> str:
    """The page of a record, as HTML whose links to other records are still spans."""
    make = {"run": run_page, "table": table_page, "scores": scores_page, "chapter": chapter_page, "index": index_page}
    up = "" if record.name == "index" else f'<p class="srlib-up">{viz.record_link("All records", "index")}</p>'
    head = f"{up}<h1>{escape(headline(record))}</h1>"
    inner = "".join(make[record.kind](record, records))
    return f'<style>{viz.STYLE}</style><section class="srlib-page">{head}{inner}</section>'


def headline(record: Record) -> str:
    """What stands above a record's page."""
    return record.title if record.kind == "index" else f"Record: {record.title}"


def run_page(record: Record, records: Records) -> Iterator[str]:
    """What a run is made of, how it went, what it scores, and how it is made again."""
    from srlib.models import config_class
    from srlib.papers import record_name
    from srlib.pretrained import shares
    from srlib.runs import BUDGETS, Length, contract, origin

    data = record.data
    config, made_by, held = data["config"], data["provenance"], data["held_out"]
    again = origin(config, data.get("budget"))
    collapsed_at = data["metrics"]["collapsed_at"]
    ended = f"It collapsed at step {collapsed_at}." if collapsed_at else "It came to its end."
    yield paragraph(
        f"A trained network. {ended} On {held['dataset']} at \u00d7{held['scale']} it scores {held['psnr']:.2f} dB and "
        f"an SSIM of {held['ssim']:.4f}, under the protocol {held['protocol']['name']}. The folder of the run is "
        f"runs/{data['run']}; its name ends in the hash of all that determined the weights."
    )
    if record.commit:
        shipped = data.get("weights")
        what = f"its weights come with srlib as {shipped['file']}" if shipped else "its weights are not kept"
        yield paragraph(f"The record is kept in book/results, last changed by commit {record.commit}; {what}.")
    yield downloads(record)
    if again:
        budget, words = BUDGETS[again.budget], list(again.command)
        said = "Loads the run where it is there, trains it where it is not."
        if not config["data"].startswith("photos/"):
            words[words.index("--data") + 1] = STAND_IN
            said += f" {STAND_IN} stands for the path of the training images: here their folder was named "
            said += f"{escape(config['data'])}."
        if start := config.get("start"):
            said += f" It goes on from {link(start, records)}"
            if start in records.known:
                said += f': download <a href="{start}.json" download>the record of that run</a> first, into the folder '
                said += "where the command is given"
            said += "; that run itself has to lie under runs."
        yield section("Make it again", console(wrapped(words)), f"<p>{said}</p>")
        meaning = f"<p>Budget {escape(again.budget)}: {escape(budget.meaning)}.</p>"
        if again.length != Length():
            steps, pixels = (f"1/{1 / part:,.0f}" for part in shares(config["model"], config["train"]))
            meaning = f"<p>Budget {escape(again.label)}: {config['train']['steps']:,} steps, {steps} of the paper's, "
            meaning += f"with {pixels} of its pixels.</p>"
    else:
        said = (
            "Its settings are no budget's and no table row's, so that no option of srlib train names them: a chapter "
        )
        said += "configures it, and trains it when it is run."
        commands = (
            part
            for one in users(record, records)
            for part in (console(command(one)), *map(paragraph, needs(one, records)))
        )
        yield section("Make it again", paragraph(said), *commands)
        meaning = ""
    rows = [*data.get("rows", [])]
    if again and again.table is not None and not rows:
        rows = [{"table": again.table, "row": again.row}]
    for one in rows:
        name = record_name(paper_of(config["model"]), one["table"])
        row = f"<p>Its network and training are those of the row \u201c{escape(one['row'])}\u201d of "
        meaning += f"{row}{link(name, records)}.</p>"
    yield section("Used by", used_by(record, records))
    yield section("Scores", *score_tables(data, config["model"]))
    yield section("Training log", *logs(record, held))
    network = {"model": config["model"], **config["network"]}
    yield section("Network", pairs(network, "What the network is built with."))
    yield section("Training", meaning, pairs(config["train"], "What it is trained with."))
    images = {"images": config["data"], "fingerprint": config["fingerprint"]}
    images["LR images, fingerprint"] = config["lr_fingerprint"] or "none: LR patches are made of HR patches"
    yield section("Data", pairs(images, "What it is trained on. A fingerprint is the hash of the decoded images."))
    yield section("Protocol", pairs(held["protocol"], "How the held-out images are compared, in full."))
    here = contract(config_class(config["model"]).__module__)
    said = "code is the hash of the model's file and of layers, losses, training loop, resizing and data. In the "
    said += f"version that built this page it is {here}: "
    if here == config["contract"]:
        said += "the same, so that this version trains the same network, whether or not the history has that commit."
    else:
        said += "another, so that this version trains another network, or runs under a Python that hashes it otherwise."
    if config["train"]["precision"] != "32-true":
        said += " How mixed precision treats a network's inputs (srlib.processes) is not in it."
    table = pairs(made_by | {"code": config["contract"]}, "Commit, versions, device, seed and time.")
    yield section("Made by", table, paragraph(said))


def paper_of(model: str) -> str:
    """The paper of a model."""
    from srlib import papers

    return papers.paper_of(model)


def logs(record: Record, held: Mapping[str, Any]) -> Iterator[str]:
    """The log as curves; what it says when there is none."""
    columns = {
        part: columns_of(path)
        for part in ("log", "validation")
        if (path := record.files.get(f"{record.name}.{part}.csv"))
    }
    if not columns.get("log"):
        yield paragraph("The log is not here.")
        return
    label, model = record.data["config"]["model"], family(record.data["config"]["model"])
    for part, y, said in (("log", "loss", "Training loss"), ("validation", "psnr", f"PSNR on {held['dataset']} (dB)")):
        if not columns.get(part):
            continue
        last = columns[part][y][-1]
        options = {"smooth": 0.6, "logy": True} if part == "log" else {"smooth": 0, "raw": False}
        yield viz.curves(
            {label: columns[part]}, "step", y, model=model, ylabel=said, caption=f"{said}, of {label}.",
            alt=f"{said} over {columns[part]['step'][-1]:.0f} steps; it ends at {last:.4g}.", **options,
        ).html  # fmt: skip


def family(model: str) -> str:
    """The key of a model in ``viz.COLOURS``: "seemore" of "seemore-t"."""
    return next((key for key in viz.COLOURS if model.startswith(key)), "bicubic")


def columns_of(path: str | Path) -> dict[str, list[float]]:
    """The columns of a log, as numbers."""
    rows = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
    return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows else {}


def score_tables(data: Mapping[str, Any], ours: str) -> Iterator[str]:
    """A table for each score of a record, image by image, with bicubic beside it where the same was scored."""
    lists = {ours: data.get("scores", []), "bicubic": data.get("bicubic", [])}
    if "held_out" in data:
        alone = data["held_out"]
        known = [key_of(score) for score in lists[ours]]
        lists[ours] = [*([] if key_of(alone) in known else [alone]), *lists[ours]]
    places: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for name, part in lists.items():
        for score in scores_of({"scores": part}):
            places.setdefault(key_of(score), {})[name] = score
    ids: set[str] = set()
    for found in places.values():
        one = next(iter(found.values()))
        named = "" if score_anchor(one) in ids else f' id="{score_anchor(one)}"'
        ids.add(score_anchor(one))
        columns = ["image", *(f"{name}, {metric}" for name in found for metric in ("PSNR (dB)", "SSIM"))]
        rows = []
        for images in zip(*(score["images"] for score in found.values()), strict=True):
            rows.append((images[0]["name"], *(digits(image[key]) for image in images for key in ("psnr", "ssim"))))
        rows.append(("mean", *(digits(score[key]) for score in found.values() for key in ("psnr", "ssim"))))
        caption = f"{one['dataset']} \u00d7{one['scale']}, protocol {one['protocol']['name']}; LR images: "
        caption += f"{one['lr_origin']}; fingerprint {one['fingerprint']}."
        yield f"<div{named}>{viz.plain_table(rows, columns, caption=caption).html}</div>"


def key_of(score: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two scores share that can stand beside each other."""
    return score["dataset"], score["scale"], score["fingerprint"], score["protocol"]["name"], score["lr_origin"]


def digits(value: float | None) -> str:
    """A score with as many digits as tell runs apart."""
    return "\u2013" if value is None else f"{value:.5f}"


def table_page(record: Record, records: Records) -> Iterator[str]:
    """Every cell of a printed table: printed, ours with all digits, the verdict, and how ours came about."""
    data = record.data
    counts = ", ".join(f"{count} {viz.VERDICTS[verdict][1]}" for verdict, count in data["counts"].items() if count)
    yield paragraph(f"Every printed cell of the table beside ours: {len(data['cells'])} cells, {counts}.")
    yield downloads(record)
    name = f"{data['paper']} {data['number']}"
    yield section(
        "Make it again", console(f"srlib table {name}\nsrlib table {name} --csv"),
        paragraph(
            f"Counted at commit {data['commit']}, with srlib {data['srlib']}, Python {data['python']} and torch "
            f"{data['torch']}. Counts need no training and no data; scores are read from records in book/results."
        ),
    )  # fmt: skip
    yield section("Used by", used_by(record, records))
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for text, kind in CELL_COLUMNS)
    rows = "".join(cell_row(cell, data, records) for cell in data["cells"])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    caption = f"{record.title}: {len(data['cells'])} printed cells."
    box = (
        f'<div class="srlib-scroll" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}">{table}</div>'
    )
    caption = f'<p class="srlib-caption">{escape(caption)}</p>'
    yield section("Cells", f'<div class="srlib-table srlib-wide">{caption}{box}</div>')
    if data["networks"]:
        yield section("Networks that are counted", *networks(data["networks"]))


WORD = ' class="srlib-word"'
CELL_COLUMNS = (
    ("row", ""), ("what", WORD), ("printed", ""), ("ours", ""), ("unit", WORD), ("verdict", WORD),
    ("how ours came about", ' class="srlib-long"'),
)  # fmt: skip


def cell_row(cell: Mapping[str, Any], data: Mapping[str, Any], records: Records) -> str:
    """A cell as a line of its table's page; its id is its anchor."""
    anchor = cell["record"].partition("#")[2]
    place = [f"\u00d7{cell['scale']}", cell["dataset"], viz.METRICS.get(cell["metric"], cell["metric"])]
    variant = cell["variant"].replace(";", ", ").replace("=", " ").replace("_", " ")
    name = escape(cell["row"]) + (f' <span class="srlib-variant">{escape(variant)}</span>' if variant else "")
    ours = "\u2013" if cell["ours"] is None else escape(repr(cell["ours"]))
    how = [escape(cell["note"])] if cell["note"] else []
    if cell["how"] == "scored":
        how.insert(0, f"read from {link(score_name(cell['source']), records)}")
    elif "network" in cell:
        how.insert(0, f'counted, <a href="#network-{cell["network"] + 1}">network {cell["network"] + 1}</a>')
    return (
        f'<tr id="{anchor}"><th scope="row">{name}</th><td{WORD}>{escape(", ".join(filter(None, place)))}</td>'
        f"<td>{escape(cell['printed'])}</td><td>{ours}</td><td{WORD}>{escape(cell['unit'])}</td>"
        f'<td{WORD}>{viz.badge(cell["verdict"])}</td><td class="srlib-long">{"; ".join(how)}</td></tr>'
    )


def networks(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The configurations that a table's counts belong to."""
    for k, network in enumerate(found, 1):
        size = (
            f", LR {network['lr'][1]}\u00d7{network['lr'][0]} for an output of 1280\u00d7720" if "lr" in network else ""
        )
        caption = f"Network {k}: {network['row']}, a configuration of {network['model']}{size}."
        yield f'<div id="network-{k}">{pairs(network["config"], caption)}</div>'


def scores_page(record: Record, records: Records) -> Iterator[str]:
    """A score record of book/results, or whatever else is kept there."""
    data = record.data
    found = scores_of(data)
    kind = "Scores that were taken once and kept" if found else "Measurements that were taken once and kept"
    yield paragraph(
        f"{kind} in {record.title}: the chapters read them from there. Commit {record.commit} last changed the file."
    )
    yield downloads(record)
    yield section("Used by", used_by(record, records))
    rest = {key: value for key, value in data.items() if key not in ("scores", "bicubic")}
    if found:
        yield section("Scores", *score_tables(data, str(data.get("model", "scores"))))
        protocols = {score["protocol"]["name"]: score["protocol"] for score in found}
        yield section(
            "Protocol", *(pairs(p, f"{name}: how images are compared, in full.") for name, p in protocols.items())
        )
    nested = {key: value for key, value in rest.items() if isinstance(value, dict)}
    flat = {key: value for key, value in rest.items() if key not in nested}
    yield section(
        "Record", pairs(flat, "What the record says of itself."), *(pairs(v, f"{k}.") for k, v in nested.items())
    )


def chapter_page(record: Record, records: Records) -> Iterator[str]:
    """What made a page of the book, and what it read."""
    data = record.data
    page = f"../chapters/{data['chapter']}.html"
    run = f", which is {escape(data['notebook'])} as it was run."
    yield f'<p>What made the page <a href="{page}">{escape(record.title)}</a>{run}</p>'
    yield downloads(record)
    if "seconds" not in data:
        yield paragraph("The notebook was not run by notebooks/run.py, so that nothing else is known of it.")
        return
    said = " ".join([took(data), *needs(record, records)])
    yield section("Make it again", console(command(record)), paragraph(said))
    if data["parameters"]:
        rows = [
            (
                name,
                value_text(value),
                value_text(data["changed"].get(name, value)),
                "no" if name in data["changed"] else "yes",
            )
            for name, value in data["parameters"].items()
        ]
        columns = ("parameter", "value", "default", "as in the notebook")
        yield section("Parameters", viz.plain_table(rows, columns, caption="What the notebook was run with.").html)
    computing = {key: data.get(key, "not noted") for key in ("commit", "device", "threads", "platform", "seconds")}
    yield section("Made by", pairs(computing | data["versions"], "Commit, device, threads, time and versions."))
    names = records.images()
    rows = [
        (names.get(one["fingerprint"], "unnamed"), one["images"], one["fingerprint"], scales_of(one["lr"]))
        for one in data.get("images", [])
    ]
    columns = ("images", "number", "fingerprint", "LR images, fingerprints")
    shown = (
        viz.plain_table(rows, columns, caption="The image sets that it read.").html
        if rows
        else paragraph("It read no images.")
    )
    yield section("Data", shown)
    trained, kept = data.get("runs", []), [score_name(path) for path in data.get("scores", [])]
    yield section("Runs", listed(trained, records) or paragraph("It loaded no trained network."))
    if kept:
        yield section("Score records", listed(kept, records))


def scales_of(reduced: Mapping[str, str]) -> str:
    """The fingerprints of LR images by scale, shortened."""
    return ", ".join(f"\u00d7{scale} {one[:SHORT]}" for scale, one in sorted(reduced.items())) or "none"


def index_page(record: Record, records: Records) -> Iterator[str]:
    """All records, or all tables."""
    if "counts" in record.data:
        titles = {records.known[name].title: counts for name, counts in record.data["counts"].items()}
        names = {records.known[name].title: name for name in record.data["counts"]}
        yield paragraph("All printed tables, each with its verdicts; the numbers lead to the tables' records.")
        yield viz.verdict_summary(titles, records=names).html if titles else paragraph("There is none.")
        return
    yield paragraph("Every run, table, score record and chapter that a number in this book comes from.")
    rows, names = [], {one.name: one.name for one in records.of("run")}
    for one in records.of("run"):
        held = one.data["held_out"]
        rows.append((one.name, one.title, f"{held['psnr']:.2f}", f"{held['dataset']} \u00d7{held['scale']}"))
    columns = ("run", "what", "PSNR (dB)", "on")
    table = viz.plain_table(rows, columns, caption="Trained networks.", records=names).html if rows else ""
    yield section("Runs", table or paragraph("There is none."))
    yield section(
        "Tables", listed([one.name for one in records.of("table")], records), f"<p>{link('tables', records)}</p>"
    )
    yield section("Score records", listed([one.name for one in records.of("scores")], records))
    yield section("Chapters", listed([one.name for one in records.of("chapter")], records))


# --- parts of pages --------------------------------------------------------------------------------------------------


def section(title: str, *parts: str) -> str:
    """A section with its heading and an id."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower())
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def console(commands: str) -> str:
    """Commands as a block that can be copied."""
    lines = "\n".join(line if line.startswith(" ") else f"$ {line}" for line in commands.splitlines())
    return f'<div class="highlight-console notranslate"><div class="highlight"><pre>{escape(lines)}\n</pre></div></div>'


def pairs(values: Mapping[str, Any], caption: str) -> str:
    """Settings and their values as a table."""
    rows = [(name, value_text(value)) for name, value in values.items()]
    return viz.plain_table(rows, ("setting", "value"), caption=caption).html if rows else paragraph("None.")


def value_text(value: Any) -> str:
    """A setting's value as it reads best."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "none" if value is None or value == "" else str(value)


def link(name: str, records: Records) -> str:
    """The title of a record as a link to it; the bare name where there is none."""
    record = records.known.get(name)
    return viz.record_link(escape(record.title), name) if record else escape(name)


def listed(names: Sequence[str], records: Records) -> str:
    """Records as a list of links, the name of a run behind what it is."""
    items = []
    for name in names:
        also = f" <code>{escape(name)}</code>" if name in records.known and records.known[name].kind == "run" else ""
        items.append(f"<li>{link(name, records)}{also}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def users(record: Record, records: Records) -> list[Record]:
    """The chapters that lead to a record or read it."""
    return [records.known[chapter_record(name)] for name in records.used.get(record.name, [])]


def used_by(record: Record, records: Records) -> str:
    """Links back to the chapters that a record is used by."""
    items = [
        f'<li><a href="../chapters/{escape(one.data["chapter"])}.html">{escape(one.title)}</a></li>'
        for one in users(record, records)
    ]
    return f"<ul>{''.join(items)}</ul>" if items else paragraph("No chapter of this book.")


def downloads(record: Record, folder: str = "") -> str:
    """Links to a record's files; ``folder`` leads from the page to theirs."""
    kinds = {
        "log.csv": "training log (CSV)", "validation.csv": "held-out scores while training (CSV)", "csv": "table (CSV)",
        "ipynb": "notebook", "executed.ipynb": "executed notebook",
    }  # fmt: skip
    names = {name: kinds[name.removeprefix(f"{record.name}.")] for name in sorted(record.files, key=len)}
    names[f"{record.name}.json"] = "record (JSON)"
    links = (f'<a href="{folder}{name}" download>{said}</a>' for name, said in names.items())
    return f'<p class="srlib-downloads">Download: {", ".join(links)}</p>'


def command(record: Record) -> str:
    """The command that runs a chapter as it was run for the book; ``needs`` says what it leaves open."""
    data, folders = record.data, elsewhere(record.data)
    given = {name: STAND_IN if name in folders else str(data["parameters"][name]) for name in data.get("given", [])}
    options = [word for name, value in given.items() for word in ("-p", name, value)]
    if data.get("timeout", 900) != 900:
        options += ["--timeout", f"{data['timeout']:g}"]
    return wrapped(["python", "notebooks/run.py", data["notebook"], "out.ipynb", *options])


STAND_IN = "FOLDER"  # in a command, for a path that is not told


def elsewhere(data: Mapping[str, Any]) -> dict[str, str]:
    """The names of the folders that a chapter was given and that lie elsewhere, by parameter: their paths are not told
    (notebooks/run.py, ``portable``)."""
    given = {name: data["parameters"][name] for name in data.get("given", [])}
    return {
        name: value.removeprefix("\u2026/")
        for name, value in given.items()
        if isinstance(value, str) and value.startswith("\u2026/")
    }


def needs(record: Record, records: Records) -> list[str]:
    """What a chapter's command leaves open, in sentences: folders whose paths are not told, and images that are not the
    photographs inside scikit-image."""
    folders, names = elsewhere(record.data), records.images()
    said = [
        f"{STAND_IN} stands for a path: as {name}, a folder named {was} was given." for name, was in folders.items()
    ]
    sets = dict.fromkeys(names.get(one["fingerprint"], "photos/") for one in record.data.get("images", []))
    present = [name for name in sets if not name.startswith("photos/") and name not in folders.values()]
    if present:
        all_of_them = " and ".join(filter(None, (", ".join(present[:-1]), present[-1])))
        said.append(f"It was run with the images of {all_of_them} present, in the folder that SRLIB_DATA names.")
    return said


def wrapped(words: Iterable[str], width: int = 80) -> str:
    """A command for the shell, broken before an option where a line would be longer than ``width``."""
    lines, option = [""], ""
    for word in [*words, ""]:
        if option and (word.startswith("-") or not word):
            whole = f"{lines[-1]} {option}"
            lines = [*lines[:-1], whole] if len(whole) <= width else [*lines, f"    {option}"]
            option = ""
        if word.startswith("-"):
            option = word
        elif option:
            option += f" {shlex.quote(word)}"
        elif word:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(line if k else line.strip() for k, line in enumerate(lines))


def took(data: Mapping[str, Any]) -> str:
    """How long a chapter took when the book was built, and on what."""
    where = f", on: {data['device']}" if "device" in data else ""
    return f"It took {duration(data['seconds'])} when this book was built{where}."


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


# --- the book's own pages --------------------------------------------------------------------------------------------


def resolve(html: str, page: str, records: Records) -> tuple[str, list[str]]:
    """A page's HTML with links in place of the spans that name records, and the names that no record has.

    ``page`` is the page's name, such as "chapters/safmn/3-tables"; the links are relative to it. What names a record
    that isn't there loses its span.
    """
    missing = records.missing(link for _, link in SPAN.findall(html))
    parts, open_spans, at = [], [], 0
    for tag in re.finditer(r"<span\b[^>]*>|</span>", html):
        parts.append(html[at : tag.start()])
        at = tag.end()
        if tag[0] == "</span>":
            parts.append(open_spans.pop() if open_spans else tag[0])
            continue
        named = SPAN.fullmatch(tag[0])
        if named is None:
            open_spans.append("</span>")
            parts.append(tag[0])
        elif named[2] in missing:
            open_spans.append("")
        else:
            open_spans.append("</a>")
            passed = ' tabindex="-1"' if "srlib-quiet" in named[1].split() else ""
            parts.append(f'<a class="{named[1]}" href="{address(named[2], page)}"{passed}>')
    return "".join([*parts, html[at:]]), missing


def address(link: str, page: str) -> str:
    """Where a record's page lies, seen from another page."""
    name, mark, anchor = link.partition("#")
    return f"{to_records(page)}{name}.html{mark}{anchor}"


def to_records(page: str) -> str:
    """The folder of the records, seen from a page."""
    folder = page.rpartition("/")[0]
    return "" if folder == FOLDER else "../" * page.count("/") + f"{FOLDER}/"


def with_own_record(html: str, record: str) -> str:
    """A page's HTML in which the caption of each table and figure ends with a link to the page's own record."""
    starts = [match.start() for match in BLOCK.finditer(html)]
    if not starts:
        return html
    parts, own = [html[: starts[0]]], viz.record_link("Record", record)
    for start, end in zip(starts, [*starts[1:], len(html)], strict=True):
        parts.append(
            CAPTION.sub(lambda match: f"{match[1] or match[3]} {own}{match[2] or match[4]}", html[start:end], count=1)
        )
    return "".join(parts)


def run_section(record: Record, page: str, records: Records) -> nodes.section:
    """The section that ends a chapter: its commands, how long they took and what they need, and its downloads."""
    data, folder = record.data, to_records(page)
    found = nodes.section(ids=["run-this-chapter"], names=["run this chapter"], classes=["srlib-run"])
    found += nodes.title("", "Run this chapter")
    found += nodes.paragraph(
        "",
        "",
        nodes.Text("Cell by cell in JupyterLab, where it is "),
        nodes.literal("", data["notebook"]),
        nodes.Text(":"),
    )
    found += console_block("$ make lab")
    found += nodes.paragraph("", "From top to bottom, as for this page:")
    found += console_block(f"$ source .venv/bin/activate\n$ {command(record)}")
    said = [took(data)] if "seconds" in data else []
    if data.get("runs"):
        said.append("That is with its networks trained; those that are not there are trained first.")
    if said := [*said, *needs(record, records)]:
        found += nodes.paragraph("", " ".join(said))
    made_it = f"<p>{viz.record_link('How this page was made', record.name)}: parameters, versions, data and runs.</p>"
    found += nodes.raw("", made_it + downloads(record, folder), format="html")
    return found


def console_block(text: str) -> nodes.literal_block:
    """A block of commands, which the theme colours and lets one copy."""
    return nodes.literal_block(text, text, language="console")


def load(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Read all records, once a build, with the chapters that the book has."""
    found = {name: Path(env.doc2path(name)) for name in env.found_docs if name.startswith("chapters/")}
    chapters = {name.removeprefix("chapters/"): path for name, path in found.items() if path.suffix == ".ipynb"}
    app.srlib_records = collect(Path(app.srcdir).parent, chapters)  # type: ignore[attr-defined]


def end_chapter(app: Sphinx, doctree: nodes.document) -> None:
    """Put the last section into a chapter as it is read, so that it is in its contents and found by the search."""
    page = app.env.docname
    records = app.srlib_records  # type: ignore[attr-defined]
    record = records.known.get(chapter_record(page.removeprefix("chapters/")))
    first = next(iter(doctree.findall(nodes.section)), None)
    if page.startswith("chapters/") and record is not None and first is not None:
        first += run_section(record, page, records)


def link_numbers(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Make links in a page as it is written."""
    html, records = context.get("body"), app.srlib_records  # type: ignore[attr-defined]
    if not isinstance(html, str):
        return
    own = chapter_record(pagename.removeprefix("chapters/"))
    if pagename.startswith("chapters/") and own in records.known:
        html = with_own_record(html, own)
    context["body"], missing = resolve(html, pagename, records)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        logger.warning(
            "%s: no record of %s%s; run `make book`, which makes them", pagename, ", ".join(missing[:3]), more
        )


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each record, with its files beside it."""
    records, folder = app.srlib_records, Path(app.outdir) / FOLDER  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    for record in records.known.values():
        for name, file in record.files.items():
            shutil.copyfile(file, folder / name)
        if record.kind != "index":
            (folder / f"{record.name}.json").write_text(json.dumps(record.data, indent=1) + "\n", encoding="utf-8")
        context = {"title": headline(record), "body": body(record, records)}
        yield f"{FOLDER}/{record.name}", context, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps."""
    app.connect("env-before-read-docs", load)
    app.connect("doctree-read", end_chapter, priority=400)  # before the contents are gathered
    app.connect("html-page-context", link_numbers)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
