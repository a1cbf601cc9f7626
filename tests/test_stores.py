"""Storage by URL: what a URL may say, which credentials are used, and what is read, written and said of faults."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job_api.credentials import EMULATOR_KEY
from job_api.faults import explain
from job_api.stores import (
    BadKey,
    BadLocation,
    ContainerNotThere,
    Denied,
    Listing,
    Location,
    NotThere,
    Store,
    StoredObject,
    StoreError,
    Unavailable,
    locate,
    open_listing,
    open_store,
)
from tests.emulators.azurite import WRONG_KEY, Azurite
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Answer, Cut, Hang, Relay, Reset
from tests.emulators.s3 import REGION, S3Server
from tests.plugins.clouds import Setter

PATIENCE_SECONDS = 3.0
ODD_NAMES = (
    "plain.png",
    "Name (Author Year).png",
    " leading and trailing .png",
    "a+b.png",
    "100%.png",
    "a%20b.png",
    "a%2Fb.png",
    "#1.png",
    "what?.png",
    "a&b=c;d,e@f:g.png",
    "'quoted' \"twice\" `thrice`.png",
    "[x]{y}<z>|~^.png",
    "star*.png",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "分子 🧪.png",
    "…",
    "x" * 200 + ".png",
)


@pytest.fixture(autouse=True)
def _clean(set_environment: Setter) -> None:
    """None of the variables of whoever runs the tests reaches a store."""


def opened(bucket: Bucket, set_environment: Setter, prefix: str = "") -> Store:
    set_environment(bucket.environment)
    return open_store(f"{bucket.url}/{prefix}", PATIENCE_SECONDS)


@pytest.fixture
def store(bucket: Bucket, set_environment: Setter) -> Store:
    """The whole of an empty bucket of each kind."""
    return opened(bucket, set_environment)


def keys(store: Listing, directory: str = "") -> list[str]:
    return [found.key for found in store.objects(directory)]


# --- what a URL says ---


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("/data/x y/100%25", Location("file", "file:///data/x%20y/100%2525", "", "data/x y/100%25")),
        ("file:///data/x%20y/", Location("file", "file:///data/x%20y", "", "data/x y")),
        ("file://localhost/data", Location("file", "file:///data", "", "data")),
        ("az://container", Location("az", "az://container", "container", "")),
        ("azure://container/a/b/", Location("az", "az://container/a/b", "container", "a/b")),
        ("abfs://container/a", Location("az", "az://container/a", "container", "a")),
        (
            "abfss://container@account1.dfs.core.windows.net/a",
            Location("az", "abfss://container@account1.dfs.core.windows.net/a", "container", "a", "account1"),
        ),
        ("S3://bucket.with.dots/a%20b", Location("s3", "s3://bucket.with.dots/a%20b", "bucket.with.dots", "a b")),
        ("s3://bucket/a%2520b/%23/a+b", Location("s3", "s3://bucket/a%2520b/%23/a+b", "bucket", "a%20b/#/a+b")),
        ("gs://bucket/%C3%BC/ü", Location("gs", "gs://bucket/%C3%BC/%C3%BC", "bucket", "ü/ü")),
        ("https://Host.example:8443/a%20b/", Location("http", "https://host.example:8443/a%20b", "", "a b")),
    ],
)
def test_a_url_says_where_things_are_and_is_decoded_once(url: str, location: Location) -> None:
    assert locate(url) == location
    assert locate(location.url) == location


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("relative/path", "s3://bucket/folder"),
        ("ftp://host/x", "ftp://… is not supported"),
        ("file://elsewhere/x", "file:///folder"),
        ("s3://", "no container or bucket"),
        ("s3://buc ket/x", "no container or bucket"),
        ("az://container/a//b", "empty, '.' or '..' parts"),
        ("az://container/a/%2E%2E/b", "empty, '.' or '..' parts"),
        ("gs://bucket/%FF", "UTF-8"),
        ("gs://bucket/a%00b", "control characters"),
        ("gs://bucket/a\nb", "control characters"),
        ("https:///x", "no host"),
        ("https://host:port/x", "no URL"),
        ("abfss://container@evil.example/x", "az://container/folder"),
        ("abfss://container@account.dfs.core.windows.net.evil.example/x", "az://container/folder"),
        ("abfss://container@account.dfs.core.windows.net:444/x", "az://container/folder"),
        ("abfss://container@127.0.0.1/x", "az://container/folder"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_what_to_write(url: str, advice: str) -> None:
    with pytest.raises(BadLocation) as caught:
        locate(url)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "https://user:hunter2@host/x",
        "https://host/x?sig=hunter2",
        "az://container/x?sv=2024&sig=hunter2",
        "az://container/x#hunter2",
        "abfss://container:hunter2@account.dfs.core.windows.net/x",
        "file:///data#hunter2",
    ],
)
def test_a_credential_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadLocation, match="environment") as caught:
        locate(url)
    assert "hunter2" not in str(caught.value)


def test_a_web_server_is_no_store() -> None:
    with pytest.raises(BadLocation, match="cannot be listed"):
        open_store("https://account.blob.core.windows.net/container")


# --- what is read and written ---


def odd_names(bucket: Bucket) -> list[str]:
    """Azure takes a backslash for a slash."""
    return [*ODD_NAMES, *(() if bucket.emulator.scheme == "az" else ("back\\slash.png",))]


def test_keys_come_out_as_they_went_in(bucket: Bucket, store: Store) -> None:
    expected = {f"{folder}/{name}": name.encode() for folder in ("odd", "o%64d (#?)") for name in odd_names(bucket)}
    bucket.fill(expected)
    for directory in ("odd", "o%64d (#?)"):
        found = list(store.objects(directory))
        assert sorted(item.key for item in found) == sorted(key for key in expected if key.startswith(directory + "/"))
        assert {item.key: item.size for item in found} == {item.key: len(expected[item.key]) for item in found}
        assert {item.key: store.read(item.key, 10_000) for item in found} == {i.key: expected[i.key] for i in found}
    assert store.directories() == sorted(["odd", "o%64d (#?)"])


def test_keys_are_written_as_they_are_given(bucket: Bucket, store: Store) -> None:
    for name in odd_names(bucket):
        store.write(f"odd (%)/{name}", name.encode())
    assert bucket.content() == {f"odd (%)/{name}": name.encode() for name in odd_names(bucket)}


def test_a_location_sees_what_lies_below_it_and_nothing_beside_it(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"a b/c%/one/1.png": b"1", "a b/c%/two/2.png": b"22", "a b/c%2/no.png": b"", "a b/top.png": b""})
    below = opened(bucket, set_environment, "a%20b/c%25")
    assert below.directories() == ["one", "two"]
    assert list(below.objects("")) == [StoredObject("one/1.png", 1), StoredObject("two/2.png", 2)]
    assert keys(below, "on") == []
    assert below.read("two/2.png", 2) == b"22"
    below.write("three/3.png", b"3")
    assert bucket.content()["a b/c%/three/3.png"] == b"3"


def test_directories_are_found_without_looking_into_them(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    bucket.fill({f"{name:02}/{number}.png": b"" for name in range(20) for number in range(20)} | {"top.png": b""})
    relay = relay_to(bucket.emulator.server)
    behind = opened(bucket.behind(relay.address), set_environment)
    assert behind.directories() == [f"{name:02}" for name in range(20)]
    assert len(relay.seen) == 1


def test_a_long_listing_comes_in_pages_and_in_the_order_of_its_keys(s3_bucket: Bucket, set_environment: Setter) -> None:
    names = [f"d/{number:05}.png" for number in range(1_203)] + ["d/a/x.png", "d/a-b.png", "d/a.png"]
    s3_bucket.fill(dict.fromkeys(names, b""))
    set_environment(s3_bucket.environment)
    listing = open_store(s3_bucket.url).objects("d")
    assert next(listing).key == "d/00000.png"
    assert ["d/00000.png", *(found.key for found in listing)] == sorted(names)


def test_markers_of_folders_are_no_objects(bucket: Bucket, store: Store) -> None:
    bucket.fill({"d/": b"", "d/empty": b"", "d/sub/": b"", "d/sub.png/": b"", "d/sub.png/x.png": b"1", "d/sub/y": b"1"})
    assert keys(store, "d") == ["d/empty", "d/sub.png/x.png", "d/sub/y"]
    assert store.directories() == ["d"]


def test_an_object_that_is_too_large_is_not_read(bucket: Bucket, store: Store) -> None:
    bucket.fill({"x": bytes(100)})
    assert store.read("x", 100) == bytes(100)
    assert store.read("x", 99) == 100


def test_what_is_written_replaces_what_was_there(bucket: Bucket, store: Store) -> None:
    store.write("x", b"old")
    store.write("x", b"new")
    store.write("pieces", iter([b"a" * 3_000_000, b"b" * 3_000_000, b"", b"c" * 3_000_000]))
    store.write("empty", iter([]))
    expected = {"x": b"new", "pieces": b"a" * 3_000_000 + b"b" * 3_000_000 + b"c" * 3_000_000, "empty": b""}
    assert bucket.content() == expected


def test_what_is_written_in_pieces_goes_in_parts_that_are_large_and_may_take_their_time(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    """Of small parts S3 and Google take too few for an export; a large one takes longer than servers are silent."""
    relay = relay_to(bucket.emulator.server)
    set_environment(bucket.behind(relay.address).environment)
    store = open_store(bucket.url, 1.0)
    relay.delay_seconds = 1.3
    store.write("pieces", (bytes(10 << 20) for _ in range(7)))
    assert relay.count(r"^PUT .*(partNumber=|comp=block(&|$))") == 2
    relay.delay_seconds = 0.0
    assert open_store(bucket.url).read("pieces", 1) == 70 << 20


def test_what_is_not_written_to_its_end_is_not_written_at_all(bucket: Bucket, store: Store) -> None:
    store.write("x", b"old")

    def breaking_off() -> Iterator[bytes]:
        yield b"n" * 6_000_000
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.write("x", breaking_off())
    assert bucket.content() == {"x": b"old"}


# --- what goes wrong ---


def test_a_key_that_cannot_be_named_ends_the_listing_of_its_directory_alone(bucket: Bucket, store: Store) -> None:
    bucket.fill({"good/1.png": b"1", "bad/a//b.png": b"2", "bad/c.png": b"3"})
    with pytest.raises(BadKey, match=r"bad has an object, 'bad/a//b.png', .*rename"):
        keys(store, "bad")
    assert keys(store, "good") == ["good/1.png"]
    for impossible in ("a//b", "a/./b", "../a", "a\nb"):
        with pytest.raises(BadKey):
            store.read(impossible, 10)
        with pytest.raises(BadKey):
            keys(store, impossible)


@pytest.mark.parametrize(
    "others",
    [{"d/a.png": b"1"}, {"d/a.png": b""}, {"d/a.png": b"1", "d/a.png-1": b"1"}, {"d/a.png-1": b"", "d/a.png/x": b"1"}],
    ids=" ".join,
)
def test_a_slash_after_a_key_makes_no_key_come_twice(bucket: Bucket, store: Store, others: dict[str, bytes]) -> None:
    bucket.fill(others | {"d/a.png/": b"123"})
    with pytest.raises(BadKey, match=r"d/a.png/' .*rename"):
        keys(store, "d")
    # Of no size it is a folder's marker.
    bucket.fill({"d/a.png/": b""})
    assert keys(store, "d") == sorted(others)


def test_an_object_with_a_slash_after_its_key_is_not_taken_for_one_that_has_gone(bucket: Bucket, store: Store) -> None:
    bucket.fill({"d/0": b"1", "d/a.png/": b"123", "d/b": b"1", "d/c.png/": b"", "top.png/": b"1"})
    assert keys(store, "d") == ["d/0", "d/a.png", "d/b", "d/c.png"]
    bucket.fill({"d/a.png-1": b"1"})
    for key in ("d/a.png", "top.png"):
        with pytest.raises(BadKey, match=rf"{key}/' .*rename"):
            store.read(key, 10)
    for key in ("d/a.pn", "d/c.png", "d/z"):
        with pytest.raises(NotThere):
            store.read(key, 10)


def test_a_missing_object_is_told_from_a_missing_container(bucket: Bucket, store: Store) -> None:
    assert keys(store, "nowhere") == []
    with pytest.raises(NotThere) as caught:
        store.read("nothing", 10)
    assert not isinstance(caught.value, ContainerNotThere)
    bucket.remove()
    for ask in (store.directories, lambda: keys(store), lambda: store.read("x", 10), lambda: store.write("x", b"")):
        with pytest.raises(ContainerNotThere, match="does not exist"):
            ask()
    bucket.emulator._create(bucket.name)


def test_where_the_answer_does_not_say_what_is_missing_it_is_found_out(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    bucket.fill({"x": b"1"})
    relay = relay_to(bucket.emulator.server)
    behind = opened(bucket.behind(relay.address), set_environment)
    relay.plan(Answer(404))
    with pytest.raises(NotThere) as caught:
        behind.read("nothing", 10)
    assert not isinstance(caught.value, ContainerNotThere)
    bucket.remove()
    relay.plan(Answer(404))
    with pytest.raises(ContainerNotThere):
        behind.read("x", 10)
    bucket.emulator._create(bucket.name)


@pytest.mark.parametrize("bucket_of", ["azure_bucket", "s3_bucket"])
def test_a_wrong_key_is_denied_with_what_to_set(
    request: pytest.FixtureRequest, bucket_of: str, set_environment: Setter
) -> None:
    bucket: Bucket = request.getfixturevalue(bucket_of)
    bucket.fill({"d/x.png": b"1"})
    set_environment(bucket.emulator.wrong_environment)
    store = open_store(bucket.url, PATIENCE_SECONDS)
    for ask in (store.directories, lambda: keys(store, "d"), lambda: store.read("d/x.png", 10)):
        with pytest.raises(Denied, match=r"403 .*(AZURE_STORAGE_ACCOUNT_KEY|AWS_SECRET_ACCESS_KEY)") as caught:
            ask()
        assert caught.value.__cause__ is None
        assert_no_secret(str(caught.value), bucket.emulator.wrong_environment)


def assert_no_secret(text: str, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        if "ENDPOINT" not in name and "REGION" not in name and "HOST" not in name:
            for part in value.split(";"):
                assert part.partition("=")[2][:20] not in text or not part.partition("=")[2], name
    assert "sig=" not in text
    assert "Signature" not in text.replace("SignatureDoesNotMatch", "")
    assert "http" not in text


def test_a_signature_opens_its_container_and_is_never_shown(
    azurite: Azurite, azure_bucket: Bucket, set_environment: Setter
) -> None:
    azure_bucket.fill({"d/x.png": b"1"})
    for variable in ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"):
        for hours in (1, -1):
            sas = azurite.sas(azure_bucket.name, hours=hours)
            given = {
                "AZURE_STORAGE_ACCOUNT_NAME": "emulated",
                "AZURE_STORAGE_ENDPOINT": azurite.endpoint,
                "AZURE_STORAGE_SAS_TOKEN": "",
                "AZURE_STORAGE_CONNECTION_STRING": "",
                "AZURE_STORAGE_ACCOUNT_KEY": "" if variable.endswith("TOKEN") else WRONG_KEY,
            }
            whole = f"BlobEndpoint={azurite.endpoint};SharedAccessSignature={sas}"
            given[variable] = sas if variable.endswith("TOKEN") else whole
            set_environment(given)
            store = open_store(azure_bucket.url, PATIENCE_SECONDS)
            if hours > 0:
                assert store.read("d/x.png", 10) == b"1"
                continue
            with pytest.raises(Denied) as caught:
                store.directories()
            assert "sig" not in str(caught.value).lower()
            assert sas.rpartition("sig=")[2][:10] not in str(caught.value)


def test_a_store_that_is_away_is_known_in_time_and_its_address_is_not_shown(
    azurite: Azurite, azure_bucket: Bucket, set_environment: Setter
) -> None:
    sas = azurite.sas(azure_bucket.name)
    set_environment(
        {
            "AZURE_STORAGE_ACCOUNT_NAME": "emulated",
            "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/emulated",
            "AZURE_STORAGE_SAS_TOKEN": sas,
        }
    )
    store = open_store(azure_bucket.url, PATIENCE_SECONDS)
    for ask in (
        store.directories,
        lambda: keys(store, "d"),
        lambda: store.read("x", 1),
        lambda: store.write("x", b"1"),
    ):
        with pytest.raises(Unavailable, match="Connection refused") as caught:
            ask()
        assert "sig" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)


FAULTS: dict[str, Any] = {
    "busy": Answer(503, retry_after=1),
    "too many requests": Answer(429, retry_after=1),
    "broken": Answer(500),
    "reset": Reset(),
    "half an answer": Cut(0.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter, fault: str
) -> None:
    data = os.urandom(300_000)
    bucket.fill({"d/x.png": data})
    relay = relay_to(bucket.emulator.server)
    store = opened(bucket.behind(relay.address), set_environment)
    relay.plan(FAULTS[fault], times=2)
    assert store.read("d/x.png", 1_000_000) == data
    if fault != "half an answer":
        relay.plan(FAULTS[fault], times=2)
        assert keys(store, "d") == ["d/x.png"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_unavailable_and_never_half_an_object(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter, fault: str
) -> None:
    s3_bucket.fill({"d/x.png": os.urandom(300_000)})
    relay = relay_to(s3_bucket.emulator.server)
    store = opened(s3_bucket.behind(relay.address), set_environment)
    relay.plan(FAULTS[fault], times=1_000)
    with pytest.raises(Unavailable) as caught:
        store.read("d/x.png", 1_000_000)
    assert_no_secret(str(caught.value), s3_bucket.environment)


def test_a_store_that_falls_silent_is_given_up(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    relay = relay_to(s3_bucket.emulator.server)
    store = opened(s3_bucket.behind(relay.address), set_environment)
    relay.plan(Hang(), times=1_000)
    with pytest.raises(Unavailable, match=r"TimedOut|timed out"):
        store.directories()


SECRETS = "https://account.blob.core.windows.net/c/x?sv=1&sig=hunter2%3D Authorization: Bearer hunter2"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 418, 500])
def test_what_a_service_answers_is_not_repeated(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter, status: int
) -> None:
    relay = relay_to(s3_bucket.emulator.server)
    store = opened(s3_bucket.behind(relay.address), set_environment)
    relay.plan(Answer(status, body=f"<Error><Message>{SECRETS}</Message></Error>".encode()), times=1_000)
    with pytest.raises(StoreError) as caught:
        store.directories()
    assert "hunter2" not in str(caught.value)
    assert str(status) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_another_region_is_named_as_such(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    relay = relay_to(s3_bucket.emulator.server)
    store = opened(s3_bucket.behind(relay.address), set_environment)
    relay.plan(Answer(301), times=2)
    with pytest.raises(Denied, match="AWS_REGION"):
        store.directories()


def test_an_archived_object_says_so(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    relay = relay_to(s3_bucket.emulator.server)
    store = opened(s3_bucket.behind(relay.address), set_environment)
    relay.plan(Answer(403, body=b"<Error><Code>InvalidObjectState</Code></Error>"))
    with pytest.raises(Unavailable, match="archived"):
        store.read("x", 10)


@pytest.mark.parametrize(
    "key",
    [
        "CreateSession/x.png",
        "AssumeRole.png",
        "token request/x.png",
        "d/latest/api/token/x.png",
        "d - status code: 403/x.png",
        "<Code>NoSuchBucket</Code>.png",
        "?Action=AssumeRole",
    ],
)
def test_a_key_that_reads_like_a_fault_is_none(bucket: Bucket, store: Store, key: str) -> None:
    for _ in range(2):
        with pytest.raises(NotThere) as caught:
            store.read(key, 10)
        assert not isinstance(caught.value, ContainerNotThere)
        assert list(store.objects("")) == []


@pytest.mark.parametrize(("status", "code"), [(401, "AuthenticationRequired"), (403, "AccessDenied")])
def test_google_denies_with_what_to_set(
    gcs_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter, status: int, code: str
) -> None:
    """As Google's XML interface answers; the stand-in refuses nobody."""
    gcs_bucket.fill({"d/x.png": b"1"})
    relay = relay_to(gcs_bucket.emulator.server)
    store = opened(gcs_bucket.behind(relay.address), set_environment)
    details = "reader@project.iam.gserviceaccount.com does not have storage.objects.list access"
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Details>{details}</Details></Error>"
    relay.plan(Answer(status, body=body.encode(), headers=(("Content-Type", "application/xml"),)), times=1_000)
    rights = "list and read objects"
    for ask in (store.directories, lambda: keys(store, "d"), lambda: store.read("d/x.png", 10)):
        with pytest.raises(Denied, match=rf"{status} {code}.*GOOGLE_APPLICATION_CREDENTIALS.*{rights}$") as caught:
            ask()
        assert "gserviceaccount" not in str(caught.value)
    with pytest.raises(Denied, match=rf"{status} {code}.*GOOGLE_APPLICATION_CREDENTIALS.*{rights}.*create and delete"):
        store.write("d/x.png", b"2")


