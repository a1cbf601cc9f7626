"""A valid request for every route of the API, with every field given, and a service in a state in which all succeed.

A route without an entry fails the tests that walk all routes, so that none can be forgotten.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from job_api import schemas
from tests.openapi import Operation, operations
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService

PROJECT, OTHER, DOOMED = "patents", "others", "doomed"
WORKER, LEAVING = "w-1", "w-leaving"
SHA256 = "0" * 64

HELD = {"worker_id": WORKER, "lease_seq": 1}
RUN = {
    "engine": "decimer",
    "engine_version": "2.8.1",
    "weights": "tiny",
    "weights_sha256": SHA256,
    "prepared": SHA256,
    "snapshot": "abc",
}
ROW = {
    "image": "a/1.png",
    "engine": "decimer",
    "status": "recognised",
    "image_sha256": SHA256,
    "width": 1,
    "height": 1,
    "frames": 1,
    "smiles": "CCO",
    "confidence": 0.9,
    "confidence_mean": 0.9,
    "confidence_min": 0.9,
    "n_tokens": 3,
    "truncated": False,
    "is_valid": True,
    "canonical_smiles": "CCO",
    "inchikey": "LFQSCWFLJHTTHZ-UHFFFAOYSA-N",
    "formula": "C2H6O",
    "flags": ["charged"],
    "normalized_smiles": "CCO",
    "molecular_weight": 46.07,
    "fragments": 1,
    "sequence": "01",
    "sub_sequence": "1",
    "part": "left",
    "tokens": ["C", "C", "O"],
    "token_probabilities": [0.9, 0.9, 0.9],
    "error_message": "none",
    "duration_ms": 1,
}
REVIEW = {
    "directory": "GET :v4:{project}:jobs:{job_id}:results",
    "job_id": None,
    "image": "1.png",
    "engine": "decimer",
    "review_status": "corrected",
    "corrected_smiles": "CCN",
    "note": "looked at",
    "smiles": "CCO",
}
COMPUTED = ("is_valid", "canonical_smiles", "normalized_smiles", "inchikey", "formula", "molecular_weight", "fragments")
CHEMISTRY = {name: ROW[name] for name in (*COMPUTED, "flags", "image", "engine", "sequence", "sub_sequence", "part")}
CLAIM = {
    "worker_id": WORKER,
    "claim_key": "another",
    "max_jobs": 1,
    "wait_seconds": 0,
    "hostname": "vm1",
    "version": "1",
}
LOAD = {"cpu_percent": 1.0, "memory_percent": 1.0, "processes": 1, "threads": 1, "images_per_second": 1.0}
LOG_LINE = {
    "level": "info",
    "message": "hello",
    "logger": "uworker",
    "traceback": "none",
    "project": PROJECT,
    "job_id": 1,
    "lease_seq": 1,
    "image": "a/1.png",
}
TOKEN = {"name": "n", "role": "worker", "project": PROJECT, "expires_in_seconds": 60}

BODIES: dict[str, dict[str, Any] | None] = {
    "GET /v4": None,
    "GET /v4/logs": None,
    "GET /v4/projects": None,
    "GET /v4/tokens": None,
    "GET /v4/users": None,
    "GET /v4/workers": None,
    "GET /v4/{project}": None,
    "GET /v4/{project}/failures": None,
    "GET /v4/{project}/directories": None,
    "GET /v4/{project}/jobs": None,
    "GET /v4/{project}/jobs/{job_id}": None,
    "GET /v4/{project}/jobs/{job_id}/images-done": None,
    "GET /v4/{project}/jobs/{job_id}/results": None,
    "GET /v4/{project}/jobs/{job_id}/results-done": None,
    "GET /v4/{project}/logs": None,
    "GET /v4/{project}/results": None,
    "GET /v4/{project}/reviews": None,
    "PUT /v4/users/{name}": {"password": "a long password", "role": "read", "project": PROJECT},
    "PUT /v4/{project}": {
        "source": "file:///data",
        "engine": "decimer",
        "engine_options": {"hand_drawn": "no"},
        "priority": 1,
        "max_failures": 3,
        "results_file": True,
        "image_name_pattern": r"_(?P<sequence>\d+)",
        "image_include": ["*.png"],
        "image_exclude": ["*_middle.png"],
        "keep_tokens": True,
        "price_per_worker_hour": 0.5,
    },
    "PUT /v4/{project}/reviews": {"reviews": [REVIEW, REVIEW | {"directory": None, "job_id": 1}]},
    "POST /v4/claim": CLAIM | {"claim_key": "yet-another"},
    "POST /v4/token": TOKEN,
    "POST /v4/tokens": TOKEN,
    "POST /v4/workers/{worker_id}/drain": None,
    "POST /v4/workers/{worker_id}/heartbeat": {
        "leases": [{"job_id": 1, "lease_seq": 1}],
        "load": LOAD,
        "hostname": "vm1",
        "version": "1",
    },
    "POST /v4/workers/{worker_id}/lift": None,
    "POST /v4/workers/{worker_id}/logs": {"lines": [LOG_LINE]},
    "POST /v4/workers/{worker_id}/quarantine": None,
    "POST /v4/{project}/claim": CLAIM,
    "POST /v4/{project}/jobs": {"directories": ["new"], "priority": 0},
    "POST /v4/{project}/jobs/actions": {
        "action": "rerun",
        "filter": {
            "all": False,
            "states": ["completed"],
            "worker_id": "w-9",
            "text": "x",
            "reason": "storage",
            "ids": [1],
            "failure": "job-0123456789ab",
        },
        "statuses": ["recognised"],
        "dry_run": False,
        "after": 0,
        "as_of": "2026-01-01T00:00:00Z",
    },
    "POST /v4/{project}/jobs/{job_id}/cancel": None,
    "POST /v4/{project}/jobs/{job_id}/complete": HELD | {"image_count": 1, "run": RUN, "rows": [ROW]},
    "POST /v4/{project}/jobs/{job_id}/fail": HELD | {"reason": "storage", "retryable": True, "message": "away"},
    "POST /v4/{project}/jobs/{job_id}/force-release": None,
    "POST /v4/{project}/jobs/{job_id}/release": HELD | {"reason": "released", "message": "why"},
    "POST /v4/{project}/jobs/{job_id}/rerun": {"statuses": ["recognised"]},
    "POST /v4/{project}/jobs/{job_id}/results": HELD | {"run": RUN, "rows": [ROW]},
    "POST /v4/{project}/jobs/{job_id}/retry": None,
    "POST /v4/{project}/pause": None,
    "POST /v4/{project}/results/chemistry": {"rows": [CHEMISTRY | {"job_id": 1, "seq": 1}]},
    "POST /v4/{project}/resume": None,
    # What ends things comes last.
    "DELETE /v4/tokens/{token_id}": None,
    "DELETE /v4/users/{name}": None,
    "DELETE /v4/workers/{worker_id}": None,
    "DELETE /v4/{project}": None,
}
QUERY: dict[str, dict[str, str | int]] = {
    "GET /v4/{project}/jobs/{job_id}/images-done": {"worker_id": WORKER, "lease_seq": 1},
    "GET /v4/{project}/jobs/{job_id}/results-done": {"worker_id": WORKER, "lease_seq": 1},
}
# Called after all others but the DELETEs, when other calls have queued jobs again, and while WORKER may still claim.
STEERING = ("drain", "quarantine", "lift")


@dataclass
class Stage:
    """A service on which every route can be called with success, once."""

    service: RunningService
    http: httpx.Client
    operations: list[Operation]
    worker_token: str
    job_ids: dict[str, int]
    token_id: int

    def path(self, operation: Operation, **other: Any) -> str:
        """The operation's path with the arguments that suit it, or `other` ones."""
        delete = operation.method == "DELETE"
        arguments = {
            "project": DOOMED if delete else PROJECT,
            "job_id": self.job_ids.get(operation.key),
            "worker_id": LEAVING if delete else WORKER,
            "token_id": self.token_id,
            "name": "somebody",
        }
        return operation.path.format(**{**arguments, **other})

    def call(self, operation: Operation, token: str | None, path: str | None = None, **options: Any) -> httpx.Response:
        """Send the operation's request with a token; `options` replace what is sent."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= options.pop("headers", {})
        if operation.takes_body and not {"content", "json"} & options.keys():
            options["json"] = BODIES[operation.key]
        options.setdefault("params", QUERY.get(operation.key))
        return self.http.request(operation.method, path or self.path(operation), headers=headers, **options)

    def right_token(self, operation: Operation) -> str:
        """A token that may call the operation."""
        if operation.role == "worker":
            return self.worker_token
        return self.service.token("admin" if operation.role == "any" else str(operation.role))

    def right_call(self, operation: Operation, path: str | None = None, **options: Any) -> httpx.Response:
        """Send the operation's request as somebody who may."""
        if operation.key == "POST /v4/token":
            return self.call(operation, None, path, auth=("admin", self.service.admin_password), **options)
        return self.call(operation, self.right_token(operation), path, **options)

    def content(self) -> dict[str, Any]:
        """All rows of the tables that a request may change."""
        tables = ["users", "tokens", "projects", "jobs", "attempts", "results", "reviews", "provenances", "workers"]
        tables.append("log_lines")
        return {table: self.service.sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}  # noqa: S608


