"""One API process: uvicorn on a socket that is already bound. Knows nothing of its siblings."""

import contextlib
import gc
import logging
import os
import resource
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from job_api.main import create_app
from job_api.settings import Settings, StartupError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GRACEFUL_SECONDS = 10


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _spare_the_collector()
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Claims that wait are answered now, and their workers go to the next process; else they would be cut off.
        self._app.state.service.room.close()
        await super().shutdown(sockets)


def _spare_the_collector() -> None:
    """Let the garbage collector pass over what was there at the start, and come less often.

    It looked at all modules and routes again and again, a third of the time that results took to be stored.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _allow_many_connections() -> None:
    """Raise the number of open files to what the system allows: each waiting worker is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def begin_log(log_format: str = LOG_FORMAT) -> None:
    """Log to standard error."""
    logging.basicConfig(level=logging.INFO, format=log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def say_address(listener: socket.socket, processes: int = 1) -> None:
    """Log where the service is."""
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    several = f" with {processes} processes" if processes > 1 else ""
    logging.getLogger("job_api").info("serving http://%s:%d%s, API documentation at /docs", shown, port, several)


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    access_log: bool = False,
    alone: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: of the service.
        listener: bound, shared with siblings if there are any.
        ready: called once, when requests are served.
        access_log: whether every request is logged.
        alone: whether this process has no siblings below one parent.

    Raises:
        StartupError: says in a sentence why it cannot serve.
    """
    _allow_many_connections()
    app = create_app(settings, alone=alone)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=access_log,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        server_header=False,
        # What a client says of its own address counts only from a proxy that uvicorn was told of.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
    )
    # Why a start failed is said once, by the caller, in a sentence; uvicorn would show a traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not hasattr(app.state, "startup_error"))
    try:
        _Server(config, app, ready).run(sockets=[listener])
    except SystemExit:
        if not hasattr(app.state, "startup_error"):
            raise
        raise StartupError(str(app.state.startup_error)) from None
