"""What of a clone goes into an image, and what is said of its commit."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.containers.workers import REPOSITORY
from uworker.snapshot.builder import BuildError
from uworker.snapshot.tree import UNKNOWN, code_files, revision_of


def git(source: Path, *arguments: str) -> None:
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *author, *arguments]
    subprocess.run(command, cwd=source, env=os.environ | settings, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of two files of code, one that git ignores, and a page."""
    root = tmp_path / "clone"
    for name in ("job_api/client.py", "uworker/cli.py", "uworker/my.conf", "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("content\n")
    (root / ".gitignore").write_text("*.conf\n")
    git(root, "init")
    git(root, "add", "--all")
    git(root, "commit", "-m", "first")
    return root


def test_a_clone_as_it_was_committed_is_its_commit(clone: Path) -> None:
    revision = revision_of(clone)
    assert re.fullmatch("[0-9a-f]{40}", revision.commit)
    assert str(revision) == revision.commit[:7]
    assert not revision.dirty


@pytest.mark.parametrize("name", ["uworker/cli.py", "uworker/new.py", "docker/worker/Dockerfile", "uv.lock"])
def test_a_change_of_what_goes_into_the_image_is_told(clone: Path, name: str) -> None:
    (clone / name).parent.mkdir(parents=True, exist_ok=True)
    (clone / name).write_text("changed\n")
    revision = revision_of(clone)
    assert str(revision) == f"{revision.commit[:7]}, changed"


@pytest.mark.parametrize("name", ["README.md", "jobs.txt", "uworker/my.conf"])
def test_a_change_of_anything_else_is_none(clone: Path, name: str) -> None:
    (clone / name).write_text("changed\n")
    assert not revision_of(clone).dirty


def test_the_code_is_what_lies_there_less_what_git_ignores(clone: Path) -> None:
    (clone / "uworker" / "new with ü.py").write_text("untracked\n")
    (clone / "uworker" / "deep" / "er").mkdir(parents=True)
    (clone / "uworker" / "deep" / "er" / "new.py").write_text("untracked\n")
    (clone / "uworker" / "worker.env").write_text("a token, which nobody meant to put there\n")
    (clone / "job_api" / "client.py").unlink()
    assert [path.as_posix() for path in code_files(clone)] == [
        "uworker/cli.py",
        "uworker/deep/er/new.py",
        "uworker/new with ü.py",
    ]


def test_without_a_repository_of_its_own_the_commit_is_unknown(clone: Path) -> None:
    unpacked = clone / "unpacked"
    (unpacked / "uworker" / "__pycache__").mkdir(parents=True)
    (unpacked / "uworker" / "cli.py").write_text("content\n")
    (unpacked / "uworker" / "my.conf").write_text("a login\n")
    (unpacked / "uworker" / "__pycache__" / "cli.pyc").write_text("content\n")
    revision = revision_of(unpacked)
    assert (revision.commit, revision.dirty, str(revision)) == (UNKNOWN, False, UNKNOWN)
    assert code_files(unpacked) == [Path("uworker/cli.py")]


def test_where_git_refuses_its_words_are_passed_on_and_nothing_is_taken(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What git says of a clone that belongs to somebody else.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for ask in (revision_of, code_files):
        with pytest.raises(BuildError, match="dubious ownership") as caught:
            ask(clone)
        assert len(str(caught.value).splitlines()) == 1


def test_a_repository_that_is_none_is_not_taken_for_the_one_around_it(clone: Path) -> None:
    (clone / "unpacked" / ".git").mkdir(parents=True)
    with pytest.raises(BuildError, match="not a git repository"):
        revision_of(clone / "unpacked")


def test_without_git_only_code_is_taken_and_no_login_beside_it(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [path.as_posix() for path in code_files(clone)] == ["job_api/client.py", "uworker/cli.py"]


def test_without_git_it_is_unknown_too(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision_of(clone).commit == UNKNOWN


def test_the_image_uses_the_uv_of_the_makefile() -> None:
    [version] = re.findall(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert f"ARG UV_VERSION={version}\n" in (REPOSITORY / "docker/worker/dependencies.Dockerfile").read_text()
