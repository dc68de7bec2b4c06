"""Are the Triton kernels right on a GPU? Against the references, and against themselves.

What the interpreter cannot show: threads that race, 16-bit products of the tensor cores, the
real block shapes and splits, offsets past 2**31, and a whole step as one CUDA graph.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from kvmmu.kernels import fused_reference
from kvmmu.kernels.contract import PLANES, AttendSpec
from kvmmu.kernels.step import LaneState, StepRule, StepSpec

pytestmark = pytest.mark.gpu

SPEC = StepSpec(StepRule("mass", decay=0.9), scale=0.09, num_sinks=4, window=16)
RULES = [
    SPEC.rule,
    StepRule("max", decay=0.97, grace=3),
    StepRule("newest"),
    StepRule(None, rank="age"),
]


def lanes_of(
    seed: int, lanes: int, heads: int, slots: int, dim: int, dtype: torch.dtype
) -> LaneState:
    """Lanes half full, full and long past full, on the GPU; NaN where no token is."""
    g = torch.Generator().manual_seed(seed)
    seen = torch.tensor([[slots // 2, slots, 5 * slots][b % 3] for b in range(lanes)])
    positions = torch.full((lanes, heads, slots), -1, dtype=torch.int32)
    for b in range(lanes):
        for h in range(heads):
            held = torch.randperm(int(seen[b]), generator=g)[:slots].int()
            positions[b, h, torch.randperm(slots, generator=g)[: len(held)]] = held
    k, v = torch.randn(2, lanes, heads, slots, dim, generator=g).to(dtype)
    k[positions < 0], v[positions < 0] = torch.nan, torch.nan
    state = LaneState(
        k,
        v,
        positions,
        torch.rand(lanes, heads, slots, generator=g) * (positions >= 0),
        seen.int(),
        torch.zeros(lanes, heads, dtype=torch.int32),
    )
    fused_reference.refresh(torch.arange(lanes, dtype=torch.int32), state, SPEC)
    return to(state, "cuda")


def to(state: LaneState, device: str) -> LaneState:
    """Copy every tensor, also to the device where it is."""
    return LaneState(
        **{f.name: getattr(state, f.name).to(device, copy=True) for f in fields(state)}
    )


def tokens_for(
    seed: int, state: LaneState, lanes: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    _, heads, _, dim = state.keys.shape
    qkv = torch.randn(len(lanes), heads * (group + 2), dim, generator=g).to(state.keys)
    q, k, v = qkv.split([heads * group, heads, heads], dim=1)
    return q, k, v, lanes, state.num_seen[lanes.clamp(min=0).long()].contiguous()


def check(state: LaneState, spec: StepSpec, group: int, seed: int, *, steps: int = 3) -> None:
    """Run steps on the GPU and in the reference, each from the same state."""
    from kvmmu.kernels.triton import refresh, step

    count = state.keys.shape[0]
    lanes = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).int().cuda()
    lanes[count // 2] = -1
    refresh(lanes, state, spec)
    atol = {torch.float32: 1e-5}.get(state.keys.dtype, 0.02)  # p and out are rounded to 8..11 bits
    for i in range(steps):
        tokens = tokens_for(seed + i, state, lanes, group)
        theirs, out = to(state, "cpu"), torch.full_like(tokens[0], torch.nan)
        want = torch.zeros_like(out, device="cpu")
        step(*tokens, state, spec, out)
        fused_reference.step(*(x.cpu() for x in tokens), theirs, spec, want)
        ours = to(state, "cpu")
        assert float((out.cpu().float() - want.float()).abs().max()) < atol
        assert float((ours.scores - theirs.scores).abs().max()) < 1e-4
        for name in ("keys", "values", "positions", "num_seen"):
            pair = (getattr(s, name).nan_to_num(9.0) for s in (ours, theirs))
            assert torch.equal(*pair), name
        again = to(ours, "cpu")  # near scores may round to another order: judge by its own
        fused_reference.refresh(lanes.cpu(), again, spec)
        if not spec.per_layer:
            assert torch.equal(ours.victims, again.victims)
        else:  # nor need sums over heads be added in the same order
            total = ours.scores.sum(1)
            picked = total.gather(1, ours.victims[:, :1].long())
            best = total.gather(1, again.victims[:, :1].long())
            assert float((picked - best).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("lanes", "heads", "group", "slots", "dim"),
    [
        (3, 8, 4, 512, 128),
        (3, 2, 8, 4096, 128),
        (4, 12, 1, 333, 64),
        (3, 4, 3, 100, 96),
        (64, 8, 4, 700, 128),
    ],
)  # the last has a program for every multiprocessor: slots whole; the others are split
def test_step_is_the_reference_step(dtype, lanes, heads, group, slots, dim, seed):
    check(lanes_of(seed, lanes, heads, slots, dim, dtype), SPEC, group, seed, steps=2)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("per_layer", [False, True], ids=["per head", "per layer"])
@pytest.mark.parametrize("horizon", [None, 300])
@pytest.mark.parametrize("lanes", [3, 40], ids=["split", "whole"])
def test_every_rule_is_the_reference(rule, per_layer, horizon, lanes, seed):
    spec = replace(SPEC, rule=rule, per_layer=per_layer, horizon=horizon)
    check(lanes_of(seed, lanes, 8, 400, 64, torch.bfloat16), spec, 4, seed, steps=2)


@pytest.mark.parametrize("lanes", [3, 200], ids=["split", "whole"])
def test_same_step_gives_the_same_bits_every_time(lanes, seed):
    from kvmmu.kernels.triton import step

    first = lanes_of(seed, lanes, 8, 512, 128, torch.bfloat16)
    rows = torch.arange(lanes, dtype=torch.int32, device="cuda")
    tokens = tokens_for(seed, first, rows, 4)
    results = []
    for _ in range(50):  # a race shows as a bit that differs
        state, out = to(first, "cuda"), torch.full_like(tokens[0], torch.nan)
        step(*tokens, state, SPEC, out)
        results.append((out, state))
    out, state = results[0]
    for other_out, other in results[1:]:
        assert torch.equal(out, other_out)
        for f in fields(state):
            pair = (getattr(s, f.name).nan_to_num(9.0) for s in (state, other))
            assert torch.equal(*pair), f.name


def test_lanes_past_two_to_the_31_elements_are_reached(seed):
    from kvmmu.kernels.triton import step

    B, Hkv, C, D = 600, 8, 4096, 128  # 2.5e9 elements, 5 GB each for K and V
    k, v = (torch.zeros(B, Hkv, C, D, dtype=torch.bfloat16, device="cuda") for _ in "kv")
    state = LaneState(
        k,
        v,
        torch.full((B, Hkv, C), -1, dtype=torch.int32, device="cuda"),
        torch.zeros(B, Hkv, C, device="cuda"),
        torch.zeros(B, dtype=torch.int32, device="cuda"),
        torch.full((B, Hkv), C - 1, dtype=torch.int32, device="cuda"),
    )
    lanes = torch.tensor([B - 1], dtype=torch.int32, device="cuda")
    q, new_k, new_v, _, at = tokens_for(seed, state, lanes, 4)
    out = torch.empty_like(q)
    step(q, new_k, new_v, lanes, at, state, SPEC, out)
    assert torch.equal(out, new_v.repeat_interleave(4, 1))  # the only token held
    assert torch.equal(k[-1, :, -1], new_k[0])
    assert int(k.count_nonzero()) == int(new_k.count_nonzero())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("queries", "held", "dim"), [(256, 512, 128), (1, 512, 64), (77, 130, 96)])
@pytest.mark.parametrize("is_rich", [False, True])
def test_attend_is_the_reference(dtype, queries, held, dim, is_rich, seed):
    from kvmmu.kernels import reference
    from kvmmu.kernels.triton import attend

    g = torch.Generator().manual_seed(seed)
    B, Hkv, G, N = 2, 2, 3, held + queries
    q = torch.randn(B, Hkv * G, queries, dim, generator=g).to(dtype)
    k, v = torch.randn(2, B, Hkv, N, dim, generator=g).to(dtype)
    keys = torch.cat([torch.randperm(held, generator=g), torch.arange(held, N)])
    keys = keys.expand(B, Hkv, -1).int().contiguous()
    keys[1, :, :9] = -1
    at = torch.arange(held, N).expand(B, -1).int().contiguous()
    at[1, : queries // 3] = -1
    weights = torch.rand(B, queries, generator=g) * (at >= 0)
    last = (at > N - 5).float()
    args = (q, k, v, keys, at, weights)
    sinks = torch.randn(Hkv * G, generator=g) if is_rich else None
    spec = AttendSpec(0.1, PLANES)
    if is_rich:
        spec = AttendSpec(0.1, PLANES, horizon=N // 2, softcap=5.0, grace=2)
    out, stats = attend(
        *(x.cuda() for x in args),
        spec=spec,
        last_weights=last.cuda(),
        sinks=None if sinks is None else sinks.cuda(),
    )
    want, planes = reference.attend(
        *(x.double().float() if x.is_floating_point() else x for x in args),
        spec=spec,
        last_weights=last,
        sinks=sinks,
    )
    real = (at >= 0)[:, None, :, None]
    atol = {torch.float32: 1e-5}.get(dtype, 0.02)
    assert float(((out.cpu().float() - want) * real).abs().max()) < atol
    assert float((stats.cpu() - planes).abs().max()) < 1e-4 * max(1, queries / 16)


def test_captured_step_is_the_eager_step(seed):
    from kvmmu.engine.cuda_graph import CapturedStep
    from kvmmu.kernels.triton import step

    first = [lanes_of(seed + i, 5, 2, 200, 64, torch.bfloat16) for i in range(3)]
    g = torch.Generator().manual_seed(seed)
    embed = torch.randn(50, 4, 64, generator=g).to("cuda", torch.bfloat16)

    def network(layers: list[LaneState]):
        def run(tokens: Tensor, positions: Tensor, lanes: Tensor) -> Tensor:
            x = embed[tokens]  # [N,4,64]
            for layer in layers:
                out = torch.empty_like(x)
                step(x, x[:, :2], x[:, 2:], lanes, positions, layer, SPEC, out)
                x = x + out
            return x

        return run

    eager_lanes, graph_lanes = ([to(s, "cuda") for s in first] for _ in "ab")
    eager = network(eager_lanes)
    captured = CapturedStep(network(graph_lanes), num_rows=5, device="cuda")
    for before, after in zip(first, graph_lanes):  # warm-up and capture touched nothing
        for f in fields(before):
            pair = (getattr(s, f.name).nan_to_num(9.0) for s in (before, after))
            assert torch.equal(*pair), f.name
    lanes = torch.tensor([4, 0, 2, -1, 1], dtype=torch.int32, device="cuda")
    for i in range(20):
        tokens = torch.randint(50, (5,), generator=g).cuda()
        at = eager_lanes[0].num_seen[lanes.clamp(min=0).long()].contiguous()
        want, got = eager(tokens, at, lanes), captured(tokens, at, lanes)
        assert torch.equal(got, want), i
    for ours, theirs in zip(graph_lanes, eager_lanes):
        for f in fields(ours):
            pair = (getattr(s, f.name).nan_to_num(9.0) for s in (ours, theirs))
            assert torch.equal(*pair), f.name


def test_scratch_is_not_made_in_a_capture(seed):
    from kvmmu.kernels.triton.launch import scratch

    graph = torch.cuda.CUDAGraph()
    lack = "run the step once before it is captured"
    with pytest.raises(RuntimeError, match=lack), torch.cuda.graph(graph):
        scratch("never asked for before", 12345, torch.device("cuda"))
