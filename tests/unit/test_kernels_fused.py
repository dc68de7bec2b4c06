"""The fused step: every kernel against the reference, and the reference against the KV-MMU."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.codecs.plain import Plain
from kvmmu.kernels import fused_reference, native
from kvmmu.kernels.dispatch import resolve, resolve_fused
from kvmmu.kernels.step import LaneState, StepRule, StepSpec
from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.streaming_llm import StreamingLLM
from kvmmu.policies.tova import TOVA
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.spec import LayerSpec

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

MASS = StepRule("mass")
FAST = [(3, F32, F32), (1, BF16, BF16)]
SLOW = [(1, F32, F32), (2, BF16, F32), (4, F16, F16), (5, F32, F32), (7, F32, F32), (8, BF16, BF16)]
TYPES = [*FAST, *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)]
"""Queries of a KV head, type of K and V, type of the rows: each is a kernel to compile."""

ATOL = {F32: 2e-5, BF16: 2e-2, F16: 2e-3}
"""Of the output, by its type: its rounding, for values of order one."""


@dataclass(frozen=True)
class Case:
    """One fused step to be made."""

    state: LaneState
    spec: StepSpec
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    lanes: torch.Tensor
    at: torch.Tensor


def empty_state(B, Hkv, C, D, dtype=F32):
    return LaneState(
        keys=torch.zeros(B, Hkv, C, D, dtype=dtype),
        values=torch.zeros(B, Hkv, C, D, dtype=dtype),
        positions=torch.full((B, Hkv, C), -1, dtype=torch.int32),
        scores=torch.zeros(B, Hkv, C),
        num_seen=torch.zeros(B, dtype=torch.int32),
        victims=torch.zeros(B, Hkv, dtype=torch.int32),
    )


def clone(state):
    return LaneState(**{f.name: getattr(state, f.name).clone() for f in fields(state)})


def filled_state(B, Hkv, C, D, dtype, is_shared, g):
    """Lanes empty, partly filled with holes, or full; heads hold different tokens if they may."""
    state = empty_state(B, Hkv, C, D, dtype)
    state.keys.normal_(generator=g)
    state.values.normal_(generator=g)
    state.scores.uniform_(0, 3, generator=g)
    for b in range(B):
        seen = int(torch.randint(0, 3 * C + 1, (), generator=g))
        state.num_seen[b] = seen
        held = min(seen, int(torch.randint(0, C + 1, (), generator=g)) if b % 2 else C)
        for h in range(Hkv):
            if h and is_shared:
                state.positions[b, h] = state.positions[b, 0]
                continue
            slots = torch.randperm(C, generator=g)[:held]
            state.positions[b, h, slots] = torch.randperm(seen, generator=g)[:held].int()
    state.scores[state.positions < 0] = 0
    return state


@st.composite
def cases(draw, group, kv, act):
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    B, Hkv, C = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 70))
    D = draw(st.sampled_from([4, 16, 24, 64, 80]))
    statistic = draw(st.sampled_from(["mass", "max", "newest", None]))
    rank = "age" if statistic is None else draw(st.sampled_from(["score", "score", "age"]))
    rule = StepRule(
        statistic, draw(st.sampled_from([1.0, 0.984375, 0.5])), draw(st.integers(0, 5)), rank
    )
    window = draw(st.integers(0, C))
    spec = StepSpec(
        rule,
        scale=D**-0.5,
        num_sinks=draw(st.integers(0, C - max(window, 1))) if window < C else 0,
        window=window,
        per_layer=draw(st.booleans()),
        horizon=draw(st.sampled_from([None, 1, C, 2 * C])),
    )
    state = filled_state(B, Hkv, C, D, kv, spec.per_layer, g)
    fused_reference.refresh(torch.arange(B, dtype=torch.int32), state, spec)
    order = draw(st.permutations(range(B)))
    lanes = torch.tensor([b if draw(st.booleans()) else -1 for b in order] + [-1])
    at = torch.where(lanes >= 0, state.num_seen[lanes.clamp(min=0)], -1).int()
    N = len(lanes)
    heads = (Hkv * group, Hkv, Hkv)
    rows = tuple(torch.randn(N, H, D, generator=g).to(act) for H in heads)
    return Case(state, spec, rows, lanes.int(), at)


def run(kernel, case, state):
    """Make the step; q, k and v are slices of one buffer, as a fused projection leaves them."""
    q, k, v = torch.cat(case.rows, dim=1).split([x.shape[1] for x in case.rows], dim=1)
    out = torch.full_like(case.rows[0], torch.nan)
    kernel.step(q, k, v, case.lanes, case.at, state, case.spec, out)
    return out


def assert_same_victims(found, wanted, spec):
    """Victims may differ only where the two slots' scores are the same within rounding."""
    scores = wanted.scores.sum(1, keepdim=True).expand_as(wanted.scores)
    scores = scores if spec.per_layer else wanted.scores
    one, other = (scores.gather(2, state.victims.long()[..., None]) for state in (found, wanted))
    differs = (found.victims != wanted.victims)[..., None]
    assert not differs.any() or spec.rule.rank == "score"
    torch.testing.assert_close(one[differs], other[differs], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("group", "kv", "act"), TYPES)
