"""kvmmu rtl: the KV-MMU in hardware, from Verilog to gates, and beside a recorded trace."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson
from kvmmu.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmmu.cli.progress import Bar
    from kvmmu.rtl.build import Build
    from kvmmu.rtl.verify.stimuli import Item

__all__ = ["app", "build", "needs_amaranth", "verify"]

_HELD_BACK = 0.2
"""Share of cycles in which the outside holds a stream back."""
_STEPS_BETWEEN_CHECKS = 50
"""Tokens of a lane after which the tables' contents are compared."""
_COMPARED = ("steps", "recorded", "evictions", "rescales", "tables_checked", "num_mismatches")

app = typer.Typer(
    help="The KV-MMU in hardware: Verilog, lint, synthesis, and a check against a trace.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Slots = Annotated[int, typer.Option(help="Slots of a table, the largest C of any layer.")]
Ways = Annotated[int, typer.Option(help="Slots of one SRAM row, worked on at once.")]
Lanes = Annotated[int, typer.Option(help="Sequences that run together.")]
Layers = Annotated[int, typer.Option(help="Layers of the model.")]
Heads = Annotated[int, typer.Option(help="Score tables of a layer: 1, or one per KV head.")]
Store = Annotated[str, typer.Option(help="Where tables lie: sram (all on chip) or dram.")]
PositionBits = Annotated[int, typer.Option(help="Bits of a token's position.")]
Liberty = Annotated[
    Path | None,
    typer.Option(help="The cells: .lib, .lib.gz or .lib.xz (default: a toy of invented numbers)."),
]
SramLiberty = Annotated[
    list[Path] | None,
    typer.Option(help="A library of SRAM macros; may be repeated, the best fit is taken."),
]
Clock = Annotated[float, typer.Option("--clock-mhz", help="What gates are sized for.")]
GoalName = Annotated[str, typer.Option("--goal", help="What mapping makes small: delay or area.")]
GateClock = Annotated[
    bool, typer.Option(help="Gate the clock of registers that share an enable, if there is a cell.")
]
DontUse = Annotated[
    list[str] | None, typer.Option(help="A cell to avoid, * and ? allowed; may be repeated.")
]
NoSynth = Annotated[bool, typer.Option("--no-synth", help="Stop after Verilog and lint.")]
TraceFile = Annotated[
    Path, typer.Argument(help="A trace with masses, decode steps alone (chunk_size=1).")
]
Beats = Annotated[int, typer.Option(help="Beats of a row, 1 to 256, a power of two.")]
Steps = Annotated[int | None, typer.Option(help="Stop after so many steps of the trace.")]
Seed = Annotated[int, typer.Option(help="Seed of memory contents, back-pressure and beats.")]
Output = Annotated[
    Path, typer.Option(help="Folder of the Verilog, netlist, logs and report; a build goes on.")
]


@app.command(
    epilog=(
        "Example: kvmmu rtl build --slots 1024 --liberty sg13g2_stdcell_typ_1p20V_25C.lib.xz "
        "--sram-liberty RM_IHPSG13_1P_1024x64_c2_bm_bist_typ_1p20V_25C.lib.xz --output mmu"
    )
)
def build(
    *,
    slots: Slots = 1024,
    ways: Ways = 16,
    lanes: Lanes = 16,
    layers: Layers = 32,
    heads: Heads = 1,
    store: Store = "sram",
    position_bits: PositionBits = 24,
    liberty: Liberty = None,
    sram_liberty: SramLiberty = None,
    clock_mhz: Clock = 200.0,
    goal: GoalName = "area",
    gate_clock: GateClock = True,
    dont_use: DontUse = None,
    no_synth: NoSynth = False,
    output: Output = Path("kvmmu-rtl"),
    as_json: AsJson = False,
) -> None:
    """Emit the KV-MMU as Verilog, lint it, map it onto a library and report what it costs.

    Prints cells, area and the critical path, SRAM as macros, and what the figures leave out:
    wires, clock tree, place and route. A stage whose inputs have not changed is not repeated.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}")
    from kvmmu.rtl.config import BlockConfig

    with needs_amaranth():
        from kvmmu.rtl.build import Build
    request = Build(
        BlockConfig(
            slots=slots, ways=ways, lanes=lanes, layers=layers, heads=heads,
            position_bits=position_bits, store=store,  # type: ignore[arg-type]
        ),
        liberty=liberty, sram_liberties=tuple(sram_liberty or ()), clock_mhz=clock_mhz,
        goal=goal,  # type: ignore[arg-type]
        gates_clock=gate_clock, dont_use=tuple(dont_use or ()), maps_gates=not no_synth,
    )  # fmt: skip
    _run(request, output, is_json=as_json)


@contextmanager
def needs_amaranth() -> Generator[None]:
    """Say in one line what to install. Raises ValueError where the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "amaranth":
            raise
        raise ValueError("the RTL needs amaranth; pip install 'kvmmu[rtl]'") from None


def _run(request: Build, output: Path, *, is_json: bool) -> None:
    """Build, show progress, print."""
    from kvmmu.cli.progress import bar
    from kvmmu.rtl.build import STAGES
    from kvmmu.rtl.build import build as make

    began = time.perf_counter()
    with bar("build", len(STAGES)) as shown:

        def say(stage: str) -> None:
            shown.say(stage)
            shown.advance(1)

        report = make(request, output, say=say)
    if not is_json:
        _print(report)
    seconds = time.perf_counter() - began
    files = "kvmmu.v, sram.v, manifest.json, report.json and report.md"
    typer.echo(f"built in {seconds:.1f} s; wrote {files} to {output}", err=True)
    for one in report["lint"]:
        if one["result"] == "absent":
            typer.echo(f"{one['tool']} is not installed; its lint was left out", err=True)
    if is_json:
        typer.echo(json.dumps(report))


def _print(report: Mapping[str, Any]) -> None:
    """Print the figures and what they leave out."""
    from rich.console import Console
    from rich.table import Table

    from kvmmu.rtl.report import report_rows

    console = Console(highlight=False, markup=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in report_rows(report):
        table.add_row(label, value)
    console.print(table)
    for text in report.get("left_out", []):
        console.print(f"left out: {text}", style="dim")


@app.command(epilog="Example: kvmmu rtl verify run.trace --ways 16 --steps 200")
def verify(
    trace: TraceFile,
    *,
    ways: Ways = 16,
    store: Store = "sram",
    beats: Beats = 1,
    steps: Steps = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate the RTL on a recorded trace beside the integer model and the recorded slots.

    Every DRAM write must name the slot that the library wrote; at the end every table is compared.
    Says whether the trace is a hard enough test. A difference is a fault: exit 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    if not trace.is_file():
        raise ValueError(f"TRACE must be a file that exists, got {str(trace)!r}")
    result = _verify(trace, ways, store, beats, steps, seed)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for label, value in result["compared"].items():
            typer.echo(f"{_words(label)}: {value:,}")
        facts = ", ".join(f"{_words(name)} {value:,g}" for name, value in result["trace"].items())
        typer.echo(f"the whole trace: {facts}")
    for fault in result["too_easy"]:
        typer.echo(f"too easy a test: {fault}", err=True)
    if result["mismatches"]:
        raise IntegrityError(f"the RTL must write the slots recorded: {result['mismatches'][0]}")


def _verify(
    path: Path, ways: int, store: str, beats: int, steps: int | None, seed: int
) -> dict[str, Any]:
    """Run the block on a trace, held back at every stream, and count what was compared."""
    import numpy as np

    from kvmmu.cli.progress import bar

    with needs_amaranth():
        from kvmmu.rtl.core.kv_mmu import KvMmu
        from kvmmu.rtl.verify.driver import Pace, cosimulate
        from kvmmu.rtl.verify.traces import block_of, measure, read_decodes, trace_items
    read = read_decodes(path)
    config, settings = block_of(read, ways=ways, beats=beats)
    config = replace(config, store=store)  # type: ignore[arg-type]
    hardness = measure(read)
    items = trace_items(read, ways=ways, beats=beats, seed=seed, most_steps=steps)
    began = time.perf_counter()
    with bar("verify", (steps or read.num_steps) * config.tables) as shown:
        made = cosimulate(
            KvMmu(config),
            config,
            settings=settings,
            items=_told(items, shown),
            rng=np.random.default_rng(seed),
            pace=Pace(*[_HELD_BACK] * len(fields(Pace))),
            check_every=config.tables * _STEPS_BETWEEN_CHECKS,
        )
    seconds = time.perf_counter() - began
    typer.echo(f"simulated {made.cycles:,} cycles in {seconds:.1f} s", err=True)
    return {
        "compared": {name: getattr(made, name) for name in _COMPARED},
        "mismatches": made.mismatches,
        "too_easy": [*hardness.faults, *_cut(steps, read.num_steps)],
        "trace": vars(hardness),
        "config": vars(config),
        "seed": seed,
        "cycles": made.cycles,
    }


def _words(name: str) -> str:
    """Write a count's name in words."""
    return name.removeprefix("num_").replace("_", " ")


def _cut(steps: int | None, num_steps: int) -> list[str]:
    """Say that a trace replayed in part does not count as a whole one."""
    if steps is None or steps >= num_steps:
        return []
    return [f"{steps:,} of the trace's {num_steps:,} steps were replayed; leave --steps out"]


def _told(items: Iterator[Item], shown: Bar) -> Iterator[Item]:
    """Pass items on and count the steps."""
    for item in items:
        shown.advance(int(item.recorded_slot is not None))
        yield item
