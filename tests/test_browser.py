"""The built book in a browser: every page opens cleanly, is light, readable, reachable and usable on a phone.

Needs a built book (``make book``) and Chromium, which is installed here from the Debian package where that is allowed;
without them the tests are skipped with the reason. With ``SRLIB_BROWSER=required``, as on GitHub, they fail instead.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup

REQUIRED = os.environ.get("SRLIB_BROWSER") == "required"
pytestmark = pytest.mark.browser


def without(reason: str) -> NoReturn:
    """Skip a test for what isn't there, or fail it where these tests are required."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


try:
    import axe_playwright_python  # noqa: F401
    import playwright.sync_api as playwright
except ImportError:
    if REQUIRED:
        raise
    pytest.skip("the browser tests need: pip install -e .[test]", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "book" / "_build" / "html"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
LIMIT = 3_000_000  # bytes of a page, which holds its images
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def chromium(built: Path, debian: Callable[..., str]) -> str:
    """The path of Chromium or Chrome, installed from the Debian package where it is missing and that is allowed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    problem = "" if any(map(shutil.which, names)) else debian("chromium", packages="chromium fonts-liberation")
    return next(filter(None, map(shutil.which, names)), None) or without(f"no Chromium: {problem}")


@contextmanager
def browser(path: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


class Quiet(SimpleHTTPRequestHandler):
    """The book's files, which a browser may keep: the port, and so each address, is new in every session."""

    protocol_version = "HTTP/1.1"  # a connection serves many requests

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def built() -> Path:
    if not (HTML / "index.html").is_file():
        without("no built book: run `make book` first")
    return HTML


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    """The book, served on this machine at a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class File:
    """What a page's HTML holds: ids, links and sources, images, and the levels of its article's heads."""

    def __init__(self, path: Path) -> None:
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        self.ids = [tag["id"] for tag in page.find_all(id=True)]
        self.links = {tag[name] for name in ("href", "src") for tag in page.find_all(attrs={name: True})}
        self.images = page.find_all("img")
        self.levels = [int(tag.name[1]) for tag in page.select("article :is(h1, h2, h3, h4, h5, h6)")]


read = cache(File)


@cache
def pages() -> tuple[str, ...]:
    """Every page of the built book but the one that leads to the first."""
    found = (path.relative_to(HTML) for path in HTML.rglob("*.html"))
    return tuple(sorted(path.as_posix() for path in found if path.parts[0] not in ("_static", "index.html")))


def test_every_link_and_source_leads_somewhere(built: Path) -> None:
    """Also to a place within a page; addresses elsewhere are not followed, and none is plain http."""
    broken = []
    for name in pages():
        for link in read(built / name).links:
            parts = urlsplit(link)
            if parts.scheme in ("data", "mailto", "https"):
                continue
            target = built / unquote(urljoin(f"/{name}", parts.path).lstrip("/")) if parts.path else built / name
            lost = parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids
            if parts.scheme or not target.is_file() or lost:
                broken.append((name, link))
    assert broken == []


def test_pages_are_light_ids_single_images_described_and_heads_in_order(built: Path) -> None:
    """An empty alternative is for the book's sign alone, beside which stands the book's name."""
    for name in pages():
        assert (built / name).stat().st_size < LIMIT, name
        file = read(built / name)
        assert {one for one in file.ids if file.ids.count(one) > 1} == set(), name
        for image in file.images:
            sign = "alt" in image.attrs and "logo__image" in image.get("class", [])
            assert image.get("alt") or sign, (name, str(image)[:90])
        if name not in ("search.html", "genindex.html", "py-modindex.html"):
            assert file.levels.count(1) == 1, name
            assert all(b <= a + 1 for a, b in zip(file.levels, file.levels[1:], strict=False)), (name, file.levels)


WIDE = """() => document.scrollingElement.scrollWidth <= innerWidth ? [] :
  [`${document.scrollingElement.scrollWidth} px`, ...[...document.querySelectorAll('main *')].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map(e => `${e.tagName}.${e.className}`)]"""
AXE = """async ([exclude, rules]) => (await axe.run({exclude}, {preload: false, resultTypes: ['violations'], ...rules}))
  .violations.map(one => `${one.id} (${one.nodes.length}): ${one.nodes.slice(0, 3).map(n => n.target).join('; ')}`)"""
SETTLED = """async () => { await window.MathJax?.startup?.promise;
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); }"""


@dataclass
class Visit:
    """What one page did and showed."""

    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    desktop: list[str] = field(default_factory=list)
    phone: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)


def visit(context: Any, address: str, name: str, script: str) -> Visit:
    """Open a page; look at it light at 1280 pixels, and dark at 360."""
    seen, shared = Visit(), [] if name.endswith("intro.html") else ["#pst-primary-sidebar"]  # the same on all pages
    page = context.new_page()
    own = (address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or seen.elsewhere.append(request.url))
    page.on("response", lambda answer: answer.ok or seen.errors.append(f"{answer.status}: {answer.url}"))
    page.on("pageerror", lambda error: seen.errors.append(f"exception: {error}"))
    page.on("console", lambda said: said.type == "error" and seen.errors.append(f"console: {said.text}"))

    def axe(*only: str) -> list[str]:
        page.evaluate(SETTLED)
        return page.evaluate(AXE, [[*shared, "mjx-container svg"], {"runOnly": list(only)} if only else {}])

    page.goto(address + name, wait_until="load")
    page.evaluate(f"{script};0")
    seen.desktop = axe()
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector('html[data-theme="dark"]', state="attached")
    if not shared:  # the side bars, which a phone hides, are alike on all pages
        seen.desktop += axe("color-contrast")
    page.set_viewport_size(PHONE)
    seen.phone = axe("color-contrast", "scrollable-region-focusable", "target-size")
    seen.wide = page.evaluate(WIDE)
    page.close()
    return seen


@pytest.fixture(scope="session")
def visits(chromium: str, address: str) -> dict[str, Visit]:
    """Every page, opened once, by two browsers."""
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    names = sorted(pages(), key=lambda name: -(HTML / name).stat().st_size)

    def work(mine: list[str]) -> dict[str, Visit]:
        with browser(chromium) as opened:
            context = opened.new_context(viewport=DESKTOP, reduced_motion="reduce", color_scheme="light")
            context.add_init_script("try { localStorage.clear() } catch {}")  # each page as on a first visit
            return {name: visit(context, address, name, script) for name in mine}

    with ThreadPoolExecutor(2) as pool:
        return {name: seen for part in pool.map(work, [names[::2], names[1::2]]) for name, seen in part.items()}


@pytest.mark.parametrize("what", ["errors", "elsewhere", "desktop", "phone", "wide"])
def test_every_page_is_clean(visits: dict[str, Visit], what: str) -> None:
    """No error on the console, nothing fetched from elsewhere; axe-core finds nothing on a light page at 1280 pixels,
    and on a dark one at 360 no contrast too low and nothing out of reach; there nothing is wider than the screen."""
    assert {name: getattr(seen, what) for name, seen in visits.items() if getattr(seen, what)} == {}


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    with browser(chromium) as opened:
        context = opened.new_context(viewport=DESKTOP, reduced_motion="reduce")
        context.set_default_timeout(10_000)
        yield context.new_page()


def test_the_books_address_opens_its_first_page_and_search_finds_another(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_url("**/intro.html")
    page.goto(f"{address}search.html?q=SAFMN")
    page.wait_for_selector("#search-results li a")


@pytest.fixture
def compared(page: Any, address: str) -> Callable[[], Any]:
    """The first page with a comparison of images."""
    with_one = [name for name in pages() if 'class="srlib-viz srlib-compare' in (HTML / name).read_text()]
    assert with_one, "the book has no page that compares images"
    page.goto(address + with_one[0])
    page.evaluate(SETTLED)
    page.locator('.srlib-live [role="slider"]:visible').first.scroll_into_view_if_needed()
    return page


def test_the_divider_moves_by_mouse_and_by_keyboard(compared: Any) -> None:
    slider = compared.locator('.srlib-live [role="slider"]:visible').first
    value = partial(slider.get_attribute, "aria-valuenow")
    before, box = float(value()), slider.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    compared.mouse.move(x, y)
    compared.mouse.down()
    compared.mouse.move(x + 60, y, steps=4)
    compared.mouse.up()
    assert float(value()) > before
    reached = []
    for key in ("Home", "ArrowRight", "End"):
        slider.press(key)
        reached.append(float(value()))
    assert 0 <= reached[0] < reached[1] < reached[2] <= 100


def test_all_panels_zoom_together_and_back(compared: Any) -> None:
    figure = compared.locator(".srlib-live:visible").first
    widths = "images => images.map(image => Math.round(image.getBoundingClientRect().width))"
    panels = figure.locator(".srlib-panes img")
    before = panels.evaluate_all(widths)
    for _ in range(2):
        figure.locator('button[data-zoom="in"]').click()
    near = panels.evaluate_all(widths)
    assert len(before) > 1 and all(b > 1.9 * a for a, b in zip(before, near, strict=True))
    figure.locator('button[data-zoom="reset"]').click()
    assert panels.evaluate_all(widths) == before
