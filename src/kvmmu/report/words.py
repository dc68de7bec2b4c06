"""What the demonstration's figures say, in sentences that are reckoned from them."""

from __future__ import annotations

import math
from typing import Any

from kvmmu.report.tables import TASK_TITLES

__all__ = ["binomial_error", "demo_notes", "demo_words", "share"]


def share(made: dict[str, int]) -> float:
    """Return right / total."""
    return made["right"] / max(made["total"], 1)


def binomial_error(made: dict[str, int]) -> float:
    """Return the standard error of a share; Wilson's centre keeps it above 0 at 0 and 1."""
    n = max(made["total"], 1)
    p = (made["right"] + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


def demo_words(results: dict[str, Any]) -> list[str]:
    """Say what the table shows: bytes, answers kept, where eviction loses, speed."""
    full = results["caches"][0]
    most = max(row["compression"] for row in results["caches"])
    slots = [row for row in results["caches"] if row["compression"] == most]
    words = [_bytes(full, slots[0])]
    words += [_answers(task, full, slots) for task in results["tasks"]]
    words += _losses(results["tasks"], full, slots)
    words.append(_perplexity(full, slots))
    words.append(_speed(full, slots))
    words += _selectors(slots)
    return words


def demo_notes(results: dict[str, Any]) -> list[str]:
    """Say how the figures were taken."""
    host, N = results["host"], results["num_tokens"]
    return [
        f"{results['model']} ({results['num_parameters'] / 1e6:.1f} M parameters, "
        f"{results['dtype']}), texts of {N} tokens, {_count(host['threads'], 'thread')}, "
        f"torch {host['torch']}, seed {results['seed']}.",
        "hot set: a few facts asked again and again; question seen: the question ends the prompt "
        "and is asked again; late query: no question is known before the prompt has ended.",
        "Questions and answers are fed token by token. Answers count when every token is right.",
        f"KV: the tensors' bytes for one row. Peak: most bytes allocated beside the model "
        f"(torch's allocator), {results['num_pages']} rows. tokens/s: {results['num_pages']} rows "
        "together, median of 7 alternated rounds.",
    ]


def _bytes(full: dict[str, Any], row: dict[str, Any]) -> str:
    ratio = full["kv_bytes"] / row["kv_bytes"]
    return (
        f"With {row['num_slots']} slots the KV cache takes {row['kv_bytes'] / 1024:,.0f} KiB a row "
        f"instead of {full['kv_bytes'] / 1024:,.0f} KiB ({ratio:.1f} times less), "
        "and does not grow."
    )


def _answers(task: str, full: dict[str, Any], slots: list[dict[str, Any]]) -> str:
    """Rank the policies on one task, with the full cache's share before them."""
    ranked = sorted(slots, key=lambda row: -share(row["answers"][task]))
    parts = [f"{row['policy']} {share(row['answers'][task]):.0%}" for row in ranked]
    made = full["answers"][task]
    error = binomial_error(ranked[0]["answers"][task])
    return (
        f"{TASK_TITLES.get(task, task).capitalize()}: full cache {share(made):.0%}; "
        f"{', '.join(parts)} (standard error about {error:.0%}, {made['total']} questions)."
    )


def _loses(task: str, full: dict[str, Any], row: dict[str, Any]) -> bool:
    """Tell whether a cache is below the full one by more than two standard errors."""
    made, own = full["answers"][task], row["answers"][task]
    return share(made) - share(own) > 2 * math.hypot(binomial_error(made), binomial_error(own))


def _losses(tasks: list[str], full: dict[str, Any], slots: list[dict[str, Any]]) -> list[str]:
    """State plainly where eviction loses, policy by policy."""
    lost = {row["policy"]: [task for task in tasks if _loses(task, full, row)] for row in slots}
    at = f"1/{slots[0]['compression']:g}"
    alike: dict[str, list[str]] = {}
    for policy, names in lost.items():
        alike.setdefault(_listed([TASK_TITLES.get(t, t) for t in names]), []).append(policy)
    unharmed = alike.pop("", [])
    if not alike:
        return [f"No loss beyond two standard errors shows at {at}."]
    words = "; ".join(f"{_listed(policies)} on {names}" for names, policies in alike.items())
    words = f"Eviction loses at {at}, beyond two standard errors: {words}."
    if unharmed:
        words += f" No such loss: {_listed(unharmed)}."
    said = [words]
    if late := [policy for policy, names in lost.items() if "late_query" in names]:
        rest = [policy for policy in lost if policy not in late]
        instead = f"{_listed(rest)}, a full cache" if rest else "a full cache"
        said.append(
            f"Late questions are what {_listed(late)} cannot serve at {at}: a fact that nobody has "
            "asked for yet draws no attention, so nothing that ranks by attention or by age "
            f"knows that it will be needed. Where questions come late take {instead} or more slots."
        )
    return said


def _listed(names: list[str]) -> str:
    """Join names as a sentence does."""
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _perplexity(full: dict[str, Any], slots: list[dict[str, Any]]) -> str:
    parts = [f"{r['policy']} {r['perplexity'] / full['perplexity'] - 1:+.1%}" for r in slots]
    return (
        f"Perplexity on the book's next pages, against the full cache's {full['perplexity']:.1f}: "
        f"{', '.join(parts)}."
    )


def _speed(full: dict[str, Any], slots: list[dict[str, Any]]) -> str:
    rate = max(row["tokens_per_s"] for row in slots) / full["tokens_per_s"]
    if rate >= 1:
        return f"The fastest of them decodes {rate:.2f} times as fast as {full['label']}."
    return (
        f"None decodes faster than {full['label']} here (at best {rate:.2f} times as fast): with "
        "a model and a text this small, the cache's bytes are not what a step waits for."
    )


def _selectors(slots: list[dict[str, Any]]) -> list[str]:
    """Say where a policy saw the whole prompt before it chose, which costs memory."""
    least = min(row["peak_bytes"] for row in slots)
    return [
        f"{row['policy']} reads the whole prompt before it chooses: its peak is "
        f"{row['peak_bytes'] / 2**20:.1f} MiB, the least here {least / 2**20:.1f} MiB."
        for row in slots
        if row["chunk_size"] >= row["num_tokens"]
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
