"""Fewer tokens or fewer bits? Slots of 16, 8 and 4 bits at equal bytes, on three tasks.

    python benchmarks/bench_equal_bytes.py --model kvmmu-ref-1m --policy novelty --output FILE

The bits are SIMULATED: rows are rounded to 2**bits levels between their own minimum and maximum
(per token and head, K after RoPE) and kept in the model's dtype; the bytes counted are those of the
packed form, codes and two float16 numbers a row. A cache of 1/X of the bytes of bfloat16 then holds
X = 16 / (bits + 32 / head_dim) times more tokens than the same bytes of 16 bits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import kvmmu
from kvmmu.codecs.base import CODECS, Codec, Rows, Store
from kvmmu.codecs.plain import PlainStore
from kvmmu.evals.answers import score
from kvmmu.evals.cases import TEXTS
from kvmmu.evals.policy_text import parse_policy
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_text
from kvmmu.evals.streams import draw, pages
from kvmmu.evals.tasks.hot_set import HotSet
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.kernels.contract import Kernel

HEADER_BITS = 32  # a float16 minimum and a float16 step a row


class RoundedStore(PlainStore):
    """Keep rows rounded to 2**bits levels."""

    def __init__(self, rows: Tensor, kernel: Kernel, bits: int) -> None:
        super().__init__(rows, kernel)
        self._levels = 2**bits - 1

    def _round(self, rows: Tensor) -> Tensor:
        low = rows.amin(-1, keepdim=True).half().float()
        step = ((rows.amax(-1, keepdim=True) - low) / self._levels).half().float().clamp(min=1e-7)
        return ((rows - low) / step).round().clamp(0, self._levels) * step + low

    def write_slots(self, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
        """Overwrite one slot per head."""
        super().write_slots(slots, self._round(rows.float()).to(rows.dtype), valid)

    def write_rows(self, at: Rows, rows: Tensor) -> None:
        """Overwrite the listed slots."""
        super().write_rows(at, self._round(rows.float()).to(rows.dtype))


@CODECS.register("simulated_bits")
@dataclass(frozen=True)
class SimulatedBits(Codec):
    """Round each row to `bits` bits a number; see the module."""

    bits: int = 4

    def make(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        kernel: Kernel,
    ) -> Store:
        """Return an empty store for rows [B,Hkv,C,D]."""
        return RoundedStore(torch.zeros(shape, dtype=dtype, device=device), kernel, self.bits)


def settings(policy: str, times: float, head_dim: int) -> dict[str, Setting]:
    """Make the caches of 1 / times of bfloat16's bytes."""
    made = {"16 bit": Setting("slots", parse_policy(policy), times)}
    for bits in (8, 4):
        share = (bits + HEADER_BITS / head_dim) / 16  # of the bytes of bfloat16
        compression = times * share
        if compression >= 1:
            codec = SimulatedBits(bits)
            made[f"{bits} bit, simulated"] = Setting(
                "slots", parse_policy(policy), compression, codec=codec
            )
    return made


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="kvmmu-ref-1m")
    parser.add_argument("--policy", default="novelty")
    parser.add_argument("--num-tokens", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--times", type=float, nargs="+", default=[8, 16, 32])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = kvmmu.load(args.model)
    sources = [Source.make(shipped_text(name), lm.tokenizer) for name in TEXTS]
    N, B = args.num_tokens, args.rows
    streams = {
        "late query": draw(MultiKey(), sources, num_tokens=N, num_rows=B, seed=0, mode="late"),
        "question seen": draw(MultiKey(), sources, num_tokens=N, num_rows=B, seed=0, mode="seen"),
        "hot set": draw(HotSet(), sources, num_tokens=N, num_rows=16, seed=0, mode="online"),
    }
    book = pages(sources[0], num_tokens=N, num_scored=N // 4, num_rows=16, seed=0)
    head_dim = int(lm.model.config.head_dim)
    caches = {"full cache": Setting("static")}
    for times in args.times:
        found = settings(args.policy, times, head_dim)
        caches |= {f"1/{times:g} of the bytes, {name}": s for name, s in found.items()}
    rows = []
    for name, setting in caches.items():
        row: dict[str, object] = {"cache": name, "num_slots": setting.num_slots(N)}
        for task, stream in streams.items():
            made = score(lm.model, stream, setting)
            row[task] = [round(sum(made.scores) / len(made.scores), 4), len(made.scores)]
        row["perplexity"] = round(score(lm.model, book, setting).perplexity, 3)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.output:
        about = {"model": args.model, "policy": args.policy, "num_tokens": N, "rows": rows}
        args.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
