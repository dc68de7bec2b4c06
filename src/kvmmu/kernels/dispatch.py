"""Choose a kernel by name and device, once, when a cache or a pool of lanes is bound."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from kvmmu.kernels.contract import Kernel
from kvmmu.kernels.step import FusedKernel
from kvmmu.registry import unknown_name

__all__ = ["available", "fastest", "resolve", "resolve_fused", "usable_device"]

_KERNELS = ("cpu", "reference")

_FUSED = {"native": "native", "reference": "fused_reference", "triton": "triton"}
"""Names of the fused kernels and the files that hold them."""


@dataclass(frozen=True)
class _Fused:
    """A fused kernel's two functions, which a copy of a cache shares; modules cannot be copied."""

    step: Callable[..., None]
    refresh: Callable[..., None]


def available(device: torch.device | str = "cpu") -> list[str]:
    """List the kernels that run on a device of this machine."""
    kind = torch.device(device).type
    here = kind == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    more = ["native"] if kind == "cpu" else []
    return sorted([*_KERNELS, *more, *(["triton"] if here and _why_no_triton() is None else [])])


def fastest(device: torch.device | str) -> str:
    """Name the fastest kernel that runs on a device: "cpu", plain PyTorch, if there is no other."""
    name = {"cpu": "native", "cuda": "triton"}.get(torch.device(device).type, "cpu")
    return name if name in available(device) else "cpu"


def _why_no_triton() -> str | None:
    """Say what the Triton kernels lack here; None if they run."""
    if importlib.util.find_spec("triton") is None:
        return "the Triton kernels need triton; pip install 'kvmmu[triton]'"
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        return (
            "the Triton kernels need a CUDA device, and torch finds none; "
            "on a CPU they run with TRITON_INTERPRET=1 only, slowly"
        )
    return None


def resolve(name: str | None = None) -> Kernel:
    """Return the kernel called `name`; None means "cpu", plain PyTorch, which runs anywhere.

    "native" fuses decode steps, and what is between a chunk's products, by numba, which compiles
    on first use. Raises ValueError for an unknown name, or for "triton" where it cannot run.
    """
    if name is None:
        name = "cpu"
    if name == "triton" and (lack := _why_no_triton()) is not None:
        raise ValueError(lack)
    if name not in (*_KERNELS, "native", "triton"):
        raise ValueError(unknown_name("kernel", name, available()))
    module = importlib.import_module(f"kvmmu.kernels.{name}")
    fused = _Fused(module.step, module.refresh) if name in ("native", "triton") else None
    return Kernel(name, module.attend, module.write_slots, module.select_victims, fused)


def resolve_fused(name: str | None, device: torch.device | str) -> FusedKernel:
    """Return the fused kernel called `name` for slots on `device`; None means the fastest there.

    "native" runs on a CPU, "triton" on a CUDA device (anywhere with TRITON_INTERPRET=1),
    "reference" everywhere, slowly. Raises ValueError for an unknown name or a wrong device.
    """
    kind = torch.device(device).type
    if name is None:
        name = {"cpu": "native", "cuda": "triton"}.get(kind)
    if name is None:
        raise ValueError(
            f"device of a fused kernel must be cpu or cuda, got {kind!r}; "
            "name 'reference', which is slow, or use the kernels of kvmmu.slots"
        )
    if name not in _FUSED:
        raise ValueError(unknown_name("fused kernel", name, sorted(_FUSED)))
    if name == "native" and kind != "cpu":
        raise ValueError(f"device of the fused kernel 'native' must be cpu, got {kind!r}")
    if name == "triton" and kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"device of the fused kernel 'triton' must be cuda, got {kind!r}; "
            "elsewhere it runs with TRITON_INTERPRET=1 only"
        )
    return cast(FusedKernel, importlib.import_module(f"kvmmu.kernels.{_FUSED[name]}"))


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that torch has here. Raises ValueError for another one."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"device must be one that torch has here, got {str(device)!r}; try 'cpu'"
        ) from error
