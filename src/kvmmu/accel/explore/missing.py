"""The error for an extra that is not installed."""

from __future__ import annotations

from kvmmu.errors import KVMMUError

__all__ = ["MissingExtraError"]


class MissingExtraError(KVMMUError, ImportError):
    """Say which extra of kvmmu brings a package that is not installed."""
