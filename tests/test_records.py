"""The pages that numbers lead to: what the workflow leaves becomes records, and spans that name them become links."""

import importlib.util
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from srlib import papers, viz
from srlib.models.safmn import SAFMNConfig
from srlib.runs import contract, training

pytest.importorskip("sphinx", reason="the book needs the extra: pip install -e .[book]")

ROOT = Path(__file__).resolve().parent.parent
RUN = "safmn-x4-800-0123456789ab"
OTHER = "safmn-x4-3-ba9876543210"
EARLIER = "safmn-x4-5-aaaaaaaaaaaa"  # of a budget that no chapter was run with, but asked for by one
KEPT = "ablations-safmn-3-baseline-seed0"  # a run's record in book/results
LEFT_OVER = "safmn-x4-9-bbbbbbbbbbbb"  # of that budget, too, and asked for by none


def extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("records", ROOT / "book" / "_ext" / "records.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


records = extension()


def scored(dataset: str, scale: int, psnr: float, fingerprint: str = "f1") -> dict[str, Any]:
    """A score as ``Scores.record`` gives it."""
    protocol = {"name": "safmn", "channel": "y", "luma": [65.481, 128.553, 24.966], "clamp": True}
    images = [{"name": "<first>", "psnr": psnr, "ssim": 0.8}, {"name": "second", "psnr": psnr + 1, "ssim": 0.9}]
    known = {"dataset": dataset, "fingerprint": fingerprint, "lr_origin": "matlab-bicubic", "scale": scale}
    return known | {"protocol": protocol, "psnr": psnr + 0.5, "ssim": 0.85, "images": images}


def run_record(name: str, **changes: Any) -> dict[str, Any]:
    """A run as ``Run.record`` gives it."""
    network, train = asdict(SAFMNConfig()), asdict(training("safmn", "smoke"))
    config = {"model": "safmn", "scale": 4, "network": network, "train": train, "data": "photos/train"}
    config |= {"fingerprint": "f0", "lr_fingerprint": "f0-4", "contract": "c0de", "start": ""}
    made = {"commit": "abc<def>", "torch": "2.9", "device": "CPU, 2 threads", "seed": 0, "seconds": 12.5}
    record = {"run": name, "config": config, "metrics": {"steps": 800, "loss": 0.1, "collapsed_at": None}}
    return (
        json.loads(json.dumps(record | {"provenance": made, "held_out": scored("photos/held-out", 4, 29.0)})) | changes
    )


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def notebook(html: str, title: str = "# Training", **noted: Any) -> dict[str, Any]:
    """An executed notebook with one output, as notebooks/run.py leaves it."""
    made = {
        "notebook": "notebooks/safmn/2-training.ipynb", "parameters": {"budget": "smoke", "seed": 0},
        "changed": {"budget": "short"}, "given": ["budget"], "seconds": 250.0, "timeout": 7200.0,
        "versions": {"python": "3.11"}, "platform": "Linux", "commit": "abc", "device": "CPU, 2 threads", "threads": 2,
        "runs": [RUN], "images": [{"fingerprint": "f1", "images": 2, "lr": {"4": "e" * 64}}],
        "scores": ["bicubic/luma-x4.json"],
    }  # fmt: skip
    cells = [
        {"cell_type": "markdown", "source": [f"{title}\n", "\n", "text"]},
        {"cell_type": "code", "source": [], "outputs": [{"data": {"text/html": html}}]},
    ]
    return {"cells": cells, "metadata": {"srlib": made | noted}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workflow leaves, made up: two runs, one of them not its own, two more of an earlier build with another
    budget, two tables, a score record, a chapter."""
    root = tmp_path_factory.mktemp("project")
    own = run_record(RUN) | {"budget": "smoke", "table": None, "row": None}
    write(root / ".cache/records/smoke/safmn/main.json", own)
    lists = {"scores": [scored("Set5", 4, 30.0, "f5")], "bicubic": [scored("Set5", 4, 28.0, "f5")]}
    write(root / ".cache/records/smoke/safmn/main.eval.json", own | lists)
    for name in (EARLIER, LEFT_OVER):
        write(root / f".cache/records/short/safmn/{name}.json", run_record(name) | {"budget": "short"})
    for name in (RUN, OTHER):
        record = run_record(name)
        record["config"]["train"]["steps"] = int(name.split("-")[2])
        if name == OTHER:  # no budget has it
            record["config"]["train"]["lr"] = 0.25
        for part in ("config", "metrics", "provenance", "held_out"):
            write(root / "runs" / name / f"{part}.json", record[part])
        write(root / "runs" / name / "log.csv", "step,loss,lr,seconds\n1,0.5,0.001,1\n2,0.25,0.0005,2\n")
    tables = [papers.table("safmn", number, records=ROOT / "book" / "results") for number in (1, 5)]
    made = {"commit": "abc", "srlib": "0", "python": "3.11", "torch": "2.9"}
    for table in tables:
        write(root / f".cache/records/tables/{table.record}.json", table.described() | made)
        write(root / f".cache/records/tables/{table.record}.csv", table.csv())
    write(root / ".cache/records/tables/index.json", {"tables": [table.record for table in tables]})
    kept = {"model": "bicubic", "scale": 4, "commit": "abc", "scores": [], "bicubic": [scored("Set5", 4, 28.0, "f5")]}
    for scale in (2, 3, 4):
        write(root / f"book/results/bicubic/luma-x{scale}.json", kept)
    same = run_record(RUN) | lists | {"budget": "smoke", "table": 3, "row": "Baseline", "command": [], "weights": None}
    write(root / "book/results/ablations/safmn-3/baseline-seed0.json", same)
    write(root / "book/results/ablations/safmn-3/baseline-seed0.log.csv", "step,loss,lr,seconds\n1,0.5,0.001,1\n")
    write(root / "book/results/speed/released.json", {"what": "a <b>", "units": {"an image": 52}})
    rows = [("a", 1.5, OTHER), ("b", 2.5, EARLIER)]
    html = viz.plain_table(rows, ("row", "PSNR", "run"), caption="c", records={"a": OTHER, "b": EARLIER}).html
    write(root / "book/chapters/safmn/2-training.ipynb", notebook(html))
    write(root / "notebooks/safmn/2-training.ipynb", notebook(""))
    return root


@pytest.fixture(scope="module")
def found(project: Path) -> Any:
    return records.collect(project, {"safmn/2-training": project / "book/chapters/safmn/2-training.ipynb"})


class Checked(HTMLParser):
    """Refuses tags that are not closed in order, and ids that are used twice; gathers links and text."""

    EMPTY = {"img", "source", "br"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [] and len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        named = dict(attrs)
        self.ids += [named["id"]] if named.get("id") else []
        self.links += [named["href"]] if tag == "a" and named.get("href") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_records_are_what_the_workflow_made_and_what_pages_ask_for(found: Any) -> None:
    """Of another budget than the chapters', as an older build leaves them, those alone that a page asks for."""
    kinds = {name: record.kind for name, record in found.known.items()}
    assert kinds == {
        RUN: "run", OTHER: "run", EARLIER: "run", "safmn-table-1": "table", "safmn-table-5": "table",
        "bicubic-luma-x2": "scores", "bicubic-luma-x3": "scores", "bicubic-luma-x4": "scores",
        "speed-released": "scores", "chapter-safmn-2-training": "chapter", "tables": "index", "index": "index",
        KEPT: "run",
    }  # fmt: skip
    assert found.used == {name: ["safmn/2-training"] for name in (OTHER, EARLIER, RUN, "bicubic-luma-x4")}
    assert LEFT_OVER not in records.body(found.known["index"], found)
    assert found.known[RUN].data["scores"][0]["dataset"] == "Set5", "the scores of `srlib evaluate` belong to the run"
    assert found.images() == {"f0": "photos/train", "f1": "photos/held-out", "f5": "Set5"}


def test_every_page_of_a_record_is_whole_and_leads_somewhere(found: Any) -> None:
    for name, record in found.known.items():
        html, missing = records.resolve(records.body(record, found), f"records/{name}", found)
        page = Checked(html)
        assert missing == [] and "data-record" not in html
        files = {*record.files, f"{name}.json"}
        for link in page.links:
            target, _, anchor = link.partition("#")
            if target.startswith("../"):
                assert target == "../chapters/safmn/2-training.html", link
            elif target.endswith(".html"):
                assert target.removesuffix(".html") in found.known, link
                assert not anchor or anchor in found.known[target.removesuffix(".html")].anchors
            elif target:
                assert target in files, link
            else:
                assert anchor in page.ids, link
        assert record.anchors <= set(page.ids), "each anchor is an id of the page"
        assert name == "index" or "index.html" in page.links


def test_a_page_shows_all_that_decided_a_run(found: Any) -> None:
    text = Checked(records.body(found.known[RUN], found)).text
    for expected in (
        "srlib train safmn --scale 4 --budget smoke --data photos/train", "abc<def>", "CPU, 2 threads", "29.50000",
        "Set5 \u00d74", "28.50000", "<first>", "65.481, 128.553, 24.966", "f0-4", "channels", "lr_final", "c0de",
        "proves that the path works", "SAFMN: Training", "It came to its end.",
    ):  # fmt: skip
        assert expected in text, expected
    alone = records.body(found.known[OTHER], found)
    assert "Its settings are no budget" in alone and "python notebooks/run.py" in alone and "Training loss" in alone


def test_a_kept_run_has_a_page_without_its_folder(found: Any) -> None:
    """Under the name of its record; the run's own, its logs and what became of its weights are told there."""
    record = found.known[KEPT]
    text = Checked(records.body(record, found)).text
    for part in (f"runs/{RUN}", "its weights are not kept", "changed by commit unknown", "seed 0, kept", "Set5"):
        assert part in text, part
    assert set(record.files) == {f"{KEPT}.log.csv"} and "Training loss" in records.body(record, found)
    shipped = records.Record(KEPT, "t", "run", record.data | {"weights": {"file": "a.safetensors"}}, commit="abc")
    assert "its weights come with srlib as a.safetensors" in records.body(shipped, found)


def test_a_run_says_whether_this_version_trains_the_same_network(found: Any) -> None:
    """By the hash of the code, which holds where a commit is no longer in the history."""
    assert "another, so that this version trains another network" in Checked(records.body(found.known[RUN], found)).text
    config = run_record(RUN)["config"] | {"contract": contract("srlib.models.safmn")}
    record = records.Record(RUN, "t", "run", run_record(RUN) | {"config": config})
    assert "the same, so that this version trains the same network" in Checked(records.body(record, found)).text


def test_a_collapse_is_said(found: Any) -> None:
    data = run_record(RUN, metrics={"steps": 800, "loss": None, "collapsed_at": 40}, rows=[])
    record = records.Record(RUN, "t", "run", data)
    text = Checked(records.body(record, found)).text
    assert "It collapsed at step 40." in text and "The log is not here." in text


def test_a_score_record_says_which_commit_last_changed_it(found: Any, tmp_path: Path) -> None:
    assert "Commit unknown last changed the file." in records.body(found.known["speed-released"], found)
    for path in (ROOT / "book" / "results").rglob("*.json"):
        assert re.fullmatch("[0-9a-f]{12}|unknown", records.last_commit(path))
    assert records.last_commit(tmp_path / "nothing.json") == "unknown"


def test_a_cell_says_how_ours_came_about(found: Any) -> None:
    html = records.body(found.known["safmn-table-1"], found)
    cells = dict(re.findall(r'<tr id="([^"]*)">(.*?)</tr>', html))
    assert len(cells) == 553
    scored_cell = cells["bicubic-x2-set5-psnr"]
    assert 'data-record="bicubic-luma-x2"' in scored_cell and "33.66141279175543" in scored_cell, "all digits"
    counted = cells["safmn-ours-x4-params"]
    assert 'href="#network-3"' in counted and "239.52" in counted and "verdict-exact" in counted
    assert "not run at the paper" in cells["safmn-ours-x4-set5-psnr"]
    assert "LR 320\u00d7180 for an output of 1280\u00d7720" in html
    assert "counted" not in Checked(records.body(found.known["safmn-table-5"], found)).text.partition("Cells")[2][:400]


def test_a_chapter_says_what_it_was_run_with(found: Any) -> None:
    record = found.known["chapter-safmn-2-training"]
    text = Checked(records.body(record, found)).text
    expected = "$ python notebooks/run.py notebooks/safmn/2-training.ipynb out.ipynb \\\n"
    assert f"{expected}    -p budget smoke --timeout 7200\n" in text
    for part in (
        "It took 4 minutes when this book was built, on: CPU, 2 threads.",
        "photos/held-out",
        RUN,
        "eeeeeeeeeeee",
    ):
        assert part in text, part
    assert re.search(r"budget</th><td[^>]*>smoke</td><td[^>]*>short</td><td[^>]*>no</td>", records.body(record, found))
    assert set(record.files) == {"chapter-safmn-2-training.ipynb", "chapter-safmn-2-training.executed.ipynb"}


def test_a_chapter_that_was_run_in_another_way_still_has_its_record(found: Any, tmp_path: Path) -> None:
    write(tmp_path / "c.ipynb", notebook("") | {"metadata": {}})
    some = records.collect(tmp_path, {"other": tmp_path / "c.ipynb"})
    assert "nothing else is known" in records.body(some.known["chapter-other"], some)
    assert "Run this chapter" in records.run_section(some.known["chapter-other"], "chapters/other", some).astext()


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("intro", "records/r.html"), ("chapters/scoreboard", "../records/r.html"),
        ("chapters/safmn/3-tables", "../../records/r.html"), ("records/s", "r.html"),
    ],
)  # fmt: skip
def test_spans_become_links_seen_from_their_page(page: str, address: str) -> None:
    known = records.Records({"r": records.Record("r", "t", "table", {}, frozenset({"a-b"}))})
    html = '<td><span class="x">1</span><span class="srlib-record" data-record="r#a-b"><span>2</span> dB</span></td>'
    got, missing = records.resolve(html, page, known)
    link = f'<a class="srlib-record" href="{address}#a-b"><span>2</span> dB</a>'
    assert (got, missing) == (f'<td><span class="x">1</span>{link}</td>', [])
    quiet = viz.record_link("2", "r", quiet=True)
    assert records.resolve(quiet, page, known)[0] == (
        f'<a class="srlib-record srlib-quiet" href="{address}" tabindex="-1">2</a>'
    )


