"""Weights found, downloaded from a real server on loopback, checked, and refused."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from uworker.weights import MODEL_URLS, Weights, WeightsError, ensure_weights, find_weights

PRINTED = "/record/8300489/files/models.zip"
HAND_DRAWN = "/records/10781330/files/DECIMER_HandDrawn_model.zip"
TOKENIZER = "assets/tokenizer_SMILES.pkl"
FILES = {"saved_model.pb": b"graph", TOKENIZER: b"tokens", "variables/variables.index": b"index"}


def archive(model: str = "DECIMER_model", extra: str | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in FILES.items():
            opened.writestr(f"{model}/{name}", content)
        opened.writestr(f"{model}/variables/data", os.urandom(300_000))
        opened.writestr(f"__MACOSX/{model}.txt", b"junk")
        if extra is not None:
            opened.writestr(extra, b"evil")
    return file.getvalue()


@dataclass
class Host:
    """What the server has, what it does wrong, and what it was asked for."""

    files: dict[str, bytes]
    checksums: dict[str, str] = field(default_factory=dict)
    failures: list[int | str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent_half: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @property
    def downloads(self) -> list[tuple[str, str | None]]:
        return [(path, wanted) for path, wanted in self.asked if "/files/" in path]


class Handler(BaseHTTPRequestHandler):
    """Serves byte ranges, and failures from the list: a status, "break" or "stall" half way."""

    protocol_version = "HTTP/1.1"
    host: Host

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.host.asked.append((self.path, wanted))
        if self.path.startswith("/api/records/"):
            self.answer_record(self.path.rpartition("/")[2])
            return
        failure = self.host.failures.pop(0) if self.host.failures else None
        content = self.host.files.get(self.path)
        if content is None or isinstance(failure, int):
            self.send_error(failure if isinstance(failure, int) else 404)
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.send_content(content[start:], failure)

    def send_content(self, content: bytes, failure: str | None) -> None:
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if failure == "stall":
            self.host.sent_half.set()
            self.host.go_on.wait(60)
        if failure is not None:
            self.close_connection = True
            return
        self.wfile.write(content[half:])

    def answer_record(self, record: str) -> None:
        path = next(path for path in (PRINTED, HAND_DRAWN) if f"/{record}/" in path)
        if path not in self.host.checksums:
            self.send_error(404)
            return
        name = path.rpartition("/")[2]
        body = json.dumps({"files": [{"key": name, "checksum": self.host.checksums[path]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Keep quiet."""


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host({PRINTED: archive(), HAND_DRAWN: archive("DECIMER_HandDrawn_model")})
    handler = type("BoundHandler", (Handler,), {"host": host})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        host.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield host
        host.go_on.set()
        server.shutdown()
        thread.join()


Ensure = Callable[..., Weights]


@pytest.fixture
def ensure(host: Host, tmp_path: Path) -> Ensure:
    def call(*, hand_drawn: bool = False, pin: str | None = None, home: Path = tmp_path, **more: bool) -> Weights:
        return ensure_weights(
            home, hand_drawn=hand_drawn, pinned_sha256=pin, on_progress=lambda *_: None, base_url=host.url, **more
        )

    return call


def publish(host: Host, path: str = PRINTED) -> None:
    host.checksums[path] = "md5:" + hashlib.md5(host.files[path], usedforsecurity=False).hexdigest()


def put_by_hand(home: Path) -> Path:
    model = home / "DECIMER-V2" / "DECIMER_model"
    for name, content in FILES.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    return model