@pytest.mark.parametrize("bucket_of", ["azure_bucket", "s3_bucket"])
def test_whoever_may_read_and_not_write_is_told_what_writing_takes(
    request: pytest.FixtureRequest, bucket_of: str, azurite: Azurite, s3_server: S3Server, set_environment: Setter
) -> None:
    bucket: Bucket = request.getfixturevalue(bucket_of)
    bucket.fill({"x": b"1"})
    reading = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    sas = azurite.sas(bucket.name, "rl") if bucket_of == "azure_bucket" else ""
    azure = {"AZURE_STORAGE_ACCOUNT_NAME": "emulated", "AZURE_STORAGE_ENDPOINT": azurite.endpoint}
    set_environment(azure | {"AZURE_STORAGE_SAS_TOKEN": sas} if sas else s3_server.environment_of_user(reading))
    store = open_store(bucket.url, PATIENCE_SECONDS)
    assert store.read("x", 1) == b"1"
    for data in (b"2", iter([b"2", b"3"])):
        with pytest.raises(Denied, match=r"403.*writing takes the right to (create and write blobs|put objects)"):
            store.write("x", data)


def test_an_unknown_error_shows_nothing_but_its_kind() -> None:
    told = explain(ValueError(SECRETS), "az", "az://c/x")
    assert isinstance(told, Unavailable)
    assert str(told).endswith("ValueError")