def test_native_step_equals_the_reference(group, kv, act):
    @settings(max_examples=60, deadline=None)
    @given(cases(group, kv, act))
    def check(case):
        found, wanted = clone(case.state), clone(case.state)
        out, right = run(native, case, found), run(fused_reference, case, wanted)
        torch.testing.assert_close(out, right, atol=ATOL[act], rtol=ATOL[act])
        torch.testing.assert_close(found.scores, wanted.scores, atol=2e-5, rtol=2e-5)
        for name in ("positions", "num_seen", "keys", "values"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        assert_same_victims(found, wanted, case.spec)
        found = replace(wanted, victims=torch.full_like(wanted.victims, -7))
        native.refresh(case.lanes, found, case.spec)
        named = case.lanes[case.lanes >= 0].long()
        wanted.victims[[b for b in range(len(wanted.victims)) if b not in named]] = -7
        fused_reference.refresh(case.lanes, wanted, case.spec)
        assert torch.equal(found.victims, wanted.victims)

    check()


POLICIES = {
    H2O(): StepRule("mass"),
    RCE(): StepRule("max", decay=1 - 2**-6),
    RCE(statistic="mass", decay=0.9): StepRule("mass", decay=0.9),
    TOVA(): StepRule("newest"),
    StreamingLLM(): StepRule(None, rank="age"),
}


@pytest.mark.parametrize("kernel", [fused_reference, native], ids=["reference", "native"])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("horizon", [None, 7])
def test_chain_of_steps_equals_the_kvmmu_s_decode(kernel, policy, granularity, horizon):
    torch.manual_seed(0)
    B, Hkv, group, C, D = 2, 2, 3, 11, 16
    layer = LayerSpec(0, 1, C, Hkv, group, D, 2, 3, 4, granularity, horizon)
    mmu = KVMMU(layer, policy, Plain(), resolve(), batch=B, dtype=F32, device=torch.device("cpu"))
    state = empty_state(B, Hkv, C, D)
    spec = StepSpec(POLICIES[policy], D**-0.5, 2, 3, granularity == "layer", horizon)
    lanes = torch.arange(B, dtype=torch.int32)
    for t in range(3 * C):
        q, k, v = (torch.randn(B, h, D) * 2 for h in (Hkv * group, Hkv, Hkv))
        right = mmu.forward(q[:, :, None], k[:, :, None], v[:, :, None], None, scale=D**-0.5)
        out = torch.empty_like(q)
        kernel.step(q, k, v, lanes, torch.full((B,), t, dtype=torch.int32), state, spec, out)
        assert torch.equal(state.positions, mmu.table.positions), t
        torch.testing.assert_close(out, right[:, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.scores, mmu.table.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(state.keys, mmu.keys.read())


def full_case(B=5, Hkv=2, group=3, C=37, D=24, *, rule=MASS, per_layer=False):
    g = torch.Generator().manual_seed(5)
    state = empty_state(B, Hkv, C, D)
    for x in (state.keys, state.values, state.scores):
        x.normal_(generator=g)
    state.scores.abs_()
    state.positions[:] = torch.arange(C, dtype=torch.int32)
    state.num_seen.fill_(C)
    spec = StepSpec(rule, D**-0.5, 2, 4, per_layer)
    lanes = torch.arange(B, dtype=torch.int32)
    native.refresh(lanes, state, spec)
    rows = tuple(torch.randn(B, H, D, generator=g) for H in (Hkv * group, Hkv, Hkv))
    return Case(state, spec, rows, lanes, state.num_seen.clone())


def cut(case, order):
    index = torch.tensor(order)
    rows = tuple(x[index] for x in case.rows)
    return replace(case, rows=rows, lanes=case.lanes[index], at=case.at[index])


@pytest.mark.parametrize("per_layer", [False, True])
def test_row_has_the_same_bits_whoever_is_beside_it_and_on_any_threads(per_layer):
    case = full_case(per_layer=per_layer)
    whole = clone(case.state)
    out = run(native, case, whole)
    for order in ([3], [4, 0, 3], [3, 1, 2, 0, 4]):
        for threads in (1, 2):
            native.set_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            part = clone(case.state)
            found = run(native, cut(case, order), part)
            native.set_threads(None)
            assert torch.equal(found, out[order])
            for f in fields(part):
                assert torch.equal(getattr(part, f.name)[order], getattr(whole, f.name)[order])


@pytest.mark.parametrize("kernel", [fused_reference, native], ids=["reference", "native"])
@pytest.mark.parametrize("statistic", ["mass", "max", "newest"])
def test_nan_stays_in_its_row_and_its_victim_exists(kernel, statistic):
    case = full_case(rule=StepRule(statistic, decay=0.9))
    good, bad = clone(case.state), clone(case.state)
    out = run(kernel, case, good)
    poisoned = copy.deepcopy(case)
    poisoned.rows[0][1, 0] = torch.nan
    poisoned.rows[1][2] = torch.inf
    found = run(kernel, poisoned, bad)
    clean = [0, 3, 4]
    assert torch.equal(found[clean], out[clean])
    assert torch.equal(bad.scores[clean], good.scores[clean])
    assert found[1].isnan().any()
    C = bad.scores.shape[2]
    for _ in range(3):  # and further steps neither fail nor write elsewhere
        assert ((bad.victims >= 0) & (bad.victims < C)).all()
        poisoned = replace(poisoned, at=poisoned.at + 1)
        run(kernel, poisoned, bad)
    assert bad.scores[clean].isfinite().all()


@pytest.mark.parametrize("kernel", [fused_reference, native], ids=["reference", "native"])
def test_row_without_a_lane_writes_nothing_and_gets_zeros(kernel):
    case = full_case()
    state = clone(case.state)
    out = run(kernel, replace(case, lanes=torch.full_like(case.lanes, -1)), state)
    assert torch.equal(out, torch.zeros_like(out))
    for f in fields(state):
        assert torch.equal(getattr(state, f.name), getattr(case.state, f.name))


@pytest.mark.parametrize("kernel", [fused_reference, native], ids=["reference", "native"])
def test_what_an_empty_slot_holds_counts_for_nothing(kernel):
    case = full_case()
    for x in (case.state.keys, case.state.values):
        x[:, :, 5:9] = torch.nan
    case.state.positions[:, :, 5:9] = -1
    case.state.victims.fill_(5)
    out = run(kernel, case, state := clone(case.state))
    assert out.isfinite().all()
    assert state.scores.isfinite().all()
    assert (state.victims == 6).all()


def test_native_step_names_what_it_cannot_take():
    case = full_case()
    with pytest.raises(IndexError, match="lanes must be < 5"):
        run(native, replace(case, lanes=case.lanes + 1), clone(case.state))
    with pytest.raises(IndexError, match="victims in"):
        run(native, case, replace(case.state, victims=case.state.victims + 37))
    with pytest.raises(TypeError, match="q must be"):
        run(native, replace(case, rows=tuple(x.double() for x in case.rows)), case.state)
    with pytest.raises(ValueError, match="lanes must be a contiguous int32"):
        run(native, replace(case, lanes=case.lanes.long()), case.state)
    with pytest.raises(ValueError, match="number of threads must be in"):
        native.set_threads(0)


def test_fused_kernels_are_chosen_by_name_and_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert resolve_fused("native", "cpu") is native
    assert resolve_fused(None, torch.device("cpu")) is native
    assert resolve_fused("reference", "meta") is fused_reference
    for name, device, message in (
        ("natve", "cpu", "did you mean 'native'"),
        ("native", "cuda", "'native' must be cpu"),
        ("triton", "cpu", "'triton' must be cuda"),
        (None, "meta", "must be cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_fused(name, device)