def test_weights_are_downloaded_once_and_look_like_the_packages_own(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    publish(host)
    weights = ensure()
    model = tmp_path / "DECIMER-V2" / "DECIMER_model"
    assert {name: (model / name).read_bytes() for name in FILES} == FILES
    assert (model / ".model_url").read_text() == MODEL_URLS["DECIMER"] == weights.name
    assert weights.verified
    assert weights.home == tmp_path
    assert ensure() == weights == find_weights(tmp_path, hand_drawn=False)
    assert host.downloads == [(PRINTED, None)]
    assert sorted(path.name for path in (tmp_path / "DECIMER-V2").iterdir()) == [".download.lock", "DECIMER_model"]


def test_the_package_finds_nothing_to_download(ensure: Ensure, tmp_path: Path) -> None:
    """DECIMER's own check, in a process of its own with the network out of reach."""
    ensure(hand_drawn=True)
    script = (
        "from DECIMER import decimer, utils\n"
        "print(sorted(utils.ensure_models(decimer.default_path, decimer.model_urls)))"
    )
    proxy = "http://127.0.0.1:9"
    env = os.environ | {"PYSTOW_HOME": str(tmp_path), "HTTPS_PROXY": proxy, "https_proxy": proxy}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert run.stdout.splitlines()[-1:] == ["['DECIMER', 'DECIMER_HandDrawn']"], run.stderr


def test_without_a_published_digest_they_are_unverified(ensure: Ensure) -> None:
    assert not ensure().verified


def test_files_changed_after_the_download_are_unverified(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    publish(host)
    before = ensure()
    (tmp_path / "DECIMER-V2" / "DECIMER_model" / TOKENIZER).write_bytes(b"evil")
    after = ensure()
    assert before.verified
    assert not after.verified
    assert after.sha256 != before.sha256


def test_the_hand_drawn_model_comes_with_the_printed_ones_tokenizer(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    publish(host)
    publish(host, HAND_DRAWN)
    weights = ensure(hand_drawn=True)
    assert weights.name == MODEL_URLS["DECIMER_HandDrawn"]
    assert weights.verified
    assert [path for path, _ in host.downloads] == [PRINTED, HAND_DRAWN]
    assert weights.sha256 != ensure().sha256
    (tmp_path / "DECIMER-V2" / "DECIMER_model" / TOKENIZER).write_bytes(b"other")
    assert ensure(hand_drawn=True).sha256 != weights.sha256


def test_the_digest_is_the_documented_one(ensure: Ensure, tmp_path: Path) -> None:
    model = put_by_hand(tmp_path)
    (model / "weights.json").write_text('{"name": "mine"}')
    (model / ".hidden").write_text("x")
    lines = [f"{name}\0{hashlib.sha256(FILES[name]).hexdigest()}\n" for name in sorted(FILES)]
    wanted = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert ensure() == Weights("mine", wanted, tmp_path, verified=False)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "unknown"),
        ({".model_url": MODEL_URLS["DECIMER"]}, MODEL_URLS["DECIMER"]),
        ({"weights.json": "not json", ".model_url": MODEL_URLS["DECIMER"]}, MODEL_URLS["DECIMER"]),
        ({"weights.json": "[]"}, "unknown"),
    ],
)
def test_weights_put_there_by_hand_are_taken_and_named(
    host: Host, ensure: Ensure, tmp_path: Path, files: dict[str, str], name: str
) -> None:
    model = put_by_hand(tmp_path)
    for file, content in files.items():
        (model / file).write_text(content)
    assert ensure().name == name
    assert host.asked == []


def test_a_pin_is_held_against_the_files(host: Host, ensure: Ensure) -> None:
    digest = ensure().sha256
    assert ensure(pin=digest.upper()).verified
    with pytest.raises(WeightsError, match=f"have sha256 {digest}, but {'0' * 64} is pinned; remove them") as caught:
        ensure(pin="0" * 64)
    assert "\n" not in str(caught.value)
    assert len(host.downloads) == 1


@pytest.mark.parametrize("failure", [503, 429, "break"])
def test_what_may_pass_is_tried_again(host: Host, ensure: Ensure, failure: int | str) -> None:
    host.failures = [failure, failure]
    assert ensure().sha256
    assert len(host.downloads) == 3


def test_a_broken_download_goes_on_where_it_ended(host: Host, ensure: Ensure) -> None:
    host.failures = ["break"]
    ensure()
    half = len(host.files[PRINTED]) // 2
    assert host.downloads == [(PRINTED, None), (PRINTED, f"bytes={half}-")]


def test_a_killed_download_leaves_nothing_that_the_next_cannot_use(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    publish(host)
    host.failures = ["stall"]
    script = (
        "from pathlib import Path; from uworker.weights import ensure_weights\n"
        f"ensure_weights(Path({str(tmp_path)!r}), hand_drawn=False, pinned_sha256=None,"
        f" on_progress=lambda *_: None, base_url={host.url!r})"
    )
    half = len(host.files[PRINTED]) // 2
    part = tmp_path / "DECIMER-V2" / ".DECIMER.zip.part"
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1]) as process:
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size == 0:
            assert time.monotonic() < deadline
            assert process.poll() is None
            host.sent_half.wait(0.01)
        process.send_signal(signal.SIGKILL)
    (tmp_path / "DECIMER-V2" / ".unpack-left").mkdir()
    kept = part.stat().st_size
    assert 0 < kept <= half
    assert ensure().verified
    assert host.downloads[-1] == (PRINTED, f"bytes={kept}-")
    assert sorted(path.name for path in (tmp_path / "DECIMER-V2").iterdir()) == [".download.lock", "DECIMER_model"]


