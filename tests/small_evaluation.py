"""Run a small evaluation into a folder: python small_evaluation.py FOLDER JOBS."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from kvmmu.evals.cases import PERPLEXITY, Case
from kvmmu.evals.evaluate import Evaluation, Plan
from kvmmu.evals.settings import Setting
from kvmmu.hf.load import load

__all__ = ["PLAN", "main"]

PLAN = Plan(
    cases=(
        Case("niah_multikey", "late", 128, 4),
        Case("niah_multikey", "shared", 128, 4),
        Case("babi_qa3", "late", 192, 4),
        Case("hold", "online", 128, 2),
        Case(PERPLEXITY, "online", 128, 64, text="frankenstein"),
    ),
    settings=(Setting("slots", "rce", 4), Setting("slots", "random", 4)),
    seeds=(0, 1),
    batch_size=2,
    has_speed=False,
)


def main(folder: str, jobs: int) -> None:
    """Run the plan with a number of processes."""
    import dataclasses

    job = Evaluation(
        partial(load, "kvmmu-ref-1m"), dataclasses.replace(PLAN, jobs=jobs), Path(folder)
    )
    job.run(advance=lambda n: None, say=lambda text: None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
