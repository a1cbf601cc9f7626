"""One large zip file over HTTP: resumed where it broke off, checked, and unpacked. Knows nothing of weights."""

import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx
import tenacity

_PROGRESS_BYTES = 8 << 20
_TIMEOUT = httpx.Timeout(60, connect=10)
_ATTEMPTS = 6
_MAX_UNPACKED_BYTES = 20 * 2**30


class DownloadError(Exception):
    """A file cannot be had; the message says from where and why."""


class _TransientError(Exception):
    """The host is overloaded or the line broke; the same request may do better."""


def fetch_zip(url: str, archive: Path, md5: str | None, on_progress: Callable[[int, int | None], None]) -> None:
    """Download `url` into `archive`, going on from what that holds already, until it is whole and sound.

    Args:
        url: Where it is.
        archive: Where it goes. What an earlier call left of it is kept, and begun anew once if it proves wrong.
        md5: The digest that it must have, in hexadecimal, if known.
        on_progress: Told bytes so far, and bytes in all where the host says how many.

    Raises:
        DownloadError: it cannot be had, also after retries of what may pass, or it is damaged at its host.
        OSError: it cannot be written, such as on a full disk.
    """
    for _ in range(2):
        _fetch(url, archive, on_progress)
        fault = _fault_of(archive, md5)
        if fault is None:
            return
        archive.unlink()
    raise DownloadError(f"{url} {fault}")


def unpack(archive: Path, into: Path) -> None:
    """Unpack what lies below a directory of the name of `into`, anywhere in the archive, to `into`.

    Raises:
        DownloadError: an entry would leave `into`, or there is more of them than a model has.
    """
    total = 0
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            path = PurePosixPath(entry.filename)
            if into.name not in path.parts or entry.is_dir():
                continue
            inside = path.parts[path.parts.index(into.name) + 1 :]
            total += entry.file_size
            if not inside or ".." in path.parts or path.is_absolute() or total > _MAX_UNPACKED_BYTES:
                raise DownloadError(f"{archive.name} holds an entry that must not be unpacked: {entry.filename!r}")
            target = into.joinpath(*inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())


def _fetch(url: str, part: Path, on_progress: Callable[[int, int | None], None]) -> None:
    try:
        with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            for attempt in _attempts(_TransientError, _ATTEMPTS):
                with attempt:
                    _fetch_rest(client, url, part, on_progress)
    except _TransientError as error:
        raise DownloadError(f"{url}: {error}") from error.__cause__


def published_md5(url: str) -> str | None:
    """Return the md5 that Zenodo's record of the file `url` names, or None where that cannot be had.

    A digest is worth having but not worth failing for: without one the weights count as unverified.
    """
    match = re.fullmatch(r"(.*)/records?/(\d+)/files/([^/]+)", url)
    if match is None:
        return None
    base, record, name = match.groups()
    try:
        with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            for attempt in _attempts(httpx.TransportError, 2):
                with attempt:
                    answer = client.get(f"{base}/api/records/{record}")
        files = answer.raise_for_status().json()["files"]
        checksums = [file["checksum"] for file in files if file["key"] == name]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None
    found = re.fullmatch(r"md5:([0-9a-f]{32})", checksums[0]) if checksums else None
    return found.group(1) if found else None


def _fault_of(archive: Path, md5: str | None) -> str | None:
    if md5 is not None:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if digest != md5:
            return f"has md5 {digest}, but its host publishes {md5}"
    try:
        with zipfile.ZipFile(archive) as opened:
            damaged = opened.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return f"is no sound zip file ({error})"
    return None if damaged is None else f"is damaged at {damaged}"


def _attempts(on: type[Exception], most: int) -> tenacity.Retrying:
    """Try at most so many times, with pauses that double from a tenth of a second to 5 s, plus up to 1 s by chance."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(on),
        stop=tenacity.stop_after_attempt(most),
        wait=tenacity.wait_exponential(multiplier=0.1, max=5) + tenacity.wait_random(0, 1),
        reraise=True,
    )


def _fetch_rest(client: httpx.Client, url: str, part: Path, on_progress: Callable[[int, int | None], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416:
                # Nothing is left, or the file is another one by now: its checks decide, and begin anew if they fail.
                return
            _raise_for_status(answer)
            if answer.status_code != 206:
                have = 0
            length = answer.headers.get("content-length")
            total = have + int(length) if length else None
            with part.open("ab" if have else "wb") as file:
                _write(answer, file.write, have, total, on_progress)
    except httpx.TransportError as error:
        raise _TransientError(f"{type(error).__name__}: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{url}: {error}") from error


def _write(
    answer: httpx.Response,
    write: Callable[[bytes], int],
    done: int,
    total: int | None,
    on_progress: Callable[[int, int | None], None],
) -> None:
    told = done
    on_progress(done, total)
    # As they come: chunks gathered up to a size would be lost when the line breaks.
    for chunk in answer.iter_raw():
        write(chunk)
        done += len(chunk)
        if done - told >= _PROGRESS_BYTES:
            told = done
            on_progress(done, total)
    on_progress(done, total)


def _raise_for_status(answer: httpx.Response) -> None:
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise _TransientError(f"HTTP {answer.status_code}")
    if not answer.is_success:
        raise DownloadError(f"{answer.url} answers HTTP {answer.status_code}")
