"""DECIMER's weights on this machine: finds them, checks them, and downloads them once. Never imports DECIMER.

The directory is the package's own, `HOME/DECIMER-V2/{DECIMER,DECIMER_HandDrawn}_model`, HOME being what `PYSTOW_HOME`
names; what is put there looks to the package like its own download. The package itself has no lock between processes
and no checksum, so it must never come to download: `ensure_weights` runs before any recogniser starts.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import filelock

from job_api.text import clean_text
from uworker.prepared import files as prepared_files
from uworker.prepared.files import digest_of_lines, model_name, sha256_of

FOLDER = prepared_files.FOLDER
# As in DECIMER/decimer.py (`model_urls`) of decimer 2.8.1, which this module must not import.
MODEL_URLS = {
    "DECIMER": "https://zenodo.org/record/8300489/files/models.zip",
    "DECIMER_HandDrawn": "https://zenodo.org/records/10781330/files/DECIMER_HandDrawn_model.zip",
}
HOST = "https://zenodo.org"

log = logging.getLogger(__name__)

_TOKENIZER = PurePosixPath("assets/tokenizer_SMILES.pkl")
_NAME_FILE = "weights.json"
_URL_FILE = ".model_url"
_VERIFIED_FILE = ".verified"
_MAX_NAME_CHARS = 200

TURNED_OFF = "a prepared model is turned off by UWORKER_PREPARED or the project's engine_options"
AS_SHIPPED_IS_WANTED = f"{TURNED_OFF}; turn it on, or build the snapshot with --as-shipped"

Progress = Callable[[str, int, int | None], None]
"""Told file name, bytes so far, and bytes in all where the host says how many."""


class WeightsError(Exception):
    """The weights cannot be had or are not the right ones; the message is one line that says what to do."""


@dataclass(frozen=True)
class Weights:
    """Weights that are complete on disk.

    Attributes:
        name: `name` in the model's `weights.json`, else the URL they came from, else "unknown".
        sha256: One digest of all the files that the engine reads, see `find_weights`.
        home: What `PYSTOW_HOME` must name.
        verified: They match a pin, or matched the host's digest when they were downloaded.
    """

    name: str
    sha256: str
    home: Path
    verified: bool


def ensure_weights(
    home: Path,
    *,
    hand_drawn: bool,
    pinned_sha256: str | None,
    on_progress: Progress,
    base_url: str = HOST,
    prepared_will_do: bool = False,
    recognises_here: bool = False,
) -> Weights:
    """Return the weights below `home`, downloading what is missing.

    Args:
        home: What `PYSTOW_HOME` will name. Read-only is fine where all is there already.
        hand_drawn: Weights for the hand-drawn model, which also needs the printed model's tokenizer.
        pinned_sha256: The only digest (of `Weights.sha256`) to accept.
        on_progress: Told of a download's progress, about every 8 MiB.
        base_url: Stands in for https://zenodo.org, as a mirror or in tests.
        prepared_will_do: Where only a prepared model is there, take the weights that it was made of as found.
        recognises_here: Download nothing where TensorFlow is not installed, with which alone they can be read.

    Raises:
        WeightsError: they cannot be had, or their digest is not the pinned one. Nothing has been unpickled.
    """
    try:
        found = find_prepared_weights(home, hand_drawn=hand_drawn) if prepared_will_do else None
        is_prepared_alone = found is not None
        if found is None and missing_models(home, hand_drawn=hand_drawn):
            if recognises_here and not reads_shipped():
                raise WeightsError(why_none_will_do(home, hand_drawn=hand_drawn))
            _download_missing(home, hand_drawn, on_progress, base_url)
        found = found or find_weights(home, hand_drawn=hand_drawn)
    except OSError as error:
        raise WeightsError(f"DECIMER's weights below {home / FOLDER}: {error}") from error
    if found is None:
        raise WeightsError(f"what was downloaded to {home / FOLDER} lacks files of a DECIMER model")
    if pinned_sha256 is None:
        return found
    if found.sha256 != pinned_sha256.lower():
        raise WeightsError(
            f"DECIMER's weights below {home / FOLDER} have sha256 {found.sha256}, "
            f"but {pinned_sha256.lower()} is pinned; remove them to have them downloaded again, or change the pin"
        )
    # A prepared model says itself what it was made of.
    return Weights(found.name, found.sha256, found.home, verified=not is_prepared_alone)


def find_weights(home: Path, *, hand_drawn: bool) -> Weights | None:
    r"""Return the weights below `home`, or None where the package would have to download some. Touches no network.

    `Weights.sha256` is the sha256 over one line `PATH\0SHA256\n` for each file of the model's directory, sorted by
    PATH: its path in that directory with forward slashes, and the file's own sha256 in hexadecimal. Files whose name
    begins with a dot, and `weights.json`, are left out: they say where the model comes from. For the hand-drawn model
    the printed model's tokenizer is one line more, with the PATH `DECIMER_model/assets/tokenizer_SMILES.pkl`.
    """
    if missing_models(home, hand_drawn=hand_drawn):
        return None
    lines = {model: _lines(model_directory(home, model)) for model in _models(hand_drawn)}
    verified = all(
        _read(model_directory(home, model) / _VERIFIED_FILE) == digest_of_lines(lines[model])
        for model in _models(hand_drawn)
    )
    read = lines["DECIMER"]
    if hand_drawn:
        read = lines["DECIMER_HandDrawn"] | {f"DECIMER_model/{_TOKENIZER}": lines["DECIMER"][str(_TOKENIZER)]}
    name = _name_of(model_directory(home, model_name(hand_drawn=hand_drawn)))
    return Weights(name, digest_of_lines(read), home, verified)


def find_prepared_weights(home: Path, *, hand_drawn: bool) -> Weights | None:
    """Return the weights of which a prepared model was made, where that lies below `home` and they do not."""
    if not missing_models(home, hand_drawn=hand_drawn):
        return None
    try:
        found = prepared_files.find_prepared(home, hand_drawn=hand_drawn)
    except prepared_files.Unusable as why:
        log.warning("%s", why)
        return None
    if found is None:
        return None
    return Weights(found.about.weights, found.about.weights_sha256, home, verified=False)


def reads_shipped() -> bool:
    """Whether weights can be used here as they are shipped: for that TensorFlow is needed, which is not looked into."""
    return find_spec("tensorflow") is not None


def why_none_will_do(home: Path, *, hand_drawn: bool) -> str:
    """Say why nothing recognises where only a prepared model can, and what to do."""
    folder = prepared_files.prepared_directory(home, hand_drawn=hand_drawn)
    command = prepared_files.prepare_command(hand_drawn=hand_drawn)
    try:
        found = prepared_files.find_prepared(home, hand_drawn=hand_drawn)
        why = f"there is no prepared model at {folder}" if found is None else AS_SHIPPED_IS_WANTED
    except prepared_files.Unusable as error:
        why = str(error)
    return (
        f"{why}. As it is shipped DECIMER cannot run here, for TensorFlow is not installed, and its weights are not "
        f"downloaded: install the extra `engine` (in a clone: make install), or run `{command}` where it is installed, "
        f"and copy {folder.name} to {folder.parent}; a snapshot is built again"
    )


def home_of(given: Path) -> Path:
    """The home that a person means who gives it, or the folder `DECIMER-V2` in it, or a link to that folder."""
    given = given.absolute()
    # That folder may be where one is, or be meant by a link of any name; one of that name may lead to any folder.
    return next((place.parent for place in (given, given.resolve()) if place.name == FOLDER), given)


def model_directory(home: Path, model: str) -> Path:
    """Return where the package looks for a model, a key of `MODEL_URLS`."""
    return home / FOLDER / f"{model}_model"


def _models(hand_drawn: bool) -> list[str]:
    return ["DECIMER", "DECIMER_HandDrawn"] if hand_drawn else ["DECIMER"]


def is_hand_drawn(options: Mapping[str, Any]) -> bool:
    """Which of DECIMER's models a project's `engine_options` ask for."""
    return options.get("hand_drawn") is True


def missing_models(home: Path, *, hand_drawn: bool) -> list[str]:
    """Name the models that the package would download: incomplete ones, and those of another URL than its own."""
    return [model for model in _models(hand_drawn) if not _is_complete(home, model)]


def _is_complete(home: Path, model: str) -> bool:
    directory = model_directory(home, model)
    if not (directory / "saved_model.pb").is_file():
        return False
    if model == "DECIMER" and not (directory / _TOKENIZER).is_file():
        return False
    return _read(directory / _URL_FILE) in (None, MODEL_URLS[model])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _name_of(directory: Path) -> str:
    try:
        name = json.loads(_read(directory / _NAME_FILE) or "{}").get("name")
    except (ValueError, AttributeError):
        name = None
    found = name if isinstance(name, str) and name else _read(directory / _URL_FILE) or "unknown"
    return clean_text(found, _MAX_NAME_CHARS)


def _lines(directory: Path) -> dict[str, str]:
    """Map the path of each file that counts to its sha256."""
    return {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != _NAME_FILE
    }


# --- downloading -----------------------------------------------------------------------------------------------


def _download_missing(home: Path, hand_drawn: bool, on_progress: Progress, base_url: str) -> None:
    # Imported here because recognisers import this module too, and never download.
    from uworker.download import DownloadError  # noqa: PLC0415

    folder = home / FOLDER
    model = missing_models(home, hand_drawn=hand_drawn)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One lock for a home, held while downloading: processes that come second find the files there.
        with filelock.FileLock(folder / ".download.lock"):
            for leftover in folder.glob(".unpack-*"):
                shutil.rmtree(leftover)
            for model in missing_models(home, hand_drawn=hand_drawn):
                _download(home, model, on_progress, base_url)
    except (DownloadError, OSError) as error:
        url = MODEL_URLS[model]
        if find_prepared_weights(home, hand_drawn=hand_drawn) is not None:
            raise WeightsError(
                f"{folder} holds a prepared model alone, {model}'s weights cannot be downloaded ({error}), and "
                f"{AS_SHIPPED_IS_WANTED}"
            ) from error
        raise WeightsError(
            f"{model}'s weights are not at {model_directory(home, model)} and cannot be downloaded ({error}); "
            f"set HTTPS_PROXY where a proxy is needed, or unpack {url} into {folder} by hand, "
            f"or let UWORKER_WEIGHTS_HOME (or PYSTOW_HOME) name a directory that holds {FOLDER} already"
        ) from error


def _download(home: Path, model: str, on_progress: Progress, base_url: str) -> None:
    """Download one model's zip, check it, and put its directory in place in one step."""
    from uworker import download  # noqa: PLC0415 (as above)

    folder = home / FOLDER
    url = base_url.rstrip("/") + MODEL_URLS[model].removeprefix(HOST)
    file_name = url.rpartition("/")[2]
    # Kept when this process is killed, so that the next one goes on where it ended.
    archive = folder / f".{model}.zip.part"
    md5 = download.published_md5(url)
    download.fetch_zip(url, archive, md5, lambda done, total: on_progress(file_name, done, total))
    unpacked = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder))
    try:
        fresh = unpacked / f"{model}_model"
        download.unpack(archive, fresh)
        if not (fresh / "saved_model.pb").is_file():
            raise download.DownloadError(f"{url} holds no {fresh.name}/saved_model.pb")
        (fresh / _URL_FILE).write_text(MODEL_URLS[model], encoding="utf-8")
        if md5 is not None:
            (fresh / _VERIFIED_FILE).write_text(digest_of_lines(_lines(fresh)), encoding="utf-8")
        target = model_directory(home, model)
        if target.exists():
            target.rename(unpacked / "replaced")
        fresh.rename(target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    archive.unlink()
