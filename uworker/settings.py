"""Settings of the worker, read from the environment (`UWORKER_…`)."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from uworker.sources.allow import check_entry

PREFIX = "UWORKER_"


class SettingsError(Exception):
    """The worker cannot start with these settings; the message says which variable to set."""


def default_weights_home() -> Path:
    """Where DECIMER itself keeps its weights."""
    return Path(os.environ.get("PYSTOW_HOME") or _at_home("WEIGHTS_HOME", Path("~/.data").expanduser))


def default_spool_dir() -> Path:
    """Where a user's programs keep what must outlive them, such as ~/.local/state (XDG_STATE_HOME)."""
    return _at_home("SPOOL_DIR", lambda: platformdirs.user_state_path("decimer-jobs").expanduser())


def _at_home(name: str, find: Callable[[], Path]) -> Path:
    """A folder below the user's home, which a container's user may not have.

    Raises:
        SettingsError: there is none; names the setting that does without.
    """
    try:
        return find()
    except RuntimeError as error:
        raise SettingsError(f"set {PREFIX}{name}: this user has no home directory ({error})") from None


class WorkerSettings(BaseSettings):
    """What can be set. Every field is the environment variable `UWORKER_<NAME IN CAPITALS>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)

    job_api_root: str = Field(description="address of the job service, such as http://host:8800")
    job_api_token: SecretStr | None = Field(default=None, description="a worker's token (job-api token add)")
    job_api_username: str | None = Field(default=None, description="with the password: instead of a token")
    job_api_password: SecretStr | None = Field(default=None, description="see the user name")
    job_api_project: str | None = Field(default=None, description="work on this project only; unset: on any it may see")
    source_root: Path | None = Field(default=None, description="where the projects' source is mounted on this machine")
    source_allow: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="folders and URLs a source may lie below, separated by commas; unset: any local one, and the "
        "remote one that a worker of one project began with",
    )
    processes: int | None = Field(default=None, ge=1, description="recogniser processes; unset: what the machine bears")
    threads_per_process: int = Field(default=4, ge=1, description="images one process recognises at once, at most")
    start_below_percent: float = Field(
        default=75,
        gt=0,
        le=100,
        description="a further process is started while less memory and CPU are in use",
    )
    memory_high_percent: float = Field(
        default=90, gt=0, le=100, description="memory in use from which on threads and processes become fewer"
    )
    image_timeout_seconds: float = Field(default=300, gt=0, description="after which an image's process is killed")
    max_image_bytes: int = Field(default=100_000_000, gt=0, description="larger files are too_large")
    max_pixels: int = Field(default=64_000_000, gt=0, description="images of more pixels are too_large")
    weights_home: Path = Field(
        default_factory=default_weights_home,
        description="folder that holds DECIMER-V2; default: PYSTOW_HOME, or ~/.data",
    )
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-fA-F]{64}$", description="accept only weights of this digest"
    )
    spool_dir: Path = Field(
        default_factory=default_spool_dir,
        description="folder for results while the service is away; default: ~/.local/state/decimer-jobs",
    )
    spool_bytes: int = Field(
        default=500_000_000, gt=0, description="disk space for them; recognition pauses when it is full"
    )
    snapshot: str | None = Field(default=None, description="name of the software's snapshot, kept in every row")
    hostname: str = Field(default_factory=socket.gethostname, description="this machine's name in the fleet")
    eviction: Literal["auto", "azure", "aws", "gcp", "off"] = Field(
        default="auto", description="whose eviction notices end the worker: auto, azure, aws, gcp or off"
    )
    metadata_root: str = Field(
        default="http://169.254.169.254",
        pattern=r"^https?://[^\s/]+/?$",
        description="address of the cloud's metadata service",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("source_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("source_allow")
    @classmethod
    def _are_places(cls, value: list[str]) -> list[str]:
        return [check_entry(entry) for entry in value]

    @field_validator("memory_high_percent")
    @classmethod
    def _is_above_the_start(cls, value: float, info: ValidationInfo) -> float:
        # Otherwise a process that was just started would be retired at once.
        if value <= info.data.get("start_below_percent", 0):
            raise ValueError(f"must be more than {PREFIX}START_BELOW_PERCENT")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @property
    def secrets(self) -> list[str]:
        """Values that must appear in no log line."""
        return [secret.get_secret_value() for secret in (self.job_api_token, self.job_api_password) if secret]


def load_settings(**given: Any) -> WorkerSettings:
    """Read the settings from the environment; `given` ones that are not None go before it.

    Raises:
        SettingsError: one is missing or makes no sense; names the variable, and never shows a value.
    """
    try:
        settings = WorkerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(e) for e in error.errors(include_input=False))) from None
    known = {PREFIX + name.upper() for name in WorkerSettings.model_fields}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise SettingsError(f"there is no setting {', '.join(unknown)}; `uworker --help` lists them all")
    if settings.source_root is not None and not settings.source_root.is_dir():
        # Found out later it would fail one job after another.
        raise SettingsError(f"{PREFIX}SOURCE_ROOT: there is no directory {settings.source_root}; is it mounted?")
    if settings.job_api_token is None and not (settings.job_api_username and settings.job_api_password):
        raise SettingsError(
            f"set {PREFIX}JOB_API_TOKEN to a worker's token (made with `job-api token add NAME --role worker`), "
            f"or {PREFIX}JOB_API_USERNAME and {PREFIX}JOB_API_PASSWORD"
        )
    return settings


def _sentence(error: Any) -> str:
    name = PREFIX + str(error["loc"][0]).upper()
    if error["type"] == "missing":
        description = WorkerSettings.model_fields[str(error["loc"][0])].description
        return f"set {name}: {description}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
