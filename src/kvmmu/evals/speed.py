"""The evaluation's decode speed: every setting's ratio to the full cache, measured in turns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from kvmmu.evals.cases import PERPLEXITY, PUBLISHED, Case
from kvmmu.evals.cell import describe_setting
from kvmmu.evals.costs import quiet_pairs, step_times
from kvmmu.evals.documents import longest_text
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source
from kvmmu.evals.streams import pages
from kvmmu.hf.lm import LM

__all__ = ["common_length", "speed_key", "speed_lines"]

BATCH, ROUNDS, STEPS = 8, 7, 6


def common_length(cases: Iterable[Case], lm: LM) -> int:
    """Return the most common length of the cases that the model can read, the shortest if tied."""
    most = longest_text(lm) or 2**31
    own = [c for c in cases if c.task != PERPLEXITY and c.mode != PUBLISHED]
    lengths = [c.num_tokens for c in own if c.num_tokens <= most] or [min(1024, most)]
    return max(sorted(set(lengths)), key=lengths.count)


def speed_key(setting: Setting, num_tokens: int) -> str:
    """Name a line of kind speed."""
    return f"speed|{setting.label}|{setting.granularity}|{num_tokens}"


def speed_lines(
    lm: LM, source: Source, full: Setting, settings: tuple[Setting, ...], num_tokens: int
) -> list[dict[str, Any]]:
    """Time decode steps of all settings in turns. Returns a line for each that could be timed.

    Warns of those that could not, because other processes took the CPU in every round.
    """
    stream = pages(source, num_tokens=num_tokens, num_scored=64, num_rows=BATCH, seed=0)
    times = step_times(lm.model, stream, (full, *settings), num_rounds=ROUNDS, num_steps=STEPS)
    lines = []
    for setting, taken in zip(settings, times[1:], strict=True):
        pairs = torch.tensor(quiet_pairs(times[0], taken)).reshape(-1, 2)  # [R,2]
        if not len(pairs):
            continue
        ratios = pairs[:, 0] / pairs[:, 1]
        low, mid, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        rate = BATCH * STEPS / pairs[:, 1].median().item()
        lines.append(
            describe_setting(setting)
            | {"kind": "speed", "key": speed_key(setting, num_tokens)}
            | {"num_tokens": num_tokens, "batch": BATCH, "num_rounds": len(pairs)}
            | {"tokens_per_s": round(rate, 1), "ratio_to_static": round(mid, 3)}
            | {"ratio_quartiles": [round(low, 3), round(high, 3)]}
        )
    if len(lines) < len(settings):
        warnings.warn(
            f"the decode speed of {len(settings) - len(lines)} caches was not measured: wall and "
            "CPU time must be within 20 % of each other, and were not in any round; run again "
            "while the machine is idle",
            RuntimeWarning,
            stacklevel=2,
        )
    return lines
