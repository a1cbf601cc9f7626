"""The one HTTP client of the job service, for people, `add_jobs.py` and the worker.

Everything that is retried is retried by it (`sending` decides) and nowhere else: an unreachable service, a broken
connection, a time-out and the answers 429, 502, 503 and 504, with exponential back-off and full jitter, or after what
`Retry-After` says, until `retry_seconds` have passed. Nearly every call of the API may be sent twice without harm; the
few that may not (retry, rerun, force_release, the first request of act, new_token) are only sent again while it is
certain that they did not arrive.

    from job_api.client import Client
    with Client("http://localhost:8800", username="admin", password="…") as client:
        print(client.project("patents"))
        for row in client.results("patents", status="recognised"):
            print(row["image"], row["smiles"])
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from job_api import schemas
from job_api.downloading import Download, make_query, next_since, query_params
from job_api.frames import ResultRows
from job_api.records import Record
from job_api.schemas import (
    MAX_PAGE_SIZE,
    NAME_PATTERN,
    PENDING_JOBS_HEADER,
    PROJECT_PAUSED_HEADER,
    RESERVED_PROJECT_NAMES,
    ExportFormat,
)
from job_api.sending import (
    ApiError,
    ClientError,
    LeaseLost,
    NotFound,
    Refused,
    ResultsMissing,
    Sender,
    Unreachable,
    WorkerStopped,
    parse,
    why,
)

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "LeaseLost",
    "NotFound",
    "Refused",
    "ResultsMissing",
    "Unreachable",
    "WorkerStopped",
]

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")

# A filter may let nothing pass for a hundred million rows, of which each takes the service some microseconds.
EXPORT_EXTRA_SECONDS = 600.0
RETRY_SECONDS = 60.0


class Claim(NamedTuple):
    """What a claim got.

    Attributes:
        pending: Where it got no leases, the number of jobs that are queued or waiting all the same.
        is_paused: Whether there are none because the project that was asked for is paused.
    """

    leases: list[schemas.Lease]
    pending: int
    is_paused: bool


class Client:
    """A connection to one job service; safe to share between threads.

    Args:
        root: address of the service, such as `http://host:8800`.
        username: with `password`, is turned into a token at the first call and again when that expires.
        password: see `username`.
        token: used as it is instead of a login.
        retry_seconds: how long a call is tried again before `Unreachable` is raised; 0 tries once.
        timeout_seconds: how long one try may take without an answer.
        stop: when set, waits between tries end and no call is tried again.
        transport: replaces the network in tests of this client.
        on_retry: told, now and then, why a call is tried again; must be quick.

    Raises:
        ValueError: the address or the credentials make no sense.
    """

    def __init__(
        self,
        root: str,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        retry_seconds: float = RETRY_SECONDS,
        timeout_seconds: float = 30.0,
        stop: threading.Event | None = None,
        transport: httpx.BaseTransport | None = None,
        on_retry: Callable[[str], object] | None = None,
    ) -> None:
        self._sender = Sender(
            root,
            username=username,
            password=password,
            token=token,
            retry_seconds=retry_seconds,
            timeout_seconds=timeout_seconds,
            stop=stop or threading.Event(),
            transport=transport,
            on_retry=on_retry,
        )
        self._send = self._sender.send
        self.root = self._sender.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.root!r})"

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    # --- service, people, tokens ---

    def server(self, project: str | None = None) -> schemas.ServerInfo:
        """The service's version, limits and pace, who asks, what engine `project` wants, and whether it is paused.

        Raises:
            Refused: also where the caller may not see `project`.
            NotFound: there is no such project.
        """
        params = None if project is None else {"project": _project(project)}
        return parse(schemas.ServerInfo, self._send("GET", "/v4", params=params))

    def users(self) -> list[schemas.User]:
        """All users."""
        return list(self._pages(schemas.User, "/v4/users"))

    def put_user(self, name: str, user: schemas.NewUser) -> schemas.User:
        """Create a user, or give an existing one a new password and role."""
        return self._ask(schemas.User, "PUT", f"/v4/users/{_part(name)}", user)

    def delete_user(self, name: str) -> None:
        """Delete a user and revoke its tokens."""
        self._send("DELETE", f"/v4/users/{_part(name)}")

    def new_token(self, token: schemas.NewToken) -> schemas.IssuedToken:
        """Make a token: of any role (admin), or for a worker of a project the caller may submit to."""
        return self._ask(schemas.IssuedToken, "POST", "/v4/tokens", token, repeatable=False)

    def tokens(self) -> list[schemas.Token]:
        """The tokens in force that the caller may revoke, without their secrets."""
        return list(self._pages(schemas.Token, "/v4/tokens"))

    def revoke_token(self, token_id: int) -> None:
        """Revoke a token."""
        self._send("DELETE", f"/v4/tokens/{token_id}")

    # --- projects and jobs ---

    def projects(self) -> list[schemas.Project]:
        """All projects the caller may see."""
        return list(self._pages(schemas.Project, "/v4/projects"))

    def project(self, project: str) -> schemas.ProjectStatus:
        """The status document of a project."""
        return self._ask(schemas.ProjectStatus, "GET", f"/v4/{_project(project)}")

    def put_project(self, project: str, settings: schemas.ProjectSettings) -> schemas.Project:
        """Create a project, or change the given settings of an existing one."""
        return self._ask(schemas.Project, "PUT", f"/v4/{_project(project)}", settings)

    def delete_project(self, project: str) -> None:
        """Delete a project with all its jobs and results; refused while jobs of it are unfinished."""
        self._send("DELETE", f"/v4/{_project(project)}")

    def pause(self, project: str) -> schemas.Project:
        """Stop handing out jobs of a project; running ones finish."""
        return self._ask(schemas.Project, "POST", f"/v4/{_project(project)}/pause")

    def resume(self, project: str) -> schemas.Project:
        """Hand out jobs of a project again."""
        return self._ask(schemas.Project, "POST", f"/v4/{_project(project)}/resume")

    def add_jobs(self, project: str, directories: Sequence[str], *, priority: int = 0) -> schemas.JobsAdded:
        """Add up to 10,000 directories, all or none; those already present stay as they are.

        Of a project's jobs those with the highest `priority` are handed out first.
        """
        body = {"directories": list(directories), "priority": priority}
        return self._ask(schemas.JobsAdded, "POST", f"/v4/{_project(project)}/jobs", body)

    def jobs(self, project: str, **filters: Any) -> Iterator[schemas.Job]:
        """Jobs of a project in the order of their ids; filters are `state`, `worker_id` and `text`."""
        return self._pages(schemas.Job, f"/v4/{_project(project)}/jobs", filters)

    def job(self, project: str, job_id: int) -> schemas.JobDetail:
        """One job with its attempts and counts."""
        return self._ask(schemas.JobDetail, "GET", _job(project, job_id))

    def failures(self, project: str, *, kind: schemas.FailureKind | None = None, limit: int = 100) -> schemas.Failures:
        """What has failed in a project, in groups of messages that are alike, the rare ones first."""
        params = {"limit": limit} if kind is None else {"limit": limit, "kind": kind}
        return parse(schemas.Failures, self._send("GET", f"/v4/{_project(project)}/failures", params=params))

    def job_results(self, project: str, job_id: int) -> Iterator[schemas.Result]:
        """The stored rows of one job, by image."""
        return self._pages(schemas.Result, f"{_job(project, job_id)}/results")

    def directories(
        self, project: str, order: schemas.DirectoryOrder, limit: int = 20
    ) -> list[schemas.DirectoryReport]:
        """The directories that take longest or fail most often, worst first, at most 100."""
        params = {"order": order.value, "limit": limit}
        return list(self._pages(schemas.DirectoryReport, f"/v4/{_project(project)}/directories", params))

    def cancel(self, project: str, job_id: int) -> schemas.Job:
        """Cancel an unfinished job."""
        return self._ask(schemas.Job, "POST", f"{_job(project, job_id)}/cancel")

    def retry(self, project: str, job_id: int) -> schemas.Job:
        """Queue a failed or cancelled job again, with a clean slate."""
        return self._ask(schemas.Job, "POST", f"{_job(project, job_id)}/retry", repeatable=False)

    def rerun(self, project: str, job_id: int, statuses: Sequence[schemas.ResultStatus] | None = None) -> schemas.Job:
        """Queue a finished job again: all its images, or those whose result has one of `statuses`."""
        body = schemas.Rerun(statuses=list(statuses) if statuses is not None else None)
        return self._ask(schemas.Job, "POST", f"{_job(project, job_id)}/rerun", body, repeatable=False)

    def force_release(self, project: str, job_id: int) -> schemas.Job:
        """Take a claimed job from its worker and queue it again."""
        return self._ask(schemas.Job, "POST", f"{_job(project, job_id)}/force-release", repeatable=False)

    def act(self, project: str, wanted: schemas.JobsAction) -> Iterator[schemas.JobsActed]:
        """Cancel, retry, rerun, force-release or delete all jobs that a filter names, or count them (`dry_run`).

        Asks again and again until all is done, and yields after each answer the sums so far; the last ones are the
        whole. What was done stays done when the caller stops reading, or when this raises; `next` of the sums is where
        to go on (`after`). With `as_of`, such as of a dry run before, every request is safe to repeat; without it the
        first one is not, and is treated as `retry` and `rerun` are.
        """
        path = f"/v4/{_project(project)}/jobs/actions"
        total: schemas.JobsActed | None = None
        while total is None or total.next is not None:
            if total is not None:
                wanted = wanted.model_copy(update={"after": total.next, "as_of": total.as_of})
            repeatable = wanted.dry_run or wanted.as_of is not None
            answer = self._ask(schemas.JobsActed, "POST", path, wanted, repeatable=repeatable)
            total = answer if total is None else total + answer
            yield total

    # --- the worker's side ---

    def claim(self, project: str | None, request: schemas.ClaimRequest) -> Claim:
        """Claim jobs of one project, or of any the caller may see."""
        path = f"/v4/{_project(project)}/claim" if project else "/v4/claim"
        # The answer may take as long as it was asked to wait.
        answer = self._send("POST", path, request, extra_seconds=request.wait_seconds)
        if answer.status_code == 204:
            pending = int(answer.headers.get(PENDING_JOBS_HEADER, 0))
            return Claim([], pending, answer.headers.get(PROJECT_PAUSED_HEADER) == "true")
        return Claim(parse(schemas.Claimed, answer).leases, 0, is_paused=False)

    def images_done(self, lease: schemas.Lease, worker_id: str) -> Iterator[str]:
        """Images of a leased job that need no work, by name."""
        path = f"{_job(lease.project, lease.job_id)}/images-done"
        return self._items(schemas.Page[str], path, {"worker_id": worker_id, "lease_seq": lease.lease_seq})

    def results_done(self, lease: schemas.Lease, worker_id: str, *, after: str = "") -> Iterator[schemas.DoneResult]:
        """Rows of a leased job that count for it, by image; those after an image of that name."""
        path = f"{_job(lease.project, lease.job_id)}/results-done"
        params = {"worker_id": worker_id, "lease_seq": lease.lease_seq, "after": after}
        return self._pages(schemas.DoneResult, path, params)

    def heartbeat(self, worker_id: str, heartbeat: schemas.Heartbeat) -> schemas.HeartbeatAnswer:
        """Extend all leases of a worker and hear what became of them."""
        return self._ask(schemas.HeartbeatAnswer, "POST", f"/v4/workers/{_part(worker_id)}/heartbeat", heartbeat)

    def goodbye(self, worker_id: str) -> None:
        """Release all leases of a worker; its id cannot claim any more."""
        self._send("DELETE", f"/v4/workers/{_part(worker_id)}")

    def post_results(self, project: str, job_id: int, results: schemas.NewResults) -> schemas.ResultsStored:
        """Store a batch of result rows; refused rows are named in the answer, the rest is stored."""
        return self._ask(schemas.ResultsStored, "POST", f"{_job(project, job_id)}/results", results)

    def complete(self, project: str, job_id: int, complete: schemas.Complete) -> schemas.LeaseEnded:
        """End a lease: all images are stored."""
        return self._ask(schemas.LeaseEnded, "POST", f"{_job(project, job_id)}/complete", complete)

    def fail(self, project: str, job_id: int, fail: schemas.Fail) -> schemas.LeaseEnded:
        """End a lease: the job cannot be done."""
        return self._ask(schemas.LeaseEnded, "POST", f"{_job(project, job_id)}/fail", fail)

    def release(self, project: str, job_id: int, release: schemas.Release) -> schemas.LeaseEnded:
        """End a lease: somebody else shall do the job."""
        return self._ask(schemas.LeaseEnded, "POST", f"{_job(project, job_id)}/release", release)

    def post_logs(self, worker_id: str, lines: Sequence[schemas.LogLine]) -> None:
        """Store log lines, at most 1,000."""
        self._send("POST", f"/v4/workers/{_part(worker_id)}/logs", schemas.LogLines(lines=list(lines)))

    # --- fleet, logs, results ---

    def workers(self, *, active: bool | None = None) -> Iterator[schemas.Worker]:
        """The fleet."""
        return self._pages(schemas.Worker, "/v4/workers", {"active": active})

    def drain(self, worker_id: str) -> schemas.Worker:
        """Tell a worker to finish what it holds and stop."""
        return self._ask(schemas.Worker, "POST", f"/v4/workers/{_part(worker_id)}/drain")

    def quarantine(self, worker_id: str) -> schemas.Worker:
        """Tell a worker to stop claiming until it is lifted."""
        return self._ask(schemas.Worker, "POST", f"/v4/workers/{_part(worker_id)}/quarantine")

    def lift(self, worker_id: str) -> schemas.Worker:
        """Let a drained or quarantined worker work again."""
        return self._ask(schemas.Worker, "POST", f"/v4/workers/{_part(worker_id)}/lift")

    def logs(self, project: str | None = None, **filters: Any) -> Iterator[schemas.StoredLogLine]:
        """Log lines, oldest first; filters are `level`, `worker_id`, `job_id`, `image`, `text`."""
        return self._pages(schemas.StoredLogLine, f"/v4/{_project(project)}/logs" if project else "/v4/logs", filters)

    def results(self, project: str, **filters: Any) -> ResultRows:
        """Result rows of a project as dictionaries, or by `to_pandas()`; filters are those of `schemas.ResultFilter`.

        `columns` names those wanted. A download that breaks is taken up again after the last row that arrived. A row
        that is replaced while the download runs may come twice, the newer one with the higher `seq`.
        """

        def download(columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
            for _, record in self.export_records(project, ExportFormat.JSONL, **{**filters, "columns": columns}):
                row: dict[str, Any] = json.loads(record)
                yield row

        return ResultRows(download, make_query(ExportFormat.JSONL, filters).columns)

    def export_records(self, project: str, export_format: ExportFormat, **filters: Any) -> Iterator[Record]:
        """Each row of the export as its `seq` and its bytes; filters as in `results`, the CSV's heading first.

        A download that breaks is taken up again after the last whole row, as long as rows arrive within
        `retry_seconds`. What was stored or replaced meanwhile is asked for until an answer brings nothing more, which
        also mends an answer that was cut between two rows and looked whole. Of the columns `seq`, where it is wanted,
        comes first; other formats than CSV and JSONL cannot be taken up.
        """
        download = Download(self._sender, make_query(export_format, filters))
        return download.records(lambda params: self._stream(project, params))

    def review(self, project: str, reviews: Sequence[schemas.NewReview]) -> schemas.ReviewsStored:
        """Say of up to 1,000 answers that they are right, wrong, or what they should be; or take that back.

        Refused reviews are named in the answer, the others are stored.
        """
        # As they were made: that a field is null and that it is left out are two things here.
        body = {"reviews": [review.model_dump(mode="json", exclude_unset=True) for review in reviews]}
        return self._ask(schemas.ReviewsStored, "PUT", f"/v4/{_project(project)}/reviews", body)

    def reviews(self, project: str, *, status: schemas.ReviewStatus | None = None) -> Iterator[schemas.Review]:
        """What was said of a project's answers, by job and image."""
        return self._pages(schemas.Review, f"/v4/{_project(project)}/reviews", {"status": status})

    def last_seq(self, project: str) -> int:
        """The `seq` up to which a project's rows are stored by now; rows that come later have higher ones."""
        with self.export(project, format=ExportFormat.JSONL.value) as answer:
            found = next_since(answer)
        if found is None:
            raise ClientError(f"{self.root} does not say how far its export goes")
        return found

    def put_chemistry(self, project: str, rows: Sequence[schemas.RowChemistry]) -> schemas.ChemistryStored:
        """Store what was computed again of up to 1,000 rows; a row that was replaced meanwhile is left alone."""
        body = {"rows": [row.model_dump() for row in rows]}
        return self._ask(schemas.ChemistryStored, "POST", f"/v4/{_project(project)}/results/chemistry", body)

    @contextmanager
    def export(self, project: str, **filters: Any) -> Iterator[httpx.Response]:
        """The raw streamed export; `format` and the filters of `results`. Read it with `iter_bytes()`."""
        query = make_query(filters.pop("format", ExportFormat.CSV), filters)
        try:
            with self._stream(project, query_params(query)) as answer:
                yield answer
        except httpx.RequestError as error:
            raise Unreachable(f"the download from {self.root} broke off: {why(error)}") from error

    # --- sending ---

    @contextmanager
    def _stream(self, project: str, params: Mapping[str, Any]) -> Iterator[httpx.Response]:
        path = f"/v4/{_project(project)}/results"
        answer = self._send("GET", path, params=params, stream=True, extra_seconds=EXPORT_EXTRA_SECONDS)
        try:
            yield answer
        finally:
            answer.close()

    def _ask(
        self,
        model: type[Model],
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
    ) -> Model:
        return parse(model, self._send(method, path, body, repeatable=repeatable))

    def _pages(self, model: type[Model], path: str, params: Mapping[str, Any] | None = None) -> Iterator[Model]:
        return self._items(schemas.Page[model], path, params)  # type: ignore[valid-type]

    def _items(self, page: type[schemas.Page[T]], path: str, params: Mapping[str, Any] | None = None) -> Iterator[T]:
        """All items of a listing, asked for page by page as they are read."""
        next_url: str | None = path
        params = {"limit": MAX_PAGE_SIZE, **(params or {})}
        while next_url is not None:
            answer = self._send("GET", next_url, params=params)
            yield from parse(page, answer).items
            # The link carries all parameters. Its host is ignored: behind a proxy it may be another.
            link = answer.links.get("next", {}).get("url")
            next_url, params = (self._sender.below_root(link) if link else None), None


def _project(name: str) -> str:
    """A project's name as a part of a path; other names would lead to other resources."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise ClientError(
            f"{name!r} cannot be a project's name: it has up to 64 letters, digits, _ and -, and begins with a letter"
        )
    if name in RESERVED_PROJECT_NAMES:
        raise ClientError(f"{name!r} cannot be a project's name: it is reserved, as {_RESERVED} are")
    return name


_RESERVED = ", ".join(sorted(RESERVED_PROJECT_NAMES))


def _part(text: str) -> str:
    if text.strip(".") == "":
        raise ClientError(f"{text!r} is no name")
    return quote(text, safe="")


def _job(project: str, job_id: int) -> str:
    return f"/v4/{_project(project)}/jobs/{int(job_id)}"
