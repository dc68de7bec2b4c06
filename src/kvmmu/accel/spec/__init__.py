"""Specifications: what an accelerator and a model are; every number has its source."""

from __future__ import annotations
