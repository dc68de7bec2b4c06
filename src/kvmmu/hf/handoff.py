"""The one place where a forward in flight is known: per thread, set and cleared by `enabled`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from kvmmu.hf.cache import SlotCache

__all__ = [
    "Forward",
    "current",
    "enter_model",
    "is_generating",
    "running_model",
    "set_current",
]


@dataclass
class Forward:
    """One forward of one model with one SlotCache, from the hook before it to the hook after.

    rows holds the cache's counters [B] as they will be when the forward has run to its end;
    valid bool [B,Q] marks real new tokens, None when all are; start is the column of the first
    new token, counted from the cache's first; index int [B,Q] are RoPE places (in_cache only).
    `keys`, `values` and `layer_idx` are what a layer's `update` left for the attention function.
    """

    cache: SlotCache
    num_new: int
    rows: dict[str, Tensor]
    valid: Tensor | None = None
    start: int = 0
    index: Tensor | None = None
    layer_idx: int = -1
    keys: Tensor | None = None
    values: Tensor | None = None


class _Local(threading.local):
    forward: Forward | None = None
    model_type: str | None = None
    is_generating: bool = False


_LOCAL = _Local()


def current() -> Forward | None:
    """Return this thread's forward in flight, None outside."""
    return _LOCAL.forward


def set_current(forward: Forward | None) -> None:
    """Enter or leave a decoder's forward."""
    _LOCAL.forward = forward


def enter_model(model_type: str | None, *, generating: bool = False) -> None:
    """Enter an enabled model's forward; None leaves it."""
    _LOCAL.model_type = model_type
    _LOCAL.is_generating = generating


def running_model() -> str | None:
    """Return the type of this thread's enabled model that runs, None outside."""
    return _LOCAL.model_type


def is_generating() -> bool:
    """Tell whether the forward in flight was called by transformers' generate()."""
    return _LOCAL.is_generating
