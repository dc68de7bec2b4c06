"""The programs of a chunk's attention. Contract: kernels/contract.py; launched by prefill.py.

attend_queries  one program per (row, KV head, block of queries): rows of its tile are (query,
                query head) pairs, so that the group shares the tiles of K and V
reduce_keys     one program per (row, KV head, block of keys): K's tile stays while it walks the
                queries, one query head after the other

Each output has one writer: out, peaks and sums in the first launch, stats in the second, which
reads peaks and sums that the first has finished.
"""
# mypy: disallow-untyped-defs=false, disallow-untyped-decorators=false
# mypy: disallow-untyped-calls=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend_queries", "reduce_keys"]


@triton.jit
def _capped(dots, factor, cap, HAS_CAP: tl.constexpr):
    """Turn dot products into logits of base 2: factor * dot, or cap * tanh(factor * dot)."""
    x = dots * factor
    if HAS_CAP:  # tanh by exp2, which saturates at both ends and has no NaN
        x = cap * (1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268)))
    return x


@triton.jit
def _visible(key, query, HORIZON: tl.constexpr):
    """Mark what each query sees; key positions [BN], query positions [BM] -> [BM,BN]."""
    visible = (key >= 0)[None, :] & (key[None, :] <= query[:, None])
    if HORIZON > 0:
        visible = visible & (key[None, :] > query[:, None] - HORIZON)
    return visible


