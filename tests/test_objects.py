"""Which images object storage lists, and what becomes of those that cannot be read and of their jobs."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from job_api.schemas import JobState, NewResult, ProjectSettings, ResultStatus
from job_api.stores import open_store
from tests.emulators.azurite import Azurite
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Answer, Cut, Relay
from tests.emulators.s3 import S3Server
from tests.plugins.clouds import Setter
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from uworker.images import (
    BadName,
    DirectoryDenied,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceUnsupported,
    StorageFault,
    Verdict,
)
from uworker.settings import WorkerSettings
from uworker.sources import Sources, open_source
from uworker.sources.objects import ObjectSource

MAX_BYTES = 1_000
PATIENCE_SECONDS = 3.0
PROJECT = "patents"


@pytest.fixture(autouse=True)
def _clean(set_environment: Setter) -> None:
    """None of the variables of whoever runs the tests reaches a store."""


def source(bucket: Bucket, set_environment: Setter, prefix: str = "") -> ObjectSource:
    set_environment(bucket.environment)
    return ObjectSource(open_store(f"{bucket.url}/{prefix}", PATIENCE_SECONDS), MAX_BYTES)


def names(source: ObjectSource, directory: str = "job") -> list[str]:
    return [image.name for image in source.list_images(directory)]


def verdict(answer: bytes | Verdict) -> Verdict:
    assert isinstance(answer, Verdict)
    return answer


# --- the listing ---


def test_images_at_any_depth_are_listed_by_ending_with_their_sizes(bucket: Bucket, set_environment: Setter) -> None:
    wanted = {"b.png": b"1", "UPPER.PNG": b"22", "sub/deep/er/c.Jpeg": b"", "d (#1) 100%.tiff": b"4", "e?.webp": b"5"}
    passed_over = ("notes.txt", "no ending", "png", "x.png.bak", "._a.png", ".hidden/b.png", "__MACOSX/c.png", "sub/")
    bucket.fill({f"root/job/{name}": data for name, data in wanted.items()})
    bucket.fill({f"root/job/{name}": b"" for name in passed_over} | {"root/job2/x.png": b"", "root/jo": b""})
    listed = list(source(bucket, set_environment, "root").list_images("job"))
    assert {image.name: image.size for image in listed} == {name: len(data) for name, data in wanted.items()}
    assert [image.name for image in listed] == sorted(wanted)
    read = source(bucket, set_environment, "root")
    assert {image.name: read.read(image) for image in listed} == wanted


def test_a_directory_may_lie_deep_and_end_in_a_slash(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"Name (Author Year)/output/a.png": b"1"})
    assert names(source(bucket, set_environment), "Name (Author Year)/output") == ["a.png"]
    assert names(source(bucket, set_environment), "Name (Author Year)/") == ["output/a.png"]


@pytest.mark.parametrize("directory", ["not there", "text only", "a//b", "..", "job/../job", "./job"])
def test_a_directory_without_images_is_no_fault_of_the_storage(
    s3_bucket: Bucket, set_environment: Setter, directory: str
) -> None:
    s3_bucket.fill({"job/a.png": b"1", "text only/notes.txt": b"1"})
    with pytest.raises(NoImages):
        names(source(s3_bucket, set_environment), directory)


def test_a_container_that_is_not_there_costs_no_job_its_chance(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"job/a.png": b"1"})
    there = source(bucket, set_environment)
    [image] = there.list_images("job")
    bucket.remove()
    try:
        with pytest.raises(StorageFault, match="does not exist"):
            names(there)
        with pytest.raises(StorageFault, match="does not exist"):
            there.read(image)
    finally:
        bucket.emulator._create(bucket.name)


def test_a_folder_that_is_away_or_misspelt_costs_no_job_its_chance(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"root/job/a.png": b"1", "root/text only/notes.txt": b"1", "marked/": b""})
    for prefix in ("rooot", "roo", "root/job/a.png", "marked"):
        with pytest.raises(StorageFault, match=r"nothing below .*spelled"):
            names(source(bucket, set_environment, prefix))
    for directory in ("text only", "not there"):
        with pytest.raises(NoImages):
            names(source(bucket, set_environment, "root"), directory)


def test_whether_a_folder_is_away_is_asked_once_and_only_of_a_directory_without_images(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    bucket.fill({f"job/{number}.png": b"1" for number in range(3)} | {"a//b": b""})
    relay = relay_to(bucket.emulator.server)
    behind = source(bucket.behind(relay.address), set_environment)
    assert names(behind) == ["0.png", "1.png", "2.png"]
    assert len(relay.seen) == 1
    with pytest.raises(NoImages):
        names(behind, "not there")
    assert len(relay.seen) == 3
    # Who may list one directory alone is not told that the folder is away.
    relay.plan(Answer(403), after=1)
    with pytest.raises(NoImages):
        names(behind, "not there")
    assert len(relay.seen) == 5


def test_a_name_that_is_too_long_to_be_stored_is_cut_and_stays_unique(
    s3_bucket: Bucket, set_environment: Setter
) -> None:
    # S3 allows 1,024 bytes, and the service the same; only the cleaning of a longer path would be seen elsewhere.
    folder = "/".join(["ü" * 100] * 4)
    s3_bucket.fill({f"job/{folder}/{name}.png": name.encode() for name in ("one", "two")})
    listed = list(source(s3_bucket, set_environment).list_images("job"))
    assert len({image.name for image in listed}) == 2
    for image in listed:
        NewResult(image=image.name, status=ResultStatus.MISSING)


def test_an_object_that_cannot_be_named_fails_its_directory_for_good(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"job/a.png": b"1", "job/b//c.png": b"1"})
    with pytest.raises(BadName, match="rename") as caught:
        names(source(bucket, set_environment))
    assert (caught.value.reason, caught.value.retryable) == ("bad-name", False)
    bucket.fill({"slash/a.png/": b"123"})
    reader = source(bucket, set_environment)
    [image] = reader.list_images("slash")
    with pytest.raises(BadName, match=r"slash/a.png/' .*rename"):
        reader.read(image)


# --- the reading ---


def test_the_size_decides_before_an_object_is_read(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    bucket.fill({"job/just.png": bytes(MAX_BYTES), "job/over.png": bytes(MAX_BYTES + 1)})
    relay = relay_to(bucket.emulator.server)
    behind = source(bucket.behind(relay.address), set_environment)
    just, over = behind.list_images("job")
    assert behind.read(just) == bytes(MAX_BYTES)
    before = len(relay.seen)
    assert verdict(behind.read(over)).status is ResultStatus.TOO_LARGE
    assert len(relay.seen) == before
    grown = ImageFile(over.name, over.key, None, 1)
    assert verdict(behind.read(grown)).status is ResultStatus.TOO_LARGE


def test_an_object_that_went_after_the_listing_is_missing(bucket: Bucket, set_environment: Setter) -> None:
    bucket.fill({"job/a.png": b"1"})
    there = source(bucket, set_environment)
    [image] = there.list_images("job")
    bucket.delete("job/a.png")
    assert verdict(there.read(image)).status is ResultStatus.MISSING


def test_half_an_object_is_never_an_image(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    data = os.urandom(MAX_BYTES)
    s3_bucket.fill({"job/a.png": data})
    relay = relay_to(s3_bucket.emulator.server)
    behind = source(s3_bucket.behind(relay.address), set_environment)
    [image] = behind.list_images("job")
    relay.plan(Cut(0.5))
    assert behind.read(image) == data
    relay.plan(Cut(0.5), times=1_000)
    with pytest.raises(StorageFault):
        behind.read(image)


# --- who is let in ---


def allow(bucket: Bucket, *actions: str, below: str = "/*") -> dict[str, Any]:
    resource = f"arn:aws:s3:::{bucket.name}"
    return {"Effect": "Allow", "Action": list(actions), "Resource": [resource, resource + below]}


def deny(bucket: Bucket, key: str) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket.name}/{key}"}


@pytest.mark.parametrize("bucket_of", ["azure_bucket", "s3_bucket"])
def test_a_wrong_key_is_the_workers_misfortune(
    request: pytest.FixtureRequest, bucket_of: str, set_environment: Setter
) -> None:
    bucket: Bucket = request.getfixturevalue(bucket_of)
    bucket.fill({"job/a.png": b"1"})
    [image] = source(bucket, set_environment).list_images("job")
    set_environment(bucket.emulator.wrong_environment)
    wrong = ObjectSource(open_store(bucket.url, PATIENCE_SECONDS), MAX_BYTES)
    with pytest.raises(SourceDenied):
        names(wrong)
    with pytest.raises(SourceDenied):
        wrong.read(image)


def test_whoever_may_list_and_not_read_is_not_let_in(
    s3_server: S3Server, s3_bucket: Bucket, azurite: Azurite, azure_bucket: Bucket, set_environment: Setter
) -> None:
    for bucket in (s3_bucket, azure_bucket):
        bucket.fill({f"job/{number}.png": b"1" for number in range(3)})
    set_environment(s3_server.environment_of_user(allow(s3_bucket, "s3:ListBucket")))
    set_environment(
        {
            "AZURE_STORAGE_ACCOUNT_NAME": "emulated",
            "AZURE_STORAGE_ENDPOINT": azurite.endpoint,
            "AZURE_STORAGE_SAS_TOKEN": azurite.sas(azure_bucket.name, "l"),
        }
    )
    for bucket in (s3_bucket, azure_bucket):
        lister = ObjectSource(open_store(bucket.url, PATIENCE_SECONDS), MAX_BYTES)
        first, *_ = lister.list_images("job")
        with pytest.raises(SourceDenied, match="403"):
            lister.read(first)


@pytest.mark.parametrize("denied", ["job/0.png", "job/2.png"])
def test_one_object_that_may_not_be_read_costs_the_others_nothing(
    s3_server: S3Server, s3_bucket: Bucket, set_environment: Setter, denied: str
) -> None:
    s3_bucket.fill({f"job/{number}.png": b"1" for number in range(3)})
    set_environment(
        s3_server.environment_of_user(allow(s3_bucket, "s3:ListBucket", "s3:GetObject"), deny(s3_bucket, denied))
    )
    reader = ObjectSource(open_store(s3_bucket.url, PATIENCE_SECONDS), MAX_BYTES)
    read = {image.key: reader.read(image) for image in reader.list_images("job")}
    assert verdict(read.pop(denied)).status is ResultStatus.UNREADABLE
    assert list(read.values()) == [b"1", b"1"]


@pytest.mark.parametrize("first", ["", "other"], ids=["at once", "after another"])
def test_one_directory_that_may_not_be_listed_is_its_jobs_misfortune(
    bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter, first: str
) -> None:
    bucket.fill({"root/job/a.png": b"1", "root/other/a.png": b"1"})
    relay = relay_to(bucket.emulator.server)
    behind = source(bucket.behind(relay.address), set_environment, "root")
    if first:
        assert names(behind, first) == ["a.png"]
        # The rest of the source is closed, too, but for what was open before.
        relay.plan(Answer(403), times=1_000, matching=r"prefix=root(%2F|/)?(&|$)")
    relay.plan(Answer(403), times=1_000, matching=r"prefix=root(%2F|/)job")
    with pytest.raises(DirectoryDenied, match=r"job: access is denied \(403") as caught:
        names(behind)
    assert (caught.value.reason, caught.value.retryable) == ("directory-denied", True)
    assert names(behind, "other") == ["a.png"]


def test_one_directory_that_may_not_be_read_is_its_jobs_misfortune(
    s3_server: S3Server, s3_bucket: Bucket, set_environment: Setter
) -> None:
    s3_bucket.fill({f"{job}/sub/{number:02}.png": b"1" for job in ("job", "other") for number in range(30)})
    set_environment(
        s3_server.environment_of_user(allow(s3_bucket, "s3:ListBucket", "s3:GetObject"), deny(s3_bucket, "job/*"))
    )
    reader = ObjectSource(open_store(s3_bucket.url, PATIENCE_SECONDS), MAX_BYTES)
    for _ in range(2):
        for image in list(reader.list_images("job"))[:2]:
            with pytest.raises(DirectoryDenied, match="403"):
                reader.read(image)
        assert [reader.read(image) for image in reader.list_images("other")] == [b"1"] * 30


def test_a_credential_that_runs_out_stops_the_worker_and_makes_no_rows(
    s3_bucket: Bucket, relay_to: Callable[[str], Relay], set_environment: Setter
) -> None:
    s3_bucket.fill({f"job/{number}.png": b"1" for number in range(3)})
    relay = relay_to(s3_bucket.emulator.server)
    behind = source(s3_bucket.behind(relay.address), set_environment)
    first, second, _ = behind.list_images("job")
    assert behind.read(first) == b"1"
    relay.plan(Answer(400, body=b"<Error><Code>ExpiredToken</Code></Error>"), times=1_000)
    with pytest.raises(SourceDenied, match="ExpiredToken"):
        behind.read(second)
    with pytest.raises(SourceDenied, match="ExpiredToken"):
        names(behind)


# --- the worker ---


def test_a_source_is_opened_once_and_kept(s3_bucket: Bucket, set_environment: Setter) -> None:
    set_environment(s3_bucket.environment)
    sources = Sources(WorkerSettings.model_validate({"job_api_root": "http://h", "source_allow": s3_bucket.url}))
    opened = sources.open(f"{s3_bucket.url}/a%20b")
    assert sources.open(f"{s3_bucket.url}/a b/") is opened
    assert sources.open(f"{s3_bucket.url}/other") is not opened


def test_a_source_that_makes_no_sense_says_so(set_environment: Setter) -> None:
    settings = WorkerSettings.model_validate({"job_api_root": "http://h", "source_allow": "az://container"})
    with pytest.raises(SourceUnsupported, match="abfss://c@ACCOUNT"):
        open_source("abfss://c@evil.example/x", settings)
    with pytest.raises(SourceDenied, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_source("az://container/x", settings)


def upload(bucket: Bucket, corpus: Corpus) -> dict[tuple[str, str], str]:
    """Fill the bucket with what object storage can name; returns what each image is."""
    named = {key: smiles for key, smiles in corpus.smiles.items() if "\n" not in key[1]}
    bucket.fill({f"in put/{d}/{i}": (corpus.root / d / i).read_bytes() for d, i in named})
    return named


def submit(service: RunningService, bucket: Bucket, corpus: Corpus) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=f"{bucket.url}/in%20put", max_failures=1))
    admin.add_jobs(PROJECT, corpus.directories)


def test_every_image_in_a_bucket_gets_its_own_smiles(
    service: RunningService, bucket: Bucket, corpus: Corpus, start_worker: WorkerStarter, set_environment: Setter
) -> None:
    named = upload(bucket, corpus)
    submit(service, bucket, corpus)
    set_environment(bucket.environment)
    worker = start_worker(service.root, service.token("worker"), source_allow=bucket.url)
    assert worker.wait() == 0, worker.log
    rows = {(r["directory"], r["image"]): (r["status"], r["smiles"]) for r in service.client().results(PROJECT)}
    assert rows == {key: ("recognised", smiles) for key, smiles in named.items()}


@pytest.mark.parametrize("bucket_of", ["azure_bucket", "s3_bucket"])
def test_a_worker_with_a_wrong_key_gives_its_jobs_back_and_ends(
    request: pytest.FixtureRequest,
    bucket_of: str,
    service: RunningService,
    corpus: Corpus,
    start_worker: WorkerStarter,
    set_environment: Setter,
) -> None:
    bucket: Bucket = request.getfixturevalue(bucket_of)
    upload(bucket, corpus)
    submit(service, bucket, corpus)
    wrong = bucket.emulator.wrong_environment
    set_environment(wrong)
    worker = start_worker(service.root, service.token("worker"), once=False, source_allow=bucket.url)
    assert worker.wait() == 6, worker.log
    said = [line for line in worker.log.splitlines() if "the storage does not let this worker in" in line]
    assert len(said) == 1, worker.log
    assert "AZURE_STORAGE_ACCOUNT_KEY" in worker.log or "AWS_SECRET_ACCESS_KEY" in worker.log
    for value in wrong.values():
        assert value not in worker.log
    assert "Traceback" not in worker.log
    admin = service.client("admin")
    assert {job.state for job in admin.jobs(PROJECT)} == {JobState.QUEUED}
    jobs = [admin.job(PROJECT, job.id) for job in admin.jobs(PROJECT)]
    assert {attempt.outcome for job in jobs for attempt in job.attempts} == {"released"}
    assert service.sql("SELECT count(*) AS n FROM jobs WHERE failures > 0")[0]["n"] == 0
    assert any("does not let this worker in" in line.message for line in admin.logs())
    service.assert_counters_equal_recount()
