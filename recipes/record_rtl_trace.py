"""Record what the hardware KV-MMU is tested with: python recipes/record_rtl_trace.py OUT.trace.

Runs a shipped model token by token with RCE(fixed_point=True) on a few lanes. Requests join and
leave while the others go on: a lane's first columns are padding, and after its last token its row
is cleared and the trace says "release". A request feeds its half of text, then samples from the
model. Prints, as one JSON object, how hard a test the trace is. The same arguments give the same
file on the same machine; torch promises no equal floats between machines.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor

import kvmmu
from kvmmu import RCE, SlotCache, enabled
from kvmmu.hf.record import trace_header
from kvmmu.slots.recorder import Recorder
from kvmmu.trace import LaneEvent, TraceWriter

LANES = 3


@dataclass(frozen=True)
class Request:
    """Columns [start, end) in which a lane takes tokens; the lane is cleared at end."""

    lane: int
    start: int
    end: int


def schedule(columns: int) -> list[Request]:
    """Share columns among the lanes: late starts, a request of one token, lanes taken again."""
    part = columns // 8
    return [
        Request(0, 0, 5 * part),
        Request(0, 5 * part + 3, columns),
        Request(1, part // 2, part // 2 + 1),
        Request(1, part, columns),
        Request(2, part // 3, 3 * part),
        Request(2, 3 * part, columns - 5),
    ]


class LaneRecorder(Recorder):
    """A Recorder that also writes the end of single lanes."""

    def release(self, lane: int) -> None:
        """Write that a lane's tokens are gone."""
        self.flush()
        self._num_valid[:, lane] = 0
        self._writer.write(LaneEvent("release", max(self._steps), np.array([lane], np.int32)))


def clear_lane(cache: SlotCache, lane: int) -> None:
    """Empty one row of the cache: tables, scores and counters."""
    for name, tensor in cache.named_tensors().items():
        if name != "columns":
            tensor[lane] = -1 if name.endswith("positions") else 0


class Feed:
    """Run the requests column by column."""

    def __init__(self, lm: Any, cache: SlotCache, recorder: LaneRecorder, seed: int) -> None:
        self.lm, self.cache, self.recorder = lm, cache, recorder
        self.generator = torch.Generator().manual_seed(seed)
        self.text = read_text(lm.tokenizer)
        self.mask = torch.zeros(LANES, 0, dtype=torch.long)
        self.last = torch.zeros(LANES, dtype=torch.long)

    def run(self, requests: list[Request], columns: int) -> None:
        offsets = np.random.default_rng(0).integers(0, len(self.text) - columns, len(requests))
        for column in range(columns):
            active = {
                r.lane: (r, o) for r, o in zip(requests, offsets) if r.start <= column < r.end
            }
            self._column(column, active)
            for lane, (request, _) in active.items():
                if request.end == column + 1:
                    self.recorder.release(lane)
                    clear_lane(self.cache, lane)
                    self.mask[lane] = 0

    def _column(self, column: int, active: dict[int, tuple[Request, int]]) -> None:
        tokens, places = self.last.clone(), torch.zeros(LANES, dtype=torch.long)
        now = torch.zeros(LANES, 1, dtype=torch.long)
        for lane, (request, offset) in active.items():
            place = column - request.start
            places[lane], now[lane] = place, 1
            if place < (request.end - request.start) // 2 or place == 0:
                tokens[lane] = self.text[offset + place]
        self.mask = torch.cat([self.mask, now], dim=1)
        logits: Tensor = self.lm.model(
            tokens[:, None],
            attention_mask=self.mask,
            position_ids=places[:, None],
            past_key_values=self.cache,
        ).logits[:, -1]
        chances = logits.softmax(-1)
        self.last = torch.multinomial(chances, 1, generator=self.generator)[:, 0]


def read_text(tokenizer: Any) -> list[int]:
    """Return the shipped novel as token ids."""
    packed = (files("kvmmu") / "data" / "frankenstein.txt.xz").read_bytes()
    ids: list[int] = tokenizer(lzma.decompress(packed).decode()[:16_000])["input_ids"]
    return ids


def main() -> None:
    """Record one trace and print its replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="kvmmu-ref-1m")
    parser.add_argument("--num-slots", type=int, default=64)
    parser.add_argument("--num-sinks", type=int, default=4)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--granularity", choices=("layer", "head"), default="layer")
    parser.add_argument("--decay", type=float, default=1.0)
    parser.add_argument("--columns", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    lm = kvmmu.load(args.model)
    cache = SlotCache.for_model(
        lm.model,
        args.num_slots,
        policy=RCE(fixed_point=True, decay=args.decay),
        num_sinks=args.num_sinks,
        window=args.window,
        granularity=args.granularity,
        chunk_size=1,
        batch_size=LANES,
    )
    header = trace_header(cache, model_name=args.model)
    with TraceWriter(args.out, header, masses=True) as writer:
        recorder = LaneRecorder(cache.mmus, writer, masses=True)
        with enabled(lm.model), torch.no_grad():
            Feed(lm, cache, recorder, args.seed).run(schedule(args.columns), args.columns)
        recorder.flush()
    report = kvmmu.trace.replay(kvmmu.trace.read(args.out)).to_json()
    print(json.dumps(report | {"bytes": args.out.stat().st_size}))


if __name__ == "__main__":
    main()
