"""Data sets: the catalogue agrees with what srlib.data finds, checks see what is amiss, and fetching (from a local
server) survives broken connections, kills, wrong files and hostile archives."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srlib import data, sources
from srlib.errors import InputError
from srlib.sources import Archive, Part, Source

ROOT = Path(__file__).resolve().parent.parent


def png(width: int = 24, height: int = 16, seed: int = 0) -> bytes:
    """An image of noise, which hardly compresses."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tiny(name: str = "Tiny", images: int = 3, **known: object) -> dict[str, bytes]:
    """The files of a small benchmark with LR images at x2."""
    files = {f"benchmark/{name}/HR/{i}.png": png(seed=i) for i in range(images)}
    return files | {f"benchmark/{name}/LR_bicubic/X2/{i}x2.png": png(12, 8, seed=i) for i in range(images)}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


# --- a server --------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A file on the server: its content, and how the server misbehaves."""

    content: bytes = b""
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    statuses: list[int] = field(default_factory=list)  # what each next request is answered with instead
    location: str = ""
    etag: str = '"1"'
    length: int | None = None
    holds: int | None = None  # bytes after which it says nothing until it may go on
    goes_on: threading.Event = field(default_factory=threading.Event)
    chunked: bool = False  # without a length
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = self.server.files.get(self.path)
        if file is None:
            self.send_error(404)
            return
        file.requests.append({key.lower(): value for key, value in self.headers.items()})
        if file.location or file.statuses:
            self.send_response(file.statuses.pop(0) if file.statuses else 302)
            if file.location:
                self.send_header("Location", file.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", file.etag) == file.etag
        if asked and file.ranges and same:
            start = int(asked[1])
            if start >= len(file.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(file.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        body = file.content[start:]
        self.send_header("ETag", file.etag)
        if file.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) if file.length is None else file.length))
        self.end_headers()
        if file.breaks:
            body = body[: file.breaks.pop(0)]
            self.close_connection = True
        for at in range(0, len(body), 1 << 14):
            if at == file.holds:
                file.goes_on.wait(60)
            piece = body[at : at + (1 << 14)]
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if file.chunked else piece)
            except OSError:
                break
        if file.chunked:
            with contextlib.suppress(OSError):
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.files = {}
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def a_source(url: str, name: str = "Tiny", images: int = 3, **known: object) -> Source:
    part = Part(name, images, (f"benchmark/{name}/HR", f"benchmark/{name}/LR_bicubic"))
    folders = ((f"benchmark/{name}", f"benchmark/{name}"),)
    about = (name, "noise", "nobody", "http://nobody.example", "none")
    return Source(*about, (part,), (Archive(url, folders, **known),))


@pytest.fixture
def offered(server, monkeypatch, tmp_path) -> Callable[..., Served]:
    """Offer an archive as the data set Tiny, the only one there is; returns what the server has."""
    monkeypatch.setattr(sources, "_WAITS", (0.0, 0.0))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("SRLIB_DATA", raising=False)

    def offer(content: bytes, file: str = "tiny.tar", **known: object) -> Served:
        url = f"http://127.0.0.1:{server.server_port}/{file}"
        monkeypatch.setattr(sources, "SOURCES", {"Tiny": a_source(url, **known)})
        server.files[f"/{file}"] = served = Served(content)
        return served

    return offer


def fetch(root: Path, **options: object) -> list[str]:
    """Get Tiny; the lines that were said."""
    lines: list[str] = []
    rows = sources.get("Tiny", root, say=lines.append, **options)
    assert all(row.whole for row in rows), rows
    return lines


