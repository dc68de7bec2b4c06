"""How a slot is stored: one file per codec; `base` holds the contract."""

from __future__ import annotations
