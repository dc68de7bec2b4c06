"""Is Triton's fused step the reference's? In the interpreter's process, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_steps import RULES, SPEC, check, copy, interpreted, lanes_of, tokens_for

from kvmmu.kernels import dispatch, fused_reference
from kvmmu.kernels.step import StepSpec

pytest.importorskip("triton")


@pytest.fixture(params=[1, 3], ids=["whole", "split"])
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Slots whole and in at most three parts; 16 slots in every tile."""
    from kvmmu.kernels.triton import fused

    fused._plan.cache_clear()
    monkeypatch.setattr(fused, "choose_splits", lambda *_: request.param)
    monkeypatch.setattr(fused, "block_rows", lambda *_: 16)
    monkeypatch.setattr(fused, "_SCORE_TILE", 1)
    monkeypatch.setattr(fused, "_CHOOSE_TILE", 16)
    yield request.param
    fused._plan.cache_clear()


@interpreted
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("per_layer", [False, True], ids=["per head", "per layer"])
def test_step_is_the_reference_step(rule, per_layer, splits, seed):
    check(lanes_of(seed, slots=37), replace(SPEC, rule=rule, per_layer=per_layer), seed=seed)


@interpreted
@pytest.mark.parametrize("rule", ["mass", "age"])
@pytest.mark.parametrize("horizon", [1, 5, 40])
def test_step_within_a_horizon_is_the_reference_step(rule, horizon, splits, seed):
    check(lanes_of(seed, slots=37), replace(SPEC, rule=RULES[rule], horizon=horizon), seed=seed)


@interpreted
@pytest.mark.parametrize(
    ("group", "slots", "dim"), [(1, 1, 8), (2, 16, 20), (8, 17, 16), (5, 48, 40)]
)
def test_any_shape_of_heads_and_slots_is_right(group, slots, dim, splits, seed):
    state = lanes_of(seed, slots=slots, dim=dim, batch=2)
    check(state, SPEC, lanes=(1, 0), seed=seed, group=group)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_near_and_count_in_float32(dtype, splits, seed):
    atol = 2**-6  # p and the output are rounded to the slots' dtype; values lie within 4
    check(lanes_of(seed, slots=37, dtype=dtype), SPEC, seed=seed, atol=atol)


@interpreted
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    slots=st.integers(1, 40),
    lanes=st.lists(st.integers(0, 3), unique=True, max_size=4),
    rule=st.sampled_from(list(RULES)),
    per_layer=st.booleans(),
    window=st.integers(0, 20),
    horizon=st.sampled_from([None, 1, 7]),
)
def test_any_step_is_the_reference_step(seed, slots, lanes, rule, per_layer, window, horizon):
    spec = StepSpec(RULES[rule], 0.4, 2, window, per_layer, horizon)
    check(lanes_of(seed, slots=slots, heads=1 + seed % 2), spec, (*lanes, -1), seed=seed)


@interpreted
@pytest.mark.parametrize("per_layer", [False, True], ids=["per head", "per layer"])
def test_refresh_is_the_reference_refresh(per_layer, splits, seed):
    from kvmmu.kernels.triton import refresh

    ours = lanes_of(seed, slots=37, heads=3)
    ours.victims.fill_(99)
    theirs = copy(ours)
    lanes = torch.tensor([3, -1, 0, 1], dtype=torch.int32)
    spec = replace(SPEC, per_layer=per_layer)
    refresh(lanes, ours, spec)
    fused_reference.refresh(lanes, theirs, spec)
    assert torch.equal(ours.victims, theirs.victims)
    assert bool((ours.victims[2] == 99).all())  # not named


@interpreted
def test_of_equals_the_lowest_slot_leaves(splits, seed):
    from kvmmu.kernels.triton import refresh

    state = lanes_of(seed, slots=48)
    state.positions[3] = torch.arange(10, 58).roll(9)  # no sink, window at slots [6, 9)
    for first in (0, 5, 9, 16, 31, 47):
        state.scores[3] = 1.0
        state.scores[3, :, first:] = 0.5
        refresh(torch.tensor([3], dtype=torch.int32), state, SPEC)
        assert state.victims[3].tolist() == [first, first]


