"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("decimer-jobs")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "unknown"
