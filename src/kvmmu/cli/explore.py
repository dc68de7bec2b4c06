"""kvmmu explore: the best design under an area budget, with the KV-MMU and without it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson
from kvmmu.cli.plan import numbers_of

if TYPE_CHECKING:
    from kvmmu.accel.explore.explore import Exploration

__all__ = ["explore"]

Area = Annotated[
    float | None, typer.Option("--area-mm2", help="The budget (default: the accelerator's area).")
]
Accelerator = Annotated[
    str, typer.Option(help="Whose node, Vdd, SRAM and clock to keep: a preset or a YAML file.")
]
ModelName = Annotated[
    str, typer.Option(help="A model by name, or a folder with a Hugging Face config.json.")
]
Batch = Annotated[int, typer.Option(help="Lanes: sequences that run together.")]
Prompt = Annotated[int, typer.Option(help="Tokens of each prompt.")]
Generate = Annotated[int, typer.Option(help="New tokens of each lane.")]
Trials = Annotated[int, typer.Option(help="Designs priced for RCE, and again for the full cache.")]
Objective = Annotated[
    str, typer.Option(help="What to make least over the run: edp, delay or energy.")
]
Seed = Annotated[int, typer.Option(help="Seed of the search, in [0, 2**31).")]
Slots = Annotated[
    str | None,
    typer.Option(help="Numbers of slots to choose from (default: one, (P + G) / 8)."),
]
Bits = Annotated[
    str | None,
    typer.Option(help="Widths of weights and of K and V to choose from (default: its own)."),
]
Drams = Annotated[
    str | None,
    typer.Option(help="DRAMs to choose from (default: up to twice its own bandwidth)."),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(help="Hold a choice at a value: rows=32; may be repeated."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Write exploration.json and a picture here; a killed search goes on."),
]


def explore(
    *,
    area_mm2: Area = None,
    accelerator: Accelerator = "jetcas65",
    model: ModelName = "llama_7b",
    batch: Batch = 16,
    prompt: Prompt = 2048,
    generate: Generate = 2048,
    trials: Trials = 100,
    objective: Objective = "edp",
    seed: Seed = 0,
    slots: Slots = None,
    bits: Bits = None,
    drams: Drams = None,
    fix: Fix = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Search the best chip under an area budget for RCE, and for the full cache as well.

    Array, buffers, ways, DRAM, layout and softmax are searched with optuna; node, Vdd, SRAM and
    clock stay. The ratio compares best with best, beside the ratio on equal hardware. Fewer slots
    or bits change the accuracy, which is not measured here: they are searched only if you list
    them. With --output a search that was killed goes on, and ends as if it had not been.
    """
    began = time.perf_counter()
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}")
    from kvmmu.accel.explore.explore import Exploration
    from kvmmu.accel.request import Request

    asked = Exploration(
        Request(
            accelerator=accelerator, model=model, batch=batch, prompt=prompt, generate=generate
        ),
        area_mm2=area_mm2,
        slots=() if slots is None else numbers_of(slots, "--slots"),
        bits=() if bits is None else _bits(bits),
        drams=() if drams is None else _names(drams),
        fixed=_fixed(fix or []),
        trials=trials,
        objective=objective,
        seed=seed,
    )
    results = _run(asked, output)
    if not as_json:
        _print(results)
    files = "exploration.json, designs.png and trials"
    where = "" if output is None else f"; wrote {files} to {output}"
    typer.echo(f"searched in {time.perf_counter() - began:.0f} s{where}", err=True)
    if as_json:
        typer.echo(json.dumps(results))


def _run(asked: Exploration, output: Path | None) -> dict[str, Any]:
    """Search, show progress, write."""
    from kvmmu.accel.explore.explore import explore as search
    from kvmmu.cli.progress import bar

    with bar("explore", 2 * asked.trials) as shown:
        made = search(asked, folder=output, advance=shown.advance, say=shown.say)
    results: dict[str, Any] = json.loads(json.dumps(made))
    if output is not None:
        from kvmmu.report.explore import EXPLORATION, plot_designs

        plot_designs(results, output / "designs.png")
        text = json.dumps(results, indent=1)
        (output / EXPLORATION).write_text(text + "\n", encoding="utf-8")
    return results


def _print(results: dict[str, Any]) -> None:
    """Print the answer, the tables and what must be known of them."""
    from rich.console import Console

    from kvmmu.report.explore import (
        explore_answer,
        explore_notes,
        explore_table,
        ratio_table,
    )
    from kvmmu.report.tables import bullets

    console = Console(highlight=False, markup=False)
    designs = explore_table(results, width=console.width)
    for part in (explore_answer(results), designs, ratio_table(results)):
        console.print(part)
        console.print()
    console.print(bullets(explore_notes(results), style="dim"))


def _bits(text: str) -> tuple[int, ...]:
    """Read widths. Raises ValueError for one that the model does not price."""
    found = numbers_of(text, "--bits")
    if any(width not in (4, 8, 16) for width in found):
        raise ValueError(f"--bits must be among 4, 8 and 16, got {text!r}")
    return found


def _names(text: str) -> tuple[str, ...]:
    """Read names with commas. Raises ValueError for none: that would mean every DRAM."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ValueError(f"--drams must name at least one DRAM, got {text!r}")
    return names


def _fixed(texts: list[str]) -> dict[str, str]:
    """Read name=value pairs. Raises ValueError for one without '=' or twice."""
    made: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(f"--fix must be name=value, as in rows=32, got {text!r}")
        if name in made:
            raise ValueError(f"--fix must name each choice once, got {name!r} twice")
        made[name] = value
    return made
