"""Does an independent analytical tool give the same decode times at equal assumptions?

Regime: decode, one step of a batch; both bounds occur (bandwidth, and compute on `hbm_1024`).
The tool is genz-llm (import name GenZ, https://github.com/abhibambhaniya/GenZ-LLM-Analyzer). It
wants an environment of its own; nothing of kvmmu is imported here.

    python -m venv genz && genz/bin/pip install genz-llm==0.0.16
    genz/bin/python benchmarks/crosscheck_genz.py --check     # compare with the stored figures
    genz/bin/python benchmarks/crosscheck_genz.py --write     # store them anew

What the stored figures hold, beside the times, is how the tool has to be called so that its
machine is ours, because four of its conventions are not: bandwidth in GiB/s, peak compute stated
for bf16 whatever the width in use, a width that the call overwrites, and four beams by default.
The closed form below is our own; the largest difference from the tool is stored with the times.
The tool leaves one small table for each call in its own temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

STORED = Path(__file__).resolve().parent.parent / "tests" / "accel" / "data" / "genz_decode.json"
TESTED_VERSION = "0.0.16"
CLOSED = "closed_form_worst_relative_difference"
IDEAL = "ideal_worst_relative_difference"
GB, GIB = 10**9, 2**30
ELEMENT_BYTES = {"int8": 1, "bf16": 2}
# The tool's peak is that of bf16; it takes int8 work as half of it (System.compute_multiplier).
SPEED_OVER_BF16 = {"int8": 2, "bf16": 1}

# Abstract machines (assumed): bandwidth in 1e9 B/s and MACs a second at the width in use.
MACHINES: dict[str, dict[str, Any]] = {
    "lpddr_1024": {"bandwidth_gbps": 25.6, "macs_per_s": 1024 * 500e6, "bits": "int8"},
    "hbm_8192": {"bandwidth_gbps": 256.0, "macs_per_s": 8192 * 500e6, "bits": "int8"},
    "hbm_1024": {"bandwidth_gbps": 256.0, "macs_per_s": 1024 * 500e6, "bits": "int8"},
    # NVIDIA's H200 data sheet: 4.8 TB/s, 1,979 TFLOP/s bf16 with sparsity, so 989 dense.
    "h200_like": {"bandwidth_gbps": 4800.0, "macs_per_s": 989e12 / 2, "bits": "bf16"},
}
MODELS = {
    "llama_7b": "meta-llama/Llama-2-7B",  # the shapes of LLaMA-7B
    "llama3_8b": "meta-llama/Llama-3.1-8B",  # the shapes of Llama-3-8B
    "opt_6_7b": "facebook/opt-6.7b",
    "opt_125m": "facebook/opt-125M",
}
BATCHES = (1, 4, 16)
CONTEXTS = (512, 2048, 4096, 8192)
CONVENTIONS = {
    "bandwidth": "its 'GB/s' is 2**30 B/s (binary), so a decimal figure is 7.4 % too fast",
    "compute": "its 'Tflops' is 1e12 FLOP/s (decimal), 2 FLOP a MAC, always the peak of bf16: "
    "int8 runs at twice, int4 at four times, f32 at half of it",
    "memory_size": "its 'MB' is 2**20 B",
    "time": "milliseconds; throughput in tokens a second",
    "bits": "one width for weights, KV and activations; decode_moddeling overwrites the width and "
    "the efficiencies of a System by its own arguments (defaults bf16 and 1)",
    "beams": "Bb defaults to 4: the batch is multiplied by it, and the prompt's KV is read and "
    "multiplied once per group of beams",
    "context": "KV read = input_tokens + output_tokens rows a layer",
    "summary": "'MACs (MFLOP)' of the timed summary counts 2 for a MAC",
    "capacity": "no limit unless off_chip_mem_size is given; a model's own length is not enforced",
    "counted": "QKV, out projection, up+gate, down, logit, attend, classifier (lm_head)",
    "not_counted": "embedding look-up, norms, biases, rotary, softmax, residuals, the new token's "
    "own K and V and their write",
    "rule": "sum over operators of max(MACs / rate, bytes / bandwidth); no overlap between "
    "operators; off-chip and on-chip bytes of one operator add up in time",
    "off_chip": "weights, K and V; for the classifier also its input and its logits",
    "on_chip": "all other activations, at onchip_mem_bw (default 18000 of its GB/s; infinite here)",
}


def tool_system(machine: dict[str, Any], **override: Any) -> Any:
    """Return the tool's System that is `machine`: bytes a second and MACs a second agree."""
    from GenZ import System

    peak_bf16_tflops = 2 * machine["macs_per_s"] / SPEED_OVER_BF16[machine["bits"]] / 1e12
    arguments = {
        "flops": peak_bf16_tflops,
        "offchip_mem_bw": machine["bandwidth_gbps"] * GB / GIB,
        "onchip_mem_bw": math.inf,
        "bits": machine["bits"],
    }
    return System(**(arguments | override))


