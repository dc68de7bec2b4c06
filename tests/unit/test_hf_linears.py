"""Are the linear layers of a model the same on native kernels, and put back afterwards?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import make
from torch import nn

import kvmmu
from kvmmu import SlotCache, UnsupportedModelError
from kvmmu.hf.linears import NativeLinear


def decode(model: Any, linears: str, rows: int = 1) -> torch.Tensor:
    """Return the logits of a prompt's last token and of one decode step."""
    torch.manual_seed(1)
    tokens = torch.randint(3, 90, (rows, 12))
    cache = SlotCache.for_model(model, 16, batch_size=rows)
    with torch.inference_mode(), kvmmu.enabled(model, linears=linears):  # type: ignore[arg-type]
        model(tokens[:, :-1], past_key_values=cache)
        made: torch.Tensor = model(tokens[:, -1:], past_key_values=cache).logits
    return made


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt", "olmo2"])
def test_native_linears_give_the_same_logits(name: str) -> None:
    model = make(name)
    torch.testing.assert_close(decode(model, "native"), decode(model, "torch"), atol=1e-5, rtol=0)


def test_bfloat16_agrees_within_its_precision() -> None:
    model = make("llama").to(torch.bfloat16)
    ours, theirs = decode(model, "native").float(), decode(model, "torch").float()
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()  # 8 bits, two layers


def test_a_row_is_the_same_beside_others() -> None:
    model = make("llama")
    with torch.inference_mode(), kvmmu.enabled(model, linears="native"):
        part = model.get_submodule("model.layers.0.mlp.down_proj")
        assert isinstance(part, NativeLinear)
        x = torch.randn(5, part.in_features)
        assert torch.equal(part(x)[2], part(x[2:3])[0])


def test_layers_are_put_back_and_share_their_weights() -> None:
    model = make("llama")
    before = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]
    with kvmmu.enabled(model, linears="native"):
        inside = dict(model.named_modules())
        assert sum(isinstance(m, NativeLinear) for m in inside.values()) == 7 * 2 + 1
        assert [name for name, _ in model.named_parameters()] == names
        with kvmmu.enabled(model, linears="native"):
            pass
        assert dict(model.named_modules()) == inside
    assert dict(model.named_modules()) == before


def test_weights_that_moved_are_bound_again() -> None:
    model = make("llama")
    with torch.no_grad(), kvmmu.enabled(model, linears="native"):
        part = model.get_submodule("model.layers.0.mlp.up_proj")
        x = torch.randn(1, part.in_features)
        first = part(x)
        part.weight.data = part.weight.data * 2
        torch.testing.assert_close(part(x), 2 * first)


def test_gradients_still_flow() -> None:
    model = make("llama")
    with kvmmu.enabled(model, linears="native"):
        loss = model(torch.tensor([[5, 6, 7]])).logits.sum()
        loss.backward()
    assert model.get_submodule("model.layers.0.mlp.up_proj").weight.grad is not None


def test_what_has_no_kernel_is_refused() -> None:
    model = make("llama")
    with pytest.raises(ValueError, match="linears must be 'torch' or 'native', got 'fast'"):
        kvmmu.enabled(model, linears="fast")  # type: ignore[arg-type]
    double = make("llama").double()
    found = double.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match="without float linear layers"):
        kvmmu.enabled(double, linears="native").__enter__()
    assert double.config._attn_implementation == found
    assert isinstance(double.get_submodule("lm_head"), nn.Linear)


def test_generating_natively_gives_the_same_text() -> None:
    plain = kvmmu.load("kvmmu-ref-1m", num_slots=64)
    native = kvmmu.load("kvmmu-ref-1m", num_slots=64, kernel="native")
    prompt = (
        "It was on a dreary night of November that I beheld the accomplishment of my toils. " * 3
    )
    assert native.generate(prompt, max_new_tokens=40) == plain.generate(prompt, max_new_tokens=40)
