"""Faulty corpora: misbehaving servers, full disks, odd links, names and files.

Every fault must soon end in one sentence and leave no partial file behind. The servers, processes, files, links and
permissions are real. docs/reliability.md selects these tests by name.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import gzip
import hashlib
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from charlm.errors import UsageError
from charlm.text import download, files
from charlm.text import sources as corpus
from charlm.text.download import Unavailable
from charlm.text.sources import cache_dir, read
from tests.helpers import ROOT, SMALL, data_module, run_train, summary
from tests.programs import Outcome, environment, nothing_was_trained, program

TEXT = b"".join(b"%d quick brown foxes jump over the lazy dog\n" % i for i in range(1000))
HALF = TEXT[: len(TEXT) // 2]
NAME = "text.txt"
SHA = hashlib.sha256(TEXT).hexdigest()
LARGEST = 1_000_000  # the download limit in these tests
QUICK = "model.hidden_size=16", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none"


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Interrupt a test that hangs."""

    def ring(*_: Any) -> None:
        raise AssertionError("this hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Servers.


class Handler(BaseHTTPRequestHandler):
    """Responds to a path with the function that the server has for it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(self.path)
        self.server.pages[self.path](self)

    def reply(self, body: bytes = b"", status: int = 200, **headers: object) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def pause(self, seconds: float | None = None) -> bool:
        """Wait. False once the test is over."""
        return not self.server.over.wait(seconds)

    def log_message(self, *_: Any) -> None:
        pass


Page = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """Serves pages on 127.0.0.1 and records the requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {"/good": whole}
        self.asked: list[str] = []
        self.over = threading.Event()

    def url(self, path: str, page: Page | None = None) -> str:
        if page is not None:
            self.pages[path] = page
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: Any) -> None:
        pass  # the client has disconnected


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder that downloads use, in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CHARLM_DATA_DIR", raising=False)
    return cache_dir()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SILENCE": 1.0, "WINDOW": 1.5, "LEAST": 1000, "LARGEST": LARGEST}.items():
        monkeypatch.setattr(download, name, value)


def get(*urls: str) -> str:
    return corpus.download(NAME, SHA, list(urls)).text


def whole(page: Handler) -> None:
    page.reply(TEXT, Content_Length=len(TEXT))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def cut_off(page: Handler) -> None:
    page.reply(HALF, Content_Length=len(TEXT))


def cut_off_in_a_chunk(page: Handler) -> None:
    page.reply(chunk(TEXT)[: len(HALF)], Transfer_Encoding="chunked")


def cut_off_between_chunks(page: Handler) -> None:
    page.reply(chunk(HALF), Transfer_Encoding="chunked")


def half_that_claims_to_be_all(page: Handler) -> None:
    page.reply(HALF, Content_Length=len(HALF))


def half_that_claims_to_be_all_chunks(page: Handler) -> None:
    page.reply(chunk(HALF) + chunk(b""), Transfer_Encoding="chunked")


def another_text(page: Handler) -> None:
    page.reply(b"x" * len(TEXT), Content_Length=len(TEXT))


def nothing(page: Handler) -> None:
    page.reply(Content_Length=0)


def status(number: int) -> Page:
    return lambda page: page.reply(b"no", status=number, Content_Length=2)


def redirect(location: str) -> Page:
    return lambda page: page.reply(status=302, Location=location, Content_Length=0)


def never_answers(page: Handler) -> None:
    page.pause()


def stalls(page: Handler) -> None:
    page.reply(HALF, Content_Length=len(TEXT))
    page.pause()


def trickles(page: Handler) -> None:
    page.reply(Content_Length=len(TEXT))
    while page.pause(0.02):
        page.wfile.write(b"x")


def trickles_in_chunks(page: Handler) -> None:
    page.reply(Transfer_Encoding="chunked")
    while page.pause(0.02):
        page.wfile.write(chunk(b"x"))


