"""How a store is opened: credentials and addresses from the environment, the files and the identities of each cloud.

Nothing of it is kept, logged or sent anywhere but to the store. Most is object_store's own; here stands what it lacks.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.store import AzureStore, GCSStore, S3Store

from job_api.faults import RAISED, WHAT_TO_SET, Denied
from job_api.locations import CONTROL, BadLocation, Location

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CloudStore = AzureStore | S3Store | GCSStore

# How long object_store tries again what may pass: 5xx and 429, connections that fail, bodies that break off. It waits
# longer each time, with jitter, and reads no Retry-After. A store that is away is known in 45 to 65 seconds.
PATIENCE_SECONDS = 45.0
MAX_SILENCE_SECONDS = 20.0
# The same where large parts are sent: the library counts from a request's beginning, and an answer comes at its end.
MAX_SENDING_SECONDS = 300.0
CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")
# Of the well-known account that every emulator has; no secret.
EMULATOR_ACCOUNT = "devstoreaccount1"
EMULATOR_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURE_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
AZURE_KEY = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_KEY")
AZURE_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
AZURE_ENDPOINT = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.IGNORECASE)
AWS_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

# Where one of these is set, object_store finds the credential itself.
AWS_OWN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True)
class Limits:
    """For how long what fails is tried again, and how long a server may say nothing."""

    patience_seconds: float = PATIENCE_SECONDS
    silence_seconds: float = MAX_SILENCE_SECONDS


def connect(location: Location, limits: Limits) -> CloudStore:
    """The library's store for the container or bucket of a location; asks nothing of it yet.

    Args:
        location: of a kind that has containers or buckets.
        limits: of time.

    Raises:
        Denied: something is missing in the environment, or makes no sense; names the variables.
        BadLocation: a location of another kind.
    """
    _forget_empty()
    _require_plain(os.environ)
    try:
        match location.kind:
            case "az":
                return _azure(location, os.environ, limits)
            case "s3":
                return _s3(location, os.environ, limits)
            case "gs":
                return _google(location, os.environ, limits)
    except RAISED:
        # The library's text may quote what it could not read.
        raise Denied(f"the credentials for {location} make no sense; {WHAT_TO_SET[location.kind]}") from None
    raise BadLocation(f"{location} is not object storage")


def _forget_empty() -> None:
    """Unset what is set to nothing, as by a compose file; the clouds' own tools take it for unset, object_store not."""
    for name in [name for name, value in os.environ.items() if name.startswith(CLOUDS) and not value]:
        del os.environ[name]


def _require_plain(environ: Mapping[str, str]) -> None:
    """Refuse what cannot go into a request, such as the line end of a file that a key was read from.

    object_store panics over it, and a panic is no `Exception` in Python.
    """
    for name, value in environ.items():
        if name.startswith(("AWS_", "AZURE_")) and CONTROL.search(value):
            raise Denied(f"{name} has a line end or another control character in it; set it without")