def open_stage(service: RunningService, http: httpx.Client) -> Stage:
    """Bring a fresh service into the state that the requests above need."""
    routes = [operation for operation in operations(service.root) if operation.role is not None]
    routes.sort(key=lambda o: list(BODIES).index(o.key) if o.key in BODIES else -1)
    routes.sort(key=lambda o: (o.method == "DELETE", o.path.endswith(STEERING), "claim" in o.path))
    admin = service.client("admin")
    for project in (PROJECT, OTHER, DOOMED):
        admin.put_project(project, schemas.ProjectSettings(source="file:///data"))
    with_job = [operation for operation in routes if "job_id" in operation.parameters("path")]
    admin.add_jobs(PROJECT, [operation.key.replace("/", ":") for operation in with_job])
    ids = [job.id for job in admin.jobs(PROJECT)]
    job_ids = {operation.key: job_id for operation, job_id in zip(with_job, ids, strict=True)}
    admin.put_user("somebody", schemas.NewUser(password="a long password", role=schemas.Role.READ))
    holder = Holder(service.client("worker"), WORKER)
    leases = {lease.job_id: lease for lease in holder.claim(PROJECT, max_jobs=100)}
    jobs = "POST /v4/{project}/jobs/{job_id}/"
    holder.release(leases[job_ids[jobs + "cancel"]])
    holder.fail(leases[job_ids[jobs + "retry"]], retryable=False)
    holder.complete(leases[job_ids[jobs + "rerun"]], 1, "a/1.png")
    holder.post(leases[job_ids["GET /v4/{project}/jobs/{job_id}/results"]], "1.png")
    Holder(holder.client, LEAVING).heartbeat()
    doomed = admin.new_token(schemas.NewToken(name="doomed", role=schemas.Role.WORKER))
    return Stage(service, http, routes, service.token("worker"), job_ids, doomed.id)