def tool_step(system: Any, model: str, batch: int, context: int, **override: Any) -> dict[str, Any]:
    """Time one decode step of the tool and return ms in all, by part, and its bytes and MACs."""
    from GenZ import decode_moddeling

    arguments = {"bits": system.bits, "Bb": 1, "output_tokens": 0, "system_eff": 1}
    result = decode_moddeling(
        model=model,
        batch_size=batch,
        input_tokens=context,
        system_name=system,
        **(arguments | override),
    )
    parts = result["Runtime_breakdown"]
    summary = result["summary_table"].iloc[0]
    return {
        "step_ms": float(result["Latency"]),
        "linear_ms": float(parts.QKVO_layers + parts.FFN_layers),
        "attention_ms": float(parts.LA_layers),
        "classifier_ms": float(parts.Embedding),
        "weight_bytes": round(float(summary["Total Weights (MB)"]) * 2**20),
        "kv_bytes": round(float(summary["KV Cache (MB)"]) * 2**20),
        "macs": round(float(summary["MACs (MFLOP)"]) * 1e6 / 2),
    }


def shapes(name: str) -> dict[str, Any]:
    """Return the shapes the tool holds for a model, so that a reader need not have the tool."""
    from GenZ import get_configs

    config = get_configs(name)
    return {
        "tool_name": name,
        "num_layers": config.num_decoder_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "ffn_size": config.intermediate_size,
        "num_ffn_inputs": config.num_ffi,
        "vocab_size": config.vocab_size,
    }


def operators(
    model: dict[str, Any], batch: int, context: int, element_bytes: int
) -> list[tuple[str, int, int, int]]:
    """Return (name, times a step, MACs, off-chip bytes) of the operators of one decode step."""
    hidden, ffn, vocab = model["hidden_size"], model["ffn_size"], model["vocab_size"]
    layers, heads, kv_heads = model["num_layers"], model["num_heads"], model["num_kv_heads"]
    head_dim, up = model["head_dim"], model["num_ffn_inputs"] * model["ffn_size"]
    qkv = (heads + 2 * kv_heads) * head_dim
    weights = {
        "QKV": hidden * qkv,
        "Out Proj": heads * head_dim * hidden,
        "up+gate": hidden * up,
        "down": ffn * hidden,
    }
    found = [(n, layers, batch * w, w * element_bytes) for n, w in weights.items()]
    rows = batch * context * head_dim
    for name in ("Logit", "Attend"):
        found.append((name, layers, rows * heads, rows * kv_heads * element_bytes))
    # The classifier's input and logits cross the pins; no other activation does.
    moved = hidden * vocab + batch * (hidden + vocab)
    return found + [("classifier", 1, batch * hidden * vocab, moved * element_bytes)]


def closed_form_ms(
    model: dict[str, Any], machine: dict[str, Any], batch: int, context: int
) -> tuple[float, float]:
    """Return ms of a step: the sum of each operator's maximum, and the maximum of the sums."""
    compute_s = memory_s = step_s = 0.0
    width = ELEMENT_BYTES[machine["bits"]]
    for _, times, macs, moved_bytes in operators(model, batch, context, width):
        compute = times * macs / machine["macs_per_s"]
        memory = times * moved_bytes / (machine["bandwidth_gbps"] * GB)
        compute_s, memory_s = compute_s + compute, memory_s + memory
        step_s += max(compute, memory)
    return step_s * 1e3, max(compute_s, memory_s) * 1e3