def tree(root: Path) -> dict[str, bytes]:
    """Every file of the data folder but those of downloads."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in files if sources.DOWNLOADS not in path.parts
    }


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_is_the_one_that_is_promised():
    names = "DIV2K Flickr2K DF2K Set5 Set14 BSD100 Urban100 Manga109"
    assert set(sources.SOURCES) == set(names.split())
    counts = {part.name: part.images for one in sources.SOURCES.values() for part in one.parts}
    assert {name: counts[name] for name in data.BENCHMARKS} == data.BENCHMARKS
    assert (counts["DIV2K_train"], counts["Flickr2K"], sources.source("DF2K").images) == (800, 2650, 3450)
    assert sources.SUFFIXES == data.SUFFIXES
    for one in sources.SOURCES.values():
        assert one.about and one.publisher and one.terms and one.page.startswith("http")
        assert one.gettable == (one.name != "Manga109")
        for archive in one.archives:
            assert archive.url.startswith("https://") and archive.checked_by
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", archive.checksum)
    for part in (part for one in sources.SOURCES.values() for part in one.parts if part.names):
        assert len(set(part.names)) == part.images


def test_known_sizes_are_of_whole_sets():
    for name in ("Set5", "Set14", "Urban100"):
        known = sources.known_sizes(name)
        assert len(known) == data.BENCHMARKS[name] and list(known) == sorted(known)
    assert sources.known_sizes("Set14")["comic"] == (250, 361) and not sources.known_sizes("DIV2K_train")


@pytest.mark.parametrize("below", ["", "benchmark/"])
def test_what_is_found_is_what_srlib_data_reads(tmp_path, below):
    """Every layout of every part: both modules find the same folder, and the same LR images."""
    for one in sources.SOURCES.values():
        for part in () if one.made_of else one.parts:
            for number, (hr, lr) in enumerate(part.layouts):
                base = tmp_path / f"{part.name}{number}"
                for folder, name in ((hr, "7.png"), (f"{lr}/X4", "7x4.png")):
                    (base / below / folder).mkdir(parents=True)
                    (base / below / folder / name).write_bytes(png())
                read = data.find(part.name, base)
                places = sources.place(part, base)
                assert places and read.files == tuple(sources.images(places[0]))
                scales = sources.lr_folders(places[1])
                assert set(read.lr_files) == set(scales) == {4} and read.lr_files[4][0].parent == scales[4]


def test_df2k_is_both_sets(tmp_path):
    for folder, name in (("DIV2K/DIV2K_train_HR", "0001"), ("Flickr2K/Flickr2K_HR", "000001")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.png").write_bytes(png())
        lr = tmp_path / folder.replace("_HR", "_LR_bicubic") / "X2"
        lr.mkdir(parents=True)
        (lr / f"{name}x2.png").write_bytes(png(12, 8))
    read = data.find("DF2K", tmp_path)
    assert read.name == "DF2K" and read.names == ("0001", "000001") and set(read.lr_files) == {2}
    assert data.Store.open(read, tmp_path / "cache").lr_origin(2) == "distributed"
    (row,) = [row for row in sources.found(tmp_path) if row.name == "DF2K"]
    assert (row.images, row.expected, row.scales) == (2, 3450, (2,))
    assert [row.part for row in sources.check("DF2K", tmp_path)] == ["DIV2K_train"] * 2 + ["Flickr2K"] * 2


def test_the_other_layouts_are_told():
    train, _ = sources.source("DIV2K").parts
    assert train.elsewhere == ("DIV2K_train/HR", "DIV2K_train_HR")
    assert sources.source("BSD100").parts[0].elsewhere == ("B100/HR",)
    assert sources.source("Set5").parts[0].elsewhere == ()


def test_names_are_forgiving_and_unknown_ones_are_told():
    assert sources.source("b100").name == "BSD100" and sources.source("div2k_val").name == "DIV2K"
    with pytest.raises(InputError, match="choose one of DIV2K, Flickr2K"):
        sources.source("Set6")


# --- checks ----------------------------------------------------------------------------------------------------------


def set5(root: Path) -> Path:
    """Set5 as it should lie on disk, of noise, with LR images at x2."""
    for name, (width, height) in sources.known_sizes("Set5").items():
        for path, size in (("HR", (width, height)), ("LR_bicubic/X2", (width // 2, height // 2))):
            folder = root / "benchmark" / "Set5" / path
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(folder / f"{name}{'x2' if path != 'HR' else ''}.png")
    return root / "benchmark" / "Set5"


def problems(root: Path, **options: object) -> list[tuple[str, str]]:
    return [(row.what, text) for row in sources.check("Set5", root, **options) for text in row.problems]


def test_a_whole_set_has_no_problem_and_a_crop_to_a_multiple_is_none(tmp_path):
    home = set5(tmp_path)
    assert problems(tmp_path) == [] == problems(tmp_path, deep=True)
    Image.new("RGB", (228, 340)).save(home / "HR" / "woman.png")
    Image.new("RGB", (114, 170)).save(home / "LR_bicubic" / "X2" / "womanx2.png")
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("harm", "what", "words"),
    [
        (lambda home: (home / "HR/bird.png").unlink(), "HR", "4 images, 5 expected"),
        (lambda home: Image.new("RGB", (9, 9)).save(home / "HR/dog.png"), "HR", "6 images, 5 expected"),
        (lambda home: Image.new("RGB", (300, 288)).save(home / "HR/bird.png"), "HR", "is 300x288, not 288x288"),
        (lambda home: (home / "HR/bird.png").write_bytes(b"<html>"), "HR", "bird.png cannot be decoded"),
        (lambda home: Image.new("RGB", (288, 288)).save(home / "HR/bird.bmp"), "HR", "bird is there in two formats"),
        (lambda home: (home / "LR_bicubic/X2/headx2.png").unlink(), "x2", "no headx2.png"),
        (lambda home: Image.new("RGB", (9, 9)).save(home / "LR_bicubic/X2/headx2.png"), "x2", "needs 140x140"),
        (lambda home: Image.new("RGB", (9, 9)).save(home / "LR_bicubic/X2/dogx2.png"), "x2", "belong to no HR image"),
        (lambda home: (home / "LR_bicubic/X2/headx2.png").write_bytes(b""), "x2", "headx2.png cannot be decoded"),
    ],
)
def test_each_fault_is_seen_where_it_is(tmp_path, harm, what, words):
    harm(set5(tmp_path))
    found = problems(tmp_path)
    assert any(where == what and words in text for where, text in found), found


def test_a_cut_off_image_is_seen_when_all_of_it_is_decoded(tmp_path):
    file = set5(tmp_path) / "HR" / "baby.png"
    whole = png(512, 512)
    file.write_bytes(whole[: len(whole) // 2])
    assert problems(tmp_path) == []
    ((what, text),) = problems(tmp_path, deep=True)
    assert what == "HR" and text.startswith("baby.png cannot be decoded")


def test_missing_images_are_named_where_names_follow_a_pattern(tmp_path):
    folder = tmp_path / "DIV2K" / "DIV2K_valid_HR"
    folder.mkdir(parents=True)
    for number in range(803, 901):
        Image.new("L", (2040, 12)).save(folder / f"{number:04d}.png")
    Image.new("L", (480, 480)).save(folder / "0900.png")
    rows = {row.part: row.problems for row in sources.check("DIV2K", tmp_path)}
    assert rows["DIV2K_train"][0].startswith("not there: its 800 images go to")
    assert rows["DIV2K_val"][0].startswith("no 0801, 0802:") and "98 images, 100 expected" in rows["DIV2K_val"][1]
    assert "0900.png is 480x480" in rows["DIV2K_val"][2]


def test_the_data_at_hand_is_whole(data_root):
    for name in ("Set5", "Set14"):
        assert [row.problems for row in sources.check(name, data_root, deep=True) if not row.whole] == []


# --- fetching --------------------------------------------------------------------------------------------------------


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    makers = {"tar": tar, "tar.gz": lambda files: tar(files, "w:gz"), "zip": zipped}
    return makers[kind](files)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_set_is_fetched_checked_and_found(offered, tmp_path, kind):
    files = tiny()
    noise = {"benchmark/README.txt": b"text", "benchmark/Tiny/HR/.0.png": b"hidden", "benchmark/Other/HR/0.png": png()}
    content = packed(kind, files | noise)
    offered(content, f"tiny.{kind}", checksum=sha256(content), size=len(content), checked_by="a list")
    lines = fetch(tmp_path)
    assert tree(tmp_path) == files
    assert "terms of use: none" in lines[0] and "SHA-256" in lines[-1].upper().replace("SHA256", "SHA-256")
    assert sorted(path.name for path in (tmp_path / sources.DOWNLOADS).iterdir()) == ["fetched.json", "lock"]
    assert data.find("Tiny", tmp_path / "benchmark").lr_files[2][0].name == "0x2.png"


def test_an_md5_is_compared_too(offered, tmp_path):
    content = tar(tiny())
    offered(content, checksum="md5:" + hashlib.md5(content).hexdigest(), checked_by="a list")
    assert "MD5 is the published one (a list)" in fetch(tmp_path)[-1]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(offered, tmp_path):
    content = tar(tiny())
    served = offered(content, checksum=sha256(content))
    served.breaks = [3000, 2000]
    fetch(tmp_path)
    assert [request.get("range") for request in served.requests] == [None, "bytes=3000-", "bytes=5000-"]
    assert served.requests[1]["if-range"] == '"1"' and tree(tmp_path) == tiny()


def test_a_server_that_gives_up_leaves_what_came_for_the_next_time(offered, tmp_path):
    content = tar(tiny())
    served = offered(content, checksum=sha256(content))
    served.breaks = [3000, 0, 0, 0, 0]
    with pytest.raises(InputError, match="the same command goes on from there"):
        fetch(tmp_path)
    assert tree(tmp_path) == {}
    served.breaks, served.requests = [], []
    fetch(tmp_path)
    assert served.requests[0]["range"] == "bytes=3000-" and tree(tmp_path) == tiny()


def test_a_busy_server_is_asked_again(offered, tmp_path):
    served = offered(tar(tiny()))
    served.statuses = [503, 429]
    fetch(tmp_path)
    assert len(served.requests) == 3


def test_a_server_without_ranges_and_a_file_that_changed_are_read_from_the_start(offered, tmp_path):
    content = tar(tiny())
    longer = content + bytes(4096)
    for change in ({"ranges": False}, {"etag": '"2"'}, {"etag": '"3"', "content": content}):
        root = tmp_path / str(len(change) + len(str(change)))
        served = offered(longer if "content" in change else content, checksum=sha256(content))
        served.breaks = [len(longer) - 1 if "content" in change else 3000, 0, 0, 0, 0]
        with pytest.raises(InputError):
            fetch(root)
        served.breaks = []
        vars(served).update(change)
        fetch(root)
        assert tree(root) == tiny()


def test_killed_while_it_downloads_it_goes_on(offered, server, tmp_path):
    content = tar({**tiny(), "benchmark/more.bin": os.urandom(1 << 20)})
    served = offered(content, checksum=sha256(content))
    served.holds = 1 << 18
    code = (
        "import sys\n"
        "from test_sources import a_source, sources\n"
        "sources.SOURCES = {'Tiny': a_source(sys.argv[1])}\n"
        "sources.get('Tiny', sys.argv[2])"
    )
    url = sources.SOURCES["Tiny"].archives[0].url
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    child = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "data")], env=environment)
    part = tmp_path / "data" / sources.DOWNLOADS / "tiny.tar.part"
    try:
        until = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 1 << 16):
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        with pytest.raises(InputError, match="another `srlib data get` is at work"):
            fetch(tmp_path / "data")
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        served.goes_on.set()
    arrived = part.stat().st_size
    assert 0 < arrived < len(content) and tree(tmp_path / "data") == {}
    assert list(part.parent.glob("tmp*"))
    served.requests = []
    fetch(tmp_path / "data")
    assert served.requests[0]["range"] == f"bytes={arrived}-" and tree(tmp_path / "data") == tiny()
    assert not list(part.parent.glob("tmp*"))


def test_killed_while_its_checksum_is_taken_nothing_is_lost(offered, tmp_path, monkeypatch):
    """The download is kept beside pooch's file until its checksum is known."""
    import pooch.core

    content = tar(tiny())
    served = offered(content, checksum=sha256(content))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path)
    served.requests.clear()
    fetch(tmp_path)
    assert served.requests[0]["range"] == f"bytes={len(content)}-" and len(served.requests) == 1


