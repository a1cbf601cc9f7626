"""`uworker prepare`: what people see of it."""

import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from uworker.images import RASTER_ENDINGS
from uworker.prepared.files import LEAST_IMAGES, REPORT, Difference, NotComparedError, Report, prepared_directory
from uworker.settings import SettingsError, default_weights_home
from uworker.weights import FOLDER, Weights, WeightsError, ensure_weights, home_of

EXIT_FAILED, EXIT_SETTINGS = 1, 2
SAMPLES = 24
MARGIN, TOLERANCE = 0.01, 0.01
NEEDED = ("tensorflow", "DECIMER", "onnx")
_SHOWN = 10


def prepare(
    images: Annotated[
        Path | None,
        typer.Option(help="A file or folder of your own images to compare both on; without it, samples are drawn."),
    ] = None,
    number: Annotated[int, typer.Option("--number", min=LEAST_IMAGES, help="How many images are compared.")] = SAMPLES,
    weights: Annotated[
        Path | None,
        typer.Option(help="Folder that holds DECIMER-V2, or that folder. [UWORKER_WEIGHTS_HOME, or where they lie]"),
    ] = None,
    weights_sha256: Annotated[
        str | None, typer.Option(envvar="UWORKER_WEIGHTS_SHA256", help="Accept only weights of this digest.")
    ] = None,
    *,
    margin: Annotated[
        float, typer.Option(min=0, max=MARGIN, help="Two tokens whose probabilities differ by less are a near tie.")
    ] = MARGIN,
    tolerance: Annotated[
        float, typer.Option(min=0, max=TOLERANCE, help="By how much the probability of a token may differ.")
    ] = TOLERANCE,
    hand_drawn: Annotated[bool, typer.Option("--hand-drawn", help="Prepare the model for hand-drawn images.")] = False,
) -> None:
    """Make DECIMER's weights four times faster here: translate the model, and prove that it gives the same answers.

    It takes some minutes, once. Workers on this machine, and snapshots of these weights, then use the prepared model.

    Exit codes: 0 made and proved; 1 not, and workers go on with the model as it is shipped; 2 wrong options.
    """
    # A polite end is an interruption like Ctrl-C, after which nothing half is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if missing := [module for module in NEEDED if find_spec(module) is None]:
        # Said before 1 GB is downloaded for nothing.
        _give_up(
            f"{' and '.join(missing)} cannot be found: `uworker prepare` needs the extra `engine` (in a clone: make "
            "install); snapshots are prepared when they are built"
        )
    try:
        from uworker.engines import EngineLoadError  # noqa: PLC0415 (NumPy)

        with tempfile.TemporaryDirectory(prefix="decimer-jobs-") as scratch:
            chosen = _find_images(images, number) if images is not None else _draw(Path(scratch), number)
            found = _find_weights(weights, weights_sha256, hand_drawn=hand_drawn)
            typer.echo(f"weights: {found.name}, sha256 {found.sha256}")
            report = make(found, chosen, hand_drawn=hand_drawn, margin=margin, tolerance=tolerance)
    except (WeightsError, SettingsError, ImportError) as error:
        _give_up(error)
    except OSError as error:
        _give_up(f"{error}; where the weights cannot be written beside, give --weights with a copy of them")
    except (EngineLoadError, NotComparedError) as error:
        _give_up(error)
    _show(report, prepared_directory(found.home, hand_drawn=hand_drawn))
    if not report.proved:
        raise typer.Exit(EXIT_FAILED)


def _give_up(error: Exception | str) -> NoReturn:
    typer.echo(f"uworker: {error}", err=True)
    raise typer.Exit(EXIT_FAILED) from None


def make(
    weights: Weights,
    images: list[tuple[str, Path]],
    *,
    hand_drawn: bool,
    margin: float = MARGIN,
    tolerance: float = TOLERANCE,
) -> Report:
    """Prepare, with a line for each step; as `preparing.prepare`."""
    from uworker.noise import quieten  # noqa: PLC0415 (what follows takes seconds)

    quieten()
    from uworker.prepared.preparing import Wanted, prepare  # noqa: PLC0415 (TensorFlow)

    return prepare(Wanted(weights, hand_drawn, images, margin, tolerance), typer.echo)


def _find_images(place: Path, number: int) -> list[tuple[str, Path]]:
    if place.is_file():
        return [(place.name, place)]
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in RASTER_ENDINGS and path.is_file())
    if not files:
        typer.echo(f"uworker: no image is at {place}", err=True)
        raise typer.Exit(EXIT_SETTINGS)
    # Evenly from all of them: those of one folder are much alike.
    chosen = [files[at * len(files) // number] for at in range(number)] if number < len(files) else files
    return [(path.relative_to(place).as_posix(), path) for path in chosen]


def _draw(folder: Path, number: int) -> list[tuple[str, Path]]:
    from uworker.demo.samples import draw_samples  # noqa: PLC0415 (RDKit)

    samples = draw_samples(folder)
    if number > len(samples):
        typer.echo(f"uworker: {len(samples)} samples can be drawn; for more give --images", err=True)
        raise typer.Exit(EXIT_SETTINGS)
    return [(f"{sample.directory}/{sample.image}", sample.path) for sample in samples[:number]]


def _find_weights(given: Path | None, pin: str | None, *, hand_drawn: bool) -> Weights:
    named = given or Path(os.environ.get("UWORKER_WEIGHTS_HOME") or default_weights_home())
    home = home_of(named.expanduser())
    said: set[str] = set()

    def show(name: str, _: int, total: int | None) -> None:
        if name not in said:
            said.add(name)
            typer.echo(f"downloading {name} to {home / FOLDER}" + (f" ({total / 1e6:,.0f} MB)" if total else ""))

    return ensure_weights(home, hand_drawn=hand_drawn, pinned_sha256=pin, on_progress=show)


def _show(report: Report, place: Path) -> None:
    _say_what_was_compared(report, place)
    if report.proved:
        typer.echo(f"proved: {place} is used by workers from now on; prepared {report.prepared}")
    else:
        typer.echo(f"not proved, and not used: {report.reason}; the report is {place / REPORT}", err=True)


def _say_what_was_compared(report: Report, place: Path) -> None:
    if report.images:
        typer.echo(
            f"{report.images} images, {report.tokens} tokens: {report.tokens_equal} chosen alike one image at a time, "
            f"{report.tokens_equal_batched} several at a time; {report.images_equal} images read alike to the end; "
            f"greatest difference of a probability {report.greatest_difference or 0:.1g}; the longest answer has "
            f"{report.longest_answer} tokens"
        )
    for name, why in report.skipped.items():
        typer.echo(f"not compared: {name} ({why})")
    for found in report.differences[:_SHOWN]:
        typer.echo(f"  {_say(found)}")
    if len(report.differences) > _SHOWN:
        typer.echo(f"  … and {len(report.differences) - _SHOWN} more, see {place / REPORT}")


def _say(found: Difference) -> str:
    kind = "near tie" if found.is_near_tie else "NOT a near tie"
    return (
        f"{found.image}, token {found.position}: {found.shipped!r} became {found.prepared!r}; the shipped model gives "
        f"them {found.shipped_first:.4f} and {found.shipped_second:.4f}: {kind}, {found.images_at_once} at once"
    )
