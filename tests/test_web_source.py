"""Images on web servers: what is listed and read, and what becomes of servers that fail or mean harm."""

import gc
import gzip
import os
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from job_api.client import Client
from job_api.schemas import JobState, ProjectSettings, ResultStatus
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import wait_for
from tests.webserver import HTML, Answer, Exchange, WebServer, image, index, page, redirect
from uworker.images import (
    DirectoryDenied,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceError,
    SourceNotAllowed,
    StorageFault,
    Verdict,
)
from uworker.sources.allow import Allowance
from uworker.sources.folders import LARGE_BYTES, Bounds, NoIndex
from uworker.sources.local import LocalSource
from uworker.sources.web import WebSource

MAX_BYTES = 1_000_000
QUICK = Bounds(patience_seconds=0.5)


@contextmanager
def source_at(url: str, *allowed: str, bounds: Bounds = QUICK) -> Iterator[WebSource]:
    """A source whose host is named, with the other places that may be read."""
    source = WebSource(url, Allowance([url, *allowed], bound=False), MAX_BYTES, bounds)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def serving(
    answers: dict[str, Answer] | Answer, *allowed: str, bounds: Bounds = QUICK
) -> Iterator[tuple[WebServer, WebSource]]:
    with WebServer(answers) as server, source_at(server.url + "/set", *allowed, bounds=bounds) as source:
        yield server, source


def names(source: WebSource, directory: str = "job") -> list[str]:
    return [found.name for found in source.list_images(directory)]


def fault(source: WebSource, kind: type[SourceError], directory: str = "job") -> str:
    """What the listing of a directory says when it fails."""
    with pytest.raises(kind) as caught:
        names(source, directory)
    assert type(caught.value) is kind
    return str(caught.value)


def verdict(source: WebSource, server: WebServer, path: str = "/set/job/a.png") -> Verdict:
    found = source.read(ImageFile("a.png", server.url + path))
    assert isinstance(found, Verdict)
    return found


# --- listing ---

ODD = [
    "a b.png",
    "100% #1+2 (ü).png",
    "q?x=1&y;z.png",
    "ünï/côdé 図.png",
    "%41.png",
    "'quoted\".png",
    "a,b=c@d!$*.png",
    "-.png",
]


def test_a_served_folder_is_read_as_the_folder_itself(tmp_path: Path) -> None:
    files = [
        *ODD,
        "deep/er/and/deeper/x.PNG",
        "deep/a.jpg",
        "deep.png",
        "notes.txt",
        ".hidden.png",
        "__MACOSX/y.png",
    ]
    for number, name in enumerate(files):
        path = tmp_path / "set of (ü) 100%" / "job #1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    local = LocalSource(tmp_path / "set of (ü) 100%", MAX_BYTES)
    wanted = {found.name: local.read(found) for found in local.list_images("job #1")}
    with WebServer(tmp_path) as server, source_at(f"{server.url}/{quote('set of (ü) 100%')}/") as source:
        listed = list(source.list_images("job #1"))
        assert {found.name: source.read(found) for found in listed} == wanted
        assert [found.name for found in listed] == names(source, "job #1")
    assert len(wanted) == len(files) - 3


