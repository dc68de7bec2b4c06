"""How near do the CUDA kernels come to the memory's bandwidth, and what does a decode step cost?

Regime: decode, bandwidth. Three tables, every bound from a copy measured in the same run:

    attention  one layer's fused step at B lanes and C slots: bytes of K, V, scores and positions
               over its time, against the copy; without score upkeep; and PyTorch's attention over
               the same K and V, which keeps no scores. Calls walk through more layers than the
               L2 holds.
    decode     one token for B lanes of an 8B-shaped random model (or --layers, --hidden, ...),
               the step captured as one CUDA graph. Bound: weights + C slots, each read once.
    baseline   the same weights in transformers' model with a StaticCache of --context tokens, its
               step captured as a CUDA graph; --compile adds torch.compile. Bound: weights + cache.

Random weights have no accuracy: which policy answers right is the business of `kvmmu eval`.
A point whose tensors do not fit the device is listed as such. The JSON line comes last, and goes
to --output too. Without a CUDA device the benchmark says so and ends with status 2.

    python benchmarks/bench_cuda.py --output cuda.json        all points, within ten minutes
    python benchmarks/bench_cuda.py --batch 1 --num-slots 512 --sweep
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

if importlib.util.find_spec("kvmmu") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cuda_model import Shape, StaticBaseline, Transformer, make_lanes
from cuda_timing import captured, copy_bytes_per_s, fits, median_ms

from kvmmu.kernels.step import LaneState, StepRule, StepSpec

DTYPE = torch.bfloat16
RULE = StepRule("max", decay=1 - 2**-6)
"""The rule of the default policy."""


@dataclass
class Clock:
    """When the benchmark must stop starting new points."""

    limit_s: float
    start_s: float

    def is_over(self) -> bool:
        return time.monotonic() - self.start_s > self.limit_s


def attention_point(shape: Shape, B: int, C: int, copy: float) -> dict[str, Any]:
    """Time one layer's fused step, with and without scores, and PyTorch's attention."""
    from kvmmu.kernels.triton import step

    one = shape.slot_bytes(DTYPE) * B * C
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = max(2, min(shape.layers, -(-4 * l2 // one)))  # the next turn finds nothing in the L2
    point = {"B": B, "C": C, "kv_bytes": one}
    if not fits(sets * (one + 16 * B * shape.kv_heads * C) + 4 * B * shape.heads * C):
        return point | {"skipped": "does not fit"}
    layers = [make_lanes(shape, B, C, DTYPE) for _ in range(sets)]
    q = torch.randn(B, shape.heads, shape.head_dim, dtype=DTYPE, device="cuda")
    k, v = torch.randn(2, B, shape.kv_heads, shape.head_dim, dtype=DTYPE, device="cuda")
    lanes = torch.arange(B, dtype=torch.int32, device="cuda")
    at, out = torch.full_like(lanes, 4 * C), torch.empty_like(q)

    def fused(rule: StepRule) -> float:
        spec = StepSpec(rule, shape.head_dim**-0.5, 4, C // 8)
        run = lambda: [step(q, k, v, lanes, at, s, spec, out) for s in layers]  # noqa: E731
        return median_ms(captured(run).replay) / sets

    def attention(state: LaneState) -> Any:
        f = torch.nn.functional.scaled_dot_product_attention
        return f(q[:, :, None], state.keys, state.values, enable_gqa=True)

    ms = fused(RULE)
    moved = one + 12 * B * shape.kv_heads * C + 2 * q.nbytes + 2 * k.nbytes * 2
    return point | {
        "ms": ms,
        "ms_without_scores": fused(StepRule(None, rank="age")),
        "ms_sdpa": median_ms(captured(lambda: [attention(s) for s in layers]).replay) / sets,
        "bytes": moved,
        "bytes_per_s": moved / (ms * 1e-3),
        "share_of_copy": moved / (ms * 1e-3) / copy,
    }


def decode_point(model: Transformer, B: int, C: int, copy: float) -> dict[str, Any]:
    """Time the whole step of B lanes with C slots, captured as one graph."""
    from kvmmu.engine.cuda_graph import CapturedStep

    shape = model.shape
    kv = shape.slot_bytes(DTYPE) * B * C * shape.layers
    moved = model.weight_bytes + kv
    point: dict[str, Any] = {"B": B, "C": C, "kv_bytes": kv, "bytes": moved}
    if not fits(kv + shape.layers * 16 * B * shape.kv_heads * C + 8 * B * shape.heads * C):
        return point | {"skipped": "does not fit"}
    layers = [make_lanes(shape, B, C, DTYPE) for _ in range(shape.layers)]
    spec = StepSpec(RULE, shape.head_dim**-0.5, 4, C // 8)
    step = CapturedStep(
        lambda *rows: model.step(*rows, layers=layers, spec=spec), num_rows=B, device="cuda"
    )
    lanes = torch.arange(B, dtype=torch.int32, device="cuda")
    tokens, at = torch.zeros(B, dtype=torch.int64, device="cuda"), torch.full_like(lanes, 4 * C)
    ms = median_ms(lambda: step(tokens, at, lanes), budget_ms=1000)
    return point | timed(ms, B, moved, copy)


def timed(ms: float, B: int, moved: int, copy: float) -> dict[str, Any]:
    """Put a step's time beside its bound."""
    bound = moved / copy * 1e3
    return {"ms": ms, "tokens_per_s": B * 1e3 / ms, "bound_ms": bound, "over_bound": ms / bound}


