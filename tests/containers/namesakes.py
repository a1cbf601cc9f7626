"""Images of the names that docker/service uses, made of Debian's packages: older programs, set up in the same way."""

from pathlib import Path

from tests.containers.bases import import_debian
from tests.containers.engine import Engine

_HERE = Path(__file__).parent
# What docker/service calls it: the folder here, the packages.
_NAMESAKES = {
    "postgres:18-bookworm": ("postgres", "debian:postgresql", ["postgresql-15"]),
    # wget is a part of the Alpine Linux that the image of that name is made of.
    "caddy:2": ("caddy", "debian:caddy", ["caddy", "wget"]),
}


def build_namesakes(engine: Engine) -> None:
    """Give the engine the images that docker/service expects of a registry."""
    for name, (folder, base, packages) in _NAMESAKES.items():
        import_debian(engine, *packages, name=base)
        engine.docker("build", "--tag", name, str(_HERE / folder))
