"""How the Triton kernels are launched: block shapes, splits of the slots, scratch, device."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "IS_INTERPRETED",
    "OPTIONS",
    "block_rows",
    "choose_splits",
    "num_processors",
    "on_device",
    "pad",
    "scratch",
]

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Read once, as triton does where a kernel is defined."""

OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: product and sum may be one instruction, whatever Triton's default becomes."""

_TILE_BYTES = 16384
"""Of a tile of K or V: two buffers of each are 64 KiB of shared memory, so two or three programs
share a multiprocessor and one loads while another computes."""

_LEAST_SPAN = 128
"""Slots of a split: below, a program spends as long starting as it saves by reading less."""


def pad(size: int, *, least: int = 1) -> int:
    """Return the power of two, `least` or more, that holds `size` elements."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def block_rows(dim: int, itemsize_bytes: int) -> int:
    """Return how many rows of a padded head dimension make a tile.

    At most 64 of 16 bits or 32 of 32 bits, whose products fit the registers; at least the 16
    that tl.dot takes.
    """
    return max(16, min(128 // itemsize_bytes, _TILE_BYTES // (dim * itemsize_bytes)))


def choose_splits(num_programs: int, num_slots: int, processors: int) -> int:
    """Return into how many parts the slots of a head are split.

    One, if there is a program for every multiprocessor: a second launch and the parts' traffic
    would buy nothing. Else so many that two programs fall to each, of _LEAST_SPAN slots or more.
    It depends on shapes alone, so a row's bits do not depend on what other rows hold.
    """
    if num_programs >= processors:
        return 1
    most = -(-num_slots // _LEAST_SPAN)
    return max(1, min(most, 2 * processors // num_programs))


@functools.cache
def num_processors(device: torch.device) -> int:
    """Count the multiprocessors of a CUDA device; the interpreter is one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device current, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def scratch(name: str, numel: int, device: torch.device) -> Tensor:
    """Return float32 scratch of `numel` elements or more; the same one whenever asked again.

    It is kept for ever, sizes rounded up to powers of two, because a captured CUDA graph may
    point to it. Whoever uses it holds it until the stream's next launch: calls on one device
    must follow each other on one stream. Raises RuntimeError if it had to be allocated while a
    graph is being captured.
    """
    return _scratch(name, pad(numel), device)


@functools.cache
def _scratch(name: str, numel: int, device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"scratch of a captured step must exist before the capture, got a first use of "
            f"{name} [{numel}]; run the step once before it is captured"
        )
    return torch.empty(numel, dtype=torch.float32, device=device)
