"""smiles_output.json as a document, the patterns that fill it, and its writing into a folder: whole or not at all."""

import json
import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from job_api.name_patterns import NameParts, NamePattern
from job_api.schemas import DoneResult, Lease, ResultStatus
from job_api.stores import open_store
from tests.emulators.azurite import Azurite
from tests.emulators.buckets import Bucket
from tests.plugins.holder import LEASE
from uworker.images import SourceNotAllowed, SourceUnsupported, StorageFault
from uworker.results_file import CHUNK_BYTES, FILE_NAME, ResultsFile
from uworker.settings import WorkerSettings
from uworker.sources import Sources
from uworker.targets import LocalTarget, SourceReadOnly, StoreTarget, open_target

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAMES = r"sequence_(?P<sequence>\d+)(?:\.(?P<sub_sequence>\d+))?(?:_(?P<part>left|right))?"


def row(image: str, status: str = "recognised", **fields: Any) -> DoneResult:
    """A row as the service gives it to the job's holder."""
    said = {"smiles": "CCO", "confidence_mean": 0.9, "confidence_min": 0.5} if status == "recognised" else {}
    empty = dict.fromkeys(("smiles", "confidence_mean", "confidence_min", "error_message"))
    return DoneResult(**{"image": image, "status": status, "processed_at": NOON, **empty, **said, **fields})


def document(*rows: DoneResult, directory: str = "Name (Author Year)/output", pattern: str | None = None) -> Any:
    with ResultsFile(directory, NamePattern(pattern) if pattern else None) as file:
        file.add(rows)
        return json.loads(b"".join(file.chunks()))


def test_a_document_says_of_each_image_what_became_of_it() -> None:
    made = document(
        row("a/sequence_01_left.png", smiles="C[C@H](N)O", confidence_mean=0.75, confidence_min=0.25),
        row("a/sequence_02.3.png", "blank", error_message="nothing is drawn", processed_at=NOON + timedelta(hours=1)),
        row('Größe "x".png', confidence_mean=None, confidence_min=None),
        pattern=NAMES,
    )
    assert made == {
        "synthesis": "Name (Author Year)",
        "processed_at": "2026-11-21T13:00:00Z",
        "total_images": 3,
        "successful": 2,
        "failed": 1,
        "entries": [
            {
                "id": 1,
                "file": "a/sequence_01_left.png",
                "sequence": "01",
                "sub_sequence": None,
                "part": "left",
                "smiles": "C[C@H](N)O",
                "confidence": {"average": 0.75, "min": 0.25, "per_token": None},
                "error": None,
            },
            {
                "id": 2,
                "file": "a/sequence_02.3.png",
                "sequence": "02",
                "sub_sequence": "3",
                "part": None,
                "smiles": None,
                "confidence": None,
                "error": {"status": "blank", "message": "nothing is drawn"},
            },
            {
                "id": 3,
                "file": 'Größe "x".png',
                "sequence": None,
                "sub_sequence": None,
                "part": None,
                "smiles": "CCO",
                "confidence": None,
                "error": None,
            },
        ],
    }
    assert list(made) == ["synthesis", "processed_at", "total_images", "successful", "failed", "entries"]


@pytest.mark.parametrize("status", [status for status in ResultStatus if status is not ResultStatus.RECOGNISED])
def test_whatever_is_not_recognised_has_failed(status: ResultStatus) -> None:
    made = document(row("1.png", status.value))
    assert (made["total_images"], made["successful"], made["failed"]) == (1, 0, 1)
    [entry] = made["entries"]
    assert (entry["smiles"], entry["error"]) == (None, {"status": status.value, "message": None})


@pytest.mark.parametrize(
    ("pattern", "images"),
    [
        (None, ["a/2.png", "a/10.png", "b/1.png", "image 2.png", "image 02.png", "image 10.png"]),
        (NAMES, ["z/sequence_2_left.png", "a/sequence_10.png", "b/sequence_10.png", "0.png"]),
        (r"^(?P<part>.)", ["1.png", "02.png", "3.png"]),
    ],
)
def test_entries_go_by_sequence_and_then_by_name_with_numbers_by_their_value(
    pattern: str | None, images: list[str]
) -> None:
    for given in (images, sorted(images), images[::-1]):
        made = document(*map(row, given), pattern=pattern)
        files = [entry["file"] for entry in made["entries"]]
        # Of two spellings of one number the order is fixed, whatever it is.
        assert [file.replace("02", "2") for file in files] == [image.replace("02", "2") for image in images]
        assert [entry["id"] for entry in made["entries"]] == list(range(1, len(images) + 1))


def test_a_document_without_rows_is_one_all_the_same() -> None:
    assert document(directory="a") == {
        "synthesis": "a",
        "processed_at": None,
        "total_images": 0,
        "successful": 0,
        "failed": 0,
        "entries": [],
    }


