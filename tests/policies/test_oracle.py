"""Does every policy choose as a second, plain KV-MMU says? Slots exact, outputs to 1e-5."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmu_driver import SCALE, Text, call, make_mmu, make_text
from mmu_oracle import Oracle, Rule

from kvmmu.policies.base import POLICIES, Policy
from kvmmu.policies.h2o import H2O
from kvmmu.policies.keydiff import KeyDiff
from kvmmu.policies.novelty import Novelty
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV
from kvmmu.policies.streaming_llm import StreamingLLM
from kvmmu.policies.tova import TOVA

CASES: dict[str, tuple[Policy, Rule, dict[str, Any] | None]] = {
    "h2o": (H2O(), Rule("h2o"), None),
    "rce": (RCE(normalize="age"), Rule("rce"), None),
    "rce-sum": (RCE(statistic="mass"), Rule("rce", normalize="none"), None),
    "rce-decay": (RCE(decay=0.8, normalize="age"), Rule("rce", decay=0.8), None),
    "rce-sum-decay": (
        RCE(decay=0.9, statistic="mass"),
        Rule("rce", decay=0.9, normalize="none"),
        None,
    ),
    "rce-max": (
        RCE(decay=0.9, normalize="none", statistic="max"),
        Rule("rce", decay=0.9, normalize="none", statistic="max"),
        None,
    ),
    "rce-max-value-norm": (
        RCE(decay=1.0, statistic="max", value_norm=True),
        Rule("rce", normalize="none", statistic="max", value_norm=True),
        None,
    ),
    "rce-window": (RCE(window_queries=8, normalize="age"), Rule("rce", window=8), None),
    "rce-sum-window": (
        RCE(window_queries=14, normalize="none"),
        Rule("rce", window=14, normalize="none"),
        None,
    ),
    "rce-value-norm": (
        RCE(decay=0.8, normalize="age", value_norm=True),
        Rule("rce", decay=0.8, value_norm=True),
        None,
    ),
    "streaming_llm": (StreamingLLM(), Rule("streaming_llm"), None),
    "tova": (TOVA(), Rule("tova"), None),
    "keydiff": (KeyDiff(), Rule("keydiff"), None),
    "novelty": (Novelty(), Rule("novelty", **asdict(Novelty())), None),
    "novelty-s2": (
        Novelty(weight=0.35, decay=0.97, grace=8),
        Rule("novelty", weight=0.35, decay=0.97, grace=8, pool=2),
        None,
    ),
    "novelty-grace": (
        Novelty(weight=5.0, decay=0.8, grace=2, pool=1),
        Rule("novelty", weight=5.0, decay=0.8, grace=2, pool=1),
        None,
    ),
    "novelty-alone": (
        Novelty(weight=2.0, decay=1.0, grace=1, pool=0),
        Rule("novelty", weight=2.0, decay=1.0, grace=1, pool=0),
        None,
    ),
    "snapkv": (
        SnapKV(then=RCE(normalize="age"), observation_window=3),
        Rule("rce"),
        {"votes": 3, "kernel": 5, "pooling": "avg"},
    ),
    "snapkv-h2o": (
        SnapKV(then="h2o", observation_window=4, kernel_size=1),
        Rule("h2o"),
        {"votes": 4, "kernel": 1, "pooling": "avg"},
    ),
}


def compare(name: str, text: Text, calls: list[int], **options: Any) -> bool:
    """Feed both and compare after each call; return False once a choice was too close."""
    policy, rule, selector = CASES[name]
    mmu = make_mmu(policy, text, **options)
    spec = mmu.spec
    batch, heads = text.k.shape[:2]
    oracles = [
        Oracle(
            rule,
            heads=heads,
            num_slots=spec.num_slots,
            num_sinks=spec.num_sinks,
            window=spec.window,
            chunk_size=spec.chunk_size,
            granularity=spec.granularity,
            horizon=spec.horizon,
            scale=SCALE,
            selector=selector,
        )
        for _ in range(batch)
    ]
    a = 0
    for size in [*calls, *[1] * text.length]:
        b = min(a + size, text.length)
        if a == b:
            break
        out = call(mmu, text, a, b)
        part = text.cut(a, b)
        for row, oracle in enumerate(oracles):
            q, k, v = (x[row].double().numpy() for x in (part.q, part.k, part.v))
            pads = int((~part.valid[row]).sum())
            want = oracle.feed(q, k, v, column=a, pads=pads)
            if not oracle.clear:
                return False
            assert mmu.table.positions[row].tolist() == oracle.positions(), (name, row, a, b)
            got = out[row, :, pads:].double()
            assert float((got - torch.from_numpy(want)).abs().max() if want.size else 0) < 1e-5
        a = b
    return True


def test_every_deterministic_policy_has_a_case():
    covered = {policy.name for policy, _, _ in CASES.values()}
    assert covered == set(POLICIES.names()) - {"random"}


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("name", CASES)
def test_choices_are_the_rules(name, granularity, seed):
    calls = [13, 1, 4, 1, 1, 9, 6]
    num_clear = 0
    for i in range(3):
        text = make_text(seed + i, 50, lengths=[50, 38, 3])
        num_clear += compare(
            name, text, calls, num_slots=9, num_sinks=1, window=3, granularity=granularity
        )
    assert num_clear >= 1


@pytest.mark.parametrize("name", CASES)
def test_choices_are_the_rules_token_by_token(name, seed):
    num_clear = 0
    for i in range(3):
        num_clear += compare(name, make_text(seed + i, 60), [], num_slots=8)
    assert num_clear >= 1


@pytest.mark.parametrize("name", CASES)
def test_choices_are_the_rules_in_a_sliding_window_layer(name, seed):
    text = make_text(seed, 40, lengths=[40, 29])
    compare(name, text, [17, 1, 6], num_slots=9, horizon=13, num_sinks=2, window=2)


@settings(max_examples=60)
@given(data=st.data())
def test_any_text_any_calls_give_the_rules_choices(data):
    draw = data.draw
    name = draw(st.sampled_from(sorted(CASES)))
    sinks, window = draw(st.integers(0, 3)), draw(st.integers(0, 4))
    slots = sinks + max(window, 1) + draw(st.integers(0, 8))
    if CASES[name][2]:  # an explicit observation window must fit
        slots = max(slots, sinks + 4)
    length = draw(st.integers(1, 40))
    text = make_text(
        draw(st.integers(0, 2**31)),
        length,
        lengths=draw(st.lists(st.integers(0, length), min_size=1, max_size=2)),
        heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from([1, 2, 8])),
        dim=4,
    )
    is_clear = compare(
        name,
        text,
        draw(st.lists(st.integers(1, 20), max_size=6)),
        num_slots=slots,
        num_sinks=sinks,
        window=window,
        chunk_size=draw(st.integers(1, 12)),
        granularity=draw(st.sampled_from(["head", "layer"])),
        horizon=draw(st.sampled_from([None, slots, slots + 3])),
    )
    assume(is_clear)