@pytest.mark.parametrize("where", ["unpack", "_move", "_rename"])
def test_stopped_while_it_unpacks_or_moves_it_goes_on_without_fetching_again(offered, tmp_path, monkeypatch, where):
    """At the last of them, some folders are in place, each whole."""
    served = offered(tar(tiny()))
    real, calls = getattr(sources, where), []

    def stopped(*arguments: object) -> object:
        calls.append(arguments)
        if where != "_rename" or len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sources, where, stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path)
    there = tree(tmp_path)
    assert set(there) == ({key for key in tiny() if "X2" in key} if where == "_rename" else set())
    fetch(tmp_path)
    assert tree(tmp_path) == tiny() and len(served.requests) == 1


def test_the_data_folder_may_be_on_several_disks(offered, tmp_path, monkeypatch):
    """Where a rename can't cross to the other disk, images are copied beside their place and renamed there."""
    offered(tar(tiny()))
    real = os.replace

    def on_one_disk(old: object, new: object) -> None:
        if "unpacked." in str(old):
            raise OSError(sources.errno.EXDEV, "Invalid cross-device link")
        real(old, new)

    monkeypatch.setattr(os, "replace", on_one_disk)
    fetch(tmp_path)
    (tmp_path / "benchmark/Tiny/HR/1.png").write_bytes(b"old")
    fetch(tmp_path, force=True)
    assert tree(tmp_path) == tiny()


