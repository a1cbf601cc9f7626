"""The asking threads: which images of a job need no work, asked for jobs that were begun before.

They wait for a service that is away, and ask for the other jobs where it has trouble with some alone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from job_api.client import Client, ClientError
from uworker.away import RETRY_SECONDS, Patience
from uworker.holding import Holding

# An answer may take as long as the client waits for it and tries again; so many jobs may be without one at a time.
THREADS = 8
# A lease that is lost meanwhile notifies nobody here.
LOOK_AGAIN_SECONDS = 0.5


@dataclass(eq=False)
class _Question:
    """A job to ask for, and what came of it so far."""

    holding: Holding
    patience: Patience
    due_at: float = 0.0


class Asker:
    """Asks for one worker.

    Args:
        client: the way to the service.
        on_answer: told of each job, once: the names of its images that are done, or what the service answered instead;
            None where nobody wants to know any more.
    """

    def __init__(self, client: Client, on_answer: Callable[[Holding, set[str] | Exception | None], None]) -> None:
        self._client = client
        self._on_answer = on_answer
        self._changed = threading.Condition()
        self._questions: list[_Question] = []
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._ask_for_ever, name=f"asker-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        with self._changed:
            self._stopped = True
            self._questions.clear()
            self._changed.notify_all()

    def add(self, holding: Holding) -> None:
        """Ask for this job."""
        with self._changed:
            patience = Patience(f"{holding} waits to hear which of its images are done")
            self._questions.append(_Question(holding, patience))
            self._changed.notify_all()

    def _ask_for_ever(self) -> None:
        while (question := self._next()) is not None:
            answer = None if question.holding.abandoned else self._ask(question)
            if isinstance(answer, _Later):
                question.due_at = time.monotonic() + RETRY_SECONDS
                with self._changed:
                    self._questions.append(question)
            else:
                self._on_answer(question.holding, answer)

    def _next(self) -> _Question | None:
        """Wait for a question that is to be asked now, or need not be asked any more; None when the worker stops."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                for question in self._questions:
                    if question.due_at <= now or question.holding.abandoned:
                        self._questions.remove(question)
                        return question
                self._changed.wait(LOOK_AGAIN_SECONDS if self._questions else None)
            return None

    def _ask(self, question: _Question) -> "set[str] | Exception | _Later":
        holding = question.holding
        try:
            return set(self._client.images_done(holding.lease, holding.worker_id))
        except ClientError as error:
            return _Later() if question.patience.bears(error) else error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's, and the others must go on
            return error


class _Later:
    """To be asked again."""
