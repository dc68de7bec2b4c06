"""The report of a build as text: the figures first, then units, SRAM, path, what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["REPORT", "TABLE", "TOY_NOTE", "clock_figures", "report_rows", "report_text"]

REPORT, TABLE = "report.json", "report.md"
TOY_NOTE = "toy library: invented numbers, no process; name a liberty for real figures"
_NONE = "-"


def report_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what was built and what it costs, label and value with its unit."""
    config = report["config"]
    rows = [
        ("slots", f"{config['slots']} in rows of {config['ways']}"),
        (
            "tables",
            f"{report['tables']} = {config['lanes']} lanes x {config['layers']} layers x "
            f"{config['heads']} head(s), store {config['store']}",
        ),
        ("SRAM", f"{report['sram_bits'] / 8192:,.1f} KiB"),
        ("lint", ", ".join(_tool(one) for one in report["lint"])),
    ]
    if "library" in report:
        rows += _gate_rows(report)
    return rows


def _tool(one: Mapping[str, str]) -> str:
    return f"{one['tool']} {one['result']}"


def _gate_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    sram = report["sram_area_um2"]
    timing = report["timing"]
    rows = [
        ("library", _library(report)),
        ("cells", f"{report['cells']:,}"),
        ("flip-flops", f"{report['flip_flops']:,}"),
        ("logic area", f"{report['logic_area_um2']:,.0f} um2"),
        ("SRAM area", "no macro library named" if sram is None else f"{sram:,.0f} um2"),
        ("critical path", f"{timing['critical_path_ns']:.2f} ns, {timing['fmax_mhz']:.0f} MHz"),
        ("clock", report["clock_verdict"]),
        ("mapped for", report["goal"]),
    ]
    return rows


def clock_figures(*, clock_mhz: float, critical_path_ns: float, goal: str) -> dict[str, Any]:
    """Compare the longest path with the clock's period: slack, whether it is met, what to do."""
    period_ns = 1e3 / clock_mhz
    slack_ns = period_ns - critical_path_ns
    if slack_ns >= 0:
        verdict = f"meets {clock_mhz:g} MHz: {slack_ns:.2f} of {period_ns:.2f} ns left for wires"
    else:
        instead = "add --goal delay" if goal == "area" else "take faster cells"
        verdict = (
            f"misses {clock_mhz:g} MHz by {-slack_ns:.2f} ns: lower it to "
            f"{int(1e3 / critical_path_ns)} or {instead}"
        )
    return {"slack_ns": slack_ns, "meets_clock": slack_ns >= 0, "clock_verdict": verdict}


def _library(report: Mapping[str, Any]) -> str:
    library = report["library"]
    name = f"{library['name']}, {library['voltage_v']:g} V, {library['temperature_c']:g} C"
    return f"{name} ({TOY_NOTE})" if report["is_toy"] else name


def report_text(report: Mapping[str, Any]) -> str:
    """Write the report in Markdown."""
    parts = ["# KV-MMU build", _table(("", ""), report_rows(report))]
    if "library" in report:
        parts += list(_gate_parts(report))
    return "\n\n".join(parts) + "\n"


def _gate_parts(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Logic by unit"
    yield _table(
        ("unit", "cells", "flip-flops", "area um2"),
        [
            (u["unit"], f"{u['cells']:,}", f"{u['flip_flops']:,}", f"{u['logic_area_um2']:,.0f}")
            for u in report["units"]
        ],
    )
    yield "## SRAM banks"
    yield _table(
        ("banks", "words x bits", "macros of a bank", "area um2"),
        [
            (
                str(s["instances"]),
                f"{s['depth']} x {s['width']}",
                _NONE if s["macro"] is None else f"{s['columns']} x {s['rows']} {s['macro']}",
                _NONE if s["macro"] is None else f"{s['instances'] * s['area_um2']:,.0f}",
            )
            for s in report["srams"]
        ],
    )
    yield "## Longest path of each unit"
    yield _table(
        ("unit", "ns", "ends at"),
        [(e["unit"], f"{e['period_ns']:.3f}", e["end"]) for e in report["timing"]["ends_by_unit"]],
    )
    yield "## Critical path"
    yield _path(report["timing"])
    yield "## Left out"
    yield "\n".join(f"- {text}" for text in report["left_out"])


def _path(timing: Mapping[str, Any]) -> str:
    return _table(
        ("at ns", "edge", "cell", "kind", "pin"),
        [
            (f"{p['arrival_ns']:.3f}", p["edge"], p["instance"] or p["net"], p["cell"], p["pin"])
            for p in timing["path"]
        ],
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