NGINX = """<html>\r
<head><title>Index of /set/job/</title></head>\r
<body>\r
<h1>Index of /set/job/</h1><hr><pre><a href="../">../</a>\r
<a href="sub%20%231/">sub #1/</a>                       21-Nov-2026 12:00                   -\r
<a href="a%2Bb%25.png">a+b%.png</a>                     21-Nov-2026 12:00                1234\r
</pre><hr></body>\r
</html>\r
"""
APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /set/job</title></head><body><h1>Index of /set/job</h1>
<table><tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th>
<th><a href="?C=M;O=A">Last modified</a></th><th><a href="?C=S;O=A">Size</a></th></tr>
<tr><td><a href="/set/"><img src="/icons/back.gif"></a></td><td><a href="/set/">Parent Directory</a></td></tr>
<tr><td><a href="sub%20%231/"><img src="/icons/folder.gif"></a></td><td><a href="sub%20%231/">sub #1/</a></td></tr>
<tr><td><a href="a+b%25.png"><img src="/icons/image2.gif"></a></td><td><a href="a+b%25.png">a+b%.png</a></td></tr>
</table><address>Apache/2.4.62 Server</address></body></html>
"""
LIGHTTPD = """<!DOCTYPE html>
<html><head><title>Index of /set/job/</title><style type="text/css">a, a:active {text-decoration: none;}</style></head>
<body><h2>Index of /set/job/</h2><div class="list"><table summary="Directory Listing"><tbody>
<tr class="d"><td class="n"><a href="../">..</a>/</td></tr>
<tr class="d"><td class="n"><a href="sub%20%231/">sub #1</a>/</td></tr>
<tr><td class="n"><a href="a%2bb%25.png">a+b%.png</a></td><td class="s">1.2K</td></tr>
</tbody></table></div></body></html>
"""
CADDY = """<!DOCTYPE html>
<html><head><title>set / job</title><meta charset="utf-8"><style>body > a { color: red }</style></head>
<body><h1><a href="../../">/</a><a href="../">set</a>/<a href="">job</a></h1>
<a href="./?layout=grid&sort=name&order=asc">Grid</a><table><tbody>
<tr class="file"><td><a href="./sub%20%231/"><span class="name">sub #1</span></a></td></tr>
<tr class="file"><td><a href="./a+b%25.png"><span class="name">a+b%.png</span></a></td></tr>
</tbody></table><script>if (1 < 2) { document.write('<a href="./no.png">') }</script></body></html>
"""
ABSOLUTE = '<title>Index of /</title><a href="/set/job/sub%20%231/">x</a><a href="{root}/set/job/a%2bb%25.png">y</a>'


@pytest.mark.parametrize(
    "html", [NGINX, APACHE, LIGHTTPD, CADDY, ABSOLUTE], ids=["nginx", "apache", "lighttpd", "caddy", "absolute"]
)
def test_the_index_of_every_common_server_is_read(html: str) -> None:
    def answer(exchange: Exchange) -> None:
        shown = html.replace("{root}", f"http://{exchange.headers['Host']}")
        below = index("b.png") if "sub" in exchange.path else page(shown)
        (below if exchange.path.endswith("/") else image(exchange.path.encode()))(exchange)

    with serving(answer) as (server, source):
        found = list(source.list_images("job"))
        assert [f.name for f in found] == ["a+b%.png", "sub #1/b.png"]
        assert source.read(found[0]) == b"/set/job/a%2Bb%25.png"
        assert server.paths[:2] == ["/set/job/", "/set/job/sub%20%231/"], "each page once, and nothing else"


@pytest.mark.parametrize(
    "listed",
    [
        """[{"name":"sub #1","type":"directory","mtime":"x"},{"name":"a+b%.png","type":"file","mtime":"x","size":7},
        {"name":"../up.png","type":"file"},{"name":"..","type":"directory"},{"name":"/etc/x.png","type":"file"}]""",
        """[{"name":"sub #1/","size":4096,"url":"./sub%20%231/","is_dir":true},
        {"name":"a+b%.png","size":7,"url":"./a+b%25.png","is_dir":false},
        {"name":"x.png","size":7,"url":"../x.png","is_dir":false},
        {"name":"y.png","size":7,"url":"./%2e%2e%2fy.png","is_dir":false},
        {"name":"caf\ufffd.png","size":7,"url":"./caf%E9.png","is_dir":false}]""",
    ],
    ids=["nginx", "caddy"],
)
def test_an_index_may_be_json_and_then_tells_sizes(listed: str) -> None:
    def answer(exchange: Exchange) -> None:
        body = '[{"name":"b.png","type":"file"}]' if "sub" in exchange.path else listed
        exchange.reply(body.encode(), Content_Type="application/json; charset=utf-8")

    with serving(answer) as (server, source):
        found = [(f.name, f.size) for f in source.list_images("job")]
        assert [entry for entry in found if entry != ("caf\\xe9.png", 7)] == [("a+b%.png", 7), ("sub #1/b.png", None)]
        assert (("caf\\xe9.png", 7) in found) is ("url" in listed)
        assert server.paths == ["/set/job/", "/set/job/sub%20%231/"]


def test_images_come_in_the_order_of_their_paths_a_page_at_a_time() -> None:
    tree = {
        "/set/job/": index("b/", "c.png", "a/", "a.png", "a-.png", "b.png"),
        "/set/job/a/": index("2.png", "1.png"),
        "/set/job/b/": index("1.png"),
    }
    with serving(tree) as (server, source):
        listing = source.list_images("job")
        assert [next(listing).name for _ in range(3)] == ["a-.png", "a.png", "a/1.png"]
        assert server.paths == ["/set/job/", "/set/job/a/"], "what is not asked for yet is not fetched"
        assert [found.name for found in listing] == ["a/2.png", "b.png", "b/1.png", "c.png"]


@pytest.mark.parametrize(
    "href",
    [
        "http://other.example/set/job/x.png",
        "//other.example/set/job/x.png",
        "https://{host}/set/job/x.png",
        "http://{host}.evil.example/set/job/x.png",
        "http://user@{host}:1/set/job/x.png",
        "/set/x.png",
        "/set/jobs/x.png",
        "../x.png",
        "../../../etc/x.png",
        "%2e%2e/x.png",
        "..%2fx.png",
        "a%2f..%2f..%2fx.png",
        "%2e%2e%2f/",
        "..%5cx.png",
        "../other/",
        "./",
        ".",
        "",
        "#x.png",
        "?C=N;O=D",
        "x.png?C=N;O=D",
        "sub/?download=1",
        "javascript:x.png",
        "data:image/png;base64,x.png",
        "file:///etc/x.png",
        "http://[bad/x.png",
        "x%00.png",
        "sub/deeper/x.png",
    ],
)
def test_a_link_to_elsewhere_is_no_image_and_is_never_asked_for(href: str) -> None:
    def answer(exchange: Exchange) -> None:
        link = href.replace("{host}", str(exchange.headers["Host"]))
        (index(link, "good.png") if exchange.path == "/set/job/" else index("trap.png"))(exchange)

    with serving(answer) as (server, source):
        assert names(source) == ["good.png"]
        assert server.paths == ["/set/job/"]


def test_a_base_of_the_page_is_followed_and_leads_no_further() -> None:
    tree = {
        "/set/job/": page(
            '<base href="/set/job/"><a href="a.png"></a><base href="http://other.example/"><a href="b.png"></a>'
        ),
    }
    with serving(tree) as (_, source):
        assert names(source) == ["a.png"]


def test_names_that_are_shown_alike_get_a_row_each() -> None:
    with serving({"/set/job/": index("caf%E9.png", "caf%5Cxe9.png", "caf%E9.png")}) as (_, source):
        assert sorted(names(source)) == ["caf\\xe9.png", "caf\\xe9.png (2)"]


@pytest.mark.parametrize("directory", ["nowhere", "empty", "text only", "job/../job", "..", "job/..\\x"])
def test_a_directory_without_images_is_no_fault_of_the_storage(tmp_path: Path, directory: str) -> None:
    for name in ("job/a.png", "text only/notes.txt", "empty/sub/notes"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).touch()
    with WebServer(tmp_path) as server, source_at(server.url + "/set") as source:
        fault(source, NoImages, directory)
        assert names(source) == ["a.png"]


def test_a_folder_that_goes_while_it_is_listed_costs_its_neighbours_nothing() -> None:
    with serving({"/set/": index("job/"), "/set/job/": index("gone/", "z.png")}) as (_, source):
        assert names(source) == ["z.png"]


AWAY = [page("not here", 404), page("gone", 410), index()]


@pytest.mark.parametrize("root", AWAY, ids=["404", "410", "empty"])
def test_a_source_that_is_away_as_a_whole_costs_its_jobs_nothing(root: Answer) -> None:
    tree = {"/set/": root, "/set/job/": index("gone/", "z.png")}
    with serving(tree) as (server, source):
        for directory in ("elsewhere", "job"):
            assert f"{server.url}/set" in fault(source, StorageFault, directory)
        with pytest.raises(StorageFault):
            source.read(ImageFile("a.png", server.url + "/set/elsewhere/a.png"))


@pytest.mark.parametrize("root", [page("no", 403), page("Welcome"), redirect("http://other.example/"), index("job/")])
def test_a_source_that_shows_no_index_of_its_own_is_there(root: Answer) -> None:
    with serving({"/set/": root}) as (server, source):
        fault(source, NoImages)
        assert verdict(source, server).status is ResultStatus.MISSING
        assert server.paths.count("/set/") == 2, "asked once for each"


@pytest.mark.parametrize(
    "answer",
    [
        page("<title>Welcome</title><p>Our pictures are <a href='https://other.example/'>here</a>"),
        page("a.png", Content_Type="text/plain"),
        page("a.png", Content_Type=""),
        page("<Contents><Key>a.png</Key></Contents>", Content_Type="application/xml"),
        page('{"files": ["a.png"]}', Content_Type="application/json"),
        page('["a.png"]', Content_Type="application/json"),
        page("[" * 100_000, Content_Type="application/json"),
        page("<![broken[ <a href='a.png'>"),
        page("<title>Index of /</title><a href='a.png'>a</a><!-- " + "never ends " * 100_000),
    ],
)
def test_a_server_without_an_index_is_told_from_an_empty_directory(answer: Answer) -> None:
    with serving({"/set/job/": answer}) as (server, source):
        said = fault(source, NoIndex)
        assert "let it show directory indexes" in said
        assert server.url + "/set/job/" in said
        assert (NoIndex.reason, NoIndex.retryable) == ("no-index", False)


# --- logins ---


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_does_not_let_the_worker_in_is_the_workers_matter(status: int) -> None:
    with serving(page("no", status)) as (server, source):
        assert ".netrc" in fault(source, SourceDenied)
        with pytest.raises(SourceDenied):
            source.read(ImageFile("a.png", server.url + "/set/job/a.png"))


@pytest.mark.parametrize("status", [400, 401, 403, 414])
def test_one_file_that_is_refused_is_a_row_and_stops_nobody(status: int) -> None:
    tree = {
        "/set/job/": index("a.png", "b.png"),
        "/set/job/a.png": page("no", status),
        "/set/job/b.png": image(b"b"),
    }
    with serving(tree) as (server, source):
        _refused, readable = source.list_images("job")
        assert source.read(readable) == b"b"
        assert verdict(source, server).status is ResultStatus.UNREADABLE


def test_files_that_all_ask_for_a_login_below_an_open_index_are_no_results() -> None:
    with serving({"/set/job/": index("a.png"), "/set/job/a.png": page("who?", 401)}) as (_, source):
        [found] = source.list_images("job")
        with pytest.raises(DirectoryDenied, match=r"\.netrc"):
            source.read(found)


CLOSED = "/set/closed/a.png"


@pytest.mark.parametrize("status", [401, 403])
def test_one_directory_that_is_refused_stops_no_worker_that_was_let_in(status: int) -> None:
    for let_in in ("/set/", "/set/job/", "/set/job/a.png"):
        tree = {let_in: image(b"a") if let_in.endswith("png") else index("a.png")}

        def answer(exchange: Exchange, tree: dict[str, Answer] = tree) -> None:
            tree.get(exchange.path, page("no", status))(exchange)

        with serving(answer) as (server, source):
            if let_in == "/set/job/":
                names(source)
            elif let_in.endswith("png"):
                source.read(ImageFile("a.png", server.url + let_in))
            assert "'closed'" in fault(source, DirectoryDenied, "closed")
            with pytest.raises(DirectoryDenied, match=f"{server.url}/set/closed"):
                source.read(ImageFile("a.png", server.url + CLOSED))
            assert (DirectoryDenied.reason, DirectoryDenied.retryable) == ("directory-denied", True)


def write_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "netrc"
    file.write_text(text)
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))


def test_the_login_of_a_host_comes_from_netrc_and_goes_to_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_netrc(monkeypatch, tmp_path, "machine 127.0.0.1 login me password secret-1\n")
    with WebServer({"/elsewhere/a.png": image(b"there")}, host="127.0.0.2") as other:
        tree = {"/set/job/": index("a.png"), "/set/job/a.png": redirect(other.url + "/elsewhere/a.png")}
        with serving(tree, other.url) as (server, source):
            [found] = source.list_images("job")
            assert source.read(found) == b"there"
            assert [headers.get("Authorization", "")[:6] for _, headers in server.seen] == ["Basic ", "Basic "]
            assert [headers.get("Authorization") for _, headers in other.seen] == [None]


def test_the_default_of_netrc_goes_to_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_netrc(monkeypatch, tmp_path, "default login me password secret-1\n")
    with serving({"/set/job/": index("a.png")}) as (server, source):
        names(source)
        assert [headers.get("Authorization") for _, headers in server.seen] == [None]


def test_a_broken_netrc_is_told_without_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_netrc(monkeypatch, tmp_path, "machine h login me\npassword a secret-1\n")
    with pytest.raises(SourceDenied, match="netrc") as caught:
        WebSource("http://127.0.0.1", Allowance([], bound=True), MAX_BYTES)
    assert "secret-1" not in str(caught.value)


def test_no_cookie_is_kept() -> None:
    with serving({"/set/job/": index("a.png", Set_Cookie="tracked=1; Path=/")}) as (server, source):
        assert names(source) == names(source)
        assert "Cookie" not in server.seen[1][1]


# --- reading, and what fails ---


def test_an_image_that_went_after_the_listing_is_missing() -> None:
    with serving({"/set/job/": index("a.png")}) as (server, source):
        assert verdict(source, server).status is ResultStatus.MISSING


def test_an_image_that_is_not_found_on_a_server_that_fails_is_no_result() -> None:
    with serving({"/set/job/": page("broken", 500)}) as (server, source), pytest.raises(StorageFault):
        source.read(ImageFile("a.png", server.url + "/set/job/a.png"))


class Flaky:
    """Answers one way for the first times, and then another."""

    def __init__(self, bad: Answer, times: int, good: Answer) -> None:
        self._bad, self._times, self._good = bad, times, good
        self.asked_at: list[float] = []

    def __call__(self, exchange: Exchange) -> None:
        self.asked_at.append(time.monotonic())
        (self._bad if len(self.asked_at) <= self._times else self._good)(exchange)


def cut_off(exchange: Exchange) -> None:
    exchange.reply(b"half", Content_Length="1000")
    exchange.close_connection = True


def hang_up(exchange: Exchange) -> None:
    exchange.close_connection = True
    exchange.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "bad",
    [page("x", 500), page("x", 502), page("x", 408), page("x", 429), cut_off, hang_up],
    ids=["500", "502", "408", "429", "half", "hang-up"],
)
def test_what_may_pass_is_tried_again(bad: Answer) -> None:
    flaky = Flaky(bad, 2, image(b"whole"))
    tree: dict[str, Answer] = {"/set/job/a.png": flaky}
    with serving(tree, bounds=Bounds(patience_seconds=20)) as (server, source):
        assert source.read(ImageFile("a.png", server.url + "/set/job/a.png")) == b"whole"
        assert len(flaky.asked_at) == 3


@pytest.mark.parametrize("bad", [page("x", 503), cut_off, hang_up], ids=["503", "half", "hang-up"])
def test_what_does_not_pass_is_the_storages_fault(bad: Answer) -> None:
    with serving(bad) as (server, source):
        with pytest.raises(StorageFault, match=f"{server.url}/set/job/a.png"):
            source.read(ImageFile("a.png", server.url + "/set/job/a.png"))
        fault(source, StorageFault)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_is_obeyed_and_that_costs_no_patience(status: int) -> None:
    flaky = Flaky(page("x", status, Retry_After="3"), 1, Flaky(page("x", 500), 1, image(b"whole")))
    with serving({"/set/job/a.png": flaky}, bounds=Bounds(patience_seconds=2.5)) as (server, source):
        assert source.read(ImageFile("a.png", server.url + "/set/job/a.png")) == b"whole"
        assert flaky.asked_at[1] - flaky.asked_at[0] >= 3
        assert len(flaky.asked_at) == 3


def test_what_a_server_asks_one_job_to_wait_holds_for_all_and_is_bounded() -> None:
    flaky = Flaky(page("x", 429, Retry_After="3600"), 2, image(b"whole"))
    with serving(flaky, bounds=Bounds(patience_seconds=0.5, wait_seconds=1)) as (server, source):
        assert "HTTP 429" in fault(source, StorageFault)
        with ThreadPoolExecutor(6) as pool:
            reads = [pool.submit(source.read, ImageFile("a.png", f"{server.url}/set/{n}.png")) for n in range(6)]
            assert [read.result() for read in reads] == [b"whole"] * 6
        first, second, *others = flaky.asked_at
        assert second - first >= 1
        assert len(others) == 6
        assert min(others) - second >= 1


def test_who_waits_as_a_server_asks_is_woken_when_the_source_is_closed() -> None:
    with serving(page("x", 429, Retry_After="3600")) as (server, source), ThreadPoolExecutor(1) as pool:
        read = pool.submit(source.read, ImageFile("a.png", server.url + "/set/job/a.png"))
        wait_for(lambda: source._server._turn._not_before > 0)
        source.close()
        with pytest.raises(StorageFault, match="closed"):
            read.result(10)


def test_a_server_that_is_not_there_is_the_storages_fault() -> None:
    with WebServer({}) as server:
        url = server.url
    with source_at(url + "/set") as source:
        fault(source, StorageFault)
    with source_at("http://does-not-exist.invalid/set") as source:
        assert "does-not-exist.invalid" in fault(source, StorageFault)


# --- what is too much ---


def endless(piece: bytes, media_type: str, sent: list[int]) -> Answer:
    """A body without end, in chunks, until the client has gone."""

    def answer(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Type", media_type)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        while True:
            exchange.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent.append(len(piece))

    return answer


def test_an_image_without_end_is_too_large() -> None:
    sent: list[int] = []
    with serving({"/set/job/a.png": endless(bytes(10_000), "image/png", sent)}) as (server, source):
        assert verdict(source, server).status is ResultStatus.TOO_LARGE
    assert sum(sent) < 100 * MAX_BYTES


def test_a_size_that_is_declared_decides_before_anything_is_read() -> None:
    def lying(exchange: Exchange) -> None:
        exchange.reply(b"little", Content_Length=str(10**15))

    with serving({"/set/job/a.png": lying}) as (server, source):
        found = verdict(source, server)
        assert (found.status, str(10**15) in found.message) == (ResultStatus.TOO_LARGE, True)


def test_the_largest_image_that_may_be_read_is_read() -> None:
    tree = {"/set/job/a.png": image(bytes(MAX_BYTES)), "/set/job/b.png": image(bytes(MAX_BYTES + 1))}
    with serving(tree) as (server, source):
        assert source.read(ImageFile("a.png", server.url + "/set/job/a.png")) == bytes(MAX_BYTES)
        assert verdict(source, server, "/set/job/b.png").status is ResultStatus.TOO_LARGE


def zipped(data: bytes, **headers: str) -> Answer:
    packed = gzip.compress(data)
    return lambda exchange: exchange.reply(packed, Content_Encoding="gzip", **headers)


def test_what_is_compressed_unasked_is_bounded_by_what_it_becomes() -> None:
    tree = {"/set/job/a.png": zipped(bytes(300_000_000)), "/set/job/b.png": zipped(b"image" * 100_000)}
    with serving(tree) as (server, source):
        tracemalloc.start()
        assert verdict(source, server).status is ResultStatus.TOO_LARGE
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 10 * MAX_BYTES
        assert source.read(ImageFile("b.png", server.url + "/set/job/b.png")) == b"image" * 100_000
        assert {headers["Accept-Encoding"] for _, headers in server.seen} == {"identity"}


@pytest.mark.parametrize(
    "bad",
    [
        lambda exchange: exchange.reply(gzip.compress(os.urandom(1000))[:500], Content_Encoding="gzip"),
        lambda exchange: exchange.reply(b"not gzip", Content_Encoding="gzip"),
        lambda exchange: exchange.reply(b"?", Content_Encoding="br"),
    ],
    ids=["cut", "damaged", "other"],
)
def test_what_cannot_be_decompressed_is_the_storages_fault(bad: Answer) -> None:
    with serving({"/set/job/a.png": bad}) as (server, source), pytest.raises(StorageFault):
        source.read(ImageFile("a.png", server.url + "/set/job/a.png"))


def test_folders_in_folders_without_end_are_given_up() -> None:
    with serving(index("deeper/", "a.png")) as (server, source):
        assert "round in circles" in fault(source, NoIndex)
        assert len(server.seen) < 50


def test_folders_without_number_are_given_up() -> None:
    with serving(index(*(f"{n}/" for n in range(10))), bounds=Bounds(pages=20)) as (server, source):
        assert "more than 20 of them" in fault(source, NoIndex)
        assert len(server.seen) == 20


def item(number: int, media_type: str) -> str:
    return f'<a href="{number}.png">x</a>\n' if media_type == HTML else f'{{"name":"{number}.png"}},'


def test_an_index_without_end_is_given_up() -> None:
    sent: list[int] = []
    piece = ((item(1, HTML) + " " * 1000) * 50).encode()
    with serving({"/set/job/": endless(piece, HTML, sent)}, bounds=Bounds(index_bytes=6_000_000)) as (_, source):
        assert "6000000 bytes" in fault(source, NoIndex)
        assert sum(sent) > LARGE_BYTES


@pytest.mark.parametrize("media_type", [HTML, "application/json"])
@pytest.mark.parametrize("bounds", [Bounds(entries=1000), Bounds(index_bytes=30_000)])
def test_more_is_given_up_than_may_be_held_of_a_page_or_of_many(media_type: str, bounds: Bounds) -> None:
    def answer(exchange: Exchange) -> None:
        first, last = {"/set/one/": (0, 1001), "/set/fits/": (0, 999)}.get(exchange.path, (0, 400))
        items = [item(n, media_type).rstrip(",") for n in range(first, last)]
        if exchange.path == "/set/many/":
            items = [item(n, media_type).replace(".png", "/").rstrip(",") for n in range(3)]
            if media_type != HTML:
                items = [f'{{"name":"{n}","type":"directory"}}' for n in range(3)]
        body = "".join(items) if media_type == HTML else f"[{','.join(items)}]"
        exchange.reply(body.encode() + b" " * 5000, Content_Type=media_type)

    with serving(answer, bounds=bounds) as (_, source):
        assert len(names(source, "fits")) == 999
        for directory in ("one", "many") if bounds.entries == 1000 else ("many",):
            said = fault(source, NoIndex, directory)
            assert "make a job of each folder" in said
            assert "let it show directory indexes" not in said


@pytest.mark.parametrize("media_type", [HTML, "application/json"])
def test_of_a_large_index_nothing_but_the_names_of_images_is_held(media_type: str) -> None:
    count = 20_000
    padding = " " * 250
    items = [item(n, media_type).rstrip(",") for n in range(count)]
    items[::2] = [each.replace(".png", ".txt") for each in items[::2]]
    body = (padding.join(items) if media_type == HTML else f"[{(padding + ',').join(items)}]").encode()
    assert len(body) > LARGE_BYTES
    with serving({"/set/job/": lambda exchange: exchange.reply(body, Content_Type=media_type)}) as (_, source):
        tracemalloc.start()
        listing = source.list_images("job")
        next(listing)
        gc.collect()
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(1 for _ in listing) == count // 2 - 1
    assert held < count // 2 * 80
    assert most < len(body), "nor is the page"


def test_large_indexes_are_read_one_at_a_time() -> None:
    body = item(1, HTML).encode() + b" " * LARGE_BYTES
    waiting: list[str] = []
    most = 0
    second = threading.Event()

    def answer(exchange: Exchange) -> None:
        nonlocal most
        if server.paths.count(exchange.path) == 2:
            waiting.append(exchange.path)
            most = max(most, len(waiting))
            # As long as it takes to be sure that no other comes.
            second.wait(0.3)
            waiting.remove(exchange.path)
        exchange.reply(body)

    with serving(answer) as (server, source), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: names(source, f"job-{n}"), range(4))) == [["1.png"]] * 4
        assert len(server.seen) == 8, "begun, and asked for again when its turn came"
    assert most == 1


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "header", "interim"],
)
def test_an_answer_that_trickles_in_is_given_up(start: bytes, more: bytes) -> None:
    over = threading.Event()

    def trickle(exchange: Exchange) -> None:
        exchange.wfile.write(start)
        while not over.wait(0.02):
            exchange.wfile.write(more)

    with serving({"/set/job/a.png": trickle}, bounds=Bounds(answer_seconds=0.5, patience_seconds=0)) as (
        server,
        source,
    ):
        with pytest.raises(StorageFault, match=r"took more than|timed out"):
            source.read(ImageFile("a.png", server.url + "/set/job/a.png"))
        over.set()


# --- redirects ---


def test_a_redirect_within_the_source_is_followed() -> None:
    tree = {
        "/set/job/": redirect("/set/job-1/", 308),
        "/set/job-1/": index("a.png"),
        "/set/job-1/a.png": redirect("../b/a.png"),
        "/set/b/a.png": image(b"there"),
    }
    with serving(tree) as (_, source):
        [found] = source.list_images("job")
        assert (found.name, source.read(found)) == ("a.png", b"there")


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/other/",
        "http://127.0.0.1:1/set/job/",
        "http://localhost:{port}/set/job/",
        "http://169.254.169.254/latest/meta-data/",
        "http://other.example/set/job/?sig=secret-1",
        "//other.example/set/job/",
        "https://127.0.0.1:{port}/set/job/",
        "http://user:secret-1@127.0.0.1:{port}/set/job/",
        "file:///etc/passwd",
        "http://127.0.0.1:99999999/set/job/",
        "gopher://127.0.0.1:{port}/set/job/",
        "/set/../other/",
        "/set/%2e%2e/other/",
    ],
)
def test_a_redirect_to_elsewhere_is_not_followed(target: str) -> None:
    def answer(exchange: Exchange) -> None:
        port = str(exchange.headers["Host"]).partition(":")[2]
        redirect(target.replace("{port}", port))(exchange)

    with serving(answer) as (server, source):
        said = fault(source, SourceNotAllowed)
        assert "redirect" in said
        assert "secret-1" not in said
        assert server.paths == ["/set/job/"]
        with pytest.raises(SourceNotAllowed):
            source.read(ImageFile("a.png", server.url + "/set/job/a.png"))


def test_a_redirect_to_another_allowed_place_is_followed() -> None:
    with WebServer({"/mirror/job/": index("a.png"), "/mirror/job/a.png": image(b"there")}, host="127.0.0.2") as other:
        with serving({"/set/job/": redirect(other.url + "/mirror/job/")}, other.url + "/mirror") as (_, source):
            [found] = source.list_images("job")
            assert source.read(found) == b"there"
        with serving({"/set/job/": redirect(other.url + "/mirror/job/")}, other.url + "/mir") as (_, source):
            fault(source, SourceNotAllowed)


def test_redirects_in_circles_are_given_up() -> None:
    tree = {"/set/job/": redirect("/set/1/"), "/set/1/": redirect("/set/job/")}
    with serving(tree) as (server, source):
        assert "redirected" in fault(source, StorageFault)
        assert len(server.seen) == 6


# --- addresses ---


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "[::ffff:127.0.0.1]"],  # noqa: S104
)
def test_an_address_that_is_not_public_is_refused_unless_its_host_is_named(host: str) -> None:
    with WebServer({"/set/job/": index("a.png")}, host="0.0.0.0") as server:  # noqa: S104
        url = f"http://{host}:{server.port}/set"
        began = Allowance([], bound=True)
        began.admit(url)
        source = WebSource(url, began, MAX_BYTES, QUICK)
        said = fault(source, SourceNotAllowed)
        assert "UWORKER_SOURCE_ALLOW" in said
        assert server.seen == []
        source.close()
        with source_at(url) as source:
            assert names(source) == ["a.png"]


Found = list[tuple[Any, ...]]


def resolve(monkeypatch: pytest.MonkeyPatch, host: str, *answers: list[str]) -> list[str]:
    """Let the system's resolver know a host: each look-up gets the next answer, and the last one again and again."""
    asked: list[str] = []
    real: Callable[..., Found] = socket.getaddrinfo

    def look_up(name: str, port: int, *arguments: object, **options: object) -> Found:
        if name != host:
            return real(name, port, *arguments, **options)
        asked.append(name)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, "images.example", ["127.0.0.1"], ["127.0.0.2"])
    with WebServer({"/set/job/": index("right.png")}) as right, ExitStack() as stack:
        stack.enter_context(WebServer({"/set/job/": index("wrong.png")}, host="127.0.0.2", port=right.port))
        with source_at(f"http://images.example:{right.port}/set") as source:
            assert names(source) == ["right.png"]
            assert names(source) == ["right.png"], "the connection is kept"
    assert asked == ["images.example"], "a second look-up could answer anything"


