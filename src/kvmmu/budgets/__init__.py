"""How many slots where: one file per rule; `base` holds the contract."""

from __future__ import annotations