# --- credentials ---


def config_of(url: str) -> dict[str, Any]:
    return dict(open_store(url)._store.config)  # type: ignore[attr-defined]


def allows_http(url: str) -> bool:
    return str(open_store(url)._store.client_options["allow_http"]).lower() == "true"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": "a2V5"},
            {"account_name": "acc", "account_key": "a2V5"},
        ),
        (
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"},
            {"account_name": "acc", "sas_key": "?sv=1&sig=x"},
        ),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.example"},
            {"account_name": "acc", "account_key": "a2V5", "endpoint": "https://acc.blob.core.example"},
        ),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"},
            {
                "account_name": "devstoreaccount1",
                "account_key": EMULATOR_KEY,
                "endpoint": "http://127.0.0.1:10000/devstoreaccount1",
            },
        ),
        (
            {
                "AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://acc.blob.core.windows.net/;"
                "SharedAccessSignature=sv=1&sig=x%3D",
                "AZURE_STORAGE_ACCOUNT_KEY": "b2xk",
                "AZURE_STORAGE_ACCOUNT_NAME": "other",
            },
            {"account_name": "acc", "sas_key": "sv=1&sig=x%3D", "endpoint": "https://acc.blob.core.windows.net"},
        ),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_SKIP_SIGNATURE": "true"}, {"account_name": "acc"}),
        (
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "acc",
                "AZURE_CLIENT_ID": "id",
                "AZURE_CLIENT_SECRET": "secret",
                "AZURE_TENANT_ID": "tenant",
            },
            {"account_name": "acc"},
        ),
    ],
)
def test_azure_is_opened_with_what_its_own_tools_read(
    given: dict[str, str], expected: dict[str, str], set_environment: Setter
) -> None:
    set_environment(given)
    config = config_of("az://container/x")
    assert {name: config.get(name) for name in expected} == expected
    assert allows_http("az://container") == expected.get("endpoint", "").startswith("http://")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({}, "AZURE_STORAGE_ACCOUNT_NAME"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ACCOUNT_KEY": "not base64 hunter2"}, "AZURE_STORAGE"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "hunter2"}, "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
def test_what_azure_lacks_is_known_before_anything_is_asked(
    given: dict[str, str], advice: str, set_environment: Setter
) -> None:
    set_environment(given)
    with pytest.raises(Denied, match=advice) as caught:
        open_store("az://container/x")
    assert "hunter2" not in str(caught.value)


def test_an_account_in_a_url_is_used_and_gets_no_other_accounts_key(set_environment: Setter) -> None:
    url = "abfss://container@mine1.dfs.core.windows.net/x"
    assert config_of(url)["account_name"] == "mine1"
    set_environment({"AZURE_STORAGE_ACCOUNT_NAME": "other"})
    assert config_of(url)["account_name"] == "mine1"
    secrets = {"ACCOUNT_KEY": "a2V5", "SAS_TOKEN": "sv=1&sig=hunter2", "ENDPOINT": "https://elsewhere.example"}
    for name, value in secrets.items():
        secret = f"AZURE_STORAGE_{name}"
        for account in ("other", ""):
            set_environment({"AZURE_STORAGE_ACCOUNT_NAME": account, secret: value})
            with pytest.raises(Denied, match="AZURE_STORAGE_ACCOUNT_NAME=mine1") as caught:
                open_store(url)
            assert value not in str(caught.value)
        set_environment({"AZURE_STORAGE_ACCOUNT_NAME": "mine1"})
        open_store(url)
        set_environment({secret: ""})


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("s3://bucket", "AWS_ENDPOINT_URL_S3", "127.0.0.1:9000"),
        ("s3://bucket", "AWS_ACCESS_KEY_ID", "read from a file\n"),
        ("az://container", "AZURE_STORAGE_ENDPOINT", "127.0.0.1:10000/account"),
        ("az://container", "AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;BlobEndpoint=127.0.0.1:10000/a"),
        ("gs://bucket", "GOOGLE_BASE_URL", "127.0.0.1"),
    ],
)
def test_what_the_library_would_panic_over_is_refused_by_the_name_of_its_variable(
    url: str, name: str, value: str, set_environment: Setter
) -> None:
    set_environment({"AWS_SECRET_ACCESS_KEY": "x", "AZURE_STORAGE_ACCOUNT_NAME": "account", name: value})
    with pytest.raises(Denied, match=name) as caught:
        open_store(url)
    assert value not in str(caught.value)