def test_a_name_without_a_record_is_told_and_leaves_its_text() -> None:
    known = records.Records({"r": records.Record("r", "t", "table", {}, frozenset({"a"}))})
    html = "".join(viz.record_link(text, name) for text, name in (("1", "r#b"), ("2", "s"), ("3", "r"), ("4", "s")))
    got, missing = records.resolve(html, "intro", known)
    assert missing == ["r#b", "s"]
    assert got == '12<a class="srlib-record" href="records/r.html">3</a>4'


def test_a_missing_record_is_one_warning_of_its_page(caplog: pytest.LogCaptureFixture) -> None:
    class App:
        srlib_records = records.Records({})

    context = {"body": "".join(viz.record_link("1", name) for name in "abcde")}
    records.link_numbers(App(), "chapters/x", "page.html", context, None)
    assert caplog.messages == ["chapters/x: no record of a, b, c and 2 more; run `make book`, which makes them"]
    assert context["body"] == "11111"


def test_captions_of_a_chapter_lead_to_its_record() -> None:
    table = viz.plain_table([("a", 1)], ("x", "y"), caption="One & two.")
    figure = viz.curves({"safmn": {"x": [1, 2], "y": [1, 2]}}, "x", "y", alt="a", caption="Three.")
    html = records.with_own_record(f"<p>before</p>{table.html}<p>between</p>{figure.html}{table.html}", "chapter-a")
    own = viz.record_link("Record", "chapter-a")
    assert html.count(own) == 3
    assert html.count(f"One &amp; two. {own}</p>") == 2 and f"Three. {own}</figcaption>" in html
    assert records.with_own_record("<p>Words alone.</p>", "chapter-a") == "<p>Words alone.</p>"