def test_a_large_document_comes_in_pieces() -> None:
    with ResultsFile("a", None) as file:
        file.add(row(f"{number}.png", smiles="C" * 4000) for number in range(1000))
        pieces = list(file.chunks())
    assert len(pieces) > 10
    assert all(len(piece) < 2 * CHUNK_BYTES for piece in pieces)
    entries = json.loads(b"".join(pieces))["entries"]
    assert [entry["file"] for entry in entries] == [f"{number}.png" for number in range(1000)]


# --- patterns ---


@pytest.mark.parametrize(
    ("pattern", "name", "parts"),
    [
        (NAMES, "sequence_01_left.png", NameParts("01", None, "left")),
        (NAMES, "my sequence_12.3_right (copy).png", NameParts("12", "3", "right")),
        (NAMES, "other.png", NameParts()),
        (r"(?P<part>[ä-ü]+)", "A äöü.png", NameParts(part="äöü")),
        (r"(?P<sequence>\d*)x", "x.png", NameParts()),
        (r"(?i)PAGE(-| )(?P<sequence>\d+)", "page-7.png", NameParts("7")),
    ],
)
def test_a_pattern_takes_out_of_a_name_what_its_groups_say(pattern: str, name: str, parts: NameParts) -> None:
    assert NamePattern(pattern).find(name) == parts


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?P<sequence>", r"missing \)"),
        (r"(?P<sequence>\d)\1", "invalid escape sequence"),
        (r"(?P<sequence>\d)(?=_)", "invalid perl operator"),
        (r"(?P<sequence>(((a{1,1000}){1,1000}){1,1000}))", "RE2"),
        (r"\d+", "at least one of the groups"),
        (r"(\d+)", "at least one of the groups"),
        (r"(?P<sequence>\d)(?P<chapter>\d)", "no other"),
        ("(?P<sequence>\ud800)", "not UTF-8"),
        (r"(?P<sequence>\d)" + "a" * 500, "at most 500"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NamePattern(pattern)


def test_no_pattern_takes_long() -> None:
    """Python's own `re` would need longer than the universe is old."""
    pattern = NamePattern(r"(?P<sequence>(a+)+)$")
    began = time.monotonic()
    assert pattern.find("a" * 1000 + "!") == NameParts()
    assert time.monotonic() - began < 30


# --- writing into a folder ---


def lease(directory: str = "a", lease_seq: int = 3) -> Lease:
    return LEASE.model_copy(update={"directory": directory, "lease_seq": lease_seq})


def breaking() -> Iterator[bytes]:
    yield b"half"
    raise RuntimeError("stop")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "source" / "a").mkdir(parents=True)
    return tmp_path / "source"


def test_a_file_is_put_in_the_place_of_the_one_before_with_the_mode_of_a_new_file(root: Path) -> None:
    target = root / "a" / FILE_NAME
    target.write_text("old")
    target.chmod(0o600)
    before = os.umask(0o027)
    try:
        LocalTarget(root).write(lease(), [b"ne", b"w"])
    finally:
        os.umask(before)
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in (root / "a").iterdir()] == [FILE_NAME]


def test_what_breaks_off_leaves_the_old_file_and_nothing_else(root: Path) -> None:
    target = root / "a" / FILE_NAME
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        LocalTarget(root).write(lease(), breaking())
    assert target.read_text() == "old"
    assert [path.name for path in (root / "a").iterdir()] == [FILE_NAME]


def test_what_a_killed_worker_left_is_removed_by_a_later_lease_alone(root: Path) -> None:
    others = ["18-1", "17-4", "17-x"]
    for number in ("17-2", "17-3", *others):
        (root / "a" / f".{FILE_NAME}.{number}").write_text("half")
    LocalTarget(root).write(lease(lease_seq=3), [b"{}"])
    assert {path.name for path in (root / "a").iterdir()} == {FILE_NAME, *(f".{FILE_NAME}.{n}" for n in others)}


def test_links_are_followed_inside_the_source_and_nowhere_else(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "inner").symlink_to(root / "a", target_is_directory=True)
    (root / "out").symlink_to(outside, target_is_directory=True)
    LocalTarget(root).write(lease("inner"), [b"{}"])
    assert (root / "a" / FILE_NAME).read_bytes() == b"{}"
    for directory in ("out", "../outside"):
        with pytest.raises(SourceNotAllowed):
            LocalTarget(root).write(lease(directory), [b"{}"])
    assert list(outside.iterdir()) == []


