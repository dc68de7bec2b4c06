"""What does a decode step cost at long context?

Regime: decode, bandwidth. A step reads all weights and all K and V held, so at equal bandwidth
a cache of C slots beats a full one of S tokens by

    bytes bound = (weights + full KV) / (weights + KV of C slots)

which is printed beside each ratio (a full cache that moves its bytes more slowly loses by more).
At short contexts and batch 1 the bound is near 1: there is nothing to win, the KV-MMU's own work
is a loss, and the rows are shown.

A random 28M-parameter Llama decodes in float32 (or --dtype) with StaticCache and DynamicCache
(both sdpa) and with SlotCache, in alternated rounds of one process. The full caches are filled
with random K and V in place, because a prefill of 16k tokens says nothing about a decode step,
and go back to S tokens before each turn. The SlotCache reads C random tokens through the model;
then every step evicts. What it costs does not depend on how many tokens came before.

A second table compares policies at the last (largest) point. Random weights have no accuracy:
which policy answers right at which size is the business of `kvmmu demo` and `kvmmu eval`.

    python benchmarks/bench_decode.py                     the full grid, a few minutes
    python benchmarks/bench_decode.py --quick             one small point, seconds
    python benchmarks/bench_decode.py --context 16384 --batch 8 --threads 1 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import (
    Candidate,
    Rounds,
    alternate,
    host,
    kv_bytes,
    peak_bytes,
    print_json,
    print_table,
    random_llama,
    resident_bytes,
    restart_peak,
    twin,
    weight_bytes,
)
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

import kvmmu
from kvmmu import SlotCache

FULL = ("static", "dynamic")
COMPILED = ", compiled"
POLICIES = "rce,novelty,streaming_llm,h2o,tova,keydiff,random,snapkv"
HEADROOM = 64
"""Tokens that a turn may decode, for which a StaticCache has room past its context."""


class Decoder:
    """A model, a cache at S tokens, and one step of it."""

    def __init__(
        self, models: dict[str, LlamaForCausalLM], name: str, batch: int, context: int, C: int
    ) -> None:
        self.name, self.context = name, context
        self.kind = name.removesuffix(COMPILED)
        self.model = models["full" if self.kind in FULL else "slots"]
        self.forward: Callable[..., Any] = self.model
        if name != self.kind:
            self.forward = torch.compile(self.model, fullgraph=True, dynamic=False)
        self.token = torch.randint(0, 8192, (batch, 1))
        restart_peak()
        before = resident_bytes()
        self.cache = self._make(batch, C)
        for _ in range(2 * (name != self.kind)):
            self.step()  # compiles
        restart_peak()  # how the cache was filled does not count
        self.step()
        self.rewind()
        self.peak_growth_bytes = peak_bytes() - before
        self.kv_bytes = kv_bytes(self.cache)

    def _make(self, batch: int, C: int) -> Any:
        """Make a cache that holds its tokens."""
        config, dtype = self.model.config, self.model.dtype
        if self.kind == "dynamic":
            cache = DynamicCache(config=config)
            for i in range(config.num_hidden_layers):
                kv = torch.randn(2, batch, config.num_key_value_heads, self.context, 64)
                cache.update(*kv.to(dtype), i)
            return cache
        if self.kind == "static":
            cache = StaticCache(config=config, max_cache_len=self.context + HEADROOM)
            cache.early_initialization(
                batch, config.num_key_value_heads, 64, dtype, torch.device("cpu")
            )
            for layer in cache.layers:
                layer.keys.normal_()
                layer.values.normal_()
                layer.cumulative_length.fill_(self.context)
            return cache
        cache = SlotCache.for_model(self.model, C, batch_size=batch, policy=self.kind)
        prompt = torch.randint(0, 8192, (batch, C))
        self.model(prompt, past_key_values=cache, logits_to_keep=1)
        return cache

    def step(self) -> None:
        """Decode one token."""
        logits = self.forward(self.token, past_key_values=self.cache).logits
        self.token = logits[:, -1:].argmax(-1)

    def rewind(self) -> None:
        """Go back to S tokens; a SlotCache is the same size anyway."""
        if self.kind == "dynamic":
            more = self.cache.get_seq_length() - self.context
            if more:
                self.cache.crop(-more)
        elif self.kind == "static":
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(self.context)


def run_point(
    models: dict[str, LlamaForCausalLM],
    names: list[str],
    batch: int,
    context: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Time every candidate at one batch and context."""
    torch.compiler.reset()
    decoders = {}
    for name in names:
        decoders[name] = Decoder(models, name, batch, context, args.num_slots)
    rounds = alternate(
        [Candidate(n, d.step, d.rewind) for n, d in decoders.items()],
        rounds=args.rounds,
        turn_s=args.turn_s,
        max_steps=HEADROOM,
    )
    weights = weight_bytes(models["full"])
    full = decoders["static"].kv_bytes * context // (context + HEADROOM)
    rows = [_row(d, rounds, batch, weights, full) for d in decoders.values()]
    return {
        "B": batch,
        "S": context,
        "C": args.num_slots,
        "weight_bytes": weights,
        "num_rounds": rounds.num_rounds,
        "num_valid_rounds": 0 if rounds.is_void else len(rounds.valid),
        "candidates": rows,
    }


