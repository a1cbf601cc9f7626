"""Which images a local source lists, under which names, and what becomes of those that cannot be read."""

import os
from pathlib import Path

import pytest

from job_api.schemas import NewResult, ResultStatus
from uworker.images import (
    NoImages,
    SourceNotAllowed,
    SourceUnsupported,
    StorageFault,
    Verdict,
    storable,
    unique,
)
from uworker.settings import WorkerSettings
from uworker.sources import open_source
from uworker.sources.local import LocalSource

MAX_BYTES = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "job").mkdir(parents=True)
    return root


def write(folder: Path, *names: str | bytes, content: bytes = b"bytes") -> None:
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def source(root: Path) -> LocalSource:
    return LocalSource(root, MAX_BYTES)


def names(root: Path, directory: str = "job") -> list[str]:
    return [image.name for image in source(root).list_images(directory)]


def verdicts(root: Path) -> dict[str, Verdict | bytes]:
    local = source(root)
    return {image.name: local.read(image) for image in local.list_images("job")}


def settings(**given: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"job_api_root": "http://h", **given})


def test_images_at_any_depth_are_listed_by_ending_in_the_order_of_their_names(root: Path) -> None:
    write(root / "job", "b.png", "a.PNG", "sub/deep/er/c.Jpeg", "sub/d.tiff", "e.webp", "f.heic", "g.svg", "h.pdf")
    write(root / "job", "notes.txt", "no ending", "png", "x.png.bak", "archive.zip")
    assert names(root) == ["a.PNG", "b.png", "e.webp", "f.heic", "g.svg", "h.pdf", "sub/d.tiff", "sub/deep/er/c.Jpeg"]


def test_what_a_system_leaves_behind_is_no_image(root: Path) -> None:
    write(root / "job", "._a.png", ".hidden/b.png", "__MACOSX/c.png", "Thumbs.db", ".DS_Store", "d.png")
    assert names(root) == ["d.png"]


def test_a_name_that_is_not_utf8_is_shown_cleaned_and_read_by_its_bytes(root: Path) -> None:
    write(root / "job", b"caf\xe9.png", content=b"latin-1")
    write(root / "job", "line\nbreak.png", content=b"newline")
    assert verdicts(root) == {"caf\\xe9.png": b"latin-1", "line\nbreak.png": b"newline"}


def test_two_files_that_would_be_shown_alike_get_a_row_each(root: Path) -> None:
    write(root / "job", b"caf\xe9.png", content=b"latin-1")
    write(root / "job", "caf\\xe9.png", content=b"spelt out")
    shown = verdicts(root)
    assert sorted(map(bytes, shown.values())) == [b"latin-1", b"spelt out"]  # type: ignore[arg-type]
    assert shown["caf\\xe9.png"] == b"spelt out", "the name that needs no cleaning is kept"


def test_a_path_that_is_too_long_to_be_stored_is_cut_and_stays_unique(root: Path) -> None:
    folder = "/".join(["ü" * 100] * 6)
    write(root / "job", f"{folder}/one.png", f"{folder}/two.png")
    shown = names(root)
    assert len(set(shown)) == 2
    for name in shown:
        NewResult(image=name, status=ResultStatus.MISSING)


def test_a_listing_is_a_stream_and_looks_into_a_folder_when_it_comes_to_it(root: Path) -> None:
    write(root / "job", "a/1.png", "b/2.png", "b.png", "c/3.png")
    images = source(root).list_images("job")
    assert next(images).name == "a/1.png"
    write(root / "job", "c/4.png")
    assert [image.name for image in images] == ["b.png", "b/2.png", "c/3.png", "c/4.png"]


def test_folders_and_files_are_in_the_order_of_their_whole_paths(root: Path) -> None:
    shown = ["a!/1.png", "a-1.png", "a.png", "a.png.png", "a/1.png", "a/b/2.png", "a0.png", "a0/3.png", "é.png"]
    write(root / "job", *reversed(shown))
    assert names(root) == shown == sorted(shown)


def test_the_listing_knows_the_sizes_also_behind_links(root: Path) -> None:
    write(root / "job", "a.png", content=bytes(7))
    (root / "job/b.png").symlink_to("a.png")
    (root / "job/c.png").symlink_to("nothing")
    sizes = {image.name: image.size for image in source(root).list_images("job")}
    assert sizes == {"a.png": 7, "b.png": 7, "c.png": None}


