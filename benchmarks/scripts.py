"""What the clients of a load say: each script yields the bytes of a request and is sent the answer.

Bodies are made once, before a script says that it is ready; afterwards only ids are put in.
"""

import json
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any

from benchmarks import rows
from benchmarks.load import Answer, Load, Plan, Unexpected
from job_api.schemas import MAX_JOBS_PER_ADD, MAX_LEASES_PER_CLAIM, ClaimRequest, Complete, NewJobs, NewResults

Script = Generator[bytes, Any, None]
# A script's first word: its bodies are made, and the next word is a request.
READY = b""

# A machine holds few leases at a time; a client that only claims goes on as another worker after this many.
LEASES_PER_WORKER = 50
# So many bodies with different rows.
VARIANTS = 8

_LEASE_SEQ = '"lease_seq":1'


def expect(answer: Answer, status: int) -> Any:
    """The document of an answer.

    Raises:
        Unexpected: its status is another one.
    """
    if answer.status != status:
        said = answer.body[:500].decode(errors="replace")
        hint = "; nothing was left to claim" if answer.status == 204 else ""
        raise Unexpected(f"the service answered {answer.status} and not {status}{hint}: {said}")
    return json.loads(answer.body)


class Body:
    """A request's body of which only the lease number changes."""

    def __init__(self, plan: Plan, text: str) -> None:
        self._plan = plan
        before, after = text.split(_LEASE_SEQ, 1)
        self._before = before.encode() + b'"lease_seq":'
        self._after = after.encode()

    def request(self, path: str, lease_seq: int) -> bytes:
        """The whole request."""
        number = str(lease_seq).encode()
        size = len(self._before) + len(number) + len(self._after)
        return b"".join((self._plan.head("POST", path, size), self._before, number, self._after))


class Worker:
    """What one worker process says."""

    def __init__(self, plan: Plan, *, max_jobs: int = 1) -> None:
        self._plan = plan
        self.id = f"bench-{uuid.uuid4().hex}"
        self._claims = 0
        text = ClaimRequest(
            worker_id=self.id, claim_key="KEY", max_jobs=max_jobs, hostname="benchmark", version="1"
        ).model_dump_json(exclude_none=True)
        before, after = text.encode().split(b"KEY")
        self._before, self._after = before, after

    def claim(self) -> bytes:
        """A claim that was never made before."""
        self._claims += 1
        body = b"%s%d%s" % (self._before, self._claims, self._after)
        return self._plan.head("POST", f"/v4/{self._plan.project}/claim", len(body)) + body

    def results(self, first: int) -> Body:
        """A batch of a directory's rows."""
        new = [rows.recognised(first + number) for number in range(rows.IMAGES_PER_JOB)]
        batch = NewResults(worker_id=self.id, lease_seq=1, run=rows.RUN, rows=new)
        return Body(self._plan, batch.model_dump_json(exclude_none=True))

    def complete(self, image_count: int, first: int | None = None) -> Body:
        """The end of a lease; from `first` on, `image_count` rows ride along."""
        new = [] if first is None else [rows.recognised(first + number) for number in range(image_count)]
        done = Complete(worker_id=self.id, lease_seq=1, image_count=image_count, run=rows.RUN, rows=new)
        return Body(self._plan, done.model_dump_json(exclude_none=True))


def _path(plan: Plan, lease: dict[str, Any], verb: str) -> str:
    return f"/v4/{plan.project}/jobs/{lease['job_id']}/{verb}"


def _require_completed(answer: Answer) -> None:
    ended = expect(answer, 200)
    if ended["state"] != "completed" or ended["refused"]:
        raise Unexpected(f"a job was not completed: {ended}")


def cycles(plan: Plan, load: Load) -> Script:
    """Claim a job, post its 50 rows, complete it."""
    worker = Worker(plan)
    batches = [worker.results(1000 * number) for number in range(VARIANTS)]
    completion = worker.complete(rows.IMAGES_PER_JOB)
    yield READY
    while not load.over:
        began = time.perf_counter()
        [lease] = expect((yield worker.claim()), 200)["leases"]
        batch = batches[lease["job_id"] % VARIANTS]
        stored = expect((yield batch.request(_path(plan, lease, "results"), lease["lease_seq"])), 200)
        if stored["stored"] != rows.IMAGES_PER_JOB:
            raise Unexpected(f"not all rows were stored: {stored}")
        _require_completed((yield completion.request(_path(plan, lease, "complete"), lease["lease_seq"])))
        load.note(began)


def cycles_two_requests(plan: Plan, load: Load) -> Script:
    """Claim a job, complete it with its 50 rows riding along."""
    worker = Worker(plan)
    completions = [worker.complete(rows.IMAGES_PER_JOB, 1000 * number) for number in range(VARIANTS)]
    yield READY
    while not load.over:
        began = time.perf_counter()
        [lease] = expect((yield worker.claim()), 200)["leases"]
        completion = completions[lease["job_id"] % VARIANTS]
        _require_completed((yield completion.request(_path(plan, lease, "complete"), lease["lease_seq"])))
        load.note(began)


def claims(plan: Plan, load: Load) -> Script:
    """Claim one job after another."""
    worker, held = Worker(plan), 0
    yield READY
    while not load.over:
        if held == LEASES_PER_WORKER:
            worker, held = Worker(plan), 0
        began = time.perf_counter()
        expect((yield worker.claim()), 200)
        load.note(began)
        held += 1


def churn(plan: Plan, load: Load) -> Script:
    """Claim and complete `plan.size` jobs as fast as the service allows: many in a claim, one row in each."""
    worker = Worker(plan, max_jobs=min(plan.size, MAX_LEASES_PER_CLAIM))
    completion = worker.complete(1, 0)
    done = 0
    yield READY
    while done < plan.size:
        for lease in expect((yield worker.claim()), 200)["leases"]:
            began = time.perf_counter()
            _require_completed((yield completion.request(_path(plan, lease, "complete"), lease["lease_seq"])))
            load.note(began)
            done += 1


def bulk_add(plan: Plan, load: Load) -> Script:
    """Add `plan.size` directories, as many in a request as are allowed."""
    bodies = []
    for first in range(0, plan.size, MAX_JOBS_PER_ADD):
        numbers = range(first, min(first + MAX_JOBS_PER_ADD, plan.size))
        text = NewJobs(directories=[rows.directory(number) for number in numbers]).model_dump_json()
        bodies.append((len(numbers), text.encode()))
    yield READY
    for count, body in bodies:
        began = time.perf_counter()
        added = expect((yield plan.head("POST", f"/v4/{plan.project}/jobs", len(body)) + body), 200)
        if added["added"] != count:
            raise Unexpected(f"not all directories were new: {added}")
        load.note(began, count)


def status(plan: Plan, load: Load) -> Script:
    """Ask for the status document `plan.size` times."""
    yield READY
    for _ in range(plan.size):
        began = time.perf_counter()
        expect((yield plan.head("GET", f"/v4/{plan.project}")), 200)
        load.note(began)


def export(plan: Plan, load: Load) -> Script:
    """Read the results to their end; the connection counts the rows."""
    yield READY
    began = time.perf_counter()
    columns = f"&columns={plan.columns}" if plan.columns else ""
    answer = yield plan.head("GET", f"/v4/{plan.project}/results?format={plan.export_format}{columns}")
    if answer.status != 200:
        expect(answer, 200)
    load.note(began)


SCRIPTS: dict[str, Callable[[Plan, Load], Script]] = {
    script.__name__: script for script in (cycles, cycles_two_requests, claims, churn, bulk_add, status, export)
}
