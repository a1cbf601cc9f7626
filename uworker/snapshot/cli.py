"""The command `./build_snapshot.sh`: its options, and the order of its steps."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from job_api.client import Client, ClientError
from job_api.config import connect
from job_api.listing import CannotList, as_url, same_place
from job_api.locations import BadLocation, locate
from job_api.schemas import IssuedToken, ProjectStatus
from uworker.prepared.choice import is_wanted, refusal
from uworker.prepared.files import Prepared
from uworker.settings import SettingsError, default_weights_home
from uworker.snapshot import access, folder
from uworker.snapshot.access import SnapshotError
from uworker.snapshot.builder import require_engine
from uworker.snapshot.images import BuildError, BuiltImage, ImageRequest, build_image
from uworker.snapshot.preparing import AS_SHIPPED, prepared_for
from uworker.snapshot.saving import save_images, tag_image
from uworker.snapshot.steps import Say, Steps
from uworker.weights import FOLDER, Weights, WeightsError, ensure_weights, find_weights, home_of, is_hand_drawn

CLONE = Path(__file__).resolve().parents[2]
ENGINE = "decimer"
# What the credentials of each kind of storage are called in worker.env.
_CREDENTIALS = {"az": "AZURE_…", "s3": "AWS_…", "gs": "GOOGLE_…"}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    project: str
    config: Path
    jobs_file: Path | None
    source: str | None
    weights: Path | None
    weights_sha256: str | None
    hand_drawn: bool | None
    as_shipped: bool
    gpu: bool
    engine_apart: bool
    api_root: str | None
    token_days: float
    output: Path


@app.command()
def build_snapshot(
    project: Annotated[str, typer.Argument(help="Name of the project whose workers the snapshot starts.")],
    config: Annotated[
        Path,
        typer.Argument(
            help="File of KEY=value lines with the service's address and a login of the role submit or admin, as for "
            "add_jobs.py; docker/example.conf is one."
        ),
    ],
    jobs_file: Annotated[
        Path | None,
        typer.Argument(help="Adds its directories to the project, as add_jobs.py --jobs-file does.", dir_okay=False),
    ] = None,
    *,
    source: Annotated[
        str | None, typer.Option(metavar="URL", help="With JOBS_FILE: where the directories of a new project lie.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Weights that are at hand: a folder that holds {FOLDER}, or that folder. Otherwise those of this "
            "machine, which are downloaded once.",
        ),
    ] = None,
    weights_sha256: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Accept only weights of this digest.")
    ] = None,
    hand_drawn: Annotated[
        bool | None,
        typer.Option(
            "--hand-drawn/--printed", help="Which of DECIMER's models; by default the one the project asks for."
        ),
    ] = None,
    as_shipped: Annotated[
        bool,
        typer.Option(
            "--as-shipped",
            help="DECIMER as it is, with TensorFlow; by default a model that `uworker prepare` makes of it.",
        ),
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="For machines with NVIDIA GPUs, as shipped (never run by us).")
    ] = False,
    engine_apart: Annotated[
        bool,
        typer.Option(
            "--engine-apart", help="Two containers on each machine: a small worker, and the engine that it uses."
        ),
    ] = False,
    api_root: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The service's address as the workers see it; by default that of CONFIG."),
    ] = None,
    token_days: Annotated[float, typer.Option(min=0.001, max=3650, help="How long the workers' token is valid.")] = 90,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the snapshot's folder is made.")] = Path(),
) -> None:
    """Build an image of the local code with DECIMER's weights, and a folder that starts its worker on any machine."""
    wanted = Wanted(
        project=project,
        config=config,
        jobs_file=jobs_file,
        source=source,
        weights=weights,
        weights_sha256=weights_sha256,
        hand_drawn=hand_drawn,
        # A prepared model runs on processors alone.
        as_shipped=as_shipped or gpu,
        gpu=gpu,
        engine_apart=engine_apart,
        api_root=api_root,
        token_days=token_days,
        output=output,
    )
    try:
        with connect(config, retry_seconds=15) as client:
            total = 5 + (not wanted.as_shipped) + engine_apart + (jobs_file is not None)
            _build(wanted, client, Steps(total, typer.echo))
    except (SnapshotError, BuildError, WeightsError, ClientError, SettingsError, CannotList) as error:
        typer.echo(f"build_snapshot.sh: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(
            "build_snapshot.sh: interrupted; what was built is kept by docker, so the next time is quicker", err=True
        )
        raise typer.Exit(130) from None


