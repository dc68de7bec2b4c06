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
from kvmmu.hf.handoff import Forward, is_generating

__all__ = ["finish", "prepare"]

_COUNTS_MASK = frozenset({"opt"})
"""Decoders that, given no position_ids, count the real tokens of the mask instead of columns."""


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
        _check_mask(cache, call.get("attention_mask"), B, Q)
    rows = dict(cache.rows)  # what they will be, if the forward runs to its end
    valid = _validity(cache, call.get("attention_mask"), tokens, rows, Q)
    start = int(cache.columns) if Q > 1 else 0
    if is_checked:
        _check_padding(cache, valid, rows)
        _check_positions(cache, call.get("position_ids"), valid, rows, Q)
        if valid is not None and bool(valid.all()):
            valid = None
    forward = Forward(cache, Q, rows, valid, start)
    if cache.options.positions == "in_cache":
        forward.index = call["position_ids"] = _cache_places(cache, valid, start, B, Q)
        if is_checked:
            _check_length(cache, int(forward.index.max()) + 1)
    return forward


def finish(forward: Forward) -> None:
    """Count the columns of a forward that ran to its end."""
    cache = forward.cache
    cache.columns.add_(forward.num_new)
    for name, tensor in forward.rows.items():
        if tensor is not cache.rows[name]:
            cache.rows[name].copy_(tensor)
    cache.is_in_forward = False
    if cache.recorder is not None:
        cache.recorder.after_forward()


def _check_use(model: PreTrainedModel, cache: SlotCache, call: dict[str, Any], batch: int) -> None:
    """Bind the cache on first use; check model, batch, dtype, device and the last forward."""
    if call.get("output_attentions", getattr(model.config, "output_attentions", None)):
        raise UnsupportedModelError(
            "output_attentions must be off with a SlotCache, got True; attention weights of a "
            "whole context are never formed"
        )
    if call.get("use_cache") is False:
        raise ValueError("use_cache must be True with a SlotCache, got False; leave it out")
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


