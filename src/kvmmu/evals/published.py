"""Published benchmarks as cases: a loader's documents, read from a folder of the user's."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from kvmmu.evals.cases import PUBLISHED, Case
from kvmmu.evals.documents import run_documents
from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.settings import Setting
from kvmmu.hf.lm import LM

__all__ = ["published_cases", "run_published"]


def published_cases(names: Iterable[str], folder: Path, size: int) -> tuple[Case, ...]:
    """Make a case of `size` documents for each data set of the named benchmarks.

    Raises ValueError for an unknown benchmark, MissingDataError for a missing file.
    """
    cases = []
    for name in names:
        data_sets = dict.fromkeys(d.task for d in LOADERS.get(name)(folder).documents())
        for data_set in data_sets:
            params = {"folder": str(folder), "data_set": data_set}
            cases.append(Case(name, PUBLISHED, 0, size, params))
    return tuple(cases)


def _documents(loader: Loader, case: Case) -> Iterable[Document]:
    own = (d for d in loader.documents() if d.task == case.params["data_set"])
    return islice(own, case.size)


def run_published(case: Case, setting: Setting, lm: LM) -> dict[str, Any]:
    """Run a case's documents one by one. Returns what a line of results adds to the setting.

    `samples` are texts that another tool must judge, as [id, text]; num_tokens is the longest
    text that a cache was made for, the same for every cache.
    """
    began = time.perf_counter()
    loader = LOADERS.get(case.task)(Path(case.params["folder"]))
    made = list(run_documents(lm, setting, _documents(loader, case), score=loader.score))
    longest = max(row.num_tokens for row in made)
    return {
        "mode": PUBLISHED,
        "capability": "published benchmark",
        "num_tokens": longest,
        "size": case.size,
        "params": {"data_set": case.params["data_set"]} if case.params["data_set"] else {},
        "num_slots": max(row.num_slots for row in made),
        "chunk_size": setting.call_size(longest),
        "peak_tokens": longest
        if setting.kind != "slots"
        else setting.num_slots(longest) + setting.call_size(longest),
        "kv_bytes": max(row.kv_bytes for row in made),
        "rows": [[row.score, 1] for row in made if row.score is not None],
        "samples": [[row.id, row.text] for row in made if row.score is None],
        "log_likelihoods": [row.log_likelihood for row in made if row.log_likelihood is not None],
        "seconds": round(time.perf_counter() - began, 2),
    }
