"""Calls in a thread of their own, so that Ctrl-C is heard at once and not when storage that is away is given up."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(call: Callable[[], T]) -> Future[T]:
    """Make a call apart; whoever waits for its result can be interrupted. It does not keep the program from ending."""
    answer: Future[T] = Future()

    def make_it() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever asks gets it
            answer.set_exception(error)

    threading.Thread(target=make_it, name="apart", daemon=True).start()
    return answer
