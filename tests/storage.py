"""Storage whose answers a test holds back: it shows what a reader has on its way, and fails when it is told to."""

import threading
from collections.abc import Callable, Iterator, Sequence

from uworker.images import ImageFile, Verdict

ANSWER_SECONDS = 30.0

Outcome = bytes | Verdict | BaseException


class HeldStorage:
    """A source. Reads and listings wait until they are let go; safe from many threads, as a source must be.

    Attributes:
        directories: what is listed: images, or an exception that is raised in their place.
        outcomes: what the read of an image comes to, by its name; by default a few bytes.
        listings_open: whether listings go on; `reads_open`: whether reads do.
        given: how many images were listed.
        begun: names of images whose reads were begun, in this order.
        most_at_once: reads that were on their way at the same time.
        threads: those that called.
    """

    def __init__(self, directories: dict[str, Callable[[], Iterator[ImageFile | BaseException]]]) -> None:
        self.directories = directories
        self.outcomes: dict[str, Outcome] = {}
        self.listings_open, self.reads_open = threading.Event(), threading.Event()
        self.listings_open.set()
        self.reads_open.set()
        self.held_reads: dict[str, threading.Event] = {}
        self.given = 0
        self.listed: list[str] = []
        self.begun: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def source_of(self, _url: str) -> "HeldStorage":
        """To be given to a reader."""
        return self

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        with self._lock:
            self.listed.append(directory)
        for image in self.directories[directory]():
            assert self.listings_open.wait(ANSWER_SECONDS)
            if isinstance(image, BaseException):
                raise image
            self.given += 1
            yield image

    def read(self, image: ImageFile) -> bytes | Verdict:
        with self._lock:
            self.begun.append(image.name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.held_reads.get(image.name, self.reads_open).wait(ANSWER_SECONDS)
            outcome = self.outcomes.get(image.name, b"bytes of " + image.name.encode())
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        finally:
            with self._lock:
                self.at_once -= 1


def images(*names: str, size: int | None = 20) -> Callable[[], Iterator[ImageFile]]:
    """What lists these images."""
    return lambda: iter([ImageFile(name, name, size=size) for name in names])


def numbered(count: int, start: int = 0) -> Sequence[str]:
    """Names of so many images."""
    return [f"{number:05}.png" for number in range(start, start + count)]
