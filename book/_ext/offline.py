"""A Sphinx extension that lets equations show without a network.

MathJax is taken from the installed package ``sphinx-mathjax-offline`` as its one-file SVG build, which needs no font
files and so also works when a page is opened from a disk instead of a server.
"""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

BUNDLE = "tex-svg-full.js"


def bundle() -> Path:
    """The MathJax bundle inside the installed package."""
    try:
        package = distribution("sphinx-mathjax-offline")
    except PackageNotFoundError as error:
        raise ConfigError("sphinx-mathjax-offline is not installed; run: pip install sphinx-mathjax-offline") from error
    return Path(str(package.locate_file(f"sphinx-mathjax-offline/static/mathjax/{BUNDLE}")))


def use_local_copy(app: Sphinx, config: Config) -> None:
    """Point the pages at the local copy."""
    config.mathjax_path = BUNDLE


def copy_bundle(app: Sphinx, error: Exception | None) -> None:
    """Put the bundle beside the other static files once the pages are written."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(bundle(), Path(app.outdir) / "_static" / BUNDLE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the two steps."""
    app.connect("config-inited", use_local_copy)
    app.connect("build-finished", copy_bundle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
