"""A Sphinx extension that mends the finished pages: equations without a network, names for screen readers, less weight.

MathJax comes from the installed package ``sphinx-mathjax-offline``, as its one-file SVG build, which works when a page
is opened from a disk. Each step changes nothing where a newer theme has mended it.
"""

import re
import shutil
import typing
from html import escape
from importlib.metadata import distribution
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

MATHJAX = "tex-svg-full.js"
ICON = re.compile(r'"?([\w-]+)"?:\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')
"""An icon in the theme's script: its name, size, aliases, code point and outline."""


def page(html: str) -> str:
    """A finished page: what folds in the side bar gets a name, the side bar a landmark, references a form."""
    html = re.sub(
        r'(<a class="(?:current )?reference internal"[^>]*>([^<]*)</a><details[^>]*>)<summary>',
        lambda m: f'{m[1]}<summary aria-label="Pages of {escape(m[2])}">',
        html,
    )
    side = '<div id="pst-primary-sidebar"'
    html = html.replace(f"{side} class=", f'{side} role="complementary" aria-label="Book" class=')
    return html.replace('role="doc-biblioentry"', 'role="listitem"')


def without_thebe(app: Sphinx, config: Config) -> None:
    """Leave out sphinx-thebe's scripts and styles for live code, which fetch from elsewhere."""
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if one.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [one for one in app.registry.css_files if one[0] != "sphinx-thebe.css"]


def plain_types(app: Sphinx, thing: object, bound: bool) -> None:
    """Show a command's parameters by their types, without the objects that describe its options in the shell."""
    if getattr(thing, "__module__", None) == "srlib.cli":
        for name, kind in getattr(thing, "__annotations__", {}).items():
            if typing.get_origin(kind) is typing.Annotated:
                thing.__annotations__[name] = kind.__origin__


def finish(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages, put MathJax beside them, and drop the icons that none shows (1.4 MB of 1.5)."""
    if error is not None or app.builder.format != "html":
        return
    folder, static = Path(app.outdir), Path(app.outdir) / "_static"
    mathjax = distribution("sphinx-mathjax-offline").locate_file(f"sphinx-mathjax-offline/static/mathjax/{MATHJAX}")
    shutil.copyfile(str(mathjax), static / MATHJAX)
    icons = list(static.rglob("fontawesome.js"))
    shown = [path.read_text(encoding="utf-8") for path in static.rglob("*.js") if path not in icons]
    for path in (path for path in folder.rglob("*.html") if static not in path.parents):
        shown.append(page(path.read_text(encoding="utf-8")))
        path.write_text(shown[-1], encoding="utf-8")
    used = {name for text in shown for name in re.findall(r"\bfa-([\w-]+)", text)}
    for path in icons:
        script = ICON.sub(lambda m: m[0] if m[1] in used else "", path.read_text(encoding="utf-8"))
        path.write_text(script, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps, the last one after all that write pages."""
    app.connect("config-inited", without_thebe, priority=900)
    app.connect("autodoc-before-process-signature", plain_types)
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
