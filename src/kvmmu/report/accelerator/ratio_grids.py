"""Tables of ratios: to every baseline, on every DRAM, as constants move, at equal capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmmu.report.accelerator.cells import NONE, Cell, make_grid, number
from kvmmu.report.accelerator.names import (
    MODES,
    SCOPES,
    energy_text,
    three_digits,
    times,
)
from kvmmu.report.accelerator.study import (
    accuracy_words,
    baselines,
    called,
    full_of,
    ours_name,
    results_of,
    scopes_of,
)
from kvmmu.report.evaluation.tables import Grid

__all__ = ["dram_grid", "iso_grid", "pipeline_grid", "ratio_grid", "sensitivity_grid"]

Study = Mapping[str, Any]
_CORNERS = ("low", "nominal", "high")
_PAIR_HEADS = [f"{mode}: {what}" for mode in MODES.values() for what in ("energy", "delay")]


def pipeline_grid(study: Study) -> Grid:
    """Lay out the answer: the full cache / ours by pipelines, energy and delay of each scope."""
    full, scopes = full_of(study), scopes_of(study)
    if full is None:
        return make_grid("", [], [])
    ratios = study["simulation"]["ratios"][full["name"]]
    rows = [
        [(name, None)]
        + [number(ratios[s][mode][w], times) for s in scopes for w in ("energy", "delay")]
        for mode, name in MODES.items()
    ]
    head = ["pipelines", *(f"{SCOPES[s]}: {w}" for s in scopes for w in ("energy", "delay"))]
    ours = study["simulation"]["ours"]["title"]
    title = f"{called(full)} / {ours}, on the same chip (simulated; {accuracy_words(study)})"
    return make_grid(title, head, rows)


def ratio_grid(study: Study, scope: str) -> Grid:
    """Lay out baseline / ours, three pairs of pipelines by energy and delay, one row a baseline."""
    ratios, ours = study["simulation"]["ratios"], ours_name(study)
    rows = [
        [(called(other), None), *_pairs(ratios[other["name"]][scope])] for other in baselines(study)
    ]
    title = f"Baseline / {ours}, {SCOPES[scope]} (simulated; above 1x {ours} gains; "
    return make_grid(f"{title}{accuracy_words(study)})", ["baseline", *_PAIR_HEADS], rows)


def _pairs(ratios: Mapping[str, Any]) -> list[Cell]:
    return [number(ratios[mode][what], times) for mode in MODES for what in ("energy", "delay")]


def dram_grid(study: Study) -> Grid:
    """Lay out the full cache / ours on every DRAM that was asked for."""
    full = full_of(study)
    if full is None:
        return make_grid("", [], [])
    sim = study["simulation"]
    own = {"ratios": sim["ratios"], "balance": sim["configuration"]["balance"]}
    own |= {"bound": {name: part["bound"] for name, part in sim["ours"]["phases"].items()}}
    rows: list[list[Cell]] = []
    for dram, made in {sim["configuration"]["dram"]: own, **study["other_drams"]}.items():
        for scope in scopes_of(study):
            name = f"{dram}, {SCOPES[scope]}"
            if "refused" in made:
                rows.append([(f"{dram}: {made['refused']}", None), *[NONE] * 7])
                break
            bound = made["bound"].get(scope, "–")
            bound = "–" if scope == "end_to_end" else bound
            ratios = made["ratios"][full["name"]][scope]
            rows.append([(name, None), *_pairs(ratios), (bound, None)])
    ours = ours_name(study)
    title = f"{called(full)} / {ours} by DRAM (simulated; {accuracy_words(study)})"
    return make_grid(title, ["DRAM", *_PAIR_HEADS, f"{ours} bound by"], rows)


def sensitivity_grid(study: Study) -> Grid:
    """Lay out each group of constants at its low and high figures, the others nominal."""
    rows = []
    for row in study["sensitivity"]:
        cells: list[Cell] = [(row["group"], None)]
        cells += [number(row[c]["energy_j"], energy_text) for c in _CORNERS]
        ratios = [row[c].get("energy_ratio") for c in _CORNERS]
        rows.append([*cells, *(number(ratio, times) for ratio in ratios)])
    full = full_of(study)
    what = f"; ratio: {called(full)} / {ours_name(study)}" if full else ""
    head = ["constants moved", *(f"{a}, {c}" for a in ("energy", "ratio") for c in _CORNERS)]
    title = f"Sensitivity of the run's energy (simulated{what}; {accuracy_words(study)})"
    return make_grid(title, head, rows)


def iso_grid(study: Study) -> Grid:
    """Lay out decode of every design at its own largest batch that fits the DRAM."""
    titles = {made["name"]: made["title"] for made in results_of(study)}
    rows, context = [], 0
    for row in study["iso_capacity"]:
        context = row["context"]
        batch = f"{row['batch']}{'+' if row['is_capped'] else ''}"
        rows.append(
            [
                (titles.get(row["design"], row["design"]), None),
                (batch, float(row["batch"])),
                number(row["tokens_per_s"], three_digits),
                number(row["energy_j_per_token"], energy_text),
                (row["bound"], None),
            ]
        )
    title = f"Each at its own largest batch, generation up to {context:,} tokens (simulated; "
    head = ["design", "lanes", "tokens/s", "energy a token", "bound by"]
    return make_grid(f"{title}+: no more were tried; {accuracy_words(study)})", head, rows)
