"""An evaluation as tables of texts, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvmmu.report.evaluation.agreement import agreement_table
from kvmmu.report.evaluation.names import (
    at,
    data_set_name,
    family_name,
    find,
    percent,
    span,
    task_name,
    with_params,
)
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.words import headline_words, method_notes

__all__ = [
    "Grid",
    "agreement_grid",
    "grid_markdown",
    "grids",
    "headline_grid",
    "markdown",
    "published_grid",
    "share",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table of texts: the first column names the row; values sort where a text would not."""

    title: str
    head: list[str]
    rows: list[list[str]]
    values: list[list[float | None]] = field(default_factory=list)


def _grid(title: str, head: Sequence[str], rows: Sequence[Sequence[tuple[str, Any]]]) -> Grid:
    texts = [[text for text, _ in row] for row in rows]
    return Grid(title, list(head), texts, [[value for _, value in row] for row in rows])


def share(row: Row) -> tuple[str, float | None]:
    """Write a kept share with its interval; a star marks what is not measured in full."""
    if not row:
        return "–", None
    some = row.get("num_families", 0) < row.get("num_of_families", 0)
    some = some or row.get("num_cells", 0) < row.get("num_of_cells", 0)
    return f"{percent(row['kept'])} ({span(row['kept_interval'])}){'*' * some}", row["kept"]


def _names(made: Row) -> list[str]:
    return [s["name"] for s in made["settings"] if s["label"] != FULL]


def headline_grid(made: Row) -> Grid:
    """Lay out what each setting keeps at each compression, mean of all tasks."""
    rows = [
        [(name, None)]
        + [share(find(made["headline"], name=name, compression=c)) for c in made["compressions"]]
        for name in _names(made)
        if find(made["headline"], name=name)
    ]
    head = ["setting", *(at(c) for c in made["compressions"])]
    return _grid("Accuracy kept, % of the full cache's above chance (95 % interval)", head, rows)


def _part_grid(made: Row, part: str, title: str) -> Grid:
    """Lay out the means of modes or capabilities at the focus."""
    rows = [r for r in made["headline"] if r["compression"] == made["focus"]]
    parts = sorted({name for row in rows for name in row[part]})
    body = [
        [(row["name"], None), *(share(row[part].get(name, {})) for name in parts)] for row in rows
    ]
    return _grid(f"{title} at {at(made['focus'])}, %", ["setting", *parts], body)


def family_grid(made: Row, compression: float) -> Grid:
    """Lay out what each setting keeps of each task and mode at one compression."""
    rows = [r for r in made["families"] if r["compression"] == compression and r["label"] != FULL]
    names = [name for name in _names(made) if find(rows, name=name)]
    families = sorted({(r["mode"], r["task"]): r for r in rows}.items())
    body: list[list[tuple[str, Any]]] = []
    for (mode, task), first in families:
        own = [find(rows, task=task, mode=mode, name=name) for name in names]
        full = (percent(first["full_score"]), first["full_score"])
        chance = (percent(first["chance"]), first["chance"])
        body.append([(family_name(first), None), full, chance, *map(share, own)])
    title = f"Accuracy kept at {at(compression)} by task (mode), %"
    return _grid(title, ["task (mode)", "full score", "chance", *names], body)


def page_grid(made: Row) -> Grid:
    """Lay out perplexity over the full cache's."""
    texts = sorted({(row["text"], row["num_tokens"]) for row in made["perplexity"]})
    full = find(made["settings"], label=FULL).get("name", FULL)
    head, body = ["setting"], []
    for text, num_tokens in texts:
        ppl = find(made["perplexity"], text=text, num_tokens=num_tokens, name=full)
        known = f" (full {ppl['perplexity']:.1f})" if ppl else ""
        head += [
            f"{task_name(text)}, {num_tokens} tokens{known}, {at(c)}" for c in made["compressions"]
        ]
    for name in _names(made):
        cells = [
            _ratio(find(made["perplexity"], text=t, num_tokens=n, name=name, compression=c))
            for t, n in texts
            for c in made["compressions"]
        ]
        if any(value is not None for _, value in cells):
            body.append([(name, None), *cells])
    return _grid("Perplexity / the full cache's (95 % interval)", head, body)


def _ratio(row: Row) -> tuple[str, float | None]:
    if not row:
        return "–", None
    ends = row["ratio_interval"]
    how = f" ({ends[0]:.3f}–{ends[1]:.3f})" if ends else ""
    return f"{row['ratio']:.3f}{how}", row["ratio"]


