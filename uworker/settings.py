"""Settings of the worker, read from the environment (`UWORKER_…`)."""

import os
import shlex
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import platformdirs
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from job_api.schemas import NAME_PATTERN
from uworker.sources.allow import check_entry

PREFIX = "UWORKER_"
MAX_SOCKET_PATH_BYTES = 107
"""As long as the address of a Unix socket may be."""
MAX_IMAGE_BYTES_APART = 2**30
"""The largest image that goes to an engine apart."""


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


_SOCKET = "Unix socket of an engine apart: `uworker engine` listens there, and a worker has its images recognised there"


class EngineSettings(BaseSettings):
    """What can be set of the recognisers of a machine. Each field is `UWORKER_<NAME IN CAPITALS>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)

    engine_socket: Path | None = Field(default=None, description=_SOCKET)
    processes: int | None = Field(default=None, ge=1, description="recogniser processes; unset: what the machine bears")
    threads_per_process: int = Field(default=4, ge=1, description="threads one process has, at most")
    start_below_percent: float = Field(
        default=75,
        gt=0,
        le=100,
        description="a further process is started while less memory and CPU are in use",
    )
    memory_high_percent: float = Field(
        default=90, gt=0, le=100, description="memory in use from which on threads and processes become fewer"
    )
    weights_home: Path = Field(
        default_factory=default_weights_home,
        description="folder that holds DECIMER-V2; default: PYSTOW_HOME, or ~/.data",
    )
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-fA-F]{64}$", description="accept only weights of this digest"
    )
    prepared: bool = Field(
        default=True, description="use the prepared model where there is one (`uworker prepare`): the same, faster"
    )
    engine_command: str | None = Field(
        default=None, description="command that prints the SMILES of `{image}`, a PNG, and so is an engine; no shell"
    )
    engine_command_name: str = Field(
        default="command", pattern=NAME_PATTERN, description="name of that engine, as projects and rows say it"
    )
    engine_command_timeout_seconds: float = Field(
        default=60, gt=0, description="after which that command, or osra, is killed with all that it started"
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("engine_socket")
    @classmethod
    def _fits_an_address(cls, value: Path | None) -> Path | None:
        if value is not None and len(os.fsencode(value)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"a socket's path may have {MAX_SOCKET_PATH_BYTES} bytes")
        return value

    @field_validator("engine_command")
    @classmethod
    def _can_be_parted(cls, value: str | None) -> str | None:
        # shlex says what is wrong: "No closing quotation".
        if value is not None and not shlex.split(value):
            raise ValueError("is empty")
        return value

    @field_validator("engine_command_name")
    @classmethod
    def _is_no_other_engine(cls, value: str) -> str:
        if value == "decimer":
            raise ValueError("decimer is an engine of its own")
        return value

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


class ApartSettings(EngineSettings):
    """What can be set of an engine apart: the same, and its socket must be."""

    engine_socket: Path = Field(description=_SOCKET)


class WorkerSettings(EngineSettings):
    """What can be set of a worker."""

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
    image_timeout_seconds: float = Field(default=300, gt=0, description="after which an image's process is killed")
    max_image_bytes: int = Field(default=100_000_000, gt=0, description="larger files are too_large")
    max_pixels: int = Field(default=64_000_000, gt=0, description="images of more pixels are too_large")
    spool_dir: Path = Field(
        default_factory=default_spool_dir,
        description="folder for results while the service is away; default: ~/.local/state/decimer-jobs",
    )
    spool_bytes: int = Field(
        default=500_000_000, gt=0, description="disk space for them; recognition pauses when it is full"
    )
    state_file: Path | None = Field(
        default=None, description="file in which the worker keeps what it does, for `uworker state`; unset: none"
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

    @field_validator("max_image_bytes")
    @classmethod
    def _goes_through_the_socket(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("engine_socket") is not None and value > MAX_IMAGE_BYTES_APART:
            raise ValueError(f"may be {MAX_IMAGE_BYTES_APART} at most, with {PREFIX}ENGINE_SOCKET")
        return value

    @field_validator("source_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("source_allow")
    @classmethod
    def _are_places(cls, value: list[str]) -> list[str]:
        return [check_entry(entry) for entry in value]

    @property
    def secrets(self) -> list[str]:
        """Values that must appear in no log line."""
        return [secret.get_secret_value() for secret in (self.job_api_token, self.job_api_password) if secret]


SettingsT = TypeVar("SettingsT", bound=EngineSettings)


def load_settings(**given: Any) -> WorkerSettings:
    """Read the settings from the environment; `given` ones that are not None go before it.

    Raises:
        SettingsError: one is missing or makes no sense; names the variable, and never shows a value.
    """
    settings = _read(WorkerSettings, given)
    if settings.source_root is not None and not settings.source_root.is_dir():
        # Found out later it would fail one job after another.
        raise SettingsError(f"{PREFIX}SOURCE_ROOT: there is no directory {settings.source_root}; is it mounted?")
    if settings.job_api_token is None and not (settings.job_api_username and settings.job_api_password):
        raise SettingsError(
            f"set {PREFIX}JOB_API_TOKEN to a worker's token (made with `job-api token add NAME --role worker`), "
            f"or {PREFIX}JOB_API_USERNAME and {PREFIX}JOB_API_PASSWORD"
        )
    return settings


def load_engine_settings() -> ApartSettings:
    """Read the settings of an engine apart from the environment, where those of a worker may stand, too.

    Raises:
        SettingsError: as `load_settings`.
    """
    return _read(ApartSettings, {})


def _read(model: type[SettingsT], given: Mapping[str, Any]) -> SettingsT:
    try:
        settings = model(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(e) for e in error.errors(include_input=False))) from None
    known = {PREFIX + name.upper() for name in WorkerSettings.model_fields}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise SettingsError(f"there is no setting {', '.join(unknown)}; `uworker --help` lists them all")
    return settings


def _sentence(error: Any) -> str:
    name = PREFIX + str(error["loc"][0]).upper()
    if error["type"] == "missing":
        description = WorkerSettings.model_fields[str(error["loc"][0])].description
        return f"set {name}: {description}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