def test_a_wrong_checksum_keeps_nothing(offered, tmp_path):
    content = tar(tiny())
    offered(content, checksum=sha256(b"another"), checked_by="a list")
    with pytest.raises(InputError, match=r"not the file that was expected: its SHA256 .* nothing was unpacked"):
        fetch(tmp_path)
    assert tree(tmp_path) == {} and not list((tmp_path / sources.DOWNLOADS).glob("tiny*"))


def test_a_wrong_length_is_refused_before_it_is_fetched(offered, tmp_path):
    served = offered(tar(tiny()), size=17, checked_by="a list")
    with pytest.raises(InputError, match="offers .* bytes, but the archive has 17"):
        fetch(tmp_path)
    assert not (tmp_path / sources.DOWNLOADS / "tiny.tar.part").exists() and len(served.requests) == 1


def test_more_than_the_archive_has_is_stopped_as_soon_as_it_comes(offered, tmp_path):
    """Of an answer without a length, which would fill the disk."""
    content = tar({**tiny(), "benchmark/more.bin": os.urandom(1 << 20)})
    served = offered(content, size=100_000, checked_by="a list")
    served.chunked, served.holds = True, 1 << 18
    try:
        with pytest.raises(InputError, match="sends more than the 100000 bytes that the archive has"):
            fetch(tmp_path)
    finally:
        served.goes_on.set()
    assert tree(tmp_path) == {} and not list((tmp_path / sources.DOWNLOADS).glob("tiny*")) and len(served.requests) == 1


