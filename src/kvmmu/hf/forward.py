"""What is checked and settled on the host, once per forward, outside the compiled step.

    column   a token of the batch as the tokenizer padded it; the cache counts columns
    pad      a column of a row before its first real token (attention_mask 0), or a token of a
             row that has finished: after end-of-sequence, generate() feeds pad tokens
    offset   RoPE place minus logical position of a row: 0 if places count real tokens (as
             generate() does), the number of pads if they count columns (a bare forward)

A pad is never kept, scores nothing, and never moves the row's logical position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvmmu.errors import CapacityError, IntegrityError, UnsupportedModelError
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.handoff import Forward

__all__ = ["finish", "prepare"]


def prepare(model: PreTrainedModel, cache: SlotCache, call: dict[str, Any]) -> Forward:
    """Check a decoder call against its cache and settle which new tokens are real.

    `call` holds the decoder's arguments by name; with positions="in_cache" its position_ids are
    replaced. Raises ValueError, IntegrityError, CapacityError or UnsupportedModelError.
    """
    tokens = call.get("input_ids")
    inputs = tokens if tokens is not None else call["inputs_embeds"]
    B, Q = inputs.shape[:2]
    is_checked = not torch.compiler.is_compiling()
    if is_checked:
        _check_use(model, cache, call, B)
    valid = _validity(cache, call.get("attention_mask"), tokens, B, Q)
    if valid is not None and is_checked:
        _check_padding(cache, valid)
    if is_checked:
        _check_positions(cache, call.get("position_ids"), valid, Q)
        if valid is not None and bool(valid.all()):
            valid = None
    cache.is_in_forward = True
    start = int(cache.columns) if Q > 1 else 0
    forward = Forward(cache, Q, valid, start)
    if cache.options.positions == "in_cache":
        forward.index = call["position_ids"] = _cache_places(cache, valid, start, B, Q)
        if is_checked:
            _check_length(cache, int(forward.index.max()) + 1)
    return forward


def finish(forward: Forward) -> None:
    """Count the columns of a forward that ran to its end."""
    cache = forward.cache
    cache.columns.add_(forward.num_new)
    cache.is_in_forward = False
    if cache.recorder is not None:
        cache.recorder.after_forward()


def _check_use(model: PreTrainedModel, cache: SlotCache, call: dict[str, Any], batch: int) -> None:
    """Bind the cache on first use; check model, batch, dtype, device and the last forward."""
    if call.get("output_attentions"):
        raise UnsupportedModelError(
            "output_attentions must be off with a SlotCache, got True; attention weights of a "
            "whole context are never formed"
        )
    if cache.is_in_forward:
        raise IntegrityError(
            "the last forward must have ended, got one that failed part-way; call cache.reset()"
        )
    is_empty = not cache.is_bound or int(cache.columns) == 0
    if not cache.is_bound or (is_empty and cache.batch != batch and not cache.is_batch_explicit):
        cache.bind(model, batch=batch)
    if cache.mmus[0].rotary is None:
        cache.attach(model)  # a loaded cache brings no model
    shape = cache.shape
    assert shape is not None
    if batch != cache.batch:
        raise ValueError(
            f"batch size must stay {cache.batch}, got {batch}; make a new cache, or use its "
            "batch_repeat_interleave and batch_select_indices"
        )
    weight = next(model.parameters())
    for name, now, bound in (
        ("dtype", model.dtype, shape.dtype),
        ("device", weight.device, shape.device),
    ):
        if now != bound:
            raise ValueError(f"{name} must stay {bound}, got {now}; make a new cache")


def _validity(
    cache: SlotCache, mask: Tensor | None, tokens: Tensor | None, B: int, Q: int
) -> Tensor | None:
    """Mark the real new tokens. mask [B,columns] -> bool [B,Q], None when the call has no mask."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(
            "attention_mask must be None or [batch, columns], got "
            f"{list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    if not torch.compiler.is_compiling():
        columns = int(cache.columns) + Q
        if tuple(mask.shape) != (B, columns):
            raise ValueError(
                f"attention_mask must cover all columns so far, [{B}, {columns}], got "
                f"{list(mask.shape)}"
            )
        _check_past(cache, mask, Q)
    attended = mask[:, -Q:].bool()
    cache.rows["num_attended"].add_(attended.sum(1))
    if tokens is None or Q > 1 or B == 1:
        return attended
    return attended & ~_finished(cache, tokens[:, 0])[:, None]


