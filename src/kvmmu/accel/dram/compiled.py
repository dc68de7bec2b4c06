"""`kernel`: compile a function that only reads and writes the arrays it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["kernel"]

# `_nrt` is the option by which numba compiles its own runtime; its published types do not list it.
_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}
_Function = TypeVar("_Function", bound=Callable[..., object])


def kernel(function: _Function) -> _Function:
    """Compile `function` with numba, cached on disk and without reference counting.

    Kernels allocate nothing and their caller holds every array; counting the arrays of each nested
    call by atomic operations made the whole controller ten times slower (measured, numba 0.68).
    """
    return cast(_Function, njit(**_OPTIONS)(function))
