"""Turn a folder's results.jsonl into figures, a table, pictures and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvmmu.report.evaluation.curves import (
    plot_families,
    plot_headline,
    plot_modes,
    plot_perplexity,
)
from kvmmu.report.evaluation.maps import needle_grids, plot_needles, plot_overview
from kvmmu.report.evaluation.page import render_page
from kvmmu.report.evaluation.price import has_prices, plot_price, plot_survivors
from kvmmu.report.evaluation.results import FULL, read_results
from kvmmu.report.evaluation.summary import summarise
from kvmmu.report.evaluation.tables import markdown

__all__ = ["draw", "write_report", "write_tables"]

Plot = Callable[[dict[str, Any], Path], Path]


def write_report(folder: Path) -> dict[str, Any]:
    """Write summary.json, table.md, plots/*.png and index.html beside results.jsonl.

    Returns the summary. The same results give the same bytes; pictures of an earlier state that
    no longer hold are removed.
    Raises ValueError if there are no results, or they do not belong together.
    """
    made = summarise(read_results(folder / "results.jsonl"))
    pictures = draw(made, folder / "plots")
    write_tables(made, folder)
    (folder / "index.html").write_text(render_page(made, pictures), encoding="utf-8")
    return made


def write_tables(made: dict[str, Any], folder: Path) -> None:
    """Write summary.json and table.md."""
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown(made), encoding="utf-8")


def draw(made: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every picture that has figures; return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    smaller = {
        table: [row for row in made[table] if row["label"] != FULL]
        for table in ("families", "perplexity", "survivors")
    }
    plots: dict[str, Plot] = {}
    if smaller["families"]:
        plots |= {"headline": plot_headline, "overview": plot_overview, "modes": plot_modes}
        plots["families"] = plot_families
    if has_prices(made):
        plots["price"] = plot_price
    if smaller["perplexity"]:
        plots["perplexity"] = plot_perplexity
    if any(row["compression"] == made["focus"] for row in smaller["survivors"]):
        plots["survivors"] = plot_survivors
    drawn = {name: plot(made, folder / f"{name}.png") for name, plot in plots.items()}
    for task, mode in needle_grids(made):
        name = re.sub(r"[^\w.=-]+", "_", f"needle_{task}_{mode}")
        drawn[name] = plot_needles(made, folder / f"{name}.png", (task, mode))
    for old in set(folder.glob("*.png")) - set(drawn.values()):
        old.unlink()
    return drawn
