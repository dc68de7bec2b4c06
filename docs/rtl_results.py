"""What the KV-MMU's RTL costs, and what that is worth in the accelerator: kept, laid out as tables.

    python docs/rtl_results.py --take FOLDER    keep the measurements in FOLDER/*.json
    python docs/rtl_results.py                  price the accelerator's runs beside them

A measurement is one block: `kvmmu rtl build`'s report on a library, and from replays on its netlist
what a beat, a row, a step and a cycle cost. docs/results/rtl holds blocks.json (the measurements,
cut to what pages show) and shares.json (the runs). In a page, rtl/blocks and rtl/energies are
tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from accelerator_results import _rows, _short

HOME = Path(__file__).resolve().parent / "results" / "rtl"
SLOTS = (256, 1024, 2048, 4096)
MODELS = {"llama_7b": "LLaMA-7B, 32 KV heads", "llama_3_8b": "Llama-3-8B, 8 KV heads"}
BATCH, COMPRESSION = 16, 8
NODE, VDD_V = "130", 1.2
"""IHP SG13G2, the library of the measurements."""
UM2_PER_MM2 = 1e6


# Kept ---------------------------------------------------------------------------------------


def take(folder: Path) -> None:
    """Keep the measurements of a folder. Raises ValueError for a toy library's or for none."""
    blocks = [_block(json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    if not blocks:
        raise ValueError(f"{folder} must hold measurements (*.json), got none")
    blocks.sort(key=lambda b: (b["config"]["ways"], b["config"]["slots"], b["name"]))
    _write("blocks.json", blocks)


def _block(made: dict[str, Any]) -> dict[str, Any]:
    report = made["report"]
    if report["is_toy"]:
        raise ValueError(f"{made['name']} must be of a real library, got the toy's")
    kept = ("cells", "flip_flops", "logic_area_um2", "sram_area_um2", "sram_bits", "clock_mhz")
    return {
        "name": made["name"],
        "clock_gates": report["clock_gates"],
        "config": made["config"],
        "commit": made["commit"],
        "library": report["library"]["name"],
        "libraries_sha256": {
            one["file"]: one["sha256"] for one in (report["library"], *report["sram_libraries"])
        },
        "block_sha256": report["block_sha256"],
        "critical_path_ns": report["timing"]["critical_path_ns"],
        "costs": made.get("costs"),
        "leakage_nw": made["logic_leakage_nw"],
        "sram_leakage_nw": made["sram_leakage_nw"],
        "mismatches": sum(run["replay"]["mismatches"] for run in made.get("runs", [])),
        "replayed_steps": sum(run["replay"]["steps"] for run in made.get("runs", [])),
        **{name: report[name] for name in kept},
    }


def price() -> None:
    """Simulate every size, granularity and store on jetcas65."""
    _write("shares.json", _runs())


def _runs() -> list[dict[str, Any]]:
    from kvmmu.accel.request import Request
    from kvmmu.accel.simulate import simulate
    from kvmmu.errors import CapacityError

    made = []
    for model in MODELS:
        for slots in SLOTS:
            for granularity in ("layer", "head"):
                for store in ("dram", "sram"):
                    half = slots * COMPRESSION // 2
                    about = {"model": model, "slots": slots}
                    about |= {"granularity": granularity, "store": store}
                    request = Request(
                        model=model,
                        batch=BATCH,
                        prompt=half,
                        generate=half,
                        num_slots=slots,
                        granularity=granularity,
                        overrides={"mmu.store": store},
                    )
                    try:
                        run = simulate(request, names=())
                    except CapacityError as error:
                        made.append(about | {"refused": str(error)})
                        continue
                    made.append(about | _priced(run))
    return made


def _priced(made: Any) -> dict[str, Any]:
    """Return areas, energies of a decode step by term, and shares."""
    from kvmmu.accel.simulate import COLLECTION

    machine = made.ours.total.machine
    chip, decode = machine.chip, made.ours.phases["decode"]
    terms = {
        name: value / decode.steps * 1e6
        for name, value in decode.mmu_energy_j().items()
        if name not in COLLECTION
    }
    return {
        "tables": BATCH * made.model.num_layers * machine.num_tables,
        "sram_bytes": chip.memories["score"].capacity_bytes,
        "logic_mm2": chip.area_mm2["mmu_logic"],
        "sram_mm2": chip.area_mm2["mmu_score"],
        "chip_mm2": chip.total_area_mm2,
        "step_uj": terms,
        "step_all_uj": decode.energy_j() / decode.steps * 1e6,
        "share": made.mmu_share(),
        "decode_share": made.mmu_share("decode"),
    }


def _write(name: str, value: Any) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_short(value), indent=1, sort_keys=True)
    (HOME / name).write_text(text + "\n", encoding="utf-8")


@cache
def blocks_of() -> list[dict[str, Any]]:
    """Read the kept measurements."""
    made: list[dict[str, Any]] = json.loads((HOME / "blocks.json").read_text("utf-8"))
    return made


@cache
def shares_of() -> list[dict[str, Any]]:
    """Read the kept runs."""
    made: list[dict[str, Any]] = json.loads((HOME / "shares.json").read_text("utf-8"))
    return made


# Tables -------------------------------------------------------------------------------------


def blocks() -> str:
    """Write area, delay and leakage of each synthesised block, in its own node."""
    rows = []
    for block in blocks_of():
        sram, leak = block["sram_area_um2"], block["leakage_nw"]
        rows.append(
            (
                *_named(block),
                f"{block['cells']:,}",
                f"{block['flip_flops']:,}",
                str(block["clock_gates"]),
                f"{block['logic_area_um2'] / UM2_PER_MM2:.3f}",
                "-" if sram is None else f"{sram / UM2_PER_MM2:.2f}",
                f"{block['critical_path_ns']:.2f}",
                f"{leak / 1e3:.1f} + {block['sram_leakage_nw'] / 1e3:,.1f}",
            )
        )
    head = (*_BLOCK, "cells", "flip-flops", "clock gates", "logic, mm2", "SRAM macros, mm2")
    tail = ("longest path, ns", "leakage, logic + SRAM, uW")
    return _rows((*head, *tail), rows) + "\n" + _measured()


def energies() -> str:
    """Write what a beat, a row, a step, a cycle and a beat of an image cost in each block."""
    rows = []
    for block in blocks_of():
        costs = block["costs"]
        swaps = block["config"]["store"] == "dram"
        names = _COSTS if swaps else _COSTS[:-1]
        lone = [f"{costs[name]:,.1f}" for name in names] + [""] * (not swaps)
        names = _SRAM_COSTS if swaps else _SRAM_COSTS[:-1]
        sram = [f"{costs[name]:,.0f}" for name in names] + [""] * (not swaps)
        left = f"{costs['largest_residual']:.0%} / {costs['sram_largest_residual']:.0%}"
        rows.append((*_named(block), str(block["clock_gates"]), *lone, *sram, left))
    head = ("a beat, pJ", "a row, pJ", "a step, pJ", "a cycle, pJ", "an image beat, pJ")
    sram = ("SRAM, a row, pJ", "SRAM, a step, pJ", "SRAM, an image beat, pJ")
    return _rows((*_BLOCK, "clock gates", *head, *sram, "left over, logic / SRAM"), rows)


_BLOCK = ("slots", "ways", "lanes x layers x heads", "tables in")


def _named(block: dict[str, Any]) -> tuple[str, ...]:
    config = block["config"]
    size = f"{config['lanes']} x {config['layers']} x {config['heads']}"
    return str(config["slots"]), str(config["ways"]), size, config["store"].upper()


def _measured() -> str:
    """Name library, commits and clock of the measurements, and how many writes were compared."""
    made = blocks_of()
    libraries, clocks, commits = (
        ", ".join(sorted({str(b[name]).removesuffix(".0") for b in made}))
        for name in ("library", "clock_mhz", "commit")
    )
    return (
        f"Library {libraries} and its SRAM macros, {clocks} MHz, measured at commits {commits} of "
        f"this repository; {sum(b['replayed_steps'] for b in made):,} writes replayed on gates, "
        f"{sum(b['mismatches'] for b in made)} of them unlike the reference's.\n"
    )


_COSTS = ("beat_pj", "row_pj", "step_pj", "cycle_pj", "image_beat_pj")
_SRAM_COSTS = ("sram_row_pj", "sram_step_pj", "sram_image_beat_pj")


def scaled() -> str:
    """Write the accelerator's constants: native, the method's factor, and at 65 nm, 1.0 V."""
    from kvmmu.accel.spec.scaling import area_factor, delay_factor, energy_factor
    from kvmmu.accel.spec.tables import load_arithmetic

    table = load_arithmetic()
    names = {
        "mmu_beat": "a probability taken, a way",
        "mmu_row": "a slot visited, a way",
        "mmu_step": "a token admitted, a table",
        "mmu_idle_cycle": "a cycle, whatever moves",
        "mmu_image_beat": "a slot of a table moved to or from DRAM, a way",
        "mmu_swap_cycle": "with tables in DRAM, a cycle more, a way",
    }
    rows = []
    for name, words in names.items():
        at = [
            table.energy_pj(name, to_node="65", to_vdd_v=1.0, corner=corner)
            for corner in ("low", "nominal", "high")
        ]
        native = table.operations[name].nominal
        rows.append((words, f"{native.energy_pj:.4g} pJ, {native.node} nm", *map(_pj, at)))
    parts = {"mmu_logic": "logic, once", "mmu_way": "logic, a way"}
    parts["mmu_swap_way"] = "with tables in DRAM, a way more"
    for name, words in parts.items():
        at = [
            table.area_um2(name, to_node="65", corner=corner)
            for corner in ("low", "nominal", "high")
        ]
        given = table.areas[name].nominal
        native_um2 = f"{given.area_um2:,.0f} um2, {given.node} nm"
        rows.append((words, native_um2, *(f"{area:,.0f} um2" for area in at)))
    factors = (
        f"energy x{energy_factor(NODE, VDD_V, to_node='65', to_vdd_v=1.0):.3f}",
        f"delay x{delay_factor(NODE, VDD_V, to_node='65', to_vdd_v=1.0):.2f}",
        f"area x{area_factor(NODE, to_node='65'):.3f}",
    )
    rows.append(("factors to 65 nm, 1.0 V", "130 nm, 1.2 V", *factors))
    return _rows(("what", "nominal, native", "low", "nominal", "high"), rows)


def _pj(value: float) -> str:
    return f"{value:.3g} pJ"


def costs() -> str:
    """Write tables, area, energy and share for each number of slots, granularity and store."""
    rows = []
    for first in shares_of():
        if first["model"] != "llama_7b":
            continue
        key = {k: first[k] for k in ("slots", "granularity", "store")}
        both = [_share_of(model, key) for model in MODELS]
        made = next((row for row in both if "refused" not in row), None)
        if made is None:
            continue
        rows.append(_cost_row(first, made, both))
    head = ("slots", "one victim per", "tables in", "tables (B x L x Hkv)", "SRAM, KiB")
    area = ("logic + SRAM, 130 nm, mm2", "logic + SRAM, 65 nm, mm2", "a decode step, uJ")
    shares = tuple(f"share, {title.partition(',')[0]}" for title in MODELS.values())
    return _rows((*head, *area, "largest term", *shares), rows)


def _share_of(model: str, key: dict[str, Any]) -> dict[str, Any]:
    wanted = {"model": model, **key}
    return next(r for r in shares_of() if all(r[name] == value for name, value in wanted.items()))


def _cost_row(
    first: dict[str, Any], made: dict[str, Any], both: Sequence[dict[str, Any]]
) -> tuple[str, ...]:
    fits = "" if made is first or made["model"] == first["model"] else "*"
    tables = made["tables"]
    terms = made["step_uj"]
    largest = max(terms, key=lambda name: terms[name])
    return (
        str(first["slots"]),
        first["granularity"],
        {"dram": "DRAM", "sram": "SRAM"}[first["store"]],
        f"{tables:,}{fits}",
        f"{made['sram_bytes'] / 1024:,.0f}",
        _native(first, made),
        f"{made['logic_mm2']:.3f} + {made['sram_mm2']:.2f}",
        f"{sum(terms.values()):,.0f} of {made['step_all_uj']:,.0f}",
        f"{TERMS[largest]}, {terms[largest]:,.0f} uJ",
        *(_share(row) for row in both),
    )


def _share(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "does not fit"
    return f"{row['share']['tables']:.2%} / {row['share']['with_collection']:.2%}"


def _native(first: dict[str, Any], made: dict[str, Any]) -> str:
    """Write the synthesised logic and macros, macros scaled by tables where others were built."""
    same = [b for b in blocks_of() if b["config"]["slots"] == first["slots"]]
    same = [b for b in same if b["config"]["store"] == first["store"] and b["config"]["ways"] == 16]
    same = [b for b in same if b["clock_gates"]]
    if not same:
        return "not built"
    block = min(same, key=lambda b: abs(_tables(b) - made["tables"]))
    area, sram = block["logic_area_um2"] / UM2_PER_MM2, block["sram_area_um2"]
    logic = f"{'' if _tables(block) == made['tables'] else '~'}{area:.2f}"
    if sram is None:
        return f"{logic} + -"
    exact = _tables(block) == made["tables"] or first["store"] == "dram"
    factor = 1.0 if exact else made["tables"] / _tables(block)
    return f"{logic} + {'' if exact else '~'}{sram * factor / UM2_PER_MM2:,.1f}"


def _tables(block: dict[str, Any]) -> int:
    config = block["config"]
    return int(config["lanes"] * config["layers"] * config["heads"])


TERMS = {
    "mmu_logic": "logic",
    "mmu_clock": "clock",
    "mmu_scores": "table accesses",
    "mmu_dram": "table traffic",
    "leak_mmu_score": "leakage of SRAM",
    "leak_mmu_logic": "leakage of logic",
}
TABLES: dict[str, Callable[[], str]] = {
    "blocks": blocks,
    "energies": energies,
    "scaled": scaled,
    "costs": costs,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--take"]:
        take(Path(sys.argv[2]))
    else:
        price()
    sys.stdout.write(f"{HOME}\n")
