"""Are the Triton kernels right? Against the references, in Triton's interpreter, on the CPU.

The interpreter must be chosen before triton is imported, so the tests marked `interpreted` run in
a process of their own, started by the first tests here. What only a compiler sees (types, shapes
of products, shared memory) is tested by compiling every kernel for a GPU that need not be there:
test_kernels_triton_compile.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvmmu.kernels import dispatch, fused_reference
from kvmmu.kernels.contract import PLANES, AttendSpec
from kvmmu.kernels.step import LaneState, StepRule, StepSpec

pytest.importorskip("triton")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = Path(__file__)
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the interpreter's process")


def run_interpreted(*args: str) -> None:
    """Run tests in a process of their own, and show what they print if they fail."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *args],
        env={**env, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_fused_step_holds_in_the_interpreter():
    run_interpreted(str(HERE))


@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_contract_of_all_kernels_holds_in_the_interpreter():
    run_interpreted(str(HERE.with_name("test_kernels.py")), "-k", "triton")


@pytest.mark.slow
@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_any_chunk_is_right_in_the_interpreter():
    run_interpreted(str(HERE.with_name("test_kernels.py")), "-k", "any_shape")


@pytest.mark.skipif(IS_INTERPRETED, reason="runs where nothing is interpreted")
def test_tensors_on_a_cpu_are_not_for_triton():
    assert "triton" not in dispatch.available()
    assert "triton" not in dispatch.available(torch.device("cpu"))


@pytest.mark.skipif(IS_INTERPRETED or torch.cuda.is_available(), reason="the kernels run here")
def test_without_a_device_the_lack_is_named():
    assert "triton" not in dispatch.available("cuda")
    with pytest.raises(ValueError, match="need a CUDA device, and torch finds none"):
        dispatch.resolve("triton")


# The fused step -------------------------------------------------------------------------------


def lanes_of(
    seed: int,
    *,
    batch: int = 4,
    heads: int = 2,
    slots: int = 21,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> LaneState:
    """Lanes from empty to long past full, scores and places at random, NaN where no token is."""
    g = torch.Generator().manual_seed(seed)
    num_seen = torch.tensor([[0, max(slots - 2, 0), slots, 3 * slots][b % 4] for b in range(batch)])
    positions = torch.full((batch, heads, slots), -1, dtype=torch.int32)
    for b, seen in enumerate(num_seen.tolist()):
        for h in range(heads):
            held = torch.randperm(seen, generator=g)[:slots].int()
            where = torch.randperm(slots, generator=g)[: len(held)]
            positions[b, h, where] = held
    k, v = torch.randn(2, batch, heads, slots, dim, generator=g).to(dtype)
    k[positions < 0], v[positions < 0] = torch.nan, torch.nan
    scores = torch.rand(batch, heads, slots, generator=g) * (positions >= 0)
    return LaneState(
        k, v, positions, scores, num_seen.int(), torch.zeros(batch, heads, dtype=torch.int32)
    )


def copy(state: LaneState) -> LaneState:
    return LaneState(**{f.name: getattr(state, f.name).clone() for f in fields(state)})


def tokens_for(
    seed: int, state: LaneState, lanes: tuple[int, ...], group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw q, k, v of one token a row, strides of q and v other than of k; lanes and at."""
    g = torch.Generator().manual_seed(seed)
    _, heads, _, dim = state.keys.shape
    qkv = torch.randn(len(lanes), heads * (group + 2), dim, generator=g).to(state.keys.dtype)
    q, k, v = qkv.split([heads * group, heads, heads], dim=1)
    rows = torch.tensor(lanes, dtype=torch.int32)
    at = torch.where(rows < 0, 7, state.num_seen[rows.clamp(min=0).long()]).int()
    return q, k.contiguous(), v, rows, at


def check(
    state: LaneState,
    spec: StepSpec,
    lanes: tuple[int, ...] = (2, -1, 0, 3),
    *,
    seed: int,
    group: int = 3,
    steps: int = 1,
    atol: float = 2e-6,
) -> None:
    """Run steps in both kernels, each from the reference's state, and compare all they change."""
    ours = dispatch.resolve_fused("triton", "cpu")
    fused_reference.refresh(torch.arange(state.keys.shape[0], dtype=torch.int32), state, spec)
    for i in range(steps):
        theirs = copy(state)
        tokens = tokens_for(seed + i, state, lanes, group)
        out, want = (torch.full_like(tokens[0], 9.0) for _ in "ab")
        ours.step(*tokens, theirs, spec, out)
        fused_reference.step(*tokens, state, spec, want)
        assert float((out.float() - want.float()).abs().max()) < atol
        assert float((theirs.scores - state.scores).abs().max()) < 2e-6
        for name in ("positions", "num_seen"):
            assert torch.equal(getattr(theirs, name), getattr(state, name)), name
        for name in ("keys", "values"):
            pair = (getattr(s, name).nan_to_num(77.0) for s in (theirs, state))
            assert torch.equal(*pair), name
        again = copy(theirs)  # near scores may round to another order: judge by its own
        live = torch.tensor([b for b in lanes if b >= 0], dtype=torch.int32)
        fused_reference.refresh(live, again, spec)
        assert torch.equal(theirs.victims, again.victims)


RULES = {
    "mass": StepRule("mass"),
    "decayed mass": StepRule("mass", decay=0.75, grace=3),
    "max": StepRule("max", decay=0.875, grace=1),
    "newest": StepRule("newest"),
    "age": StepRule(None, rank="age"),
    "score kept": StepRule(None),
    "mass by age": StepRule("mass", rank="age"),
}
SPEC = StepSpec(RULES["mass"], scale=0.4, num_sinks=2, window=3)


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


# A chunk's attention, where the contract tests of all kernels do not look -------------------------


@interpreted
def test_attend_reads_any_strides_and_values_of_another_width(seed):
    from kvmmu.kernels import reference
    from kvmmu.kernels.triton import attend

    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 7, 6, 20, generator=g).transpose(1, 2)  # [B,Hq,Q,D]
    k = torch.randn(2, 20, 3, 37, generator=g).permute(0, 2, 3, 1)
    v = torch.randn(3, 2, 37, 24, generator=g).transpose(0, 1)
    keys = torch.arange(37).expand(2, 3, -1).int()
    queries = torch.arange(30, 37).expand(2, -1).int()
    args = (q, k, v, keys, queries, torch.rand(7, generator=g).expand(2, -1))
    spec = AttendSpec(0.3, PLANES, grace=2)
    for ours, want in zip(
        attend(*args, spec=spec, last_weights=args[-1]),
        reference.attend(*args, spec=spec, last_weights=args[-1]),
    ):
        assert ours.shape == want.shape
        assert float((ours - want).abs().max()) < 2e-6


@interpreted
def test_attend_in_blocks_is_right(seed, monkeypatch):
    from kvmmu.kernels import reference
    from kvmmu.kernels.triton import attend, prefill

    monkeypatch.setattr(prefill, "block_rows", lambda *_: 16)  # many blocks of queries and keys
    g = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(1, 4, 41, 16, generator=g), torch.randn(2, 1, 2, 75, 16, generator=g)
    keys = torch.randperm(75, generator=g).expand(1, 2, -1).int()
    queries = torch.arange(34, 75)[None].int()
    args = (q, k, v, keys, queries, torch.rand(1, 41, generator=g))
    last = (queries > 70).float()
    spec = AttendSpec(0.3, PLANES, horizon=60)
    pairs = zip(
        attend(*args, spec=spec, last_weights=last),
        reference.attend(*args, spec=spec, last_weights=last),
    )
    for ours, want in pairs:
        assert float((ours - want).abs().max()) < 4e-6


@interpreted
def test_empty_slots_may_hold_anything(seed):
    from kvmmu.kernels.triton import attend

    g = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(1, 4, 3, 16, generator=g), torch.randn(2, 1, 2, 20, 16, generator=g)
    keys = torch.arange(20).expand(1, 2, -1).int().clone()
    keys[:, :, 5:9] = -1
    queries = torch.arange(17, 20)[None].int()
    rest = (keys, queries, torch.ones(1, 3))
    first = attend(q, k, v, *rest, spec=AttendSpec(0.3))
    k[:, :, 5:9], v[:, :, 5:9] = torch.nan, torch.nan
    second = attend(q, k, v, *rest, spec=AttendSpec(0.3))
    assert all(torch.equal(*pair) for pair in zip(first, second))


@interpreted
def test_what_attend_cannot_do_is_refused(seed):
    from kvmmu.kernels.triton import attend

    q = torch.zeros(1, 2, 3, 4)
    at = torch.zeros(1, 3, dtype=torch.int32)
    args = (q, q, q, at[:, None].expand(-1, 2, -1), at, at.float())
    with pytest.raises(ValueError, match=r"plane must be one of .*, got 'most'"):
        attend(*args, spec=AttendSpec(1.0, ("most",)))
    with pytest.raises(ValueError, match="last_weights must be given for the plane 'last'"):
        attend(*args, spec=AttendSpec(1.0, ("last",)))
    with pytest.raises(ValueError, match=r"q, k and v must have one dtype, got torch.float16"):
        attend(q.half(), *args[1:], spec=AttendSpec(1.0))


# Shapes ---------------------------------------------------------------------------------------


def test_slots_are_split_only_for_idle_multiprocessors():
    from kvmmu.kernels.triton.launch import choose_splits

    assert choose_splits(132, 4096, 132) == 1
    assert choose_splits(8, 4096, 132) == 32  # of 128 slots
    assert choose_splits(8, 512, 132) == 4
    assert choose_splits(100, 4096, 132) == 2
    assert choose_splits(8, 100, 132) == 1
    assert choose_splits(1, 1, 1) == 1
