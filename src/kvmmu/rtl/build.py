"""One build: Verilog, lint, gates, timing and a report; a stage that is done is not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvmmu import __version__
from kvmmu.errors import IntegrityError
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.emit import BLOCK, SRAM, emit
from kvmmu.rtl.figures import gate_figures, macros_in, sram_figures, time_figures
from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.lint import lint, tool_versions
from kvmmu.rtl.report import REPORT, TABLE, clock_figures, report_text
from kvmmu.rtl.stages import Stages, digest_of
from kvmmu.rtl.synth import (
    NETLIST,
    VERILOG,
    Goal,
    Recipe,
    avoid_cells,
    choose_cells,
    synthesise,
)
from kvmmu.rtl.yosys import yosys_version

__all__ = ["STAGES", "Build", "build", "toy_liberties"]

STAGES = ("emit", "lint", "synthesise", "time", "report")
_GATES = Path(__file__).parent / "gates"
_LEFT_OUT_ROWS = "rows of macros: what selects one and merges their outputs"
_LEFT_OUT_SRAM = "SRAM: no macro library was named, so neither area nor delay"
_LEFT_OUT = (
    "wires: neither their capacitance nor their delay",
    "clock tree: its buffers, their area and their energy",
    "place and route: utilisation, fill, hold buffers, power grid",
    "test logic: scan chains and memory self-test",
    "corners: one process, voltage and temperature, that of the library",
)


@dataclass(frozen=True)
class Build:
    """Say what to build; without a liberty the shipped toy library serves, and nothing it gives
    is a figure of a process. Raises ValueError if a value breaks its rule.
    """

    config: BlockConfig
    liberty: Path | None = None
    sram_liberties: tuple[Path, ...] = ()
    clock_mhz: float = 200.0
    goal: Goal = "area"
    gates_clock: bool = True
    dont_use: tuple[str, ...] = ()
    maps_gates: bool = True

    def __post_init__(self) -> None:
        if not 1.0 <= self.clock_mhz <= 10_000.0:
            raise ValueError(f"clock_mhz must be in [1, 10000], got {self.clock_mhz!r}")
        if self.goal not in ("area", "delay"):
            raise ValueError(f"goal must be 'area' or 'delay', got {self.goal!r}")
        if self.sram_liberties and self.liberty is None:
            raise ValueError("sram_liberties must go with a liberty, got them alone")
        if not self.maps_gates and (self.liberty is not None or self.dont_use):
            raise ValueError("a liberty and dont_use must go with synthesis, got them without")
        for path in (*self.sram_liberties, *([] if self.liberty is None else [self.liberty])):
            if not path.is_file():
                raise ValueError(f"a liberty must be a file that exists, got {str(path)!r}")

    @property
    def is_toy(self) -> bool:
        """Whether the figures come from invented numbers."""
        return self.liberty is None


def toy_liberties() -> tuple[Path, Path]:
    """Return the shipped toy libraries: cells and SRAM macros. Their numbers are invented."""
    return _GATES / "toy.lib", _GATES / "toy_sram.lib"


def build(request: Build, folder: Path, *, say: Callable[[str], None] | None = None) -> Any:
    """Build into a folder and return the report, which also lies there as JSON and as a table.

    say hears each stage's name as it begins. Raises IntegrityError if lint or a cross-check
    fails, SpecError for a liberty that cannot be used, YosysError if Yosys fails.
    """
    return _Builder(request, folder, say or (lambda _: None)).run()


class _Builder:
    """Hold one build's folder, stages and what they gave."""

    def __init__(self, request: Build, folder: Path, say: Callable[[str], None]) -> None:
        self.request = request
        self.folder = folder
        self.say = say
        self.synth = folder / "synth"
        self.stages = Stages(folder / "stages")
        toy, toy_sram = toy_liberties()
        self.liberty = request.liberty or toy
        self.sram_liberties = (toy_sram,) if request.is_toy else request.sram_liberties

    def run(self) -> dict[str, Any]:
        self.say("emit")
        if self.request.maps_gates:  # a wrong file is said before anything runs
            self.library = avoid_cells(read_library(self.liberty), self.request.dont_use)
            self.choice = choose_cells(self.library)
            self.srams = [read_library(path) for path in self.sram_liberties]
            self.macros = [macro for library in self.srams for macro in macros_in(library)]
        self.emitted = emit(self.request.config, self.folder)
        report = self._head() | {"lint": self._lint()}
        if self.request.maps_gates:
            report |= self._gates()
        self.say("report")
        (self.folder / TABLE).write_text(report_text(report), encoding="utf-8")
        (self.folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return report

    def _head(self) -> dict[str, Any]:
        config = self.request.config
        bits = {shape: shape.bits * count for shape, count in self.emitted.srams.items()}
        return {
            "kvmmu_version": __version__,
            "amaranth_version": version("amaranth"),
            "yosys_version": yosys_version(),
            "config": asdict(config),
            "tables": config.tables,
            "sram_bits": sum(bits.values()),
            "block_sha256": digest_of(self.folder / BLOCK),
        }

    def _sources(self) -> dict[str, Any]:
        return {name: digest_of(self.folder / name) for name in (BLOCK, SRAM)}

    def _lint(self) -> list[dict[str, Any]]:
        self.say("lint")
        found = self.stages.run(
            "lint",
            self._sources() | {"tools": tool_versions()},
            lambda: {"tools": [asdict(one) for one in lint(self.emitted)]},
        )
        return list(found["tools"])

    def _gates(self) -> dict[str, Any]:
        """Map, count, place SRAM macros and time."""
        request, library = self.request, self.library
        counted = self._synthesise()
        netlist = read_netlist(self.synth / NETLIST, library)
        made = gate_figures(netlist)
        if abs(made["logic_area_um2"] - counted["logic_area_um2"]) > 1e-3:
            raise IntegrityError(
                f"area must be Yosys's {counted['logic_area_um2']}, got {made['logic_area_um2']}"
            )
        timing = self._time(netlist)
        return {
            "is_toy": request.is_toy,
            "library": _named(library),
            "sram_libraries": [_named(one) for one in self.srams],
            "clock_mhz": request.clock_mhz,
            "goal": request.goal,
            **made,
            **sram_figures(self.emitted.srams, self.macros),
            "timing": timing,
            **clock_figures(
                clock_mhz=request.clock_mhz,
                critical_path_ns=timing["critical_path_ns"],
                goal=request.goal,
            ),
            "left_out": [*_LEFT_OUT, _LEFT_OUT_ROWS if self.macros else _LEFT_OUT_SRAM],
            "buffers_added": counted["buffers_added"],
            "synthesis_seconds": counted["seconds"],
        }

    def _time(self, netlist: Netlist) -> dict[str, Any]:
        self.say("time")
        inputs: dict[str, Any] = {
            "netlist": digest_of(self.synth / NETLIST),
            "liberty": self.library.digest,
        }
        inputs |= {"sram_liberties": [one.digest for one in self.srams]}
        return self.stages.run(
            "time", inputs, lambda: time_figures(netlist, self.library, self.macros)
        )

    def _synthesise(self) -> dict[str, Any]:
        self.say("synthesise")
        request = self.request
        recipe = Recipe(
            self.choice,
            clock_mhz=request.clock_mhz,
            goal=request.goal,
            dont_use=request.dont_use,
            gates_clock=request.gates_clock,
        )
        inputs = self._sources() | recipe.files()
        inputs |= {"script": recipe.script(), "liberty": self.library.digest}
        inputs |= {"sram_liberties": [one.digest for one in self.srams]}
        inputs |= {"kvmmu": __version__}
        return self.stages.run(
            "synthesise",
            inputs | {"yosys": yosys_version()},
            lambda: synthesise(
                self.emitted,
                self.synth,
                liberty=self.liberty,
                library=self.library,
                macros=self.macros,
                recipe=recipe,
            ),
            outputs=[self.synth / NETLIST, self.synth / VERILOG],
        )


def _named(library: Library) -> dict[str, Any]:
    """Say which library: name, file, digest, voltage and temperature."""
    return {
        "name": library.name,
        "file": library.source,
        "sha256": library.digest,
        "voltage_v": library.voltage_v,
        "temperature_c": library.temperature_c,
    }
