"""Which directories lie below a place, and which of them patterns choose."""

import subprocess
import sys
from pathlib import Path

import pytest

from job_api.listing import CannotList, Choice, as_url, list_directories, same_place

DECOMPOSED, COMPOSED = "Lope\u0301z", "Lop\u00e9z"


def left(names: list[str], include: list[str] | None = None, exclude: list[str] | None = None) -> list[str]:
    choice = Choice(include or [], exclude or [])
    return [name for name in names if choice.wants(name)]


# --- patterns ---


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        ([], [], ["Ash 1999", "Ash 2001", "ash", ".tmp"]),
        (["Ash*"], [], ["Ash 1999", "Ash 2001"]),
        (["Ash"], [], []),
        (["?sh"], [], ["ash"]),
        (["*1999", "ash"], [], ["Ash 1999", "ash"]),
        (["*[!9]"], [], ["Ash 2001", "ash", ".tmp"]),
        ([], ["*tmp", "a*"], ["Ash 1999", "Ash 2001"]),
        (["Ash*"], ["*2001"], ["Ash 1999"]),
        (["ash"], ["ash"], []),
        (["*"], ["*"], []),
    ],
)
def test_patterns_choose_whole_names_and_exclude_wins(
    include: list[str], exclude: list[str], wanted: list[str]
) -> None:
    assert left(["Ash 1999", "Ash 2001", "ash", ".tmp"], include, exclude) == wanted


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("Name*", "Name (Author 1999)/output"),
        ("*/output", "Name (Author 1999)/output"),
        ("Name (Author 1999)", "./Name (Author 1999)/"),
        ("./Name/", "Name"),
        ("a[[]R1]", "a[R1]"),
        ("100%*", "100%20 #+"),
        ("two\nlines", "two\nlines"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("Lop?z", DECOMPOSED),
        ("caf*", "caf\udce9"),
    ],
)
def test_pattern_matches_odd_names(pattern: str, name: str) -> None:
    assert left([name], [pattern]) == [name]


def test_patterns_that_match_nothing_are_known() -> None:
    choice = Choice(["a*", "it's*"], ["ab*", "z"])
    assert list(choice.unmatched()) == ["--include 'a*'", "--include 'it'\"'\"'s*'", "--exclude 'ab*'", "--exclude z"]
    assert [choice.wants(name) for name in ("abc", "ac", "b")] == [False, True, False]
    assert list(choice.unmatched()) == ["--include 'it'\"'\"'s*'", "--exclude z"]


# --- places ---


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("file:///data/a%20b", "file:///data/a b/", True),
        ("s3://bucket/a%20b/", "s3://bucket/a b", True),
        ("s3://bucket/a", "s3://bucket/b", False),
        ("s3://bucket/a", "gs://bucket/a", False),
        ("odd://x", "odd://x", True),
        ("odd://x", "file:///x", False),
    ],
)
def test_spellings_of_a_place(one: str, other: str, same: bool) -> None:
    assert same_place(one, other) is same


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3://key:hunter2@bucket/x", "az://c/x?sig=hunter2"])
def test_url_that_makes_no_sense_is_refused_without_showing_a_secret(url: str) -> None:
    with pytest.raises(CannotList) as refused:
        as_url(url)
    assert "hunter2" not in str(refused.value)


def test_web_server_is_not_listed_and_what_to_do_is_said() -> None:
    with pytest.raises(CannotList, match=r"--jobs-file FILE.*--source https://host/x"):
        list_directories(as_url("https://host/x"))


def test_local_directories_are_listed_by_path_and_by_url(tmp_path: Path) -> None:
    root = tmp_path / "50% #1 é"
    for name in ("b", "a c", "%20", "é"):
        (root / name / "below").mkdir(parents=True)
    (root / "file.png").touch()
    assert list_directories(as_url(str(root))) == ["%20", "a c", "b", "é"]
    assert list_directories(root.as_uri()) == ["%20", "a c", "b", "é"]


def test_images_in_the_root_itself_are_told_from_nothing(tmp_path: Path) -> None:
    root = tmp_path / "a [R1]"
    root.mkdir()
    with pytest.raises(CannotList, match=f"nothing lies below {tmp_path}"):
        list_directories(root.as_uri())
    (root / "1.png").touch()
    with pytest.raises(CannotList) as refused:
        list_directories(root.as_uri())
    assert f"{root} holds files, such as '1.png', and no directory" in str(refused.value)
    assert str(refused.value).endswith(f"--list {tmp_path} --include 'a [[]R1]'")
    assert left(list_directories(tmp_path.as_uri()), ["a [[]R1]"]) == ["a [R1]"]


def test_object_storage_is_loaded_only_when_it_is_wanted() -> None:
    code = "import sys, add_jobs, job_api.cli; print([name for name in sys.modules if name.startswith('obstore')])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert result.stdout == "[]\n"