@triton.jit
def attend_queries(
    q,
    k,
    v,
    key_positions,
    query_positions,
    sinks,
    out,
    peaks,
    sums,
    factor,
    cap,
    Q,
    N,
    q_row,
    q_head,
    q_query,
    k_row,
    k_head,
    k_key,
    v_row,
    v_head,
    v_key,
    out_row,
    out_head,
    out_query,
    kp_row,
    kp_head,
    kp_key,
    qp_row,
    qp_query,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HORIZON: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
):
    """Attend; grid (B * HKV, blocks of Q * G)."""
    row = (tl.program_id(0) // HKV).to(tl.int64)
    head = (tl.program_id(0) % HKV).to(tl.int64)
    pairs = tl.program_id(1) * BM + tl.arange(0, BM)
    queries = (pairs // G).to(tl.int64)
    heads = head * G + pairs % G
    is_pair = queries < Q
    dims = tl.arange(0, DP)
    value_dims = tl.arange(0, DVP)
    places = row * q_row + heads * q_head + queries * q_query
    mask = is_pair[:, None] & (dims < D)[None, :]
    q_tile = tl.load(q + places[:, None] + dims[None, :], mask=mask, other=0.0)
    at = tl.load(query_positions + row * qp_row + queries * qp_query, mask=is_pair, other=-1)
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    key_positions += row * kp_row + head * kp_head
    if UPCAST:
        q_tile = q_tile.to(tl.float32)
    if HAS_SINKS:
        peak = tl.load(sinks + heads, mask=is_pair, other=0.0) * 1.4426950408889634
        total = tl.full([BM], 1.0, tl.float32)
    else:
        peak = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
    mixed = tl.zeros([BM, DVP], tl.float32)
    for start in range(0, N, BN):
        keys = start + tl.arange(0, BN)
        inside = keys < N
        far = keys.to(tl.int64)
        key_at = tl.load(key_positions + far * kp_key, mask=inside, other=-1)
        k_mask = inside[:, None] & (dims < D)[None, :]
        k_tile = tl.load(k + far[:, None] * k_key + dims[None, :], mask=k_mask, other=0.0)
        v_mask = inside[:, None] & (value_dims < DV)[None, :]
        v_tile = tl.load(v + far[:, None] * v_key + value_dims[None, :], mask=v_mask, other=0.0)
        v_tile = tl.where((key_at >= 0)[:, None], v_tile, 0.0)  # an empty slot may hold NaN
        if UPCAST:
            k_tile = k_tile.to(tl.float32)
            v_tile = v_tile.to(tl.float32)
        logit = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        logit = _capped(logit, factor, cap, HAS_CAP)
        logit = tl.where(_visible(key_at, at, HORIZON), logit, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logit, 1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing visible so far
        p = tl.exp2(logit - shift[:, None])
        alpha = tl.exp2(peak - shift)
        total = total * alpha + tl.sum(p, 1)
        mixed = tl.dot(p.to(v_tile.dtype), v_tile, mixed * alpha[:, None], input_precision="ieee")
        peak = new_peak
    total = tl.where(total > 0.0, total, 1.0)  # a pad: nothing to divide
    spots = row * out_row + heads * out_head + queries * out_query
    out_mask = is_pair[:, None] & (value_dims < DV)[None, :]
    mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + spots[:, None] + value_dims[None, :], mixed, mask=out_mask)
    rows = (row * (HKV * G) + heads) * Q + queries  # of [B,Hq,Q]
    tl.store(peaks + rows, tl.where(peak == float("-inf"), 0.0, peak), mask=is_pair)
    tl.store(sums + rows, total, mask=is_pair)


@triton.jit
def reduce_keys(
    q,
    k,
    key_positions,
    query_positions,
    query_weights,
    last_weights,
    newest,
    peaks,
    sums,
    stats,
    factor,
    cap,
    Q,
    N,
    q_row,
    q_head,
    q_query,
    k_row,
    k_head,
    k_key,
    kp_row,
    kp_head,
    kp_key,
    qp_row,
    qp_query,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HORIZON: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    MASS_AT: tl.constexpr,
    MAX_AT: tl.constexpr,
    NEWEST_AT: tl.constexpr,
    LAST_AT: tl.constexpr,
    LAST_SQ_AT: tl.constexpr,
    P: tl.constexpr,
    GRACE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DP: tl.constexpr,
):
    """Reduce over queries; grid (B * HKV, blocks of N). Query tensors [B,Q], newest [B]."""
    row = (tl.program_id(0) // HKV).to(tl.int64)
    head = (tl.program_id(0) % HKV).to(tl.int64)
    keys = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = keys < N
    dims = tl.arange(0, DP)
    places = row * k_row + head * k_head + keys.to(tl.int64) * k_key
    k_mask = inside[:, None] & (dims < D)[None, :]
    k_tile = tl.load(k + places[:, None] + dims[None, :], mask=k_mask, other=0.0)
    spots = row * kp_row + head * kp_head + keys.to(tl.int64) * kp_key
    key_at = tl.load(key_positions + spots, mask=inside, other=-1)
    if UPCAST:
        k_tile = k_tile.to(tl.float32)
    last_query_at = tl.load(newest + row)
    mass = tl.zeros([BN], tl.float32)
    largest = tl.zeros([BN], tl.float32)
    newest_mean = tl.zeros([BN], tl.float32)
    last_sum = tl.zeros([BN], tl.float32)
    last_square = tl.zeros([BN], tl.float32)
    for start in range(0, Q, BM):
        queries = (start + tl.arange(0, BM)).to(tl.int64)
        is_query = queries < Q
        at = tl.load(query_positions + row * qp_row + queries * qp_query, mask=is_query, other=-1)
        visible = _visible(key_at, at, HORIZON)
        of_group = tl.zeros([BM, BN], tl.float32)
        squares = tl.zeros([BM, BN], tl.float32)
        for g in range(G):
            heads = head * G + g
            mask = is_query[:, None] & (dims < D)[None, :]
            offsets = row * q_row + heads * q_head + queries * q_query
            q_tile = tl.load(q + offsets[:, None] + dims[None, :], mask=mask, other=0.0)
            if UPCAST:
                q_tile = q_tile.to(tl.float32)
            rows = (row * (HKV * G) + heads) * Q + queries
            peak = tl.load(peaks + rows, mask=is_query, other=0.0)
            total = tl.load(sums + rows, mask=is_query, other=1.0)
            logit = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
            logit = _capped(logit, factor, cap, HAS_CAP)
            logit = tl.where(visible, logit, float("-inf"))
            # another tile shape may round a logit above the peak of the first launch
            p = tl.minimum(tl.exp2(logit - peak[:, None]) / total[:, None], 1.0)
            of_group += p
            if LAST_SQ_AT >= 0:
                squares += p * p
        weight = tl.load(query_weights + row * Q + queries, mask=is_query, other=0.0)
        counted = tl.where(key_at[None, :] <= at[:, None] - GRACE, of_group, 0.0)
        counted = counted * weight[:, None]
        if MASS_AT >= 0:
            mass += tl.sum(counted, 0)
        if MAX_AT >= 0:
            largest = tl.maximum(largest, tl.max(counted, 0))
        if NEWEST_AT >= 0:
            is_newest = (at == last_query_at)[:, None]
            newest_mean += tl.sum(tl.where(is_newest, of_group, 0.0), 0)
        if LAST_AT >= 0 or LAST_SQ_AT >= 0:
            last = tl.load(last_weights + row * Q + queries, mask=is_query, other=0.0)
            last_sum += tl.sum(of_group * last[:, None], 0)
            last_square += tl.sum(squares * last[:, None], 0)
    stats += (row * HKV + head) * P * N + keys
    if MASS_AT >= 0:
        tl.store(stats + MASS_AT * N, mass, mask=inside)
    if MAX_AT >= 0:
        tl.store(stats + MAX_AT * N, largest / G, mask=inside)
    if NEWEST_AT >= 0:
        tl.store(stats + NEWEST_AT * N, newest_mean / G, mask=inside)
    if LAST_AT >= 0:
        tl.store(stats + LAST_AT * N, last_sum / G, mask=inside)
    if LAST_SQ_AT >= 0:
        tl.store(stats + LAST_SQ_AT * N, last_square / G, mask=inside)