def test_a_chapter_ends_with_its_commands(found: Any) -> None:
    pytest.importorskip("docutils")
    section = records.run_section(found.known["chapter-safmn-2-training"], "chapters/safmn/2-training", found)
    text = section.astext()
    assert (
        section["ids"] == ["run-this-chapter"] and "$ make lab" in text and "notebooks/safmn/2-training.ipynb" in text
    )
    assert "$ source .venv/bin/activate\n$ python notebooks/run.py" in text and "-p budget smoke" in text
    assert "FOLDER" not in text and "SRLIB_DATA" not in text, "it needs nothing but what is in scikit-image"
    raw = section[-1].astext()
    assert 'href="../../records/chapter-safmn-2-training.ipynb" download' in raw
    assert 'data-record="chapter-safmn-2-training"' in raw


def test_a_command_says_what_it_leaves_open(found: Any) -> None:
    """A folder elsewhere is a word to replace, never half a path; the images of a data folder are named."""
    pytest.importorskip("docutils")
    given = {"budget": "smoke", "train_data": "\u2026/HR images"}
    images = [{"fingerprint": print_, "images": 2, "lr": {}} for print_ in ("f1", "f5", "unknown")]
    data = found.known["chapter-safmn-2-training"].data | {"parameters": given, "given": [*given], "images": images}
    record = records.Record("chapter-safmn-2-training", "t", "chapter", data)
    shown = (
        records.run_section(record, "chapters/safmn/2-training", found).astext(),
        Checked(records.body(record, found)).text,
    )
    for text in shown:
        command = re.search(r"\$ (python notebooks/run.py.*?)\n(?! )", text, re.DOTALL)
        assert command and "\u2026" not in command[1] and "-p train_data FOLDER" in command[1]
        assert "FOLDER stands for a path: as train_data, a folder named HR images was given." in text
        assert "It was run with the images of Set5 present, in the folder that SRLIB_DATA names." in text


