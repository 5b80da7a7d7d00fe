"""A Sphinx extension that mends what the theme and its extensions leave wrong in the finished pages.

Screen readers: parts of the side bar without a name or outside every landmark, lists whose items don't say so. Network
and console: scripts for live code, which this book does not offer, and which name an address elsewhere. Weight: a file
of two thousand icons of which the pages show a dozen. Each step changes nothing where a newer version has mended it.
"""

import re
import typing
from collections.abc import Iterable
from html import escape
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

ICON = re.compile(r'"?([\w-]+)"?:\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')
"""An icon in the theme's script: its name, size, aliases, code point and outline."""

INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="refresh" content="0; url={page}"/>
<title>{title}</title>
<link rel="icon" href="{icon}"/>
</head>
<body><main><h1><a href="{page}">{title}</a></h1></main></body>
</html>
"""
"""The page that a folder's address opens: it leads to the first page of the book."""


def page(html: str) -> str:
    """A finished page, mended."""
    html = re.sub(
        r'(<a class="(?:current )?reference internal"[^>]*>([^<]*)</a><details[^>]*>)<summary>',
        lambda m: f'{m[1]}<summary aria-label="Pages of {m[2].replace(chr(34), "&quot;")}">',
        html,
    )
    side = '<div id="pst-primary-sidebar"'
    html = html.replace(f"{side} class=", f'{side} role="complementary" aria-label="Book" class=')
    html = html.replace('role="doc-biblioentry"', 'role="listitem"')
    return re.sub(r'<dt class="sig .*?</dt>', lambda m: signature(m[0]), html, flags=re.S)


def signature(html: str) -> str:
    """A signature over several lines: what Sphinx writes as definitions without a term becomes plain lines."""
    html = html.replace("<dl>", '<span class="sig-lines">').replace("</dl>", "</span>")
    return html.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def icons(script: str, names: Iterable[str]) -> str:
    """The theme's script of icons with those of these names alone."""
    wanted = set(names)
    return ICON.sub(lambda m: m[0] if m[1] in wanted else "", script)


def without_live_code(app: Sphinx, config: Config) -> None:
    """Take out what sphinx-thebe adds to every page: scripts, which its own setting only defers, and a style sheet."""
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
    """Mend the pages and the icons, and write the page that the book's address opens."""
    if error is not None or app.builder.format != "html":
        return
    folder, static = Path(app.outdir), Path(app.outdir) / "_static"
    used: set[str] = set()
    for path in sorted(folder.rglob("*.html")):
        if static not in path.parents:
            text = page(path.read_text(encoding="utf-8"))
            path.write_text(text, encoding="utf-8")
            used |= set(re.findall(r"\bfa-([\w-]+)", text))
    for path in static.rglob("fontawesome.js"):
        others = [other.read_text(encoding="utf-8") for other in static.rglob("*.js") if other != path]
        used |= {name for text in others for name in re.findall(r"\bfa-([\w-]+)", text)}
        path.write_text(icons(path.read_text(encoding="utf-8"), used), encoding="utf-8")
    root, icon = app.config.root_doc, Path(app.config.html_favicon or "").name
    if root != "index":
        title = escape(app.config.html_title)
        (folder / "index.html").write_text(INDEX.format(page=f"{root}.html", title=title, icon=f"_static/{icon}"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps, the last one after all that write pages."""
    app.connect("config-inited", without_live_code, priority=900)
    app.connect("autodoc-before-process-signature", plain_types)
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
