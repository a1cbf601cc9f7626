"""Commands that make and remove users and tokens. A secret is shown once, and never taken from the command line."""

import secrets
from typing import Annotated

import typer
from pydantic import ValidationError

from job_api.cli.options import AsJson, Config, print_json, print_table
from job_api.client import ClientError
from job_api.config import PASSWORD, TOKEN, USERNAME, connect
from job_api.schemas import SESSION_TOKEN_NAME, NewToken, NewUser, Role
from job_api.text import mistake

users = typer.Typer(help="Users: people who log in with a password (admin only).", no_args_is_help=True)
tokens = typer.Typer(
    help="Tokens: what programs such as workers log in with. The role submit may make, list and revoke those of "
    "workers in its projects, and the role admin all.",
    no_args_is_help=True,
)

DAY_SECONDS = 86_400

RoleOption = Annotated[
    Role, typer.Option(help="What is allowed: admin includes submit, submit includes read; worker stands apart.")
]
OnlyProject = Annotated[str | None, typer.Option("--project", help="Allow it in this project only.")]


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="Name to log in with.")],
    *,
    role: RoleOption,
    project: OnlyProject = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for the password instead of making one up.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a user that exists a new password and role.")
    ] = False,
    config: Config = None,
) -> None:
    """Make a user. A password is made up and shown once, unless --ask."""
    if ask:
        password = typer.prompt("Password (12 characters or more)", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = secrets.token_urlsafe(18)
    try:
        wanted = NewUser(password=password, role=role, project=project)
    except ValidationError as error:
        # Not chained: the error holds the password.
        raise ClientError(mistake(error)) from None
    with connect(config) as client:
        if not replace and any(user.name == name for user in client.users()):
            raise ClientError(f"there is a user {name} already; --replace gives it a new password and role")
        made = client.put_user(name, wanted)
    typer.echo(f"user {made.name}, role {made.role.value}" + (f", project {made.project}" if made.project else ""))
    if not ask:
        typer.echo("The password is shown only now; for a CONFIG file:", err=True)
        typer.echo(f"{USERNAME}={made.name}\n{PASSWORD}={password}")


@users.command("list")
def list_users(*, config: Config = None, as_json: AsJson = False) -> None:
    """The users."""
    with connect(config) as client:
        found = client.users()
    if as_json:
        print_json(found)
    else:
        print_table(
            ["user", "role", "project", "created"], ([u.name, u.role.value, u.project, u.created_at] for u in found)
        )


@users.command("delete")
def delete_user(name: Annotated[str, typer.Argument(help="Name of the user.")], *, config: Config = None) -> None:
    """Delete a user and revoke its tokens."""
    with connect(config) as client:
        client.delete_user(name)
    typer.echo(f"user {name} deleted")


@tokens.command("add")
def add_token(
    name: Annotated[str, typer.Argument(help="What the token is for; shown in lists.")],
    *,
    role: RoleOption = Role.WORKER,
    project: OnlyProject = None,
    days: Annotated[float, typer.Option(min=0.001, max=3650, help="How long it is valid.")] = 365,
    config: Config = None,
) -> None:
    """Make a token and print it, once: on standard output nothing else, so that a script may take it."""
    try:
        wanted = NewToken(name=name, role=role, project=project, expires_in_seconds=days * DAY_SECONDS)
    except ValidationError as error:
        raise ClientError(mistake(error)) from None
    with connect(config) as client:
        made = client.new_token(wanted)
        if project is not None and project not in {known.name for known in client.projects()}:
            typer.echo(f"note: there is no project {project} yet; is the name right?", err=True)
    if role is Role.WORKER:
        use = "start a worker with UWORKER_JOB_API_TOKEN=… in its environment"
    else:
        use = f"put {TOKEN}=… into the environment or a CONFIG file"
    typer.echo(
        f"token {made.id} ({made.name}), role {made.role.value}, valid for {days:g} days; shown only now; {use}:",
        err=True,
    )
    typer.echo(made.token)


@tokens.command("list")
def list_tokens(
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that logins were turned into.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The tokens that are valid, without their secrets."""
    with connect(config) as client:
        found = [token for token in client.tokens() if every or token.name != SESSION_TOKEN_NAME]
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "token", "role", "project", "user", "created", "expires"],
        ([t.id, t.name, t.role.value, t.project, t.username, t.created_at, t.expires_at] for t in found),
    )


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="Number of the token.")], *, config: Config = None
) -> None:
    """Revoke a token; whoever uses it is refused from then on."""
    with connect(config) as client:
        # A second time changes nothing, and so does a number of long ago; a slip must not look like a success.
        if token_id not in {token.id for token in client.tokens()}:
            raise ClientError(f"no token {token_id} is in force; `job-api token list` shows those that are")
        client.revoke_token(token_id)
    typer.echo(f"token {token_id} revoked")
