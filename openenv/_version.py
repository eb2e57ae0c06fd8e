"""The installed version. Apart, because reading package metadata takes longer than `import openenv`."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    for distribution in ("openenv", "openenv-core"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "0.0.0"


__version__ = _installed()