def test_room_is_looked_at_while_an_answer_without_a_length_comes(offered, tmp_path, monkeypatch):
    content = tar(tiny())
    served = offered(content, size=len(content), checked_by="a list")
    served.chunked = True
    fetch(tmp_path / "enough")
    assert tree(tmp_path / "enough") == tiny()
    room = iter([sources.SLACK + 100] + 99 * [sources.SLACK - 1])
    usage = sources.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: usage._replace(free=next(room)))
    with pytest.raises(InputError, match="MiB to be fetched and unpacked"):
        fetch(tmp_path / "short")
    assert len(served.requests) == 2


def test_trust_on_first_use(offered, tmp_path):
    content = tar(tiny())
    served = offered(content)
    digest = sha256(content).removeprefix("sha256:")
    assert any(f"no published checksum; this download's SHA-256 is {digest}" in line for line in fetch(tmp_path))
    note = json.loads((tmp_path / sources.DOWNLOADS / sources.FETCHED).read_text())
    assert list(note.values()) == [{"sha256": digest, "bytes": len(content)}]
    assert any("that of the first download" in line for line in fetch(tmp_path, force=True))
    served.content = tar(tiny() | {"benchmark/Tiny/HR/0.png": png(seed=9)})
    with pytest.raises(InputError, match="the one of the first download; .* to trust the new one"):
        fetch(tmp_path, force=True)
    assert tree(tmp_path) == tiny()
    (tmp_path / sources.DOWNLOADS / sources.FETCHED).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        fetch(tmp_path, force=True)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/tiny.tar", "data:,tiny", "/tiny.tar"])
def test_redirections_that_lead_astray_are_refused(offered, tmp_path, location):
    served = offered(tar(tiny()))
    served.location = location
    with pytest.raises(InputError, match="which is not followed|redirects more than"):
        fetch(tmp_path)
    assert tree(tmp_path) == {}


def test_a_redirection_to_another_place_on_the_web_is_followed(offered, server, tmp_path):
    served = offered(b"")
    served.location = "/moved.tar"
    server.files["/moved.tar"] = Served(tar(tiny()))
    fetch(tmp_path)
    assert tree(tmp_path) == tiny()


def test_from_https_nothing_leads_to_http(offered, tmp_path, monkeypatch):
    import requests

    offered(b"")
    url = "https://nobody.example/tiny.tar"
    monkeypatch.setattr(sources, "SOURCES", {"Tiny": a_source(url)})
    answer = requests.Response()
    answer.status_code, answer.raw = 302, io.BytesIO()
    answer.headers["Location"] = "http://nobody.example/tiny.tar"
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer)
    with pytest.raises(InputError, match="redirects to http://nobody.example/tiny.tar, which is not followed"):
        fetch(tmp_path)


def test_an_address_that_is_gone_or_dead_is_told(offered, server, tmp_path, monkeypatch):
    offered(b"", file="here.tar")
    server.files.clear()
    with pytest.raises(InputError, match="answers 404 Not Found: it may have moved; see http://nobody.example"):
        fetch(tmp_path)
    monkeypatch.setattr(sources, "SOURCES", {"Tiny": a_source("http://127.0.0.1:9/tiny.tar")})
    with pytest.raises(InputError, match="the connection was refused"):
        fetch(tmp_path)


def test_too_little_room_is_told_before_anything_is_written(offered, tmp_path, monkeypatch):
    served = offered(tar(tiny()))
    room = sources.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: room._replace(free=sources.SLACK + 100))
    with pytest.raises(InputError, match="MiB to be fetched and unpacked"):
        fetch(tmp_path)
    assert len(served.requests) == 1 and not list((tmp_path / sources.DOWNLOADS).glob("tiny*"))


def test_a_disk_that_is_full_is_one_line(offered, tmp_path, monkeypatch):
    offered(tar(tiny()))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "_copy", full)
    with pytest.raises(InputError, match=r"cannot write to .* \(No space left on device\)"):
        fetch(tmp_path)
    assert tree(tmp_path) == {}


