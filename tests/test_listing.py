"""Which directories lie below a place, and which of them patterns choose."""

import subprocess
import sys
from pathlib import Path

import pytest

from job_api.listing import CannotList, Choice, as_url, list_directories, same_place
from tests.emulators.web import WebServer
from tests.scripted import Answer, serving

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


def test_directories_on_a_web_server_are_those_of_its_index(web_server: WebServer) -> None:
    names = ["a b#1", "100%", "天然物 (田中 2021)", "d+e", "x" * 200]
    web_server.fill({f"images/{name}/output/1.png": b"x" for name in names} | {"images/loose.png": b"x"})
    place = as_url(f"{web_server.address}/images/")
    assert list_directories(place) == sorted(names)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"images/1.png": b"x"}, "holds files, such as '1.png', and no directory"),
        ({"images/index.html": b"<p>Welcome"}, "is no index of files .* autoindex on.* --jobs-file"),
        ({"else/1.png": b"x"}, "nothing at .*/images .HTTP 404.; is it spelled as it should be"),
    ],
)
def test_web_server_without_directories_says_what_it_shows(
    web_server: WebServer, files: dict[str, bytes], said: str
) -> None:
    web_server.fill(files)
    with pytest.raises(CannotList, match=said):
        list_directories(as_url(f"{web_server.address}/images"))


def test_web_server_without_directories_is_asked_once() -> None:
    index = b'<title>Index of /</title><a href="../">../</a><a href="1.png">1.png</a>'
    with serving(lambda _: Answer(body=index, headers={"Content-Type": "text/html"})) as server:
        with pytest.raises(CannotList, match=r"holds files, such as '1\.png', and no directory"):
            list_directories(as_url(f"{server.root}/images"))
        assert [asked.path for asked in server.asked] == ["/images/"]


def test_web_server_that_is_busy_is_asked_again_and_one_that_wants_a_login_gets_that_of_its_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    index = b'<title>Index of /</title><a href="one/">one/</a><a href="two.png">two</a>'
    answers = [Answer(503, headers={"Retry-After": "0"}), Answer(body=index, headers={"Content-Type": "text/html"})]
    with serving(lambda asked: answers.pop(0) if asked.authorization else Answer(401)) as server:
        with pytest.raises(CannotList, match=r"HTTP 401.*\.netrc"):
            list_directories(as_url(server.root))
        netrc.write_text("machine 127.0.0.1 login me password secret-1\n")
        netrc.chmod(0o600)
        assert list_directories(as_url(server.root)) == ["one"]
    assert [asked.authorization is None for asked in server.asked] == [True, False, False]


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
    code = "import sys, add_jobs, job_api.cli, job_api.main; print([m for m in sys.modules if m.startswith('obstore')])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert result.stdout == "[]\n"
