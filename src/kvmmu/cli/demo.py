"""kvmmu demo: the full cache beside constant-size ones, in one run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.generate import check_seed, load_model, quieten
from kvmmu.cli.lists import AsJson
from kvmmu.cli.replay import replay_trace

if TYPE_CHECKING:
    from kvmmu.evals.demo import Plan

__all__ = ["demo", "print_results", "run_demo"]

Output = Annotated[Path, typer.Option(help="The folder to write to; made if need be.")]
ModelName = Annotated[str, typer.Option(help="A shipped model, a local folder or a hub name.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer questions: under 40 seconds.")]
Seed = Annotated[int, typer.Option(help="Seed of the texts and questions, in [0, 2**31).")]


def demo(
    *,
    output: Output = Path("kvmmu-demo"),
    model: ModelName = "kvmmu-ref-1m",
    quick: Quick = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare a full cache with constant-size ones on a book that the model has not read.

    Facts are hidden in pages of Frankenstein and asked for; answers, perplexity, bytes and speed
    come from one run, and its trace is replayed on a simulated accelerator for energy, delay and
    DRAM traffic. Writes results.json, a trace, two pictures and a page.
    """
    check_seed(seed)
    _make_folder(output)
    quieten(model)
    from kvmmu.evals.demo import Plan

    results = run_demo(model, output, Plan.quick() if quick else Plan(), seed=seed)
    if not as_json:
        print_results(results)
    typer.echo(
        f"wrote {', '.join(results['files'])} to {output} in {results['wall_s']} s", err=True
    )
    if as_json:
        typer.echo(json.dumps(results))


def run_demo(model: str, output: Path, plan: Plan, *, seed: int) -> dict[str, Any]:
    """Run a plan and write its files. Returns the results as JSON values."""
    lm = load_model(model)
    from kvmmu.cli.progress import bar
    from kvmmu.evals.demo import Demo
    from kvmmu.evals.source import shipped_book
    from kvmmu.report.joint import write_joint
    from kvmmu.report.plots import plot_accuracy, plot_survivors
    from kvmmu.report.replay import replay_words
    from kvmmu.report.words import demo_notes, demo_words

    began = time.perf_counter()
    job = Demo(lm, shipped_book(), plan, seed=seed)
    with bar("demo", job.num_units, has_count=False) as shown:
        results = job.run(output, advance=shown.advance, say=shown.say)
        shown.say("pictures")
        pictures = ("which_tokens_stayed.png", "accuracy_against_cache_size.png")
        traced = results["trace"]
        traced["drawn"] = plot_survivors(output / traced["file"], traced, output / pictures[0])
        plot_accuracy(results, output / pictures[1])
        shown.say("accelerator (compiled once)")
        results["accelerator"] = replay_trace(
            output / traced["file"],
            Path(model) if Path(model).is_dir() else model,
            label=traced["label"],
            dtype=results["dtype"],
        )
    results["words"] = demo_words(results) + replay_words(results["accelerator"])
    results["notes"] = demo_notes(results)
    results["files"] = ["results.json", traced["file"], *pictures, "index.html"]
    results["wall_s"] = round(time.perf_counter() - began, 1)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_joint(output)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print the table and what it says."""
    from rich.console import Console

    from kvmmu.report.accelerator.terminal import grid_table
    from kvmmu.report.replay import replay_grid
    from kvmmu.report.tables import bullets, demo_table

    console = Console(highlight=False, markup=False)
    console.print(demo_table(results))
    grid = replay_grid(results["accelerator"]) if "accelerator" in results else None
    if grid is not None and grid.rows:
        for part in grid_table(grid):
            console.print(part)
    console.print(bullets(results["words"]))
    console.print()
    console.print(bullets(results["notes"], style="dim"))


def _make_folder(output: Path) -> None:
    """Make the output folder. Raises ValueError where it cannot be one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}") from error
