"""The programs of the fused step. Contract: kernels/step.py; launched by fused.py.

attend_slots   one program per (row, KV head, split of the slots): the victim's slot is
               overwritten and the G query heads of the KV head, packed into one tile, attend over
               the split. Without splits it goes on to scores and the next victim: one launch.
finish_slots   with splits, one program per (row, KV head): adds the parts up, then the same.
choose_slots   (scoring.py) one program per (lane, KV head), or per lane where heads share a
               victim: the next victim alone.

Bytes. Scores need the softmax's normaliser, known only after the last slot. The logits, float32
[N,Hq,C], are kept in scratch and read back: 8 G bytes a slot, against 4 D bytes of 16-bit K and V
(6 % at G = 4, D = 128), and every layer reuses the same scratch, so it mostly stays in the L2.
To compute them again would read K twice, 2 D bytes a slot (50 %).

Races. Lanes differ from row to row, so everything at (lane, KV head) belongs to that head's
programs, and rows never touch each other. Among them:
    - the victim's slot is written by the one program whose split holds it, and read by none in
      that launch: loads of K, V and positions mask it out, and the newcomer's logit and value
      come from k and v themselves. Which write comes first does not matter.
    - victims is read in attend_slots and written by the same program at its end, behind
      reductions that need every thread's read (no splits), or in the next launch.
    - logits, sums, peaks, the victim's position and score cross threads of one program behind
      debug_barrier (bar.sync orders global memory among a block's threads), or cross launches.
    - num_seen is written by head 0, split 0, and read by choose_slots alone, a later launch.
    - with per_layer, victims of all heads are written by choose_slots, after every reader.
No atomics; the order of every sum is fixed by shapes, so equal inputs give equal bits.
"""
# mypy: disallow-untyped-defs=false, disallow-untyped-decorators=false
# mypy: disallow-untyped-calls=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from kvmmu.kernels.triton.scoring import score_slots

__all__ = ["attend_slots", "finish_slots"]


