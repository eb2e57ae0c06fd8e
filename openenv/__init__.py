"""OpenEnv: isolated, typed execution environments behind `reset`, `step` and `state`.

Importing this package costs nothing: every public name below is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from openenv._lazy import lazy_attributes

if TYPE_CHECKING:
    from openenv.core.generic_client import GenericAction, GenericEnvClient
    from openenv.core.sync_client import SyncEnvClient

    __version__: str

__all__ = ["GenericAction", "GenericEnvClient", "SyncEnvClient", "__version__", "cli", "core"]


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for distribution in ("openenv", "openenv-core"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "0.0.0"


_get, __dir__ = lazy_attributes(
    __name__,
    {
        "GenericAction": "openenv.core.generic_client",
        "GenericEnvClient": "openenv.core.generic_client",
        "SyncEnvClient": "openenv.core.sync_client",
    },
    submodules=("cli", "core"),
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    return _get(name)
