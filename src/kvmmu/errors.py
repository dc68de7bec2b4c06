"""The errors of kvmmu; wrong arguments raise the builtin ValueError and TypeError."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "IntegrityError",
    "KVMMUError",
    "SpecError",
    "TraceError",
    "UnsupportedModelError",
]


class KVMMUError(Exception):
    """Be the root of every error that kvmmu defines."""


class CapacityError(KVMMUError):
    """Say that a request does not fit the memory or the positions it was given."""


class TraceError(KVMMUError):
    """Say why a trace file cannot be read or written."""


class SpecError(KVMMUError):
    """Say which key of an accelerator or DRAM specification is wrong."""


class IntegrityError(KVMMUError):
    """Say which invariant of the KV-MMU does not hold, or which use would break it."""


class UnsupportedModelError(KVMMUError):
    """Say what a model needs that kvmmu cannot do exactly."""