def test_a_link_in_the_files_place_is_replaced_and_not_followed(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("old")
    (root / "a" / FILE_NAME).symlink_to(precious)
    (root / "a" / f".{FILE_NAME}.17-3").symlink_to(precious)
    LocalTarget(root).write(lease(), [b"new"])
    assert precious.read_text() == "old"
    assert not (root / "a" / FILE_NAME).is_symlink()
    assert (root / "a" / FILE_NAME).read_text() == "new"


def test_a_folder_that_becomes_a_link_while_it_is_written_to_leads_nowhere(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def swapping() -> Iterator[bytes]:
        yield b"{"
        (root / "a").rename(root / "moved")
        (root / "a").symlink_to(outside, target_is_directory=True)
        yield b"}"

    LocalTarget(root).write(lease(), swapping())
    assert list(outside.iterdir()) == []
    assert [(path.name, path.read_bytes()) for path in (root / "moved").iterdir()] == [(FILE_NAME, b"{}")]


@pytest.mark.parametrize(
    ("where", "directory", "words"),
    [
        ("/sys", "kernel", "turn results_file off"),
        ("{root}", "gone", "No such file"),
        ("{root}", "a", "Is a directory"),
    ],
)
def test_where_it_cannot_be_written_is_a_fault_of_storage_that_says_what_to_do(
    root: Path, where: str, directory: str, words: str
) -> None:
    (root / "a" / FILE_NAME).mkdir()
    with pytest.raises(StorageFault, match=words) as refused:
        LocalTarget(Path(where.format(root=root))).write(lease(directory), [b"{}"])
    assert (refused.value.reason, refused.value.retryable) == ("storage", True)
    assert [path.name for path in (root / "a").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("mounted", [False, True])
def test_a_file_goes_where_the_worker_reads_the_images(tmp_path: Path, mounted: bool) -> None:
    root = tmp_path / "a b#1%20 é"
    (root / "a").mkdir(parents=True)
    settings = WorkerSettings(job_api_root="http://x", job_api_token="t", source_root=root if mounted else None)
    source = "az://container/folder" if mounted else root.as_uri()
    job = lease().model_copy(update={"source": source})
    open_target(job, Sources(settings)).write(job, [b"{}"])
    assert (root / "a" / FILE_NAME).read_bytes() == b"{}"


def test_where_a_worker_may_not_read_it_does_not_write(tmp_path: Path) -> None:
    (tmp_path / "other" / "a").mkdir(parents=True)
    settings = WorkerSettings(job_api_root="http://x", job_api_token="t", source_allow=f"{tmp_path}/mine,s3://mine")
    for source in ((tmp_path / "other").as_uri(), "s3://other/folder"):
        with pytest.raises(SourceNotAllowed, match="UWORKER_SOURCE_ALLOW"):
            open_target(lease().model_copy(update={"source": source}), Sources(settings))


def test_a_source_that_makes_no_sense_is_refused_without_its_secrets() -> None:
    settings = WorkerSettings(job_api_root="http://x", job_api_token="t")
    for source in (
        "s3://key:hunter2@bucket",
        "az://container/folder?sig=hunter2",
        "https://u:hunter2@host/x?sig=hunter2",
    ):
        job = lease().model_copy(update={"source": source, "results_file": True})
        with pytest.raises((SourceUnsupported, SourceReadOnly)) as refused:
            open_target(job, Sources(settings))
        assert "hunter2" not in str(refused.value)


# --- writing into object storage ---


def store_target(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> StoreTarget:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return StoreTarget(open_store(f"{bucket.url}/top"))


@pytest.mark.parametrize("pieces", [1, 60], ids=["small", "in many parts"])
def test_an_object_is_put_in_the_place_of_the_one_before(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    directory = "Größe (a%20b)+/output #1"
    target = store_target(bucket, monkeypatch)
    target.write(lease(directory), [b"old"])
    target.write(lease(directory), [b"new" + b"x" * 200_000] * pieces)
    assert bucket.content() == {f"top/{directory}/{FILE_NAME}": (b"new" + b"x" * 200_000) * pieces}


@pytest.mark.parametrize("pieces", [1, 60], ids=["small", "in many parts"])
def test_an_object_whose_writing_breaks_off_is_not_put_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    def breaking() -> Iterator[bytes]:
        yield from [b"x" * 200_000] * pieces
        raise RuntimeError("stop")

    target = store_target(bucket, monkeypatch)
    target.write(lease(), [b"old"])
    with pytest.raises((RuntimeError, StorageFault)):
        target.write(lease(), breaking())
    assert bucket.content() == {f"top/a/{FILE_NAME}": b"old"}


def test_storage_that_refuses_is_a_fault_of_storage_that_says_what_to_do(
    azurite: Azurite, azure_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in azurite.wrong_environment.items():
        monkeypatch.setenv(name, value)
    target = StoreTarget(open_store(azure_bucket.url))
    with pytest.raises(StorageFault, match="turn results_file off") as refused:
        target.write(lease(), [b"{}"])
    assert (refused.value.reason, refused.value.retryable) == ("storage", True)
    assert azure_bucket.content() == {}


def test_the_store_that_the_images_are_read_with_is_written_with(
    azurite: Azurite, azure_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure_bucket.fill({"top/a/1.png": b"1"})
    for name, value in azure_bucket.environment.items():
        monkeypatch.setenv(name, value)
    job = lease().model_copy(update={"source": f"{azure_bucket.url}/top"})
    sources = Sources(WorkerSettings(job_api_root="http://x", job_api_token="t", source_allow=job.source))
    assert [image.name for image in sources.open(job.source).list_images("a")] == ["1.png"]
    # A store that is opened from now on is let in nowhere.
    for name, value in azurite.wrong_environment.items():
        monkeypatch.setenv(name, value)
    open_target(job, sources).write(job, [b"{}"])
    assert azure_bucket.content()[f"top/a/{FILE_NAME}"] == b"{}"
