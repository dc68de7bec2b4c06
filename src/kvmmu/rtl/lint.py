"""Lint of the emitted Verilog: Yosys always, Verilator and Icarus where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmmu.errors import IntegrityError
from kvmmu.rtl.emit import BLOCK, SRAM, TOP, Emitted
from kvmmu.rtl.yosys import YosysError, run_yosys, yosys_version

__all__ = ["VERILATOR_WAIVERS", "Linted", "lint", "tool_versions"]

VERILATOR_WAIVERS: dict[str, str] = {
    "DECLFILENAME": "all modules lie in one file",
    "WIDTH": "an operator of the netlist extends its narrower operand, as Verilog does",
    "UNSIGNED": "the unrolled code of way 0 compares with 0",
    "CASEINCOMPLETE": "every process assigns before its case; Yosys checks that no latch is left",
    "UNOPTFLAT": "ready runs from bit to bit of one vector; Yosys checks that no bit loops",
    "UNUSEDSIGNAL": "fields of a packed port have names of their own; carries are cut off",
}
"""Warnings of Verilator that are switched off, each with its reason."""

_YOSYS = f"""\
read_verilog -lib {SRAM}
read_verilog {BLOCK}
hierarchy -check -top {TOP}
proc
check -assert
select -assert-none t:$dlatch t:$adlatch t:$dlatchsr
"""
_ASKS = {"verilator": "--version", "iverilog": "-V"}
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Linted:
    """Say whether a tool found nothing, or is not installed."""

    tool: str
    version: str
    result: Literal["clean", "absent"]


def lint(emitted: Emitted) -> tuple[Linted, ...]:
    """Lint with every tool there is.

    Raises IntegrityError with a tool's first messages if it warns: the product emitted the file.
    """
    return _yosys(emitted), _verilator(emitted), _icarus(emitted)


def _yosys(emitted: Emitted) -> Linted:
    """Check drivers, loops and the hierarchy."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in emitted.sources:
            shutil.copyfile(source, folder / source.name)
        try:
            run_yosys(_YOSYS, folder, name="lint", timeout_s=_LIMIT_S)
        except YosysError as error:
            raise IntegrityError(f"yosys check must pass on {BLOCK}: {error}") from error
    return Linted("yosys", yosys_version(), "clean")


def _verilator(emitted: Emitted) -> Linted:
    waivers = [f"-Wno-{name}" for name in VERILATOR_WAIVERS]
    command = ["verilator", "--lint-only", "-Wall", *waivers, "--top-module", TOP, BLOCK, SRAM]
    return _run(command, emitted.folder)


def _icarus(emitted: Emitted) -> Linted:
    command = ["iverilog", "-tnull", "-g2001", "-Wall", "-Wno-timescale", "-s", TOP, BLOCK, SRAM]
    return _run(command, emitted.folder)


def tool_versions() -> dict[str, str]:
    """Return the version of every tool that lints, "" for one that is not installed."""
    return {"yosys": yosys_version()} | {tool: _version(tool) for tool in _ASKS}


def _version(tool: str) -> str:
    """Ask a tool for its version; "" where it is not installed."""
    if shutil.which(tool) is None:
        return ""
    said = subprocess.run([tool, _ASKS[tool]], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else "unknown"


def _run(command: list[str], folder: Path) -> Linted:
    """Run a tool that must say nothing; absent where it is not installed."""
    tool = command[0]
    known = _version(tool)
    if not known:
        return Linted(tool, "", "absent")
    made = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    text = (made.stdout + made.stderr).strip()
    if made.returncode or text:
        first = " | ".join(text.splitlines()[:4])
        raise IntegrityError(f"{tool} must find nothing in {BLOCK}, it says: {first}")
    return Linted(tool, known, "clean")