def cost_grid(rows: Sequence[Row], which: str) -> Grid:
    """Lay out costs, one row a setting and compression."""
    head = ["setting", "cache", "tokens", "C", "T", "peak tokens", "KV KiB", "KV / full",
            "ops / slot", "decode / StaticCache", "quartiles", "timed: batch x tokens"]  # fmt: skip
    body = []
    for row in rows:
        ends, kv = row["ratio_quartiles"], row["kv_bytes"]
        body.append(
            [
                (row["name"], None),
                (f"1/{row['compression']:g}", row["compression"]),
                *(_number(row[name]) for name in ("num_tokens", "num_slots", "chunk_size")),
                _number(row["peak_tokens"]),
                _number(kv / 1024 if kv else None, ",.0f"),
                _number(row["kv_ratio"], ".3f"),
                _number(row["ops_per_slot"], "g"),
                _number(row["ratio_to_static"], ".2f"),
                (f"{ends[0]:.2f}–{ends[1]:.2f}" if ends else "–", ends[0] if ends else None),
                _timed(row),
            ]
        )
    return _grid(f"Costs {which}, of the longest text", head, body)


def _timed(row: Row) -> tuple[str, float | None]:
    """Tell what the decode speed was measured on: it need not be the row's own text."""
    length = row["speed_num_tokens"]
    return (f"{row['batch']} x {length:,}", length) if length else ("–", None)


def _number(value: float | None, form: str = ",") -> tuple[str, float | None]:
    return ("–", None) if value is None else (format(value, form), value)


def published_grid(made: Row) -> Grid:
    """Lay out the published benchmarks, the full cache's scores included."""
    head = ["data set", "setting", "cache", "documents", "score, % (95 % interval)", "perplexity",
            "samples"]  # fmt: skip
    body = [
        [
            (data_set_name(row), None),
            (row["name"], None),
            (f"1/{row['compression']:g}", row["compression"]),
            _number(row["num_documents"]),
            (_score(row), row["score"]),
            _number(row["perplexity"], ".2f"),
            (row["samples"] or "–", None),
        ]
        for row in sorted(made["published"], key=data_set_name)
    ]
    return _grid("Published benchmarks", head, body)


def _score(row: Row) -> str:
    if row["score"] is None:
        return "to be judged" if row["samples"] else "–"
    return f"{percent(row['score'])} ({span(row['score_interval'])})"


def agreement_grid(made: Row) -> Grid:
    """Lay out how far integer scores agree with fp32 scores; no rows without integer scores."""
    return _grid(*agreement_table(made.get("agreement", [])))


def skip_grid(made: Row) -> Grid:
    """Lay out what could not be measured, and why."""
    body = [
        [
            (with_params(row), None),
            (row["reason"], None),
            (percent(row["full_score"]), row["full_score"]),
            (percent(row["floor"]), row["floor"]),
        ]
        for row in made["not_measurable"]
    ]
    return _grid("Not measurable", ["task", "reason", "full score", "floor"], body)


def grids(made: Row) -> dict[str, Grid]:
    """Lay out all tables that have rows, by name."""
    every = {"headline": headline_grid(made)}
    if made["focus"] is not None:
        every |= {
            "modes": _part_grid(made, "by_mode", "Accuracy kept by mode"),
            "capabilities": _part_grid(made, "by_capability", "Accuracy kept by capability"),
            "families": family_grid(made, made["focus"]),
        }
        rest = [c for c in made["compressions"] if c != made["focus"]]
        every |= {f"families_{c:g}": family_grid(made, c) for c in rest}
    costs = [r for r in made["costs"] if r["label"] == FULL or r["compression"] == made["focus"]]
    if made["focus"] is not None:
        every["costs"] = cost_grid(costs, f"at {at(made['focus'])}")
    every |= {
        "published": published_grid(made),
        "perplexity": page_grid(made),
        "agreement": agreement_grid(made),
        "all_costs": cost_grid(made["costs"], "at every size"),
        "skipped": skip_grid(made),
    }
    return {name: grid for name, grid in every.items() if grid.rows}


def markdown(made: Row) -> str:
    """Write all tables in Markdown, the words before and the notes after them."""
    parts = [" ".join(headline_words(made))]
    for name, grid in grids(made).items():
        if name == "all_costs":
            continue
        parts.append(f"**{grid.title}**\n\n{grid_markdown(grid)}")
    parts.append("\n".join(f"- {note}" for note in method_notes(made)))
    return "\n\n".join(parts) + "\n"


def grid_markdown(grid: Grid) -> str:
    """Write one table in Markdown, without its title."""
    rows = [grid.head, ["---", *["---:"] * (len(grid.head) - 1)], *grid.rows]
    return "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
