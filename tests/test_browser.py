"""The built book in a browser: every page opens cleanly, is light, readable, reachable and usable on a phone.

Needs a built book (``make book``) and Chromium, which is installed here from the Debian package where that is allowed.
Every page is opened once; the record pages, of which there may be hundreds, are opened as a sample of each kind, while
their links and what they say are all checked.

What isn't there skips the tests with a reason. With ``SRLIB_BROWSER=required`` in the environment, as in the workflow
of GitHub Actions, it fails them instead: a built book, Chromium and the packages that drive it must then be there.
"""

import gzip
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from filelock import FileLock

from srlib.viz import VERDICTS

REQUIRED = os.environ.get("SRLIB_BROWSER") == "required"


def needed(module: str) -> ModuleType:
    """A module, without which these tests are skipped, or fail where they are required."""
    if REQUIRED:
        return import_module(module)
    return pytest.importorskip(module, reason="the browser tests need: pip install -e .[test]")


def without(reason: str) -> NoReturn:
    """Skip a test for what isn't there, or fail it where these tests are required."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


yaml, playwright = needed("yaml"), needed("playwright.sync_api")
needed("axe_playwright_python")

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "book" / "_build" / "html"
BOOK_JS = ROOT / "book" / "_static" / "book.js"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIMIT = 3_000_000  # bytes of a page: its own, and what a first visit transfers in all
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}


# --- The browser ---


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium or Chrome, installed from the Debian package where it is missing and that is allowed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

    def found() -> str | None:
        return next((path for path in map(shutil.which, names) if path), None)

    if not found() and shutil.which("apt-get") and os.geteuid() == 0:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        with FileLock(Path(tempfile.gettempdir()) / "srlib-chromium.lock"):
            for words in (("update",), ("install", "--yes", "--no-install-recommends", "chromium", "fonts-liberation")):
                if found():
                    break
                command = ["apt-get", "-qq", *words]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=240)
                except subprocess.TimeoutExpired:
                    without(f"no Chromium, and apt-get {words[0]} did not end within 240 s")
                if done.returncode:
                    without(f"no Chromium, and apt-get can't install it: {done.stderr.strip()[-200:]}")
    path = found()
    if not path:
        without("no Chromium: install the package chromium (as root, the tests do so themselves)")
    return path


@contextmanager
def browser(path: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shared(chromium: str) -> Iterator[Any]:
    """A browser for the tests that use pages, one after another."""
    with browser(chromium) as opened:
        yield opened


@pytest.fixture(scope="session")
def built() -> Path:
    if not (HTML / "index.html").is_file():
        without("no built book: run `make book` first")
    return HTML


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of a browser that goes on before it was answered."""


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    """The book, served on this machine at a free port."""
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


# --- What the files say ---


@dataclass
class File(HTMLParser):
    """What a page's HTML holds: its ids, links, images and sources, and its article's text and levels of heads.

    ``records`` are the links to records, ``numbers`` those of them that stand in an entry of a table.
    """

    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    headings: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    skipped: int = 0
    inside: int = 0
    entry: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.skipped += tag in ("script", "style")
        self.ids += [found["id"]] if found.get("id") else []
        classes = (found.get("class") or "").split()
        self.classes |= set(classes)
        if tag in ("a", "link", "area") and found.get("href"):
            self.links.append(found["href"])
            self.records += [found["href"]] if "srlib-record" in classes else []
            self.numbers += [found["href"]] if "srlib-record" in classes and self.entry else []
        if tag == "img":
            self.images.append(found)
        self.inside += tag == "article"
        self.entry += tag == "td"
        if self.inside and re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.sources += [found["src"]] if found.get("src") else []
        self.sources += [part.split()[0] for part in (found.get("srcset") or "").split(", ") if part]

    def handle_endtag(self, tag: str) -> None:
        self.skipped -= tag in ("script", "style")
        self.inside -= tag == "article"
        self.entry -= tag == "td"

    def handle_data(self, data: str) -> None:
        if self.inside and not self.skipped:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@cache
def read(path: Path) -> File:
    parsed = File()
    parsed.feed(path.read_text(encoding="utf-8"))
    return parsed


@cache
def pages() -> tuple[str, ...]:
    """Every page of the built book, by its path."""
    found = (path for path in HTML.rglob("*.html") if "_static" not in path.relative_to(HTML).parts)
    return tuple(sorted(path.relative_to(HTML).as_posix() for path in found))


def listed() -> list[str]:
    """What the table of contents lists."""
    return re.findall(r"'file': '([^']+)'", str(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())))


def kind(name: str) -> str:
    """The kind of a record, by its name."""
    if re.search(r"-[0-9a-f]{12}$|^trained-|-seed\d+$", name):
        return "run"
    if name in ("index", "tables"):
        return "index"
    return "chapter" if name.startswith("chapter-") else "table" if "-table-" in name else "scores"