def trickles_after_half(page: Handler) -> None:
    page.reply(HALF, Content_Length=len(TEXT))
    while page.pause(0.02):
        page.wfile.write(b"x")


def trickles_its_header(page: Handler) -> None:
    page.wfile.write(b"HTTP/1.1 200 OK\r\nServer: ")
    while page.pause(0.02):
        page.wfile.write(b"x")


def says_continue_without_end(page: Handler) -> None:
    while page.pause(0.02):
        page.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def headers_without_end(page: Handler) -> None:
    page.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while page.pause(0):
        page.wfile.write(b"X-More: x\r\n")


def body_without_end(page: Handler) -> None:
    page.reply()
    while page.pause(0):
        page.wfile.write(bytes(10_000))


def chunks_without_end(page: Handler) -> None:
    page.reply(Transfer_Encoding="chunked")
    while page.pause(0):
        page.wfile.write(chunk(bytes(10_000)))


def announces_a_terabyte(page: Handler) -> None:
    page.reply(TEXT, Content_Length=10**12)
    page.pause()


def gzip_bomb(page: Handler) -> None:
    body = gzip.compress(bytes(50 * LARGEST))
    page.reply(body, Content_Encoding="gzip", Content_Length=len(body))


def damaged_gzip(page: Handler) -> None:
    page.reply(TEXT, Content_Encoding="gzip", Content_Length=len(TEXT))


