"""The `openenv` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        from openenv.cli.commands import app
    except ModuleNotFoundError as error:
        sys.exit(f"The openenv command needs '{error.name}': pip install 'openenv[server]'")
    app()
