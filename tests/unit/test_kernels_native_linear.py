"""Native products and a decoder layer's two halves, against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kvmmu.kernels import native
from kvmmu.kernels.native import Block, Matrix, Norm, finish, linear, project

FORMS = ["float32", "bfloat16", "float16", "int8"]
FAST_FORMS = [pytest.param(f, marks=pytest.mark.slow) if f == "float16" else f for f in FORMS]


def make(N, K, form, *, has_bias=False, seed=0):
    """Return a matrix and what its numbers are, float64 [N,K], with its bias [N]."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=g) / K**0.5
    bias = torch.randn(N, generator=g) if has_bias else None
    right = torch.zeros(N) if bias is None else bias
    if form != "int8":
        weight = weight.to(getattr(torch, form))
        return Matrix(weight, bias=bias), weight.double(), right.double()
    scales = weight.abs().amax(1) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8)
    dense = codes.double() * scales[:, None].double()
    return Matrix(codes, scales=scales, bias=bias), dense, right.double()


@pytest.mark.parametrize("form", FAST_FORMS)
def test_product_equals_pytorch_s_for_any_shape(form):
    @settings(max_examples=80, deadline=None)
    @given(st.integers(1, 19), st.integers(1, 40), st.integers(1, 150), st.booleans())
    def check(M, N, K, has_bias):
        matrix, dense, bias = make(N, K, form, has_bias=has_bias, seed=M * N * K)
        x = torch.randn(M, K + 3)[:, :K]  # rows need not be neighbours
        found = linear(x, matrix)
        torch.testing.assert_close(
            found.double(), x.double() @ dense.T + bias, atol=2e-5, rtol=2e-5
        )

    check()


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_row_of_a_product_has_the_same_bits_for_any_rows_and_threads(form):
    matrix, _, _ = make(45, 75, form, has_bias=True)
    x = torch.randn(19, 75)
    norm = Norm("rms", torch.rand(75) + 0.5, eps=1e-5)
    whole = linear(x, matrix, norm=norm, threads=1)
    for M in range(1, 20):
        for threads in (1, native.num_threads()):
            assert torch.equal(linear(x[-M:], matrix, norm=norm, threads=threads), whole[-M:])
    poisoned = x.clone()
    poisoned[3] = torch.nan
    rest = [i for i in range(19) if i != 3]
    assert torch.equal(linear(poisoned, matrix, norm=norm)[rest], whole[rest])


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_before_a_product_equals_pytorch_s(kind):
    matrix, dense, _ = make(20, 70, "float32")
    weight, bias = torch.randn(70), torch.randn(70)
    x = torch.randn(3, 70) * 5 + 2
    norm = Norm(kind, weight, bias=bias if kind == "layer" else None, eps=1e-5)
    normed = F.rms_norm(x.double(), (70,), weight.double(), 1e-5)
    if kind == "layer":
        normed = F.layer_norm(x.double(), (70,), weight.double(), bias.double(), 1e-5)
    found = linear(x, matrix, norm=norm)
    torch.testing.assert_close(found.double(), normed @ dense.T, atol=5e-5, rtol=5e-5)


H, HQ, HKV, D = 72, 6, 2, 20


class Layer:
    """A block of small, crooked sizes, and the same in float64."""

    def __init__(
        self,
        *,
        norm="rms",
        place="pre",
        qk_norm=None,
        activation="silu",
        is_gated=True,
        inner=41,
        form="float32",
    ):
        g = torch.Generator().manual_seed(7)
        shapes = {
            "qkv": ((HQ + 2 * HKV) * D, H),
            "out": (H, HQ * D),
            "up": (inner * (1 + is_gated), H),
            "down": (H, inner),
        }
        made = {n: make(*s, form, has_bias=norm == "layer", seed=i)
                for i, (n, s) in enumerate(shapes.items())}  # fmt: skip
        self.dense = {n: (w, b) for n, (_, w, b) in made.items()}
        self.norms = [torch.rand(H, generator=g) + 0.5 for _ in range(2)]
        self.biases = [torch.rand(H, generator=g) if norm == "layer" else None for _ in range(2)]
        widths = {None: None, "head": (D, D), "width": (HQ * D, HKV * D)}[qk_norm]
        self.qk = [torch.rand(w, generator=g) + 0.5 for w in widths] if widths else [None, None]
        norms = [Norm(norm, w, bias=b, eps=1e-5) for w, b in zip(self.norms, self.biases)]
        self.block = Block(
            **{n: m for n, (m, _, _) in made.items()}, attn_norm=norms[0], mlp_norm=norms[1],
            num_heads=HQ, num_kv_heads=HKV, head_dim=D, activation=activation, is_gated=is_gated,
            norm_place=place, qk_norm=qk_norm, q_norm=self.qk[0], k_norm=self.qk[1],
        )  # fmt: skip
        self.norm, self.inner = norm, inner

    def normed(self, x, i):
        weight, bias = self.norms[i].double(), self.biases[i]
        if self.norm == "layer":
            return F.layer_norm(x, (H,), weight, bias.double(), 1e-5)
        return F.rms_norm(x, (H,), weight, 1e-5)

    def product(self, x, name):
        weight, bias = self.dense[name]
        return x @ weight.T + bias

    def project(self, x, turns):
        b, x = self.block, x.double()
        qkv = self.product(self.normed(x, 0) if b.norm_place == "pre" else x, "qkv")
        parts = list(qkv.split([HQ * D, HKV * D, HKV * D], dim=1))
        for i, weight in enumerate(self.qk):
            if weight is not None:
                by = parts[i].view(len(x), -1, weight.numel())
                parts[i] = F.rms_norm(by, by.shape[-1:], weight.double(), 1e-5)
        q, k, v = (p.reshape(len(x), -1, D) for p in parts)
        return (*(turned(y, turns) for y in (q, k)), v)

    def finish(self, x, attended):
        b, x = self.block, x.double()
        is_pre = b.norm_place == "pre"
        y = self.product(attended.double(), "out")
        x = x + (y if is_pre else self.normed(y, 0))
        up = self.product(self.normed(x, 1) if is_pre else x, "up")
        act = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu,
               "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}[b.activation]  # fmt: skip
        up = act(up[:, : self.inner]) * up[:, self.inner :] if b.is_gated else act(up)
        y = self.product(up, "down")
        return x + (y if is_pre else self.normed(y, 1))


