"""What can go wrong with a store, in words that may stand in any log.

Errors of the storage library quote requests: addresses with signatures, headers, whole answers. None of that is passed
on. What is told is what was asked for, the status, the service's own code for it, and what to do.
"""

import re

from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError

from job_api.locations import StoreError

# What obstore raises; beside its own errors some built-in ones.
RAISED = (BaseError, OSError, ValueError)

# The library tells the request and what it came to, then, below this line, all of it once more.
REPEATED = "\n\nDebug source"
STATUS = re.compile(r"status code: (\d{3})\b")
CODE = re.compile(r"<Code>([A-Za-z0-9]{3,60})</Code>|\"reason\": ?\"([A-Za-z0-9]{3,60})\"")
BAD_PATH = re.compile(r'Path "(.{1,1024}?)"(?: contained|:)')
# Requests for a credential, which is had elsewhere than from the store: what they are called, and where they go.
CREDENTIAL = re.compile(
    r"token request|CreateSession|AssumeRole|az account get-access-token|credential provider", re.IGNORECASE
)
CREDENTIAL_URL = re.compile(
    r"https?://(?:169\.254\.|[^/\s]+/latest/(?:api/token\b|meta-data/iam/)|\S*[?&]Action=AssumeRole)", re.IGNORECASE
)
URL = re.compile(r"https?://\S+")
# What network faults are called below the library; the rest of its text is not ours to quote.
PHRASES = (
    "Connection refused",
    "Connection reset by peer",
    "connection closed before message completed",
    "dns error",
    "failed to lookup address",
    "timed out",
    "TimedOut",
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
# Answered with 400 or 409 where one expects 403.
WRONG_CREDENTIAL = frozenset(
    {"InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
    | {"PublicAccessNotPermitted"}
)
WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})

UNNAMEABLE = "cannot be named here: its key has empty, '.' or '..' segments, control characters or a slash at its end"

WHAT_TO_SET = {
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, "
    "AZURE_STORAGE_CONNECTION_STRING, or give the machine an identity that may read and list blobs",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (temporary ones: AWS_SESSION_TOKEN, too) or AWS_PROFILE "
    "(with SSO after `aws sso login`), or give the machine a role that may list the bucket and read its objects",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a credential file, or give the machine a service account that may "
    "list and read objects",
}


TO_WRITE = {
    "az": "writing takes the right to create and write blobs, too (a role such as Storage Blob Data Contributor, or c "
    "and w in a SAS)",
    "s3": "writing takes the right to put objects, too (s3:PutObject, s3:AbortMultipartUpload)",
    "gs": "writing takes the right to create and delete objects, too (a role such as roles/storage.objectUser)",
}


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


def service_code(error: BaseException, path: str = "") -> str:
    """What the service calls the fault, or ''."""
    found = CODE.search(_text(error, path))
    return (found[1] or found[2]) if found else ""


def _text(error: BaseException, path: str) -> str:
    """What the library says, less the key as it stands: that is somebody's choice, and may read like any fault."""
    return str(error).replace(f"location {path} ", "").replace(f"path {path}: ", "").partition(REPEATED)[0]


def _asks_for_credential(text: str) -> bool:
    """Whether it was a request for a credential, and not one to the store, that failed."""
    said = URL.sub("", text).partition(" - ")[0]
    return bool(CREDENTIAL.search(said) or any(CREDENTIAL_URL.match(url) for url in URL.findall(text)[:1]))


def explain(
    error: BaseException,
    kind: str,
    subject: str,
    path: str = "",
    *,
    writing: bool = False,
    of_object: bool = False,
    answered: bool = False,
) -> StoreError:
    """The fault in our words.

    Args:
        error: what obstore has raised. Its class says little: of a listing that is denied it is the general one.
        kind: of the location.
        subject: what was asked for, such as "s3://bucket/directory".
        path: its whole key in the container or bucket, which the library quotes.
        writing: whether it was to be written.
        of_object: whether one object was asked for, and not a listing, which every container has.
        answered: whether this store has answered before, so that there is a credential.
    """
    text, code = _text(error, path), service_code(error, path)
    status = int(found[1]) if (found := STATUS.search(text)) else 0
    said = " ".join(part for part in (str(status or ""), code) if part)
    noted = f" ({said})" if said else ""
    advice = WHAT_TO_SET[kind] + (f"; {TO_WRITE[kind]}" if writing else "")
    reason = said or next((phrase for phrase in PHRASES if phrase.lower() in str(error).lower()), type(error).__name__)
    is_missing = status == 404 or isinstance(error, FileNotFoundError)
    is_denied = status in (401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError)
    named = f", {found[1]!r}," if (found := BAD_PATH.search(text)) else ""
    faults: tuple[tuple[bool, StoreError], ...] = (
        (isinstance(error, InvalidPathError), BadKey(f"{subject} has an object{named} that {UNNAMEABLE}; rename it")),
        (
            # Once there was a credential, what gives it out may be away for a while like anything else.
            _asks_for_credential(text) and (not answered or 400 <= status < 500),
            Denied(f"no credential could be had for {subject}{noted}; {advice}"),
        ),
        (code in ARCHIVED, Unavailable(f"{subject} is archived{noted}; restore it to a tier that can be read")),
        (
            "redirect without LOCATION" in text or code in WRONG_REGION,
            Denied(f"{subject} is in another region; set AWS_REGION to the bucket's"),
        ),
        (
            code in NO_CONTAINER or (is_missing and not of_object),
            ContainerNotThere(f"the container or bucket of {subject} does not exist{noted}"),
        ),
        (is_missing, NotThere(f"{subject} does not exist{noted}")),
        (is_denied or code in WRONG_CREDENTIAL, Denied(f"{subject}: access is denied{noted}; {advice}")),
    )
    unavailable = Unavailable(f"{subject} cannot be reached or does not answer as it should: {reason}")
    return next((fault for applies, fault in faults if applies), unavailable)