def test_what_is_there_is_neither_fetched_nor_replaced(offered, tmp_path):
    served = offered(tar(tiny()))
    fetch(tmp_path)
    served.requests.clear()
    assert "there already; --force fetches it again" in fetch(tmp_path)[-1] and not served.requests
    mine = tmp_path / "benchmark/Tiny/HR/0.png"
    mine.write_bytes(png(seed=7))
    (tmp_path / "benchmark/Tiny/HR/1.png").unlink()
    lines = fetch(tmp_path)
    assert any("1 files were there with another content and were left (0.png)" in line for line in lines)
    assert mine.read_bytes() == png(seed=7) and tree(tmp_path) == tiny() | {"benchmark/Tiny/HR/0.png": png(seed=7)}
    fetch(tmp_path, force=True)
    assert tree(tmp_path) == tiny()


def test_an_archive_of_several_sets_is_kept_until_they_are_there(offered, server, tmp_path, monkeypatch):
    content = tar(tiny("Tiny") | tiny("Other"))
    served = offered(content)
    url = sources.SOURCES["Tiny"].archives[0].url
    monkeypatch.setattr(sources, "SOURCES", sources.SOURCES | {"Other": a_source(url, "Other")})
    assert fetch(tmp_path)[-1] == f"tiny.tar: kept in {tmp_path / sources.DOWNLOADS} for Other"
    assert (tmp_path / sources.DOWNLOADS / "tiny.tar").is_file() and set(tree(tmp_path)) == set(tiny("Tiny"))
    sources.get("Other", tmp_path, say=str)
    assert len(served.requests) == 1 and set(tree(tmp_path)) == set(tiny("Tiny") | tiny("Other"))
    assert not (tmp_path / sources.DOWNLOADS / "tiny.tar").exists()


def test_hr_alone_leaves_the_archives_of_lr_images(offered, server, tmp_path, monkeypatch):
    files = tiny()
    for name, part in (("hr.zip", "HR"), ("lr.zip", "LR")):
        server.files[f"/{name}"] = Served(zipped({key: file for key, file in files.items() if f"/{part}" in key}))
    offered(b"")
    one = sources.SOURCES["Tiny"]
    at = f"http://127.0.0.1:{server.server_port}"
    archives = (
        Archive(f"{at}/hr.zip", (("HR", "benchmark/Tiny/HR"),)),
        Archive(f"{at}/lr.zip", (("LR_bicubic/X2", "benchmark/Tiny/LR_bicubic/X2"),), lr=True),
    )
    monkeypatch.setattr(sources, "SOURCES", {"Tiny": replace(one, archives=archives)})
    fetch(tmp_path, hr_only=True)
    assert set(tree(tmp_path)) == {key for key in files if "/HR/" in key} and not server.files["/lr.zip"].requests
    fetch(tmp_path)
    assert tree(tmp_path) == files and len(server.files["/hr.zip"].requests) == 1


def test_the_benchmarks_folder_itself_is_a_data_folder(offered, tmp_path):
    offered(tar(tiny()))
    fetch(tmp_path / "benchmark")
    assert tree(tmp_path) == tiny()


def test_what_cannot_be_fetched_is_told_how_it_is_had(tmp_path, monkeypatch):
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    with pytest.raises(InputError, match="Manga109 has no public address .* benchmark/Manga109/HR"):
        sources.get("Manga109", tmp_path)
    with pytest.raises(InputError, match="name one with --data-root"):
        sources.get("Set5", None)
    assert not list(tmp_path.iterdir())


# --- archives that mean harm -----------------------------------------------------------------------------------------


def a_tar(change: Callable[[tarfile.TarInfo], bytes | None], mode: str = "w") -> bytes:
    """A good archive with one more member, which ``change`` makes."""
    out = io.BytesIO(tar(tiny()))
    with tarfile.open(fileobj=out, mode="a") as archive:
        info = tarfile.TarInfo("benchmark/Tiny/HR/extra.png")
        content = change(info)
        if content is not None:
            info.size = len(content)
        archive.addfile(info, io.BytesIO(content) if content is not None else None)
    return gzip.compress(out.getvalue()) if mode == "w:gz" else out.getvalue()


def named(name: str) -> Callable[[tarfile.TarInfo], bytes]:
    def change(info: tarfile.TarInfo) -> bytes:
        info.name = name
        return png()

    return change


def a_link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


def a_zip(name: str, content: bytes = b"", mode: int = 0) -> bytes:
    """A good archive with one more member."""
    out = io.BytesIO(zipped(tiny()))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, content or png())
    return out.getvalue()


def encrypted() -> bytes:
    """A zip whose first member claims to be encrypted, in both of its headers."""
    content = bytearray(zipped(tiny()))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def lying() -> bytes:
    """A zip whose directory understates the size of a member, for a reader that trusts it."""
    content = bytearray(zipped({"benchmark/Tiny/HR/0.png": bytes(1 << 20), **tiny()}))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (10).to_bytes(4, "little")
    return bytes(content)