KINDS = {"run", "table", "chapter", "scores", "index"}


def sample() -> list[str]:
    """The pages to open: all, but of each kind of record the lightest and the heaviest."""
    kinds: dict[str, list[str]] = {}
    opened = []
    for name in pages():
        if name.startswith("records/") and kind(Path(name).stem) != "index":
            kinds.setdefault(kind(Path(name).stem), []).append(name)
        elif name != "index.html":
            opened.append(name)
    for names in kinds.values():
        names.sort(key=lambda name: (HTML / name).stat().st_size)
        opened += dict.fromkeys((names[0], names[-1]))
    return opened


def test_a_record_of_each_kind_is_opened(built: Path) -> None:
    assert {kind(Path(name).stem) for name in sample() if name.startswith("records/")} == KINDS


def test_every_page_that_is_listed_was_built(built: Path) -> None:
    assert [name for name in listed() if f"{name}.html" not in pages()] == []


def test_every_link_and_source_leads_somewhere(built: Path) -> None:
    """Also to a place within a page; addresses elsewhere are not followed, and none is plain http."""
    broken = []
    for name in pages():
        for link in {*read(built / name).links, *read(built / name).sources}:
            parts = urlsplit(link)
            if parts.scheme in ("data", "mailto", "https"):
                continue
            if parts.scheme or parts.netloc:
                broken.append((name, link))
                continue
            target = built / unquote(urljoin(f"/{name}", parts.path).lstrip("/")) if parts.path else built / name
            if not target.is_file():
                broken.append((name, link))
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids:
                broken.append((name, link))
    assert broken == []


def test_an_id_is_given_once_a_page(built: Path) -> None:
    twice = {name: {i for i in read(built / name).ids if read(built / name).ids.count(i) > 1} for name in pages()}
    assert {name: ids for name, ids in twice.items() if ids} == {}


def test_every_image_has_a_text_alternative(built: Path) -> None:
    """An empty one is for the book's sign alone, beside which stands the book's name."""
    without = [
        (name, (image.get("src") or "")[:60])
        for name in pages()
        for image in read(built / name).images
        if not image.get("alt") and not ("alt" in image and "logo__image" in (image.get("class") or ""))
    ]
    assert without == []


def test_a_verdict_reads_without_its_colour(built: Path) -> None:
    """Each badge of the book has its verdict's symbol and word; a brief one keeps the word for screen readers."""
    seen = set()
    for name in pages():
        badges = re.findall(r'<span class="verdict verdict-([\w-]+)">(.*?)</span>', (built / name).read_text())
        for verdict, inner in badges:
            assert re.sub(r"<[^>]*>", "", inner) == " ".join(VERDICTS[verdict]), name
            seen.add(verdict)
    assert seen == set(VERDICTS)


def test_headings_go_down_a_level_at_a_time(built: Path) -> None:
    for name in set(pages()) - {"index.html", "search.html"}:
        levels = read(built / name).headings
        assert levels.count(1) == 1, f"{name}: {levels.count(1)} titles"
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), f"{name}: {levels}"


# --- What the browser says ---

MEASURE = """() => {
  const over = document.scrollingElement.scrollWidth - innerWidth;
  if (over <= 0) return [];
  const boxed = ({parentElement: box}) => box && (getComputedStyle(box).overflowX !== 'visible' || boxed(box));
  const wide = e => e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e);
  const said = e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`;
  return [`${over} px too wide`, ...[...document.querySelectorAll('main *')].filter(wide).slice(0, 5).map(said)];
}"""
UNSORTED = """() => [...document.querySelectorAll('.srlib-table table, .bd-article table.table')].filter(table => {
  const rows = [...table.tBodies].flatMap(body => [...body.rows]);
  const runs = rows.map(row => row.matches('.srlib-group, .srlib-total') ? '|' : '.').join('').split(/[|]+/);
  return runs.some(run => run.length > 1) && !table.querySelector('thead button.srlib-sort');
}).map(table => table.textContent.trim().slice(0, 60))"""
AXE = """async ([exclude, rules]) => (await axe.run({exclude}, {preload: false, resultTypes: ['violations'],
  ...rules})).violations"""
SHARED = "#pst-primary-sidebar"  # the same on all pages, and looked at where it is first seen and where it is longest
DRAWN = "mjx-container svg"  # an equation's glyphs: thousands of shapes without text


