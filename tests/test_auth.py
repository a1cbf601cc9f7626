"""Who may log in, what tokens they get, when those end, and where secrets must never show."""

import base64
import logging
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import argon2
import asyncpg
import httpx
import pytest

from job_api import auth, schemas
from job_api.auth import FAILED_LOGINS_OF_HOST_PER_MINUTE, FAILED_LOGINS_PER_MINUTE
from job_api.client import ApiError, Client, NotFound, Refused
from job_api.main import PASSWORD_FILE
from job_api.schemas import NewToken, NewUser, Role
from tests.openapi import kind_of
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter, run

PROJECT, OTHER = "patents", "others"
PASSWORD = "Schlüssel-für-日本-🔑"


@pytest.fixture(autouse=True)
def cheap_hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the hundreds of passwords here one alone is hashed as slowly as others shall be."""
    if request.node.name != "test_the_password_that_is_stored_is_a_slow_hash":
        cheap = partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
        monkeypatch.setattr(argon2, "PasswordHasher", cheap)


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    for project in (PROJECT, OTHER):
        client.put_project(project, schemas.ProjectSettings(source="file:///data"))
    return client


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def get(service: RunningService, headers: dict[str, str] | None = None, path: str = "/v4") -> httpx.Response:
    return httpx.get(service.root + path, headers=headers, timeout=60)


def token_of(service: RunningService, name: str, password: str = PASSWORD, **wanted: object) -> httpx.Response:
    return httpx.post(f"{service.root}/v4/token", headers=basic(name, password), json=wanted)


# --- logging in ---


def test_a_user_logs_in_with_any_password_that_utf_8_can_hold(service: RunningService, admin: Client) -> None:
    for password in (PASSWORD, "colons:are:allowed:", " spaces around ", "nul \0 in the middle"):
        admin.put_user("anna", NewUser(password=password, role=Role.READ))
        assert get(service, basic("anna", password)).status_code == 200
        for wrong in (password + "x", password[:-1]):
            assert kind_of(get(service, basic("anna", wrong))) == "unauthenticated"


NO_LOGINS = [
    *("", "Basic", "Basic !!!", "Basic YWRtaW4=", "basic Og==", "Digest x"),
    "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
    *("Bearer", "Bearer a b", "Bearer " + "x" * 10_000),
]


def test_what_is_no_login_is_refused_in_words(service: RunningService) -> None:
    for header in NO_LOGINS:
        answer = get(service, {"Authorization": header})
        assert kind_of(answer) == "unauthenticated", header
        assert {"Bearer", "Basic"} <= set(re.findall(r"\w+", answer.headers["WWW-Authenticate"]))


def test_an_odd_name_is_a_wrong_name(service: RunningService) -> None:
    for name in ("nobody", "", "a\0b", "ä", "a\nb", "admin\0", "' OR 1=1 --", "x" * 5000):
        assert kind_of(get(service, basic(name, service.admin_password))) == "unauthenticated", name


def test_no_user_gets_a_name_that_cannot_be_logged_in_with(service: RunningService) -> None:
    body = {"password": PASSWORD, "role": "read"}
    for name in ("a b", "1a", "ä", "a%00", "x" * 65, "a:b", "%ff"):
        answer = httpx.put(f"{service.root}/v4/users/{name}", headers=bearer(service.token("admin")), json=body)
        assert kind_of(answer) == "invalid-request", name


def test_the_scheme_is_read_in_any_case(service: RunningService) -> None:
    assert get(service, {"Authorization": f"bEARER {service.token('read')}"}).status_code == 200


# --- what tokens may be made ---

MAY_MAKE = {"admin": {*Role}, "submit": {"submit", "read", "worker"}, "read": {"read"}, "worker": {"worker"}}


def test_a_login_makes_tokens_of_its_own_role_or_lesser_ones(service: RunningService, admin: Client) -> None:
    for own in Role:
        admin.put_user("anna", NewUser(password=PASSWORD, role=own))
        assert token_of(service, "anna").json()["role"] == own
        for wanted in Role:
            answer = token_of(service, "anna", role=wanted)
            if wanted in MAY_MAKE[own]:
                made = schemas.IssuedToken.model_validate_json(answer.content)
                assert made.role == wanted
                assert get(service, bearer(made.token)).status_code == 200
            else:
                assert kind_of(answer) == "forbidden"


def test_a_token_is_for_no_more_projects_than_its_maker(service: RunningService, admin: Client) -> None:
    admin.put_user("anna", NewUser(password=PASSWORD, role=Role.SUBMIT, project=PROJECT))
    for role in ("submit", "worker"):
        assert token_of(service, "anna", role=role).json()["project"] == PROJECT
        assert token_of(service, "anna", role=role, project=PROJECT).json()["project"] == PROJECT
        assert kind_of(token_of(service, "anna", role=role, project=OTHER)) == "forbidden"
    narrowed = token_of(service, "admin", service.admin_password, project=PROJECT).json()["token"]
    assert get(service, bearer(narrowed), f"/v4/{PROJECT}").status_code == 200
    assert kind_of(get(service, bearer(narrowed), f"/v4/{OTHER}")) == "forbidden"
    assert [project["name"] for project in get(service, bearer(narrowed), "/v4/projects").json()["items"]] == [PROJECT]


def test_a_token_cannot_make_a_token_of_longer_life(service: RunningService) -> None:
    headers = bearer(service.token("admin"))
    assert kind_of(httpx.post(f"{service.root}/v4/token", headers=headers, json={})) == "forbidden"


@pytest.mark.service(token_seconds=1000)
def test_a_session_token_ends_by_itself(service: RunningService) -> None:
    for wanted in ({}, {"role": "read"}):
        made = schemas.IssuedToken.model_validate(token_of(service, "admin", service.admin_password, **wanted).json())
        assert made.expires_at is not None, wanted
        assert abs((made.expires_at - made.created_at).total_seconds() - 1000) < 1
        assert made.username == "admin"


# --- when tokens end ---


def test_a_token_ends_at_its_time_by_the_clock_of_the_database(service: RunningService, admin: Client) -> None:
    made = admin.new_token(NewToken(name="short", role=Role.READ, expires_in_seconds=3600))
    service.sql("UPDATE tokens SET expires_at = now() - interval '1 millisecond' WHERE id = $1", made.id)
    assert kind_of(get(service, bearer(made.token))) == "unauthenticated"
    service.sql("UPDATE tokens SET expires_at = now() + interval '1 hour' WHERE id = $1", made.id)
    assert get(service, bearer(made.token)).status_code == 200


def test_a_token_about_to_end_is_not_remembered_beyond_its_end(
    service: RunningService, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "TOKEN_CACHE_SECONDS", 60.0)
    made = admin.new_token(NewToken(name="short", role=Role.READ, expires_in_seconds=50))
    assert get(service, bearer(made.token)).status_code == 200
    service.sql("UPDATE tokens SET expires_at = now() - interval '1 millisecond' WHERE id = $1", made.id)
    assert kind_of(get(service, bearer(made.token))) == "unauthenticated"


def test_a_revoked_token_is_refused_at_once(service: RunningService, admin: Client) -> None:
    made = admin.new_token(NewToken(name="leaked", role=Role.ADMIN))
    assert get(service, bearer(made.token)).status_code == 200
    admin.revoke_token(made.id)
    assert kind_of(get(service, bearer(made.token))) == "unauthenticated"
    admin.revoke_token(made.id)
    with pytest.raises(ApiError, match="no token"):
        admin.revoke_token(10**6)


@pytest.mark.parametrize("how", ["deleted", "new password"])
def test_tokens_end_with_the_user_and_with_the_password(service: RunningService, admin: Client, how: str) -> None:
    admin.put_user("anna", NewUser(password=PASSWORD, role=Role.ADMIN))
    tokens = [token_of(service, "anna", **wanted).json()["token"] for wanted in ({}, {"role": "submit"})]
    assert all(get(service, bearer(token)).status_code == 200 for token in tokens)
    if how == "deleted":
        admin.delete_user("anna")
    else:
        admin.put_user("anna", NewUser(password="another password", role=Role.ADMIN))
        assert get(service, basic("anna", "another password")).status_code == 200
    for token in tokens:
        assert kind_of(get(service, bearer(token))) == "unauthenticated"
    assert kind_of(get(service, basic("anna", PASSWORD))) == "unauthenticated"


def test_one_cannot_delete_oneself(service: RunningService) -> None:
    with Client(service.root, username="admin", password=service.admin_password) as admin:
        with pytest.raises(Refused, match="oneself"):
            admin.delete_user("admin")
        assert [user.name for user in admin.users()] == ["admin"]


# --- guessing ---


def test_guesses_are_limited_for_one_name_from_one_address(service: RunningService, admin: Client) -> None:
    for name in ("anna", "berta"):
        admin.put_user(name, NewUser(password=PASSWORD, role=Role.READ))
    for _ in range(FAILED_LOGINS_PER_MINUTE - 1):
        assert kind_of(get(service, basic("anna", "wrong"))) == "unauthenticated"
        assert get(service, basic("anna", PASSWORD)).status_code == 200
    assert kind_of(get(service, basic("anna", "wrong"))) == "unauthenticated"
    for password in ("wrong", PASSWORD):
        answer = get(service, basic("anna", password))
        assert kind_of(answer) == "too-many-requests"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert get(service, basic("berta", PASSWORD)).status_code == 200
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as elsewhere:
        assert elsewhere.get(f"{service.root}/v4", headers=basic("anna", PASSWORD)).status_code == 200


def test_guesses_made_at_once_are_limited_as_well(service: RunningService) -> None:
    tries = 4 * FAILED_LOGINS_PER_MINUTE
    together = threading.Barrier(tries)

    def guess(number: int) -> int:
        together.wait()
        return get(service, basic("admin", f"guess {number}")).status_code

    with ThreadPoolExecutor(tries) as pool:
        statuses = list(pool.map(guess, range(tries)))
    assert statuses.count(401) <= FAILED_LOGINS_PER_MINUTE + 2
    assert statuses.count(401) + statuses.count(429) == tries


# --- secrets ---


def test_the_first_password_lies_in_a_file_of_its_owner_alone(
    start_service: ServiceStarter, make_database: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service(database_url=make_database())
    file = Path(service.settings.data_dir) / PASSWORD_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(service.admin_password) >= 20
    assert get(service, basic("admin", service.admin_password)).status_code == 200
    assert str(file) in caplog.text
    assert start_service(database_url=make_database()).admin_password != service.admin_password
    file.unlink()
    start_service(database_url=service.database_url)
    assert not file.exists(), "an administrator is made once"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def test_no_secret_is_in_any_log_line_answer_or_table(
    log: pytest.LogCaptureFixture, start_service: ServiceStarter, make_database: Callable[[], str]
) -> None:
    service = start_service(database_url=make_database())
    admin = service.client("admin")
    answers = []
    for name, password in (("admin", "wrong password"), ("nobody", PASSWORD), ("admin", service.admin_password)):
        answers.append(get(service, basic(name, password)))
    made = admin.new_token(NewToken(name="worker", role=Role.WORKER))
    session = token_of(service, "admin", service.admin_password).json()["token"]
    admin.put_user("anna", NewUser(password=PASSWORD, role=Role.READ))
    answers.append(get(service, bearer(made.token + "x")))
    answers.append(httpx.post(f"{service.root}/v4/tokens", headers=bearer(session), json={"role": PASSWORD}))
    bad_bodies = ({"password": PASSWORD}, {"password": PASSWORD, "role": "read", "project": "claim"}, [PASSWORD])
    answers += [httpx.put(f"{service.root}/v4/users/anna", headers=bearer(session), json=b) for b in bad_bodies]
    answers += [get(service, bearer(session), path) for path in ("/v4/tokens", "/v4/users", "/v4/workers", "/metrics")]
    secrets = [service.admin_password, "wrong password", PASSWORD, made.token, session, service.token("admin")]
    secrets += [basic("admin", service.admin_password)["Authorization"].removeprefix("Basic ")]
    said = "\n".join([*log.messages, log.text, *(answer.text for answer in answers)])
    assert "made the user" in said, "the log is heard"
    for secret in secrets:
        assert secret not in said
        assert rows_holding(service, secret) == []
    assert rows_holding(service, "anna") == ["users"], "the tables are searched"


def rows_holding(service: RunningService, text: str) -> list[str]:
    """Tables with a row in which a text stands, in clear, as hexadecimal digits or in base64."""
    tables = [row["name"] for row in service.sql("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")]
    assert {"users", "tokens", "log_lines", "workers"} <= set(tables)
    forms = [text, text.encode().hex(), base64.b64encode(text.encode()).decode()]
    return [
        table
        for table in tables
        if service.sql(f"SELECT 1 FROM {table} AS r, unnest($1::text[]) f WHERE position(f IN r::text) > 0", forms)  # noqa: S608
    ]


def test_the_password_that_is_stored_is_a_slow_hash(service: RunningService) -> None:
    service.client("admin").put_user("anna", NewUser(password=PASSWORD, role=Role.READ))
    [user] = service.sql("SELECT password_hash FROM users WHERE name = 'anna'")
    used, usual = argon2.extract_parameters(user["password_hash"]), argon2.PasswordHasher()
    assert used.type is argon2.Type.ID
    assert used.time_cost >= usual.time_cost
    assert used.memory_cost >= usual.memory_cost
    assert all(len(row["token_hash"]) == 32 for row in service.sql("SELECT token_hash FROM tokens"))


def test_what_machines_ask_needs_no_login(service: RunningService) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        assert get(service, path=path).status_code == 200


def test_liveness_does_not_touch_the_database(service: RunningService) -> None:
    """The database is taken away from it, and readiness says so while liveness does not."""
    name = service.database_url.rpartition("/")[2].partition("?")[0]
    other = service.database_url.replace(name, "postgres")
    _rename(other, name, f"{name}_away")
    try:
        answer = get(service, path="/readyz")
        assert kind_of(answer) == "database-unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
        assert get(service, path="/healthz").status_code == 200
        assert get(service, path="/metrics").status_code == 200
    finally:
        _rename(other, f"{name}_away", name)
    assert get(service, path="/readyz").status_code == 200


def _rename(url: str, name: str, new: str) -> None:
    async def rename() -> None:
        connection = await asyncpg.connect(url)
        try:
            # Else the service may connect anew between the two, and nothing that is in use can be renamed.
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            await connection.execute(f"ALTER DATABASE {name} RENAME TO {new}")
            await connection.execute(f"ALTER DATABASE {new} ALLOW_CONNECTIONS true")
        finally:
            await connection.close()

    run(rename())


def test_the_last_administrator_stays_one(service: RunningService) -> None:
    admin = service.client("admin")
    for role, project in ((schemas.Role.READ, None), (schemas.Role.ADMIN, "patents")):
        with pytest.raises(ApiError, match="only administrator"):
            admin.put_user("admin", schemas.NewUser(password="another password", role=role, project=project))
    with Client(service.root, username="admin", password=service.admin_password) as still:
        assert [user.role for user in still.users()] == ["admin"]


@pytest.mark.parametrize("header", ["Basic \u00e9", "Basic ====", "Basic !", "Bearer", "Bearer \u00e9", "Digest x", ""])
def test_a_login_that_cannot_be_read_is_refused(service: RunningService, header: str) -> None:
    answer = httpx.get(f"{service.root}/v4", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.json()["type"].endswith("unauthenticated")


def test_wrong_names_are_limited_too(service: RunningService) -> None:
    answers = [
        get(service, {**basic(f"user{number}", "x"), "X-Forwarded-For": f"10.0.0.{number}"})
        for number in range(FAILED_LOGINS_OF_HOST_PER_MINUTE + 1)
    ]
    assert [answer.status_code for answer in answers] == [401] * FAILED_LOGINS_OF_HOST_PER_MINUTE + [429]


# --- what the role submit may do with tokens ---


def test_submit_makes_tokens_of_workers_and_no_others(service: RunningService, admin: Client) -> None:
    submit = service.client("submit")
    made = submit.new_token(NewToken(name="fleet", role=Role.WORKER, project=PROJECT, expires_in_seconds=3600))
    assert (made.role, made.project, made.username) == (Role.WORKER, PROJECT, None)
    assert made.expires_at is not None
    assert get(service, bearer(made.token)).json()["caller"]["role"] == "worker"
    for role in (None, Role.ADMIN, Role.SUBMIT, Role.READ):
        with pytest.raises(Refused, match="only make tokens of the role worker"):
            submit.new_token(NewToken(name="more", role=role, project=PROJECT))
    for lesser in ("read", "worker"):
        with pytest.raises(Refused, match="needs the role submit"):
            service.client(lesser).new_token(NewToken(name="more", role=Role.WORKER))
    assert [token.name for token in submit.tokens()] == ["fleet", "test-worker"]


@pytest.mark.parametrize("role", ["submit", "admin"])
def test_a_login_of_one_project_rules_the_tokens_of_its_workers_alone(
    service: RunningService, admin: Client, role: str
) -> None:
    others = [
        admin.new_token(NewToken(name="another project's", role=Role.WORKER, project=OTHER)),
        admin.new_token(NewToken(name="of all projects", role=Role.WORKER)),
        admin.new_token(NewToken(name="a reader's", role=Role.READ, project=PROJECT)),
    ]
    bound = service.client(role, PROJECT)
    mine = bound.new_token(NewToken(name="mine", role=Role.WORKER))
    assert mine.project == PROJECT, "and not one of all projects"
    with pytest.raises(Refused, match=f"only see the project {PROJECT}"):
        bound.new_token(NewToken(name="theirs", role=Role.WORKER, project=OTHER))
    with pytest.raises(Refused, match="only make tokens of the role worker"):
        bound.new_token(NewToken(name="more", role=Role.READ))
    assert [token.name for token in bound.tokens()] == ["mine"]
    for other in others:
        with pytest.raises(ApiError, match="that you may revoke"):
            bound.revoke_token(other.id)
        assert get(service, bearer(other.token)).status_code == 200
    bound.revoke_token(mine.id)
    assert kind_of(get(service, bearer(mine.token))) == "unauthenticated"
    bound.revoke_token(mine.id)


def test_sessions_of_users_are_none_of_submits(service: RunningService, admin: Client) -> None:
    admin.put_user("robot", NewUser(password=PASSWORD, role=Role.WORKER))
    session = schemas.IssuedToken.model_validate(token_of(service, "robot").json())
    submit = service.client("submit")
    assert session.id not in {token.id for token in submit.tokens()}
    with pytest.raises(ApiError, match="that you may revoke"):
        submit.revoke_token(session.id)
    assert session.id in {token.id for token in admin.tokens()}


# --- whose worker ids ---

ENDS = {
    "expired": "UPDATE tokens SET expires_at = now() - interval '1 millisecond' WHERE id = $1",
    "revoked": "UPDATE tokens SET revoked_at = now() WHERE id = $1",
    "cleared away": "DELETE FROM tokens WHERE id = $1",
}


@pytest.fixture
def worker_token(admin: Client) -> Callable[..., schemas.IssuedToken]:
    """A new token of a worker, of a project or (None) of all."""
    admin.add_jobs(PROJECT, ["a"])
    return lambda project: admin.new_token(NewToken(name="snapshot", role=Role.WORKER, project=project))


def says(service: RunningService, holder: Holder, lease: schemas.Lease, token: str, image: str) -> httpx.Response:
    """Posts a result through a lease of a worker's, with a token that need not be its own."""
    body = {"worker_id": holder.worker_id, "lease_seq": lease.lease_seq, "run": {}, "rows": []}
    body["rows"] = [{"image": image, "status": "blank", "duration_ms": 1}]
    url = f"{service.root}/v4/{PROJECT}/jobs/{lease.job_id}/results"
    return httpx.post(url, headers=bearer(token), json=body)