def _endpoint(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The address that the first of these variables has."""
    name = next((name for name in names if environ.get(name)), None)
    return _address(name, environ[name]) if name else None


def _address(name: str, value: str) -> str:
    if not ADDRESS.fullmatch(value):
        raise Denied(f"{name} is no address; it must begin with http:// or https://, such as https://host:9000")
    return value


def _retry(limits: Limits) -> "RetryConfig":
    patience_seconds = limits.patience_seconds
    return {
        # So many that the time decides. Each pause is random, up to `base` times the last one: with 2 they hardly grow.
        "max_retries": 100,
        "retry_timeout": timedelta(seconds=patience_seconds),
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=min(10.0, patience_seconds / 2)),
            "base": 3,
        },
    }


def _client(endpoint: str | None, limits: Limits) -> "ClientConfig":
    """Time limits; plain HTTP only where the operator wrote it."""
    return {
        "allow_http": bool(endpoint and endpoint.lower().startswith("http://")),
        "connect_timeout": "5s",
        # Between two pieces of an answer: a large image on a slow line is no fault.
        "read_timeout": timedelta(seconds=limits.silence_seconds),
        "timeout": "10m",
        "user_agent": "decimer-jobs",
    }


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _azure(location: Location, environ: Mapping[str, str], limits: Limits) -> AzureStore:
    given = _connection_string(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    account = given.get("account_name") or _first(environ, AZURE_ACCOUNT)
    config: dict[str, Any] = {
        "account_name": account,
        "account_key": _first(environ, AZURE_KEY),
        "sas_key": _first(environ, AZURE_SAS),
        "endpoint": _endpoint(environ, AZURE_ENDPOINT),
        **given,
    }
    if location.account and location.account != account:
        # What stands in a project's source may be somebody else's choice.
        if any(config[name] for name in ("account_key", "sas_key", "endpoint")):
            whose = f"the account {account}" if account else "an account that it does not name"
            raise Denied(
                f"{location} is in the account {location.account}, and the environment has a key, SAS or endpoint of "
                f"{whose}; set AZURE_STORAGE_ACCOUNT_NAME={location.account} with those of that account"
            )
        config["account_name"] = location.account
    if not config["account_name"] and _is_on(environ, "AZURE_STORAGE_USE_EMULATOR"):
        config["account_name"] = EMULATOR_ACCOUNT
    if not config["account_name"]:
        raise Denied(
            f"it is not said in which storage account {location} lies; set AZURE_STORAGE_ACCOUNT_NAME or "
            f"AZURE_STORAGE_CONNECTION_STRING, or write abfss://{location.bucket}@ACCOUNT.dfs.core.windows.net/…"
        )
    if given.get("sas_key"):
        # The connection string goes before a key that stands beside it; the library would take the key.
        config["credential_type"] = "sas_token"
    return AzureStore(
        location.bucket,
        config={name: value for name, value in config.items() if value},  # type: ignore[arg-type]
        client_options=_client(config["endpoint"], limits),
        retry_config=_retry(limits),
    )


def _connection_string(text: str) -> dict[str, str]:
    """What object_store can use of an Azure connection string, which it does not read itself."""
    if not text:
        return {}
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        proxy = fields.get("developmentstorageproxyuri", "http://127.0.0.1").rstrip("/")
        return {
            "account_name": EMULATOR_ACCOUNT,
            "account_key": EMULATOR_KEY,
            "endpoint": f"{proxy}:10000/{EMULATOR_ACCOUNT}",
        }
    found = {
        "account_name": fields.get("accountname", ""),
        "account_key": fields.get("accountkey", ""),
        "sas_key": fields.get("sharedaccesssignature", ""),
        "endpoint": fields.get("blobendpoint", "").rstrip("/"),
    }
    if found["endpoint"]:
        _address("BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING", found["endpoint"])
    if not found["account_name"]:
        # With a SAS the account stands in the endpoint alone.
        host = found["endpoint"].partition("://")[2].partition("/")[0]
        found["account_name"] = host.partition(".")[0] if ".blob." in host else ""
    if not found["endpoint"] and found["account_name"] and fields.get("endpointsuffix"):
        scheme = fields.get("defaultendpointsprotocol", "https")
        found["endpoint"] = f"{scheme}://{found['account_name']}.blob.{fields['endpointsuffix']}"
    if not (found["account_name"] or found["endpoint"]):
        raise Denied("AZURE_STORAGE_CONNECTION_STRING names no account (AccountName=… or BlobEndpoint=…)")
    return {name: value for name, value in found.items() if value}


def _s3(location: Location, environ: Mapping[str, str], limits: Limits) -> S3Store:
    endpoint = _endpoint(environ, AWS_ENDPOINT)
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    provider = None
    if not _is_on(environ, "AWS_SKIP_SIGNATURE") and not _first(environ, AWS_OWN):
        provider = _profile(environ)
    if provider is not None and not _first(environ, ("AWS_REGION", "AWS_DEFAULT_REGION")):
        config |= provider.config
    if environ.get("AWS_ACCESS_KEY_ID") and not environ.get("AWS_SECRET_ACCESS_KEY"):
        raise Denied("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both")
    return S3Store(
        location.bucket,
        config=config,  # type: ignore[arg-type]
        client_options=_client(endpoint, limits),
        retry_config=_retry(limits),
        credential_provider=provider,
    )


def _profile(environ: Mapping[str, str]) -> Any:
    """A provider that reads AWS's files as boto3 does, where there are any; None: object_store looks for roles."""
    profile = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE")
    files = (
        environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    try:
        there = any(Path(file).expanduser().is_file() for file in files)
    except RuntimeError:
        there = False  # a user without a home directory
    if not profile and not there:
        return None
    if importlib.util.find_spec("boto3") is None:
        if not profile:
            return None
        raise Denied("AWS_PROFILE is set, and profiles are read by boto3: pip install '/path/to/decimer-jobs[aws]'")
    # Heavy, and needed by few.
    import boto3  # noqa: PLC0415
    import botocore.exceptions  # noqa: PLC0415
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except botocore.exceptions.BotoCoreError as error:
        # Its text may quote the files.
        raise Denied(f"AWS's files cannot be used ({type(error).__name__}); see AWS_PROFILE and ~/.aws") from None
    except ValueError:
        if profile:
            raise Denied(f"the AWS profile {profile!r} has no credentials; see `aws configure list`") from None
        return None


def _google(location: Location, environ: Mapping[str, str], limits: Limits) -> GCSStore:
    emulator = environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    endpoint = _address("STORAGE_EMULATOR_HOST", emulator) if emulator else _endpoint(environ, ("GOOGLE_BASE_URL",))
    config: dict[str, Any] = {}
    if endpoint:
        config["base_url"] = endpoint
    if emulator:
        # As Google's own libraries do: an emulator is shown no login. The token is for writing, which object_store does
        # not do without one.
        config |= {"skip_signature": True, "bearer_token": "emulator"}
    file = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if file and not emulator and not Path(file).is_file():
        raise Denied("there is no file where GOOGLE_APPLICATION_CREDENTIALS points")
    return GCSStore(
        location.bucket,
        config=config,  # type: ignore[arg-type]
        client_options=_client(endpoint, limits),
        retry_config=_retry(limits),
    )
