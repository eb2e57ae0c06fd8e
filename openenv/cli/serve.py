"""`openenv serve`."""

import importlib
import ipaddress
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from openenv.cli.locate import Located, LocateError, locate
from openenv.core.env_server.exceptions import OpenEnvError
from openenv.core.env_server.run import run_server


def serve(
    environment: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|PATH",
            help="An environment's name (`coding`, `coding-env`) or folder. Default: the folder you are in.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="TCP port.")] = 8000,
    host: Annotated[
        str, typer.Option("--host", help="Address to bind; the default is reachable from this machine only.")
    ] = "127.0.0.1",
    reload: Annotated[bool, typer.Option("--reload", help="Restart when its code changes.")] = False,
    max_sessions: Annotated[
        int | None, typer.Option("--max-sessions", min=1, help="How many sessions at once.")
    ] = None,
) -> None:
    """Serve an environment until Ctrl-C.

    Clients connect to ws://HOST:PORT/ws (`EnvClient(base_url=...)` does) or post to /reset and /step; the
    API is described at /docs.
    """
    try:
        located = locate(environment, Path.cwd())
    except LocateError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    if max_sessions is not None:
        os.environ["MAX_CONCURRENT_ENVS"] = str(max_sessions)
    _make_importable(located)
    if not reload:  # a reloading server imports in a process of its own, again and again
        _import(located)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Serving {located.name} at http://{shown}:{port} (API at /docs, Ctrl-C stops)", err=True)
    if not _is_loopback(host):
        typer.echo("Anyone who can reach this address can use the environment: there is no login.", err=True)
    try:
        run_server(located.app, host=host, port=port, reload=reload, reload_dirs=[str(located.folder)])
    except SystemExit as stop:
        raise typer.Exit(1 if stop.code else 0) from stop


def _make_importable(located: Located) -> None:
    # Last, so that an environment's `models` cannot hide an installed package of that name. The processes of
    # a reloading server inherit the path.
    sys.path.extend(path for path in located.import_paths if path not in sys.path)


def _import(located: Located) -> None:
    module, _, attribute = located.app.partition(":")
    try:
        application = getattr(importlib.import_module(module), attribute, None)
    except (OpenEnvError, ModuleNotFoundError) as error:
        missing = isinstance(error, ImportError)
        hint = f" Is its package installed? pip install -e {located.folder}" if missing else ""
        typer.echo(f"Error: {module} cannot be loaded: {error}.{hint}", err=True)
        raise typer.Exit(1) from error
    except Exception as error:  # whatever the environment's own code raises while it is imported
        typer.echo(traceback.format_exc(), err=True)
        typer.echo(f"Error: {module} cannot be loaded: {error}", err=True)
        raise typer.Exit(1) from error
    if application is None:
        typer.echo(f"Error: {module} has no '{attribute}'; set `app:` in its openenv.yaml", err=True)
        raise typer.Exit(1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