@pytest.mark.parametrize("end", ENDS)
def test_the_workers_of_a_token_are_its_own_until_it_has_ended(
    service: RunningService, worker_token: Callable[..., schemas.IssuedToken], end: str
) -> None:
    old, new, of_all = worker_token(PROJECT), worker_token(PROJECT), worker_token(None)
    with Client(service.root, token=old.token) as client:
        holder = Holder(client)
        lease = holder.one(PROJECT)
    for other in (new, of_all):
        assert kind_of(says(service, holder, lease, other.token, "1.png")) == "worker-id-taken"
    service.sql(ENDS[end], old.id)
    assert says(service, holder, lease, new.token, "1.png").json()["stored"] == 1
    assert says(service, holder, lease, of_all.token, "2.png").json()["stored"] == 1
    # To write through its leases, that is. A worker id lives on with the token that made it alone.
    beat = httpx.post(
        f"{service.root}/v4/workers/{holder.worker_id}/heartbeat", headers=bearer(new.token), json={"leases": []}
    )
    assert kind_of(beat) == "worker-id-taken"


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_the_workers_of_a_token_of_all_projects_are_not_for_one_of_a_single_project(
    service: RunningService, worker_token: Callable[..., schemas.IssuedToken], end: str
) -> None:
    old = worker_token(None)
    with Client(service.root, token=old.token) as client:
        holder = Holder(client)
        lease = holder.one(PROJECT)
    service.sql(ENDS[end], old.id)
    assert kind_of(says(service, holder, lease, worker_token(PROJECT).token, "1.png")) == "worker-id-taken"
    assert says(service, holder, lease, worker_token(None).token, "1.png").status_code == 200


