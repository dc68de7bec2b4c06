"""What an evaluation says, in plain sentences that are reckoned from its figures."""

from __future__ import annotations

from typing import Any

from kvmmu.report.evaluation.names import (
    at,
    data_set_name,
    family_name,
    find,
    listed,
    percent,
    span,
    task_name,
)
from kvmmu.report.evaluation.results import FULL

__all__ = ["headline_words", "method_notes", "verdicts"]

Row = dict[str, Any]
NAMED = 4  # hard tasks told by name; the tables have them all


def verdicts(made: Row) -> list[Row]:
    """Judge each task and mode at the focus: free, open, lost, and the setting that keeps most.

    free: some setting's interval lies at or above method.free_at; open: none does, but one
    reaches it; lost: none reaches it.
    """
    limit, rows = made["method"]["free_at"], []
    at_focus = [row for row in made["families"] if row["compression"] == made["focus"]]
    for name in sorted({(row["task"], row["mode"]) for row in at_focus}):
        own = [r for r in at_focus if (r["task"], r["mode"]) == name and r["label"] != FULL]
        if not own:
            continue
        best = max(own, key=lambda row: (row["kept_interval"][0] >= limit, row["kept"]))
        free = [row["name"] for row in own if row["kept_interval"][0] >= limit]
        reached = any(row["kept_interval"][1] >= limit for row in own)
        verdict = "free" if free else "open" if reached else "lost"
        rows.append({"verdict": verdict, "free": free, "num_settings": len(own), **best})
    return rows


def headline_words(made: Row) -> list[str]:
    """Say where the focus's compression is nearly free and where it is not."""
    if made["focus"] is None:
        words = [_nothing(made), _unmeasurable(made), _samples(made)]
        return [sentence for sentence in words if sentence]
    judged = verdicts(made)
    words = [_first(made), _lead(made), _free(made, judged), _open(judged), _lost(judged)]
    words += [_modes(made), _perplexity(made), _incomplete(made), _samples(made)]
    return [sentence for sentence in words if sentence]


def _nothing(made: Row) -> str:
    """Say why there is no mean."""
    if any(row["label"] != FULL and row["score"] is not None for row in made["published"]):
        return "No task enters the means; the published benchmarks are listed by their scores."
    if made["not_measurable"] and not made["families"]:
        return "No task can be measured with a smaller cache."
    return "No task was measured with a smaller cache yet."


def _unmeasurable(made: Row) -> str:
    """Name the tasks that cannot be measured; their table says why of each."""
    names = list(dict.fromkeys(family_name(row) for row in made["not_measurable"]))
    if not names:
        return ""
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED + 1 else []
    named = names[:NAMED] if more else names
    reasons = listed(dict.fromkeys(row["reason"] for row in made["not_measurable"]))
    return f"Not measurable: {listed([*named, *more])} ({reasons})."


def _samples(made: Row) -> str:
    """Say which benchmarks another tool must judge, and of what."""
    names = list(dict.fromkeys(data_set_name(r) for r in made["published"] if r["samples"]))
    if not names:
        return ""
    return f"Answers that another tool must judge lie in samples/: {listed(names)}."


def _best(made: Row) -> Row:
    """Return the headline's best row at the focus among those measured on the most families."""
    rows = [r for r in made["headline"] if r["compression"] == made["focus"]]
    most = max(row["num_families"] for row in rows)
    return max((r for r in rows if r["num_families"] == most), key=lambda r: r["kept"])


def _first(made: Row) -> str:
    best, focus = _best(made), made["focus"]
    count = best["num_families"]
    num = len({r["name"] for r in made["headline"] if r["compression"] == focus})
    of = f", the most of {num} settings" if num > 1 else ""
    tasks = f"averaged over {count} pairs of task and mode" if count > 1 else "on one task"
    return (
        f"With a cache of 1/{focus:g} the size, {best['name']} keeps {percent(best['kept'])} % "
        f"({span(best['kept_interval'])} %) of what the full cache answers above chance, "
        f"{tasks}{of}."
    )


def _lead(made: Row) -> str:
    row = find(made["leaders"], compression=made["focus"])
    if not row or row["first"]["name"] != _best(made)["name"]:
        return ""
    low, high = (100 * end for end in row["gap_interval"])
    second = row["second"]["name"]
    if low > 0:
        return f"{second} follows, {100 * row['gap']:.1f} points behind ({low:.1f} to {high:.1f})."
    gap = f"{100 * row['gap']:.1f} points ({low:.1f} to {high:.1f})"
    return f"{second} cannot be told apart from it: {gap}."


def _free(made: Row, judged: list[Row]) -> str:
    limit = f"{percent(made['method']['free_at'])} %"
    parts = []
    for row in (row for row in judged if row["verdict"] == "free"):
        names = row["free"]
        more = f" and {len(names) - 3} more" if len(names) > 4 else ""
        who = ", ".join(names[:3]) + more if more else listed(names)
        if len(names) == row["num_settings"] > 1:
            who = "any setting"
        parts.append(f"{family_name(row)} with {who}")
    if not parts:
        return f"On no task is {at(made['focus'])} shown to be nearly free (at least {limit} kept)."
    return f"Nearly free at {at(made['focus'])} (at least {limit} kept): {'; '.join(parts)}."