def test_of_several_addresses_only_those_that_may_be_reached_are(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "images.example", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
    with WebServer({"/set/job/": index("a.png")}) as server:
        began = Allowance([], bound=True)
        url = f"http://images.example:{server.port}/set"
        began.admit(url)
        source = WebSource(url, began, MAX_BYTES, QUICK)
        assert "127.0.0.1" not in fault(source, SourceNotAllowed)
        source.close()
        assert server.seen == []


def test_an_address_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "images.example", ["127.0.0.3", "127.0.0.1"])
    with WebServer({"/set/job/": index("a.png")}) as server, ExitStack() as stack:
        source = stack.enter_context(source_at(f"http://images.example:{server.port}/set"))
        assert names(source) == ["a.png"]


def make_certificate(tmp_path: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS, and the file of the authority that a client must trust for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = tmp_path / "certificate.pem", tmp_path / "key.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file


@pytest.mark.parametrize(("host", "good"), [("images.example", True), ("other.example", False)])
def test_a_certificate_must_be_for_the_name_whatever_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, good: bool
) -> None:
    tls, file = make_certificate(tmp_path, host)
    resolve(monkeypatch, "images.example", ["127.0.0.1"])
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with WebServer({"/set/job/": index("a.png")}, tls=tls) as server, ExitStack() as stack:
        source = stack.enter_context(source_at(f"https://images.example:{server.port}/set"))
        if good:
            assert names(source) == ["a.png"]
        else:
            assert "certificate" in fault(source, StorageFault).lower()