def _row(d: Decoder, rounds: Rounds, batch: int, weights: int, full: int) -> dict[str, Any]:
    """Collect one candidate's figures."""
    wall = rounds.wall_ms(d.name)
    is_full = d.kind in FULL
    return {
        "cache": d.name,
        "tokens_per_s": batch * 1e3 / wall,
        "tpot_ms": wall,
        "tpot_quartiles_ms": rounds.spread_ms(d.name),
        "cpu_ms": rounds.cpu_ms(d.name),
        "kv_bytes": d.kv_bytes,
        "peak_growth_bytes": d.peak_growth_bytes,
        "speedup_over_static": rounds.speedup(d.name, "static"),
        "speedup_over_static_quartiles": rounds.speedup_spread(d.name, "static"),
        "speedup_over_static_cpu": rounds.speedup(d.name, "static", clock="cpu_ms"),
        "speedup_over_dynamic": rounds.speedup(d.name, "dynamic"),
        "bytes_bound": None if is_full else (weights + full) / (weights + d.kv_bytes),
    }


COLUMNS = ("cache", "tokens/s", "TPOT ms", "quartiles", "CPU ms", "KV MB", "peak MB")
RATIOS = ("x static", "quartiles", "by CPU", "x dynamic", "bytes bound")


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["tpot_quartiles_ms"]
    low_x, high_x = row["speedup_over_static_quartiles"]
    bound = row["bytes_bound"]
    return [
        row["cache"] if row["bytes_bound"] is None else f"slots, {row['cache']}",
        f"{row['tokens_per_s']:.1f}",
        f"{row['tpot_ms']:.1f}",
        f"{low:.1f}..{high:.1f}",
        f"{row['cpu_ms']:.1f}",
        f"{row['kv_bytes'] / 1e6:.1f}",
        f"{row['peak_growth_bytes'] / 1e6:.0f}",
        f"{row['speedup_over_static']:.2f}",
        f"{low_x:.2f}..{high_x:.2f}",
        f"{row['speedup_over_static_cpu']:.2f}",
        f"{row['speedup_over_dynamic']:.2f}",
        "" if bound is None else f"{bound:.2f}",
    ]


def show(point: dict[str, Any]) -> None:
    """Print one point."""
    title = (
        f"batch {point['B']}, context {point['S']}, C = {point['C']} "
        f"({point['num_valid_rounds']} of {point['num_rounds']} rounds count)"
    )
    if not point["num_valid_rounds"]:
        title += " VOID: the cores were busy with something else"
    print_table(title, COLUMNS + RATIOS, [_cells(row) for row in point["candidates"]])


def main() -> None:
    """Run the grid and print it."""
    ints = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description="Time decode steps at long context.")
    parser.add_argument("--context", type=ints, default=[1024, 4096, 16384], metavar="S,S,...")
    parser.add_argument("--batch", type=ints, default=[1, 8], metavar="B,B,...")
    parser.add_argument("--num-slots", type=int, default=512, metavar="C")
    parser.add_argument("--policies", default=POLICIES, help="the first is in every point")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--turn-s", type=float, default=0.5, help="seconds a candidate and round")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, minutes more")
    parser.add_argument("--quick", action="store_true", help="one small point")
    args = parser.parse_args()
    if args.quick:
        args.context, args.batch, args.rounds, args.turn_s = [2048], [2], 5, 0.1
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    policies = args.policies.split(",")
    models = {"full": random_llama(getattr(torch, args.dtype))}
    models["slots"] = twin(models["full"])  # the baselines run the model as it is
    points: list[dict[str, Any]] = []
    with torch.inference_mode(), kvmmu.enabled(models["slots"]):
        grid = [(b, s) for b in args.batch for s in args.context]
        for batch, context in grid:
            names = [*FULL, policies[0]]
            if args.compile:
                names += ["static" + COMPILED, policies[0] + COMPILED]
            points.append(run_point(models, names, batch, context, args))
            show(points[-1])
        if len(policies) > 1:
            print("\npolicies, at the last point:")
            points.append(run_point(models, [*FULL, *policies], *grid[-1], args))
            show(points[-1])
    print_json(
        {
            "benchmark": "decode",
            "host": host(args.threads),
            "dtype": args.dtype,
            "parameters": models["full"].num_parameters(),
            "points": points,
        }
    )


if __name__ == "__main__":
    main()