def sparse(**headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("benchmark/Tiny/HR/extra.png")
        info.pax_headers = {f"GNU.sparse.{name}": text for name, text in headers.items()}
        info.size = 512
        archive.addfile(info, io.BytesIO(b"1\n0\n512\n".ljust(512, b"\0")))
    return out.getvalue()


def a_long_header() -> bytes:
    """A gzip of a tar whose first header says that an endless name follows."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20), 1)


def damaged(content: bytes) -> bytes:
    """With 64 bytes in the middle turned over."""
    half = len(content) // 2
    return content[:half] + bytes(255 - byte for byte in content[half : half + 64]) + content[half + 64 :]


def a_large_stranger() -> bytes:
    """A gzip of a tar that begins with a large file that nobody wants, which would be unpacked to be passed over."""
    info = tarfile.TarInfo("large.bin")
    info.size = 300 << 20
    return gzip.compress(info.tobuf() + bytes(1 << 20), 1)


HARMFUL = {
    "tar, parent": (a_tar(named("../evil.png")), "outside its folder"),
    "tar, parent within": (a_tar(named("benchmark/Tiny/../../../evil.png")), "outside its folder"),
    "tar, absolute": (a_tar(named("/evil.png")), "outside its folder"),
    "tar, drive": (a_tar(named("C:/evil.png")), "outside its folder"),
    "tar, backslash": (a_tar(named("..\\evil.png")), "outside its folder"),
    "tar, newline": (a_tar(named("benchmark/Tiny/HR/a\nb.png")), "outside its folder"),
    "tar, deep": (a_tar(named("a/" * 40 + "evil.png")), "folders too deep"),
    "tar, symbolic link": (a_tar(a_link(tarfile.SYMTYPE, "/etc/passwd")), "a link, a device"),
    "tar, link": (a_tar(a_link(tarfile.LNKTYPE, "benchmark/Tiny/HR/0.png")), "a link, a device"),
    "tar, device": (a_tar(a_link(tarfile.CHRTYPE, "")), "a link, a device"),
    "tar, pipe": (a_tar(a_link(tarfile.FIFOTYPE, "")), "a link, a device"),
    "tar, sparse": (sparse(major="1", minor="0", realsize=str(1 << 40)), "sparse"),
    "tar, malformed sparse": (sparse(map="zero,one"), "is damaged"),
    "tar, twice": (a_tar(named("benchmark/Tiny/HR/0.PNG")), "two members"),
    "tar, two for one": (a_tar(named("again/benchmark/Tiny/HR/0.png")), "two images for"),
    "tar.gz, bomb": (a_tar(lambda info: bytes(100 << 20), "w:gz"), "would unpack to more|cannot be more"),
    "tar.gz, stranger": (a_large_stranger(), "would unpack to more"),
    "tar.gz, long header": (a_long_header(), "a header that no archive of images needs"),
    "tar.gz, damaged": (damaged(tar(tiny(), "w:gz")), "is damaged|which no decoder reads|expected"),
    "tar.gz, cut": (tar(tiny(), "w:gz")[:-900], "is damaged"),
    "tar, cut": (tar(tiny())[:4000], "is damaged|expected"),
    "zip, parent": (a_zip("../evil.png"), "outside its folder"),
    "zip, absolute": (a_zip("/evil.png"), "outside its folder"),
    "zip, drive": (a_zip("C:\\evil.png"), "outside its folder"),
    "zip, symbolic link": (a_zip("benchmark/Tiny/HR/l.png", b"/etc", stat.S_IFLNK | 0o777), "a link or a device"),
    "zip, device": (a_zip("benchmark/Tiny/HR/l.png", b"x", stat.S_IFCHR | 0o777), "a link or a device"),
    "zip, encrypted": (encrypted(), "has an encrypted member"),
    "zip, bomb": (a_zip("benchmark/Tiny/HR/l.png", bytes(100 << 20)), "would unpack to more"),
    "zip, lying": (lying(), "is damaged|cannot be unpacked|two members"),
    "zip, twice": (a_zip("benchmark/Tiny/HR/0.Png"), "two members"),
    "zip, lzma": (zipped(tiny(), zipfile.ZIP_LZMA), "isn't stored or deflated"),
    "zip, bzip2": (zipped(tiny(), zipfile.ZIP_BZIP2), "isn't stored or deflated"),
    "zip, cut": (zipped(tiny())[:-40], "is damaged"),
    "no archive": (b"<html>moved</html>" * 99, "is no zip, tar or tar.gz"),
    "nothing": (b"", "is no zip, tar or tar.gz|could not be fetched"),
    "too few": (tar(tiny(images=2)), "holds 2 images for benchmark/Tiny/HR, 3 expected"),
    "too few small ones": (
        tar({key: file for key, file in tiny().items() if "1x2" not in key}),
        "holds 2 images for benchmark/Tiny/LR_bicubic/X2, 3 expected",
    ),
    "no image": (tar(tiny() | {"benchmark/Tiny/HR/0.png": b"#!/bin/sh"}), "holds 0.png, which no decoder reads"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_an_archive_that_means_harm_is_refused_and_leaves_nothing(offered, tmp_path, harm):
    content, words = HARMFUL[harm]
    offered(content)
    root = tmp_path / "inside" / "data"
    with pytest.raises(InputError, match=words) as error:
        fetch(root)
    assert "\n" not in str(error.value)
    assert tree(root) == {} and [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not list((root / sources.DOWNLOADS).glob("unpacked*"))


def test_too_many_members_are_refused(offered, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMBERS", 5)
    for kind in ("tar", "zip"):
        offered(packed(kind, tiny()), f"tiny.{kind}")
        with pytest.raises(InputError, match="more than 5 members"):
            fetch(tmp_path / kind)


def test_an_image_too_large_is_refused(offered, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 100)
    offered(tar(tiny()))
    with pytest.raises(InputError, match="an image of more than"):
        fetch(tmp_path)


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def srlib(in_process, monkeypatch, capsys, tmp_path):
    """Run the command in this process; returns exit code, standard output and standard error."""
    monkeypatch.delenv("SRLIB_DATA", raising=False)

    return in_process(capsys)


def test_the_list_tells_what_is_here(srlib, tmp_path):
    set5(tmp_path)
    code, out, _ = srlib("data", "list", "--data-root", tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and list(rows) == "DIV2K_train DIV2K_val Flickr2K DF2K Set5 Set14 BSD100 Urban100 Manga109".split()
    assert (rows["Set5"]["found"], rows["Set5"]["lr"]) == (5, "x2") and rows["Manga109"]["get"] == ""
    assert srlib("data", "list", "--csv")[1].startswith("name,set,images,found,lr,folder,publisher,page,terms,get\n")
    assert "srlib data get Urban100" in srlib("data", "list")[1]
    code, _, err = srlib("data", "list", "--data-root", tmp_path / "none")
    assert code == 2 and "no data folder" in err
    assert srlib("data", "list", "--json", "--csv")[0] == 2


def test_the_check_says_what_is_amiss_and_leaves_with_1(srlib, tmp_path):
    home = set5(tmp_path)
    assert srlib("data", "check", "set5", "--data-root", tmp_path, "--deep")[0] == 0
    (home / "HR" / "bird.png").unlink()
    code, out, _ = srlib("data", "check", "Set5", "--data-root", tmp_path)
    assert code == 1 and "Set5 HR: 4 images, 5 expected" in out
    code, out, _ = srlib("data", "check", "Set5", "Set14", "--data-root", tmp_path, "--json")
    rows = json.loads(out)
    assert code == 1 and [row["name"] for row in rows] == ["Set5", "Set5", "Set14"] and rows[2]["problems"]
    assert len(srlib("data", "check", "--data-root", tmp_path, "--csv")[1].splitlines()) == 1 + 9
    code, _, err = srlib("data", "check", "Set6", "--data-root", tmp_path)
    assert code == 2 and "choose one of" in err
    assert srlib("data", "check", "Set5")[0] == 2


def test_get_fetches_and_reports(srlib, offered, tmp_path):
    offered(tar(tiny()))
    code, out, _ = srlib("data", "get", "Tiny", "--data-root", tmp_path)
    assert code == 0 and "terms of use: none" in out and "no published checksum" in out
    assert tree(tmp_path) == tiny()
    code, _, err = srlib("data", "get", "Nothing", "--data-root", tmp_path)
    assert code == 2 and len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["data", "get", "--help"], ["doctor", "--help"]])
def test_help_comes_at_once_and_needs_no_torch(arguments):
    """Within 0.4 seconds of a processor's time, the best of a few real processes: others may share the machine."""
    command = [sys.executable, "-X", "importtime", "-m", "srlib", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Usage" in done.stdout and " torch" not in done.stderr
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "srlib", *arguments], capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if times[-1] < 0.4:
            break
    assert min(times) < 0.4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["data", "list"], 0), (["data", "check", "Set6"], 2), (["data", "get", "Set6"], 2), (["evaluate", "--nope"], 2)],
)
def test_lists_and_errors_need_no_torch(arguments, code, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "srlib", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "SRLIB_DATA"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == code and " torch" not in done.stderr
