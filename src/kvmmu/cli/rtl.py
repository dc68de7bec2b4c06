"""kvmmu rtl: the KV-MMU in hardware, from Verilog to gates."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

if TYPE_CHECKING:
    from kvmmu.rtl.build import Build

__all__ = ["app", "build"]

app = typer.Typer(
    help="The KV-MMU in hardware: Verilog, lint, synthesis.",
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
DontUse = Annotated[
    list[str] | None, typer.Option(help="A cell to avoid, * and ? allowed; may be repeated.")
]
NoSynth = Annotated[bool, typer.Option("--no-synth", help="Stop after Verilog and lint.")]
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
    goal: GoalName = "delay",
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

    try:
        from kvmmu.rtl.build import Build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "amaranth":
            raise
        raise ValueError("the RTL needs amaranth; pip install 'kvmmu[rtl]'") from None
    request = Build(
        BlockConfig(
            slots=slots, ways=ways, lanes=lanes, layers=layers, heads=heads,
            position_bits=position_bits, store=store,  # type: ignore[arg-type]
        ),
        liberty=liberty, sram_liberties=tuple(sram_liberty or ()), clock_mhz=clock_mhz,
        goal=goal,  # type: ignore[arg-type]
        dont_use=tuple(dont_use or ()), maps_gates=not no_synth,
    )  # fmt: skip
    _run(request, output, is_json=as_json)


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
