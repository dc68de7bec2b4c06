"""kvmmu.enabled(model): let a model attend through the KV-MMU of a SlotCache.

Only public doors of transformers are used: AttentionInterface, AttentionMaskInterface,
set_attn_implementation, and forward hooks on the decoder. Nothing is patched; on exit the hooks
are gone and the model has its old attention back (and its linear layers, where asked for).
Inside, a model that runs with any other cache, or none, attends by its original function.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvmmu.errors import UnsupportedModelError
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.forward import finish, prepare
from kvmmu.hf.handoff import Forward, current, enter_model, set_current
from kvmmu.hf.linears import LINEARS, put_native, take_native
from kvmmu.hf.support import decoder_of, describe

__all__ = ["enabled"]

_ORIGINALS = ("sdpa", "eager")
_SWITCH = "_kvmmu_switch"
"""Where an enabled model's _Switch stands among its attributes; gone when it is restored."""

_LOCK = threading.Lock()
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "logits_to_keep",
        "num_items_in_batch",
        "is_first_iteration",
        "output_router_logits",
    }
)
"""Arguments that reach an attention function and do not change what it computes."""


class _Switch:
    """One enabled model: its hooks, the attention it had, and how often it was enabled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.depth = 0
        self._found: str = model.config._attn_implementation
        original = self._found.removeprefix("kvmmu_")  # models may share one configuration
        if original not in _ORIGINALS:
            raise UnsupportedModelError(
                f"attn_implementation must be one of {', '.join(map(repr, _ORIGINALS))}, "
                f"got {original!r}; call model.set_attn_implementation('sdpa') first"
            )
        name = f"kvmmu_{original}"
        AttentionInterface.register(name, _attention_over(original))
        AttentionMaskInterface.register(name, _mask_over(original))
        model.set_attn_implementation(name)
        self._handles = _hooks(model)

    def undo(self, model: PreTrainedModel) -> None:
        """Give the model its attention back."""
        for handle in self._handles:
            handle.remove()
        set_current(None)
        enter_model(None)
        model.set_attn_implementation(self._found)


class enabled:
    """Let `model` use a SlotCache within a with statement.

    linears="native" also runs its linear layers on kvmmu's CPU kernels where rows are few, as in
    decode steps (they compile on first use). Several may be open at once, on one model too: the
    last to close restores it. Raises UnsupportedModelError if the model cannot be done exactly.
    """

    def __init__(
        self, model: PreTrainedModel, *, linears: Literal["torch", "native"] = "torch"
    ) -> None:
        describe(model)
        if linears not in LINEARS:
            raise ValueError(f"linears must be 'torch' or 'native', got {linears!r}")
        self._model, self._linears = model, linears

    def __enter__(self) -> PreTrainedModel:
        """Enable the model and return it."""
        with _LOCK:
            switch: _Switch | None = self._model.__dict__.get(_SWITCH)
            made = _Switch(self._model) if switch is None else switch
            if self._linears == "native":
                try:
                    put_native(self._model)
                except UnsupportedModelError:
                    if switch is None:
                        made.undo(self._model)
                    raise
            self._model.__dict__[_SWITCH] = made
            made.depth += 1
        return self._model

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the model its attention back, if no other is open."""
        with _LOCK:
            if self._linears == "native":
                take_native(self._model)
            switch: _Switch = self._model.__dict__[_SWITCH]
            switch.depth -= 1
            if switch.depth == 0:
                del self._model.__dict__[_SWITCH]
                switch.undo(self._model)


def _hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    """Watch a model's forward and its decoder's, from before to after."""
    decoder = decoder_of(model)
    names = list(inspect.signature(decoder.forward).parameters)
    kind = model.config.model_type

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        # generate() is the caller that asks for both; nothing else tells it from a bare call
        is_generate = kwargs.get("return_dict") is True and bool(kwargs.get("use_cache"))
        enter_model(kind, generating=is_generate)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        enter_model(None)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = dict(zip(names, args, strict=False)) | kwargs
        cache = call.get("past_key_values")
        if not isinstance(cache, SlotCache):
            set_current(None)
            return None
        set_current(prepare(model, cache, call))
        return (), call

    def after(module: nn.Module, args: Any, output: Any) -> None:
        forward = current()
        set_current(None)  # after a failure too, where there is no output
        if forward is not None and output is not None:
            finish(forward)

    outer = (
        []
        if decoder is model
        else [
            model.register_forward_pre_hook(enter, with_kwargs=True),
            model.register_forward_hook(leave, always_call=True),
        ]
    )
    return [
        *outer,
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after, always_call=True),
    ]


