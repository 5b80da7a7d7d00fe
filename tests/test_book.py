"""The book's settings, pages, notebooks, references and API pages fit together."""

import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import srlib

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
SOURCES = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PROSE = sorted(path for path in BOOK.rglob("*.md") if not {"_build", "chapters"} & set(path.relative_to(BOOK).parts))


def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def pages() -> list[str]:
    """Every page that the table of contents names, without suffix."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            yield from (str(node[key]) for key in ("root", "file") if key in node)
            for value in node.values():
                yield from walk(value)

    return list(walk(yaml.safe_load((BOOK / "_toc.yml").read_text())))


def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_settings_are_those_of_jupyter_book_1() -> None:
    build = pytest.importorskip("jupyter_book.config")
    assert importlib.import_module("jupyter_book").__version__.startswith("1.")
    build.validate_yaml(config(), raise_on_errors=True)


def test_the_book_build_executes_nothing() -> None:
    settings = config()
    assert settings["execute"]["execute_notebooks"] == "off"
    assert settings["sphinx"]["config"]["nb_execution_mode"] == "off"


def test_no_button_leads_nowhere() -> None:
    html = config()["html"]
    assert not any(html[key] for key in ("use_edit_page_button", "use_repository_button", "use_issues_button"))
    assert not config()["launch_buttons"]["thebe"]


def test_every_page_has_a_source_and_every_source_is_a_page() -> None:
    listed = pages()
    assert len(listed) == len(set(listed)), "a page is listed twice"
    assert {page for page in listed if page.startswith("chapters/")} == {
        f"chapters/{path.relative_to(NOTEBOOKS).with_suffix('').as_posix()}" for path in SOURCES
    }
    assert {page for page in listed if not page.startswith("chapters/")} == {
        path.relative_to(BOOK).with_suffix("").as_posix() for path in PROSE
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_source_notebooks_carry_no_outputs(path: Path) -> None:
    for cell in notebook(path)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_the_first_code_cell_of_a_notebook_holds_its_parameters(path: Path) -> None:
    code = [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]
    tagged = [k for k, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == [0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_a_notebook_opens_with_one_title(path: Path) -> None:
    prose = ["".join(cell["source"]) for cell in notebook(path)["cells"] if cell["cell_type"] == "markdown"]
    assert prose and prose[0].startswith("# ")
    assert sum(len(re.findall(r"^# ", text, re.M)) for text in prose) == 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_a_notebook_defines_no_network_and_keeps_cells_short(path: Path) -> None:
    for cell in notebook(path)["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert not re.search(r"^class .*Module\)", source, re.M), "networks live in srlib.models"
            assert len(source.splitlines()) <= 15, source


def texts() -> Iterator[tuple[str, str]]:
    """What Sphinx reads: prose pages, notebooks' text cells, and the library's docstrings."""
    for path in PROSE:
        yield path.name, path.read_text()
    for path in SOURCES:
        for cell in notebook(path)["cells"]:
            if cell["cell_type"] == "markdown":
                yield path.name, "".join(cell["source"])
    for path in sorted((ROOT / "srlib").rglob("*.py")):
        yield path.name, path.read_text()


def test_every_citation_is_in_the_bibliography() -> None:
    bibtex = pytest.importorskip("pybtex.database")
    entries = bibtex.parse_file(str(BOOK / "refs.bib")).entries
    for key, entry in entries.items():
        assert entry.persons.get("author") and entry.fields.get("title"), key
        assert entry.fields.get("year") or entry.fields.get("url"), key
    cited = [
        (where, key.strip())
        for where, text in texts()
        for keys in re.findall(r"(?:\{|:)cite(?::\w+)?(?:\}|:)`([^`]+)`", text)
        for key in keys.split(",")
    ]
    assert len(cited) > 10
    assert [(where, key) for where, key in cited if key not in entries] == []


def test_the_models_date_papers_as_the_bibliography_does() -> None:
    bibtex = pytest.importorskip("pybtex.database")
    entries = bibtex.parse_file(str(BOOK / "refs.bib")).entries.values()
    known = {(" ".join(entry.persons["author"][0].last_names), entry.fields.get("year")) for entry in entries}
    for path in sorted((ROOT / "srlib" / "models").glob("*.py")):
        for author, year in re.findall(r"\b(\w+) et al\., (?:[A-Z]+ )?(\d{4})", path.read_text()):
            assert (author, year) in known, path.name


def modules() -> list[str]:
    found = pkgutil.walk_packages(srlib.__path__, "srlib.")
    return [module.name for module in found if not module.name.rpartition(".")[2].startswith("_")]


def test_every_module_has_an_api_page() -> None:
    shown = {
        name: path.stem
        for path in (BOOK / "api").glob("*.md")
        for name in re.findall(r"^\.\. automodule:: (\S+)$", path.read_text(), re.M)
    }
    assert set(shown) == {"srlib", *modules()}
    index = (BOOK / "api" / "index.md").read_text()
    for name, page in shown.items():
        assert page == "index" or f"{{doc}}`{name} <{page}>`" in index


def test_api_pages_show_docstrings_of_ours_alone_and_nothing_leans_on_others() -> None:
    """Sphinx passes over what has no docstring of its own: a network's ``forward``, which its class describes."""
    assert config()["sphinx"]["config"]["autodoc_inherit_docstrings"] is False
    for name in modules():
        for thing in vars(importlib.import_module(name)).values():
            if inspect.isclass(thing) and thing.__module__ == name and not thing.__name__.startswith("_"):
                assert thing.__doc__, thing
                methods = {key for key, value in vars(thing).items() if inspect.isfunction(value) and not value.__doc__}
                assert {key for key in methods if not key.startswith("_")} <= {"forward"}, thing


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(BOOK).as_posix())
def test_images_in_prose_have_a_text_alternative(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"!\[\s*\]\(", text)
    for figure in re.findall(r"```\{(?:figure|image)\}.*?```", text, re.S):
        assert ":alt:" in figure
    for tag in re.findall(r"<img[^>]*>", text):
        assert "alt=" in tag


