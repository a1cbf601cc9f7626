"""Measures each way of listing and reading once, all through the same relay, one after the other."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.recognition import worker
from benchmarks.recognition.pictures import Pictures, lay_out
from benchmarks.stage import ROOT, BenchmarkError
from benchmarks.storage import corpus, engine
from benchmarks.storage.clients import Found, Plan
from tests.emulators.azurite import Azurite, run_azurite
from tests.emulators.processes import run_server
from tests.emulators.relay import COUNT_PATH

CONTAINER = "chemistry-data"
SOURCE = f"az://{CONTAINER}"
IMAGES_PER_DIRECTORY = 51
CLIENT_SECONDS = 900.0
# A worker yields threads to other programs, which emulator and relay are here. It never has less than one, which wants
# images twice as fast as they come when asked for one by one.
ONE_THREAD = {"UWORKER_PROCESSES": "1", "UWORKER_THREADS_PER_PROCESS": "1"}
# A machine that becomes slower or faster meanwhile does so for both.
TURNS = ("local", "storage", "storage", "local")
LAST_WORDS_CHARS = 2000


@dataclass(frozen=True)
class Outcome:
    """What one way came to.

    Args:
        number: directories or images; `seconds`: from the first request to the last answer.
        processor_seconds: of the process that read, 0 where it did more than that.
        requests: that went through the relay meanwhile.
    """

    number: int
    seconds: float
    processor_seconds: float = 0.0
    requests: int = 0

    @property
    def per_second(self) -> float:
        """Directories or images per second."""
        return self.number / self.seconds

    @property
    def processor_each(self) -> float:
        """Processor seconds for each."""
        return self.processor_seconds / self.number


Round = dict[str, Outcome]


@dataclass(frozen=True)
class Content:
    """What was laid out below `folder`: Azurite's folders `many` and `images`, and the same images on this disk.

    Args:
        directories: how many there are in `many`.
        pictures: in `images`, and those of them that Azure's library reads, and that are recognised.
    """

    folder: Path
    directories: int
    pictures: Pictures
    sdk_pictures: Pictures
    recognised: Pictures


def prepare(
    folder: Path, directories: int, *, images: int, sdk_images: int, recognised: int, say: Callable[[str], None]
) -> Content:
    """Draw the images, and lay them out for Azurite; `many` is there already.

    Raises:
        BenchmarkError: Azurite's folder is not what it should be.
    """
    pictures = lay_out(folder / "disk", images, IMAGES_PER_DIRECTORY)
    objects = [(file.relative_to(pictures.root).as_posix(), file.read_bytes()) for file in pictures.files]
    corpus.lay_out(folder / "images", CONTAINER, objects, say)
    engine.register(folder / "engine")
    return Content(folder, directories, pictures, pictures.first(sdk_images), pictures.first(recognised))


def measure(content: Content, delay: float, say: Callable[[str], None]) -> Round:
    """One round.

    Raises:
        BenchmarkError: something that should have been listed or read was not.
    """
    found: Round = {}
    with _storage(content.folder / "many", delay) as (azurite, relay):
        found["list"] = ask(azurite, relay, Plan("list", SOURCE), content.directories)
        _tell(say, "list", found["list"])
    with _storage(content.folder / "images", delay) as (azurite, relay):
        for what, pictures in (("sdk", content.sdk_pictures), ("worker", content.pictures)):
            plan = Plan(what, SOURCE, pictures.directories, len(pictures.files))
            found[what] = ask(azurite, relay, plan, len(pictures.files), _bytes(pictures))
            _tell(say, what, found[what])
        turns: dict[str, list[Outcome]] = {"local": [], "storage": []}
        for name in TURNS:
            source = SOURCE if name == "storage" else None
            turns[name].append(_recognise(content, azurite.environment, source))
            _tell(say, name, turns[name][-1])
    return found | {name: _together(outcomes) for name, outcomes in turns.items()}


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(sum(outcome.number for outcome in outcomes), sum(outcome.seconds for outcome in outcomes))


@contextmanager
def _storage(folder: Path, delay: float) -> Iterator[tuple[Azurite, str]]:
    """Azurite on a folder as it is seen through a relay, and the relay's address."""
    with run_azurite(folder) as azurite, run_relay_process(azurite.server, delay) as relay:
        yield azurite.behind(relay), relay


@contextmanager
def run_relay_process(server: str, delay: float) -> Iterator[str]:
    """A relay in a process of its own; its address."""
    command = [sys.executable, "-m", "tests.emulators.relay", server, str(delay)]
    with run_server(command, r"relaying at (\S+)\n", directory=ROOT) as relay:
        yield relay.address


def ask(azurite: Azurite, relay: str, plan: Plan, number: int, data_bytes: int = 0) -> Outcome:
    """Let a program do it, and look whether it did.

    Args:
        azurite: as the program shall reach it; `relay`: the address where requests are counted.
        relay: see there.
        plan: what it shall do.
        number: of names that it must find; `data_bytes`: and of bytes.
        data_bytes: see there.

    Raises:
        BenchmarkError: it failed, or found something else.
    """
    before = _requests(relay)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.storage.clients"],
        input=json.dumps(asdict(plan)),
        cwd=ROOT,
        env=worker.clean_environment() | azurite.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=CLIENT_SECONDS,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{plan.what} failed: {done.stderr.strip()[-LAST_WORDS_CHARS:]}")
    found = Found(**json.loads(done.stdout.splitlines()[-1]))
    if (found.names, found.data_bytes) != (number, data_bytes):
        wanted, got = f"{number} names and {data_bytes} bytes", f"{found.names} and {found.data_bytes}"
        raise BenchmarkError(f"{plan.what}: {wanted} were to be found, and not {got}")
    return Outcome(found.names, found.seconds, found.processor_seconds, _requests(relay) - before)


def _requests(relay: str) -> int:
    return int(httpx.get(relay + COUNT_PATH).text)


def _bytes(pictures: Pictures) -> int:
    return sum(file.stat().st_size for file in pictures.files)


def _recognise(content: Content, environment: dict[str, str], source: str | None) -> Outcome:
    """Have a worker do it with the engine that takes a known time; from local disk where no source is given."""
    python_path = f"{content.folder / 'engine'}:{ROOT}"
    settings = {**ONE_THREAD, "PYTHONPATH": python_path}
    if source is not None:
        settings |= {"UWORKER_SOURCE_ALLOW": source, **environment}
    outcome, _ = worker.recognise(
        content.recognised, content.folder, source=source, engine=engine.NAME, environment=settings
    )
    return Outcome(outcome.images, outcome.seconds)


def _tell(say: Callable[[str], None], name: str, outcome: Outcome) -> None:
    say(
        f"{name}: {outcome.number} in {outcome.seconds:.2f} s, {outcome.per_second:.1f}/s, "
        f"{outcome.requests} requests, {outcome.processor_seconds:.2f} s of processor"
    )
