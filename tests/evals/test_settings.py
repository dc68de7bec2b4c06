"""A setting: its label is read back as its policy, its slots and chunks are those of lm-eval."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmmu
from kvmmu import H2O, RCE, KeyDiff, SnapKV
from kvmmu.evals.lm_harness.arguments import CacheArguments
from kvmmu.evals.policy_text import parse_policies, parse_policy
from kvmmu.evals.settings import Setting
from kvmmu.policies.base import POLICIES, Policy

SCORES: dict[str, Any] = {
    "decay": st.sampled_from([None, 1.0, 0.5, 0.9, 1 - 2**-6]),
    "normalize": st.sampled_from(["none", "age"]),
    "fixed_point": st.booleans(),
    "statistic": st.sampled_from([None, "mass", "max"]),
    "window_queries": st.sampled_from([None, 8]),
    "value_norm": st.booleans(),
}


def made(kind: type[Policy], parameters: dict[str, Any]) -> Policy | None:
    """Make a policy, None where the parameters have no meaning together."""
    try:
        return kind(**parameters)
    except ValueError:
        return None


rces = st.fixed_dictionaries({}, optional=SCORES).map(lambda p: made(RCE, p))
snapkvs = st.fixed_dictionaries(
    {"then": st.one_of(rces, st.sampled_from(["h2o", "rce", KeyDiff(), H2O()]))},
    optional={"kernel_size": st.sampled_from([3, 5]), "pooling": st.sampled_from(["avg", "max"])},
).map(lambda p: None if p["then"] is None else made(SnapKV, p))


@settings(max_examples=300, deadline=None)
@given(st.one_of(rces, snapkvs).filter(lambda policy: policy is not None))
def test_label_is_read_back_as_the_policy(policy: Policy) -> None:
    label = Setting("slots", policy).policy_label
    assert parse_policy(label) == policy
    assert parse_policies(f"tova,{label} {label},h2o") == [
        POLICIES.make("tova"), policy, policy, POLICIES.make("h2o"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", POLICIES.names())
def test_default_policy_is_labelled_by_its_name(name: str) -> None:
    assert Setting("slots", name).policy_label == name
    assert parse_policy(name) == POLICIES.make(name)


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        (RCE(decay=0.99), "rce:decay=0.99"),
        (RCE(fixed_point=True), "rce:decay=1.0,fixed_point=True,statistic=mass"),
        (RCE(statistic="mass"), "rce:decay=1.0,statistic=mass"),
        (kvmmu.StreamingLLM(), "streaming_llm"),
        (SnapKV(kernel_size=7), "snapkv:kernel_size=7"),
        (SnapKV(then="keydiff"), "snapkv:then=keydiff"),
        (SnapKV(then=RCE()), "snapkv"),
        (SnapKV(then=RCE(decay=0.9), pooling="max"), "snapkv:then=(rce:decay=0.9),pooling=max"),
    ],
    ids=repr,
)
def test_label_is_the_one_of_the_results_files(policy: Policy, label: str) -> None:
    assert Setting("slots", policy).policy_label == label


def test_two_policies_have_two_labels() -> None:
    one, two = RCE(statistic="mass"), RCE(statistic="mass", decay=1 - 2**-6)
    assert Setting("slots", one).policy_label != Setting("slots", two).policy_label


@pytest.mark.parametrize("policy", [RCE(), RCE(fixed_point=True), SnapKV(), H2O()], ids=repr)
@pytest.mark.parametrize("num_tokens", [30, 1000, 9000])
def test_slots_and_chunks_are_those_of_lm_eval(policy: Policy, num_tokens: int) -> None:
    one, two = Setting("slots", policy, 4), CacheArguments(compression=4, policy=policy)
    assert one.num_slots(num_tokens) == two.slots(num_tokens)
    assert one.chunk_size(num_tokens) == two.chunk_size(num_tokens)
    assert one.call_size(num_tokens) == two.call_size(num_tokens)


def test_integers_run_with_more_than_1024_slots() -> None:
    lm = kvmmu.load("kvmmu-ref-1m")
    setting = Setting("slots", RCE(fixed_point=True), 2)
    cache = setting.make(lm.model, batch_size=1, num_tokens=4096)
    assert (cache.num_slots, cache.prefill_chunk_size) == (2048, 256)
    assert setting.call_size(4096) == 256


def test_too_few_slots_are_refused() -> None:
    setting = Setting("slots", "rce", 100)
    setting.check(600)
    with pytest.raises(ValueError, match="compression 100 of 500 tokens makes 5 slots: num_slots"):
        setting.check(500)
    Setting("static").check(2)
