"""The simulations that docs/accelerator.md tells of: made, kept, laid out as its tables.

    python docs/claim_search.py                 every assumption of the claim's search, resumable
    python docs/accelerator_results.py          the other runs and the pictures (about a minute)

docs/results/accelerator holds claim.jsonl.xz (a line a point), runs.json (studies, cut to what the
page shows), grid.json (batch by context), stalls.json (a decode step's, by ways of the KV-MMU),
explore_llama_7b.json (exploration.json of `kvmmu explore --model llama_7b --trials 100`, 6 digits)
and the pictures. In a page, accelerator/claim is a table.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from result_tables import NUM_COLOURS

HOME = Path(__file__).resolve().parent / "results" / "accelerator"
LINES = HOME / "claim.jsonl"
STUDIED = (
    ("llama_7b", 2048, 2048, 512),
    ("llama_3_8b", 2048, 2048, 512),
    ("opt_6.7b", 1024, 1024, 256),
)
STALLED = (
    ("jetcas65", "llama_7b", 16, 2048, 512),
    ("jetcas65", "llama_7b", 1, 2048, 512),
    ("jetcas65", "opt_6.7b", 16, 1024, 256),
    ("jetcas65", "kvmmu-ref-1m", 16, 256, 64),
    ("jetcas65", "kvmmu-ref-1m", 1, 256, 64),
    ("hbm_server", "llama_7b", 16, 2048, 512),
    ("hbm_server", "llama_7b", 1, 2048, 512),
    ("hbm_server", "opt_6.7b", 16, 1024, 256),
    ("hbm_server", "kvmmu-ref-1m", 16, 256, 64),
)
"""Accelerator, model, batch, prompt (and as many generated tokens), slots."""
MEASURED = "1m-integers"
"""The evaluation (result_tables.py) whose numbers, policy and sizes the run with accuracy has."""
NEAR = 0.05  # a point matches where both ratios lie within 5 % of the abstract's


# Kept runs ----------------------------------------------------------------------------------


def make() -> None:
    """Run the studies and the grid; pack the claim's lines; draw."""
    from accelerator_pictures import draw

    from kvmmu.accel.claim import GRID, price_decode
    from kvmmu.accel.request import Request
    from kvmmu.accel.simulate import simulate
    from kvmmu.accel.study import study
    from kvmmu.accel.summary import simulation_json

    HOME.mkdir(parents=True, exist_ok=True)
    runs = {}
    for model, prompt, generate, slots in STUDIED:
        request = Request(model=model, prompt=prompt, generate=generate, num_slots=slots)
        runs[model] = study(request).to_json()
    runs["measured"] = {name: simulation_json(simulate(r)) for name, r in measured_runs().items()}
    _write("runs.json", runs)
    grid = [
        price_decode(model, batch, context)
        for model in GRID["model"]
        for batch in GRID["batch"]
        for context in GRID["context"]
    ]
    _write("grid.json", grid)
    _write("stalls.json", stall_rows())
    if LINES.exists():
        (HOME / "claim.jsonl.xz").write_bytes(lzma.compress(_short_lines(), preset=9))
    for load in (runs_of, grid_of, stalls_of, claim_lines):
        load.cache_clear()
    draw(HOME)
    for picture in HOME.glob("*.png"):
        with Image.open(picture) as image:
            flat = image.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        flat.save(picture, optimize=True)


def stall_rows() -> list[dict[str, Any]]:
    """Return the stalls of every machine, model, batch, granularity and store."""
    from kvmmu.accel.request import Request
    from kvmmu.accel.stalls import stalls

    made = []
    for accelerator, model, batch, prompt, slots in STALLED:
        for granularity in ("layer", "head"):
            for store in ("sram", "dram"):
                request = Request(
                    accelerator=accelerator,
                    model=model,
                    batch=batch,
                    prompt=prompt,
                    generate=prompt,
                    num_slots=slots,
                    granularity=granularity,
                    overrides={"mmu.store": store},
                )
                about = {"accelerator": accelerator, "model": model, "batch": batch}
                about |= {"slots": slots, "granularity": granularity, "store": store}
                made.append(about | stalls(request).to_json())
    return made


def measured_runs() -> dict[str, Any]:
    """Return the runs that have an accuracy: the evaluation's texts, slots, chunks and widths."""
    from kvmmu.accel.request import Request

    wide = {"bits.weights": 16, "bits.activations": 16}
    return {
        f"{prompt + generate} tokens": Request(
            model="kvmmu-ref-1m",
            prompt=prompt,
            generate=generate,
            num_slots=(prompt + generate) // 8,
            chunk=(prompt + generate) // 32,
            kv_bits=16,
            granularity="layer",
            overrides=wide,
        )
        for prompt, generate in ((896, 128), (1920, 128))
    }


