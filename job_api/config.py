"""Where the job service is and how to log in there: a CONFIG file of `KEY=value` lines, overridden by the environment.

Read by `add_jobs.py` and the `job-api` commands; the worker and the service have settings of their own.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

from job_api.client import Client, ClientError

ROOT = "JOB_API_ROOT"
USERNAME = "JOB_API_USERNAME"
PASSWORD = "JOB_API_PASSWORD"  # noqa: S105 - the name of a setting
TOKEN = "JOB_API_TOKEN"  # noqa: S105 - the name of a setting
KEYS = (ROOT, USERNAME, PASSWORD, TOKEN)
PLACEHOLDER = "put-the-password-here"
"""Stands in `docker/example.conf` where the password belongs."""

CREDENTIALS_HINT = f"set {USERNAME} and {PASSWORD}, or {TOKEN}, in the environment or in the CONFIG file"


class ConfigError(ClientError):
    """The CONFIG file or the environment does not say where the service is or how to log in."""


def connect(config: Path | None = None, **client_args: Any) -> Client:
    """A client of the service that `config` and the environment name; `client_args` go to `Client`.

    While it waits for a service that is away it says so on standard error.

    Raises:
        ConfigError: a value is missing or makes no sense; says what to do.
    """
    values = read_config(config)
    try:
        return Client(
            values[ROOT],
            username=values.get(USERNAME),
            password=values.get(PASSWORD),
            token=values.get(TOKEN),
            on_retry=lambda said: sys.stderr.write(f"{said}\n"),
            **client_args,
        )
    except ValueError as error:
        raise ConfigError(f"wrong {'' if config is None else f'in {config} or '}in the environment: {error}") from None


def read_config(config: Path | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The address, and either a token or a username and a password.

    A token in the environment goes before a login in the file, and a login in the environment before a token in
    the file. Says on standard error when others can read a secret in the file.

    Raises:
        ConfigError: a value is missing or makes no sense; says what to do.
    """
    file = {} if config is None else _read_file(config)
    env = {key: environment[key] for key in KEYS if environment.get(key)}
    _refuse_both(file, str(config))
    _refuse_both(env, "the environment")
    if TOKEN in env:
        file = {key: value for key, value in file.items() if key not in (USERNAME, PASSWORD)}
    elif env.keys() & {USERNAME, PASSWORD}:
        file.pop(TOKEN, None)
    values = file | env
    _refuse_incomplete(values, config)
    return values


def _refuse_both(values: Mapping[str, str], place: str) -> None:
    if TOKEN in values and values.keys() & {USERNAME, PASSWORD}:
        raise ConfigError(f"{place} has both a token and a login; keep {TOKEN}, or {USERNAME} and {PASSWORD}")


def _refuse_incomplete(values: Mapping[str, str], config: Path | None) -> None:
    wanted = (ROOT,) if TOKEN in values else (ROOT, USERNAME, PASSWORD)
    missing = [key for key in wanted if key not in values]
    if missing:
        where = "the environment" if config is None else f"{config}"
        hint = "; or give a file with them: --config FILE (docker/example.conf is one)" if config is None else ""
        raise ConfigError(f"not set in {where}: {', '.join(missing)}{hint}")
    if values.get(PASSWORD) == PLACEHOLDER:
        raise ConfigError(
            f"{PASSWORD} is still the example's placeholder; the password of the user admin is in the file "
            "admin-password, which the service wrote and named at its first start; `job-api user add` makes more users"
        )


def _read_file(config: Path) -> dict[str, str]:
    values: dict[str, str | None] = {}
    try:
        with config.open(encoding="utf-8") as lines:
            for binding in parse_stream(lines):
                if binding.error or (binding.key is not None and binding.value is None):
                    text = binding.original.string
                    line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                    # The line is not shown: what is wrong in it may be the password.
                    raise ConfigError(f"{config}, line {line}: not KEY=value, or a quote that is not closed")
                if binding.key is not None:
                    values[binding.key] = binding.value
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{config} is not UTF-8 text; is it the CONFIG file?") from None
    unknown = sorted(values.keys() - set(KEYS))
    if unknown:
        raise ConfigError(f"{config} sets {', '.join(unknown)}, which is not known here; it may set {', '.join(KEYS)}")
    known = {key: value for key, value in values.items() if value}
    if known.keys() & {PASSWORD, TOKEN} and known.get(PASSWORD) != PLACEHOLDER:
        _warn_if_others_can_read(config)
    return known


def _warn_if_others_can_read(config: Path) -> None:
    if os.name == "posix" and config.stat().st_mode & 0o044:
        sys.stderr.write(f"warning: others can read the secret in {config}; run: chmod 600 {config}\n")
