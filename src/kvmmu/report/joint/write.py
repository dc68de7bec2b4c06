"""Write a run's one page, and the files of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvmmu.report.accelerator.page import render_body as study_body
from kvmmu.report.accelerator.words import title as study_title
from kvmmu.report.accelerator.write import draw as draw_study
from kvmmu.report.evaluation.page import render_body as evaluation_body
from kvmmu.report.evaluation.page import subtitle
from kvmmu.report.evaluation.page import title as evaluation_title
from kvmmu.report.evaluation.write import draw as draw_evaluation
from kvmmu.report.evaluation.write import write_tables
from kvmmu.report.html import body, encoded, page
from kvmmu.report.joint.overview import demo_grid, mismatch, overview_grids
from kvmmu.report.joint.read import Run, read_run
from kvmmu.report.replay import replay_grid

__all__ = ["write_joint"]

Row = dict[str, Any]
_DEMO_PICTURES = {
    "accuracy": "accuracy_against_cache_size.png",
    "survivors": "which_tokens_stayed.png",
}


def write_joint(folder: Path) -> Run:
    """Write index.html of whatever the folder holds, and an evaluation's tables and plots.

    The same folder gives the same bytes. Raises ValueError where there is nothing to report.
    """
    run = read_run(folder)
    parts: list[tuple[str, Markup]] = []
    if run.demo is not None:
        parts.append((f"Demonstration: {run.demo['model']}", _demo_body(run.demo, folder)))
    if run.evaluation is not None:
        write_tables(run.evaluation, folder)
        made = evaluation_body(run.evaluation, draw_evaluation(run.evaluation, folder / "plots"))
        title = f"{evaluation_title(run.evaluation)}, measured"
        parts.append((f"{title} ({subtitle(run.evaluation)})", made))
    if run.study is not None:
        made = study_body(run.study, draw_study(run.study, folder))
        parts.append((study_title(run.study), made))
    is_joint = len(parts) > 1
    frame = body(
        "joint/page.html.j2",
        grids=overview_grids(run) if is_joint else {},
        pictures={},
        mismatch=mismatch(run) if is_joint else [],
        missing=run.missing,
        apart=run.apart,
    )
    headed = [Markup("<h1>{}</h1>\n{}").format(title, made) for title, made in parts]
    bodies = [frame, *headed] if is_joint else [parts[0][1], frame]
    text = page(*_heading(run), bodies)
    (folder / "index.html").write_text(text, encoding="utf-8")
    return run


def _heading(run: Run) -> tuple[str, str]:
    """Title and subtitle: a single part's own, or those of a run."""
    if len(run.parts) > 1:
        return "A run: accuracy, memory, speed and accelerator", f"from {', '.join(run.parts)}"
    if run.evaluation is not None:
        return evaluation_title(run.evaluation), subtitle(run.evaluation)
    if run.study is not None:
        return study_title(run.study), "every figure is simulated"
    model = (run.demo or {})["model"]
    return f"{model} with smaller caches: the demonstration", "measured, and replayed in simulation"


def _demo_body(demo: Row, folder: Path) -> Markup:
    """Render the demonstration's part; a picture that is gone is left out."""
    grids = {"demo": demo_grid(demo)}
    if "accelerator" in demo:
        grids |= {"replay": replay_grid(demo["accelerator"])}
    paths = {name: folder / file for name, file in _DEMO_PICTURES.items()}
    return body(
        "joint/demo.html.j2",
        words=demo["words"],
        notes=demo["notes"],
        grids={name: grid for name, grid in grids.items() if grid.rows},
        pictures=encoded({name: path for name, path in paths.items() if path.is_file()}),
    )