@interpreted
def test_a_score_that_is_no_number_does_not_leave(splits, seed):
    from kvmmu.kernels.triton import refresh

    state = lanes_of(seed, slots=37)
    state.scores[3] = torch.nan
    theirs, lane = copy(state), torch.tensor([3], dtype=torch.int32)
    for scored in (None, 30):  # all of them, then all but one
        if scored is not None:
            state.scores[3, :, scored] = theirs.scores[3, :, scored] = 5.0
            state.positions[3, :, scored] = theirs.positions[3, :, scored] = 50
        refresh(lane, state, SPEC)
        fused_reference.refresh(lane, theirs, SPEC)
        assert torch.equal(state.victims, theirs.victims)


@interpreted
def test_ages_are_exact_where_float32_is_not(splits, seed):
    from kvmmu.kernels.triton import refresh

    state = lanes_of(seed, slots=37)
    state.positions[3] = 2**25 + 37 - torch.arange(37)
    state.num_seen[3] = 2**25 + 38
    refresh(torch.tensor([3], dtype=torch.int32), state, replace(SPEC, rule=RULES["age"]))
    assert state.victims[3].tolist() == [36, 36]


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, on NaN
@pytest.mark.parametrize("per_layer", [False, True], ids=["per head", "per layer"])
def test_a_row_has_the_same_bits_whoever_is_beside_it(per_layer, splits, seed):
    spec = replace(SPEC, per_layer=per_layer)
    crowd = lanes_of(seed, slots=37)
    crowd.keys.nan_to_num_(0)
    crowd.values.nan_to_num_(0)
    fused_reference.refresh(torch.arange(4, dtype=torch.int32), crowd, spec)
    alone = copy(crowd)
    tokens = tokens_for(seed, crowd, (0, 2, 3), 3)
    for x in tokens[:3]:
        x[0] = torch.nan  # the first row's request has failed
    results = []
    for state, rows in ((crowd, slice(0, 3)), (alone, slice(1, 2))):
        row = [x[rows] for x in tokens]
        out = torch.empty(row[0].shape)
        dispatch.resolve_fused("triton", "cpu").step(*row, state, spec, out)
        results.append(out[1 if state is crowd else 0])
    assert torch.equal(*results)
    for f in fields(crowd):
        assert torch.equal(getattr(crowd, f.name)[2], getattr(alone, f.name)[2]), f.name
    assert bool(((crowd.victims >= 0) & (crowd.victims < 37)).all())  # the failed row's too


@interpreted
def test_a_row_without_a_lane_writes_nothing_and_gets_zeros(splits, seed):
    from kvmmu.kernels.triton import step

    state = lanes_of(seed)
    before, places = copy(state), [getattr(state, f.name).data_ptr() for f in fields(state)]
    tokens = tokens_for(seed, state, (-1, -1), 2)
    out = torch.full((2, 4, 8), 5.0, dtype=torch.float64)
    step(*tokens, state, SPEC, out)
    assert bool((out == 0).all())
    for f, place in zip(fields(state), places):
        pair = (getattr(s, f.name).nan_to_num(7.0) for s in (state, before))
        assert torch.equal(*pair), f.name
        assert getattr(state, f.name).data_ptr() == place
    none = tokens_for(seed, state, (), 2)
    step(*none, state, SPEC, out[:0])  # no rows at all


@interpreted
def test_scratch_is_allocated_once(splits, seed):
    from kvmmu.kernels.triton import launch

    check(lanes_of(seed), SPEC, seed=seed)
    made = launch._scratch.cache_info().misses
    check(lanes_of(seed), SPEC, seed=seed, steps=2)
    assert launch._scratch.cache_info().misses == made
    cpu = torch.device("cpu")
    assert launch.scratch("x", 900, cpu) is launch.scratch("x", 1000, cpu)
    assert launch.scratch("x", 1025, cpu).numel() == 2048


@interpreted
def test_what_the_step_would_read_wrongly_is_refused(seed):
    from kvmmu.kernels.triton import step

    state = lanes_of(seed)
    q, k, v, *rows = tokens_for(seed, state, (0, 1), 3)
    with pytest.raises(ValueError, match=r"k must have the slots' dtype torch.float32, got torch"):
        step(q, k.half(), v, *rows, state, SPEC, q.clone())
    with pytest.raises(ValueError, match="q must be dense in its last dimension, got "):
        step(q.repeat_interleave(2, -1)[..., ::2], k, v, *rows, state, SPEC, q.clone())
