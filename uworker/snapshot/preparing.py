"""The prepared model that goes into a snapshot: what lies beside the weights, or made before the image is built.

It is made by `uworker prepare`, in a process of its own: TensorFlow's memory is free again when the image is built, and
a machine that is too small for it still builds a snapshot.
"""

import os
import subprocess
import sys
from pathlib import Path

import platformdirs

from uworker.prepared.files import FOLDER, Prepared, Unusable, find_prepared, prepare_command
from uworker.prepared.versions import what_differs
from uworker.snapshot.steps import Say
from uworker.weights import MODEL_URLS, Weights, model_directory

INTERRUPTIONS, END_SECONDS = 4, 10.0
AS_SHIPPED = "DECIMER is taken as it is shipped"


def prepared_for(weights: Weights, *, hand_drawn: bool, say: Say) -> Prepared | None:
    """Return the prepared model of exactly these weights, proved with what is installed; made where there is none.

    None where there can be none, after `say` was told why.
    """
    # Where nothing can be put beside the weights, an earlier build may have made it elsewhere.
    for home in (weights.home, cache_home(weights)):
        found = _look(home, weights, hand_drawn=hand_drawn, say=say)
        if found is not None:
            say(f"made before: {found.directory}, sha256 {found.sha256}")
            return found
    say("making it, which takes some minutes the first time")
    try:
        home = weights.home if os.access(weights.home / FOLDER, os.W_OK | os.X_OK) else _linked_home(weights)
    except OSError as error:
        say(f"{AS_SHIPPED}: {error.filename} cannot be made ({error.strerror})")
        return None
    fault = _prepare(home, weights, hand_drawn=hand_drawn, say=say)
    found = _look(home, weights, hand_drawn=hand_drawn, say=say)
    if found is None:
        say(f"{AS_SHIPPED}: {fault or f'none was made in {home / FOLDER}'}")
        say("  (it is tried again the next time, unless --as-shipped is said)")
    return found


def cache_home(weights: Weights) -> Path:
    """Where this user keeps what is made of weights that nothing can be put beside."""
    return platformdirs.user_cache_path("decimer-jobs") / "prepared" / weights.sha256


def _look(home: Path, weights: Weights, *, hand_drawn: bool, say: Say) -> Prepared | None:
    try:
        found = find_prepared(home, hand_drawn=hand_drawn)
    except Unusable:
        # Made anew, which says what is wrong if it is still so.
        return None
    if found is None or found.about.weights_sha256 != weights.sha256:
        return None
    if differing := what_differs(found.proved_with, absent_differs=True):
        say(
            f"not taken: {found.directory} was proved, on {found.proved_on} images, with another version of "
            f"{', '.join(differing)}"
        )
        say(f"  (to prove it on images of yours: {prepare_command(hand_drawn=hand_drawn)} --images …, and build again)")
        return None
    return found


def _linked_home(weights: Weights) -> Path:
    """A home that has the models of another one, and takes what is put beside them.

    Raises:
        OSError: it cannot be made.
    """
    home = cache_home(weights)
    (home / FOLDER).mkdir(parents=True, exist_ok=True)
    for model in MODEL_URLS:
        link, target = model_directory(home, model), model_directory(weights.home, model).resolve()
        if link.is_symlink():
            link.unlink()
        if target.is_dir():
            link.symlink_to(target)
    return home


def _prepare(home: Path, weights: Weights, *, hand_drawn: bool, say: Say) -> str | None:
    """Run `uworker prepare`, all of whose lines are told; returns why it failed, or None."""
    command = [sys.executable, "-P", "-m", "uworker", "prepare", f"--weights={home}"]
    command += [f"--weights-sha256={weights.sha256}", *(["--hand-drawn"] if hand_drawn else [])]
    last = ""
    # In a session of its own: an interruption at the terminal reaches it once, from here.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            for line in process.stdout or ():
                if last:
                    say(f"  {last}")
                last = line.rstrip()
        except BaseException:
            _end(process)
            raise
    if process.returncode == 0:
        say(f"  {last}")
        return None
    if process.returncode < 0:
        return f"`uworker prepare` was killed by signal {-process.returncode}, possibly for want of memory"
    return last.removeprefix("uworker: ")


def _end(process: "subprocess.Popen[str]") -> None:
    """Interrupt it, so that it takes away what is half made; more than once, for a library may swallow that.

    Not by SIGINT, which whoever is started in the background may have been told to ignore.
    """
    for _ in range(INTERRUPTIONS):
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