def half_a_gzip(page: Handler) -> None:
    body = gzip.compress(TEXT)
    page.reply(body[: len(body) // 2], Content_Encoding="gzip", Content_Length=len(body) // 2)


def not_http(page: Handler) -> None:
    page.wfile.write(b"\0\xff nonsense\r\n\r\n")


def hangs_up(page: Handler) -> None:
    pass


WRONG = rf"^text\.txt was refused, its SHA-256 must be {SHA}: http://[^ ]* has [0-9a-f]{{64}}$"
QUICK_FAULTS: dict[str, tuple[Page, str]] = {
    "cut off half-way": (cut_off, "the response is incomplete"),
    "cut off in a chunk": (cut_off_in_a_chunk, "the response is incomplete"),
    "cut off between chunks": (cut_off_between_chunks, "the response is incomplete"),
    "half, with that length": (half_that_claims_to_be_all, WRONG),
    "half, in chunks": (half_that_claims_to_be_all_chunks, WRONG),
    "another text": (another_text, WRONG),
    "nothing": (nothing, WRONG),
    "404": (status(404), "status 404"),
    "500": (status(500), "status 500"),
    "204": (status(204), "status 204"),
    "a redirect loop": (redirect("/fault"), "too many redirects"),
    "a redirect to ftp": (redirect("ftp://127.0.0.1/x"), "InvalidSchema"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "InvalidSchema"),
    "a redirect to no address": (redirect("http://["), r"\(http://[^ ]*: \w+\)"),
    "headers without end": (headers_without_end, "the connection failed"),
    "a body without end": (body_without_end, "more than 1,000,000 bytes"),
    "chunks without end": (chunks_without_end, "more than 1,000,000 bytes"),
    "a terabyte": (announces_a_terabyte, "more than 1,000,000 bytes"),
    "a gzip bomb": (gzip_bomb, "more than 1,000,000 bytes"),
    "damaged gzip": (damaged_gzip, "the response is corrupt"),
    "half a gzip": (half_a_gzip, WRONG),
    "no HTTP": (not_http, "the connection failed"),
    "hangs up": (hangs_up, "the connection failed"),
}
SLOW_FAULTS: dict[str, tuple[Page, str]] = {
    "never answers": (never_answers, "no response"),
    "stalls half-way": (stalls, "the connection failed"),
    "trickles": (trickles, r"fewer than 1,000 bytes in 1\.5 seconds"),
    "trickles in chunks": (trickles_in_chunks, r"fewer than 1,000 bytes in 1\.5 seconds"),
    "trickles after half": (trickles_after_half, r"fewer than 1,000 bytes in 1\.5 seconds"),
    "trickles its header": (trickles_its_header, r"fewer than 1,000 bytes in 1\.5 seconds"),
    "says continue without end": (says_continue_without_end, r"fewer than 1,000 bytes in 1\.5 seconds"),
}
FAULTS = {**QUICK_FAULTS, **SLOW_FAULTS}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_leaves_nothing_behind(
    fault: str, impatient: None, server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page, message = FAULTS[fault]
    begun = time.monotonic()
    with pytest.raises(UsageError, match=message) as caught:
        get(server.url("/fault", page))
    assert time.monotonic() - begun < 10
    assert isinstance(caught.value, Unavailable) == (message is not WRONG)
    assert server.url("/fault") in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(cache.iterdir()) == []
    assert get(server.url("/good")) == TEXT.decode()
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert capfd.readouterr() == ("", "")  # train.py prints the error


def test_a_mirror_that_works_makes_good_for_all_that_do_not(impatient: None, server: Server, cache: Path) -> None:
    faults = {f"/{i}": page for i, (page, _) in enumerate(QUICK_FAULTS.values())}
    faults["/silent"] = never_answers
    urls = [server.url(path, page) for path, page in faults.items()]
    assert get(*urls, server.url("/good"), server.url("/never asked")) == TEXT.decode()
    assert [path for path in server.asked if path != "/fault"] == [*faults, "/good"]
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_a_file_that_is_there_already_outlives_every_fault(impatient: None, server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "other.txt").write_bytes(HALF)
    for page, _ in QUICK_FAULTS.values():
        with pytest.raises(UsageError):
            get(server.url("/fault", page))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {"other.txt": HALF}


def in_gzip(page: Handler) -> None:
    body = gzip.compress(TEXT)
    page.reply(body, Content_Encoding="gzip", Content_Length=len(body))


def in_chunks(page: Handler) -> None:
    page.reply(chunk(HALF) + chunk(TEXT[len(HALF) :]) + chunk(b""), Transfer_Encoding="chunked")


def without_a_length(page: Handler) -> None:
    page.reply(TEXT)


def steadily_but_slowly(page: Handler) -> None:
    page.reply(Content_Length=len(TEXT))
    for begin in range(0, len(TEXT), 2000):
        page.pause(0.1)
        page.wfile.write(TEXT[begin : begin + 2000])


@pytest.mark.parametrize("page", [in_gzip, in_chunks, without_a_length, redirect("/good"), steadily_but_slowly])
def test_what_is_only_unusual_works(page: Page, impatient: None, server: Server, cache: Path) -> None:
    assert get(server.url("/unusual", page)) == TEXT.decode()
    assert (cache / NAME).read_bytes() == TEXT


def test_a_file_of_just_the_largest_size_works(
    monkeypatch: pytest.MonkeyPatch, impatient: None, server: Server, cache: Path
) -> None:
    monkeypatch.setattr(download, "LARGEST", len(TEXT))
    assert get(server.url("/good")) == TEXT.decode()


def test_the_limits_let_known_corpora_pass() -> None:
    assert 10**9 < download.LARGEST <= 2**30  # enwik9
    assert download.SILENCE <= 60 and download.WINDOW <= 60
    assert download.LEAST / download.WINDOW < 1000  # bytes a second


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[", "http://a..b/", "ftp://a/b", "a\nb\udcff"])
def test_an_impossible_address_is_named(url: str, cache: Path, server: Server) -> None:
    with pytest.raises(Unavailable) as caught:
        get(url)
    assert f"({ascii(url)[1:-1]}: " in str(caught.value)
    assert get(url, server.url("/good")) == TEXT.decode()


def test_no_address_at_all_is_said(cache: Path) -> None:
    with pytest.raises(Unavailable, match="no URL is given"):
        get()


# Processes.

CHILD = """
import hashlib, resource, sys
from charlm.text import download as limits
from charlm.text.sources import download
from charlm.errors import UsageError
room, patience, name, sha256, *urls = sys.argv[1:]
limits.WINDOW = float(patience)
if int(room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
try:
    print(hashlib.sha256(download(name, sha256, urls).text.encode()).hexdigest())
except UsageError as error:
    print(error)
"""


def child(*urls: str, room: int = 0, patience: float = 60) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(room), str(patience), NAME, SHA, *urls]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which tests that run at once ignore
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(arguments, cwd=ROOT, text=True, preexec_fn=heeding, **pipes)


def test_processes_that_download_the_same_at_once_all_get_it(server: Server, cache: Path) -> None:
    together = threading.Barrier(3, timeout=50)

    def page(page: Handler) -> None:
        together.wait()  # wait for all three requests, so that no process finds the text in the cache
        whole(page)

    children = [child(server.url("/", page)) for _ in range(3)]
    assert [process.communicate() for process in children] == [(f"{SHA}\n", "")] * 3
    assert server.asked == ["/"] * 3
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert (cache / NAME).read_bytes() == TEXT


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_in_a_download_leaves_nothing(
    signal_: signal.Signals, server: Server, cache: Path
) -> None:
    reached = threading.Event()

    def page(page: Handler) -> None:
        page.reply(HALF, Content_Length=len(TEXT))
        reached.set()
        page.pause()

    process = child(server.url("/", page))
    assert reached.wait(30)
    process.send_signal(signal_)
    said = process.communicate()
    assert process.returncode == -signal_, said
    assert list(cache.iterdir()) == []
    assert get(server.url("/good")) == TEXT.decode()


def test_a_process_that_has_given_up_a_server_can_end(server: Server, cache: Path) -> None:
    begun = time.monotonic()
    out, err = child(server.url("/", says_continue_without_end), patience=1).communicate()
    assert "bytes in 1 seconds" in out and out.count("\n") == 1
    assert err == ""
    assert time.monotonic() - begun < 20


def test_a_disk_that_is_full_before_the_end_keeps_nothing(server: Server, cache: Path) -> None:
    out, err = child(server.url("/good"), room=len(HALF)).communicate()
    assert out.startswith(f"{NAME} cannot be stored in {cache}: ") and out.count("\n") == 1
    assert err == ""
    assert list(cache.iterdir()) == []
    assert get(server.url("/good")) == TEXT.decode()


# The cache folder.


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ordinary_user(public: Path) -> Iterator[None]:
    """Run the test as the user nobody, because permissions do not apply to root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("place", ["file", "/proc", "/dev/null"])
def test_a_cache_that_cannot_be_is_named_before_the_download(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    with pytest.raises(UsageError, match=f"^{NAME} cannot be stored in {cache_dir()}: ") as caught:
        get(server.url("/good"))
    assert not isinstance(caught.value, Unavailable)
    assert server.asked == []


def test_a_cache_that_may_not_be_written_is_named(
    public: Path, monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path, ordinary_user: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(public))
    cache_dir().mkdir(mode=0o500)
    with pytest.raises(UsageError, match=f"^{NAME} cannot be stored in {cache_dir()}: .*Permission denied"):
        get(server.url("/good"))
    assert list(cache_dir().iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket"])
@pytest.mark.parametrize("place", ["cache", "data"])
def test_what_is_no_file_in_the_place_of_one_is_named(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path
) -> None:
    path = (cache if place == "cache" else tmp_path) / NAME
    if place == "data":
        monkeypatch.setenv("CHARLM_DATA_DIR", str(tmp_path))
    path.parent.mkdir(parents=True, exist_ok=True)
    make(kind, path)
    with pytest.raises(UsageError, match=f"^{path} "):
        get(server.url("/good"))
    assert server.asked == []


def test_a_broken_link_in_the_cache_is_replaced_by_the_file(server: Server, cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).symlink_to(tmp_path / "elsewhere")
    assert get(server.url("/good")) == TEXT.decode()
    assert not (cache / NAME).is_symlink() and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/tmp/x", "a/b", "a/", "..\\x", "a\\b", "C:x", "a\0b", "a\nb", "\udcff", 5],
)
def test_a_filename_that_leads_out_of_the_cache_is_refused(
    name: Any, server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARLM_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(UsageError, match=r"^filename=.* must be (the name of a file|text)") as caught:
        corpus.download(filename=name, sha256=SHA, urls=[server.url("/good")])
    assert str(caught.value).isprintable()
    assert server.asked == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["text", ".hidden", "two words.txt", "été.txt", "..."])
def test_a_plain_filename_is_taken(name: str, server: Server, cache: Path) -> None:
    assert corpus.download(name, SHA, [server.url("/good")]).text == TEXT.decode()
    assert [path.name for path in cache.iterdir()] == [name]


@pytest.mark.parametrize("sum_", ["", "abc", SHA.upper(), SHA[:-1], SHA + "\n", 5, None])
def test_a_checksum_that_is_none_is_refused(sum_: Any, server: Server, cache: Path) -> None:
    with pytest.raises(UsageError, match=r"^sha256="):
        corpus.download(NAME, sha256=sum_, urls=[server.url("/good")])
    assert server.asked == []


@pytest.mark.parametrize("urls", ["http://127.0.0.1/a", None, 5, [5], [None], {"a": "b"}])
def test_addresses_that_are_no_list_are_refused(urls: Any, cache: Path) -> None:
    with pytest.raises(UsageError, match=r"^urls(\.0)?="):
        corpus.download(NAME, SHA, urls=urls)


# Texts.


def test_nul_bytes_in_a_file_that_was_named_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\0b\n" * 300)
    run_train("data=text", f"data.path={tmp_path}/a.txt", *SMALL, f"hydra.run.dir={tmp_path}/run")
    assert math.isfinite(summary(tmp_path / "run")["best_val_nats"])


def test_one_symbol_again_and_again_is_learnt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 3000)
    run_train("data=text", f"data.path={tmp_path}/a.txt", *SMALL, f"hydra.run.dir={tmp_path}/run")
    assert summary(tmp_path / "run")["best_val_nats"] == 0


@pytest.mark.parametrize("text", ["a", "\n", "\0", "é", "ab"])
def test_a_text_of_hardly_a_character_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UsageError, match=r"give more text"):
        data_module(read(str(tmp_path / "a.txt")), val=0.5)


@pytest.mark.parametrize("end", ["", "\n", "\r"])
def test_a_huge_line_is_text_like_any_other(tmp_path: Path, end: str) -> None:
    line = "all on one line, é" * 500_000 + end
    (tmp_path / "a.txt").write_bytes(line.encode())
    assert read(str(tmp_path / "a.txt")).text == line
    assert len(data_module(line[:1_000_000]).ids_N) == 1_000_000


@pytest.mark.parametrize(
    ("data", "encoding"), [(b"a+2AA-b", "utf-7"), (rb"a\ud800b", "unicode_escape"), (b"a", "a\0b"), (b"a", "\udcff")]
)
def test_what_no_file_could_hold_again_is_refused_at_once(tmp_path: Path, data: bytes, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(data * 500)
    with pytest.raises(UsageError, match=r"data\.encoding=") as caught:
        read(str(tmp_path / "a.txt"), encoding)
    assert str(caught.value).isprintable()


def test_a_file_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**30)  # a sparse file
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, hard))
    try:
        with pytest.raises(UsageError, match=r"a\.txt does not fit into memory"):
            read(str(tmp_path / "a.txt"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Files that change.


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def shortened(path: Path) -> None:
    os.truncate(path, 10)


def written_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(TEXT.upper())


@pytest.mark.parametrize("change", [appended, shortened, written_over])
@pytest.mark.parametrize("place", ["", "a.txt", "*.txt"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], None], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    os.utime(tmp_path / "a.txt", (1, 1))
    fstat, looked = os.fstat, []

    def look(file: int) -> os.stat_result:  # a real change at a chosen moment
        found = fstat(file)
        if not looked:
            looked.append(found)
            change(tmp_path / "a.txt")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", look)
        with pytest.raises(UsageError, match=r"a\.txt changed while it was being read: start again"):
            read(str(tmp_path / place))
    assert read(str(tmp_path / place)).text.strip() == (tmp_path / "a.txt").read_text().strip()


def test_a_file_that_grows_all_the_time_is_refused(tmp_path: Path) -> None:
    path, over = tmp_path / "a.txt", threading.Event()
    with path.open("wb") as file:
        file.truncate(2**26)  # reading takes long enough for the other thread to run

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not over.wait(0.001):
                file.write(b"x")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with pytest.raises(UsageError, match=r"a\.txt changed while it was being read"):
            read(str(path))
    finally:
        over.set()
        thread.join()


def test_a_file_that_grows_faster_than_it_is_read_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    fstat = os.fstat

    def look(file: int) -> os.stat_result:
        found = fstat(file)
        os.truncate(tmp_path / "a.txt", 2**36)
        return found

    monkeypatch.setattr(os, "fstat", look)
    with pytest.raises(UsageError, match=r"a\.txt changed while it was being read"):
        read(str(tmp_path / "a.txt"))


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "new.txt").write_bytes(HALF)
    fstat = os.fstat

    def look(file: int) -> os.stat_result:
        (tmp_path / "new.txt").exists() and os.replace(tmp_path / "new.txt", tmp_path / "a.txt")
        return fstat(file)

    monkeypatch.setattr(os, "fstat", look)
    assert read(str(tmp_path / "a.txt")).text.encode() == TEXT


def gone(path: Path) -> None:
    path.unlink()


def now_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def now_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("pattern", ["", "*.txt", "**/*.txt"])
@pytest.mark.parametrize(
    ("moment", "change"),
    [("is_regular_file", gone), ("read_bytes", gone), ("read_bytes", now_a_fifo), ("read_bytes", now_a_folder)],
)
def test_a_file_that_is_another_thing_when_its_turn_comes_is_refused(
    moment: str, change: Callable[[Path], None], pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "a.txt", "b.txt":
        (tmp_path / name).write_text(name)
    before = getattr(corpus, moment)

    def at_its_turn(path: Path) -> Any:
        if path.name == "b.txt":
            change(path)
        return before(path)

    monkeypatch.setattr(corpus, moment, at_its_turn)
    with pytest.raises(UsageError, match=r"b\.txt (cannot be read: |is not a regular file)"):
        read(str(tmp_path / pattern))


# Links, FIFOs, devices.


def make(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as file, contextlib.chdir(path.parent):
            file.bind(path.name)  # the whole path may be too long for a socket


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_what_is_no_file_is_refused_where_named_and_left_out_of_folders(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_text("A\n")
    make(kind, tmp_path / "b.txt")
    with pytest.raises(UsageError, match=r"^data\.path=.*b\.txt is neither a file nor a folder"):
        read(str(tmp_path / "b.txt"))
    for pattern in "", "*.txt", "**/*.txt":
        found = read(str(tmp_path / pattern))
        assert found.text == "A\n"
        assert found.notices == (
            f"links to folders, broken links and devices left out: 1, the first is {tmp_path / 'b.txt'}",
        )
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UsageError, match="contains no text .* and 1 that are not regular files"):
        read(str(tmp_path))
    with pytest.raises(UsageError, match="there is no file"):
        read(str(tmp_path / "*.txt"))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom", "/dev/tty"])
def test_a_device_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^data.path={device} is neither a file nor a folder"):
        read(device)
    (tmp_path / "a.txt").symlink_to(device)
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        read(str(tmp_path / "a.txt"))
    with pytest.raises(UsageError, match="that are not regular files"):
        read(str(tmp_path))


def test_a_file_in_proc_is_read_though_its_size_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read("/proc/self/status").text.startswith("Name:")
    monkeypatch.setattr(files, "SLACK", 100)
    with pytest.raises(UsageError):  # a file is read completely or not at all
        read("/proc/self/status")


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**", "a/../**/*.txt", "**/**/*.txt"])
def test_links_that_lead_round_in_circles_are_left_out(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("C\n")
    for number in range(4):  # if followed, they would lead to 4 ** 40 folders
        (tmp_path / "a" / f"up{number}").symlink_to(tmp_path)
        (tmp_path / f"self{number}.txt").symlink_to(tmp_path / f"self{number}.txt")
    (tmp_path / "to.txt").symlink_to(tmp_path / "fro.txt")
    (tmp_path / "fro.txt").symlink_to(tmp_path / "to.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    found = read(str(tmp_path / pattern))
    assert found.text == "C\n"
    (notice,) = found.notices
    assert notice.startswith("links to folders, broken links and devices left out: 11, the first is ")


@pytest.mark.parametrize("name", ["self", "to", "gone"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    for link, target in {"self": "self", "to": "fro", "fro": "to", "gone": "nowhere"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match=f"data.path={tmp_path / name}"):
        read(str(tmp_path / name))


def test_links_to_files_and_a_link_to_the_folder_itself_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "a.txt").write_text("A\n")
    (tmp_path / "real" / "b.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for pattern in "link", "link/*.txt", "link/**/*.txt", "l*/**/b.txt":
        found = read(str(tmp_path / pattern))
        assert (found.text, found.notices) == ("A\n", ())


@pytest.mark.parametrize(
    "pattern", ["**", "**/*", "*/**", "a/**/*.txt", "**/b/**/*.txt", "**/**", "a/**/c.txt", "[a]/**/?.txt", "**/.h/*"]
)
def test_two_stars_match_what_they_match_in_python(tmp_path: Path, pattern: str, monkeypatch: Any) -> None:
    for name in "a/b/c.txt", "a/b/d/e.txt", "a/.h/f.txt", "a/[b]/g.txt", "h.txt", ".h/i.txt", "b/j.md", "c d/k.txt":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    expected = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert {str(path) for path in files.expand_glob(Path(pattern))} == expected != set()


# Permissions.


@pytest.mark.parametrize("place", ["a.txt", "", "*.txt"])
def test_a_file_that_may_not_be_read_is_named(public: Path, ordinary_user: None, place: str) -> None:
    (public / "a.txt").write_text("A\n")
    (public / "a.txt").chmod(0)
    with pytest.raises(UsageError, match=r"a\.txt cannot be read: Permission denied"):
        read(str(public / place))


@pytest.mark.parametrize("mode", [0o000, 0o444])  # cannot be listed; can be listed, but its files cannot be read
@pytest.mark.parametrize("pattern", ["", "**/*.txt", "sub/a.txt"])
def test_a_folder_that_may_not_be_entered_is_never_left_out_silently(
    public: Path, ordinary_user: None, mode: int, pattern: str
) -> None:
    (public / "sub").mkdir()
    (public / "sub" / "a.txt").write_text("A\n")
    (public / "b.txt").write_text("B\n")
    (public / "sub").chmod(mode)
    try:
        with pytest.raises(UsageError, match=r"/sub\b.* cannot be (read|a file or folder): .*Permission denied"):
            read(str(public / pattern))
    finally:
        (public / "sub").chmod(0o700)


def test_a_data_folder_that_may_not_be_read_is_named(
    public: Path, monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path, ordinary_user: None
) -> None:
    monkeypatch.setenv("CHARLM_DATA_DIR", str(public))
    (public / NAME).write_bytes(TEXT)
    (public / NAME).chmod(0)
    with pytest.raises(UsageError, match=f"^{public / NAME} cannot be read: Permission denied"):
        get(server.url("/good"))


# Odd names.

ODD = [b"a\nb", b"caf\xe9", b"\x1b[31mred", b"\xff" * 200, b"-rf", b" ", b"a\tb", "\u2028\u202e".encode()]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_files_and_folders_are_read_and_can_be_printed(tmp_path: Path, name: bytes) -> None:
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/" + name)).write_text("A\n")
    Path(os.fsdecode(folder + b"/" + name + b".bin")).write_bytes(b"\0")
    os.symlink(b"nowhere", folder + b"/" + name + b".link")
    for place in os.fsdecode(folder), str(tmp_path):
        found = read(place)
        assert found.text == "A\n"
        assert len(found.notices) == 2
        for line in found.source, *found.notices:
            assert line.isprintable() and line.encode()
    assert read(os.fsdecode(folder + b"/" + name)).source.isprintable()


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("content", [None, b"", b"\xe9", b"\0"])
def test_odd_names_can_be_printed_when_they_are_refused(tmp_path: Path, name: bytes, content: bytes | None) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    if content is not None:
        os.mkdir(path)
        Path(os.fsdecode(path + b"/" + name)).write_bytes(content)
    for place in [path] if content in (None, b"\0") else [path, path + b"/" + name]:
        with pytest.raises(UsageError) as caught:
            read(os.fsdecode(place))
        assert str(caught.value).isprintable() and str(caught.value).encode()


# The real program.


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Outcome]:
    """``python train.py`` with a separate cache, and no network except the test server."""

    def start(*overrides: str) -> Outcome:
        env = {**environment(tmp_path), "NO_PROXY": "127.0.0.1", "PYTHONIOENCODING": "utf-8:strict"}
        env.pop("CHARLM_DATA_DIR", None)
        return program("train.py", *overrides, *QUICK, f"hydra.run.dir={tmp_path}/run", env=env)

    return start


@pytest.mark.parametrize("fault", ["cut off half-way", "another text"])
def test_train_refuses_a_download_that_fails(
    fault: str, train: Callable[..., Outcome], server: Server, tmp_path: Path
) -> None:
    page, message = QUICK_FAULTS[fault]
    url = server.url("/fault", page)
    outcome = train("data=tinyshakespeare", f"data.corpus.urls=['{url}']")
    assert outcome.is_refusal("tinyshakespeare.txt", url, "was refused" if message is WRONG else message)
    assert outcome.out == ""
    assert nothing_was_trained(tmp_path / "run")
    assert list((tmp_path / "cache" / "charlm").iterdir()) == []


def test_train_never_writes_outside_the_cache(train: Callable[..., Outcome], server: Server, tmp_path: Path) -> None:
    theirs = f"data.corpus.sha256={SHA}", f"data.corpus.urls=['{server.url('/good')}']"
    outcome = train("data=tinyshakespeare", "data.corpus.filename=../evil.txt", *theirs)
    assert outcome.is_refusal("filename='../evil.txt' must be the name of a file")
    assert nothing_was_trained(tmp_path / "run") and not (tmp_path / "cache").exists()


def test_train_refuses_what_never_ends(train: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = train("data=text", "data.path=/dev/zero")
    assert outcome.is_refusal("data.path=/dev/zero is neither a file nor a folder")
    assert outcome.out == ""
    assert nothing_was_trained(tmp_path / "run")


def test_train_goes_through_a_folder_full_of_oddities(train: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9\nau lait"
    os.mkdir(folder)
    os.mkfifo(folder + b"/\xff")
    os.symlink(b"..", folder + b"/up")
    Path(os.fsdecode(folder + b"/\n.bin")).write_bytes(b"\0")
    Path(os.fsdecode(folder + b"/\xe9.txt")).write_bytes(TEXT)
    outcome = train("data=text", f"data.path={tmp_path}")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    assert "left out, not text: 1 binary;" in outcome.out and "devices left out: 2" in outcome.out
    assert summary(tmp_path / "run")["corpus_sha256"] == SHA
