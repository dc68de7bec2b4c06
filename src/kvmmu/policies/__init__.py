"""Who leaves: one file per policy, registered by name; `base` holds the contract."""

from __future__ import annotations
