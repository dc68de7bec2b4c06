"""Are the kernels right? Against a float64 answer written here, and against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvmmu.kernels import cpu, dispatch
from kvmmu.kernels.contract import PLANES, AttendSpec
from kvmmu.kernels.native import chunk

KERNELS = dispatch.available()
BLOCKS = [("cpu", cpu, "PLAIN"), ("native", chunk, "_NATIVE")]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    """Every kernel that runs here."""
    return dispatch.resolve(request.param)


def problem(
    seed: int,
    *,
    batch: int = 3,
    heads: int = 2,
    group: int = 3,
    queries: int = 7,
    held: int = 9,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Held slots in any order (some empty), then new tokens, pads first in some rows."""
    g = torch.Generator().manual_seed(seed)
    num = held + queries
    key_positions = torch.full((batch, heads, num), -1, dtype=torch.int32)
    query_positions = torch.full((batch, queries), -1, dtype=torch.int32)
    for b in range(batch):
        pads = min(b * 2, queries)  # row 0 has none
        seen = held - b  # and the others some empty slots
        new = torch.arange(seen, seen + queries - pads)
        query_positions[b, pads:] = new
        for h in range(heads):
            slots = torch.randperm(held, generator=g)[:seen]
            key_positions[b, h, slots] = torch.arange(seen, dtype=torch.int32)
            key_positions[b, h, held + pads :] = new

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    real = query_positions >= 0
    later = real.flip(1).cumsum(1).flip(1) - 1
    return {
        "q": draw(batch, heads * group, queries, dim),
        "k": draw(batch, heads, num, dim),
        "v": draw(batch, heads, num, dim),
        "key_positions": key_positions,
        "query_positions": query_positions,
        "query_weights": 0.9 ** later.float() * real,
        "last_weights": (real & (later < 3)).float(),
    }


def attend(kernel: Any, given_: dict[str, Tensor], **spec: Any) -> tuple[Tensor, Tensor]:
    sinks = spec.pop("sinks", None)
    spec = {"scale": 0.4, "planes": PLANES} | spec
    return kernel.attend(**given_, spec=AttendSpec(**spec), sinks=sinks)


