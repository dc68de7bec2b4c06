"""A simulation's study as words, tables, pictures and a page: JSON is read, nothing simulated."""

from __future__ import annotations