def _build(wanted: Wanted, client: Client, steps: Steps) -> None:
    snapshot = folder.free_name(wanted.output, wanted.project, datetime.now(UTC).astimezone().date())
    with steps.step(f"asking the job service {client.root}") as say:
        root = access.worker_root(wanted.api_root) if wanted.api_root else client.root
        status = _ask(wanted, client, root, say)
        require_engine()
    with steps.step("DECIMER's weights") as say:
        weights = _weights(wanted, status, say)
    prepared = _prepared(wanted, status, weights, steps)
    images = _build_images(wanted, snapshot, weights, prepared, steps)
    with folder.new_folder(wanted.output, snapshot) as made:
        with steps.step(f"{folder.IMAGE}, the {'images' if images.engine else 'image'} as a file") as say:
            size_bytes = _save(made.path, snapshot, images, say)
        folder.write_recipe(made.path, CLONE, snapshot, images, size_bytes=size_bytes, gpu=wanted.gpu)
        name = f"snapshot {snapshot}"
        with (
            steps.step("a token for the workers"),
            access.worker_token(client, wanted.project, name, wanted.token_days) as token,
        ):
            source = status.source if status else wanted.source and as_url(wanted.source)
            told = folder.Told(root, wanted.project, token.token, source)
            folder.write_environment(made.path, told, gpu=wanted.gpu, engine_apart=wanted.engine_apart)
            made.finish()
    # Before the jobs are added: what may fail there is easily made good, and the folder is there.
    _show_end(wanted, made.final, source, token)
    if wanted.jobs_file is not None:
        with steps.step(f"adding the jobs of {wanted.jobs_file}"):
            access.add_jobs(wanted.project, wanted.config, wanted.jobs_file, wanted.source)


def _ask(wanted: Wanted, client: Client, root: str, say: Say) -> ProjectStatus | None:
    status = access.ask(client, wanted.project)
    if status is not None:
        say(f"project {wanted.project}: {sum(status.jobs.model_dump().values())} jobs, source {status.source}")
        if status.engine != ENGINE:
            raise SnapshotError(
                f"project {wanted.project} has the engine {status.engine}, and a snapshot holds {ENGINE} alone; start "
                "workers where that engine is installed (docs/results.md, A second opinion), or give the project this "
                f"one: job-api project {wanted.project} --engine {ENGINE}"
            )
        if (wrong := refusal(status.engine_options)) is not None:
            raise SnapshotError(f"{wrong}; its workers would refuse it: mend the engine_options of {wanted.project}")
        if wanted.source is not None and not same_place(as_url(wanted.source), status.source):
            raise SnapshotError(
                f"project {wanted.project} has the source {status.source}; leave out --source, or name another project"
            )
    elif wanted.jobs_file is None:
        say(f"note: there is no project {wanted.project} yet, and no worker starts before it is made:")
        say(f"  ./add_jobs.py {wanted.project} {wanted.config} --source URL --jobs-file FILE")
    elif wanted.source is None:
        raise SnapshotError(
            f"there is no project {wanted.project}; to create it, say with --source where its directories lie"
        )
    if wanted.jobs_file is not None:
        if str(wanted.jobs_file) == "-" or (wanted.jobs_file.exists() and not wanted.jobs_file.is_file()):
            raise SnapshotError(
                f"JOBS_FILE is read twice, before and after the build; write {wanted.jobs_file} to a file"
            )
        access.add_jobs(wanted.project, wanted.config, wanted.jobs_file, wanted.source, dry_run=True)
    if access.is_local(root):
        say(f"note: the workers will look for the service at {root}, which leads each machine to itself;")
        say("  for other machines say its address with --api-root")
    return status


def _is_hand_drawn(wanted: Wanted, status: ProjectStatus | None) -> bool:
    if wanted.hand_drawn is not None:
        return wanted.hand_drawn
    return status is not None and is_hand_drawn(status.engine_options)


def _pin(wanted: Wanted, status: ProjectStatus | None) -> str | None:
    """The only weights to take: others than the project's own would be refused by each of its workers."""
    of_project = status.engine_options.get("weights_sha256") if status is not None else None
    if of_project is None:
        return wanted.weights_sha256
    if wanted.weights_sha256 is not None and wanted.weights_sha256.lower() != str(of_project).lower():
        raise SnapshotError(
            f"--weights-sha256 is not the digest that the engine_options of the project {wanted.project} pin "
            f"({of_project}); leave it out, or change the project's"
        )
    return str(of_project)