def test_the_workers_of_a_token_are_not_for_one_of_another_project(
    service: RunningService, worker_token: Callable[..., schemas.IssuedToken]
) -> None:
    """Nor is it told whether the lease is there: the id is judged before it."""
    old, other = worker_token(PROJECT), worker_token(OTHER)
    with Client(service.root, token=old.token) as client:
        holder = Holder(client)
        lease = holder.one(PROJECT)
    service.sql(ENDS["revoked"], old.id)
    answer = says(service, holder, lease, other.token, "1.png")
    assert kind_of(answer) == "forbidden"
    url = f"{service.root}/v4/{OTHER}/jobs/{lease.job_id}/results"
    body = {"worker_id": holder.worker_id, "lease_seq": lease.lease_seq, "run": {}, "rows": []}
    assert kind_of(httpx.post(url, headers=bearer(other.token), json=body)) == "worker-id-taken"


def test_the_workers_of_a_user_are_not_for_a_token_that_is_nobodys(
    service: RunningService, admin: Client, worker_token: Callable[..., schemas.IssuedToken]
) -> None:
    admin.put_user("robot", NewUser(password=PASSWORD, role=Role.WORKER, project=PROJECT))
    first, second = (token_of(service, "robot").json() for _ in range(2))
    with Client(service.root, token=first["token"]) as client:
        holder = Holder(client)
        lease = holder.one(PROJECT)
    service.sql(ENDS["revoked"], first["id"])
    assert kind_of(says(service, holder, lease, worker_token(PROJECT).token, "1.png")) == "worker-id-taken"
    assert says(service, holder, lease, second["token"], "1.png").status_code == 200


# --- asking about a project ---


def test_what_engine_a_project_wants_is_told_with_it_and_not_without(service: RunningService, admin: Client) -> None:
    options = {"hand_drawn": True}
    admin.put_project(OTHER, schemas.ProjectSettings(engine_options=options))
    wanted = service.client("worker").server(OTHER).project_engine
    assert wanted == schemas.ProjectEngine(engine="decimer", engine_options=options)
    assert service.client("worker").server().project_engine is None


def test_whether_there_is_a_project_that_one_may_see_is_told_to_any_role(
    service: RunningService, admin: Client
) -> None:
    for role in Role:
        caller = service.client(role).server(PROJECT).caller
        assert caller == schemas.Caller(name=f"token 'test-{role}'", role=role, project=None)
        with pytest.raises(NotFound, match="no project 'elsewhere'"):
            service.client(role).server("elsewhere")
        with pytest.raises(Refused, match=f"only see the project {PROJECT}"):
            service.client(role, PROJECT).server(OTHER)
        with pytest.raises(Refused, match=f"only see the project {PROJECT}"):
            service.client(role, PROJECT).server("elsewhere")