def _check_mask(cache: SlotCache, mask: Tensor | None, B: int, Q: int) -> None:
    """Raise ValueError if a mask has the wrong shape, or says something else of the past.

    Padding is on the left only, so the number of real tokens tells their columns; what a row was
    fed after its end may be called real, as generate() does, or padding, as it is.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(
            "attention_mask must be None or [batch, columns], got "
            f"{list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    columns = int(cache.columns) + Q
    if tuple(mask.shape) != (B, columns):
        raise ValueError(
            f"attention_mask must cover all columns so far, [{B}, {columns}], got "
            f"{list(mask.shape)}"
        )
    before, rows = mask[:, :-Q].bool(), cache.rows
    count = before.sum(1)
    is_same = (count == rows["num_attended"]) | (count == cache.mmus[0].table.num_seen)
    has_hole = (before[:, 1:] < before[:, :-1]).any(1) & ~rows["has_ended"]
    if bool((has_hole | ~is_same).any()):
        raise ValueError(
            "attention_mask must repeat what it said of earlier columns, got other real tokens; "
            "a SlotCache cannot mask out a token later"
        )


def _validity(
    cache: SlotCache, mask: Tensor | None, tokens: Tensor | None, rows: dict[str, Tensor], Q: int
) -> Tensor | None:
    """Mark the real new tokens and count in `rows`. -> bool [B,Q], None where all are real."""
    attended = None if mask is None else mask[:, -Q:].bool()
    counted = rows["num_attended"] + Q if mask is None else mask.bool().sum(1)
    rows["num_attended"] = counted
    has_ends = cache.eos_ids is not None and cache.pad_id is not None and len(counted) > 1
    if not has_ends or tokens is None or not is_generating():
        rows["was_eos"] = rows["is_finished"] = torch.zeros_like(rows["is_finished"])
        return attended
    if attended is None:  # generate() drops a mask of ones
        attended = torch.ones_like(tokens, dtype=torch.bool)
    return _without_ends(cache, attended, tokens, rows)


def _without_ends(
    cache: SlotCache, attended: Tensor, tokens: Tensor, rows: dict[str, Tensor]
) -> Tensor:
    """Take off what generate() feeds to rows that have ended. attended, tokens [B,Q] -> [B,Q].

    A row ends with an end-of-sequence that was fed alone, as decoding does, if a pad follows.
    The first column of a new turn may still be such a pad.
    """
    assert cache.eos_ids is not None
    Q = tokens.shape[1]
    is_pad = tokens[:, 0] == cache.pad_id
    if Q == 1 and not torch.compiler.is_compiling() and cache.is_end_pad:
        _check_ended(rows["is_finished"] & ~is_pad)  # two ends may have been two real tokens
    is_over = (rows["is_finished"] | rows["was_eos"]) & is_pad  # [B]
    is_first = torch.arange(Q, device=tokens.device) == 0
    valid = attended & ~(is_over[:, None] & is_first)
    is_eos = (tokens[:, -1:] == cache.eos_ids).any(1) & valid[:, -1]
    rows["is_finished"] = is_over & ~valid.any(1)
    rows["was_eos"] = is_eos if Q == 1 else torch.zeros_like(is_eos)
    rows["has_ended"] = rows["has_ended"] | is_over
    rows["num_skipped"] = rows["num_skipped"] + is_over
    return valid


def _check_ended(goes_on: Tensor) -> None:
    """Raise ValueError for rows [B] that go on after what had looked like their end."""
    if bool(goes_on.any()):
        raise ValueError(
            f"row {int(goes_on.nonzero()[0, 0])} must not go on after an end-of-sequence and a "
            "pad token, got another token; give the tokenizer a pad token of its own, or feed "
            "the prompt in larger chunks"
        )


def _check_padding(cache: SlotCache, valid: Tensor | None, rows: dict[str, Tensor]) -> None:
    """Raise ValueError for padding on the right or in the middle. valid [B,Q]."""
    if valid is None:
        return
    started = cache.mmus[0].table.num_seen > 0
    started &= ~rows["has_ended"]  # its first column may be a pad after the end
    holes = (valid[:, 1:] < valid[:, :-1]).any() | (~valid[:, 0] & started).any()
    if bool(holes):
        raise ValueError(
            "attention_mask must have padding on the left only, got zeros after a real token; "
            "set tokenizer.padding_side = 'left'"
        )


def _check_positions(
    cache: SlotCache,
    position_ids: Tensor | None,
    valid: Tensor | None,
    rows: dict[str, Tensor],
    Q: int,
) -> None:
    """Check that RoPE places continue each row, and that they stay in the trained length."""
    assert cache.shape is not None
    seen = cache.mmus[0].table.num_seen.long()  # [B]
    B = len(seen)
    real = torch.ones(B, Q, dtype=torch.bool, device=seen.device) if valid is None else valid
    logical = seen[:, None] + real.long().cumsum(1) - 1  # [B,Q]
    if position_ids is None:
        first_column = cache.get_seq_length()
        if cache.shape.model_type in _COUNTS_MASK:
            position_ids = logical + rows["offset"][:, None]
        else:  # a decoder that is given none counts columns
            position_ids = torch.arange(first_column, first_column + Q)[None]
    if position_ids.ndim != 2 or position_ids.shape[1] != Q:
        raise ValueError(f"position_ids must be [batch, {Q}], got {list(position_ids.shape)}")
    places = position_ids.to(seen.device).expand(B, -1)
    first = torch.where(real, places - logical, 0).sum(1) // real.sum(1).clamp(min=1)  # [B]
    before = torch.where(seen == 0, 0, rows["offset"])
    extra = torch.where(
        seen == 0, cache.get_seq_length() + (~real).sum(1), rows["num_skipped"]
    )  # columns that were no real tokens: left padding, or what a finished row was fed
    fits = (first == before) | (first == before + extra)
    offset = torch.where(fits, first, before)
    wrong = (real & (places - logical != offset[:, None])).any(1)
    if bool(wrong.any()):
        _refuse_places(int(wrong.nonzero()[0, 0]), places, logical + offset[:, None], real)
    is_live = real.any(1)
    rows["offset"] = torch.where(is_live, offset, rows["offset"])
    rows["num_skipped"] = torch.where(is_live, 0, rows["num_skipped"])
    if cache.options.positions == "original":
        _check_length(cache, int(torch.where(real, places, 0).max()) + 1)


def _refuse_places(row: int, places: Tensor, wanted: Tensor, real: Tensor) -> None:
    """Raise ValueError for a row whose position_ids do not go on. All [B,Q]."""
    want, got = wanted[row][real[row]], places[row][real[row]]
    span = "" if len(want) == 1 else f" (and so on to {int(want[-1])}, got {int(got[-1])})"
    raise ValueError(
        f"position_ids must continue row {row} at {int(want[0])}, got {int(got[0])}{span}; give "
        "them as at the cache's start, or leave them out as there"
    )


def _check_length(cache: SlotCache, length: int) -> None:
    """Raise CapacityError past the model's trained length."""
    assert cache.shape is not None
    limit = cache.shape.max_positions
    if limit is None or length <= limit:
        return
    if cache.options.allow_extrapolation and cache.shape.is_rotary:
        return
    if not cache.shape.is_rotary:
        cure = "shorten the text: this model's positions are a learned table"
    elif cache.options.positions == "in_cache":
        cure = "give the prompt in shorter calls: a selector numbers the whole of one"
    else:
        cure = "use positions='in_cache', or allow_extrapolation=True"
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
