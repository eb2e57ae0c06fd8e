"""The verbs, one module each."""

import typer

from openenv import __version__
from openenv.cli.serve import serve

app = typer.Typer(
    name="openenv",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=(
        "Environments for agents and reinforcement learning, behind `reset`, `step` and `state`.\n\n"
        "Try it: `openenv serve coding`, and in another terminal\n\n"
        "`python -c \"from coding_env import *; e = CodingEnv('localhost:8000').sync(); "
        "print(e.step(CodeAction(code='print(6 * 7)')))\"`"
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openenv {__version__}")
        raise typer.Exit


@app.callback()
def _openenv(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Without this callback, typer would drop the name of a lone verb."""


app.command()(serve)
