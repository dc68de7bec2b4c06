"""Which execution of the linear layers, and of the static decode step, is fastest on this CPU?

    python benchmarks/bench_cpu_paths.py [--rounds 7] [--forms float32,bfloat16,int8] [--output F]

An 88M-parameter model of random weights (12 layers, hidden 768, 12 query and 4 KV heads, 16,000
words). "linears": norms, products and activations of all layers and the head, without attention;
1 and 8 rows are decode, 256 a prompt's chunk. "step": a whole decode step of 1 or 8 lanes with
C = 512 slots, the attention mass added to the scores and the next victim found.
Regime: memory bandwidth at 1 and 8 rows, whose bound (bytes / bandwidth of a sum) is printed;
compute at 256. Rounds alternate; median and quartiles. Candidates that are not installed are
named. What is compared is speed: int8 weights are rounded alike in all candidates, but OpenVINO
also quantises activations, and torch's int8 takes activations in bfloat16. --output keeps one run
for each form in a file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from cpu_paths import (
    Lanes,
    Model,
    Run,
    Sizes,
    compiled_step,
    native_path,
    torch_linears,
    torch_path,
)
from torch import Tensor

from kvmmu.kernels.step import StepRule


def candidates(model: Model, M: int, scope: str, C: int, threads: int) -> dict[str, Run]:
    """Return what can be timed here: name -> one step."""
    s, x = model.sizes, torch.randn(M, model.sizes.hidden)
    kv = torch.float32 if model.form == "int8" else getattr(torch, model.form)
    width = s.heads * s.head_dim
    is_step = scope == "step"
    lanes = Lanes(s, M, C, kv, StepRule("mass")) if is_step else None
    found: dict[str, Run] = {}
    for name, (linear, dtype) in torch_linears(model, M).items():
        run, y = torch_path(model, linear, dtype), x.to(dtype)

        def attend(i: int, qkv: Tensor) -> Tensor:
            return lanes.attend(i, qkv) if lanes else qkv[:, :width].contiguous()

        found[name] = lambda run=run, y=y, attend=attend: run(y, attend)
    ours = native_path(model)

    def step(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lanes.step(i, q, k, v) if lanes else q.reshape(M, width)

    found["native"] = lambda: ours(x, step)
    if is_step:
        idle = Lanes(s, M, C, kv, StepRule(None, rank="age"))
        found["native, no scores"] = lambda: ours(x, idle.step)
    if importlib.util.find_spec("openvino"):
        import cpu_paths_openvino as paths

        def outside(i: int, qkv: Tensor) -> Tensor:
            return lanes.attend(i, qkv) if lanes else qkv[:, :width].contiguous()

        graphs = paths.segments(model, threads, outside)
        found["OpenVINO, 13 graphs"] = lambda: graphs(x.numpy())
        one = paths.stateful(model, threads, M, C) if is_step else paths.whole(model, threads)
        found["OpenVINO, one graph"] = lambda: one(x.numpy())
    if is_step and model.form == "float32" and shutil.which("g++"):
        found["torch.compile, whole step"] = compiled_step(model, M, C)
    return found


def absent() -> list[str]:
    """Name the candidates that cannot run here."""
    missing = [] if importlib.util.find_spec("openvino") else ["OpenVINO"]
    return missing + ([] if shutil.which("g++") else ["torch.compile (no g++)"])


def time_all(found: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Time the candidates in turn, each round in the other order. -> ms a step, by round."""
    steps, taken = {}, {name: [] for name in found}
    for name, run in found.items():
        run()
        start = time.perf_counter()
        run()
        steps[name] = max(1, min(20, int(0.12 / (time.perf_counter() - start))))
    for i in range(rounds):
        for name in list(found) if i % 2 == 0 else reversed(found):
            found[name]()  # what ran before left other data in the caches, other threads awake
            start = time.perf_counter()
            for _ in range(steps[name]):
                found[name]()
            taken[name].append((time.perf_counter() - start) * 1e3 / steps[name])
    return taken


def read_gbps() -> float:
    """Measure the bandwidth of reading, by a sum over 400 MB."""
    x = torch.from_numpy(np.ones(100_000_000, np.float32))
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        x.sum()
        taken.append(time.perf_counter() - start)
    return x.nbytes / statistics.median(taken) / 1e9


def _merge(path: Path, result: dict[str, Any]) -> None:
    """Write a run into a file of runs, over those of the same weights."""
    forms = {row["form"] for row in result["rows"]}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    kept = [run for run in runs if not forms & {row["form"] for row in run["rows"]}]
    path.write_text(json.dumps({"runs": [*kept, result]}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forms", default="float32,bfloat16,int8")
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bandwidth, rows = read_gbps(), []
    with torch.inference_mode():
        for form in args.forms.split(","):
            model = Model(Sizes(), form)
            for scope, M in (
                ("linears", 1),
                ("linears", 8),
                ("linears", 256),
                ("step", 1),
                ("step", 8),
            ):
                found = candidates(model, M, scope, args.slots, args.threads)
                bound_ms = model.nbytes / bandwidth / 1e6
                print(f"{form} {scope} {M}: {len(found)} candidates", file=sys.stderr, flush=True)
                for name, taken in time_all(found, args.rounds).items():
                    q1, q3 = harness.quartiles(taken)
                    ms = statistics.median(taken)
                    rows.append(
                        {"form": form, "scope": scope, "rows": M, "candidate": name, "ms": ms,
                         "q1_ms": q1, "q3_ms": q3, "weights_bound_ms": bound_ms}
                    )  # fmt: skip
    table = [
        [r["candidate"], r["form"], r["scope"], str(r["rows"]), f"{r['ms']:.2f}",
         f"{r['q1_ms']:.2f}-{r['q3_ms']:.2f}", f"{r['weights_bound_ms']:.1f}"]
        for r in rows
    ]  # fmt: skip
    columns = ["candidate", "weights", "scope", "rows", "ms", "quartiles", "bound"]
    harness.print_table("Executions on this CPU", columns, table)
    result = {
        "question": "fastest execution of the linear layers and of the static step",
        "host": harness.host(args.threads),
        "read_gbps": bandwidth,
        "slots": args.slots,
        "rounds": args.rounds,
        "absent": absent(),
        "rows": rows,
    }
    if args.output:
        _merge(args.output, result)
    harness.print_json(result)


if __name__ == "__main__":
    main()
