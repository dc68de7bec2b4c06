"""The waveforms of docs/rtl.md are what the block does now."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_pictures_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    try:
        for name, svg in importlib.import_module("draw_rtl").pictures().items():
            written = (DOCS / "img" / name).read_text(encoding="utf-8")
            assert written == svg, f"run python docs/draw_rtl.py; docs/img/{name} is stale"
    finally:
        for name in ("draw_rtl", "draw", "worked_example"):
            sys.modules.pop(name, None)
