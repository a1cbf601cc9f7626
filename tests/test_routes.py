"""Every route refuses whom it must, changes nothing then, and otherwise answers as the OpenAPI document declares."""

from collections.abc import Iterator

import httpx
import pytest

from job_api.schemas import NewToken, Role
from tests.openapi import Operation, kind_of, operations
from tests.plugins.service import RunningService
from tests.stage import BODIES, OTHER, PROJECT, QUERY, Stage, open_stage

WITHOUT_LOGIN = {"GET /healthz", "GET /readyz", "GET /metrics"}
# Who includes whom, as docs/design.md says it.
MAY = {"admin": {"admin", "submit", "read"}, "submit": {"submit", "read"}, "read": {"read"}, "worker": {"worker"}}


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.root, timeout=20) as client:
        yield client


@pytest.fixture
def stage(service: RunningService, http: httpx.Client) -> Stage:
    return open_stage(service, http)


def test_each_route_has_a_request_in_the_table_and_a_role(service: RunningService) -> None:
    found = operations(service.root)
    assert {operation.key for operation in found if operation.role is None} == WITHOUT_LOGIN
    with_role = [operation for operation in found if operation.role is not None]
    assert {operation.key for operation in with_role} == set(BODIES)
    for operation in with_role:
        assert operation.role in {"any", *MAY}, operation.key
        assert operation.document["security"], operation.key
        assert (BODIES[operation.key] is not None) == operation.takes_body, operation.key
        # A worker's words always name the worker, or its id could not be checked.
        assert (operation.role == "worker") == names_its_worker(operation), operation.key


def names_its_worker(operation: Operation) -> bool:
    steered = operation.role == "submit"  # by people, who own no worker
    in_body = "worker_id" in (BODIES[operation.key] or {})
    return in_body or (not steered and "worker_id" in operation.parameters("path") | QUERY.get(operation.key, {}))


def test_every_route_refuses_everybody_who_may_not_and_nothing_changes(stage: Stage) -> None:
    service, admin = stage.service, stage.service.client("admin")
    revoked = admin.new_token(NewToken(name="revoked", role=Role.ADMIN))
    admin.revoke_token(revoked.id)
    expired = admin.new_token(NewToken(name="expired", role=Role.ADMIN, expires_in_seconds=60))
    service.sql("UPDATE tokens SET expires_at = now() - interval '1 second' WHERE id = $1", expired.id)
    unknown = {"none": None, "garbage": "dj_garbage", "revoked": revoked.token, "expired": expired.token}
    tokens = {role: service.token(role) for role in MAY}
    bound = {role: service.token(role, OTHER) for role in MAY}
    stranger = service.token("worker", fresh=True)
    before = stage.content()
    refusals = 0

    def refused(operation: Operation, token: str | None, status: int, kind: str, path: str | None = None) -> None:
        nonlocal refusals
        answer = stage.call(operation, token, path)
        assert (answer.status_code, kind_of(answer)) == (status, kind), f"{operation.key} {path}: {answer.text}"
        operation.check(answer)
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        refusals += 1

    for operation in stage.operations:
        in_path = operation.parameters("path")
        for token in unknown.values():
            refused(operation, token, 401, "unauthenticated")
        for role, token in tokens.items():
            if (operation.role != "any" and operation.role not in MAY[role]) or operation.key == "POST /v4/token":
                refused(operation, token, 403, "forbidden")
        for token in bound.values():
            if "project" in in_path:
                refused(operation, token, 403, "forbidden")
                refused(operation, token, 403, "forbidden", stage.path(operation, project="not-there"))
            elif operation.unbound:
                refused(operation, token, 403, "forbidden")
        if "job_id" in in_path:
            token = stage.right_token(operation)
            refused(operation, token, 404, "not-found", stage.path(operation, project=OTHER))
            refused(operation, token, 404, "not-found", stage.path(operation, project="not-there"))
            refused(operation, token, 404, "not-found", stage.path(operation, job_id=10**9))
        if operation.role == "worker":
            refused(operation, stranger, 403, "worker-id-taken")
        after = stage.content()
        for table, rows in before.items():
            assert after[table] == rows, f"a refused {operation.key} changed {table}"
    assert refusals > 10 * len(stage.operations)


def test_every_route_answers_whom_it_must_as_it_is_declared(stage: Stage) -> None:
    for operation in stage.operations:
        answer = stage.right_call(operation)
        operation.check(answer)
        assert answer.is_success, f"{operation.key} -> {answer.status_code} {answer.text}"


def test_a_token_of_the_right_project_may_do_all_that_does_not_concern_others(stage: Stage) -> None:
    """Except the worker's calls: its id belongs to another token here, and the refusal is the id's."""
    for operation in stage.operations:
        if operation.unbound or operation.method == "DELETE" or operation.key == "POST /v4/token":
            continue
        role = "read" if operation.role == "any" else str(operation.role)
        answer = stage.call(operation, stage.service.token(role, PROJECT))
        if operation.role == "worker":
            assert kind_of(answer) == "worker-id-taken", operation.key
        else:
            assert answer.is_success, f"{operation.key} -> {answer.status_code} {answer.text}"


def test_what_needs_no_login_answers_as_declared(service: RunningService, http: httpx.Client) -> None:
    for operation in operations(service.root):
        if operation.key in WITHOUT_LOGIN:
            answer = http.request(operation.method, operation.path)
            assert answer.status_code == 200
            operation.check(answer)
