"""What a project asks of its rows: which images have one, columns out of their names, and the tokens of each answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job_api.client import ApiError
from job_api.listing import ImageChoice
from job_api.schemas import JobState, Lease, NewResult, ProjectSettings, Result, ResultStatus
from tests.engines import picture
from tests.plugins.fleet import WorkerStarter
from tests.plugins.holder import LEASE, Holder, result
from tests.plugins.service import RunningService
from uworker.answering import recognise
from uworker.engines import Recognition
from uworker.holding import Holding
from uworker.images import Verdict
from uworker.results_file import FILE_NAME

ASKED = ProjectSettings(
    engine="pixel",
    results_file=True,
    image_name_pattern=r"sequence_(?P<sequence>\d+)_(?P<part>[a-z]+)",
    image_include=["sequence*", "more/*.png"],
    image_exclude=["*_middle.png", "more/thumbs/*"],
    keep_tokens=True,
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Two directories, in one of which no image is wanted."""
    files = {
        "a/sequence_1_left.png": picture(3),
        "a/more/sequence_2_right.png": picture(4),
        "a/more/x.png": picture(5),
        "a/sequence_3_left.png": b"no image at all",
        "a/sequence_3_left.svg": b"<svg/>",
        "a/sequence_1_middle.png": picture(6),
        "a/more/thumbs/sequence_1_left.png": picture(7),
        "a/other.png": picture(8),
        "b/sequence_1_middle.png": picture(9),
    }
    for name, content in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return (tmp_path / "source").as_uri()


def by_image(rows: Iterator[Result]) -> dict[str, Result]:
    return {row.image: row for row in rows}


def test_a_worker_does_what_the_project_asks_of_its_rows(
    service: RunningService, start_worker: WorkerStarter, source: str, tmp_path: Path
) -> None:
    admin = service.client("admin")
    admin.put_project("asked", ASKED.model_copy(update={"source": source}))
    admin.put_project("plain", ProjectSettings(source=source, engine="pixel"))
    admin.add_jobs("asked", ["a", "b"])
    admin.add_jobs("plain", ["a"])
    # Of before the patterns, say: it is no entry of the file, nor does it stand for an image that is missing.
    holder = Holder(service.client("worker"))
    lease = holder.one("asked")
    holder.post(lease, rows=[result("other.png", engine="pixel")], engine="pixel")
    holder.release(lease)
    worker = start_worker(service.root, service.token("worker"), processes="1", threads_per_process="2")
    assert worker.wait() == 0, worker.log

    rows = by_image(admin.job_results("asked", lease.job_id))
    assert rows.pop("other.png").tokens is None
    found = {image: (row.status, row.smiles, row.sequence, row.sub_sequence, row.part) for image, row in rows.items()}
    assert found == {
        "sequence_1_left.png": ("recognised", "CCC", "1", None, "left"),
        "more/sequence_2_right.png": ("recognised", "CCCC", "2", None, "right"),
        "more/x.png": ("recognised", "CCCCC", None, None, None),
        "sequence_3_left.png": ("unsupported", None, "3", None, "left"),
        "sequence_3_left.svg": ("unsupported", None, "3", None, "left"),
    }
    propane = rows["sequence_1_left.png"]
    assert (propane.tokens, propane.token_probabilities, propane.n_tokens) == (["C"] * 3, [0.5] * 3, 3)
    assert (propane.normalized_smiles, propane.fragments) == ("CCC", 1)
    assert propane.molecular_weight == pytest.approx(44.097)
    assert rows["sequence_3_left.png"].tokens is None
    jobs = {job.directory: job for job in admin.jobs("asked")}
    assert (jobs["a"].state, jobs["a"].image_count) == (JobState.COMPLETED, 5)
    assert (jobs["b"].state, jobs["b"].reason, jobs["b"].failures) == (JobState.FAILED, "no-chosen-images", 1)
    assert "leave none of its 1 images" in (jobs["b"].message or "")
    entries = json.loads((tmp_path / "source" / "a" / FILE_NAME).read_text())["entries"]
    per_token = {e["file"]: e["confidence"] and e["confidence"]["per_token"] for e in entries}
    assert per_token == {image: [["C", 0.5]] * row.n_tokens if row.n_tokens else None for image, row in rows.items()}

    plain = by_image(admin.job_results("plain", next(admin.jobs("plain")).id))
    assert len(plain) == 8
    assert {(row.tokens, row.sequence, row.part) for row in plain.values()} == {(None, None, None)}
    assert plain["other.png"].n_tokens == 8


