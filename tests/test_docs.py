"""What people read is true: every command, verb and setting is documented, and what is documented is there."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from job_api.cli import app
from job_api.schemas import KnownFlag, Result
from job_api.settings import Settings
from uworker.images import IMAGE_ENDINGS
from uworker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text(*names: str) -> str:
    return "\n".join((ROOT / name).read_text() for name in names)


@pytest.mark.parametrize(("model", "prefix"), [(Settings, "JOB_API_"), (WorkerSettings, "UWORKER_")])
def test_every_setting_is_in_the_settings_page_with_its_meaning(
    model: type[Settings] | type[WorkerSettings], prefix: str
) -> None:
    page = text("docs/settings.md")
    for name, field in model.model_fields.items():
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{prefix}{name.upper()}` |")]
        assert field.description
        assert field.description in row, name
        if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
            assert f"| {field.default} |" in row, name


def test_no_setting_is_documented_that_is_not_there() -> None:
    known = {f"JOB_API_{name.upper()}" for name in Settings.model_fields}
    known |= {f"UWORKER_{name.upper()}" for name in WorkerSettings.model_fields}
    known |= {"JOB_API_ROOT", "JOB_API_USERNAME", "JOB_API_PASSWORD", "JOB_API_TOKEN"}
    for document in DOCUMENTS:
        named = set(re.findall(r"\b(?:UWORKER|JOB_API)_[A-Z][A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
        assert named - known == set(), document.name


def test_every_column_of_a_result_is_documented_in_its_order() -> None:
    page = text("docs/results.md").partition("## The columns")[2].partition("\n##")[0]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    assert [row[1].strip(" `") for row in rows] == list(Result.model_fields)
    assert all(row[2].strip() and row[3].strip() for row in rows)


def test_every_flag_is_documented() -> None:
    page = text("docs/results.md").partition("### Flags")[2].partition("\n##")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(KnownFlag)


def test_the_endings_of_images_are_documented() -> None:
    page = text("docs/settings.md")
    assert all(f"`{ending}`" in page for ending in IMAGE_ENDINGS)


def test_every_command_of_job_api_is_documented_and_has_a_help() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    documented = text("README.md", "docs/operations.md", "docs/settings.md", "docs/commands.md")
    for name, command in commands.items():
        assert f"job-api {name}" in documented, name
        assert command.help, name


def test_every_verb_of_the_makefile_is_in_its_help_and_every_documented_one_is_there() -> None:
    makefile = text("Makefile")
    verbs = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) == verbs - {"help"} | {"help"}
    for document in DOCUMENTS:
        named = set(re.findall(r"\bmake ([a-z-]+)\b(?! sense| room| a\b)", document.read_text()))
        assert {word for word in named if f"`make {word}" in document.read_text()} <= verbs, document.name


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
