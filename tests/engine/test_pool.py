"""Lanes of constant size: claimed and released, decoded together, filled one at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kvmmu.codecs.plain import Plain
from kvmmu.errors import CapacityError, IntegrityError
from kvmmu.kernels import dispatch, fused_reference, native
from kvmmu.policies.base import POLICIES, list_policies
from kvmmu.policies.rce import RCE
from kvmmu.slots.decode import _victims
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.pool import LanePool
from kvmmu.slots.settings import CacheOptions
from kvmmu.slots.spec import ModelShape

SCALE = 0.35
SHAPE = ModelShape(
    model_type="made_up",
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    horizons=(None, 9),
    max_positions=None,
    is_rotary=True,
    dtype=torch.float32,
    device=torch.device("cpu"),
)
FUSED = [name for name in list_policies() if POLICIES.make(name).step_rule is not None]


def settings(policy="rce", num_slots=12, **parts):
    own = {"num_sinks": 2, "window": 2, "chunk_size": 5, "granularity": "head"} | parts
    own = {"codec": "plain", "positions": "original", "kernel": None} | own
    return CacheOptions.make(
        num_slots,
        None,
        policy,
        "uniform",
        merger=None,
        allow_extrapolation=False,
        **own,
    )


def pool(policy="rce", *, num_lanes=3, shape=SHAPE, fused=None, rotary=None, **parts):
    return LanePool(
        settings(policy, **parts),
        shape,
        num_lanes=num_lanes,
        scale=SCALE,
        fused=fused,
        rotary=rotary,
    )


def alone(policy, layer, shape=SHAPE, **parts):
    """The KV-MMU of one row that a lane must equal."""
    options = settings(policy, **parts)
    return KVMMU(
        options.layer_specs(shape)[layer],
        options.policy,
        Plain(),
        dispatch.resolve(options.kernel),
        batch=1,
        dtype=shape.dtype,
        device=shape.device,
    )


def tokens(n, generator, shape=SHAPE):
    """q [n,Hq,D], k, v [n,Hkv,D]"""
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    return [torch.randn(n, h, shape.head_dim, generator=generator).to(shape.dtype) for h in heads]


def feed(mmu, q, k, v, start):
    """What KVMMU.forward makes of n tokens of one row. -> [n,Hq,D]"""
    rows = [x.transpose(0, 1)[None] for x in (q, k, v)]
    return mmu.forward(*rows, None, scale=SCALE, start=start)[0].transpose(0, 1)


def lanes_of(*lanes):
    return torch.tensor(lanes, dtype=torch.int32)


def at_of(made, layer, lanes):
    seen = made.mmus[layer].table.num_seen
    return torch.where(lanes >= 0, seen[lanes.clamp(min=0).long()], 0).int()


# ------------------------------------------------------------------------ lanes as KV-MMUs
@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("fused", ["off", None, "reference"])
@pytest.mark.parametrize("policy", list_policies())
def test_lane_holds_what_a_kv_mmu_of_its_own_would(policy, fused, granularity, generator):
    if fused == "reference" and policy not in FUSED:
        pytest.skip("this policy has no step rule")
    made = pool(policy, fused=fused, granularity=granularity)
    assert made.is_fused == (policy in FUSED and fused != "off")
    first, second = made.claim(), made.claim()
    for layer in range(SHAPE.num_layers):
        own = [alone(policy, layer, granularity=granularity) for _ in range(2)]
        seen = [0, 0]
        for lane, n in ((first, 23), (second, 1)):
            new = tokens(n, generator)
            out = made.prefill(layer, lane, *new, 0)
            torch.testing.assert_close(out, feed(own[lane], *new, 0), atol=1e-5, rtol=1e-4)
            seen[lane] = n
        for step in range(12):
            order = ([second, first], [first, -1, second], [first])[step % 3]
            lanes = lanes_of(*order)
            new = tokens(len(order), generator)
            out = made.decode(layer, *new, lanes, at_of(made, layer, lanes))
            for row, lane in enumerate(order):
                if lane < 0:
                    assert not out[row].any()
                    continue
                one = [x[row : row + 1] for x in new]
                want = feed(own[lane], *one, seen[lane])
                seen[lane] += 1
                torch.testing.assert_close(out[row : row + 1], want, atol=1e-5, rtol=1e-4)
                assert torch.equal(made.positions(layer, lane), own[lane].table.positions[0])
    made.check_integrity()


@pytest.mark.parametrize("policy", FUSED)
def test_next_victims_are_those_of_the_separate_kernels(policy, generator):
    made = pool(policy)
    lane = made.claim()
    for layer, mmu in enumerate(made.mmus):
        for n, start in ((7, 0), (1, 7), (30, 8)):
            made.prefill(layer, lane, *tokens(n, generator), start)
            want = _victims(mmu).int()
            assert torch.equal(made._fused[layer].state.victims, want)


@pytest.mark.parametrize("kernel", [None, "cpu", "native"])
def test_step_is_fused_where_asked_and_by_the_kernel_that_is_named(kernel, generator, monkeypatch):
    count = {"native": 0, "reference": 0}
    for name, module in (("native", native), ("reference", fused_reference)):

        def counted(*args, name=name, real=module.step):
            count[name] += 1
            return real(*args)

        monkeypatch.setattr(module, "step", counted)
    for fused, name in (("off", None), ("reference", "reference"), ("native", "native")):
        count |= {"native": 0, "reference": 0}
        made = pool(fused=fused, kernel=kernel)
        lane = made.claim()
        made.prefill(0, lane, *tokens(6, generator), 0)  # five and one
        lanes = lanes_of(lane)
        made.decode(0, *tokens(1, generator), lanes, at_of(made, 0, lanes))
        assert {name for name, n in count.items() if n} == ({name} if name else set())
        assert name is None or count[name] == 2


@pytest.mark.parametrize(("kernel", "fused"), [("cpu", "off"), ("native", None)])
def test_chunk_of_a_lane_is_bitwise_that_of_a_kv_mmu_of_its_own(kernel, fused, generator):
    made, own = pool(kernel=kernel, fused=fused), alone("rce", 0, kernel=kernel)
    made.claim()
    lane = made.claim()
    for start, n in ((0, 5), (5, 5), (10, 4), (14, 9)):
        new = tokens(n, generator)
        assert torch.equal(made.prefill(0, lane, *new, start), feed(own, *new, start))
    assert torch.equal(made.mmus[0].table.scores[lane], own.table.scores[0])


@examples(max_examples=40)
@given(
    group=st.sampled_from([1, 2, 8]),
    num_slots=st.integers(1, 20),
    prompt=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    policy=st.sampled_from(list_policies()),
    seed=st.integers(0, 99),
)
def test_any_shape_of_lane_keeps_its_invariants(group, num_slots, prompt, dtype, policy, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = dataclasses.replace(SHAPE, num_kv_heads=1, num_heads=group, dtype=dtype)
    parts = {"num_sinks": min(2, num_slots - 1), "window": 0, "num_slots": num_slots}
    made = pool(policy, shape=shape, fused="off", **parts)
    lane = made.claim()
    for layer in range(shape.num_layers):
        made.prefill(layer, lane, *tokens(prompt, generator, shape), 0)
        for _ in range(3):
            lanes = lanes_of(lane)
            new = tokens(1, generator, shape)
            out = made.decode(layer, *new, lanes, at_of(made, layer, lanes))
            assert out.isfinite().all()
    made.check_integrity()
    full = min(prompt + 3, num_slots)
    assert int((made.positions(0, lane) >= 0).sum()) == full * shape.num_kv_heads
    assert made.num_evicted[0, lane] == prompt + 3 - full


def test_keys_numbered_in_the_cache_need_a_rotation():
    with pytest.raises(ValueError, match="rotary positions"):
        pool(positions="in_cache", shape=dataclasses.replace(SHAPE, is_rotary=False))


# ------------------------------------------------------------------------ claim and release
def test_lanes_are_claimed_lowest_first_until_none_is_left():
    made = pool()
    assert [made.claim() for _ in range(4)] == [0, 1, 2, None]
    made.release(1)
    made.release(0)
    assert made.num_free == 2
    assert made.claim() == 0


def test_lane_that_is_not_claimed_cannot_be_released():
    made = pool()
    lane = made.claim()
    made.release(lane)
    with pytest.raises(IntegrityError, match="claimed, got 0"):
        made.release(lane)


@pytest.mark.parametrize("policy", list_policies())
def test_released_lane_leaves_nothing_to_its_next_tenant(policy, generator):
    made, fresh = pool(policy), pool(policy)
    lane, other = made.claim(), fresh.claim()
    for layer in range(SHAPE.num_layers):
        made.prefill(layer, lane, *tokens(30, generator), 0)
    for tensor in made._lane_tensors(lane).values():
        canary = torch.nan if tensor.is_floating_point() else 7
        tensor.fill_(canary)
    made.release(lane)
    assert all(torch.equal(a, b) for a, b in zip(made._tensors(), fresh._tensors()))
    lane = made.claim()
    for layer in range(SHAPE.num_layers):
        new, next_one = tokens(9, generator), tokens(1, generator)
        assert torch.equal(made.prefill(layer, lane, *new, 0), fresh.prefill(layer, other, *new, 0))
        lanes = lanes_of(lane)
        one = made.decode(layer, *next_one, lanes, at_of(made, layer, lanes))
        assert torch.equal(one, fresh.decode(layer, *next_one, lanes, at_of(fresh, layer, lanes)))


@pytest.mark.parametrize("fused", ["off", None])
def test_lane_is_bitwise_the_same_whatever_its_neighbours_hold(fused, generator):
    crowded, empty = pool(fused=fused), pool(fused=fused)
    for made in (crowded, empty):
        made.claim(), made.claim()
    crowded.prefill(0, 0, *tokens(17, generator), 0)
    prompt = tokens(8, generator)
    for made in (crowded, empty):
        made.prefill(0, 1, *prompt, 0)
    for _ in range(15):
        new = tokens(3, generator)
        both, one = lanes_of(0, 1, -1), lanes_of(-1, 1, -1)
        a = crowded.decode(0, *new, both, at_of(crowded, 0, both))
        b = empty.decode(0, *new, one, at_of(empty, 0, one))
        assert torch.equal(a[1], b[1])
    assert torch.equal(crowded.mmus[0].table.scores[1], empty.mmus[0].table.scores[1])


def test_bytes_are_those_of_the_tensors_and_never_change(generator):
    made = pool(num_lanes=2)
    slots = 12 + 9  # the second layer's window is 9
    assert made.kv_nbytes == 2 * 2 * slots * SHAPE.num_kv_heads * SHAPE.head_dim * 4
    before = made.nbytes
    lane = made.claim()
    for layer in range(SHAPE.num_layers):
        made.prefill(layer, lane, *tokens(100, generator), 0)
    assert made.nbytes == before
    assert made.workspace_nbytes > 0
    made.check_integrity()


# ------------------------------------------------------------------------ snapshots
@pytest.mark.parametrize("policy", list_policies())
def test_restored_lane_goes_on_with_the_same_bits(policy, generator):
    made, other = pool(policy), pool(policy)
    lane = made.claim()
    other.claim()
    copy = other.claim()
    for layer in range(SHAPE.num_layers):
        made.prefill(layer, lane, *tokens(21, generator), 0)
    blob = made.lane_state(lane)
    other.load_lane_state(copy, blob)
    for layer in range(SHAPE.num_layers):
        for _ in range(8):
            new = tokens(3, generator)
            rows = [lanes_of(lane, -1, -1), lanes_of(copy, -1, -1)]
            outs = [
                m.decode(layer, *new, r, at_of(m, layer, r)) for m, r in zip((made, other), rows)
            ]
            assert torch.equal(*outs)
        assert torch.equal(made.positions(layer, lane), other.positions(layer, copy))
    sizes = {sum(t.nbytes for t in state.values()) for state in (blob, made.lane_state(lane))}
    assert len(sizes) == 1


def test_state_of_another_pool_is_refused_and_changes_nothing(generator):
    made, larger = pool(), pool(num_slots=13)
    lane = made.claim()
    larger.claim()
    made.prefill(0, lane, *tokens(9, generator), 0)
    before = made.lane_state(lane)
    with pytest.raises(IntegrityError, match=r"keys.rows must be \[2, 12, 8\]"):
        made.load_lane_state(lane, larger.lane_state(0))
    with pytest.raises(IntegrityError, match="other tensors"):
        made.load_lane_state(lane, {})
    assert all(torch.equal(before[n], t) for n, t in made.lane_state(lane).items())


# ------------------------------------------------------------------------ integrity
def _filled(generator):
    made = pool()
    lane = made.claim()
    for layer in range(SHAPE.num_layers):
        made.prefill(layer, lane, *tokens(30, generator), 0)
    made.check_integrity()
    return made


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda m: m.mmus[0].table.positions[0, 0, 3:5].fill_(25), "each token once"),
        (lambda m: m.mmus[1].table.positions[0, 0].add_(1), "only tokens seen"),
        (lambda m: m.mmus[0].table.positions[0].clamp_(max=28), "each token once|newest token"),
        (lambda m: m.mmus[0].table.positions[0, 1, 5].fill_(-1), "as many tokens as were seen"),
        (lambda m: m.mmus[1].table.num_seen.add_(1), "in every layer"),
        (lambda m: m.mmus[0].table.scores[0, 0, 2].fill_(torch.nan), "finite scores"),
        (lambda m: m.mmus[0].table.scores[2, 0, 2].fill_(1), "nothing in a free lane, got scores"),
        (lambda m: m._free.pop(), "make up all 3"),
        (lambda m: m._claimed.add(1), "make up all 3"),
        (lambda m: setattr(m.mmus[0].table, "scores", m.mmus[0].table.scores.clone()), "moved"),
    ],
)
def test_integrity_check_names_what_is_broken(break_it, message, generator):
    made = _filled(generator)
    break_it(made)
    with pytest.raises(IntegrityError, match=message):
        made.check_integrity()


def test_integrity_check_misses_no_sink(generator):
    made = _filled(generator)
    positions = made.mmus[0].table.positions[0, 0]
    free = next(p for p in range(2, 29) if p not in set(positions.tolist()))
    positions[positions == 1] = free
    with pytest.raises(IntegrityError, match="its sinks"):
        made.check_integrity()


# ------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("num_lanes", [0, -1, True, 2.0])
def test_number_of_lanes_must_be_a_positive_integer(num_lanes):
    with pytest.raises(ValueError, match="num_lanes must be an integer of at least 1"):
        pool(num_lanes=num_lanes)


def test_lanes_that_do_not_fit_in_memory_are_a_capacity_error():
    with pytest.raises(CapacityError, match="lanes must fit in memory, got num_lanes=70000000"):
        pool(num_lanes=70_000_000, num_slots=4096)


def test_fused_kernel_is_refused_where_the_policy_has_no_rule():
    with pytest.raises(ValueError, match="fused must be None or 'off' with policy 'keydiff'"):
        pool("keydiff", fused="reference")


@pytest.mark.parametrize(
    "policy", [RCE(fixed_point=True), RCE(normalize="age"), RCE(window_queries=4)]
)
def test_rules_that_a_fused_step_cannot_say_are_none(policy):
    assert policy.step_rule is None
    assert RCE(value_norm=True).step_rule is None


def test_step_rules_promise_the_grace_and_decay_of_the_chunk_path():
    for name in FUSED:
        policy = POLICIES.make(name)
        rule = policy.step_rule
        assert (rule.decay, rule.grace) == (policy.query_decay, policy.grace)


def test_subclass_that_scores_in_another_way_has_no_rule_of_its_parent():
    class Least(RCE):
        name = "least"

        def priority(self, view):
            return -view.scores

    class Renamed(RCE):
        """Nothing of the rule is changed."""

    assert Least().step_rule is None
    assert Renamed().step_rule == RCE().step_rule
    assert not pool(Least()).is_fused
