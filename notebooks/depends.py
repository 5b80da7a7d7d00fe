"""What a notebook depends on, so that an edit reruns only the pages that it concerns."""

import json
import re
from pathlib import Path

import grimp

DATA = {  # what a module reads besides its own source
    "srlib.datasets": ("srlib/*.toml",),
    "srlib.papers": ("srlib/papers/data/*.csv",),
    "srlib.quality": ("srlib/*.csv",),
    "srlib.results": ("book/results/*.csv", "srlib/weights/*.safetensors"),
}
TIMING = re.compile(r"\b(latency|operator_times|yardstick)\(")
TRAINED = re.compile(r"""\btrained\(\s*["']([\w-]+)["'],\s*(\w+),\s*budget\b""")  # results.trained("safmn", 4, budget)
TABLE = re.compile(r'^table = "(\w+)"', re.M)  # a parameter: whose rows a page trains
IMPORTS = re.compile(r"^\s*(?:from|import) (srlib[\w.]*)(?: import (?:\(([\w,\s]+)\)|([\w, ]+)))?", re.M)
GRAPH = grimp.build_graph("srlib", cache_dir=".cache/grimp")  # as it lies in the current folder
for package in ("srlib.models", "srlib.papers"):  # which find their modules by themselves
    for module in GRAPH.find_descendants(package):
        GRAPH.add_import(importer=package, imported=module)


def code(notebook: Path) -> str:
    """The code of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def networks(code: str) -> set[str]:
    """The released networks that a page shows at its budget: "safmn/main/x4", with 4 for a scale that is no digit, and
    "liif-edsr/main/any" for the scale None."""
    scales = {"None": "any"} | {str(digit): f"x{digit}" for digit in range(10)}
    return {f"{model}/main/{scales.get(scale, 'x4')}" for model, scale in TRAINED.findall(code)}


def anew(notebook: str, code: str, slugs: str, tables: str) -> bool:
    """Whether a page trains at another budget, and these papers and tables hold all of it: its folder's paper, those
    with which its networks' names begin, and the table of its rows."""
    named = {*notebook.split("/")[:-1], *(re.split("[-/]", run)[0] for run in networks(code))}
    rows = {f"{notebook.split('/')[0]}-{number}" for number in TABLE.findall(code)}
    chosen = ("all" in text.split() or found <= set(text.split()) for found, text in ((named, slugs), (rows, tables)))
    return bool(rows or networks(code)) and all(chosen)


def imported(source: str) -> set[str]:
    """The modules of srlib that some code imports, or calls as ``python -m srlib``."""
    named = {"srlib.cli"} if re.search(r"""-m["', ]+srlib""", source) else set()
    for package, lines, line in IMPORTS.findall(source):
        named |= {package} | {f"{package}.{name.split()[0]}" for name in (lines or line).split(",") if name.strip()}
    return named & GRAPH.modules


def files(modules: set[str]) -> list[str]:
    """The files of these modules of srlib, of all that they import, and of the data that these read."""
    found = modules.union(*map(GRAPH.find_upstream_modules, modules))
    paths = [Path(*module.split(".")) for module in found]
    sources = {path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths}
    data = (pattern for module in found for pattern in DATA.get(module, ()))
    return sorted(map(str, sources.union(*map(Path().glob, data))))


def code_files(module: str) -> list[str]:
    """Those of a module's files that decide what it computes: no printed tables and claims, which only pages read."""
    return [path for path in files({module}) if path.endswith((".py", ".toml", "_rows.csv"))]