def test_a_proxy_is_used_for_hosts_that_are_named_and_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def proxy(exchange: Exchange) -> None:
        (index("a.png") if exchange.path == "http://images.example/set/job/" else page("?", 404))(exchange)

    with WebServer(proxy) as server:
        monkeypatch.setenv("http_proxy", server.url)
        with source_at("http://images.example/set") as source:
            assert names(source) == ["a.png"]
        began = Allowance([], bound=True)
        began.admit("http://images.example/set")
        source = WebSource("http://images.example/set", began, MAX_BYTES, QUICK)
        assert "NO_PROXY" in fault(source, SourceNotAllowed)
        source.close()
        assert len(server.seen) == 1
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with serving({"/set/job/": index("direct.png")}) as (_, source):
            assert names(source) == ["direct.png"]


# --- as a whole ---


def test_many_threads_read_at_once_over_few_connections(tmp_path: Path) -> None:
    connections: set[object] = set()

    def answer(exchange: Exchange) -> None:
        connections.add(exchange.client_address)
        path = urlsplit(exchange.path).path
        (index(*(f"{n}.png" for n in range(200))) if path.endswith("/") else image(path.encode()))(exchange)

    with serving(answer) as (_, source), ThreadPoolExecutor(16) as pool:
        found = list(source.list_images("job"))
        assert list(pool.map(source.read, found)) == [f"/set/job/{f.name}".encode() for f in found]
        assert len(connections) <= 17


