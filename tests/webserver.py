"""A web server that answers as a test wants it to, in threads of the test's own process."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Answer = Callable[["Exchange"], None]
PNG = "image/png"
HTML = "text/html; charset=utf-8"


class Exchange(BaseHTTPRequestHandler):
    """One connection; the test's function gets it for each request."""

    protocol_version = "HTTP/1.1"

    def __init__(self, answer: Answer, seen: "list[tuple[str, dict[str, str]]]", *arguments: Any) -> None:
        self._answer = answer
        self._seen = seen
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._seen.append((self.path, dict(self.headers)))
        self._answer(self)

    def reply(self, body: bytes = b"", status: int = 200, /, **headers: str) -> None:
        """Send a whole answer; a header's name has _ for -."""
        self.send_response(status)
        for name, value in ({"Content_Type": HTML, "Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *arguments: Any) -> None:
        """Clients that go away in the middle are what some tests are about."""


class WebServer:
    """A server on a free port, as a context.

    Args:
        answer: called for each request; or a mapping of paths to such functions, others being 404; or a folder that is
            shown with Python's own index.
        host: the address to listen on.
        port: 0 picks a free one.
        tls: what makes it speak HTTPS.
    """

    def __init__(
        self,
        answer: Answer | Mapping[str, Answer] | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: SSLContext | None = None,
    ) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request, but of those to a folder."""
        handler: Callable[..., BaseHTTPRequestHandler]
        if isinstance(answer, Path):
            handler = partial(_Folder, directory=str(answer))
        else:
            handler = partial(Exchange, answer if callable(answer) else by_path(answer), self.seen)
        self._server = _Quiet((host, port), handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Folder(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def by_path(answers: Mapping[str, Answer]) -> Answer:
    """Answer each path in its own way, and others with 404."""

    def answer(exchange: Exchange) -> None:
        answers.get(urlsplit(exchange.path).path, page("not here", 404))(exchange)

    return answer


def page(html: str, status: int = 200, /, **headers: str) -> Answer:
    """An answer that is a page of HTML."""
    return lambda exchange: exchange.reply(html.encode("utf-8", "surrogateescape"), status, **headers)


def index(*hrefs: str, **headers: str) -> Answer:
    """An index as a server would write it, with these links and the one to the directory above."""
    links = "".join(f'<a href="{href}">a file</a> 2026-11-21 12:00 1k\n' for href in ("../", *hrefs))
    return page(f"<html><head><title>Index of /</title></head><body><pre>{links}</pre></body></html>", **headers)


def image(data: bytes) -> Answer:
    return lambda exchange: exchange.reply(data, Content_Type=PNG)


def redirect(url: str, status: int = 302) -> Answer:
    return lambda exchange: exchange.reply(b"", status, Location=url)
