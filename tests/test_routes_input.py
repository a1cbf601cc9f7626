"""Bad input to any route is refused in a problem document as declared: never a crash, never an echo of a secret."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from job_api.schemas import RESERVED_PROJECT_NAMES
from tests.openapi import Operation, kind_of, problem_of, replaced, texts
from tests.plugins.service import RunningService
from tests.stage import BODIES, PROJECT, QUERY, Stage, open_stage

MAX_BODY_BYTES = 20_000
UNREADABLE = [b"", b"{", b"\xff\xfe", b"[" * 10_000, b'"text"', b"null", b"[]"]


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.root, timeout=20) as client:
        yield client


@pytest.fixture
def stage(service: RunningService, http: httpx.Client) -> Stage:
    return open_stage(service, http)


def declared(operation: Operation, answer: httpx.Response, what: object) -> None:
    """The answer is no crash, blames nothing but the request, and is declared."""
    assert answer.status_code < 500, f"{operation.key} {what!r} -> {answer.status_code} {answer.text}"
    operation.check(answer)


def is_text(operation: Operation, schema: Any) -> bool:
    schema = operation.resolve(schema)
    return any(operation.resolve(one).get("type") == "string" for one in schema.get("anyOf", [schema]))


def is_integer(schema: Any) -> bool:
    return any(one.get("type") == "integer" for one in schema.get("anyOf", [schema]))


def test_the_requests_of_the_table_hold_every_declared_field(stage: Stage) -> None:
    def whole(operation: Operation, value: Any, schema: Any, where: str) -> None:
        schema = operation.resolve(schema)
        if "anyOf" in schema:
            fitting = [one for one in schema["anyOf"] if operation.fits(value, one)]
            assert fitting, where
            schema = operation.resolve(fitting[0])
        if isinstance(value, dict):
            for name, field in schema.get("properties", {}).items():
                assert name in value, f"{where}: the table gives no {name}"
                whole(operation, value[name], field, f"{where}.{name}")
        elif isinstance(value, list):
            for item in value:
                whole(operation, item, schema["items"], where)

    for operation in stage.operations:
        if operation.takes_body:
            whole(operation, BODIES[operation.key], operation.body_schema(), operation.key)


@pytest.mark.parametrize("bad", ["a\0b", "\udcff.png"], ids=["nul", "surrogate"])
def test_a_text_that_cannot_be_stored_is_refused_wherever_it_stands(stage: Stage, bad: str) -> None:
    tried = 0
    for operation in stage.operations:
        body = BODIES[operation.key]
        for where in texts(body):
            content = json.dumps(replaced(body, where, bad)).encode()
            answer = stage.right_call(operation, content=content, headers={"Content-Type": "application/json"})
            declared(operation, answer, where)
            tried += 1
        in_url = bad.encode(errors="surrogatepass")
        for name, schema in operation.parameters("query").items():
            if is_text(operation, schema):
                url = httpx.QueryParams(QUERY.get(operation.key, {})).set(name, "x")
                raw = stage.path(operation) + f"?{url}".replace(f"{name}=x", f"{name}={quoted(in_url)}")
                declared(operation, stage.right_call(operation, raw, params=None), name)
                tried += 1
        for name, schema in operation.parameters("path").items():
            if is_text(operation, schema):
                answer = stage.right_call(operation, stage.path(operation, **{name: quoted(in_url)}))
                assert answer.status_code in (404, 422), f"{operation.key} {name} -> {answer.text}"
                declared(operation, answer, name)
                tried += 1
    assert tried > 100


def quoted(raw: bytes) -> str:
    return "".join(f"%{byte:02x}" for byte in raw)


def test_a_key_that_cannot_be_stored_is_refused(stage: Stage) -> None:
    [put] = [operation for operation in stage.operations if operation.key == "PUT /v4/{project}"]
    for options in ({"a\0b": 1}, {"\ud800": 1}, {"a": ["\0"]}, {"a": {"b": "\udfff"}}):
        content = json.dumps({"source": "s", "engine_options": options}).encode()
        answer = stage.right_call(put, content=content, headers={"Content-Type": "application/json"})
        assert kind_of(answer) == "invalid-request", options


def test_numbers_out_of_range_and_ids_that_are_none_are_refused(stage: Stage) -> None:
    for operation in stage.operations:
        for name in operation.parameters("path"):
            if name.endswith("_id") and name != "worker_id":
                for bad in (2**63, -1, 0, "abc", "1.5", "9" * 5000, "%20"):
                    answer = stage.right_call(operation, stage.path(operation, **{name: bad}))
                    assert answer.status_code == 422, f"{operation.key} {name}={bad} -> {answer.text}"
                    declared(operation, answer, bad)
        for name, schema in operation.parameters("query").items():
            if is_integer(schema):
                for bad in (2**63, -1, "abc", "", "1e3"):
                    params = {**QUERY.get(operation.key, {}), name: str(bad)}
                    answer = stage.right_call(operation, params=params)
                    assert answer.status_code == 422, f"{operation.key} {name}={bad} -> {answer.text}"
                    declared(operation, answer, bad)


def test_a_worker_id_is_of_few_characters(stage: Stage) -> None:
    for operation in stage.operations:
        body = BODIES[operation.key] or {}
        for bad in ("-x", ".x", "a b", "a;b", "ü", "a\n", "x" * 129):
            if "worker_id" in operation.parameters("path"):
                answer = stage.right_call(operation, stage.path(operation, worker_id=quoted(bad.encode())))
            elif "worker_id" in body:
                answer = stage.right_call(operation, json=body | {"worker_id": bad})
            else:
                continue
            assert kind_of(answer) == "invalid-request", f"{operation.key} {bad!r}"


def test_reserved_and_impossible_names_are_no_projects(stage: Stage) -> None:
    by_key = {operation.key: operation for operation in stage.operations}
    put, token, user = (by_key[k] for k in ("PUT /v4/{project}", "POST /v4/tokens", "PUT /v4/users/{name}"))
    for name in (*RESERVED_PROJECT_NAMES, "1a", "a b", "a" * 65, "ä", "a%0a", "_"):
        answer = stage.right_call(put, stage.path(put, project=name))
        assert kind_of(answer) == "invalid-request", name
        for operation in (token, user):
            answer = stage.right_call(operation, json=(BODIES[operation.key] or {}) | {"project": name})
            assert kind_of(answer) == "invalid-request", name
    taken = {path.split("/")[2] for path in (o.path for o in stage.operations) if path.count("/") > 1}
    assert {word for word in taken if not word.startswith("{")} == RESERVED_PROJECT_NAMES


NOT_KEPT = (
    "https://user:SECRET@host/images",
    "https://host/images?sig=SECRET",
    "az://container/images?sv=2024&sig=SECRET",
    "s3://KEY:SECRET@bucket/images",
    "abfss://container@SECRET.example.com/images",
    "ftp://host/SECRET",
    "images",
)


def test_a_source_with_a_credential_in_it_or_of_no_kind_is_neither_kept_nor_echoed(stage: Stage) -> None:
    by_key = {operation.key: operation for operation in stage.operations}
    put, get = by_key["PUT /v4/{project}"], by_key["GET /v4/{project}"]
    another = stage.path(put, project="another")
    for source in NOT_KEPT:
        answer = stage.right_call(put, json={"source": source})
        assert kind_of(answer) == "invalid-request", source
        put.check(answer)
        assert "SECRET" not in answer.text, source
        assert stage.right_call(get).json()["source"] != source
        assert kind_of(stage.right_call(put, another, json={"source": source})) == "invalid-request", source
    assert stage.right_call(get, stage.path(get, project="another")).status_code == 404


def test_a_body_that_is_no_json_is_refused_as_such(stage: Stage) -> None:
    for operation in stage.operations:
        if not operation.takes_body:
            continue
        for content in UNREADABLE:
            answer = stage.right_call(operation, content=content, headers={"Content-Type": "application/json"})
            assert kind_of(answer) == "invalid-request", f"{operation.key} {content[:20]!r} -> {answer.text}"
            operation.check(answer)


@pytest.mark.service(max_body_bytes=MAX_BODY_BYTES)
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_its_size(stage: Stage) -> None:
    def in_chunks() -> Iterator[bytes]:
        yield b'{"lines": ["'
        for _ in range(MAX_BODY_BYTES // 1000):
            yield b"x" * 1000
        yield b'"]}'

    for operation in stage.operations:
        if operation.takes_body:
            for content in (b" " * (MAX_BODY_BYTES + 1), in_chunks()):
                answer = stage.right_call(operation, content=content, headers={"Content-Type": "application/json"})
                assert kind_of(answer) == "too-large", f"{operation.key} -> {answer.text}"
                assert str(MAX_BODY_BYTES) in problem_of(answer).detail
                operation.check(answer)
    [put] = [operation for operation in stage.operations if operation.key == "PUT /v4/{project}"]
    fitting = json.dumps(BODIES[put.key]).encode().ljust(MAX_BODY_BYTES)
    assert stage.right_call(put, content=fitting, headers={"Content-Type": "application/json"}).status_code == 200


def test_what_is_refused_is_never_repeated_to_the_caller(stage: Stage) -> None:
    secret = "hunter2-hunter2"
    for operation in stage.operations:
        body = BODIES[operation.key]
        for where in texts(body):
            if len(where) == 1:
                for value in ([secret], {"x": secret}, secret * 500):
                    answer = stage.right_call(operation, json=replaced(body, where, value))
                    assert secret not in answer.text, f"{operation.key} {where}"
        if operation.takes_body:
            for content in (f'{{"password": "{secret}"', f'"{secret}"', f'["{secret}"]'):
                headers = {"Content-Type": "application/json"}
                answer = stage.right_call(operation, content=content.encode(), headers=headers)
                assert kind_of(answer) == "invalid-request"
                assert secret not in answer.text, f"{operation.key} {content}"


def test_unknown_paths_and_methods_are_said_in_problem_documents(stage: Stage, http: httpx.Client) -> None:
    login = {"Authorization": f"Bearer {stage.service.token('admin')}"}
    for path in ("/", "/v3", "/v4/a/b/c/d", f"/v4/{PROJECT}/nothing", "/favicon.ico"):
        answer = http.get(path, headers=login)
        assert kind_of(answer) == "not-found", path
    for path in {operation.path for operation in stage.operations}:
        if "{" not in path or path.count("/") > 3:
            answer = http.request("PATCH", path.format(project=PROJECT, job_id=1, worker_id="w", token_id=1, name="n"))
            assert kind_of(answer) == "method-not-allowed", path
            assert answer.headers["Allow"]
