"""A worker as far as the service can tell: claims, posts and ends leases by hand."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from job_api import schemas
from job_api.client import Client
from job_api.schemas import Lease

LEASE = Lease(
    job_id=17,
    lease_seq=3,
    project="patents",
    directory="a",
    source="file:///data",
    engine="decimer",
    engine_options={},
    lease_seconds=60,
    results_count=0,
)
"""A lease as a service hands it out, where there is none."""


@dataclass
class Holder:
    """One worker process's words, spoken by a test."""

    client: Client
    worker_id: str = field(default_factory=lambda: f"w-{uuid.uuid4().hex[:8]}")

    def claim(
        self, project: str | None, *, key: str | None = None, max_jobs: int = 1, wait_seconds: float = 0
    ) -> list[Lease]:
        request = schemas.ClaimRequest(
            worker_id=self.worker_id,
            claim_key=key or uuid.uuid4().hex,
            max_jobs=max_jobs,
            wait_seconds=wait_seconds,
        )
        return self.client.claim(project, request).leases

    def pending(self, project: str | None) -> int:
        """What a claim that finds nothing says of the rest."""
        request = schemas.ClaimRequest(worker_id=self.worker_id, claim_key=uuid.uuid4().hex)
        found = self.client.claim(project, request)
        assert found.leases == []
        return found.pending

    def one(self, project: str | None) -> Lease:
        [lease] = self.claim(project)
        return lease

    def post(self, lease: Lease, *images: str, rows: list[Any] | None = None, **run: Any) -> schemas.ResultsStored:
        body = AnyRows(
            worker_id=self.worker_id,
            lease_seq=lease.lease_seq,
            run=schemas.EngineRun(**run),
            rows=rows if rows is not None else [result(image) for image in images],
        )
        return self.client.post_results(lease.project, lease.job_id, body)

    def complete(self, lease: Lease, image_count: int, *images: str) -> schemas.LeaseEnded:
        body = schemas.Complete(
            worker_id=self.worker_id,
            lease_seq=lease.lease_seq,
            image_count=image_count,
            rows=[result(image) for image in images],
        )
        return self.client.complete(lease.project, lease.job_id, body)

    def fail(self, lease: Lease, *, retryable: bool = True, reason: str = "storage") -> schemas.LeaseEnded:
        body = schemas.Fail(
            worker_id=self.worker_id, lease_seq=lease.lease_seq, reason=reason, retryable=retryable, message="why"
        )
        return self.client.fail(lease.project, lease.job_id, body)

    def release(self, lease: Lease) -> schemas.LeaseEnded:
        body = schemas.Release(worker_id=self.worker_id, lease_seq=lease.lease_seq)
        return self.client.release(lease.project, lease.job_id, body)

    def heartbeat(self, *leases: Lease) -> schemas.HeartbeatAnswer:
        named = [schemas.HeldLease(job_id=lease.job_id, lease_seq=lease.lease_seq) for lease in leases]
        return self.client.heartbeat(self.worker_id, schemas.Heartbeat(leases=named))

    def status_of(self, lease: Lease) -> schemas.LeaseStatus:
        [verdict] = self.heartbeat(lease).leases
        return verdict.status

    def images_done(self, lease: Lease) -> list[str]:
        return list(self.client.images_done(lease, self.worker_id))

    def results_done(self, lease: Lease) -> list[schemas.DoneResult]:
        return list(self.client.results_done(lease, self.worker_id))


class AnyRows(schemas.NewResults):
    """A batch that is not checked before it is sent."""

    rows: list[Any]


def result(image: str, status: str = "recognised", **fields: Any) -> schemas.NewResult:
    """A row as a recogniser makes it."""
    if status == "recognised":
        fields = {"smiles": "CCO", "confidence": 0.9, "is_valid": True, **fields}
    return schemas.NewResult(image=image, status=schemas.ResultStatus(status), **fields)