# --- which images ---


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        ([], [], ["1_left.png", "1_middle.png", "sub/1_left.png", "sub/deep/x.PNG"]),
        (["*_left.png"], [], ["1_left.png", "sub/1_left.png"]),
        (["1*"], [], ["1_left.png", "1_middle.png", "sub/1_left.png"]),
        (["s*"], [], []),
        (["sub/*"], [], ["sub/1_left.png", "sub/deep/x.PNG"]),
        (["*/*.PNG"], [], ["sub/deep/x.PNG"]),
        ([], ["sub/*", "*_middle*"], ["1_left.png"]),
        (["*.png"], ["[0-9]_left.png"], ["1_middle.png"]),
    ],
)
def test_patterns_are_for_the_file_name_or_where_they_have_a_slash_for_the_path(
    include: list[str], exclude: list[str], wanted: list[str]
) -> None:
    choice = ImageChoice(include, exclude)
    images = ["1_left.png", "1_middle.png", "sub/1_left.png", "sub/deep/x.PNG"]
    assert [image for image in images if choice.wants(image)] == wanted


def test_the_service_refuses_patterns_that_match_no_image(service: RunningService) -> None:
    admin = service.client("admin")
    admin.put_project("asked", ASKED.model_copy(update={"source": "file:///data"}))
    for field, pattern in [("image_include", "/left/*"), ("image_exclude", "left/"), ("image_exclude", "a/../b")]:
        with pytest.raises(ApiError, match=f"{field}: '{pattern}' matches no image".replace("*", r"\*")):
            admin.put_project("asked", ProjectSettings.model_validate({field: ["*.png", pattern]}))
    assert admin.project("asked").image_include == ASKED.image_include
    changed = admin.put_project("asked", ProjectSettings(image_include=[], keep_tokens=False))
    assert (changed.image_include, changed.image_exclude, changed.keep_tokens) == ([], ASKED.image_exclude, False)


# --- tokens ---


class Says:
    """An engine that answers with the same tokens always."""

    name = "says"

    def __init__(self, *tokens: tuple[str, float], smiles: str = "CCO") -> None:
        self.version: str | None = None
        self.weights: str | None = None
        self.weights_sha256: str | None = None
        self.prepared: str | None = None
        self._answer = Recognition(smiles, list(tokens))

    def recognise(self, pixels: Any) -> Recognition:  # noqa: ARG002 (it looks at nothing)
        return self._answer


def row_of(keep_tokens: bool, *tokens: tuple[str, float]) -> NewResult:
    holding = Holding(LEASE.model_copy(update={"keep_tokens": keep_tokens}), "w")
    row = recognise(Says(*tokens), picture(1), 10**6, lambda _: None)
    holding.finish(1, "1.png", json.loads(json.dumps(row, allow_nan=False)))
    [made] = holding.everything_left().rows
    return made


def test_tokens_are_kept_where_the_project_asks() -> None:
    tokens = [("C", 1.0000001), ("C", 0.5), ("O", 1e-60)]
    kept = row_of(True, *tokens)
    assert (kept.tokens, kept.token_probabilities) == (["C", "C", "O"], [1.0, 0.5, 0.0])
    assert kept.confidence is not None
    assert kept.confidence > 0, "in float64, whatever a row's tokens can say"
    dropped = row_of(False, *tokens)
    assert (dropped.tokens, dropped.token_probabilities, dropped.error_message) == (None, None, None)
    assert dropped.n_tokens == 3


