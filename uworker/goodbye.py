"""The end of a worker as the service sees it: its leases are given back, but those whose rows wait on disk."""

import logging
import time
from collections.abc import Callable, Sequence

from job_api.client import Client, ClientError, LeaseLost, NotFound
from job_api.schemas import Release
from uworker.holding import Holding

log = logging.getLogger(__name__)


def say_goodbye(
    client: Client, worker_id: str, held: Callable[[], list[Holding]], kept: Sequence[Holding], seconds: float
) -> None:
    """Give all leases back at once, or one by one where something is kept on disk: it could not be posted any more.

    Args:
        client: the way to the service.
        worker_id: who goes.
        held: tells what is held at this moment; a claim's answer may come late.
        kept: these keep their leases.
        seconds: after which no further lease is given back.
    """
    try:
        if kept:
            _release_others(client, worker_id, held, kept, time.monotonic() + seconds)
        else:
            client.goodbye(worker_id)
    except ClientError as error:
        log.warning("the goodbye did not arrive, so the leases have to run out: %s", error)


def _release_others(
    client: Client, worker_id: str, held: Callable[[], list[Holding]], kept: Sequence[Holding], until: float
) -> None:
    done = set(kept)
    while left := [holding for holding in held() if holding not in done and not holding.lost]:
        if time.monotonic() >= until:
            log.warning("there was no time to give %d leases back, so they have to run out", len(left))
            return
        lease = left[0].lease
        done.add(left[0])
        try:
            given = Release(worker_id=worker_id, lease_seq=lease.lease_seq, reason="goodbye")
            client.release(lease.project, lease.job_id, given)
        except (LeaseLost, NotFound) as error:
            # The others are still ours.
            log.info("%s was not given back: %s", left[0], error, extra=left[0].log_context)
