"""What a text must be to travel and be stored, and how a mistake in what was given is told."""

import re

from pydantic import ValidationError

MAX_PATH_BYTES = 1024
MAX_SMILES_CHARS = 4000
MAX_TOKENS = 2_000
MAX_TOKEN_CHARS = 200
MAX_MESSAGE_CHARS = 4000
MAX_TRACEBACK_CHARS = 20_000

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    r"""Return `text` as PostgreSQL and JSON can hold it, at most `max_chars` characters long.

    NUL becomes U+FFFD. A lone surrogate, which is how Python shows a byte of a file name that is not UTF-8,
    becomes `\xNN` (or U+FFFD when it stands for no byte). A text that is cut ends in an ellipsis.
    """
    text = text.replace("\0", "\ufffd")
    text = _LONE_SURROGATE.sub(_spell_out, text)
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _spell_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


def check_directory(name: str) -> str:
    """Return the name of a job's directory in its one stored form, relative to its project's source.

    A leading `./` and trailing slashes are dropped, so that each directory has one name; nothing else changes.

    Raises:
        ValueError: the name is empty, absolute, too long, holds NUL or `..`, or is not UTF-8.
    """
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/"):
        raise ValueError("is absolute; give it relative to the project's source")
    name = name.rstrip("/")
    if name in ("", "."):
        raise ValueError("is empty")
    return check_relative_path(name)


def check_relative_path(path: str) -> str:
    """Return `path` unchanged when it may be stored as the path of an image below its directory.

    Raises:
        ValueError: the path is empty, absolute, too long, holds NUL or `..`, or is not UTF-8.
    """
    if not path:
        raise ValueError("is empty")
    if path.startswith("/"):
        raise ValueError("is absolute")
    if "\0" in path:
        raise ValueError("holds a NUL character")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if size > MAX_PATH_BYTES:
        raise ValueError(f"is {size} bytes long; at most {MAX_PATH_BYTES} are allowed")
    if ".." in path.split("/"):
        raise ValueError("holds '..'")
    return path


def mistake(error: ValidationError) -> str:
    """What is wrong first in what somebody gave, in one line; never the input, which may hold a password."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