PROJECT = "patents"


def submit(service: RunningService, corpus: Corpus, url: str, **settings: object) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings.model_validate({"source": url, **settings}))
    admin.add_jobs(PROJECT, corpus.directories[:3])
    return admin


def test_a_worker_reads_the_projects_images_from_a_web_server_that_it_may_read(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    with WebServer(corpus.root) as server:
        admin = submit(service, corpus, server.url)
        worker = start_worker(service.root, service.token("worker"), source_allow=f"/elsewhere,{server.url}")
        assert worker.wait() == 0, worker.log
    got = {(row["directory"], row["image"]): row["smiles"] for row in admin.results(PROJECT)}
    assert got == {key: smiles for key, smiles in corpus.smiles.items() if key[0] in corpus.directories[:3]}
    assert admin.project(PROJECT).jobs.completed == 3


def test_a_web_server_that_asks_for_a_login_stops_the_worker_and_charges_no_job(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    with WebServer(page("who are you?", 401)) as server:
        admin = submit(service, corpus, server.url)
        worker = start_worker(service.root, service.token("worker"), source_allow=server.url)
        assert worker.wait() == 6, worker.log
        assert ".netrc" in worker.log
    jobs = [admin.job(PROJECT, job.id) for job in admin.jobs(PROJECT)]
    assert {(job.state, job.failures) for job in jobs} == {(JobState.QUEUED, 0)}


@pytest.mark.parametrize("bound", [True, False])
def test_a_worker_reads_no_web_server_of_a_private_network_that_it_was_not_told_of(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, bound: bool
) -> None:
    with WebServer(index("a.png")) as server:
        admin = submit(service, corpus, server.url, max_failures=1)
        settings = {"job_api_project": PROJECT} if bound else {}
        worker = start_worker(service.root, service.token("worker"), **settings)
        assert worker.wait() == 0, worker.log
        assert server.seen == []
    for job in admin.jobs(PROJECT):
        failed = admin.job(PROJECT, job.id)
        assert (failed.state, failed.reason) == (JobState.FAILED, "source-not-allowed")
        assert "UWORKER_SOURCE_ALLOW" in (failed.message or "")
    assert list(admin.results(PROJECT)) == []
