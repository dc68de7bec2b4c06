"""The benchmark's table, sentences and pictures, from its result as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

__all__ = [
    "bench_notes",
    "cap_table",
    "markdown",
    "point_tables",
    "tables_markdown",
    "write_bench",
]

Row = Mapping[str, Any]
_COLUMNS = (
    "candidate", "tok/s", "ms a\nstep", "quartiles", "x\nlimit", "prefill\ntok/s", "TTFT\ns",
    "grows\nMB", "KV\nMB", "ours is",
)  # fmt: skip
_CAP_COLUMNS = ("candidate", "cap,\ntokens", "tok/s", "range", "users\nat once", "grows\nMB")
DISTURBED = 0.2
EXACT = "transformers-dynamic"
OURS = ("engine", "library")
"""Whose ratio to each row the last column gives: the first of them that was measured."""


def reference_of(group: Row) -> str | None:
    """Name whose ratios a group's table shows."""
    fine = [row["candidate"] for row in group["rows"] if row["status"] == "ok"]
    return next((name for name in OURS if name in fine), None)


def title_of(group: Row) -> str:
    """Name a point and say what its rounds are worth."""
    text = (
        f"batch {group['batch']}, {group['context']:,} tokens, C = {group['num_slots']:,}; "
        f"read {group['read_gbps']:.1f} GB/s; "
        f"{group['num_valid_rounds']} of {group['num_rounds']} rounds count"
    )
    return text + ("; VOID: others took the cores" if group["is_void"] else "")


def cells(row: Row, reference: str | None, *, is_narrow: bool = False) -> list[str]:
    """Word one candidate's figures in the table's order; without quartiles if it is narrow."""
    low, high = row["step_quartiles_ms"]
    name = (
        row["candidate"]
        if row["precision"] in row["candidate"]
        else (f"{row['candidate']}, {row['precision']}")
    )
    ratio = row["speedup_over"].get(reference or "")
    rate = row["prefill_tokens_per_s"]
    made = [
        name,
        f"{row['decode_tokens_per_s']:.0f}",
        f"{row['step_ms']:.1f}",
        f"{low:.1f}-{high:.1f}",
        f"{row['over_bound']:.2f}" if row["over_bound"] else "-",
        f"{rate:,.0f}" if rate else "-",
        "-" if row["is_batch_prefill"] else f"{row['ttft_s']:.2f}",
        f"{row['prefill_growth_bytes'] / 1e6:,.0f}",
        f"{row['kv_bytes'] / 1e6:,.0f}" if row["kv_bytes"] else "-",
        f"{1 / ratio[0]:.2f}x" if ratio else "1",
    ]
    return [row["candidate"], *made[1:3], *made[4:]] if is_narrow else made


def cap_cells(cap: Row, row: Row) -> list[str]:
    """Word one candidate's figures under a cap."""
    users = row["most_users"]
    return [
        f"{row['candidate']}, {row['precision']}",
        f"{cap['cap_tokens']:,}" if cap["cap_tokens"] else "none",
        f"{row['tokens_per_s']:.0f}",
        "-".join(f"{x:.0f}" for x in row["range_tokens_per_s"]),
        "-" if users is None else f"{users}",
        f"{row['growth_bytes'] / 1e6:,.0f}",
    ]


def _groups(result: Row) -> Iterator[Row]:
    for point in result["points"]:
        yield from point["groups"]


