"""The book's pages, notebooks, references and settings fit together."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
BOOK, NOTEBOOKS = ROOT / "book", ROOT / "notebooks"
SOURCES = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PROSE = sorted(path for path in BOOK.rglob("*.md") if not {"_build", "chapters"} & set(path.relative_to(BOOK).parts))
DOCUMENTS = [*PROSE, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def title_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def cells(path: Path) -> list[dict[str, Any]]:
    """A notebook's cells, each with its source as one text; of a document none."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.suffix == ".ipynb" else []
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def code(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    return [cell["source"] for cell in cells(path) if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    """A document's text, or that of a notebook's other cells."""
    texts = [cell["source"] for cell in cells(path) if cell["cell_type"] == "markdown"]
    return "\n".join(texts) or path.read_text(encoding="utf-8")


def test_every_page_has_a_source_and_every_source_is_a_page() -> None:
    listed = re.findall(r"\b(?:root|file): (\S+)", (BOOK / "_toc.yml").read_text())
    assert len(listed) == len(set(listed)), "a page is listed twice"
    notebooks = {f"chapters/{path.relative_to(NOTEBOOKS).with_suffix('').as_posix()}" for path in SOURCES}
    assert set(listed) == notebooks | {path.relative_to(BOOK).with_suffix("").as_posix() for path in PROSE}


@pytest.mark.parametrize("path", SOURCES, ids=title_of)
def test_a_notebook_opens_with_one_title_and_holds_no_outputs(path: Path) -> None:
    text = prose(path)
    assert text.startswith("# ") and len(re.findall(r"^# ", text, re.M)) == 1
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells(path)), "run: nbstripout"


@pytest.mark.parametrize("path", SOURCES, ids=title_of)
def test_a_notebook_has_its_parameters_first_and_short_cells(path: Path) -> None:
    """So that the workflow can set them. Networks live in srlib.models."""
    tags = [cell["metadata"].get("tags", []) for cell in cells(path) if cell["cell_type"] == "code"]
    assert [number for number, each in enumerate(tags) if "parameters" in each] in ([0], [])
    for source in code(path):
        assert len(source.splitlines()) <= 30, source
        assert not re.search(r"^class .*Module\)", source, re.M), source


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=title_of)
def test_code_and_examples_name_modules_and_functions_that_exist(path: Path) -> None:
    """What they take from srlib in imports, and from the modules that they imported."""
    source = "\n".join([*code(path), *re.findall(r"```python\n(.*?)```", prose(path), re.S)])
    modules: dict[str, ModuleType] = {}
    for package, names in re.findall(r"^from (srlib[\w.]*) import ([\w, ]+)$", source, re.M):
        for name in re.split(r", *", names):
            name, _, alias = name.partition(" as ")
            found = getattr(importlib.import_module(package), name, None)
            found = importlib.import_module(f"{package}.{name}") if found is None else found
            if isinstance(found, ModuleType):
                modules[alias or name] = found
    for name, module in modules.items():
        for used in set(re.findall(rf"(?<![\w.]){name}\.(\w+)", source)):
            assert hasattr(module, used), f"{module.__name__} has no {used}"


def test_no_page_of_the_built_book_shows_an_error() -> None:
    """Executed notebooks: none has an output that is an error, or a warning of a library."""
    built = sorted((BOOK / "chapters").rglob("*.ipynb"))
    if not built:
        pytest.skip("no executed notebooks here: `make book` makes them")
    for path in built:
        assert not path.name.endswith(".failed.ipynb"), path
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error", path
                assert output.get("name") != "stderr" or "Warning" not in "".join(output["text"]), output["text"]


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=title_of)
def test_images_in_prose_have_a_text_alternative(path: Path) -> None:
    text = prose(path)
    assert not re.search(r"!\[\s*\]\(", text)
    assert all(":alt:" in figure for figure in re.findall(r"```\{(?:figure|image)\}.*?```", text, re.S))
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", text))


def test_documented_commands_exist() -> None:
    """Each `srlib ...` in prose names a command and options that it has."""
    from typer.main import get_command

    from srlib.cli import app

    top = get_command(app)
    for path, line in [(one, line) for one in [*SOURCES, *DOCUMENTS] for line in prose(one).splitlines()]:
        for words in re.findall(r"(?:\$ |`)srlib ([a-z][^`\\]*)", line):
            command: Any = top
            for word in words.split():
                command = getattr(command, "commands", {}).get(word, command)
            assert command is not top, f"{path.name}: srlib {words}"
            known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help", "--"}
            asked = re.findall(r"(?<!\S)(--[a-z-]+|--)(?=\s|=|$)", words.partition(" -- ")[0])
            assert set(asked) <= known, f"{path.name}: srlib {words}"


def test_the_build_executes_nothing_and_no_page_fetches_from_elsewhere() -> None:
    assert CONFIG["execute"]["execute_notebooks"] == CONFIG["sphinx"]["config"]["nb_execution_mode"] == "off"
    html = CONFIG["html"]
    assert not any(html[key] for key in ("use_edit_page_button", "use_repository_button", "use_issues_button"))
    assert not CONFIG["launch_buttons"]["thebe"] and CONFIG["sphinx"]["config"]["nb_ipywidgets_js"] == {}
    for path in (path for path in (BOOK / "_static").iterdir() if path.suffix in {".css", ".js", ".svg"}):
        assert not re.search(r"https?://|@import", re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text())), path.name


@pytest.fixture
def mend() -> Any:
    """The book's own Sphinx extension."""
    pytest.importorskip("sphinx")
    folder = CONFIG["sphinx"]["local_extensions"]["mend"]
    spec = importlib.util.spec_from_file_location("mend", ROOT / folder / "mend.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_mended_where_the_theme_leaves_them_wrong(mend: Any) -> None:
    parts = ('<a class="reference internal" href="a.html">A</a><details>', "<summary>", "<i></i></summary>")
    assert mend.page("".join(parts)) == f'{parts[0]}<summary aria-label="Pages of A">{parts[2]}'
    right = "<article><details><summary>Mine</summary></details></article>"
    assert mend.page(right) == right
