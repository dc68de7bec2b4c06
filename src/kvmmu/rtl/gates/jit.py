"""`kernel`: compile a function that only reads and writes the arrays it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["kernel"]

# `_nrt` is the option by which numba compiles its own runtime; its published types do not list it.
_OPTIONS: dict[str, Any] = {"cache": True, "forceinline": True, "_nrt": False}
_Function = TypeVar("_Function", bound=Callable[..., object])


def kernel(function: _Function) -> _Function:
    """Compile `function` with numba: cached on disk, inlined, without reference counting.

    A kernel allocates nothing and its caller holds every array, so nothing needs counting.
    Numba's cache does not see that a kernel of another module changed: whoever edits one must
    delete the `__pycache__` of this folder.
    """
    return cast(_Function, njit(**_OPTIONS)(function))
