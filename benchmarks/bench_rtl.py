"""What does the KV-MMU's logic cost: area, clock, and energy of a beat, a row, a step and a cycle?

Regime: synthesised gates, simulated cycle by cycle on a recorded trace (simulated, no silicon). The
baseline is the accelerator that the block goes into: `kvmmu simulate` prices the block from these
figures. Every write of the netlist is compared with the integer model and with what the library
recorded while the energy is counted. A block with its tables in DRAM swaps them while it follows a
trace, and the beats of their images get a cost of their own; the DRAM itself is not priced here. A
block follows each trace that fits it: name traces with different numbers of slots, or steps and
rows cannot be told apart, and traces of one victim a KV head for blocks with several heads.

    python benchmarks/bench_rtl.py TRACE --liberty CELLS.lib.xz --sram-liberty M1.lib.xz ... \
        --slots 256,1024 --ways 16 --store sram --output DIR

Prints a table, then one JSON object. A build that lies in DIR is taken up, not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kvmmu.rtl.build import Build, build, toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.costs import fit_costs
from kvmmu.rtl.figures import SLEW_NS, macros_in
from kvmmu.rtl.gates.energy import Energy
from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.timing import Timing, analyse_timing
from kvmmu.rtl.measure import items_for, measure, settings_for
from kvmmu.rtl.replay import Replay
from kvmmu.rtl.synth import NETLIST
from kvmmu.rtl.verify.traces import read_decodes
from kvmmu.trace import Trace

LOADS = ((1, 1.0), (4, 1.0), (1, 0.2), (2, 0.5))
"""Replays of each trace: query heads a row, and the share of cycles in which a beat is there."""
IDLE_CYCLES = 9_000
MOST_CYCLES, LONGEST_CYCLES = 120_000, 1_500_000
"""About where a replay is cut, and where the longest is: the trace as it is."""
ON_CHIP_TABLES = 2
"""Tables of a replay without swaps, where the others lie in DRAM."""


@dataclass(frozen=True)
class Load:
    """Name one replay."""

    trace: str
    beats: int = 1
    mass_probability: float = 1.0
    most_steps: int | None = None
    most_tables: int | None = None
    idle_cycles: int = 0


def one(
    config: BlockConfig, traces: list[Trace], args: argparse.Namespace, libraries: list[Library]
) -> dict[str, Any]:
    """Build one block, replay the traces under every load and fit the costs."""
    name = f"s{config.slots}_w{config.ways}_h{config.heads}_{config.store}"
    name += "" if args.gate_clock else "_ungated"
    request = Build(
        config,
        args.liberty,
        tuple(args.sram_liberty),
        clock_mhz=args.clock_mhz,
        gates_clock=args.gate_clock,
    )
    report = build(request, args.output / name, say=lambda stage: tell(f"{name}: {stage}"))
    cells, *srams = libraries
    netlist = read_netlist(args.output / name / "synth" / NETLIST, cells)
    macros = tuple(macro for library in srams for macro in macros_in(library))
    timing = analyse_timing(netlist, cells, macros, input_slew_ns=SLEW_NS, clock_slew_ns=SLEW_NS)
    period_ns = 1e3 / args.clock_mhz
    runs: list[tuple[Load, Replay, Energy]] = []
    replayed = [trace for trace in traces if follows(config, trace)]
    for trace in replayed:
        for load in loads(trace, config, args):
            done, energy = replay(trace, load, config, netlist, cells, timing, period_ns)
            tell(f"{name}: {load}: {done}; {energy.pj_per_cycle:.1f} pJ a cycle")
            if done.mismatches or done.recorded_mismatches:
                sys.exit(f"{name}: {done.first_mismatch}")
            runs.append((load, done, energy))
    leakage_nw = sum(netlist.cell_of(node).leakage_nw for node in range(netlist.num_nodes))
    return {
        "name": name,
        "commit": args.commit,
        "config": asdict(config),
        "period_ns": period_ns,
        "gates_clock": args.gate_clock,
        "report": {key: value for key, value in report.items() if key not in SKIPPED},
        "costs": asdict(fit_costs([run[1:] for run in runs])) if runs else None,
        "logic_leakage_nw": leakage_nw + sum(g.cell.leakage_nw for g in netlist.clock_gates),
        "sram_leakage_nw": sum(made.leakage_nw for made in timing.compositions),
        "runs": [
            {"load": asdict(load), "replay": done.to_json(), "energy": energy.to_json()}
            for load, done, energy in runs
        ],
    }


def replay(
    trace: Trace,
    load: Load,
    config: BlockConfig,
    netlist: Netlist,
    cells: Library,
    timing: Timing,
    period_ns: float,
) -> tuple[Replay, Energy]:
    """Replay a trace on a block that may have more layers, heads and slots than the trace."""
    items = items_for(
        trace,
        config,
        beats=load.beats,
        most_steps=load.most_steps,
        most_tables=load.most_tables,
    )
    return measure(
        netlist,
        cells,
        timing,
        config,
        settings_for(trace, config, beats=load.beats),
        items,
        period_ns=period_ns,
        mass_probability=load.mass_probability,
        idle_cycles=load.idle_cycles,
    )


SKIPPED = ("cells_by_type", "lint", "left_out", "units")


def follows(config: BlockConfig, trace: Trace) -> bool:
    """Say whether a block can follow a trace, and is of its granularity."""
    heads = trace.header.num_tables
    fits = config.slots >= max(trace.header.geometry.slots)
    return fits and (config.heads == 1) == (heads == 1) and config.heads % heads == 0


def loads(trace: Trace, config: BlockConfig, args: argparse.Namespace) -> Iterator[Load]:
    """Yield every replay of a trace, one without swaps, and one that hardly does anything.

    A block of several heads does one layer of one lane: many tables over few tokens would tell
    little of tables that are full.
    """
    name = trace.path.name
    geometry = trace.header.geometry
    most_tables = config.heads if config.heads > 1 else None
    tables = most_tables or geometry.batch * geometry.num_layers
    rows = -(-geometry.slots[0] // config.ways)
    for beats, share in LOADS:
        cycles = rows * beats / share
        if config.store == "dram":  # an image goes out in two cycles a row, and comes in in one
            cycles = max(cycles, 3 * rows)
        limit = LONGEST_CYCLES if beats == share == 1 else MOST_CYCLES
        yield Load(name, beats, share, cut(int(limit / (tables * cycles)), args), most_tables)
    if config.store == "dram":
        yield Load(name, most_steps=cut(None, args), most_tables=ON_CHIP_TABLES)
    yield Load(name, most_steps=2, idle_cycles=IDLE_CYCLES)


def cut(steps: int | None, args: argparse.Namespace) -> int | None:
    """Return the steps of a replay: at least one, and not more than were asked for."""
    if steps is None or args.most_steps is None:
        return args.most_steps if steps is None else max(1, steps)
    return max(1, min(steps, args.most_steps))


def tell(words: str) -> None:
    """Say how far it is."""
    print(words, file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    """Read "256,1024"."""
    return [int(part) for part in text.split(",")]


def words(text: str) -> list[str]:
    """Read "sram,dram"."""
    return text.split(",")


def main() -> None:
    """Measure every block asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path, nargs="+")
    parser.add_argument("--liberty", type=Path, default=None)
    parser.add_argument("--sram-liberty", type=Path, action="append", default=[])
    parser.add_argument("--clock-mhz", type=float, default=100.0)
    parser.add_argument("--slots", type=numbers, default=[1024])
    parser.add_argument("--ways", type=numbers, default=[16])
    parser.add_argument("--store", type=words, default=["sram"])
    parser.add_argument("--heads", type=numbers, default=[1])
    parser.add_argument("--gate-clock", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--most-steps", type=int, default=None)
    parser.add_argument("--commit", default=None, help="of this repository, kept with the figures")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    traces = [read_decodes(path) for path in args.trace]
    paths = [args.liberty, *args.sram_liberty] if args.liberty else toy_liberties()
    libraries = [read_library(path) for path in paths]
    results = []
    asked = product(args.slots, args.ways, args.heads, args.store)
    for slots, ways, heads, store in asked:
        config = BlockConfig(
            slots=slots,
            ways=ways,
            lanes=args.lanes,
            layers=args.layers,
            heads=heads,
            store=store,
        )
        made = one(config, traces, args, libraries)
        results.append(made)
        (args.output / f"{made['name']}.json").write_text(json.dumps(made, indent=1))
    names = ("beat", "row", "step", "cycle", "image_beat", "sram_row", "sram_step")
    print(f"{'block':28} " + " ".join(f"{name:>10}" for name in names) + "  pJ; residual")
    for made in (made for made in results if made["costs"] is not None):
        costs = made["costs"]
        values = " ".join(f"{costs[f'{name}_pj']:10.2f}" for name in names)
        print(f"{made['name']:28} {values}  {costs['largest_residual']:.1%}")
    print(json.dumps({made["name"]: made["costs"] for made in results}))


if __name__ == "__main__":
    main()
