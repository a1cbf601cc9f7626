"""What lies in the storage that is measured: named as the first corpus is, and put into Azurite's own files.

Azurite looks at every blob it has for each blob that it takes, so that 200,000 of them would take it hours. So it takes
the few bodies there are, is ended, and has its index written anew, an entry for each key that is wanted. Its version,
which package-lock.json pins, says what that index is like.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.stage import BenchmarkError
from tests.emulators.azurite import run_azurite

INDEX_FILE = "__azurite_db_blob__.json"
BLOBS = "$BLOBS_COLLECTION$"
# Azurite writes its index when it is told to end.
STOP_SECONDS = 60.0


def directory_names(number: int) -> list[str]:
    """Names with spaces, parentheses and letters beyond ASCII, in the order of their code points."""
    return sorted(f"Alkaloide {index:05} (Müller {1950 + index % 70})" for index in range(number))


def keys(directories: int, blobs: int) -> Iterator[str]:
    """`Name (Author Year)/output/sequence_01_left.png`, about as many in each directory."""
    for index, name in enumerate(directory_names(directories)):
        for number in range(blobs // directories + (index < blobs % directories)):
            yield f"{name}/output/sequence_{number // 2 + 1:02}_{('left', 'right')[number % 2]}.png"


def lay_out(folder: Path, container: str, objects: Sequence[tuple[str, bytes]], say: Callable[[str], None]) -> None:
    """Fill a folder with what an Azurite of these blobs, each a key and a body, keeps there.

    Raises:
        BenchmarkError: this Azurite keeps something else.
    """
    say(f"laying out {len(objects)} blobs")
    folder.mkdir(parents=True)
    names: dict[bytes, str] = {}
    for _, body in objects:
        names.setdefault(body, f"{len(names):04}")
    with run_azurite(folder, stop_seconds=STOP_SECONDS) as azurite:
        azurite.new_bucket(container).fill({name: body for body, name in names.items()})
    index_file = folder / INDEX_FILE
    index = json.loads(index_file.read_text())
    [blobs] = [collection for collection in index["collections"] if collection["name"] == BLOBS]
    _rename(blobs, [(key, names[body]) for key, body in objects])
    with index_file.open("w") as file:
        json.dump(index, file)


def _rename(blobs: dict[str, Any], wanted: Sequence[tuple[str, str]]) -> None:
    """Give Azurite's collection of blobs an entry for each key, made of the one that has its body; sort its indices."""
    taken = {entry["name"]: entry for entry in blobs["data"]}
    if taken.keys() != (given := {name for _, name in wanted}):
        raise BenchmarkError(f"Azurite's index names {len(taken)} blobs, and not the {len(given)} that it was given")
    entries = [{**taken[name], "name": key, "$loki": number} for number, (key, name) in enumerate(wanted, 1)]
    blobs["data"], blobs["maxId"], blobs["idIndex"] = entries, len(entries), None
    for field, index in blobs["binaryIndices"].items():
        values = [entry[field] for entry in entries]
        index["values"] = sorted(range(len(values)), key=values.__getitem__)
        index["dirty"] = False
