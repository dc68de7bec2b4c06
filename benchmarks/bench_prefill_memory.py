"""How much does memory grow while an 8,192-token prompt is read?

Regime: prefill, compute. A full cache ends with the K and V of all tokens; a DynamicCache copies
them once more while it grows, and a prompt read whole holds every token's activations at once.
A SlotCache holds C slots per layer and, for one layer at a time, C + T candidates. Its bound is
what the model itself needs for a chunk of T tokens plus the K and V of C slots; the full cache's
is that plus the K and V of all tokens.

A random 28M-parameter Llama in float32 reads the prompt through generate(), whole and in chunks
of `prefill_chunk_size`. Every configuration runs in a fresh process of its own, several times in
turn: growth is the process's peak resident memory since the model was loaded and warmed up,
less what was resident then. Random weights have no accuracy; see `kvmmu demo` for that.

    python benchmarks/bench_prefill_memory.py               a few minutes
    python benchmarks/bench_prefill_memory.py --quick       1,024 tokens, once
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from harness import (
    host,
    kv_bytes,
    peak_bytes,
    print_json,
    print_table,
    quartiles,
    random_llama,
    resident_bytes,
    restart_peak,
)
from transformers import DynamicCache, StaticCache

import kvmmu
from kvmmu import SlotCache

CACHES = ("dynamic", "static", "slots")


def read_prompt(name: str, chunk: int, args: argparse.Namespace) -> dict[str, Any]:
    """Read the prompt once, in this process. chunk 0 means whole, -1 the cache's own."""
    torch.set_num_threads(args.threads)
    model = random_llama(getattr(torch, args.dtype))
    config = model.config

    def make(length: int) -> Any:
        if name == "dynamic":
            return DynamicCache(config=config)
        if name == "static":
            return StaticCache(config=config, max_cache_len=length + 1)
        return SlotCache.for_model(model, args.num_slots, policy=args.policy)

    def run(prompt: torch.Tensor, cache: Any) -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            prefill_chunk_size=chunk or None,
            max_new_tokens=1,
            do_sample=False,
        )

    with torch.inference_mode(), kvmmu.enabled(model) if name == "slots" else torch.no_grad():
        if chunk < 0:
            chunk = make(args.context).prefill_chunk_size
        run(torch.randint(0, 8192, (1, 32)), make(32))  # threads and libraries are up
        prompt = torch.randint(0, 8192, (1, args.context))
        restart_peak()
        before = resident_bytes()
        cache = make(args.context)
        wall, cpu = time.perf_counter(), time.process_time()
        run(prompt, cache)
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "growth_bytes": peak_bytes() - before,
        "kv_bytes": kv_bytes(cache),
        "chunk": chunk,
        "ttft_s": wall_s,
        "cpu_s": cpu_s,
    }


def in_fresh_process(name: str, chunk: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run `read_prompt` in a process of its own."""
    keys = ("context", "num_slots", "policy", "dtype", "threads")
    options = [f"--{key.replace('_', '-')}={getattr(args, key)}" for key in keys]
    command = [sys.executable, __file__, *options, f"--child={name},{chunk}"]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return result


def summarise(runs: list[dict[str, Any]], name: str, context: int) -> dict[str, Any]:
    """Take medians over the repeats of one configuration."""
    growths = [r["growth_bytes"] for r in runs]
    chunk = runs[0]["chunk"]
    return {
        "cache": name,
        "prefill_chunk_size": chunk or None,
        "growth_bytes": statistics.median(growths),
        "growth_quartiles_bytes": quartiles([float(x) for x in growths]),
        "kv_bytes": runs[0]["kv_bytes"],
        "ttft_s": statistics.median(r["ttft_s"] for r in runs),
        "cpu_s": statistics.median(r["cpu_s"] for r in runs),
        "prefill_tokens_per_cpu_s": context / statistics.median(r["cpu_s"] for r in runs),
    }


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the table; ratios are to DynamicCache read the same way."""
    cells = []
    for row in rows:
        low, high = row["growth_quartiles_bytes"]
        cells.append(
            [
                f"{row['cache']}, " + ("whole" if not row["prefill_chunk_size"] else "chunked"),
                str(row["prefill_chunk_size"] or args.context),
                f"{row['growth_bytes'] / 1e6:.1f}",
                f"{low / 1e6:.1f}..{high / 1e6:.1f}",
                f"{row['kv_bytes'] / 1e6:.1f}",
                f"{row['growth_over_dynamic']:.3f}",
                f"{row['ttft_s']:.2f}",
                f"{row['cpu_s']:.2f}",
            ]
        )
    title = f"prompt of {args.context} tokens, batch 1, C = {args.num_slots}, {args.policy}"
    columns = ("cache", "chunk", "growth MB", "quartiles", "KV MB", "x dynamic", "TTFT s", "CPU s")
    print_table(title, columns, cells)


def main() -> None:
    """Run every configuration in turn and print the table."""
    parser = argparse.ArgumentParser(description="Measure memory growth during prefill.")
    parser.add_argument("--context", type=int, default=8192, metavar="S")
    parser.add_argument("--num-slots", type=int, default=512, metavar="C")
    parser.add_argument("--chunk", type=int, default=512, help="prefill_chunk_size of the chunked")
    parser.add_argument("--policy", default="rce")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, chunk = args.child.split(",")
        print(json.dumps(read_prompt(name, int(chunk), args)))
        return
    if args.quick:
        args.context, args.repeats = 1024, 1
    settings = [(name, chunk) for chunk in (args.chunk, 0) for name in CACHES] + [("slots", -1)]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {setting: [] for setting in settings}
    for _ in range(args.repeats):
        for setting in settings:
            runs[setting].append(in_fresh_process(*setting, args))
    rows = [summarise(runs[s], s[0], args.context) for s in settings]
    for (_, chunk), row in zip(settings, rows):
        reference = rows[settings.index(("dynamic", 0 if chunk == 0 else args.chunk))]
        row["growth_over_dynamic"] = row["growth_bytes"] / reference["growth_bytes"]
    show(rows, args)
    print_json(
        {
            "benchmark": "prefill_memory",
            "host": host(args.threads),
            "dtype": args.dtype,
            "B": 1,
            "S": args.context,
            "C": args.num_slots,
            "policy": args.policy,
            "repeats": args.repeats,
            "configurations": rows,
        }
    )


if __name__ == "__main__":
    main()
