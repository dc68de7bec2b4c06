"""The report: words and table follow the figures, pictures are drawn from them."""

from __future__ import annotations

import copy

import pytest
from rich.console import Console

from kvmmu.evals.demo import TASKS
from kvmmu.report.plots import plot_accuracy
from kvmmu.report.tables import demo_table
from kvmmu.report.words import binomial_error, demo_notes, demo_words


def row(label, policy, compression, right, *, peak=2**20, chunk=16):
    """Make one row of results with the same answers on every task."""
    return {
        "label": label,
        "policy": policy,
        "compression": compression,
        "num_slots": 512 // compression,
        "num_tokens": 512,
        "chunk_size": chunk,
        "answers": {task: {"right": right, "total": 100} for task in TASKS},
        "perplexity": 150.0 + compression,
        "kv_bytes": 2**21 // compression,
        "peak_bytes": peak,
        "tokens_per_s": 100.0 * compression,
    }


RESULTS = {
    "model": "a-model",
    "num_parameters": 10**6,
    "dtype": "float32",
    "num_tokens": 512,
    "num_pages": 8,
    "seed": 0,
    "host": {"threads": 2, "torch": "2"},
    "tasks": list(TASKS),
    "caches": [
        row("full StaticCache", None, 1, 96),
        row("rce 1/4", "rce", 4, 60),
        row("snapkv 1/4", "snapkv", 4, 90, chunk=512, peak=2**22),
        row("rce 1/8", "rce", 8, 20),
        row("snapkv 1/8", "snapkv", 8, 40, chunk=512, peak=2**22),
    ],
    "more_caches": [row("rce 1/2", "rce", 2, 90)],
}


def test_words_state_where_eviction_loses():
    text = " ".join(demo_words(RESULTS))
    lost = "rce and snapkv on hot set, question seen and late query."
    assert f"Eviction loses at 1/8, beyond two standard errors: {lost}" in text
    assert "Late questions are what rce and snapkv cannot serve" in text
    assert "Where questions come late take a full cache or more slots." in text
    assert "Late query: full cache 96%; snapkv 40%, rce 20%" in text
    assert "8.0 times less" in text
    assert "snapkv reads the whole prompt" in text


def test_words_follow_the_figures():
    better = copy.deepcopy(RESULTS)
    better["caches"][3]["answers"]["hot_set"]["right"] = 97
    for cache in better["caches"]:
        cache["tokens_per_s"] = 100.0 / cache["compression"]
    text = " ".join(demo_words(better))
    assert "rce on question seen and late query; snapkv on hot set" in text
    assert "Hot set: full cache 96%; rce 97%, snapkv 40%" in text
    assert "None decodes faster" in text


def test_words_name_the_policy_that_loses_nothing():
    one = copy.deepcopy(RESULTS)
    one["caches"][4]["answers"] = {task: {"right": 95, "total": 100} for task in TASKS}
    text = " ".join(demo_words(one))
    assert "No such loss: snapkv." in text
    assert "Late questions are what rce cannot serve" in text
    assert "Where questions come late take snapkv, a full cache or more slots." in text


def test_words_claim_no_loss_where_none_shows():
    same = copy.deepcopy(RESULTS)
    for cache in same["caches"]:
        cache["answers"] = {task: {"right": 95, "total": 100} for task in TASKS}
    text = " ".join(demo_words(same))
    assert "No loss beyond two standard errors" in text
    assert "Late questions" not in text


def test_error_bar_is_never_zero():
    assert binomial_error({"right": 100, "total": 100}) > 0
    assert binomial_error({"right": 50, "total": 100}) == pytest.approx(0.049, abs=1e-3)


def test_table_fits_80_columns():
    console = Console(width=80)
    with console.capture() as captured:
        console.print(demo_table(RESULTS))
    text = captured.get()
    assert "…" not in text
    for line in ("full StaticCache", "snapkv 1/8", "of 100", "2,048"):
        assert line in text
    assert len(demo_notes(RESULTS)) >= 3


def test_accuracy_is_drawn(tmp_path):
    plot_accuracy(RESULTS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