def _attention_over(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Make the attention function that serves SlotCaches and leaves the rest to `original`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        forward = current()
        if forward is None:
            attend = _original_function(original, module)
            made: tuple[Tensor, Tensor | None] = attend(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                **kwargs,
            )
            return made
        _check_handoff(forward, module, query, key, value, dropout)
        mmu = forward.cache.mmus[forward.layer_idx]
        rules = _rules(kwargs, mmu.spec.horizon, module)
        forward.cache.is_in_forward = True  # from here on, a failure leaves layers out of step
        out = mmu.forward(
            query,
            key,
            value,
            forward.valid,
            start=forward.start,
            index=forward.index,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            **rules,
        )
        return out.transpose(1, 2).contiguous(), None  # [B,Q,Hq,D]

    return attention


def _check_handoff(
    forward: Forward, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float
) -> None:
    """Verify that keys and values are those that this very layer has just handed over."""
    layer_idx = getattr(module, "layer_idx", forward.layer_idx)
    is_own = key is forward.keys and value is forward.values and layer_idx == forward.layer_idx
    forward.keys = forward.values = None
    shape = forward.cache.shape
    assert shape is not None
    if not is_own:
        raise UnsupportedModelError(
            f"model type {shape.model_type!r} is not supported: layer {layer_idx} must attend to "
            f"the keys that it has just given its cache, got others ({type(module).__name__} "
            "changes them, or shares them between layers)"
        )
    want = (forward.cache.batch, shape.num_kv_heads, forward.num_new, shape.head_dim)
    for name, tensor in (("keys", key), ("values", value)):
        if tuple(tensor.shape) != want or tensor.dtype != shape.dtype:
            raise UnsupportedModelError(
                f"{name} of layer {layer_idx} must be {list(want)} in {shape.dtype}, got "
                f"{list(tensor.shape)} in {tensor.dtype}"
            )
    if dropout:
        raise UnsupportedModelError(f"dropout must be 0, got {dropout}; call model.eval()")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        raise UnsupportedModelError(
            "gradients cannot flow through a SlotCache; run the model under torch.no_grad()"
        )


def _rules(kwargs: dict[str, Any], horizon: int | None, module: nn.Module) -> dict[str, Any]:
    """Read a layer's attention arguments. Raises UnsupportedModelError for an unknown one."""
    window = kwargs.pop("sliding_window", None)
    if window != horizon:
        raise UnsupportedModelError(
            f"sliding_window of layer {getattr(module, 'layer_idx', '?')} must be what the "
            f"configuration says ({horizon}), got {window}"
        )
    rules = {"softcap": kwargs.pop("softcap", None), "sinks": kwargs.pop("s_aux", None)}
    if kwargs.pop("is_causal", None) is False:
        raise UnsupportedModelError("is_causal must not be False, got False")
    unknown = sorted(k for k, v in kwargs.items() if v is not None and k not in _HARMLESS)
    if unknown:
        raise UnsupportedModelError(
            f"attention argument {', '.join(map(repr, unknown))} of {type(module).__name__} is "
            "not known to kvmmu, and what is not known is not ignored"
        )
    return rules


def _original_function(original: str, module: nn.Module) -> Callable[..., Any]:
    """Return the attention function that the model had; "eager" lives beside the model."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)


def _mask_over(original: str) -> Callable[..., Tensor | None]:
    """Make the mask function: none is needed for a SlotCache, `original` serves the rest."""

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        if current() is not None:
            return None  # the hook has read the padding; slots know their own validity
        made: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs)
        return made

    return mask
