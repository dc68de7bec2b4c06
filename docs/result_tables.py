"""The evaluations that docs/results.md tells of: kept in docs/results, laid out as its tables.

    kvmmu eval kvmmu-ref-1m --compression 2,4,8,16 --output FOLDER
    python docs/result_tables.py FOLDER 1m      keep that evaluation as docs/results/1m

docs/results/NAME holds results.jsonl.xz (the measurements), summary.json.xz and table.md (what
`kvmmu report` makes of them) and the pictures. In a page, NAME/headline is a table of `grids`.
"""

from __future__ import annotations

import json
import lzma
import sys
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from kvmmu.report.evaluation.tables import grid_markdown, grids

RESULTS = Path(__file__).resolve().parent / "results"
NUM_COLOURS = 128  # of a picture's palette: plots need no more, and take a third of the space


def keep(folder: Path, name: str) -> Path:
    """Copy what kvmmu eval wrote to a folder into docs/results/name; return that."""
    home = RESULTS / name
    home.mkdir(parents=True, exist_ok=True)
    for file in ("results.jsonl", "summary.json"):
        (home / f"{file}.xz").write_bytes(lzma.compress((folder / file).read_bytes()))
    for old in home.glob("*.png"):
        old.unlink()
    for picture in sorted((folder / "plots").glob("*.png")):
        with Image.open(picture) as image:
            flat = image.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        flat.save(home / picture.name, optimize=True)
    (home / "table.md").write_text(_page(home, (folder / "table.md").read_text("utf-8")), "utf-8")
    return home


def _page(home: Path, tables: str) -> str:
    drawn = ", ".join(f"[{p.stem}]({p.name})" for p in sorted(home.glob("*.png")))
    head = f"# Every table of the evaluation {home.name}\n\nBack to [results](../../results.md)."
    return f"{head} Pictures: {drawn}.\n\n{tables}"


@cache
def summary(name: str) -> dict[str, Any]:
    """Read a kept evaluation's summary. Raises FileNotFoundError if there is none."""
    packed = (RESULTS / name / "summary.json.xz").read_bytes()
    made: dict[str, Any] = json.loads(lzma.decompress(packed))
    return made


def table(name: str) -> str:
    """Write table "evaluation/grid" in Markdown. Raises KeyError for an unknown grid."""
    evaluation, _, grid = name.partition("/")
    return grid_markdown(grids(summary(evaluation))[grid])


if __name__ == "__main__":
    sys.stdout.write(f"{keep(Path(sys.argv[1]), sys.argv[2])}\n")