def test_a_folder_that_goes_during_the_listing_is_passed_over_but_not_a_root(root: Path, tmp_path: Path) -> None:
    """A disk that is taken away must not make a job look shorter than it is."""
    write(root / "job", "a.png", "b/1.png", "c/1.png", "d/1.png")
    images = source(root).list_images("job")
    assert next(images).name == "a.png"
    (root / "job/b").rename(tmp_path / "gone")
    assert next(images).name == "c/1.png"
    root.rename(tmp_path / "unmounted")
    with pytest.raises(StorageFault):
        next(images)


def test_only_names_that_cleaning_can_have_made_are_kept_to_tell_them_apart() -> None:
    kept = set[str]()
    for path in ("plain.png", "plain.png (2)", "Grüße (1999)/#1 100%+.png", os.fsdecode(b"caf\xe9.png"), "x\0y.png"):
        unique(storable(path), kept)
    assert kept == {"caf\\xe9.png", "x\ufffdy.png"}
    # Whatever a changed name may be equal to is kept as well.
    spelt = [unique(storable(path), kept) for path in ("caf\\xe9.png", "x\ufffdy.png", "ü" * 600, "ü" * 600)]
    assert spelt[:2] == ["caf\\xe9.png (2)", "x\ufffdy.png (2)"]
    assert spelt[3] == f"{spelt[2]} (2)"