@dataclass
class Visit:
    """What one page did and showed."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    light: list[str] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    phone: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    unsorted: list[str] = field(default_factory=list)


def axe(page: Any, *only: str) -> list[str]:
    """The violations that axe-core finds, of these rules or of all, one line each with the first places."""
    shown = [] if re.search(r"/(intro|api/index)\.html", page.url) else [SHARED]
    found = page.evaluate(AXE, [[*shown, DRAWN], {"runOnly": list(only)} if only else {}])
    return [
        f"{one['id']} ({one['impact']}, {len(one['nodes'])}): "
        + "; ".join(f"{' '.join(map(str, node['target']))}" for node in one["nodes"][:3])
        for one in found
    ]


def watch(page: Any, visit: Visit) -> None:
    """Note the requests of a page, and all that goes wrong."""
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("requestfailed", lambda request: visit.errors.append(f"failed: {request.url}"))
    page.on("response", lambda answer: answer.ok or visit.errors.append(f"{answer.status}: {answer.url}"))
    page.on("pageerror", lambda error: visit.errors.append(f"exception: {error}"))
    page.on("console", lambda said: said.type == "error" and visit.errors.append(f"console: {said.text}"))


def settle(page: Any) -> None:
    """Wait for equations, and for two drawings of the page."""
    page.evaluate("""async () => {
      await window.MathJax?.startup?.promise;
      await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    }""")


def visit(opened: Any, url: str, script: str) -> Visit:
    """Open a page as a first-time reader does, look at it light, dark and on a phone."""
    seen = Visit()
    context = opened.new_context(viewport=DESKTOP, reduced_motion="reduce", color_scheme="light")
    page = context.new_page()
    watch(page, seen)
    page.goto(url, wait_until="load")
    settle(page)
    page.evaluate(f"{script};0")
    seen.light = axe(page)
    seen.unsorted = page.evaluate(UNSORTED)
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector('html[data-theme="dark"]', state="attached")
    settle(page)
    seen.dark = axe(page, "color-contrast")
    page.set_viewport_size(PHONE)
    settle(page)
    seen.wide = page.evaluate(MEASURE)
    seen.phone = axe(page, "scrollable-region-focusable", "target-size")
    context.close()
    return seen


@pytest.fixture(scope="session")
def visits(chromium: str, address: str) -> dict[str, Visit]:
    """Every page of the sample, opened once, by two browsers or as many as there are processors, up to four."""
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    names = sorted(sample(), key=lambda name: (HTML / name).stat().st_size, reverse=True)

    def work(mine: list[str]) -> dict[str, Visit]:
        with browser(chromium) as opened:
            return {name: visit(opened, address + name, script) for name in mine}

    count = min(4, max(2, os.cpu_count() or 2))
    with ThreadPoolExecutor(count) as pool:
        parts = pool.map(work, [names[k::count] for k in range(count)])
        return {name: seen for part in parts for name, seen in part.items()}


def problems(visits: dict[str, Visit], what: Callable[[Visit], list[str]]) -> dict[str, list[str]]:
    return {name: what(seen) for name, seen in visits.items() if what(seen)}


def test_no_page_fails_or_complains(visits: dict[str, Visit]) -> None:
    assert problems(visits, lambda seen: seen.errors) == {}


def test_nothing_is_fetched_from_elsewhere(visits: dict[str, Visit], address: str) -> None:
    def elsewhere(seen: Visit) -> list[str]:
        return [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))]

    assert problems(visits, elsewhere) == {}


def test_no_page_is_over_three_megabytes(visits: dict[str, Visit], address: str) -> None:
    """A page's own weight: its HTML and images as they are. And what a first visit transfers in all, compressed as a
    server does it: with style, scripts, font, search index and MathJax, which pages share and a browser then keeps."""

    def shared_by_all(path: Path) -> bool:
        return path.is_relative_to(HTML / "_static") or path == HTML / "searchindex.js"

    @cache
    def sizes(path: Path) -> tuple[int, int]:
        content = path.read_bytes()
        return len(content), len(gzip.compress(content, 6))

    heavy = {}
    for name, seen in visits.items():
        urls = {url.partition("#")[0].partition("?")[0] for url in seen.requests if url.startswith(address)}
        files = {HTML / unquote(url.removeprefix(address)) for url in urls}
        named = (urlsplit(link) for link in read(HTML / name).sources)
        files |= {HTML / urljoin(name, unquote(link.path)) for link in named if not link.scheme}
        own = sum(sizes(path)[0] for path in files if not shared_by_all(path))
        transferred = sum(sizes(path)[1] for path in files)
        if max(own, transferred) > LIMIT:
            heavy[name] = (own, transferred)
    assert heavy == {}


@pytest.mark.parametrize("how", ["light", "dark", "phone"])
def test_pages_are_accessible(visits: dict[str, Visit], how: str) -> None:
    """axe-core finds nothing: all of its rules on a light page, contrast on a dark one, reach and size on a phone."""
    assert problems(visits, lambda seen: getattr(seen, how)) == {}


def test_pages_fit_a_phone(visits: dict[str, Visit]) -> None:
    assert problems(visits, lambda seen: seen.wide) == {}


def test_every_table_of_several_rows_can_be_sorted(visits: dict[str, Visit]) -> None:
    assert problems(visits, lambda seen: seen.unsorted) == {}


def test_the_books_address_opens_its_first_page(shared: Any, address: str) -> None:
    context = shared.new_context()
    page, seen = context.new_page(), Visit()
    watch(page, seen)
    page.goto(address)
    page.wait_for_url("**/intro.html")
    context.close()
    assert [error for error in seen.errors if not error.startswith("failed")] == []  # it leaves before all is loaded


# --- Sorting ---


@pytest.fixture
def page(shared: Any) -> Iterator[Any]:
    context = shared.new_context(viewport=DESKTOP, reduced_motion="reduce")
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


def column(page: Any, number: int) -> list[str]:
    """The entries of a column of the page's first table as they stand, headings of groups as their text."""
    code = "(rows, k) => rows.map(row => (row.cells[row.matches('.srlib-group') ? 0 : k].textContent.trim()))"
    return page.eval_on_selector_all(":nth-match(table, 1) tbody tr", code, number)


