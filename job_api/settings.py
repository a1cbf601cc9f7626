"""Settings of the service, read from the environment (`JOB_API_…`)."""

from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class StartupError(Exception):
    """The service cannot start; the message says why and what to do."""


class Settings(BaseSettings):
    """What can be set. Every field is the environment variable `JOB_API_<NAME IN CAPITALS>`."""

    model_config = SettingsConfigDict(env_prefix="JOB_API_")

    database_url: SecretStr | None = Field(
        default=None,
        description="postgresql://user:password@host/database, hosts that replicate as host1:5432,host2:5432; "
        "unset: an embedded PostgreSQL in the data directory",
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("decimer-jobs"),
        description="holds the embedded database and the first admin password",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8800, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    processes: int = Field(default=1, ge=1, le=256, description="API processes on the port, under one parent")
    lease_seconds: float = Field(default=120, gt=0, description="how long a lease lasts without a heartbeat")
    heartbeat_seconds: float = Field(default=20, gt=0, description="how often workers are told to send one")
    sweep_seconds: float = Field(default=5, gt=0, description="how often expired leases are looked for")
    backoff_seconds: float = Field(default=30, gt=0, description="first back-off of a failed job; doubles each time")
    quarantine_after: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="a worker is quarantined when so many different jobs failed in a row; 0: never",
    )
    max_body_bytes: int = Field(default=32_000_000, gt=0, description="largest request body")
    pool_size: int = Field(default=10, ge=2, description="database connections of one process, at most")
    token_seconds: float = Field(default=86_400, gt=0, description="life of a token made from a login")

    janitor_seconds: float = Field(
        default=60, gt=0, description="how often deleted projects and what was kept long enough are cleared away"
    )
    keep_log_days: float = Field(default=30, ge=0, le=36_500, description="how long log lines are kept; 0: for ever")
    keep_log_lines: int = Field(
        default=10_000_000, ge=0, description="how many log lines are kept, the newest, by their ids; 0: all"
    )
    keep_attempt_days: float = Field(
        default=90,
        ge=0,
        le=36_500,
        description="how long ended attempts of finished jobs are kept, but the newest of each; 0: for ever",
    )
    keep_worker_days: float = Field(
        default=30,
        ge=0,
        le=36_500,
        description="how long a worker that is not heard of any more is listed; 0: for ever",
    )
    keep_token_days: float = Field(
        default=30, ge=0, le=36_500, description="how long an expired or revoked token is kept; 0: for ever"
    )

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and urlsplit(url.get_secret_value()).scheme not in ("postgresql", "postgres"):
            raise ValueError("must begin with postgresql://")
        return url


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        StartupError: a variable has a value that makes no sense; names it, never shows it.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = "; ".join(f"JOB_API_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False))
        raise StartupError(f"wrong setting in the environment: {wrong}") from None
    if settings.heartbeat_seconds * 2 > settings.lease_seconds:
        raise StartupError(
            "JOB_API_HEARTBEAT_SECONDS must be at most half of JOB_API_LEASE_SECONDS, or one lost heartbeat "
            "ends a lease"
        )
    return settings
