"""What does recording a trace cost a decode step?

Regime: decode. The recorder copies each step's victims (a few hundred bytes a layer) into a ring
that was allocated beforehand, and writes the ring to the file outside the step; the bound is
those bytes, next to nothing beside the weights. Target: less than 5 % of decode time.

A random 28M-parameter Llama decodes with SlotCache(rce), once recorded and once not, in
alternated rounds of one process. What is flushed during a turn counts; opening and closing the
file does not.

    python benchmarks/bench_trace.py
    python benchmarks/bench_trace.py --quick
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import Candidate, alternate, host, print_json, print_table, random_llama
from transformers import LlamaForCausalLM

import kvmmu
from kvmmu import RCE, SlotCache
from kvmmu.hf.record import record


def decoder(
    name: str, model: LlamaForCausalLM, cache: SlotCache, prompt: torch.Tensor
) -> Candidate:
    """Read the prompt; a step then decodes one token."""
    model(prompt, past_key_values=cache, logits_to_keep=1)

    def step() -> None:
        model(prompt[:, :1], past_key_values=cache)

    return Candidate(name, step)


def run_point(
    model: LlamaForCausalLM, batch: int, masses: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """Time decode with and without a recorder at one batch."""
    policy = RCE(fixed_point=True) if masses else RCE()
    names = ("recorded", "plain")
    caches = {
        name: SlotCache.for_model(model, args.num_slots, batch_size=batch, policy=policy)
        for name in names
    }
    prompt = torch.randint(0, 8192, (batch, args.num_slots))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decode.kvtrace"
        with record(caches["recorded"], path, masses=masses):
            candidates = [decoder(n, model, caches[n], prompt) for n in names]
            rounds = alternate(candidates, rounds=args.rounds, turn_s=args.turn_s)
        num_tokens = caches["recorded"].get_seq_length()
        file_bytes = path.stat().st_size
    return {
        "B": batch,
        "C": args.num_slots,
        "masses": masses,
        "tpot_ms": rounds.wall_ms("plain"),
        "tpot_recorded_ms": rounds.wall_ms("recorded"),
        "tokens_per_s": batch * 1e3 / rounds.wall_ms("plain"),
        "overhead": 1 / rounds.speedup("recorded", "plain") - 1,
        "overhead_quartiles": [1 / x - 1 for x in rounds.speedup_spread("recorded", "plain")][::-1],
        "overhead_cpu": 1 / rounds.speedup("recorded", "plain", clock="cpu_ms") - 1,
        "file_bytes_per_step": file_bytes / num_tokens,
        "num_rounds": rounds.num_rounds,
        "num_valid_rounds": 0 if rounds.is_void else len(rounds.valid),
    }


def main() -> None:
    """Time batches 1 and 8, events alone and with masses."""
    parser = argparse.ArgumentParser(description="Time decode with and without a trace.")
    parser.add_argument("--num-slots", type=int, default=512, metavar="C")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn-s", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.turn_s = 5, 0.3
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = random_llama()
    points = []
    with torch.inference_mode(), kvmmu.enabled(model):
        for masses in (False, True):
            for batch in (1, 8):
                points.append(run_point(model, batch, masses, args))
    cells = [
        [
            f"batch {p['B']}, " + ("events and masses" if p["masses"] else "events"),
            f"{p['tpot_ms']:.2f}",
            f"{p['tpot_recorded_ms']:.2f}",
            f"{p['overhead']:+.1%}",
            "{:+.1%}..{:+.1%}".format(*p["overhead_quartiles"]),
            f"{p['overhead_cpu']:+.1%}",
            f"{p['file_bytes_per_step']:.0f}",
            f"{p['num_valid_rounds']}/{p['num_rounds']}",
        ]
        for p in points
    ]
    columns = ("trace", "TPOT ms", "recorded", "cost", "quartiles", "by CPU", "B/step", "rounds")
    print_table(f"SlotCache(rce), C = {args.num_slots}", columns, cells)
    print_json(
        {
            "benchmark": "trace",
            "host": host(args.threads),
            "dtype": "float32",
            "parameters": model.num_parameters(),
            "points": points,
        }
    )


if __name__ == "__main__":
    main()