def made(page: Any, head: str, body: str) -> None:
    """A page of one table and the book's script."""
    table = f'<main class="bd-article"><div class="srlib-table"><table>{head}<tbody>{body}</tbody></table></div></main>'
    whole = f'<meta charset="utf-8"><script>{BOOK_JS.read_text()}</script>{table}'
    page.route("http://made.test/", lambda route: route.fulfill(content_type="text/html", body=whole))
    page.goto("http://made.test/")


ORDER = {
    "decimals": ["\u22122.5", "-1", ".5", "9.5", "10.25"],
    "thousands": ["999", "1,000", "98,765", "1,234,567"],
    "spaces": ["100", "9\u202f999", "12\u202f345"],
    "scales": ["\u00d72", "\u00d73", "\u00d74", "x12"],
    "units": ["3", "15 k", "800 M", "1.2 G"],
    "times": ["90 ms", "65 s", "2 min", "1.5 h"],
    "bytes": ["2 kB", "900 MiB", "1.5 GiB"],
    "spreads": ["\u00b10.3", "9.8 \u00b1 3", "10.2 \u00b1 0.1", "~10.5"],
    "powers": ["5\u00d710\u207b\u2074", "1\u00d710\u207b\u00b3", "2e-2", "1"],
    "percent": ["9 %", "12.5 %", "100 %"],
}


@pytest.mark.parametrize("kind", ORDER)
def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(page: Any, kind: str) -> None:
    mixed = ["\u2013", ORDER[kind][-1], *ORDER[kind][:-1], "not run"]
    body = "".join(f"<tr><td>{entry}</td></tr>" for entry in mixed)
    made(page, "<thead><tr><th>n</th></tr></thead>", body)
    page.click("th button")
    assert column(page, 0) == [*ORDER[kind], "\u2013", "not run"]
    page.click("th button")
    assert column(page, 0) == [*ORDER[kind][::-1], "\u2013", "not run"]
    page.click("th button")
    assert column(page, 0) == mixed


def test_words_sort_as_words_by_their_numbers(page: Any) -> None:
    rows = ["stage 10", "stage 9", "Stage 1", "\u00e9cart", "zoo"]
    made(page, "<thead><tr><th>name</th></tr></thead>", "".join(f"<tr><td>{row}</td></tr>" for row in rows))
    page.click("th button")
    assert column(page, 0) == ["\u00e9cart", "Stage 1", "stage 9", "stage 10", "zoo"]


def test_a_printed_table_sorts_by_its_lower_heads_within_groups_and_keeps_totals(page: Any) -> None:
    head = (
        '<thead><tr><td></td><th colspan="2">Set5</th></tr>'
        '<tr><th scope="col">row</th><th scope="col">PSNR</th><th scope="col">verdict</th></tr></thead>'
    )

    def row(name: str, printed: str, verdict: str) -> str:
        shown = f'<span class="srlib-printed">{printed}</span><span class="srlib-ours">99 more</span>'
        badge = f'<span class="verdict verdict-{verdict}">\u00b7 {verdict.replace("-", " ")}</span>'
        return f'<tr><th scope="row">{name}</th><td>{shown}</td><td>{badge}</td></tr>'

    group = '<tr class="srlib-group"><th colspan="3">{}</th></tr>'
    body = group.format("\u00d72") + row("b", "30.1", "not-run") + row("a", "9.7", "differs") + row("c", "31", "exact")
    body += group.format("\u00d73") + row("e", "2", "within") + row("d", "1", "exact")
    body += '<tr class="srlib-total"><th>all</th><td>0</td><td>0</td></tr>'
    made(page, head, body)
    assert page.locator("thead tr:first-child button").count() == 0
    page.get_by_role("button", name="PSNR").click()
    assert column(page, 0) == ["\u00d72", "a", "b", "c", "\u00d73", "d", "e", "all"]
    page.get_by_role("button", name="PSNR").click()
    assert column(page, 0) == ["\u00d72", "c", "b", "a", "\u00d73", "e", "d", "all"]
    page.get_by_role("button", name="verdict").click()
    assert column(page, 0) == ["\u00d72", "c", "a", "b", "\u00d73", "d", "e", "all"]
    assert page.locator("[aria-sort]").count() == 1


