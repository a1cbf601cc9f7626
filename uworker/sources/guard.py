"""Connections to web servers that a project has named: only to addresses that this worker may reach.

A host is looked up here, once for each connection, and the connection goes to the very address that was judged: a name
that answers differently the next time gains nothing. TLS goes on speaking of the name. A proxy looks hosts up itself,
so that only those that UWORKER_SOURCE_ALLOW names are reached through one.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from job_api.locations import DEFAULT_PORTS
from uworker.images import SourceNotAllowed
from uworker.sources.allow import SETTING, is_public

# As many as images are read at once, and a few more for listings.
MAX_CONNECTIONS = 32
Names = Callable[[str, int], bool]


class GuardedBackend(httpcore.NetworkBackend):
    """Opens the connections.

    Args:
        names: whether a host, at a port, may have an address that is not public.
        answer_seconds: how long an answer may take as a whole.
    """

    def __init__(self, names: Names, answer_seconds: float) -> None:
        self._names = names
        self._answer_seconds = answer_seconds
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that may be reached and answers."""
        options = list(socket_options or [])
        fault: Exception | None = None
        for address in self._addresses(host, port):
            try:
                stream = self._plain.connect_tcp(address, port, timeout, local_address, options)
                return TimedStream(stream, self._answer_seconds)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = fault or error
        raise fault or httpcore.ConnectError(f"{host} has no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be looked up: {error}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if self._names(host, port):
            return addresses
        allowed = [address for address in addresses if is_public(address)]
        if not allowed:
            # Which address it is would tell a stranger about this network.
            raise SourceNotAllowed(
                f"{host} has no public address, and this worker reads no others unless they are listed: "
                f"name the host in {SETTING} on the worker, such as https://{host}/folder, if it may read there"
            )
        return allowed


class TimedStream(httpcore.NetworkStream):
    """A connection on which an answer as a whole may take so long: httpx bounds only the time between two pieces.

    An answer is everything from the last thing that was sent: also headers that trickle in, and interim answers.
    """

    def __init__(self, stream: httpcore.NetworkStream, answer_seconds: float) -> None:
        self._stream = stream
        self._answer_seconds = answer_seconds
        self._latest = time.monotonic() + answer_seconds

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See `httpcore.NetworkStream`."""
        left = self._latest - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(f"the answer took more than {self._answer_seconds:.0f} s")
        return self._stream.read(max_bytes, left if timeout is None else min(timeout, left))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See `httpcore.NetworkStream`."""
        self._latest = time.monotonic() + self._answer_seconds
        self._stream.write(buffer, timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """See `httpcore.NetworkStream`."""
        return TimedStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._answer_seconds)

    def close(self) -> None:
        """See `httpcore.NetworkStream`."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """See `httpcore.NetworkStream`."""
        return self._stream.get_extra_info(info)


class GuardedTransport(httpx.BaseTransport):
    """Sends requests, directly or through the proxy that the environment sets for a host.

    Args:
        names: whether UWORKER_SOURCE_ALLOW names a host, at a port.
        answer_seconds: how long an answer may take as a whole, where no proxy watches over it.
    """

    def __init__(self, names: Names, answer_seconds: float) -> None:
        self._names = names
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
        # Certificates as httpx finds them: those of SSL_CERT_FILE or SSL_CERT_DIR, or the ones that came with it.
        tls = httpx.create_ssl_context()
        self._direct = _Direct(GuardedBackend(names, answer_seconds), tls, limits)
        set_here = getproxies()
        self._by_proxy = {
            scheme: httpx.HTTPTransport(proxy=proxy, verify=tls, limits=limits)
            for scheme in DEFAULT_PORTS
            if (proxy := set_here.get(scheme) or set_here.get("all"))
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport`."""
        host = request.url.raw_host.decode("ascii")
        proxy = self._by_proxy.get(request.url.scheme)
        if proxy is None or proxy_bypass(host):
            return self._direct.handle_request(request)
        if not self._names(host, request.url.port or DEFAULT_PORTS[request.url.scheme]):
            raise SourceNotAllowed(
                f"the proxy in this worker's environment would look up {host}, so that its address cannot be judged: "
                f"name the host in {SETTING}, such as https://{host}/folder, or in NO_PROXY, if it may read there"
            )
        return proxy.handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for transport in (self._direct, *self._by_proxy.values()):
            transport.close()


class _Direct(httpx.HTTPTransport):
    """A transport that connects by a backend of ours; httpx has no parameter for it."""

    def __init__(self, backend: httpcore.NetworkBackend, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=tls, limits=limits)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=backend,
        )
