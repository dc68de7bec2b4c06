"""Write vectors with their expected answers, build the emitted Verilog, run the bench on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from amaranth.hdl import Shape

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.emit import TOP, emit
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import response_layout, write_layout
from kvmmu.rtl.transactions import BlockSettings
from kvmmu.rtl.verify.packing import command_bits, layer_fields, mass_beats, pack, settings_bits
from kvmmu.rtl.verify.stimuli import Item

__all__ = ["BenchResult", "run_bench", "write_vectors"]


@dataclass(frozen=True)
class BenchResult:
    """Say how many steps were replayed, and what failed ("" if nothing did)."""

    steps: int
    failure: str


def write_vectors(
    config: BlockConfig,
    path: Path,
    *,
    settings: BlockSettings,
    items: Iterable[Item],
    seed: int = 0,
    gap: float = 0.3,
) -> int:
    """Write what the streams get and must give as JSON; returns the number of steps.

    An expected answer is a pair: its bits, and which of them count.
    """
    kept = list(items)
    model = BlockModel(config, settings)
    outcome = model.run(
        (item.command for item in kept), (item.masses for item in kept if item.masses)
    )
    answers = response_layout(config)
    accepts = pack(answers, lane=0, accepted=1)
    every = (1 << answers.size) - 1
    layout = write_layout(config)
    vectors: dict[str, Any] = {
        "seed": seed,
        "gap": gap,
        "settings": settings_bits(config, settings),
        "layers": layer_fields(config, settings),
        "num_slots": [layer.num_slots for layer in settings.layers],
        "num_sinks": settings.num_sinks,
        "window": settings.window,
        "write_fields": {
            str(name): (field.offset, Shape.cast(field.shape).width) for name, field in layout
        },
        "cmd": [command_bits(config, item.command) for item in kept],
        "mass": [beat for item in kept for beat in mass_beats(config, item.masses)],
        "rsp": [
            (pack(answers, lane=r.lane, accepted=int(r.accepted)), every if r.accepted else accepts)
            for r in outcome.responses
        ],
        "write": [(pack(layout, **vars(w)), (1 << layout.size) - 1) for w in outcome.writes],
    }
    path.write_text(json.dumps(vectors), encoding="utf-8")
    return len(outcome.writes)


def run_bench(
    config: BlockConfig,
    folder: Path,
    *,
    settings: BlockSettings,
    items: Iterable[Item],
    seed: int = 0,
    gap: float = 0.3,
    sources: Iterable[Path] | None = None,
) -> BenchResult:
    """Emit the block (or take `sources`), build it with Icarus and replay the items."""
    from cocotb_tools.runner import get_runner

    folder.mkdir(parents=True, exist_ok=True)
    vectors = folder / "vectors.json"
    steps = write_vectors(config, vectors, settings=settings, items=items, seed=seed, gap=gap)
    runner = get_runner("icarus")
    runner.build(
        sources=list(sources or emit(config, folder).sources),
        hdl_toplevel=TOP,
        build_dir=folder / "sim",
        build_args=["-g2005"],  # as emitted; -g2012 leaves always @* asleep at time 0
        timescale=("1ns", "1ns"),
        log_file=folder / "build.log",
    )
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    try:
        runner.test(
            hdl_toplevel=TOP,
            test_module="kvmmu.rtl.verify.bench.bench_kvmmu",
            build_dir=folder / "sim",
            test_dir=folder / "sim",
            results_xml=str(results),
            extra_env={"KVMMU_VECTORS": str(vectors)},
            log_file=folder / "run.log",
        )
    except SystemExit:  # the runner's way to say that a test failed
        if not results.exists():
            return BenchResult(steps, f"the simulation did not end; see {folder / 'run.log'}")
    root = ElementTree.parse(results).getroot()
    faults = [fault for kind in ("failure", "error") for fault in root.iter(kind)]
    said = [fault.attrib.get("error_msg") or fault.attrib.get("message", "?") for fault in faults]
    return BenchResult(steps, "; ".join(said))
