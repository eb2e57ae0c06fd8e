"""OpenEnv: isolated, typed execution environments behind `reset`, `step` and `state`.

Importing this package costs nothing: every public name below is loaded on first use.
"""

from typing import TYPE_CHECKING

from openenv._lazy import lazy_attributes

if TYPE_CHECKING:
    from openenv._version import __version__
    from openenv.core.generic_client import GenericAction, GenericEnvClient
    from openenv.core.sync_client import SyncEnvClient

__all__ = ["GenericAction", "GenericEnvClient", "SyncEnvClient", "__version__", "cli", "core"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "GenericAction": "openenv.core.generic_client",
        "GenericEnvClient": "openenv.core.generic_client",
        "SyncEnvClient": "openenv.core.sync_client",
        "__version__": "openenv._version",
    },
    submodules=("cli", "core"),
)
