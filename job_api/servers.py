"""The servers a database URL names, and a connection to the one of them that takes writes.

asyncpg itself tries the hosts of a URL one after the other within one time limit: a machine that is gone without a word
would use it up, and the next host would never be asked. Knows nothing of the schema.
"""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

CONNECT_SECONDS = 10.0

# Of one host, and no reason not to ask the next.
NOT_THIS_ONE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TargetServerAttributeNotMatched,
)


def each_host(url: str) -> list[str]:
    """The URL of each host of `postgresql://…@host1:port1,host2:port2/…`, in their order."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=login + at + host)) for host in hosts.split(",")]


class Servers:
    """The hosts of a URL; the one that took the last connection is asked first.

    Args:
        url: for asyncpg, with one host or several.
    """

    def __init__(self, url: str) -> None:
        # An empty path and no host would be cut out of the URL together with their slashes.
        self._urls = each_host(url) if "," in urlsplit(url).netloc else [url]

    async def connect(self, *_: Any, **options: Any) -> asyncpg.Connection:
        """A connection to the first host that answers in time and takes writes; `options` are asyncpg's.

        Raises:
            asyncpg.TargetServerAttributeNotMatched: some host answers, and none takes writes.
            OSError: none answers, or as asyncpg.connect.
        """
        seconds = CONNECT_SECONDS if len(self._urls) == 1 else CONNECT_SECONDS * 0.9 / len(self._urls)
        options = {"target_session_attrs": "read-write", **options, "timeout": seconds}
        errors: list[Exception] = []
        for url in list(self._urls):
            try:
                connection: asyncpg.Connection = await asyncpg.connect(url, **options)
            except NOT_THIS_ONE as error:
                errors.append(error)
            else:
                self._urls.sort(key=lambda other: other != url)
                return connection
        # A host that answers and refuses says more than one that is away.
        errors.sort(key=lambda error: isinstance(error, OSError))
        raise errors[0]


async def connect(url: str, **options: Any) -> asyncpg.Connection:
    """One connection by a URL. Raises as `Servers.connect`."""
    return await Servers(url).connect(**options)