def _finished(cache: SlotCache, tokens: Tensor) -> Tensor:
    """Mark rows that are fed pad tokens after their end-of-sequence. tokens [B] -> bool [B]."""
    rows = cache.rows
    eos, pad = cache.eos_ids, cache.pad_id
    if eos is None or pad is None:
        return rows["is_finished"]
    is_pad = tokens == pad
    rows["is_finished"].copy_((rows["is_finished"] | rows["was_eos"]) & is_pad)
    rows["was_eos"].copy_((tokens[:, None] == eos).any(1))
    return rows["is_finished"]


def _check_past(cache: SlotCache, mask: Tensor, Q: int) -> None:
    """Raise ValueError if the mask says something else of the past than it said then."""
    before = mask[:, :-Q].bool().sum(1)
    if not torch.equal(before, cache.rows["num_attended"]):
        raise ValueError(
            "attention_mask must repeat what it said of earlier columns, got another number of "
            "real tokens; a SlotCache cannot mask out a token later"
        )


def _check_padding(cache: SlotCache, valid: Tensor) -> None:
    """Raise ValueError for padding on the right or in the middle. valid [B,Q]."""
    started = cache.mmus[0].table.num_seen > 0
    attended = valid | cache.rows["is_finished"][:, None]
    holes = (attended[:, 1:] < attended[:, :-1]).any() | (~attended[:, 0] & started).any()
    if bool(holes):
        raise ValueError(
            "attention_mask must have padding on the left only, got zeros after a real token; "
            "set tokenizer.padding_side = 'left'"
        )


def _check_positions(
    cache: SlotCache, position_ids: Tensor | None, valid: Tensor | None, Q: int
) -> None:
    """Check that positions continue each row, and that they stay in the trained length."""
    seen = cache.mmus[0].table.num_seen.long()  # [B]
    real = torch.ones_like(seen)[:, None].expand(-1, Q).bool() if valid is None else valid
    logical = seen[:, None] + real.long().cumsum(1) - 1  # [B,Q]
    offset = cache.rows["offset"]
    pads = int(cache.columns) - seen + (~real).sum(1)  # [B], if the row starts here
    if position_ids is not None:
        if position_ids.ndim != 2 or position_ids.shape[1] != Q:
            raise ValueError(f"position_ids must be [batch, {Q}], got {list(position_ids.shape)}")
        given = position_ids.to(seen.device).expand(len(seen), -1) - logical
        starts = (seen == 0) & real.any(1)
        first = torch.where(real, given, 0).sum(1) // real.sum(1).clamp(min=1)
        fits = (first == 0) | (first == pads)
        offset.copy_(torch.where(starts & fits, first, offset))
        wrong = (real & (given != offset[:, None])).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            want = (logical + offset[:, None])[row][real[row]]
            got = position_ids.expand(len(seen), -1)[row][real[row]]
            raise ValueError(
                f"position_ids must continue row {row} at {int(want[0])}, got {int(got[0])}"
                + ("" if Q == 1 else f" (and so on to {int(want[-1])}, got {int(got[-1])})")
                + "; leave position_ids out, or give them from the cache's start"
            )
    if cache.options.positions == "original":
        _check_length(cache, int((logical + offset[:, None]).max()) + 1)


def _check_length(cache: SlotCache, length: int) -> None:
    """Raise CapacityError past the model's trained length."""
    assert cache.shape is not None
    limit = cache.shape.max_positions
    if limit is None or length <= limit:
        return
    if cache.options.allow_extrapolation and cache.shape.is_rotary:
        return
    cure = (
        "use positions='in_cache', or allow_extrapolation=True"
        if cache.shape.is_rotary
        else ("shorten the text: this model's positions are a learned table")
    )
    raise CapacityError(
        f"the text must stay within the model's trained {limit} positions, got {length}; {cure}"
    )


def _cache_places(cache: SlotCache, valid: Tensor | None, start: int, B: int, Q: int) -> Tensor:
    """Give new tokens RoPE places that never pass C + T. -> int64 [B,Q].

    A token's place is its rank if the chunk's C + T candidates were all it could see.
    """
    seen = cache.mmus[0].table.num_seen.long()
    device = seen.device
    real = torch.ones(B, Q, dtype=torch.bool, device=device) if valid is None else valid
    T = Q if cache.policy.kind == "selector" else cache.options.chunk_size
    column = torch.arange(Q, device=device)
    begin = (column - (start + column) % T).clamp(min=0) if Q > 1 else column  # its chunk's first
    order = real.long().cumsum(1)  # [B,Q]
    before = torch.nn.functional.pad(order, (1, 0))[:, begin]  # real ones ahead of its chunk
    held = (seen[:, None] + before).clamp(max=cache.num_slots if Q > 1 else cache.num_slots - 1)
    return (held + order - before - 1).clamp(min=0)