def test_a_fine_tuned_run_leads_to_the_record_that_its_command_names(found: Any) -> None:
    """And to no file where that record is not in the book; its training images are named where they lie elsewhere."""
    from srlib.runs import tuned

    config = run_record(RUN)["config"] | {"model": "seemore-t", "start": RUN, "data": "HR images"}
    train = training("seemore-t", "smoke", ablation=True, changes=tuned("seemore-t"))
    config["train"] = json.loads(json.dumps(asdict(train)))
    html = records.body(records.Record(OTHER, "t", "run", run_record(OTHER, config=config, rows=[])), found)
    text = re.sub(r" \\\n +", " ", Checked(html).text)
    assert f"$ srlib train seemore-t --fine-tune {RUN}.json --budget smoke --data FOLDER" in text
    assert "their folder was named HR images" in text
    assert f'download <a href="{RUN}.json" download>the record of that run</a> first' in html
    config["start"] = "seemore-t-x4-1-000000000000"
    alone = records.body(records.Record(OTHER, "t", "run", run_record(OTHER, config=config, rows=[])), found)
    assert "It goes on from seemore-t-x4-1-000000000000; that run" in alone and "the record of that run" not in alone


def test_no_page_or_file_holds_a_path_of_this_machine(found: Any, project: Path) -> None:
    for record in found.known.values():
        shown = records.body(record, found) + json.dumps(record.data)
        assert str(project) not in shown and str(ROOT) not in shown and "/home/" not in shown


def test_long_commands_break_before_an_option_and_stay_one_command() -> None:
    import shlex

    words = [
        "srlib",
        "train",
        "m",
        "--row",
        "LN -> None, lr=1x10^-3 *",
        "--ablation",
        "--budget",
        "smoke",
        "--data",
        "a b",
    ]
    for width in (20, 40, 200):
        lines = records.wrapped(words, width).split("\n")
        assert shlex.split("\n".join(lines).replace("\\\n", " ")) == words
        assert all(line.endswith(" \\") for line in lines[:-1]) and all(line.startswith("    --") for line in lines[1:])
    assert records.wrapped(words, 200) == shlex.join(words)
    assert records.wrapped(words, 40).splitlines()[-2:] == ["    --ablation --budget smoke \\", "    --data 'a b'"]


def test_titles_lose_their_marks() -> None:
    assert records.plain("**Tables** {doc}`1, 2 <3-tables>`, `x` [a](b.md) {cite:p}`k`") == "Tables 1, 2, x a k"
