"""A plan of users, prefill, decode and switching in two sentences and a table of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kvmmu.report.accelerator.names import bytes_text, energy_text, three_digits, time_text

__all__ = ["plan_answer", "plan_notes", "plan_table"]

Plan = Mapping[str, Any]
NONE = "-"
COLUMNS = 80
_COLUMNS = {
    "K and V a user": "KV a\nuser",
    "users that fit": "users\nfit",
    "prefill": "prefill,\none",
    "a token of one user": "token,\nalone",
    "a token of all users": "token,\nall",
    "tokens/s of all users": "tok/s,\nall",
    "energy a token": "energy\na token",
    "switch": "switch",
}
"""Figures of a row in the table's order, by their heads."""


def plan_answer(plan: Plan) -> str:
    """Say in two sentences what constant size gives, at the longest context both caches hold."""
    pairs = _pairs(plan)
    both = [pair for pair in pairs if pair[0]["decode_s_alone"] and pair[1]["decode_s_alone"]]
    full, ours = both[-1] if both else pairs[-1]
    told = _told_costs(full, ours) if both else "The full cache of not one user fits."
    return f"{_told_users(plan, full, ours, pairs[-1])} {told}"


def _pairs(plan: Plan) -> list[tuple[Plan, Plan]]:
    rows = plan["rows"]
    return list(zip(rows[::2], rows[1::2], strict=True))


def _told_users(plan: Plan, full: Plan, ours: Plan, last: tuple[Plan, Plan]) -> str:
    slots, tokens = f"With {ours['num_slots']:,} slots", f"{ours['context']:,} tokens"
    if ours["users"] is None:
        less = full["kv_bytes_per_user"] / ours["kv_bytes_per_user"]
        return f"{slots} a user of {tokens} takes {less:.1f}x fewer bytes of K and V (simulated)."
    more = ""
    if last[1]["context"] != ours["context"]:
        count = f"{last[1]['users']:,} instead of {_count(last[0]['users'])}"
        more = f", of {last[1]['context']:,} tokens {count}"
        if last[1]["num_slots"] != ours["num_slots"]:
            more += f" (with {last[1]['num_slots']:,} slots)"
    return (
        f"{slots} {ours['users']:,} users of {tokens} fit the {bytes_text(plan['memory_bytes'])} "
        f"of {plan['memory']} beside {plan['model']} instead of {_count(full['users'])}{more} "
        "(simulated)."
    )


def _count(users: int) -> str:
    return f"{users:,}" if users else "none"


def _told_costs(full: Plan, ours: Plan) -> str:
    """Compare the other three costs."""
    parts = [
        f"reading a prompt takes {_than(ours, full, 'prefill_s')}",
        f"a token of one user {_than(ours, full, 'decode_s_alone')}",
        f"a switch of users {_than(ours, full, 'switch_s')}",
    ]
    if ours["tokens_per_s"] and full["tokens_per_s"]:
        mine, theirs = (three_digits(row["tokens_per_s"]) for row in (ours, full))
        who = f"{ours['users_timed']} users" if ours["users"] is None else "all who fit"
        parts.append(f"and {who} get {mine} tokens/s instead of {theirs}")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _than(ours: Plan, full: Plan, key: str) -> str:
    return f"{time_text(ours[key])} instead of {time_text(full[key])}"


def plan_table(plan: Plan) -> Table:
    """Lay out two rows a context, the full cache's and RCE's."""
    made = [_cells(row) for row in plan["rows"]]
    left_out = _left_out(plan)
    kept = [n for n, name in enumerate(_COLUMNS) if name not in left_out]
    heads = [list(_COLUMNS.values())[n] for n in kept]
    names = [
        " full" if row["cache"] == "full" else f" RCE {row['num_slots']:,}" for row in plan["rows"]
    ]
    # Where figures are too wide, columns move together and units wrap: no digit is ever cut.
    texts = [[*head.splitlines(), *(c[n] for c in made)] for n, head in zip(kept, heads)]
    least = [max(len(word) for text in column for word in text.split()) for column in texts]
    widths = [max(map(len, column)) for column in [names, *texts]]
    is_wide = sum(widths) + 2 * len(kept) > COLUMNS
    gap = (0, 0 if is_wide else 1, 0, 0)
    table = Table(box=SIMPLE_HEAD, padding=gap, pad_edge=False, show_edge=False)
    table.add_column("tokens,\ncache", no_wrap=True)
    for head, width in zip(heads, least, strict=True):
        table.add_column(head, justify="right", min_width=width, overflow="fold")
    for row, name, cells in zip(plan["rows"], names, made, strict=True):
        if row["cache"] == "full":
            table.add_row(f"{row['context']:,}", style="bold")
        table.add_row(name, *(cells[n] for n in kept))
    return table


def _left_out(plan: Plan) -> list[str]:
    """Name the columns that have a figure in no row."""
    columns = zip(*(_cells(row) for row in plan["rows"]), strict=True)
    return [name for name, texts in zip(_COLUMNS, columns, strict=True) if set(texts) == {NONE}]


def _cells(row: Plan) -> list[str]:
    """Write a row's figures, one for each of _COLUMNS."""
    rate = row["tokens_per_s"]
    return [
        bytes_text(row["kv_bytes_per_user"]),
        NONE if row["users"] is None else f"{row['users']:,}",
        *(_time(row[key]) for key in ("prefill_s", "decode_s_alone", "decode_s_all")),
        NONE if rate is None else three_digits(rate),
        NONE if row["energy_j_per_token"] is None else energy_text(row["energy_j_per_token"]),
        time_text(row["switch_s"]),
    ]


def _time(seconds: float | None) -> str:
    return NONE if seconds is None else time_text(seconds)


def plan_notes(plan: Plan) -> list[str]:
    """Say what a reader must know of the table, and why a figure is missing."""
    first = plan["rows"][0]
    made = [
        f"every figure is simulated ({plan['title']}); accuracy not measured",
        f"weights take {bytes_text(plan['weight_bytes'])}; a switch moves one user's cache out and "
        f"another's in at {plan['link_gbps']:g} GB/s; K and V in {first['kv_bits']} bit",
        *plan["notes"],
    ]
    capped = [r for r in plan["rows"] if r["users"] and r["users_timed"] < r["users"]]
    if capped:
        most = max(row["users_timed"] for row in capped)
        made.append(f"where more than {most} fit, 'all users' is {most} of them in one step")
    if any(row["users"] is None and row["users_timed"] for row in plan["rows"]):
        made.append(f"'all users' is {first['users_timed']}, as asked; that they fit is not known")
    left_out = _left_out(plan)
    if left_out:
        made.append(f"no row has {', '.join(left_out)}: left out of the table")
    missing: dict[str, list[str]] = {}
    for row in plan["rows"]:
        if row["reason"] and row["reason"] not in plan["notes"]:
            missing.setdefault(row["reason"], []).append(f"{row['cache']} {row['context']:,}")
    for reason, rows in missing.items():
        whose = "all rows" if len(rows) == len(plan["rows"]) else ", ".join(rows)
        made.append(f"figures missing in {whose}: {reason}")
    return made
