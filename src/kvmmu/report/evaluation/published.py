"""Published benchmarks: every setting's score on a data set, whatever the full cache's is."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from kvmmu.report.evaluation.bootstrap import draw_ratios, draw_weights
from kvmmu.report.evaluation.cells import score_interval
from kvmmu.report.evaluation.pairs import choose_sizes, share_of
from kvmmu.report.evaluation.results import PUBLISHED, Cell, Results, Setting

__all__ = ["published_rows", "samples_file"]

Line = dict[str, Any]


def published_rows(results: Results) -> list[dict[str, Any]]:
    """Lay out one row a data set, setting and compression.

    score and its interval are None where another tool judges: `samples` is the file it reads.
    perplexity is that of what follows a prompt, by document; None where text was written.
    """
    chosen: dict[tuple[Cell, Setting, float], Line] = {}
    for line in choose_sizes(results.of("answers")):
        if line["mode"] == PUBLISHED:  # the documents are the same at every seed: one is told
            place = Cell.of(line), Setting.of(line), float(line["compression"])
            chosen.setdefault(place, line)
    return [
        {
            "task": cell.task,
            "mode": cell.mode,
            "params": json.loads(cell.params),
            "label": setting.label,
            "granularity": setting.granularity,
            "compression": compression,
            "num_tokens": line["num_tokens"],
            "num_documents": _num_documents(line),
            **_score(cell, line),
            "perplexity": _perplexity(line),
            "samples": samples_file(line) if line.get("samples") else None,
        }
        for (cell, setting, compression), line in sorted(chosen.items(), key=lambda item: item[0])
    ]


def _num_documents(line: Line) -> int:
    """Count the documents: judged here, or by another tool."""
    return len(line["rows"]) + len(line.get("samples") or [])


def _score(cell: Cell, line: Line) -> dict[str, Any]:
    if not line["rows"]:
        return {"score": None, "score_interval": None}
    rows = np.asarray(line["rows"], dtype=np.float64).reshape(-1, 2)
    weights = draw_weights(json.dumps(cell.__dict__, sort_keys=True), len(rows))
    span = score_interval(rows, draw_ratios(rows, weights))
    return {"score": share_of(rows), "score_interval": span}


def _perplexity(line: Line) -> float | None:
    """Return exp of the mean negative log likelihood of a document; None if none was taken."""
    nats = line.get("log_likelihoods") or []
    if not nats:
        return None
    loss = -sum(nats) / len(nats)
    return math.exp(loss) if loss < 700 else math.inf


def samples_file(line: Line) -> str:
    """Name the file that kvmmu eval writes a line's samples to, within the output folder.

    The number of documents is in it: another --size in the same folder is another file.
    """
    cache = f"{line['label']}-{line['compression']:g}x-{line.get('granularity')}"
    name = f"{line['task']}-{len(line['samples'])}-{cache}"
    return "samples/" + re.sub(r"[^\w.=-]+", "_", name) + ".jsonl"