def turned(x, turns):
    if turns is None:
        return x
    cos, sin = (t.double()[:, None] for t in turns)
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], dim=-1)


LAYERS = {
    "llama": {},
    "one head's norm": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "width", "place": "post"},
    "gpt2": {"norm": "layer", "activation": "gelu_tanh", "is_gated": False, "inner": 64},
    "opt": {"norm": "layer", "activation": "relu", "is_gated": False},
    "gelu": {"activation": "gelu"},
    "int8": {"form": "int8"},
}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.slow) if n == "int8" else n for n in LAYERS
])  # fmt: skip
def test_both_halves_of_a_layer_equal_pytorch_s(name):
    layer = Layer(**LAYERS[name])
    for M, half in ((1, D // 2), (3, 4), (9, 0)):
        g = torch.Generator().manual_seed(M)
        x, attended = (torch.randn(M, n, generator=g) for n in (H, HQ * D))
        angles = torch.randn(M, half, generator=g)
        turns = (angles.cos(), angles.sin()) if half else None
        for found, right in zip(project(layer.block, x, turns), layer.project(x, turns)):
            torch.testing.assert_close(found.double(), right, atol=5e-5, rtol=5e-5)
        found, right = finish(layer.block, x, attended), layer.finish(x, attended)
        torch.testing.assert_close(found.double(), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_row_of_a_layer_has_the_same_bits_for_any_rows_and_threads(name):
    block = Layer(**LAYERS[name]).block
    x, attended = torch.randn(11, H), torch.randn(11, HQ * D)
    turns = (torch.randn(11, D // 2), torch.randn(11, D // 2))
    whole = (*project(block, x, turns), finish(block, x, attended))
    for rows in (slice(0, 1), slice(3, 8), slice(10, 11)):
        for threads in (1, native.num_threads()):
            part = (
                *project(block, x[rows], (turns[0][rows], turns[1][rows]), threads=threads),
                finish(block, x[rows], attended[rows], threads=threads),
            )
            assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole))


def test_wrong_shapes_and_types_are_refused_by_name():
    weight = torch.randn(8, 6)
    with pytest.raises(TypeError, match="weights must be one of"):
        Matrix(weight.double())
    with pytest.raises(ValueError, match="contiguous matrix"):
        Matrix(weight.t())
    with pytest.raises(ValueError, match="scales must come with int8"):
        Matrix(weight, scales=torch.ones(8))
    with pytest.raises(ValueError, match=r"bias must be \[8\]"):
        Matrix(weight, bias=torch.ones(6))
    with pytest.raises(ValueError, match="norm must be"):
        Norm("batch", None, eps=1e-5)
    for x in (torch.randn(2, 5), torch.randn(2, 6).double(), torch.randn(6, 2).t()):
        with pytest.raises(ValueError, match="x must be float32"):
            linear(x, Matrix(weight))
    block = Layer().block
    with pytest.raises(ValueError, match="cos and sin must be"):
        project(block, torch.randn(2, H), (torch.randn(1, 4), torch.randn(1, 4)))
    with pytest.raises(ValueError, match="attended must have 2 rows"):
        finish(block, torch.randn(2, H), torch.randn(3, HQ * D))
