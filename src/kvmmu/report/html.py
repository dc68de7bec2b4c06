"""One look for all pages: a page needs nothing beside itself, and is made of bodies."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["body", "encoded", "page"]


def page(title: str, subtitle: str, parts: Sequence[Markup]) -> str:
    """Return a whole page of bodies that stand one below the other."""
    return str(body("page.html.j2", title=title, subtitle=subtitle, parts=parts))


def body(template: str, **values: Any) -> Markup:
    """Fill a template of this package; text in it is escaped."""
    loader = jinja2.PackageLoader("kvmmu.report", "")
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=loader
    )
    env.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    return Markup(env.get_template(template).render(**values))


def encoded(pictures: Mapping[str, Path]) -> dict[str, str]:
    """Return pictures as text that can stand in a page."""
    return {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}
