"""write_slots and select_victims on CUDA. Contract: kernels/contract.py."""
# mypy: disallow-untyped-defs=false, disallow-untyped-decorators=false
# mypy: disallow-untyped-calls=false, disallow-incomplete-defs=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvmmu.kernels.triton.launch import OPTIONS, on_device, pad

__all__ = ["select_victims", "write_slots"]


def write_slots(store: Tensor, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
    """Overwrite one slot per head. store [B,Hkv,C,*], slots [B,Hkv], rows [B,Hkv,*]."""
    B, Hkv = slots.shape
    if B * Hkv == 0:
        return
    if store.dtype == torch.bool:
        store, rows = store.view(torch.uint8), rows.view(torch.uint8)
    if store.ndim == 3:
        store, rows = store[..., None], rows[..., None]
    width = store.shape[3]
    with on_device(store.device):
        _write_row[(B * Hkv,)](
            store,
            slots,
            rows,
            store if valid is None else valid.view(torch.uint8),
            *store.stride(),
            *slots.stride(),
            *rows.stride(),
            1 if valid is None else valid.stride(0),
            HKV=Hkv,
            WIDTH=width,
            BLOCK=pad(width),
            HAS_VALID=valid is not None,
            num_warps=1,
            **OPTIONS,
        )


def select_victims(ranks: Tensor) -> Tensor:
    """Return the first slot of the least rank. ranks [B,Hkv,C] -> int64 [B,Hkv]."""
    B, Hkv, C = ranks.shape
    victims = torch.empty(B, Hkv, dtype=torch.int64, device=ranks.device)
    if B * Hkv == 0:
        return victims
    with on_device(ranks.device):
        _least_rank[(B * Hkv,)](
            ranks,
            victims,
            *ranks.stride(),
            HKV=Hkv,
            C=C,
            BLOCK=min(pad(C), 1024),
            num_warps=4,
            **OPTIONS,
        )
    return victims


@triton.jit
def _write_row(
    store,
    slots,
    rows,
    valid,
    store_row,
    store_head,
    store_slot,
    store_dim,
    slots_row,
    slots_head,
    rows_row,
    rows_head,
    rows_dim,
    valid_row,
    HKV: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_VALID: tl.constexpr,
):
    """Write one row of one head; grid (B * HKV,). No two programs write one place."""
    program = tl.program_id(0).to(tl.int64)
    row = program // HKV
    head = program % HKV
    dims = tl.arange(0, BLOCK)
    width = WIDTH
    if HAS_VALID:
        width = tl.where(tl.load(valid + row * valid_row) != 0, WIDTH, 0)
    mask = dims < width
    slot = tl.load(slots + row * slots_row + head * slots_head).to(tl.int64)
    new = tl.load(rows + row * rows_row + head * rows_head + dims * rows_dim, mask=mask)
    place = store + row * store_row + head * store_head + slot * store_slot
    tl.store(place + dims * store_dim, new, mask=mask)


@triton.jit
def _least_rank(
    ranks,
    victims,
    ranks_row,
    ranks_head,
    ranks_slot,
    HKV: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the least rank of one head; grid (B * HKV,)."""
    program = tl.program_id(0).to(tl.int64)
    base = ranks + (program // HKV) * ranks_row + (program % HKV) * ranks_head
    lanes = tl.arange(0, BLOCK)
    least = tl.load(base + lanes * ranks_slot, mask=lanes < C, other=float("inf"))
    at = lanes
    for start in range(BLOCK, C, BLOCK):
        slots = start + lanes
        rank = tl.load(base + slots * ranks_slot, mask=slots < C, other=float("inf"))
        is_less = rank < least
        least = tl.where(is_less, rank, least)
        at = tl.where(is_less, slots, at)
    victim = tl.min(tl.where(least == tl.min(least, 0), at, 2147483647), 0)
    tl.store(victims + program, victim.to(tl.int64))
