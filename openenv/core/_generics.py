"""The concrete types that a class gave to a generic base: `class C(Base[A, B])` -> `(A, B)`."""

from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin


@lru_cache(maxsize=512)
def declared_types(cls: Any, base: type) -> tuple[Any, ...]:
    """What `cls` declares for the parameters of `base`, None where it declares nothing concrete."""
    for ancestor in cls.__mro__:
        for declared in ancestor.__dict__.get("__orig_bases__", ()):
            origin = get_origin(declared)
            if isinstance(origin, type) and issubclass(origin, base):
                arguments = get_args(declared)
                if not all(isinstance(argument, TypeVar) for argument in arguments):
                    return tuple(None if isinstance(argument, TypeVar) else argument for argument in arguments)
    return (None, None, None)