def baseline_point(
    model: Transformer, B: int, context: int, copy: float, *, compiled: bool
) -> dict[str, Any]:
    """Time a step of transformers' model with a StaticCache; an error is part of the report."""
    kv = model.shape.slot_bytes(DTYPE) * B * context * model.shape.layers
    name = "static, compiled" if compiled else "static, graph"
    point: dict[str, Any] = {"cache": name, "B": B, "S": context, "kv_bytes": kv}
    if not fits(int(kv * 1.1)):  # transformers may hold a mask and a layer's copy besides
        return point | {"skipped": "does not fit"}
    try:
        baseline = StaticBaseline(model, B, context, DTYPE)
        run = baseline.compiled() if compiled else captured(baseline.step).replay
        ms = median_ms(run, budget_ms=1000)
    except Exception as error:  # whatever it is, ours must still be reported
        return point | {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    return point | timed(ms, B, model.weight_bytes + kv, copy)


def sweep(shape: Shape, B: int, C: int, copy: float) -> list[dict[str, Any]]:
    """Time other tiles and pipelines of the fused step at one point."""
    from kvmmu.kernels.triton import fused, launch

    found = []
    for tile_bytes in (8192, 16384, 32768):
        for stages in (3, 5, 7):
            fused._plan.cache_clear()
            launch._TILE_BYTES, fused._STAGES = tile_bytes, stages
            try:
                point = attention_point(shape, B, C, copy)
            except Exception as error:  # such a pipeline may not fit a smaller chip
                point = {"B": B, "C": C, "skipped": str(error)[:80]}
            found.append({"tile_bytes": tile_bytes, "stages": stages} | point)
    fused._plan.cache_clear()
    launch._TILE_BYTES, fused._STAGES = 16384, 5
    return found


def show(title: str, points: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print points as a table; what was skipped with its reason."""
    from harness import print_table

    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = []
    for point in points:
        point = {k: v / 1e9 if k == "bytes_per_s" else v for k, v in point.items()}
        if "skipped" in point:
            point |= dict.fromkeys(columns[-1:], point["skipped"])
        rows.append([cell(point.get(c, "")) for c in columns])
    names = ["GB/s" if c == "bytes_per_s" else c for c in columns]
    print_table(title, names, rows)
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    ints = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description="Time the CUDA path against the roofline.")
    parser.add_argument("--batch", type=ints, default=[1, 16, 64, 256], metavar="B,B,...")
    parser.add_argument("--num-slots", type=ints, default=[512, 1024, 2048, 4096], metavar="C,...")
    parser.add_argument("--context", type=int, default=4096, metavar="S", help="of the StaticCache")
    for name, default in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, minutes more")
    parser.add_argument("--sweep", action="store_true", help="tiles and pipelines, first point")
    parser.add_argument("--time-limit-s", type=float, default=480.0, help="start nothing after it")
    parser.add_argument("--output", type=Path, metavar="F", help="write the JSON here too")
    return parser.parse_args()


def main() -> None:
    """Run all tables and print them."""
    args = arguments()
    if not torch.cuda.is_available():
        print("bench_cuda needs a CUDA device, and torch finds none", file=sys.stderr)
        sys.exit(2)
    clock = Clock(args.time_limit_s, time.monotonic())
    torch.manual_seed(0)
    shape = Shape(**{name: getattr(args, name) for name in asdict(Shape())})
    copy = copy_bytes_per_s()
    device = torch.cuda.get_device_name(0)
    print(f"{device}: copy {copy / 1e9:.0f} GB/s, torch {torch.__version__}")
    result: dict[str, Any] = {
        "benchmark": "cuda",
        "device": device,
        "torch": torch.__version__,
        "dtype": str(DTYPE),
        "shape": asdict(shape),
        "copy_bytes_per_s": copy,
    }
    grid = [(B, C) for B in args.batch for C in args.num_slots]
    try:
        with torch.inference_mode():
            tables(result, args, shape, grid, copy, clock)
    finally:  # what was measured before a fault is worth keeping
        line = json.dumps(result)
        if args.output:
            args.output.write_text(line + "\n", encoding="utf-8")
        print(line, flush=True)


def tables(
    result: dict[str, Any],
    args: argparse.Namespace,
    shape: Shape,
    grid: list[tuple[int, int]],
    copy: float,
    clock: Clock,
) -> None:
    """Fill the result, table by table."""
    late = {"skipped": "out of time"}
    of_kernel = ("B", "C", "ms", "ms_without_scores", "ms_sdpa", "bytes_per_s", "share_of_copy")
    of_step = ("B", "C", "ms", "tokens_per_s", "bound_ms", "over_bound")
    points = result["attention"] = []
    for B, C in grid:
        point = {"B": B, "C": C} | late
        points.append(point if clock.is_over() else attention_point(shape, B, C, copy))
    show("attention of one layer", points, of_kernel)
    if args.sweep:
        result["sweep"] = sweep(shape, *grid[0], copy)
        show("other tiles", result["sweep"], ("tile_bytes", "stages", *of_kernel))
    model = Transformer(shape, DTYPE)
    points = result["decode"] = []
    for B, C in grid:
        point = {"B": B, "C": C} | late
        points.append(point if clock.is_over() else decode_point(model, B, C, copy))
    show("decode step, kvmmu, one CUDA graph", points, of_step)
    points = result["baseline"] = []
    for compiled in (False, True)[: 1 + args.compile]:
        for B in args.batch:
            if clock.is_over():
                points.append({"cache": "static", "B": B, "S": args.context} | late)
            else:
                points.append(baseline_point(model, B, args.context, copy, compiled=compiled))
    show("decode step, transformers", points, ("cache", "B", "S", *of_step[2:]))


if __name__ == "__main__":
    main()
