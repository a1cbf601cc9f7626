"""A download of results, taken up again where it broke, until nothing new comes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx
from pydantic import ValidationError

from job_api.records import CutShort, NotARecord, Record, whole_records, without_seq
from job_api.schemas import NEXT_SINCE_HEADER, ExportFormat, ResultQuery
from job_api.sending import ClientError, Sender, Unreachable, jitter_seconds, why
from job_api.text import mistake

# How often a download asks for what came while it read the last, so that it ends also while a fleet is at work.
MAX_ROUNDS = 5

Ask = Callable[[dict[str, Any]], AbstractContextManager[httpx.Response]]
"""Asks for an export with these parameters."""


class Download:
    """One download: rounds of asking, each of which is over when all that it first saw has come.

    One round would miss the rows that are replaced before it reaches them; after several, a row would have to be
    replaced again during each of them.

    Args:
        sender: says how long is tried, and waits in between.
        query: what is asked for.

    Raises:
        ClientError: a format of which no row says where to go on.
    """

    def __init__(self, sender: Sender, query: ResultQuery) -> None:
        if query.format not in (ExportFormat.CSV, ExportFormat.JSONL):
            raise ClientError(f"in {query.format} no row says where to go on; ask for jsonl, or for the raw export")
        self._sender = sender
        self._format = query.format
        self._with_seq = query.columns is None or "seq" in query.columns
        self._params = query_params(query)
        if query.columns is not None:
            self._params["columns"] = ["seq", *(name for name in query.columns if name != "seq")]
        self._last = query.since
        self._heading_due = True
        self._finished = False
        self._rounds = 0
        self._nothing_came = False
        self._goal: int | None = None
        self._before: int | None = None

    def records(self, ask: Ask) -> Iterator[Record]:
        """Yield each row as its `seq` and its bytes, the CSV's heading first."""
        failures, failing_since = 0, 0.0
        while not self._finished:
            try:
                with ask({**self._params, "since": self._last}) as answer:
                    self._begin(next_since(answer))
                    for seq, record in whole_records(answer.iter_bytes(), self._format):
                        if seq is not None:
                            self._last, failures = seq, 0
                        if seq is not None or self._heading_due:
                            yield seq, record if self._with_seq else without_seq(record, self._format)
                        self._heading_due = False
                    self._end(sure=_shows_its_end(answer))
            except NotARecord as error:
                root = self._sender.root
                raise ClientError(f"{root} sent something that is no export of results: {error}") from None
            except (httpx.RequestError, CutShort) as error:
                failures += 1
                failing_since = time.monotonic() if failures == 1 else failing_since
                wait = jitter_seconds(failures)
                if time.monotonic() + wait >= failing_since + self._sender.retry_seconds:
                    raise Unreachable(f"the download from {self._sender.root} broke off: {why(error)}") from error
                self._sender.tell_retry(error)
                self._sender.pause(wait)

    def _begin(self, reaches_to: int | None) -> None:
        """An answer begins, which will reach to that `seq`, if it says so."""
        self._before = self._last
        if self._goal is None:
            self._goal = reaches_to

    def _end(self, *, sure: bool) -> None:
        """The answer is over, as a whole as far as can be seen; where a cut is not seen, two must be without a row."""
        if self._last == self._before:
            self._finished = sure or self._nothing_came
            self._nothing_came = True
            return
        self._nothing_came = False
        if self._goal is None or self._last is None or self._last < self._goal:
            return
        self._rounds, self._goal = self._rounds + 1, None
        self._finished = self._rounds == MAX_ROUNDS


def make_query(export_format: ExportFormat, filters: Mapping[str, Any]) -> ResultQuery:
    """What an export is asked for, judged before anything is sent.

    Raises:
        ClientError: this cannot be asked for.
    """
    try:
        return ResultQuery(
            format=export_format, **{name: value for name, value in filters.items() if value is not None}
        )
    except ValidationError as error:
        raise ClientError(f"this cannot be asked for: {mistake(error)}") from None


def query_params(query: ResultQuery) -> dict[str, Any]:
    """The same as parameters of an address."""
    return query.model_dump(mode="json", exclude_none=True)


def next_since(answer: httpx.Response) -> int | None:
    """The `seq` that an export will reach, where it says so."""
    said = answer.headers.get(NEXT_SINCE_HEADER, "")
    return int(said) if said.isdecimal() else None


def _shows_its_end(answer: httpx.Response) -> bool:
    """Whether a cut would have been seen; behind a proxy that speaks HTTP/1.0 the end is where the connection ends."""
    headers = answer.headers
    return answer.http_version == "HTTP/2" or "transfer-encoding" in headers or "content-length" in headers
