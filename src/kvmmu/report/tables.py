"""The demonstration's figures as a table of 80 columns."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

__all__ = ["TASK_TITLES", "bullets", "demo_table", "titles_of"]

TASK_TITLES = {
    "hot_set": "hot set",
    "question_seen": "question seen",
    "late_query": "late query",
}


def titles_of(tasks: list[str]) -> list[str]:
    """Word the names of tasks."""
    return [TASK_TITLES.get(task, task.replace("_", " ")) for task in tasks]


def demo_table(results: dict[str, Any]) -> Table:
    """Lay out one row a cache: answers right (totals in the head), perplexity, bytes, speed."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("cache", no_wrap=True)
    table.add_column("slots", justify="right", no_wrap=True)
    for title, task in zip(titles_of(results["tasks"]), results["tasks"], strict=True):
        total = results["caches"][0]["answers"][task]["total"]
        head = title.replace(" ", "\n") + f"\nof {total}"
        table.add_column(head, justify="right", no_wrap=True)
    for title in ("ppl", "KV KiB\na row", "peak\nMiB", "tok/s"):
        table.add_column(title, justify="right", no_wrap=True)
    last = None
    for row in results["caches"]:
        if last not in (None, row["compression"]):
            table.add_section()
        last = row["compression"]
        answers = (row["answers"][task] for task in results["tasks"])
        table.add_row(
            row["label"],
            f"{row['num_slots']}",
            *(f"{made['right']}" for made in answers),
            f"{row['perplexity']:.1f}",
            f"{row['kv_bytes'] / 1024:,.0f}",
            f"{row['peak_bytes'] / 2**20:,.1f}",
            f"{row['tokens_per_s']:,.0f}",
        )
    return table


def bullets(lines: list[str], *, style: str = "") -> Table:
    """Lay out sentences as a list that wraps behind its marks."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("-", line, style=style)
    return table