@triton.jit
def attend_slots(
    q,
    k,
    v,
    lanes,
    at,
    keys,
    values,
    positions,
    scores,
    num_seen,
    victims,
    out,
    logits,
    peaks,
    sums,
    partials,
    scale_log2,
    decay,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    out_row,
    out_head,
    HKV: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    STATISTIC: tl.constexpr,
    GRACE: tl.constexpr,
    AGE: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
    CHOOSE: tl.constexpr,
    UPCAST: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    BC: tl.constexpr,
    SPAN: tl.constexpr,
    SPLITS: tl.constexpr,
    GS: tl.constexpr,
    BS: tl.constexpr,
):
    """Replace, attend, and without splits score and choose. Grid (N * HKV, SPLITS)."""
    program = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row = program // HKV
    head = program % HKV
    heads = tl.arange(0, GP)
    dims = tl.arange(0, DP)
    is_own = (heads < G)[:, None] & (dims < D)[None, :]
    outs = out + row * out_row + (head * G + heads)[:, None] * out_head + dims[None, :]
    lane = tl.load(lanes + row)
    if lane < 0:
        if SPLITS == 1:
            tl.store(outs, tl.zeros([GP, DP], out.dtype.element_ty), mask=is_own)
        return
    here = lane.to(tl.int64) * HKV + head  # of [B,Hkv]
    victim = tl.load(victims + here)
    position = tl.load(at + row)
    keys += here * (C * D)
    values += here * (C * D)
    positions += here * C
    scores += here * C
    first = row * (HKV * G) + head * G  # of [N,Hq]
    logits += first * C

    queries = q + row * q_row + (head * G + heads)[:, None] * q_head + dims[None, :]
    q_tile = tl.load(queries, mask=is_own, other=0.0)
    key = tl.load(k + row * k_row + head * k_head + dims, mask=dims < D, other=0.0)
    value = tl.load(v + row * v_row + head * v_head + dims, mask=dims < D, other=0.0)
    newest = tl.sum(q_tile.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale_log2  # [GP]
    low = split * SPAN
    if UPCAST:
        q_tile = q_tile.to(tl.float32)

    peak = tl.full([GP], float("-inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    mixed = tl.zeros([GP, DP], tl.float32)
    for start in range(0, SPAN, BC):
        slots = low + start + tl.arange(0, BC)
        inside = slots < C
        is_victim = slots == victim
        held = inside & (slots != victim)
        held_positions = tl.load(positions + slots, mask=held, other=-1)
        visible = (held_positions >= 0) & (held_positions <= position)
        if HORIZON > 0:
            visible = visible & (held_positions > position - HORIZON)
        places = slots[:, None] * D + dims[None, :]
        mask = held[:, None] & (dims < D)[None, :]
        k_tile = tl.load(keys + places, mask=mask, other=0.0)
        mask = visible[:, None] & (dims < D)[None, :]  # what nobody sees may be NaN
        v_tile = tl.load(values + places, mask=mask, other=0.0)
        if UPCAST:
            k_tile = k_tile.to(tl.float32)
            v_tile = v_tile.to(tl.float32)
        logit = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        logit = tl.where(visible[None, :], logit, float("-inf"))
        logit = tl.where((is_victim & inside)[None, :], newest[:, None], logit)
        if STATISTIC != "none":
            rows = heads[:, None] * C + slots[None, :]
            tl.store(logits + rows, logit, mask=(heads < G)[:, None] & inside[None, :])
        new_peak = tl.maximum(peak, tl.max(logit, 1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing visible so far
        p = tl.exp2(logit - shift[:, None])
        alpha = tl.exp2(peak - shift)
        total = total * alpha + tl.sum(p, 1)
        mixed = tl.dot(p.to(v_tile.dtype), v_tile, mixed * alpha[:, None], input_precision="ieee")
        peak = new_peak

    is_here = (victim >= low) & (victim < low + SPAN)
    if is_here:
        mixed += tl.exp2(newest - peak)[:, None] * value.to(tl.float32)[None, :]
        tl.store(keys + victim * D + dims, key, mask=dims < D)
        tl.store(values + victim * D + dims, value, mask=dims < D)
        tl.store(positions + victim, position)
        tl.store(scores + victim, 0.0)
    tl.store(num_seen + lane, position + 1, mask=(head == 0) & (split == 0))
    parts = (first + heads) * SPLITS + split
    tl.store(peaks + parts, peak, mask=heads < G)
    tl.store(sums + parts, total, mask=heads < G)
    if SPLITS > 1:
        tl.store(partials + parts[:, None] * D + dims[None, :], mixed, mask=is_own)
    else:
        total = tl.where(total > 0.0, total, 1.0)  # padding rows
        tl.store(outs, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_own)
        tl.debug_barrier()
        own = tl.arange(0, GS)
        peak = tl.load(peaks + first + own, mask=own < G, other=0.0)
        total = tl.load(sums + first + own, mask=own < G, other=1.0)
        next_victim = score_slots(
            logits,
            positions,
            scores,
            peak,
            total,
            position,
            decay,
            G,
            C,
            STATISTIC,
            GRACE,
            AGE,
            NUM_SINKS,
            WINDOW,
            HORIZON,
            CHOOSE,
            GS,
            BS,
        )
        if CHOOSE:
            tl.store(victims + here, next_victim)


@triton.jit
def finish_slots(
    lanes,
    at,
    positions,
    scores,
    victims,
    out,
    logits,
    peaks,
    sums,
    partials,
    decay,
    out_row,
    out_head,
    HKV: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    STATISTIC: tl.constexpr,
    GRACE: tl.constexpr,
    AGE: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
    CHOOSE: tl.constexpr,
    SPLITS: tl.constexpr,
    SP: tl.constexpr,
    GS: tl.constexpr,
    DP: tl.constexpr,
    BS: tl.constexpr,
):
    """Add up the splits' parts, score, and choose. Grid (N * HKV,)."""
    program = tl.program_id(0).to(tl.int64)
    row = program // HKV
    head = program % HKV
    heads = tl.arange(0, GS)
    dims = tl.arange(0, DP)
    is_own = (heads < G)[:, None] & (dims < D)[None, :]
    outs = out + row * out_row + (head * G + heads)[:, None] * out_head + dims[None, :]
    lane = tl.load(lanes + row)
    if lane < 0:
        tl.store(outs, tl.zeros([GS, DP], out.dtype.element_ty), mask=is_own)
        return
    here = lane.to(tl.int64) * HKV + head
    first = row * (HKV * G) + head * G
    splits = tl.arange(0, SP)
    parts = (first + heads)[:, None] * SPLITS + splits[None, :]
    is_part = (heads < G)[:, None] & (splits < SPLITS)[None, :]
    part_peaks = tl.load(peaks + parts, mask=is_part, other=float("-inf"))
    peak = tl.where(heads < G, tl.max(part_peaks, 1), 0.0)
    weights = tl.exp2(part_peaks - peak[:, None])
    total = tl.sum(tl.load(sums + parts, mask=is_part, other=0.0) * weights, 1)
    total = tl.where(heads < G, total, 1.0)
    mixed = tl.zeros([GS, DP], tl.float32)
    for split in range(SPLITS):
        part = (first + heads) * SPLITS + split
        weight = tl.exp2(tl.load(peaks + part, mask=heads < G, other=float("-inf")) - peak)
        places = part[:, None] * D + dims[None, :]
        mixed += weight[:, None] * tl.load(partials + places, mask=is_own, other=0.0)
    tl.store(outs, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_own)
    next_victim = score_slots(
        logits + first * C,
        positions + here * C,
        scores + here * C,
        peak,
        total,
        tl.load(at + row),
        decay,
        G,
        C,
        STATISTIC,
        GRACE,
        AGE,
        NUM_SINKS,
        WINDOW,
        HORIZON,
        CHOOSE,
        GS,
        BS,
    )
    if CHOOSE:
        tl.store(victims + here, next_victim)
