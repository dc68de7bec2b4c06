"""A study as a page, or as a part of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvmmu.report.accelerator.grids import grids
from kvmmu.report.accelerator.words import answer, configuration, notes, setting, title
from kvmmu.report.html import body, encoded, page

__all__ = ["render_body", "render_page"]


def render_page(study: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """Return the page's HTML; the pictures' bytes stand in it."""
    return page(title(study), "every figure is simulated", [render_body(study, pictures)])


def render_body(study: Mapping[str, Any], pictures: Mapping[str, Path]) -> Markup:
    """Return what stands between the page's title and its end."""
    return body(
        "accelerator/page.html.j2",
        setting=setting(study),
        answer=answer(study),
        grids=grids(study),
        configuration=configuration(study),
        notes=notes(study),
        pictures=encoded(pictures),
    )
