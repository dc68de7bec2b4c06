"""Integer scores watched beside fp32 ones: the watch sees what the KV-MMU does, and counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmu_driver import drive, make_mmu, make_text
from tiny_models import make

from kvmmu import RCE, SlotCache, enabled
from kvmmu.evals.agreement import VictimWatch, watch
from kvmmu.evals.cases import PERPLEXITY, Case
from kvmmu.evals.cell import Cell, run_cell
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_book
from kvmmu.hf.load import load
from kvmmu.hf.record import record
from kvmmu.trace import VictimAgreement, VictimTally, agreement, read

INTEGERS = RCE(decay=1.0, fixed_point=True)


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("decay", [1.0, 1 - 2**-4])
@pytest.mark.parametrize("horizon", [None, 20])
def test_integers_that_are_followed_are_those_of_the_cache(
    granularity: str, decay: float, horizon: int | None
) -> None:
    text = make_text(7, 70, lengths=[70, 61, 3])
    text.valid[0, 50] = False  # a row that has no token at this step
    mmu = make_mmu(
        RCE(decay=decay, fixed_point=True),
        text,
        num_slots=12,
        granularity=granularity,
        horizon=horizon,
    )
    tally = VictimTally()
    seen = VictimWatch(mmu, tally)
    drive(mmu, text, [10, 15, 10])
    assert torch.equal(seen.integer_scores, mmu.table.scores)
    tables = 2 if granularity == "head" else 1
    made = tally.made("float32")
    assert made.evictions == tables * (2 * 35 - 1)  # the third row is never full
    assert made.evictions == sum(made.ranks)
    assert made.same_slot > 0.9 * made.evictions
    assert made.lost_mass >= made.least_mass > 0


def test_fp32_scores_alone_would_agree_with_themselves() -> None:
    """The fp32 side is that of a cache with fp32 scores, as long as both hold the same."""
    text = make_text(3, 40, lengths=[40, 40])
    ours = make_mmu(INTEGERS, text, num_slots=40)
    plain = make_mmu(RCE(decay=1.0, statistic="mass"), text, num_slots=40)
    seen = VictimWatch(ours, VictimTally())
    for mmu in (ours, plain):
        drive(mmu, text, [16, 3])
    torch.testing.assert_close(seen.exact_scores, plain.table.scores, rtol=0, atol=0)


def test_scores_that_are_no_integers_are_refused() -> None:
    mmu = make_mmu(RCE(), make_text(0, 4), num_slots=8)
    with pytest.raises(ValueError, match="must have integer scores, got 'rce'"):
        VictimWatch(mmu, VictimTally())


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_live_counts_are_those_of_the_trace_of_the_same_run(
    tmp_path: Path, granularity: Any
) -> None:
    model = make("llama")
    ids = torch.randint(3, 96, (2, 60), generator=torch.Generator().manual_seed(5))

    def run(follow: Any) -> None:
        parts = {"policy": INTEGERS, "granularity": granularity, "chunk_size": 8}
        cache = SlotCache.for_model(model, 16, batch_size=2, **parts)
        with enabled(model), torch.no_grad(), follow(cache):
            for a, b in [(0, 30), *((t, t + 1) for t in range(30, 60))]:
                model(ids[:, a:b], past_key_values=cache)

    tally = VictimTally()

    class Watched:
        def __init__(self, cache: SlotCache) -> None:
            watch(cache, tally)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    run(Watched)
    run(lambda cache: record(cache, tmp_path / "t", masses=True))
    live, traced = tally.made("float32"), agreement(read(tmp_path / "t"))
    assert live.weights != traced.weights
    for name in ("evictions", "num_ties", "chunk_evictions"):  # the integers' alone
        assert getattr(live, name) == getattr(traced, name) > 0 or name == "num_ties"
    assert live.lost_mass == pytest.approx(traced.lost_mass, rel=1e-3)  # words are rounded
    assert abs(live.same_slot - traced.same_slot) <= 0.05 * live.evictions
    assert abs(live.chunk_same - traced.chunk_same) <= 0.05 * live.chunk_evictions


def test_pages_of_integer_scores_come_with_their_agreement() -> None:
    lm = load("kvmmu-ref-1m")
    sources = {"frankenstein": Source.make(shipped_book()[:100_000], lm.tokenizer)}
    case = Case(PERPLEXITY, "online", 128, 64, text="frankenstein")

    def lines(policy: Any, batch_size: int) -> list[dict[str, Any]]:
        cell = Cell(case, Setting("slots", policy, 4), 0)
        return run_cell(cell, lm, sources, batch_size=batch_size)

    _, line, last = lines(INTEGERS, 1)
    assert (line["kind"], last["kind"]) == ("agreement", "pages")
    made = VictimAgreement.from_json(line["victims"])
    assert made.evictions == 2 * 32 * 4 * 2  # pages, decode steps, layers, heads
    assert np.isclose(line["victims"]["rate"], made.same_slot / made.evictions)
    assert line["victims"]["rate"] > 0.9
    assert line["key"] == f"{last['key']}|agreement"
    together = lines(INTEGERS, 64)[1]["victims"]
    assert abs(together["same_slot"] - made.same_slot) <= 2  # sums in another order
    assert [other["kind"] for other in lines("rce", 64)] == ["survivors", "pages"]