def test_a_wrong_leftover_is_thrown_away(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    folder = tmp_path / "DECIMER-V2"
    folder.mkdir()
    (folder / ".DECIMER.zip.part").write_bytes(b"x" * 400_000)
    assert ensure().sha256
    assert [wanted for _, wanted in host.downloads] == ["bytes=400000-", None]


def test_a_wrong_digest_is_refused(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    host.checksums[PRINTED] = "md5:" + "0" * 32
    with pytest.raises(WeightsError, match="but its host publishes 00000000"):
        ensure()
    assert find_weights(tmp_path, hand_drawn=False) is None
    assert not (tmp_path / "DECIMER-V2" / ".DECIMER.zip.part").exists()


def test_a_damaged_zip_is_refused(host: Host, ensure: Ensure) -> None:
    damaged = bytearray(host.files[PRINTED])
    damaged[len(damaged) // 2] ^= 1
    host.files[PRINTED] = bytes(damaged)
    with pytest.raises(WeightsError, match="is damaged at DECIMER_model/variables/data"):
        ensure()
    host.files[PRINTED] = b"<html>please log in</html>"
    with pytest.raises(WeightsError, match="is no sound zip file"):
        ensure()


@pytest.mark.parametrize("name", ["DECIMER_model/../../../evil", "/DECIMER_model/evil", "x/../DECIMER_model/evil"])
def test_an_entry_that_would_leave_its_directory_is_refused(
    host: Host, ensure: Ensure, tmp_path: Path, name: str
) -> None:
    host.files[PRINTED] = archive(extra=name)
    with pytest.raises(WeightsError, match="must not be unpacked"):
        ensure(home=tmp_path / "a" / "b" / "home")
    assert list(tmp_path.rglob("evil")) == []
    assert list(tmp_path.rglob(".unpack-*")) == []


def test_a_zip_without_the_model_is_refused(host: Host, ensure: Ensure) -> None:
    host.files[PRINTED] = archive("Another_model")
    with pytest.raises(WeightsError, match=r"holds no DECIMER_model/saved_model\.pb"):
        ensure()


def test_where_they_cannot_be_had_the_error_says_what_to_do(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    del host.files[PRINTED]
    with pytest.raises(WeightsError) as missing:
        ensure()
    host.url = "http://127.0.0.1:9"
    with pytest.raises(WeightsError) as offline:
        ensure()
    for error, reason in ((missing, "answers HTTP 404"), (offline, "ConnectError")):
        text = str(error.value)
        assert reason in text
        assert "\n" not in text
        assert all(hint in text for hint in ("HTTPS_PROXY", "PYSTOW_HOME", MODEL_URLS["DECIMER"], str(tmp_path)))
    assert len(host.downloads) == 1


def test_a_prepared_model_alone_will_do_only_where_it_may(
    host: Host, ensure: Ensure, prepared_home: Path, tmp_path: Path
) -> None:
    made_of = find_weights(prepared_home, hand_drawn=False)
    assert made_of is not None
    shutil.copytree(prepared_home, tmp_path, ignore=shutil.ignore_patterns("*_model", ".*"), dirs_exist_ok=True)
    found = ensure(pin=made_of.sha256, prepared_will_do=True)
    assert (found.name, found.sha256, found.home, found.verified) == (made_of.name, made_of.sha256, tmp_path, False)
    assert host.downloads == []
    del host.files[PRINTED]
    with pytest.raises(WeightsError, match=r"holds a prepared model alone, .* build the snapshot with --as-shipped"):
        ensure(pin=made_of.sha256)


def test_weights_of_another_url_are_replaced_as_the_package_would(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    model = put_by_hand(tmp_path)
    (model / ".model_url").write_text("https://zenodo.org/older.zip")
    (model / "old").touch()
    assert ensure().name == MODEL_URLS["DECIMER"]
    assert not (model / "old").exists()
    assert len(host.downloads) == 1


def test_a_half_unpacked_model_is_replaced(host: Host, ensure: Ensure, tmp_path: Path) -> None:
    model = put_by_hand(tmp_path)
    (model / TOKENIZER).unlink()
    ensure()
    assert (model / TOKENIZER).read_bytes() == FILES[TOKENIZER]
    assert len(host.downloads) == 1


def test_several_first_starts_download_once(host: Host, ensure: Ensure) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(ensure) for _ in range(4)]}
    assert len(found) == 1
    assert len(host.downloads) == 1


def test_progress_is_told_to_the_end(host: Host, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    ensure_weights(
        tmp_path,
        hand_drawn=False,
        pinned_sha256=None,
        on_progress=lambda *figures: told.append(figures),
        base_url=host.url,
    )
    size = len(host.files[PRINTED])
    assert told[0] == ("models.zip", 0, size)
    assert told[-1] == ("models.zip", size, size)