def test_s3_is_opened_with_its_own_variables(set_environment: Setter) -> None:
    set_environment({"AWS_ACCESS_KEY_ID": "id"})
    with pytest.raises(Denied, match="AWS_SECRET_ACCESS_KEY"):
        open_store("s3://bucket")
    set_environment({"AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-north-1"})
    assert not allows_http("s3://bucket")
    set_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"})
    assert allows_http("s3://bucket")
    set_environment({"AWS_ENDPOINT_URL_S3": "https://minio.example"})
    assert not allows_http("s3://bucket")


def test_profiles_of_aws_are_read(s3_server: S3Server, s3_bucket: Bucket, set_environment: Setter) -> None:
    s3_bucket.fill({"d/x.png": b"1"})
    folder = Path(os.environ["HOME"]) / ".aws"
    folder.mkdir(parents=True)
    (folder / "credentials").write_text(
        f"[work]\naws_access_key_id = {s3_server.key_id}\naws_secret_access_key = {s3_server.secret}\n"
    )
    (folder / "config").write_text(f"[profile work]\nregion = {REGION}\n")
    set_environment({"AWS_ENDPOINT_URL_S3": s3_server.address, "AWS_PROFILE": "work"})
    store = open_store(s3_bucket.url, PATIENCE_SECONDS)
    assert store.read("d/x.png", 10) == b"1"
    assert dict(store._store.config)["region"] == REGION  # type: ignore[attr-defined]
    set_environment({"AWS_PROFILE": "missing"})
    with pytest.raises(Denied, match="AWS_PROFILE"):
        open_store(s3_bucket.url)


