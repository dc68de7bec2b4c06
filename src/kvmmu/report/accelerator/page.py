"""A study as a part of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvmmu.report.accelerator.grids import grids
from kvmmu.report.accelerator.study import ours_name
from kvmmu.report.accelerator.words import answer, configuration, notes, setting
from kvmmu.report.html import body, encoded

__all__ = ["render_body"]


def render_body(study: Mapping[str, Any], pictures: Mapping[str, Path]) -> Markup:
    """Return what stands between the page's title and its end."""
    return body(
        "accelerator/page.html.j2",
        setting=setting(study),
        ours=ours_name(study),
        answer=answer(study),
        grids=grids(study),
        configuration=configuration(study),
        notes=notes(study),
        pictures=encoded(pictures),
    )
