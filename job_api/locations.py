"""Where a URL points: which kind of storage, which container or bucket, and where in it."""

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

Kind = Literal["file", "az", "s3", "gs", "http"]

SCHEMES: dict[str, Kind] = {
    "file": "file",
    "az": "az",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "s3": "s3",
    "gs": "gs",
    "http": "http",
    "https": "http",
}
DEFAULT_PORTS = {"http": 80, "https": 443}
EXAMPLES = "file:///folder, az://container/folder, s3://bucket/folder, gs://bucket/folder or https://host/folder"
BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,254}")
# Keys go nowhere but to Microsoft: what stands in a URL may be somebody else's choice.
ACCOUNT_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:dfs|blob)\.core\.windows\.net")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SAFE = "/!$&'()*,;=:@+~"


class StoreError(Exception):
    """A store cannot be used as asked; the message says why and what to do, and holds no secret."""


class BadLocation(StoreError):
    """The URL makes no sense, or is of a kind that cannot be used for this."""


@dataclass(frozen=True)
class Location:
    """A place in a store.

    Attributes:
        kind: of storage.
        url: in its canonical spelling, without a slash at its end, never with a credential.
        bucket: container or bucket; '' for files and HTTP.
        prefix: where in it, without slashes at its ends, percent-decoded.
        account: of Azure, where the URL names it.
    """

    kind: Kind
    url: str
    bucket: str
    prefix: str
    account: str | None = None

    def __str__(self) -> str:
        return self.url


def locate(url: str) -> Location:
    """Read a URL, or the absolute path of a local directory.

    Raises:
        BadLocation: it makes no sense, or has a credential in it; the message shows no more of such a URL than is safe.
    """
    if CONTROL.search(url):
        raise BadLocation("the URL has control characters in it")
    if url.startswith("/"):
        # A path is taken as it stands.
        return _local(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise BadLocation(f"this is no URL; write {EXAMPLES}") from None
    kind = SCHEMES.get(parts.scheme.lower())
    if kind is None:
        shown = f"{parts.scheme}://…" if parts.scheme else "a relative path"
        raise BadLocation(f"{shown} is not supported; write {EXAMPLES}")
    _refuse_extras(parts)
    match kind:
        case "file":
            if parts.netloc not in ("", "localhost"):
                raise BadLocation(f"file://{parts.netloc}/… is on another host; write file:///folder")
            return _local(os.fsdecode(unquote_to_bytes(parts.path)))
        case "http":
            return _web(parts)
        case _:
            return _bucket(kind, parts)


def _refuse_extras(parts: SplitResult) -> None:
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"
    azure = SCHEMES[parts.scheme.lower()] == "az"
    user = parts.netloc.rpartition("@")[0]
    if "@" in parts.netloc and (not azure or ":" in user):
        raise BadLocation(f"{where} has a login in it; credentials belong into the environment, not into URLs")
    if parts.query or parts.fragment:
        raise BadLocation(
            f"{where} has a query or a fragment; credentials belong into the environment, not into URLs, "
            "and in names ? is written %3F and # is written %23"
        )


def _local(path: str) -> Location:
    if not path.startswith("/"):
        raise BadLocation("a local directory is written as an absolute path, or as file:///folder")
    prefix = path.strip("/")
    return Location("file", "file:///" + quote(os.fsencode(prefix), safe=SAFE), "", prefix)


def _web(parts: SplitResult) -> Location:
    if not parts.hostname:
        raise BadLocation("the URL has no host; write https://host/folder")
    path = parts.path.strip("/")
    root = f"{parts.scheme.lower()}://{parts.netloc.lower()}"
    return Location("http", f"{root}/{path}".rstrip("/"), "", _decode(path, root))


def _bucket(kind: Kind, parts: SplitResult) -> Location:
    bucket, account = parts.netloc, None
    if "@" in bucket:
        bucket, _, host = bucket.partition("@")
        found = ACCOUNT_HOST.fullmatch(host.lower())
        if found is None:
            raise BadLocation(
                f"the account in {parts.scheme}://{bucket}@… is not one of Azure's public cloud; write abfss://{bucket}"
                f"@ACCOUNT.dfs.core.windows.net/folder, or az://{bucket}/folder with the account in the environment"
            )
        account = found[1]
    if not BUCKET.fullmatch(bucket):
        raise BadLocation(f"{parts.scheme}://{bucket[:80]} names no container or bucket; write {EXAMPLES}")
    root = f"abfss://{bucket}@{account}.dfs.core.windows.net" if account else f"{kind}://{bucket}"
    prefix = _decode(parts.path.strip("/"), root)
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise BadLocation(f"the folder in {root} has empty, '.' or '..' parts; object stores cannot name it")
    return Location(kind, f"{root}/{quote(prefix, safe=SAFE)}".rstrip("/"), bucket, prefix, account)


def _decode(path: str, root: str) -> str:
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadLocation(f"the folder in {root} is not percent-encoded UTF-8") from None
    if CONTROL.search(text):
        raise BadLocation(f"the folder in {root} has control characters in it")
    return text


def segments_of(path: str) -> tuple[str, ...]:
    """The parts of a URL's path, decoded once; bytes that are no UTF-8 are kept as Python keeps those of file names.

    Raises:
        ValueError: one of them may lead a server somewhere else than it seems to.
    """
    parts = [unquote(part, errors="surrogateescape") for part in path.removeprefix("/").rstrip("/").split("/")]
    for part in parts:
        # Encoded, it is a part of a name to some servers and a separator to others; so is the backslash.
        if "/" in part or "\0" in part or any(piece in (".", "..") for piece in part.split("\\")):
            raise ValueError("the path has a part that is '.', '..' or an encoded '/'")
    return tuple(parts) if parts != [""] else ()
