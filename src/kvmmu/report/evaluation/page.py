"""One page that needs nothing beside itself: words, pictures, tables, notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvmmu.report.evaluation.names import MODES, at
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.tables import grids
from kvmmu.report.evaluation.words import headline_words, method_notes
from kvmmu.report.html import body, encoded, page

__all__ = ["render_body", "render_page", "subtitle", "title"]


def render_page(made: dict[str, Any], pictures: dict[str, Path]) -> str:
    """Return the page's HTML; the pictures' bytes stand in it."""
    return page(title(made), subtitle(made), [render_body(made, pictures)])


def title(made: dict[str, Any]) -> str:
    """Name the evaluation."""
    return f"{made['about'].get('model', 'A model')} with smaller caches"


def render_body(made: dict[str, Any], pictures: dict[str, Path]) -> Markup:
    """Return what stands between the page's title and its end."""
    about = made["about"]
    told = made["families"] + made["published"] + made["not_measurable"]
    seen = {row["mode"] for row in told}
    return body(
        "evaluation/page.html.j2",
        focus=at(made["focus"]) if made["focus"] is not None else "",
        words=headline_words(made),
        grids=grids(made),
        pictures=encoded(pictures),
        needles=[name for name in pictures if name.startswith("needle")],
        modes=[(mode, meaning) for mode, meaning in MODES.items() if mode in seen],
        notes=method_notes(made),
        versions=list(_versions(about)),
    )


def subtitle(made: dict[str, Any]) -> str:
    """Say of what size model and evaluation are."""
    about = made["about"]
    parts = []
    if about.get("num_parameters"):
        parts.append(f"{about['num_parameters'] / 1e6:,.1f} M parameters")
    parts += [str(about[name]) for name in ("dtype",) if about.get(name)]
    if about.get("suite"):
        parts.append(f"suite {about['suite']}")
    parts.append(f"{max(len(made['settings']) - 1, 0)} settings")
    contexts = {
        (row["task"], row["mode"], row["num_tokens"], str(row["params"])): row["num_contexts"]
        for row in made["cells"]
        if row["label"] == FULL
    }
    parts.append(f"{sum(contexts.values()):,} contexts")
    return " · ".join(parts)


def _versions(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """List what was run where."""
    flat = {name: value for name, value in about.items() if name != "host"} | (
        about.get("host") or {}
    )
    for name, value in flat.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name.replace("_", " "), text