def run_cases(models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the tool over machines, models, batches and contexts."""
    cases = []
    for machine_name, machine in MACHINES.items():
        for model_name, model in models.items():
            for batch in BATCHES:
                for context in CONTEXTS:
                    step = tool_step(tool_system(machine), model["tool_name"], batch, context)
                    key = {"machine": machine_name, "model": model_name}
                    cases.append(key | {"batch": batch, "context": context} | step)
    return cases


def run_traps() -> list[dict[str, Any]]:
    """Run one case with each convention ignored in turn and return times and ratios."""
    peak_tflops = 2 * MACHINES["hbm_1024"]["macs_per_s"] / 1e12  # lpddr_1024 has the same array
    case: dict[str, Any] = {"model": "llama_7b", "batch": 16, "context": 2048}

    def step(machine: dict[str, Any], system: dict[str, Any], call: dict[str, Any]) -> float:
        name = MODELS[case["model"]]
        built = tool_system(machine, **system)
        return float(tool_step(built, name, case["batch"], case["context"], **call)["step_ms"])

    trials: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("decimal GB/s given as its GB/s", "lpddr_1024", {"offchip_mem_bw": 25.6}, {}),
        ("int8 peak given as its flops", "lpddr_1024", {"flops": peak_tflops}, {}),
        ("int8 peak given as its flops", "hbm_1024", {"flops": peak_tflops}, {}),
        ("width given to System alone", "lpddr_1024", {}, {"bits": "bf16"}),
        ("beams left at the default", "lpddr_1024", {}, {"Bb": 4}),
        ("on-chip bandwidth left at the default", "h200_like", {"onchip_mem_bw": 18000}, {}),
    ]
    found = []
    for what, name, system, call in trials:
        equal_ms, step_ms = step(MACHINES[name], {}, {}), step(MACHINES[name], system, call)
        row = {"trap": what, "machine": name} | case
        found.append(row | {"step_ms": step_ms, "equal_ms": equal_ms, "ratio": step_ms / equal_ms})
    return found


def worst(cases: list[dict[str, Any]], expected: Callable[[dict[str, Any]], float]) -> float:
    """Return the largest relative difference of the cases' step times from `expected`."""
    return max(abs(float(case["step_ms"]) / expected(case) - 1) for case in cases)


def collect() -> dict[str, Any]:
    """Run everything and return what is stored."""
    models = {name: shapes(tool_name) for name, tool_name in MODELS.items()}
    cases = run_cases(models)

    def form(case: dict[str, Any]) -> tuple[float, float]:
        where = MACHINES[case["machine"]]
        return closed_form_ms(models[case["model"]], where, case["batch"], case["context"])

    return {
        "about": "Time of one decode step by an independent analytical tool, at stated assumptions",
        "tool": {"name": "genz-llm", "version": importlib.metadata.version("genz-llm")},
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "rerun": "python benchmarks/crosscheck_genz.py --write (where genz-llm is installed)",
        "units": "step_ms and *_ms milliseconds, *_bytes bytes, macs multiply-accumulates a step, "
        "bandwidth_gbps 1e9 B/s, macs_per_s at the width in `bits`; context = KV rows read",
        "conventions": CONVENTIONS,
        "machines": MACHINES,
        "models": models,
        CLOSED: worst(cases, lambda case: form(case)[0]),
        IDEAL: worst(cases, lambda case: form(case)[1]),
        "traps": run_traps(),
        "cases": cases,
    }


def text_of(found: dict[str, Any]) -> str:
    """Return JSON with one case a line."""
    parts = []
    for key, value in found.items():
        if isinstance(value, list):
            body = "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]"
        elif key in ("machines", "models", "conventions"):
            rows = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            body = "{\n  " + ",\n  ".join(rows) + "\n }"
        else:
            body = json.dumps(value)
        parts.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def worst_change(cases: list[dict[str, Any]]) -> float:
    """Return the largest relative difference of the cases' step times from the stored ones."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    key = ("machine", "model", "batch", "context")
    times = {tuple(case[k] for k in key): case["step_ms"] for case in stored["cases"]}
    return worst(cases, lambda case: times[tuple(case[k] for k in key)])


def main() -> None:
    """Run the tool, print what was found, then store or compare it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help=f"store the figures in {STORED.name}")
    mode.add_argument("--check", action="store_true", help="compare with the stored figures")
    arguments = parser.parse_args()
    try:
        version = importlib.metadata.version("genz-llm")
    except importlib.metadata.PackageNotFoundError:
        parser.exit(2, f"this needs genz-llm; pip install genz-llm=={TESTED_VERSION}\n")
    found = collect()
    print(f"genz-llm {version}: {len(found['cases'])} cases")
    print(f"largest difference from the closed form: {found[CLOSED]:.1e}")
    print(f"largest difference from max(bytes, MACs) of the whole step: {found[IDEAL]:.1%}")
    for row in found["traps"]:
        print(f"{row['trap']} ({row['machine']}): {row['ratio']:.3f} of the time")
    line = {"tool": found["tool"], CLOSED: found[CLOSED], IDEAL: found[IDEAL]}
    if arguments.write:
        STORED.parent.mkdir(parents=True, exist_ok=True)
        STORED.write_text(text_of(found), encoding="utf-8")
    else:
        line["stored_worst_relative_difference"] = changed = worst_change(found["cases"])
        print(f"largest difference from the stored figures: {changed:.1e}")
    print(json.dumps(line))
    if line.get("stored_worst_relative_difference", 0.0) > 1e-9:
        parser.exit(1, "the tool no longer gives the stored figures\n")


if __name__ == "__main__":
    main()
