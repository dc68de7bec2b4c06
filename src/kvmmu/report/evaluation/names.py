"""How tasks, modes and figures are worded, in tables and pictures alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

__all__ = [
    "MODES",
    "at",
    "data_set_name",
    "family_name",
    "find",
    "listed",
    "percent",
    "span",
    "task_name",
    "with_params",
]

TASKS = {
    "niah_single": "one needle",
    "niah_multikey": "needle among needles",
    "niah_multivalue": "needles, one key",
    "niah_multiquery": "needles, many questions",
    "babi_qa1": "bAbI, 1 fact",
    "babi_qa2": "bAbI, 2 facts",
    "babi_qa3": "bAbI, 3 facts",
    "key_value": "key and value",
    "wikitext2_test": "WikiText-2 test",
    "frankenstein": "Frankenstein",
}
MODES = {
    "late": "questions come after the context, which was read without knowing them",
    "shared": "many questions share one context, which was read without knowing them",
    "seen": "the context ends (or begins) with the question, which is then asked again",
    "online": "questions stand in the text, among what goes on",
    "published": "documents of a published benchmark, one by one, each from an empty cache",
}


def task_name(task: str) -> str:
    """Word a task or a text."""
    return TASKS.get(task, task.replace("_", " "))


def family_name(row: dict[str, Any]) -> str:
    """Word a task and its mode."""
    return f"{task_name(row['task'])} ({row['mode']})"


def with_params(row: dict[str, Any]) -> str:
    """Word a task, its mode, length and parameters."""
    params = "".join(f", {name} {json.dumps(value)}" for name, value in row["params"].items())
    length = f", {row['num_tokens']} tokens" if row["mode"] != "published" else ""
    return f"{family_name(row)}{length}{params}"


def data_set_name(row: dict[str, Any]) -> str:
    """Word a published benchmark and its data set, where it has several."""
    own = row["params"].get("data_set")
    name = task_name(row["task"])
    return f"{name}: {own}" if own not in (None, row["task"]) else name


def percent(share: float | None) -> str:
    """Write a share without its sign of percent; what is less than all never reads 100."""
    if share is None:
        return "–"
    value = 100 * share
    return f"{value:.1f}" if 99.5 <= value < 99.95 else f"{value:.0f}"


def span(ends: list[float] | None) -> str:
    """Write an interval of shares, rounded outward, without its sign of percent."""
    if not ends:
        return "–"
    low, high = math.floor(100 * ends[0] + 1e-6), math.ceil(100 * ends[1] - 1e-6)
    return f"{low}–{high}" if low >= 0 else f"{low} to {high}"


def at(compression: float) -> str:
    """Word a compression."""
    return f"{compression:g}×"


def listed(names: Iterable[str]) -> str:
    """Join names as a sentence does."""
    return " and ".join(", ".join(names).rsplit(", ", 1))


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """Return the first row that has these fields, or an empty one."""
    return next(
        (row for row in rows if all(row.get(name) == value for name, value in wanted.items())), {}
    )
