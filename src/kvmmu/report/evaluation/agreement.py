"""The agreement of integer scores with fp32 scores, over whom to evict."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from kvmmu.report.evaluation.names import task_name
from kvmmu.report.evaluation.results import Results, Setting
from kvmmu.trace.agreement import VictimAgreement

__all__ = ["agreement_rows", "agreement_table"]


def agreement_rows(results: Results) -> list[dict[str, Any]]:
    """List each setting, compression and text, seeds pooled; rates lie in [0, 1]."""
    groups: dict[tuple[Setting, float, str, int], list[VictimAgreement]] = defaultdict(list)
    for line in results.of("agreement"):
        key = (Setting.of(line), float(line["compression"]), line["text"], line["num_tokens"])
        groups[key].append(VictimAgreement.from_json(line["victims"]))
    rows = []
    for (setting, compression, text, num_tokens), parts in sorted(groups.items()):
        made = VictimAgreement.pooled(parts).to_json()
        del made["ranks"]  # as long as the cache; the results file has it
        row = {"label": setting.label, "granularity": setting.granularity, "text": text}
        rows.append(row | {"compression": compression, "num_tokens": num_tokens} | made)
    return rows


def agreement_table(
    rows: list[dict[str, Any]],
) -> tuple[str, list[str], list[list[tuple[str, Any]]]]:
    """Lay out title, head and rows of (text, value); the first columns suit a terminal."""
    head = ["setting", "cache", "text", "victims", "same, %", "or tied, %", "by a tie, %",
            "mean rank", "99 % rank", "attention lost more, %", "lost in chunks",
            "same in chunks, %"]  # fmt: skip
    body = [
        [
            (row["name"], None),
            (f"1/{row['compression']:g}", row["compression"]),
            (f"{task_name(row['text'])} {row['num_tokens']:,}", None),
            (f"{row['evictions']:,}", row["evictions"]),
            *(_percent(row[name], 2) for name in ("rate", "rate_or_tied", "tie_share")),
            ("–" if row["mean_rank"] is None else f"{row['mean_rank']:.3f}", row["mean_rank"]),
            ("–" if row["p99_rank"] is None else str(row["p99_rank"]), row["p99_rank"]),
            _percent(row["lost_more"], 4),
            (f"{row['chunk_evictions']:,}", row["chunk_evictions"]),
            _percent(row["chunk_rate"], 2),
        ]
        for row in rows
    ]
    return "Victims of integer scores that fp32 scores would have chosen", head, body


def _percent(share: float | None, digits: int) -> tuple[str, float | None]:
    return ("–", None) if share is None else (f"{100 * share:.{digits}f}", share)