def test_nobody_is_asked_for_a_login_where_none_is_wanted(gcs_bucket: Bucket, set_environment: Setter) -> None:
    gcs_bucket.fill({"d/x.png": b"1"})
    address = gcs_bucket.emulator.address
    set_environment({"STORAGE_EMULATOR_HOST": address.removeprefix("http://")})
    assert open_store(gcs_bucket.url, PATIENCE_SECONDS).read("d/x.png", 10) == b"1"
    # The same server asks nobody who he is as S3 either; who shows no login must look for none.
    set_environment({"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": address})
    with pytest.raises(Denied):
        open_store(f"s3://{gcs_bucket.name}", PATIENCE_SECONDS).directories()
    set_environment({"AWS_SKIP_SIGNATURE": "true"})
    assert open_store(f"s3://{gcs_bucket.name}", PATIENCE_SECONDS).read("d/x.png", 10) == b"1"


def test_a_machine_without_any_credential_says_what_to_set(set_environment: Setter) -> None:
    """Nobody answers where the clouds' machines ask for theirs."""
    nowhere = "http://127.0.0.1:1"
    set_environment({"AWS_METADATA_ENDPOINT": nowhere, "AZURE_MSI_ENDPOINT": nowhere})
    set_environment({"AZURE_STORAGE_ACCOUNT_NAME": "acc"})
    for url, variable in (("s3://bucket", "AWS_ACCESS_KEY_ID"), ("az://container", "AZURE_STORAGE_ACCOUNT_KEY")):
        with pytest.raises(Denied, match=f"no credential could be had .*{variable}"):
            open_store(url, PATIENCE_SECONDS).directories()