def extension(name: str) -> Any:
    """One of the book's own Sphinx extensions, as a module."""
    pytest.importorskip("sphinx")
    folder = config()["sphinx"]["local_extensions"][name]
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_mended_where_the_theme_leaves_them_wrong() -> None:
    mend = extension("mend")
    parts = ('<a class="reference internal" href="a.html">A &amp; B</a><details>', "<summary>", "<i></i></summary>")
    assert mend.page("".join(parts)) == f'{parts[0]}<summary aria-label="Pages of A &amp; B">{parts[2]}'
    signature = '<dt class="sig py"><dl>\n<dd>a,</dd>\n</dl></dt>'
    lines = '<span class="sig-lines">\n<span class="sig-line">a,</span>\n</span>'
    assert mend.page(f"{signature}<dl><dd>kept</dd></dl>") == f'<dt class="sig py">{lines}</dt><dl><dd>kept</dd></dl>'
    right = "<article><details><summary>Mine</summary></details></article>"
    assert mend.page(right) == right


def test_icons_that_no_page_shows_are_left_out() -> None:
    sun = 'sun:[512,512,[9728],"f185",["M3","M4z"]],'
    script = f'a={{"angle-up":[320,512,[8963],"f106","M1 2z"],{sun}x:[1,2,[],"f00d","M5z"]}};'
    assert extension("mend").icons(script, {"sun"}) == f"a={{{sun}}};"


def test_equations_need_no_network() -> None:
    bundle = extension("offline").bundle()
    assert bundle.is_file() and "MathJax" in bundle.read_text(errors="replace")[:400_000]


def test_no_style_or_setting_fetches_from_elsewhere() -> None:
    assert config()["sphinx"]["config"]["nb_ipywidgets_js"] == {}
    for path in (path for path in (BOOK / "_static").iterdir() if path.suffix in {".css", ".js", ".svg"}):
        text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text())
        assert not re.search(r"https?://|@import", text), path.name


@pytest.mark.parametrize(
    ("model", "scales"), [("safmn", (4,)), ("seemore-t", (4,)), ("ssiu", (4,)), ("moeisr-lte-s-edsr", (2, 3, 4))]
)
def test_the_smoke_run_beats_bicubic_on_photographs_it_has_not_seen(model: str, scales: tuple[int, ...]) -> None:
    """What the book promises of its default budget, read from the record that the workflow made of it: at all of these
    scales, with one network."""
    path = ROOT / ".cache" / "records" / "smoke" / model / "main.eval.json"
    if not path.is_file():
        pytest.skip("no smoke run here: `make book` trains and scores it")
    record = json.loads(path.read_text())
    ours, bicubic = (
        {s["scale"]: s["psnr"] for s in record[kind] if s["dataset"] == "photos/held-out"}
        for kind in ("scores", "bicubic")
    )
    if record["provenance"]["data"] != "photos/train":
        pytest.skip("the smoke run here was trained on a folder of its own")
    assert record["config"]["train"]["steps"] < 1000
    assert set(scales) <= set(ours)
    assert all(ours[scale] >= bicubic[scale] + 0.3 for scale in scales)