def test_a_link_out_of_the_source_is_a_row_and_is_not_read(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret.png", "elsewhere/secret.png")
    (root / "job/link.png").symlink_to(tmp_path / "secret.png")
    (root / "job/climbing.png").symlink_to("../../secret.png")
    (root / "job/folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = verdicts(root)
    assert set(found) == {"link.png", "climbing.png"}
    for verdict in found.values():
        assert isinstance(verdict, Verdict)
        assert verdict.status is ResultStatus.UNREADABLE
        assert "leads out of the source" in verdict.message


def test_a_file_that_becomes_a_link_out_after_the_listing_is_not_read(root: Path, tmp_path: Path) -> None:
    write(root / "job", "a.png")
    write(tmp_path, "secret.png", content=b"secret")
    local = source(root)
    [image] = local.list_images("job")
    (root / "job/a.png").unlink()
    (root / "job/a.png").symlink_to(tmp_path / "secret.png")
    verdict = local.read(image)
    assert isinstance(verdict, Verdict)
    assert verdict.status is ResultStatus.UNREADABLE


def test_links_inside_the_source_are_followed_once_and_never_in_circles(root: Path) -> None:
    write(root, "shared/s.png", "job/real/r.png")
    (root / "job/shared-1").symlink_to(root / "shared", target_is_directory=True)
    (root / "job/shared-2").symlink_to(root / "shared", target_is_directory=True)
    (root / "job/real/round").symlink_to(root / "job", target_is_directory=True)
    (root / "job/a link.png").symlink_to(root / "shared/s.png")
    assert names(root) == ["a link.png", "real/r.png", "shared-1/s.png"]


def test_a_directory_keeps_its_own_name_when_a_link_leads_to_it_too(root: Path) -> None:
    write(root / "job", "m/image.png", "a/x.png", "z/x.png")
    for name in ("a/link", "b", "zz"):
        (root / "job" / name).symlink_to(root / "job/m", target_is_directory=True)
    assert names(root) == ["a/x.png", "m/image.png", "z/x.png"]


def test_a_link_to_itself_is_unreadable_and_costs_its_neighbours_nothing(root: Path) -> None:
    write(root / "job", "good.png")
    (root / "job/loop.png").symlink_to("loop.png")
    found = verdicts(root)
    assert found["good.png"] == b"bytes"
    assert isinstance(found["loop.png"], Verdict)
    assert found["loop.png"].status is ResultStatus.UNREADABLE


def test_the_size_decides_before_a_file_is_read(root: Path) -> None:
    write(root / "job", "just.png", content=bytes(MAX_BYTES))
    write(root / "job", "over.png", content=bytes(MAX_BYTES + 1))
    with (root / "job/sparse.png").open("wb") as file:
        file.truncate(10**12)
    found = verdicts(root)
    assert found["just.png"] == bytes(MAX_BYTES)
    for name in ("over.png", "sparse.png"):
        verdict = found[name]
        assert isinstance(verdict, Verdict)
        assert verdict.status is ResultStatus.TOO_LARGE
        assert str(MAX_BYTES) in verdict.message


def test_a_pipe_is_unreadable_and_holds_nothing_up(root: Path) -> None:
    os.mkfifo(root / "job/pipe.png")
    [verdict] = verdicts(root).values()
    assert isinstance(verdict, Verdict)
    assert verdict.status is ResultStatus.UNREADABLE


@pytest.mark.parametrize("gone", ["job/a.png", "job"])
def test_a_file_that_went_after_the_listing_is_missing(root: Path, gone: str) -> None:
    write(root, "job/a.png", "other/b.png")
    local = source(root)
    [image] = local.list_images("job")
    (root / gone).rename(root / "other/away")
    verdict = local.read(image)
    assert isinstance(verdict, Verdict)
    assert verdict.status is ResultStatus.MISSING


@pytest.mark.parametrize("directory", ["not there", "empty", "text only", "a file", "job/../job", ".."])
def test_a_directory_without_images_is_no_fault_of_the_storage(root: Path, directory: str) -> None:
    write(root, "job/a.png", "text only/notes.txt", "a file")
    (root / "empty").mkdir()
    with pytest.raises(NoImages) as caught:
        list(source(root).list_images(directory))
    assert (caught.value.reason, caught.value.retryable) == ("no-images", False)


@pytest.mark.parametrize("directory", ["link", "/etc", "link/below"])
def test_a_directory_that_leads_out_of_the_source_is_not_read(root: Path, tmp_path: Path, directory: str) -> None:
    write(tmp_path, "elsewhere/below/secret.png")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(SourceNotAllowed):
        list(source(root).list_images(directory))


def test_a_root_that_is_not_mounted_fails_its_jobs_for_now_only(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mount point").mkdir()
    write(tmp_path, "a file")
    for unmounted in ("nowhere", "mount point", "a file"):
        with pytest.raises(StorageFault) as caught:
            list(source(tmp_path / unmounted).list_images("job"))
        assert (caught.value.reason, caught.value.retryable) == ("storage", True)


def test_a_root_that_goes_away_while_images_are_read_is_a_fault_and_no_result(root: Path, tmp_path: Path) -> None:
    write(root / "job", "a.png")
    local = source(root)
    [image] = local.list_images("job")
    root.rename(tmp_path / "unmounted")
    with pytest.raises(StorageFault):
        local.read(image)
    root.mkdir()
    with pytest.raises(StorageFault):
        local.read(image)


@pytest.mark.parametrize("written", ["{root}", "file://{root}", "file://localhost{root}"])
def test_a_local_source_is_written_as_a_path_or_a_file_url(tmp_path: Path, written: str) -> None:
    root = tmp_path / "100 plain"
    write(root / "job", "a.png")
    found = open_source(written.format(root=str(root)), settings()).list_images("job")
    assert [image.name for image in found] == ["a.png"]


def test_a_file_url_is_decoded_and_a_path_is_not(tmp_path: Path) -> None:
    write(tmp_path, "100% pure #1/job/a.png", "100%25/job/b.png")
    url = (tmp_path / "100% pure #1").as_uri()
    assert [image.name for image in open_source(url, settings()).list_images("job")] == ["a.png"]
    assert [i.name for i in open_source(str(tmp_path / "100%25"), settings()).list_images("job")] == ["b.png"]


@pytest.mark.parametrize("url", ["ftp://host/x", "file://other-host/x", "relative/path"])
def test_what_is_not_local_is_refused_with_what_to_set(url: str) -> None:
    with pytest.raises(SourceUnsupported, match="UWORKER_SOURCE_ROOT") as caught:
        open_source(url, settings())
    assert (caught.value.reason, caught.value.retryable) == ("source-unsupported", True)


def test_a_worker_that_mounts_the_root_elsewhere_reads_there_whatever_the_project_says(root: Path) -> None:
    write(root / "job", "a.png")
    found = open_source("s3://bucket/x", settings(source_root=root)).list_images("job")
    assert [image.name for image in found] == ["a.png"]


def test_only_allowed_folders_are_read_links_and_neighbours_included(root: Path, tmp_path: Path) -> None:
    write(root / "job", "a.png")
    write(tmp_path, "root-neighbour/job/a.png")
    (tmp_path / "way in").symlink_to(root, target_is_directory=True)
    (root / "way out").symlink_to(tmp_path / "root-neighbour", target_is_directory=True)
    allowing = settings(source_allow=str(root))
    for allowed in (root, tmp_path / "way in"):
        assert len(list(open_source(str(allowed), allowing).list_images("job"))) == 1
    for refused in (tmp_path, tmp_path / "root-neighbour", root / "way out", root / "../root-neighbour"):
        with pytest.raises(SourceNotAllowed, match="UWORKER_SOURCE_ALLOW"):
            open_source(str(refused), allowing)