def _write(name: str, value: Any) -> None:
    text = json.dumps(_short(value), separators=(",", ":"), sort_keys=True)
    (HOME / name).write_text(text + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """Round floats to 6 significant digits: more says nothing and takes room."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


def _short_lines() -> bytes:
    lines = [json.loads(line) for line in LINES.read_text("utf-8").splitlines()]
    lines.sort(key=lambda line: str(line["key"]))
    return "".join(json.dumps(_short(line), sort_keys=True) + "\n" for line in lines).encode()


@cache
def runs_of() -> dict[str, Any]:
    """Read the kept studies by model."""
    made: dict[str, Any] = json.loads((HOME / "runs.json").read_text("utf-8"))
    return made


@cache
def grid_of() -> list[dict[str, Any]]:
    """Read the kept grid."""
    made: list[dict[str, Any]] = json.loads((HOME / "grid.json").read_text("utf-8"))
    return made


@cache
def stalls_of() -> list[dict[str, Any]]:
    """Read the kept stalls."""
    made: list[dict[str, Any]] = json.loads((HOME / "stalls.json").read_text("utf-8"))
    return made


@cache
def claim_lines() -> list[dict[str, Any]]:
    """Read the kept points of the claim's search that could be priced."""
    text = lzma.decompress((HOME / "claim.jsonl.xz").read_bytes()).decode()
    return [line for line in map(json.loads, text.splitlines()) if "refused" not in line]


def claim_points(reading: str) -> list[dict[str, Any]]:
    """Return every point of a reading: key, factor on the MAC's energy, both ratios, distance."""
    from kvmmu.accel.claim import CLAIM, MAC_FACTORS, ratios_of

    made = []
    for line in claim_lines():
        for name, factor in MAC_FACTORS.items():
            energy, delay = ratios_of(line, reading, factor)
            off = max(abs(energy / CLAIM["energy"] - 1), abs(delay / CLAIM["delay"] - 1))
            made.append({"line": line, "mac": name, "energy": energy, "delay": delay, "off": off})
    return made


# Tables -------------------------------------------------------------------------------------


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def headline() -> str:
    """Write full cache over RCE for each model, DRAM and scope, at nominal constants."""
    rows = []
    for model, *_ in STUDIED:
        run = runs_of()[model]
        main = run["simulation"]
        full = next(b for b in main["baselines"] if b["name"] == "full_8bit")
        sources = {main["configuration"]["dram"]: main["ratios"]}
        sources |= {n: d["ratios"] for n, d in run["other_drams"].items() if "ratios" in d}
        for dram, ratios in sources.items():
            for scope in ("decode", "end_to_end"):
                r = ratios["full_8bit"][scope]
                rows.append(
                    (
                        model,
                        dram,
                        scope.replace("_", " "),
                        f"{r['overlapped']['energy']:.2f}",
                        f"{r['overlapped']['delay']:.2f}",
                        f"{r['baseline_serial']['energy']:.2f}",
                        f"{r['baseline_serial']['delay']:.2f}",
                        _yes(full["fits"]),
                        "not measured",
                    )
                )
    head = ("model", "DRAM", "scope", "energy", "delay")
    tail = ("energy, baseline serial", "delay, baseline serial", "full fits", "accuracy")
    return _rows((*head, *tail), rows)


def baselines() -> str:
    """Write LLaMA-7B's ratio to every baseline, decode alone and end to end."""
    main = runs_of()["llama_7b"]["simulation"]
    fits = {b["name"]: b for b in main["baselines"]}
    rows = []
    for name, ratios in main["ratios"].items():
        size = fits[name]["capacity_bytes"] / 1e9
        cells = [
            f"{ratios[scope]['overlapped'][what]:.2f}"
            for scope in ("decode", "end_to_end")
            for what in ("energy", "delay")
        ]
        rows.append((fits[name]["title"], *cells, f"{size:.1f} GB", _yes(fits[name]["fits"])))
    head = ("baseline", "decode energy", "decode delay", "end-to-end energy", "end-to-end delay")
    return _rows((*head, "needs", "fits"), rows)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def claim() -> str:
    """Write, for each reading, how many assumptions give the abstract's two ratios."""
    from kvmmu.accel.claim import READINGS

    rows = []
    for reading, (energy, delay, mode) in READINGS.items():
        made = claim_points(reading)
        near = [p for p in made if p["off"] <= NEAR]
        best = min(made, key=lambda p: float(p["off"]))
        plain = [p for p in made if p["mac"] == "nominal"]
        rows.append(
            (
                reading,
                energy.replace("_", " "),
                delay.replace("_", " "),
                mode,
                f"{len(near)} of {len(made):,}",
                f"{median(p['energy'] for p in plain):.2f} / "
                f"{median(p['delay'] for p in plain):.2f}",
                f"{best['energy']:.2f} / {best['delay']:.2f}",
                f"{best['line']['key']}, MAC {best['mac']}",
            )
        )
    head = ("reading", "energy of", "delay of", "baseline", "within 5 %", "median, nominal")
    return _rows((*head, "closest", "which is"), rows)


def matches() -> str:
    """Write what the points within 5 % have in common: how often each assumption occurs."""
    from kvmmu.accel.claim import READINGS

    near = [(r, p) for r in READINGS for p in claim_points(r) if p["off"] <= NEAR]
    total = {
        name: sorted({str(line["point"][name]) for line in claim_lines()})
        for name in ("model", "lengths", "bits", "dram", "pes", "compression")
    }
    rows = [("reading", _counts([r for r, _ in near], list(READINGS)))]
    rows += [
        (name, _counts([str(p["line"]["point"][name]) for _, p in near], values))
        for name, values in total.items()
    ]
    fits = ["yes" if p["line"]["full_fits"] else "no" for _, p in near]
    rows.append(("the full cache fits", _counts(fits, ["yes", "no"])))
    rows.append(("array energy", _counts([p["mac"] for _, p in near], _mac_names())))
    return _rows(("assumption", f"how often among the {len(near)} matches"), rows)


def _mac_names() -> list[str]:
    from kvmmu.accel.claim import MAC_FACTORS

    return list(MAC_FACTORS)


def _counts(seen: list[str], values: list[str]) -> str:
    return ", ".join(f"{value} {seen.count(value)}" for value in values)


def share() -> str:
    """Write the KV-MMU's share of energy for LLaMA-7B, end to end, with its largest term."""
    rows = []
    for row in runs_of()["llama_7b"]["mmu_variants"]:
        if "refused" in row:
            continue
        largest = _largest(row["nominal"])
        cells = [
            " / ".join(f"{row[c][key]:.2%}" for c in ("low", "nominal", "high"))
            for key in ("tables", "with_collection")
        ]
        where = {"dram": "DRAM, two on chip", "sram": "all on chip"}[row["store"]]
        area = f"{row['nominal']['mmu_area_mm2']:.2f} mm2"
        rows.append((row["granularity"], where, row["sram_flavour"].upper(), *cells, largest, area))
    head = ("one victim per", "tables", "SRAM", "tables and logic", "with score collection")
    return _rows((*head, "largest term", "area"), rows)


def _largest(shares: dict[str, float]) -> str:
    words = {
        "mmu_logic": "logic",
        "mmu_clock": "clock of the logic",
        "mmu_scores": "table accesses",
        "mmu_dram": "table traffic",
        "mmu_collect": "second look at logits",
        "leak_mmu_score": "leakage of the tables",
        "leak_mmu_logic": "leakage of the logic",
        "logits_buffer": "accesses of the logits buffer",
        "leak_logits_buffer": "leakage of the logits buffer",
    }
    name = max(words, key=lambda key: shares.get(key, 0.0))
    return f"{words[name]}, {shares[name]:.2%}"


def stalls() -> str:
    """Write the stalls of a decode step by cause and ways, and the least ways without any."""
    rows = []
    for case in stalls_of():
        by_ways = {row["ways"]: row for row in case["rows"]}
        own = by_ways[case["own_ways"]]
        rows.append(
            (
                f"{case['accelerator']}, {case['model']}, {case['batch']}, {case['slots']}",
                case["granularity"],
                case["store"].upper(),
                f"{own['step_cycles']:,}",
                *(_stalled(by_ways[ways]) for ways in (2, 4, 8, 16, 32)),
                str(case["least_ways"] or "none"),
                f"{own['rescale_cycles']:,}",
                f"{case['rescale_share']:.0e}",
            )
        )
    head = ("machine, model, batch, slots", "one victim per", "tables", "step, cycles")
    ways = tuple(f"{n} ways" for n in (2, 4, 8, 16, 32))
    tail = ("least ways", "16 ways, all rescale", "rescales, share of a run below")
    return _rows((*head, *ways, *tail), rows)


def _stalled(row: dict[str, Any]) -> str:
    """Write stall cycles and their largest cause."""
    if not row["total"]:
        return "0"
    words = {"score input": "input", "table swap": "swap", "search": "search"}
    causes = row["by_cause"]
    return f"{row['total']:,} ({words[max(causes, key=lambda name: causes[name])]})"


def iso_capacity() -> str:
    """Write decode at each design's own largest batch, LLaMA-7B at 4,095 tokens."""
    rows = []
    for row in runs_of()["llama_7b"]["iso_capacity"]:
        rows.append(
            (
                row["design"],
                str(row["batch"]),
                f"{row['tokens_per_s']:.1f}",
                f"{row['energy_j_per_token'] * 1e3:.0f} mJ",
                row["bound"],
            )
        )
    return _rows(("design", "lanes that fit", "tokens/s", "energy a token", "bound"), rows)


def grid() -> str:
    """Write energy / delay gains by context and batch, MHA beside GQA."""
    from kvmmu.accel.claim import GRID

    cells = {(r["model"], r["batch"], r["context"]): r for r in grid_of()}
    rows = []
    for model in GRID["model"]:
        for batch in GRID["batch"]:
            row = [cells[model, batch, n] for n in GRID["context"]]
            text = [
                f"{r['energy']:.2f} / {r['delay']:.2f}{'' if r['full_fits'] else '*'}" for r in row
            ]
            rows.append((model, str(batch), *text))
    return _rows(("model", "batch", *(f"{n:,}" for n in GRID["context"])), rows)


def peers() -> str:
    """Write what each profile reproduces, and with what error."""
    from kvmmu.accel.profiles import list_profiles, load_profile

    rows = []
    for name in list_profiles():
        profile = load_profile(name)
        for made in profile.reproduce():
            rows.append(
                (
                    name,
                    profile.shown_as,
                    f"{profile.balance(16):.2f}",
                    made.what,
                    f"{made.computed:.4g} {made.unit}",
                    f"{made.published:.4g} {made.unit}",
                    f"{made.error:+.1%}",
                )
            )
    head = ("profile", "shown as", "PEs/(BW x 16/f)", "figure", "computed", "published", "error")
    return _rows(head, rows)


def measured() -> str:
    """Write the ratios of runs whose accuracy was measured, with that accuracy."""
    import result_tables

    kept = result_tables.summary(MEASURED)
    found = next(s for s in kept["settings"] if "fixed_point=True" in s["name"])
    rows = []
    for name, made in runs_of()["measured"].items():
        part = made["ratios"]["full_16bit"]["end_to_end"]
        rows.append(
            (
                f"{name}, C = {made['configuration']['num_slots']}",
                f"{part['overlapped']['energy']:.2f}",
                f"{part['overlapped']['delay']:.2f}",
                f"{part['baseline_serial']['delay']:.2f}",
                f"{made['mmu_share']['end_to_end']['with_collection']:.1%}",
                _accuracy(kept, found["name"]) if name == "1024 tokens" else "see perplexity",
                _perplexity(kept, found["name"]) if name == "2048 tokens" else "see accuracy",
            )
        )
    head = ("run", "energy", "delay", "delay, baseline serial", "KV-MMU", "accuracy kept")
    return _rows((*head, "perplexity / full"), rows)


def _accuracy(kept: dict[str, Any], name: str) -> str:
    row = next(r for r in kept["headline"] if r["name"] == name and r["compression"] == 8.0)
    low, high = row["kept_interval"]
    return f"{row['kept']:.0%} ({low:.0%} to {high:.0%})"


def _perplexity(kept: dict[str, Any], name: str) -> str:
    rows = [r for r in kept["perplexity"] if r["name"] == name]
    return ", ".join(f"{r['ratio']:.2f} {r['text'].replace('_', ' ')}" for r in rows)


def explore() -> str:
    """Write the best designs under jetcas65's own area, with RCE and with the full cache."""
    kept = json.loads((HOME / "explore_llama_7b.json").read_text("utf-8"))
    rows = []
    for name, title in (("rce", "RCE"), ("full", "full cache")):
        plain, best = kept["original"][name], kept[name]["best"]["outcome"]
        rows.append((f"{title}, jetcas65", *_designed(plain), "32 x 32, 128 / 128 / 256 / 64"))
        p = kept[name]["best"]["point"]
        banks = [32 * p[f"{b}_banks"] for b in ("weight", "kv", "activation", "logits")]
        shape = f"{p['rows']} x {p['cols']}, {' / '.join(map(str, banks))}"
        rows.append((f"{title}, best of {kept[name]['num_priced']}", *_designed(best), shape))
    best, same = kept["ratios"]["best_to_best"], kept["ratios"]["original"]
    for title, made in (("full / RCE, best each", best), ("full / RCE, jetcas65", same)):
        rows.append((title, "", f"{made['delay']:.2f}x", f"{made['energy']:.2f}x", ""))
    return _rows(("design", "mm2", "delay", "energy", "PEs, KiB of W / KV / act. / logits"), rows)


def _designed(made: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{made['area_mm2']:.2f}",
        f"{made['delay_s']:,.0f} s",
        f"{made['energy_j'] / 1e3:.2f} kJ",
    )


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "baselines": baselines,
    "claim": claim,
    "matches": matches,
    "share": share,
    "stalls": stalls,
    "measured": measured,
    "iso_capacity": iso_capacity,
    "grid": grid,
    "explore": explore,
    "peers": peers,
}

if __name__ == "__main__":
    make()
    sys.stdout.write(f"{HOME}\n")