def test_google_is_opened_with_its_own_variables(set_environment: Setter, tmp_path: Path) -> None:
    set_environment({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "nothing.json")})
    with pytest.raises(Denied, match="GOOGLE_APPLICATION_CREDENTIALS"):
        open_store("gs://bucket")
    (tmp_path / "nothing.json").write_text('{"type": "hunter2"}')
    with pytest.raises(Denied, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        open_store("gs://bucket")
    assert "hunter2" not in str(caught.value)
    set_environment({"GOOGLE_APPLICATION_CREDENTIALS": "", "GOOGLE_SKIP_SIGNATURE": "true"})
    assert not allows_http("gs://bucket")


# --- directories of this machine ---


def test_a_folder_is_listed_as_a_bucket_is(tmp_path: Path) -> None:
    for key in ("a/x.png", "a-b.png", *(f"odd (%)/{name}" for name in ODD_NAMES)):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(b"12")
    listing = open_listing(tmp_path.as_uri())
    assert listing.directories() == ["a", "odd (%)"]
    assert list(listing.objects("odd (%)")) == sorted(
        (StoredObject(f"odd (%)/{name}", 2) for name in ODD_NAMES), key=lambda found: found.key
    )
    assert keys(listing)[:2] == ["a-b.png", "a/x.png"]
    assert keys(listing, "nothing") == []
    for impossible in ("../x", "a//x", "/etc", "a\0b"):
        with pytest.raises(BadKey):
            keys(listing, impossible)
    with pytest.raises(ContainerNotThere, match="mounted"):
        open_listing(f"{tmp_path}/nowhere").directories()
    with pytest.raises(BadLocation, match="directory of this machine"):
        open_store(tmp_path.as_uri())
