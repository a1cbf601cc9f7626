"""What can go wrong with a store, in words that may stand in any log.

Errors of the storage library quote requests: addresses with signatures, headers, whole answers. None of that is passed
on. What is told is what was asked for, the status, the service's own code for it, and what to do.
"""

import re

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)

STATUS = re.compile(r"status code: (\d{3})\b")
CODE = re.compile(r"<Code>([A-Za-z0-9]{3,60})</Code>|\"reason\": ?\"([A-Za-z0-9]{3,60})\"")
# How the library speaks of the way to a credential, rather than of the store itself.
CREDENTIAL = re.compile(
    r"token request|metadata|169\.254\.|credential|oauth|instance identity|azure cli|AssumeRole|identity", re.IGNORECASE
)
# What network faults are called below the library; the rest of its text is not ours to quote.
PHRASES = (
    "Connection refused",
    "Connection reset by peer",
    "connection closed before message completed",
    "dns error",
    "failed to lookup address",
    "operation timed out",
    "invalid peer certificate",
    "end of file before message length reached",
    "error decoding response body",
    "Network is unreachable",
    "No route to host",
    "Broken pipe",
)
NO_CONTAINER = frozenset({"ContainerNotFound", "NoSuchBucket", "ContainerBeingDeleted", "ResourceNotFound"})
NO_OBJECT = frozenset({"BlobNotFound", "NoSuchKey"})
ARCHIVED = frozenset({"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"})
# Answered with 400 where one expects 403.
WRONG_CREDENTIAL = frozenset(
    {"InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
)
WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})

WHAT_TO_SET = {
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, "
    "AZURE_STORAGE_CONNECTION_STRING, or give the machine an identity that may read and list blobs",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where they are temporary), AWS_PROFILE, "
    "or give the machine a role that may list the bucket and read its objects",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a credential file, or give the machine a service account that may list and "
    "read objects",
    "file": "let this user read and write there",
    "http": "give this machine access to it",
}


class StoreError(Exception):
    """A store cannot be used as asked; the message says why and what to do, and holds no secret."""


class BadLocation(StoreError):
    """The URL makes no sense, or is of a kind that cannot be used for this."""


class BadKey(StoreError):
    """There is an object here that cannot be named; it has to be renamed."""


class NotThere(StoreError):
    """The container, the bucket or the object does not exist."""


class ContainerNotThere(NotThere):
    """The container or the bucket does not exist."""


class Denied(StoreError):
    """The credential is missing, wrong or expired, or does not permit this."""


class Unavailable(StoreError):
    """Anything else: the network, a service that is busy or broken. It may pass."""


def service_code(error: BaseException) -> str:
    """What the service calls the fault, or ''."""
    found = CODE.search(str(error))
    return (found[1] or found[2]) if found else ""


def explain(error: BaseException, kind: str, subject: str, *, answered: bool = False) -> StoreError:
    """The fault in our words.

    Args:
        error: what obstore has raised.
        kind: of the location.
        subject: what was asked for, such as "s3://bucket/directory".
        answered: whether this store has answered before, so that there is a credential.
    """
    text, code = str(error), service_code(error)
    status = int(found[1]) if (found := STATUS.search(text)) else 0
    said = " ".join(part for part in (str(status or ""), code) if part)
    if isinstance(error, InvalidPathError) or "empty path segment" in text or "illegal character" in text:
        return BadKey(
            f"{subject} has an object that cannot be named: its key has empty, '.' or '..' segments, or control characters; "
            "rename it"
        )
    if code in ARCHIVED:
        return Unavailable(f"{subject} is archived ({said}); restore it to a tier that can be read")
    if "redirect without LOCATION" in text or code in WRONG_REGION:
        return Denied(f"{subject} is in another region; set AWS_REGION to the bucket's")
    if isinstance(error, FileNotFoundError):
        if code in NO_CONTAINER:
            return ContainerNotThere(f"the container or bucket of {subject} does not exist ({said})")
        return NotThere(f"{subject} does not exist" + (f" ({said})" if said else ""))
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError) or code in WRONG_CREDENTIAL:
        return Denied(f"{subject}: access is denied" + (f" ({said})" if said else "") + f"; {WHAT_TO_SET[kind]}")
    if CREDENTIAL.search(text) and not answered:
        return Denied(f"no credential was found for {subject}" + (f" ({said})" if said else "") + f"; {WHAT_TO_SET[kind]}")
    reason = said or next((phrase for phrase in PHRASES if phrase.lower() in text.lower()), "")
    return Unavailable(f"{subject} cannot be reached or does not answer as it should: {reason or type(error).__name__}")


# What obstore raises; beside its own errors some built-in ones.
RAISED = (BaseError, OSError, ValueError)
