"""Whose log lines are noise: libraries that speak of each request and each file, in the worker and its children.

The one list of them. They are quiet at every level that the worker itself can be set to; what a library warns of
stays, but for those that warn of what is no trouble. TensorFlow's native part has a variable of its own, see
`child.environment`.
"""

import logging

# TensorFlow's company and what reads images and weights; storage; and what lies below it.
_NAMES = """
    absl h5py keras matplotlib numexpr PIL pystow
    adlfs aiobotocore azure boto3 botocore fsspec gcsfs google msal s3fs s3transfer
    aiohttp asyncio filelock grpc httpcore httpx urllib3
"""
_QUIET = dict.fromkeys(_NAMES.split(), logging.WARNING) | {
    # Warns of each retry and of each thread above ten; the error that counts is raised.
    "urllib3.connectionpool": logging.ERROR,
    # Writes out each request and answer with all their headers.
    "azure.core.pipeline.policies.http_logging_policy": logging.ERROR,
    # Warns of functions traced again, which costs a second and happens for each new shape.
    "tensorflow": logging.ERROR,
}


def quieten(least: int = logging.NOTSET) -> None:
    """Quieten them in this process, before or after they are imported.

    Args:
        least: the level that the process itself is set to; they are never louder.
    """
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, least))
