"""A real HTTP server on a free port whose answers a test writes; it records what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

LATEST_END_SECONDS = 20


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str | None
    body: Any
    headers: Message = field(default_factory=Message)


@dataclass
class Answer:
    """What to answer; text and bytes go as they are, other bodies as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Break the connection off instead of ending the body."""
    is_old: bool = False
    """Where the body ends is told by the end of the connection alone, as in HTTP/1.0."""
    hold: bool = False
    """Answer nothing until the server ends."""

    def bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


Script = Callable[[Asked], Answer]


@dataclass
class ScriptedServer:
    """Where the server is and what it was asked."""

    root: str
    script: Script
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    """Set while a request is held."""


def problem(status: int, kind: str, detail: str = "it is so", **headers: str) -> Answer:
    document = {"type": f"urn:decimer-jobs:{kind}", "title": kind, "status": status, "detail": detail}
    return Answer(status, document, {name.replace("_", "-"): value for name, value in headers.items()})


def in_turn(answers: Sequence[Answer]) -> Script:
    """Each answer once; the last one ever after."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serving(script: Script | Sequence[Answer]) -> Iterator[ScriptedServer]:
    """Run the server as long as the block lasts."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server = ScriptedServer(
        f"http://127.0.0.1:{http.server_address[1]}", script if callable(script) else in_turn(script)
    )
    http.scripted = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join(LATEST_END_SECONDS)


@contextmanager
def between(root: str, held: Callable[[Asked], bool]) -> Iterator[ScriptedServer]:
    """A server between a worker and its service, which lets no request pass that is to be held."""
    passed = ("content-type", "link", "pending-jobs", "retry-after")

    def forward(asked: Asked) -> Answer:
        if held(asked):
            return Answer(hold=True)
        headers = {} if asked.authorization is None else {"Authorization": asked.authorization}
        body = {} if asked.body is None else {"json": asked.body}
        path = root + asked.path
        answer = httpx.request(asked.method, path, params=asked.query, headers=headers, timeout=70, **body)
        kept = {name: value for name, value in answer.headers.items() if name in passed}
        return Answer(answer.status_code, answer.content, kept)

    with serving(forward) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LATEST_END_SECONDS

    def _answer(self) -> None:
        server: ScriptedServer = self.server.scripted  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        asked = Asked(
            self.command,
            url.path,
            {key: ",".join(values) for key, values in parse_qs(url.query).items()},
            self.headers.get("Authorization"),
            json.loads(body) if body else None,
            self.headers,
        )
        server.asked.append(asked)
        answer = server.script(asked)
        self.close_connection = True
        if answer.hold:
            server.held.set()
            server.ended.wait(LATEST_END_SECONDS)
            return
        if answer.status == 0:
            return
        self._write(answer)

    def _write(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        content = answer.bytes()
        if answer.is_old:
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if content:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        if not answer.cut:
            self.wfile.write(b"0\r\n\r\n")

    def send_response(self, code: int, message: str | None = None) -> None:
        """As inherited, but a script may give a `Date` of its own."""
        self.send_response_only(code, message)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - named by the standard library

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the standard library
        """Say nothing."""
