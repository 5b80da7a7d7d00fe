"""What a notebook depends on, so that an edit reruns only the pages that it concerns."""

import ast
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
FINDERS = {"srlib.models", "srlib.papers"}
GRAPH = grimp.build_graph("srlib", cache_dir=".cache/grimp")  # as it lies in the current folder
TIMING = re.compile(r"\b(in_units|latency|operator_times|yardstick)\(")
TRAINED = re.compile(r"""\btrained\(\s*["']([\w-]+)["'](?:,\s*(?:scale=)?(\d))?""")  # results.trained("safmn", 4)


def code(notebook: Path) -> str:
    """The code of a notebook, without lines that only IPython reads."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def imported(source: str) -> set[str]:
    """The modules of srlib that some code imports, or calls as ``python -m srlib``."""
    named = {"srlib.cli"} if re.search(r"""-m["', ]+srlib""", source) else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return named & GRAPH.modules


def files(modules: set[str]) -> list[str]:
    """The files of these modules of srlib, of all that they import, and of the data that these read.

    The packages of models and of papers find their modules by themselves, so they stand for all of them.
    """
    found: set[str] = set()
    while new := modules - found:
        found |= new
        modules = {name for module in new for name in GRAPH.find_modules_directly_imported_by(module)}
        modules |= {name for package in new & FINDERS for name in GRAPH.find_descendants(package)}
    paths = [Path(*module.split(".")) for module in found]
    sources = {path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths}
    data = (pattern for module in found for pattern in DATA.get(module, ()))
    return sorted(map(str, sources.union(*map(Path().glob, data))))
