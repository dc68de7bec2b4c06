"""Price every point of kvmmu.accel.claim.RANGES and keep the lines; resumable.

    python docs/claim_search.py            writes docs/results/accelerator/claim.jsonl

A line that is there is not priced again. Two processes share the points; about half an hour on two
cores. docs/accelerator.md is drawn from the lines by docs/generate.py.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kvmmu.accel.claim import points, price

LINES = Path(__file__).parent / "results" / "accelerator" / "claim.jsonl"


def main() -> None:
    """Price what is missing."""
    LINES.parent.mkdir(parents=True, exist_ok=True)
    known = set()
    if LINES.exists():
        known = {json.loads(line)["key"] for line in LINES.read_text("utf-8").splitlines()}
    todo = [point for point in points() if point.key not in known]
    sys.stderr.write(f"{len(todo)} of {len(todo) + len(known)} points to price\n")
    with LINES.open("a", encoding="utf-8") as file, ProcessPoolExecutor(2) as pool:
        for done, line in enumerate(pool.map(price, todo, chunksize=4), start=1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if done % 50 == 0:
                sys.stderr.write(f"{done}/{len(todo)}\n")


if __name__ == "__main__":
    main()
