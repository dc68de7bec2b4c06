"""The runs of kvmmu bench that docs/bench.md tells of: kept, laid out as its tables.

    kvmmu bench random:88m ... --output FOLDER/NAME
    python docs/bench_results.py FOLDER...      keep FOLDER/NAME as docs/results/bench/NAME.json

A kept run is its bench.json without what no table shows. In a page, bench/NAME is its tables.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from result_tables import NUM_COLOURS

from kvmmu.report.bench import tables_markdown

HOME = Path(__file__).resolve().parent / "results" / "bench"
_DIGITS = 5


def keep(folder: Path) -> Path:
    """Copy a run's result and pictures into docs/results/bench; return the file."""
    HOME.mkdir(parents=True, exist_ok=True)
    result = json.loads((folder / "bench.json").read_text("utf-8"))
    file = HOME / f"{folder.name}.json"
    file.write_text(json.dumps(_short(result), indent=1) + "\n", "utf-8")
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            flat = image.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        flat.save(HOME / f"{folder.name}-{picture.name}", optimize=True)
    return file


def _short(value: Any) -> Any:
    """Round the numbers, and leave single turns out."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k not in ("turns_ms", "turns_taken")}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def table(name: str) -> str:
    """Write a kept run's tables."""
    text = tables_markdown(json.loads((HOME / f"{name}.json").read_text("utf-8")))
    return re.sub(r"^## (.*)$", r"**\1**", text, flags=re.MULTILINE)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        sys.stdout.write(f"{keep(Path(given))}\n")
