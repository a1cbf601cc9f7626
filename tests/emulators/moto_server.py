"""moto's server, which takes a `+` in a query for a space also where it checks signatures, as AWS does.

object_store writes spaces so; as it comes, moto would refuse its listing of each directory with a space in its name.
"""

import sys
from typing import Any

from moto import server


class _Application(server.DomainDispatcherApplication):  # type: ignore[misc]
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ["QUERY_STRING"] = environ.get("QUERY_STRING", "").replace("+", "%20")
        return super().__call__(environ, start_response)


if __name__ == "__main__":
    server.DomainDispatcherApplication = _Application
    server.main(sys.argv[1:])