@pytest.mark.parametrize(
    "tokens",
    [
        [("C", 0.5)] * 2001,
        [("C" * 201, 0.5)],
        [("\udc80" * 60, 0.5)],
        [("C" * 200, 0.5)] * 21,
        [("C", 0.5), ("O", float("nan"))],
    ],
)
def test_tokens_that_a_row_cannot_hold_are_left_out_and_the_log_says_so(
    tokens: list[tuple[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    row = row_of(True, *tokens)
    assert (row.status, row.smiles, row.n_tokens) == (ResultStatus.RECOGNISED, "CCO", len(tokens))
    assert (row.tokens, row.token_probabilities) == (None, None)
    assert row.error_message is None, "nothing has failed"
    [record] = caplog.records
    said = f"its {len(tokens)} tokens are not kept: too many, too long, or with a probability that is no number"
    assert (record.levelname, record.getMessage()) == ("WARNING", f"job {LEASE.job_id}: 1.png: {said}")
    assert (vars(record)["lease"].job_id, vars(record)["image"]) == (LEASE.job_id, "1.png")
    assert row_of(False, *tokens).tokens is None
    assert len(caplog.records) == 1, "where nobody asks for tokens nothing is missing"


def test_an_answer_on_which_rdkit_fails_is_still_known_to_be_truncated() -> None:
    row = recognise(Says(("C", 0.5), smiles="C\ud800"), picture(1), 10**6, lambda _: None)
    assert row["error_message"].startswith("RDKit: ")
    assert (row["status"], row["truncated"], row["flags"]) == ("recognised", True, ["truncated"])


def test_a_probability_that_is_too_small_for_its_column_costs_no_batch(service: RunningService) -> None:
    admin = service.client("admin")
    admin.put_project("asked", ProjectSettings(source="file:///data", keep_tokens=True))
    admin.add_jobs("asked", ["a"])
    holder = Holder(service.client("worker"))
    lease = holder.one("asked")
    assert lease.keep_tokens
    fields = {"status": "recognised", "smiles": "CO", "tokens": ["C", "O"]}
    sent = [{"image": "1.png", "token_probabilities": [1e-60, 1e-38], **fields}]
    sent += [{"image": "2.png", "token_probabilities": [0.5], **fields}]
    stored = holder.post(lease, rows=sent)
    assert stored.stored == 1
    [refused] = stored.refused
    assert refused.reason == "tokens: are not as many as token_probabilities"
    [row] = admin.job_results("asked", lease.job_id)
    assert (row.tokens, row.token_probabilities) == (["C", "O"], [0.0, 0.0])


# --- columns out of names ---


def lease_with(pattern: str) -> Lease:
    return LEASE.model_copy(update={"image_name_pattern": pattern})


def test_a_row_that_the_recogniser_got_wrong_has_its_columns_too() -> None:
    holding = Holding(lease_with(r"(?P<sequence>\d+)_(?P<part>\w+)\."), "w")
    holding.finish(1, "7_x/12_left.png", {"status": "nonsense"})
    holding.refuse("13_right.png", Verdict(ResultStatus.MISSING, "it is gone"))
    found = [(row.status, row.sequence, row.part) for row in holding.everything_left().rows]
    assert found == [("engine_error", "12", "left"), ("missing", "13", "right")]


def test_a_pattern_that_this_worker_does_not_know_fails_the_job() -> None:
    holding = Holding(lease_with(r"(?P<sequence>\d+)(?!x)"), "w")
    assert holding.failure is not None
    assert (holding.failure.reason, holding.failure.retryable) == ("name-pattern", True)
    assert "RE2" in holding.failure.message
