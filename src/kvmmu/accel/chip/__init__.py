"""The chip: buffers, array, softmax, vector unit and KV-MMU as prices, leakage and area."""

from __future__ import annotations