def _fine(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def point_tables(result: Row) -> list[Table]:
    """Lay out a table for each point (each group of one)."""
    made = []
    for group in _groups(result):
        heads = [*_COLUMNS[:3], *_COLUMNS[4:-1], f"{reference_of(group) or 'ours'}\nis"]
        table = _table(title_of(group), heads)
        for row in _fine(group["rows"]):
            table.add_row(*cells(row, reference_of(group), is_narrow=True))
        made.append(table)
    return made


def cap_table(result: Row) -> Table | None:
    """Lay out the throughput under memory caps, best first; None if it was not measured."""
    capped = result["capped"]
    if not capped["caps"]:
        return None
    title = (
        f"{capped['num_requests']} requests x ({capped['prompt']:,} + {capped['new_tokens']:,} "
        f"tokens) under a cap of K and V, C = {capped['num_slots']}"
    )
    table = _table(title, _CAP_COLUMNS)
    for cap in capped["caps"]:
        for row in sorted(_fine(cap["rows"]), key=lambda r: -r["tokens_per_s"]):
            table.add_row(*cap_cells(cap, row))
        table.add_section()
    return table


def _table(title: str, heads: list[str] | tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, title=title, title_justify="left")
    for n, head in enumerate(heads):
        table.add_column(head, justify="right" if n else "left", no_wrap=True)
    return table


def bench_notes(result: Row) -> list[str]:
    """Say what the tables cannot: who is missing or failed, equal tokens, the scores' share."""
    notes = [f"{row['candidate']}: {row['reason']}" for row in result["absent"]]
    notes += _equality(result)
    for group in _groups(result):
        where = _where(group)
        for row in group["rows"]:
            if row["status"] != "ok":
                notes.append(f"{where}: {row['candidate']} {row['status']}: {row['reason']}")
            elif "upkeep_share" in row:
                share, low, high = row["upkeep_share"]
                notes.append(
                    f"{where}: the scores' upkeep takes {share:.1%} of a step of "
                    f"{row['candidate']} ({low:.1%} to {high:.1%}), measured by switching it off"
                )
        disturbed = [r["candidate"] for r in _fine(group["rows"]) if r["prefill_taken"] > DISTURBED]
        if disturbed:
            notes.append(f"{where}: others took the cores in prefill of {', '.join(disturbed)}")
    for cap in result["capped"]["caps"]:
        notes += _cap_notes(cap)
    fine = (row for group in _groups(result) for row in _fine(group["rows"]) if row["note"])
    notes += [f"{row['candidate']}: {row['note']}" for row in fine]
    return list(dict.fromkeys(notes))


def _where(group: Row) -> str:
    return f"batch {group['batch']}, {group['context']:,} tokens, C {group['num_slots']:,}"


def _equality(result: Row) -> Iterator[str]:
    """Say of every full fp32 cache whether it gave transformers' greedy tokens, where not first."""
    equal: dict[str, int] = {}
    for group in _groups(result):
        for row in _fine(group["rows"]):
            name = row["candidate"]
            if not row.get("must_equal") or name == EXACT:
                continue
            if row["tokens_equal"] == row["tokens_of"]:
                equal[name] = equal.get(name, 0) + 1
            else:
                yield (
                    f"{_where(group)}: greedy tokens of {name} DIFFER from those of {EXACT} at "
                    f"token {row['tokens_equal'] + 1} of {row['tokens_of']}"
                )
    if equal:
        counts = ", ".join(f"{name} ({n})" for name, n in equal.items())
        yield f"greedy tokens equal those of {EXACT} (at so many points): {counts}"


def _cap_notes(cap: Row) -> Iterator[str]:
    limit = f"cap {cap['cap_tokens'] or 'none'}"
    for row in cap["rows"]:
        if row["status"] != "ok":
            yield f"{limit}: {row['candidate']} failed: {row['reason']}"
    disturbed = [row["candidate"] for row in _fine(cap["rows"]) if row["taken"] > DISTURBED]
    if disturbed:
        yield f"{limit}: others took the cores in the turn of {', '.join(disturbed)}"


def markdown(result: Row) -> str:
    """Write the tables and notes as Markdown."""
    host = result["host"]
    parts = [
        f"# kvmmu bench: {result['model']}",
        f"{host['cpu']}, {host['threads']} threads, torch {host['torch']}; policy "
        f"{result['policy']}. Medians of alternated rounds; x limit: step time over (weights "
        "+ K and V that a step must read) at the read bandwidth measured in the same rounds.",
        tables_markdown(result),
    ]
    notes = bench_notes(result)
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def tables_markdown(result: Row) -> str:
    """Write the tables alone, a heading each."""
    parts: list[str] = []
    for group in _groups(result):
        heads = [*_COLUMNS[:-1], f"{reference_of(group) or 'ours'} is"]
        rows = [cells(row, reference_of(group)) for row in _fine(group["rows"])]
        parts += [f"## {title_of(group)}", _markdown_table(heads, rows)]
    caps = [cap_cells(cap, row) for cap in result["capped"]["caps"] for row in _fine(cap["rows"])]
    if caps:
        table = cap_table(result)
        parts += [f"## {table.title if table else ''}", _markdown_table(_CAP_COLUMNS, caps)]
    return "\n\n".join(parts)


def _markdown_table(heads: list[str] | tuple[str, ...], rows: list[list[str]]) -> str:
    names = [head.replace("-\n", "").replace("\n", " ") for head in heads]
    lines = [names, ["--"] + ["--:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_bench(result: Row, folder: Path) -> list[Path]:
    """Write bench.md and the pictures; returns the files."""
    from kvmmu.report.bench_plots import plot_caps, plot_points

    table = folder / "bench.md"
    table.write_text(markdown(result))
    return [table, *plot_points(result, folder), *plot_caps(result, folder)]
