"""moto's server on a free port, which takes a `+` in a query for a space also where it checks signatures, as AWS does.

object_store writes spaces so; as it comes, moto would refuse its listing of each directory with a space in its name.
"""

from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class Application(DomainDispatcherApplication):
    """moto, asked in the one spelling that it understands throughout."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ["QUERY_STRING"] = environ.get("QUERY_STRING", "").replace("+", "%20")
        return super().__call__(environ, start_response)


if __name__ == "__main__":
    run_simple("127.0.0.1", 0, Application(create_backend_app), threaded=True, request_handler=MotoRequestHandler)