def test_a_column_of_drawings_and_a_head_over_two_columns_have_no_button(page: Any) -> None:
    row = "<tr><td>{}</td><td><div class='bar'></div></td><td>1</td><td>2</td></tr>"
    head = "<thead><tr><th>n</th><th>share</th><th colspan='2'>both</th></tr></thead>"
    made(page, head, row.format(2) + row.format(1))
    assert page.locator("thead button").all_text_contents() == ["n"]


def test_a_number_that_is_given_wins_and_one_row_has_nothing_to_sort(page: Any) -> None:
    rows = ('data-sort="3">one', 'data-sort="-1">nine', 'data-sort="2">five')
    made(page, "<thead><tr><th>n</th></tr></thead>", "".join(f"<tr><td {row}</td></tr>" for row in rows))
    page.click("th button")
    assert column(page, 0) == ["nine", "five", "one"]
    made(page, "<thead><tr><th>n</th></tr></thead>", "<tr><td>1</td></tr>")
    assert page.locator("button").count() == 0


def test_sorting_works_by_keyboard_and_says_so(page: Any) -> None:
    made(page, "<thead><tr><th>n</th></tr></thead>", "<tr><td>2</td></tr><tr><td>1</td></tr><tr><td>3</td></tr>")
    page.keyboard.press("Tab")
    states, orders, said = [], [], []
    for key in ("Enter", "Space", "Enter"):
        page.keyboard.press(key)
        states.append(page.locator("th").get_attribute("aria-sort"))
        orders.append("".join(column(page, 0)))
        said.append(page.get_by_role("status").text_content())
    assert states == ["ascending", "descending", None]
    assert orders == ["123", "321", "213"]
    assert said == ["Sorted by n, ascending", "Sorted by n, descending", "In the order of the page"]
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


def test_a_table_of_the_book_sorts_without_a_jump(page: Any, address: str) -> None:
    """SAFMN's Table 1: its columns keep their widths, and a third click restores the paper's order."""
    page.goto(f"{address}chapters/safmn/3-tables.html")
    settle(page)
    table = page.locator(".srlib-table table").first
    head = table.get_by_role("button", name="PSNR").first
    widths = "e => [...e.tHead.rows].flatMap(row => [...row.cells].map(cell => cell.getBoundingClientRect().width))"
    names, before = column(page, 0), table.evaluate(widths)
    head.click()
    assert sorted(column(page, 0)) == sorted(names) != column(page, 0) != names
    assert table.evaluate(widths) == before
    head.click()
    head.click()
    assert column(page, 0) == names


# --- Search ---


@pytest.mark.parametrize(
    ("words", "expected"), [("NIQE", "7-real-world"), ("forward hooks", "features"), ("Speed", "safmn/6-speed")]
)
def test_search_finds_pages(page: Any, address: str, words: str, expected: str) -> None:
    page.goto(f"{address}search.html?q={words}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelector('#search-results p')?.textContent.includes('found')")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
    assert any(expected in link for link in found)


# --- Records ---

COMMIT = r"[0-9a-f]{7,}(\+changes)?" if (ROOT / ".git").exists() else "unknown"
PRINT = r"[0-9a-f]{64}"
SAID = {
    "run": [
        ("training", "seed", r"\d+"), ("data", "images", r".+"), ("data", "fingerprint", PRINT),
        ("protocol", "name", r"\w+"), ("made-by", "commit", COMMIT), ("made-by", "device", r".+"),
        ("made-by", "seed", r"\d+"), ("make-it-again", "", r".*\$ (srlib train|python notebooks/run\.py) .+"),
    ],
    "table": [
        ("", "", rf".* Counted at commit {COMMIT}, with srlib \d.+"), ("make-it-again", "", r".*\$ srlib table .+"),
    ],
    "chapter": [
        ("made-by", "commit", COMMIT), ("made-by", "device", r".+"), ("made-by", "threads", r"\d+"),
        ("make-it-again", "", r".*\$ python notebooks/run\.py notebooks/.+ It took \d.+"),
    ],
    "scores": [("", "", rf".* Commit {COMMIT} last changed the file\..*")],
}  # fmt: skip
"""What a record of each kind has to say: in a section ("" is the whole page) the value of a row ("" is all its text),
as a pattern."""
UNSAID = ("not noted", "nothing else is known", "is not here")


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)).split())