def _open(judged: list[Row]) -> str:
    rows = [row for row in judged if row["verdict"] == "open"]
    if not rows:
        return ""
    parts = [f"{family_name(r)} ({r['name']}: {span(r['kept_interval'])} %)" for r in rows]
    return f"Too few contexts to tell: {listed(parts)}."


def _lost(judged: list[Row]) -> str:
    rows = sorted((r for r in judged if r["verdict"] == "lost"), key=lambda row: row["kept"])
    if not rows:
        return ""
    parts = [f"{family_name(r)}, at best {percent(r['kept'])} % ({r['name']})" for r in rows]
    if len(parts) > NAMED + 1:
        easiest = rows[-1]
        rest = f"{len(parts) - NAMED} more, up to {percent(easiest['kept'])} % of"
        parts = [*parts[:NAMED], f"{rest} {family_name(easiest)}"]
    return f"Not free with any setting, the hardest first: {'; '.join(parts)}."


def _modes(made: Row) -> str:
    """Compare the best of each mode, where there are several."""
    rows = [r for r in made["headline"] if r["compression"] == made["focus"]]
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        for mode, own in row["by_mode"].items():
            if mode not in best or own["kept"] > best[mode][0]:
                best[mode] = own["kept"], row["name"]
    if len(best) < 2:
        return ""
    ranked = sorted(best.items(), key=lambda item: item[1], reverse=True)
    parts = [f"{mode} {percent(kept)} % ({name})" for mode, (kept, name) in ranked]
    said = "What can be kept hangs on when the question is known; the best by mode"
    return f"{said}: {', '.join(parts)}."


def _perplexity(made: Row) -> str:
    name, parts = _best(made)["name"], []
    for row in made["perplexity"]:
        if row["name"] == name and row["compression"] == made["focus"]:
            ends = row["ratio_interval"]
            how = f" ({ends[0] - 1:+.1%} to {ends[1] - 1:+.1%})" if ends else ""
            parts.append(f"{row['ratio'] - 1:+.1%}{how} on {task_name(row['text'])}")
    return f"The perplexity of {name} changes by {listed(parts)}." if parts else ""


def _incomplete(made: Row) -> str:
    rows = [row for row in made["headline"] if row["num_families"] < row["num_of_families"]]
    names = list(dict.fromkeys(row["name"] for row in rows))
    if not names:
        return ""
    return f"Not yet measured on every task, so not to be compared: {listed(names)} (marked *)."


def method_notes(made: Row) -> list[str]:
    """Say how the figures are to be read."""
    method = made["method"]
    confidence = percent(method["confidence"])
    notes = [
        "Kept = (score - chance) / (full cache's score - chance), on the same contexts: 100 % is "
        "as good as the full cache, 0 % is copying something of the answer's form from the text at "
        "random, less is not even having that to copy. Over lengths and parameters of a task sums "
        "are divided; over tasks every task and mode weighs the same.",
        f"Intervals are {confidence} %: {method['num_draws']} paired bootstrap draws over contexts "
        "(the questions of a context stand or fall together). An "
        "interval also covers one answer lost in as many contexts as can have gone unseen (Clopper "
        "and Pearson), so that a few contexts alike do not pass for certainty.",
        f"Nearly free: the interval lies at or above {percent(method['free_at'])} %. No correction "
        "is made for looking at many tasks and settings.",
        "A task enters only where the full cache scores at least the floor, over all seeds.",
        "C: slots per layer and KV head. T: tokens of a prefill's chunk. Peak: the most tokens "
        "held at once per layer, C+T; the whole prompt where a policy reads it before it chooses.",
        "Speed: decode tokens/s over those of a full StaticCache in the same run.",
    ]
    if made["published"]:
        notes.append(
            "Published benchmarks are listed by their scores, and enter the means where the full "
            "cache scores anything. Their perplexity is that of what follows a prompt, by document."
        )
    if made.get("agreement"):
        notes.append(
            "Same victim: at every eviction of a decode step on the pages, the same policy in fp32 "
            "is asked, with the same tokens held and unrounded attention weights; the integers "
            "decide what is held. Or tied: fp32's slot had the lowest integer score too. Rank: "
            "slots with a lower fp32 score than the victim's. In chunks: of the tokens that lost, "
            "those that fp32 would have let go too."
        )
    if method["num_broken_lines"]:
        notes.append(
            f"Lines that could not be read and were left out: {method['num_broken_lines']}."
        )
    if method["num_unpaired_lines"]:
        notes.append(
            "Lines left out because the full cache was not measured on the same contexts, a seed "
            "was repeated, or the full cache was asked more of the same task: "
            f"{method['num_unpaired_lines']}."
        )
    return notes
