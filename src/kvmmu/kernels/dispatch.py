"""Choose a kernel by name and device, once, when a cache is bound."""

from __future__ import annotations

import importlib

from kvmmu.kernels.contract import Kernel
from kvmmu.registry import unknown_name

__all__ = ["available", "resolve"]

_KERNELS = ("cpu", "reference")


def available() -> list[str]:
    """List the kernels that run on this machine."""
    return list(_KERNELS)


def resolve(name: str | None = None) -> Kernel:
    """Return the kernel called `name`; None means the fastest that runs here.

    Raises ValueError for an unknown name.
    """
    if name is None:
        name = "cpu"
    if name not in _KERNELS:
        raise ValueError(unknown_name("kernel", name, available()))
    module = importlib.import_module(f"kvmmu.kernels.{name}")
    return Kernel(name, module.attend, module.write_slots, module.select_victims)
