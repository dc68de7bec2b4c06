"""Native kernels and PyTorch: the same answer, and bits that do not depend on the neighbours."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from plain_attention import PlainAttention, run

from kvmmu.engine.model import Transformer
from kvmmu.hf.load import model_path

SMALL = model_path("kvmmu-ref-1m")


def rows_of(model: Transformer, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Run rows of lanes that do not see each other: each attends to itself alone."""

    def attend(layer, q, k, v):
        return v.repeat_interleave(model.config.group_size, 1)

    return model.forward(tokens, positions, attend)


def batch(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make tokens and positions of rows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 2048, (num_rows,), generator=generator)
    return tokens, torch.randint(0, 4000, (num_rows,), generator=generator)


@pytest.mark.parametrize("weights", ["plain", "int8"])
def test_native_row_has_the_same_bits_alone_and_among_others(weights):
    model = Transformer.load(SMALL, backend="native", weights=weights)
    tokens, positions = batch(32, 0)
    alone = torch.cat([rows_of(model, tokens[i : i + 1], positions[i : i + 1]) for i in range(32)])
    for num_rows in (2, 3, 4, 5, 8, 9, 17, 31, 32):
        many = rows_of(model, tokens[:num_rows], positions[:num_rows])
        assert torch.equal(many, alone[:num_rows]), num_rows
        turned = rows_of(model, tokens[:num_rows].flip(0), positions[:num_rows].flip(0))
        assert torch.equal(turned.flip(0), many), num_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["plain", "int8"])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 33, 48])
def test_torch_row_has_the_same_bits_wherever_it_is_in_calls_of_one_size(dtype, weights, num_rows):
    """A promise of these libraries on these CPUs, not of PyTorch: hence tested."""
    model = Transformer.load(SMALL, backend="torch", dtype=dtype, weights=weights)
    tokens, positions = batch(num_rows, 1)
    first = rows_of(model, tokens, positions)
    for at in range(num_rows):
        others, places = batch(num_rows, 2 + at)
        others[at], places[at] = tokens[0], positions[0]
        assert torch.equal(rows_of(model, others, places)[at], first[0]), at


@pytest.mark.parametrize(("dtype", "weights"), [("float32", "int8"), ("bfloat16", "plain")])
def test_native_is_torch_in_other_forms(dtype, weights):
    """bfloat16: native rounds no activation but q, k and v, so the plain one is its measure."""
    ids = torch.randint(3, 2048, (24,), generator=torch.Generator().manual_seed(0))
    native, plain = (
        run(Transformer.load(SMALL, backend=b, dtype=dtype, weights=weights), ids, sizes=[8] * 3)
        for b in ("native", "torch")
    )
    atol = 2e-4 if dtype == "float32" else 0.5
    torch.testing.assert_close(native, plain, atol=atol, rtol=0)
    if dtype == "bfloat16":
        exact = run(Transformer.load(SMALL), ids)  # the file is bfloat16 itself
        assert (native - exact).abs().mean() < (plain - exact).abs().mean()


def test_calls_of_many_rows_leave_the_native_kernels(monkeypatch):
    model = Transformer.load(SMALL, backend="native")
    many = torch.randint(3, 2048, (model.native_rows + 1,))
    assert model._layers_for(model.native_rows) is not model._layers_for(len(many))
    torch.testing.assert_close(
        run(model, many), run(Transformer.load(SMALL, backend="torch"), many), atol=0, rtol=0
    )


def test_native_is_the_default_on_a_cpu():
    assert Transformer.load(SMALL).backend == "native"


def test_native_is_for_cpus():
    weights = Transformer.load(SMALL).weights
    with pytest.raises(ValueError, match="backend 'native' must be used on a CPU, got device 'me"):
        Transformer.load(SMALL, backend="native", device="meta")
    assert weights.nbytes > 0


def test_what_attend_keeps_stays_writable():
    model = Transformer.load(SMALL)
    attend = PlainAttention(model.config)
    attend.positions = torch.tensor([0])
    model.forward(tiny_models.prompt(1, (0,))[0][0], attend.positions, attend)
    attend.kept[0][0].zero_()