def answer(given_: dict[str, Tensor], **spec: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The contract in float64, over a whole Q x N matrix."""
    q, k, v = (given_[name].double() for name in "qkv")
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = spec.get("scale", 0.4) * (q @ k.mT)
    if spec.get("softcap"):
        logits = spec["softcap"] * torch.tanh(logits / spec["softcap"])
    keys = given_["key_positions"].repeat_interleave(group, 1)[:, :, None]
    at = given_["query_positions"][:, None, :, None]
    seen = (keys >= 0) & (keys <= at)
    if spec.get("horizon"):
        seen &= keys > at - spec["horizon"]
    e = torch.where(seen, (logits - 20).exp(), 0)
    total = e.sum(-1, keepdim=True)
    if spec.get("sinks") is not None:
        total = total + (spec["sinks"].double() - 20).exp().view(1, -1, 1, 1)
    p = torch.where(total > 0, e / total, 0)
    mean = p.unflatten(1, (heads, group)).mean(2)  # [B,Hkv,Q,N]
    is_young = given_["key_positions"][:, :, None] > at - spec.get("grace", 0)
    old = mean.masked_fill(is_young, 0)
    square = p.square().unflatten(1, (heads, group)).mean(2)
    weights, last = (
        given_[n].double()[:, None, :, None] for n in ("query_weights", "last_weights")
    )
    newest = given_["query_positions"]
    newest = (newest == newest.amax(1, keepdim=True)) & (newest >= 0)
    planes = {
        "mass": (old * weights).sum(2) * group,
        "max": (old * weights).amax(2),
        "newest": (mean * newest[:, None, :, None]).sum(2),
        "last": (mean * last).sum(2),
        "last_sq": (square * last).sum(2),
    }
    return p @ v, planes


def check(kernel: Any, given_: dict[str, Tensor], *, atol: float = 1e-5, **spec: Any) -> None:
    out, stats = attend(kernel, given_, **spec)
    want, planes = answer(given_, **spec)
    real = (given_["query_positions"] >= 0)[:, None, :, None]
    assert out.dtype == given_["q"].dtype
    assert stats.dtype == torch.float32
    assert bool(out.isfinite().all())
    assert float(torch.where(real, out.double() - want, 0).abs().max()) < atol
    names = spec.get("planes", PLANES)
    assert stats.shape[2] == len(names)
    for i, name in enumerate(names):
        assert float((stats[:, :, i].double() - planes[name]).abs().max()) < atol, name


SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "horizon": {"horizon": 4},
    "horizon of one": {"horizon": 1},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.5])},
    "grace of one": {"grace": 1},
    "grace": {"grace": 3},
    "all": {
        "grace": 2,
        "softcap": 3.0,
        "horizon": 6,
        "sinks": torch.linspace(-2, 2, 6),
        "scale": 1.3,
    },
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("block", [1 << 19, 150, 1])
def test_every_plane_is_right(kernel, spec, block, seed, monkeypatch):
    monkeypatch.setattr(cpu, "_BLOCK_LOGITS", block)  # several queries a block, then one
    check(kernel, problem(seed), **spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_plane_is_right_in_decode(kernel, spec, seed):
    check(kernel, problem(seed, queries=1, batch=1), **spec)


@pytest.mark.parametrize(("heads", "group"), [(6, 1), (3, 2), (1, 8), (2, 3)])
def test_grouped_heads_are_right(kernel, heads, group, seed):
    check(kernel, problem(seed, heads=heads, group=group))


@pytest.mark.parametrize("planes", [(), ("max",), ("last_sq", "mass"), ("newest", "max", "mass")])
@pytest.mark.parametrize("block", [1 << 19, 60])
def test_planes_come_in_the_order_asked(kernel, planes, block, seed, monkeypatch):
    monkeypatch.setattr(cpu, "_BLOCK_LOGITS", block)
    check(kernel, problem(seed), planes=planes)


def test_bfloat16_is_near_and_counts_in_float32(kernel, seed):
    check(kernel, problem(seed, dtype=torch.bfloat16), atol=0.06)  # 8 bits of logits and of p


def test_large_logits_are_right(kernel, seed):
    given_ = problem(seed)
    given_["q"] *= 30
    out, stats = attend(kernel, given_)
    assert bool(out.isfinite().all())
    assert bool(stats.isfinite().all())
    assert float(stats[:, :, PLANES.index("max")].max()) <= 1 + 1e-6


def test_mass_is_what_the_queries_have_to_give(kernel, seed):
    given_ = problem(seed)
    _, stats = attend(kernel, given_, planes=("mass",))
    want = given_["query_weights"].sum(1)[:, None] * 3  # three query heads a KV head
    assert torch.allclose(stats[:, :, 0].sum(-1), want.expand(-1, 2), atol=1e-5)


def test_nothing_falls_on_pads_empty_slots_or_the_future(kernel, seed):
    given_ = problem(seed)
    _, stats = attend(kernel, given_)
    is_nobody = given_["key_positions"] < 0
    assert float(stats.permute(2, 0, 1, 3)[:, is_nobody].abs().max()) == 0
    given_["query_weights"].zero_()
    given_["last_weights"].zero_()
    given_["query_positions"][:] = -1
    assert float(attend(kernel, given_)[1].abs().max()) == 0


def test_pads_do_not_reach_the_others(kernel, seed):
    given_ = problem(seed)
    out, stats = attend(kernel, given_)
    other = {name: x.clone() for name, x in given_.items()}
    pads = given_["query_positions"] < 0
    other["q"].mT[:, :].mT[pads[:, None].expand(-1, 6, -1)] = 7.0
    nobody = given_["key_positions"] < 0
    other["k"][nobody], other["v"][nobody] = 9.0, -9.0
    out2, stats2 = attend(kernel, other)
    real = ~pads[:, None, :, None].expand_as(out)
    assert torch.equal(out[real], out2[real])
    assert torch.equal(stats, stats2)


def test_inputs_are_not_changed(kernel, seed):
    given_ = problem(seed)
    before = {name: x.clone() for name, x in given_.items()}
    attend(kernel, given_)
    assert all(torch.equal(before[name], given_[name]) for name in given_)


class Largest(TorchDispatchMode):
    """Note the largest tensor that any operation makes, views of its inputs apart."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.mark.parametrize(("kernel", "module", "blocks"), BLOCKS, ids=["cpu", "native"])
def test_no_matrix_of_queries_by_keys_is_ever_held(kernel, module, blocks, seed, monkeypatch):
    weigh = getattr(module, blocks).weigh
    given_ = problem(seed, batch=2, heads=2, group=4, queries=96, held=160)
    logits = 2 * 8 * 96 * 256
    inputs = max(x.numel() for x in given_.values())
    for block in (1 << 12, 1 << 14):
        monkeypatch.setattr(module, blocks, cpu.Blocks(weigh, block))
        with Largest() as watch:
            attend(dispatch.resolve(kernel), given_)
        assert watch.numel <= max(block, inputs)
        assert watch.numel < logits / 8
    monkeypatch.setattr(module, blocks, cpu.Blocks(weigh, 1 << 30))
    with Largest() as watch:
        attend(dispatch.resolve(kernel), given_)
    assert watch.numel >= logits / 2  # the watch does see such a matrix, of one of two rows


def test_block_is_never_less_than_one_query_nor_more_than_two_megawords():
    assert all(1 <= getattr(module, x).most_logits <= 1 << 21 for _, module, x in BLOCKS)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    queries=st.integers(1, 20),
    held=st.integers(3, 20),
    heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 5, 8]),
    horizon=st.sampled_from([None, 1, 3, 10]),
    softcap=st.sampled_from([None, 1.0, 50.0]),
    block=st.sampled_from([1, 100, 1000, 1 << 19]),
)
def test_any_shape_is_right(seed, queries, held, heads, group, horizon, softcap, block):
    given_ = problem(seed, queries=queries, held=held, heads=heads, group=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_BLOCK_LOGITS", block)
        for name in KERNELS:
            check(dispatch.resolve(name), given_, horizon=horizon, softcap=softcap)


# write_slots, select_victims --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("is_vector", [True, False])
@pytest.mark.parametrize("valid", [None, [True, True], [True, False], [False, False]])
def test_write_slots_overwrites_one_slot_of_each_valid_row(kernel, dtype, is_vector, valid):
    shape = (2, 3, 5, 4) if is_vector else (2, 3, 5)
    store = torch.arange(120).reshape(2, 3, 5, 4).to(dtype)
    store = store if is_vector else store[..., 0].contiguous()
    before, at = store.clone(), store.data_ptr()
    slots = torch.tensor([[0, 4, 2], [3, 3, 1]])
    rows = -torch.arange(1, 25).reshape(2, 3, 4).to(dtype)
    rows = rows if is_vector else rows[..., 0]
    kernel.write_slots(store, slots, rows, None if valid is None else torch.tensor(valid))
    for b in range(2):
        for h in range(3):
            for c in range(5):
                is_new = c == slots[b, h] and (valid is None or valid[b])
                want = rows[b, h] if is_new else before[b, h, c]
                assert torch.equal(store[b, h, c], want)
    assert store.data_ptr() == at
    assert store.shape == shape


def test_write_slots_takes_one_slot_for_all_heads(kernel):
    store = torch.zeros(2, 3, 5)
    slots = torch.tensor([[1], [4]]).expand(-1, 3)  # granularity "layer": not contiguous
    kernel.write_slots(store, slots, torch.ones(2, 3), None)
    assert store.sum(1).tolist() == [[0, 3, 0, 0, 0], [0, 0, 0, 0, 3]]


def test_select_victims_takes_the_first_of_the_least(kernel):
    inf = torch.inf
    ranks = torch.tensor(
        [[[3.0, 1, 1, 1], [0, 0, 0, 0]], [[inf, inf, 2, 2], [5, -inf, -inf, -inf]]]
    )
    assert kernel.select_victims(ranks).tolist() == [[1, 0], [2, 1]]


def test_select_victims_takes_the_first_of_many(kernel):
    for size in (7, 64, 1000, 4096):  # vectorised reductions have a tail and several lanes
        ranks = torch.ones(1, 1, size)
        for first in (0, 1, size // 2, size - 2):
            ranks[:] = 1
            ranks[..., first:] = 0
            assert int(kernel.select_victims(ranks)) == first


def test_unknown_kernel_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown kernel 'cpuu'; did you mean 'cpu'\? \(known: "):
        dispatch.resolve("cpuu")


def test_fastest_kernel_is_chosen_without_a_name():
    assert dispatch.resolve().name in KERNELS
    assert dispatch.resolve(None).name != "reference"