def _weights(wanted: Wanted, status: ProjectStatus | None, say: Say) -> Weights:
    pin = _pin(wanted, status)
    hand_drawn = _is_hand_drawn(wanted, status)
    if wanted.weights is not None:
        home = home_of(wanted.weights)
        if find_weights(home, hand_drawn=hand_drawn) is None:
            which = "the hand-drawn model" if hand_drawn else "the printed model"
            raise SnapshotError(
                f"{home / FOLDER} lacks weights of {which}; leave out --weights to have them downloaded"
            )
    else:
        home = default_weights_home()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
                say(f"downloading {name} to {home / FOLDER}")
            progress.update(bars[name], completed=done, total=total)

        weights = ensure_weights(home.absolute(), hand_drawn=hand_drawn, pinned_sha256=pin, on_progress=show)
    say(f"{weights.name}, sha256 {weights.sha256}" + ("" if weights.verified else " (unverified)"))
    if wanted.gpu:
        say(f"{AS_SHIPPED}: a prepared model runs on processors alone")
    return weights


def _prepared(wanted: Wanted, status: ProjectStatus | None, weights: Weights, steps: Steps) -> Prepared | None:
    """The prepared model to take instead of the weights, or None."""
    if wanted.as_shipped:
        return None
    with steps.step("a prepared model of these weights") as say:
        if status is not None and not is_wanted(status.engine_options):
            say(f"{AS_SHIPPED}: the engine_options of the project {wanted.project} say so")
            return None
        return prepared_for(weights, hand_drawn=_is_hand_drawn(wanted, status), say=say)


def _build_images(
    wanted: Wanted, snapshot: str, weights: Weights, prepared: Prepared | None, steps: Steps
) -> folder.Images:
    # Under names of the project's, so that builds of one project follow one another.
    tag, engine_tag = f"{folder.REPOSITORY}:{wanted.project}", f"{folder.ENGINE_REPOSITORY}:{wanted.project}"
    whole = ImageRequest(engine_tag if wanted.engine_apart else tag, snapshot, CLONE, weights, wanted.gpu, prepared)
    if not wanted.engine_apart:
        return folder.Images(_image("the image", whole, steps))
    engine = _image("the engine's image", whole, steps)
    return folder.Images(_image("the worker's image", ImageRequest(tag, snapshot, CLONE, None), steps), engine)


def _image(what: str, request: ImageRequest, steps: Steps) -> BuiltImage:
    with steps.step(what) as say:
        image = build_image(request, say)
        for layer in image.layers:
            say(f"{layer.size_bytes / 1e6:>8,.0f} MB  {layer.what}")
    return image


def _save(path: Path, snapshot: str, images: folder.Images, say: Say) -> int:
    """Write the images' file; returns the bytes of the images, unpacked."""
    folder.require_room(path, images)
    tags = images.tags(snapshot)
    for tag, image_id in tags.items():
        tag_image(image_id, tag)
    saved = save_images(tags, path / folder.IMAGE)
    say(f"{saved.file_bytes / 1e6:,.0f} MB of {saved.size_bytes / 1e6:,.0f}")
    # What was read, since engines with containerd's image store call the compressed bytes an image's size.
    return saved.size_bytes


def _show_end(wanted: Wanted, final: Path, source: str | None, token: IssuedToken) -> None:
    if credentials := _credentials(source):
        typer.echo(f"{final} is complete, but for what its workers may read {source} with: write that into")
        typer.echo(f"  {final / folder.ENVIRONMENT}")
        typer.echo(f"({credentials}; docs/settings.md, Storage). Machines with an identity or role for it need no key.")
        typer.echo("Then copy the folder to each machine, and start the worker there:")
    else:
        typer.echo(f"{final} is complete. Copy it to each machine, and start the worker there:")
    typer.echo(f"  scp -rp {final} MACHINE:")
    typer.echo(f"  ssh MACHINE bash {final.name}/{folder.START}")
    ends = f", valid until {token.expires_at:%Y-%m-%d}" if token.expires_at else ""
    typer.echo(f"Its token is number {token.id}, {token.name!r}{ends}; to shut out all who have it:")
    typer.echo(f"  job-api token revoke {token.id} --config {wanted.config}")


def _credentials(source: str | None) -> str | None:
    """What credentials of the storage that a source lies in are called; None where it needs none, or is not known."""
    try:
        return _CREDENTIALS.get(locate(source).kind) if source else None
    except BadLocation:
        return None