def section(html: str, name: str) -> str:
    """A section of a record's page; "" where there is none."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    return found[1] if found else ""


def rows(html: str) -> list[list[str]]:
    """The lines of all tables, entry by entry."""
    lines = re.findall(r"<tr\b[^>]*>(.*?)</tr>", html, re.DOTALL)
    return [[text_of(entry) for entry in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", line, re.DOTALL)] for line in lines]


def unsaid(path: Path) -> Iterator[str]:
    """What a record's page leaves out."""
    name, html = path.stem, re.search(r"<article.*</article>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
    yield from (words for words in UNSAID if words in text_of(html))
    for part, row, pattern in SAID[kind(name)]:
        inner = section(html, part) if part else html
        values = [line[1] for line in rows(inner) if line[0] == row] if row else [text_of(inner)]
        if not values or not all(re.fullmatch(pattern, value) and value != "none" for value in values):
            yield f"{part} {row}: {values if row else 'other words'}"
    if kind(name) == "run":
        drawn, log = re.search(r"<figure.*?<img", section(html, "training-log"), re.DOTALL), f"{name}.log.csv"
        if not drawn or f'href="{log}"' not in html or len(path.with_name(log).read_text().splitlines()) < 2:
            yield "a log, drawn and to download"
    if kind(name) == "table":
        cells = rows(section(html, "cells"))[1:]
        number = re.search(r"(\d+) cells, ", text_of(html))
        words = {" ".join(verdict) for verdict in VERDICTS.values()}
        if not cells or not number or int(number[1]) != len(cells):
            yield "all cells"
        yield from (f"cell {cell[:2]}" for cell in cells if not cell[2] or not cell[3] or cell[5] not in words)
    if kind(name) == "chapter" and "It read no images." not in text_of(html):
        sets = rows(section(html, "data"))[1:]
        if not sets or not all(re.fullmatch(PRINT, line[2]) and line[1].isdecimal() for line in sets):
            yield f"data: {sets}"
    if kind(name) == "scores" and section(html, "scores"):
        protocol = [line[1] for line in rows(section(html, "protocol")) if line[0] == "name"]
        if not all(protocol or [""]) or not re.search(f"fingerprint {PRINT}", text_of(section(html, "scores"))):
            yield f"protocol: {protocol}, and a fingerprint"


def recorded() -> dict[str, list[str]]:
    """The records that each page leads to."""
    found = {name: read(HTML / name).records for name in pages() if not name.startswith("records/")}
    return {name: links for name, links in found.items() if links}


def test_every_chapter_leads_to_its_records(built: Path) -> None:
    """And a page with scores of a trained network from the numbers themselves to the record of its run."""
    chapters = {f"{name}.html" for name in listed() if name.startswith("chapters/")}
    assert chapters - set(recorded()) == set()
    trained = {name for name in chapters if re.search(r"/2-training|/compare/1-scores", name)}
    assert len(trained) == 5
    leads = {name: {kind(Path(urlsplit(link).path).stem) for link in read(built / name).numbers} for name in trained}
    assert {name: kinds for name, kinds in leads.items() if "run" not in kinds} == {}


def test_records_say_what_made_a_number(built: Path) -> None:
    """Those that a page leads to, by their values: commit, seed, fingerprints, protocol, log, cells, command."""
    named = {urljoin(name, link).partition("#")[0] for name, links in recorded().items() for link in links}
    named = {path for path in named if kind(Path(path).stem) != "index"}
    missing = {Path(path).stem: [*unsaid(built / path)] for path in sorted(named)}
    assert {name: what for name, what in missing.items() if what} == {}
    assert {kind(name) for name in missing} == KINDS - {"index"}


def test_a_click_on_a_number_opens_its_record_at_its_place(page: Any, address: str, built: Path) -> None:
    """From a page of each paper: the first link of each kind of record that stands there."""
    followed = set()
    for name, links in recorded().items():
        for link in links if name.startswith("chapters/") else ():
            target, _, anchor = urljoin(name, link).partition("#")
            what = (name.split("/")[1], kind(Path(target).stem), bool(anchor))
            if what in followed:
                continue
            page.goto(address + name)
            page.locator(f'a.srlib-record[href="{link}"]').first.click()
            page.wait_for_url(f"**/{target}*")
            assert "Record" in page.title()
            assert not anchor or page.evaluate("document.querySelector(':target') !== null")
            followed.add(what)
    kinds = (("run", False), ("table", True), ("chapter", False))
    wanted = {(paper, *what) for paper in ("safmn", "seemore", "ssiu", "moeisr") for what in kinds}
    assert wanted - followed == set()


# --- Comparison ---


@pytest.fixture
def compared(page: Any, address: str) -> Any:
    """The page of a photograph with its figure."""
    names = [name for name in listed() if re.search(r"compare/[a-z]+$", name)]
    assert names, "the book lists no page that compares a photograph"
    empty = [name for name in names if "srlib-compare" not in read(HTML / f"{name}.html").classes]
    assert empty == [], "a photograph's page without a comparison"
    page.goto(f"{address}{names[0]}.html")
    settle(page)
    page.get_by_role("slider").first.scroll_into_view_if_needed()
    return page


def at_percent(page: Any) -> float:
    return float(page.get_by_role("slider").first.get_attribute("aria-valuenow"))


def middle(box: dict[str, float]) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_divider_moves_by_mouse_and_shows_more_of_one_image(compared: Any) -> None:
    figure, slider = compared.locator(".srlib-compare").first, compared.get_by_role("slider").first
    before, picture = at_percent(compared), figure.screenshot()
    x, y = middle(slider.bounding_box())
    compared.mouse.move(x, y)
    compared.mouse.down()
    compared.mouse.move(x + 60, y, steps=4)
    compared.mouse.up()
    assert at_percent(compared) > before
    assert middle(slider.bounding_box())[0] == pytest.approx(x + 60, abs=3)
    assert figure.screenshot() != picture


def test_the_divider_moves_by_keyboard(compared: Any) -> None:
    slider = compared.get_by_role("slider").first
    slider.focus()
    reached = []
    for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
        compared.keyboard.press(key)
        reached.append(at_percent(compared))
    low, high = (float(slider.get_attribute(f"aria-value{end}")) for end in ("min", "max"))
    assert reached[0] == low < reached[1] < reached[3] < reached[2] == high
    assert slider.get_attribute("aria-label") or slider.get_attribute("aria-labelledby")


VIEWS = """() => [...document.querySelectorAll('.srlib-compare')[0].querySelectorAll('.srlib-pane')].map(pane => {
  const image = pane.querySelector('img, canvas').getBoundingClientRect();
  const frame = pane.querySelector('img, canvas').parentElement.getBoundingClientRect();
  return [image.width / frame.width, (image.left - frame.left) / frame.width, (image.top - frame.top) / frame.height];
})"""


def views(page: Any) -> list[list[float]]:
    """What each panel shows: how many times as wide as its window the image is, and where the image's corner lies from
    the window's, in parts of the window's sides."""
    page.wait_for_timeout(300)
    return page.evaluate(VIEWS)


@dataclass
class Phone:
    """A page on a phone, and fingers on it."""

    page: Any
    session: Any
    down: dict[str, tuple[float, float]] = field(default_factory=dict)

    def touch(self, **fingers: tuple[float, float]) -> None:
        """Have these fingers on the glass, at these places: what isn't named is lifted, what is new is put down."""
        lifted = {finger: place for finger, place in self.down.items() if finger not in fingers}
        how = "touchMove" if set(fingers) <= set(self.down) else "touchStart"
        for type_, those in (("touchEnd", lifted), (how, fingers)):
            points = [{"x": x, "y": y, "id": ord(finger)} for finger, (x, y) in those.items()]
            if points:
                self.session.send("Input.dispatchTouchEvent", {"type": type_, "touchPoints": points})
        self.down = fingers
        self.page.wait_for_timeout(50)


@pytest.fixture
def phone(shared: Any, compared: Any) -> Iterator[Phone]:
    """The page of a photograph on a phone, with the divider in sight."""
    context = shared.new_context(viewport=PHONE, has_touch=True, is_mobile=True, reduced_motion="reduce")
    page = context.new_page()
    page.goto(compared.url)
    settle(page)
    page.get_by_role("slider").first.scroll_into_view_if_needed()
    yield Phone(page, context.new_cdp_session(page))
    context.close()


def test_the_divider_moves_by_touch_on_a_phone(phone: Phone) -> None:
    before, (x, y) = at_percent(phone.page), middle(phone.page.get_by_role("slider").first.bounding_box())
    for place in (x, x - 30, x - 70):
        phone.touch(a=(place, y))
    phone.touch()
    assert at_percent(phone.page) < before


@pytest.mark.parametrize("last", ["a", "b"])
def test_a_pinch_zooms_and_leaves_the_divider(phone: Phone, last: str) -> None:
    """Whichever finger is lifted last, and wherever it goes before; a tap after that moves the divider again."""
    whole, before = views(phone.page), at_percent(phone.page)
    x, y = middle(phone.page.locator(".srlib-stage").first.bounding_box())
    there = {"a": (x - 50, y), "b": (x - 10, y)}
    phone.touch(a=there["a"])
    phone.touch(**there)
    there["b"] = (x + 30, y)
    phone.touch(**there)
    near = views(phone.page)
    assert all(view[0] == pytest.approx(2 * whole[0][0], rel=0.02) for view in near)
    phone.touch(**{last: there[last]})
    phone.touch()
    assert at_percent(phone.page) == before
    phone.touch(**there)
    for k in range(3):
        phone.touch(**{last: (there[last][0] + 25 * k, y)})
    phone.touch()
    assert at_percent(phone.page) == before
    phone.touch(a=(x + 90, y))
    phone.touch()
    assert at_percent(phone.page) > before + 10


def test_two_fingers_on_a_panel_zoom_all_of_them(phone: Phone) -> None:
    whole = views(phone.page)
    window = phone.page.locator(".srlib-pane .srlib-view").last
    window.scroll_into_view_if_needed()
    x, y = middle(window.bounding_box())
    for apart in (20, 40, 60):
        phone.touch(a=(x - apart, y), b=(x + apart, y))
    phone.touch()
    near = views(phone.page)
    assert near == [pytest.approx(near[0], abs=0.02)] * len(whole)
    assert near[0] == pytest.approx([3 * whole[0][0], -1, -1], rel=0.05), "about the middle between the fingers"


def test_all_panels_zoom_and_move_by_keyboard(compared: Any) -> None:
    whole = views(compared)
    compared.locator(".srlib-panes").first.focus()
    seen = []
    for key in ("ArrowRight", "+", "ArrowRight", "ArrowUp", "-", "+", "0"):
        compared.keyboard.press(key)
        seen.append(views(compared))
        assert seen[-1] == [pytest.approx(seen[-1][0], abs=0.02)] * len(whole)
    still, near, right, up, far, _, reset = (view[0] for view in seen)
    assert still == pytest.approx(whole[0], abs=0.02), "there is nowhere to go"
    assert near[0] == pytest.approx(2**0.5 * whole[0][0], rel=0.02)
    assert right == pytest.approx([near[0], near[1] - 0.1, near[2]], abs=0.02)
    assert up == pytest.approx([right[0], right[1], right[2] + 0.1], abs=0.02)
    assert far == reset == pytest.approx(whole[0], abs=0.02)


def test_the_wheel_zooms_with_ctrl_and_scrolls_without(compared: Any) -> None:
    """The place of the image below the pointer stays where it is."""
    whole, window = views(compared), compared.locator(".srlib-pane .srlib-view").first
    window.scroll_into_view_if_needed()
    box = window.bounding_box()
    compared.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
    top = "[scrollY, devicePixelRatio]"
    before = compared.evaluate(top)
    compared.keyboard.down("Control")
    for _ in range(2):
        compared.mouse.wheel(0, -120)
    compared.keyboard.up("Control")
    near = views(compared)
    assert compared.evaluate(top) == before
    zoom = near[0][0] / whole[0][0]
    assert zoom > 1.5
    assert near == [pytest.approx([zoom, 0.25 * (1 - zoom), 0.75 * (1 - zoom)], abs=0.03)] * len(whole)
    compared.mouse.wheel(0, -80)
    assert views(compared) == near
    assert compared.evaluate(top)[0] < before[0]


def test_all_panels_zoom_and_move_together(compared: Any) -> None:
    figure = compared.locator(".srlib-compare").first
    whole = views(compared)
    assert len(whole) >= 6
    for _ in range(3):
        figure.locator('button[data-zoom="in"]').first.click()
    near = views(compared)
    assert all(view[0] > whole[0][0] + 0.5 for view in near)
    pane = figure.locator(".srlib-pane img, .srlib-pane canvas").last
    pane.scroll_into_view_if_needed()
    x, y = middle(pane.locator("xpath=..").bounding_box())
    compared.mouse.move(x, y)
    compared.mouse.down()
    compared.mouse.move(x + 25, y + 15, steps=3)
    compared.mouse.up()
    moved = views(compared)
    assert moved[0][1] > near[0][1] and moved[0][2] > near[0][2]
    for view in (near, moved):
        assert all(one == pytest.approx(view[0], abs=0.02) for one in view)
    figure.locator('button[data-zoom="reset"]').first.click()
    assert views(compared) == [pytest.approx(view, abs=0.02) for view in whole]


def test_another_image_can_be_chosen_for_each_side(compared: Any) -> None:
    figure = compared.locator(".srlib-compare").first
    for side in ("left", "right"):
        before = figure.screenshot()
        choice = figure.locator(f'select[data-side="{side}"]')
        options = choice.locator("option").evaluate_all("all => all.filter(one => !one.selected).map(one => one.value)")
        assert len(options) >= 4
        choice.select_option(options[-1])
        assert choice.input_value() == options[-1] and figure.screenshot() != before


def test_a_comparison_without_scripts_is_a_row_of_images(shared: Any, compared: Any) -> None:
    context = shared.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(compared.url)
    images = plain.locator(".srlib-compare .srlib-pane img")
    assert images.count() >= 6 and all(image.is_visible() for image in images.all())
    context.close()
