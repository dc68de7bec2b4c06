"""A decoder layer's two halves around the attention, and a product alone, each one parallel call.

Between parallel loops all threads wait for each other; what is small (norms of a few rows) every
thread computes for itself instead. Tuples that travel together:

    matrix  (weight address, bytes of a row, scales, bias): the last two may be 0 for none
    norm    (kind, weight, bias)
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit, prange

from kvmmu.kernels.native.access import floats_at, put_floats
from kvmmu.kernels.native.functions import activate
from kvmmu.kernels.native.operations import mul
from kvmmu.kernels.native.products import finish_product, product, put_row, row_width, share
from kvmmu.kernels.native.rows import NO_NORM, norm_row, rotate_row
from kvmmu.kernels.native.vectors import LANES

__all__ = ["finish_rows", "linear_rows", "project_rows"]

NO_QK_NORM, HEAD_NORM, WIDTH_NORM = range(3)
"""Over what queries and keys are normed, as kernels name it."""


@njit
def _laid_out(x, x_bytes, M, K, norm, eps):
    """Norm M rows of K floats and lay them out for `product`. -> [M, row_width(K)]."""
    rows = np.empty((M, row_width(K)), np.float32)
    normed = np.empty(K, np.float32)
    for m in range(M):
        row = np.int64(x + m * x_bytes)
        if norm[0] == NO_NORM:
            put_row(row, K, rows[m])
        else:
            _norm_into(norm, row, K, eps, normed)
            _put_array(normed, K, rows[m])
    return rows


@njit
def _norm_into(norm, x, K, eps, out):
    norm_row(norm[0], x, K, norm[1], norm[2], eps, np.int64(out.ctypes.data))


@njit
def _put_array(x, K, row):
    put_row(np.int64(x.ctypes.data), K, row)


@njit
def _some_columns(kind, rows, matrix, out, out_bytes, first, last, K, residual, residual_bytes):
    """Compute columns [first, last) of rows @ W^T, finished."""
    w, w_bytes, scales, bias = matrix
    M = rows.shape[0]
    product(kind, rows, w, w_bytes, out, out_bytes, first, last, K)
    finish_product(out, out_bytes, M, first, last, scales, bias, residual, residual_bytes)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def linear_rows(kind, matrix, norm, eps, x, x_bytes, sizes, out, threads):
    """Put norm(x) W^T into out, contiguous; sizes: M, N, K."""
    for t in prange(threads):
        M, N, K = sizes
        rows = _laid_out(x, x_bytes, M, K, norm, eps)
        first, last = share(N, 4, t, threads), share(N, 4, t + 1, threads)
        _some_columns(kind, rows, matrix, out, 4 * N, first, last, K, 0, 0)


@njit
def _turn_head(at, h, m, heads, norms, eps, turns):
    """Norm and rotate head h of row m, at an address; heads: Hq, Hkv, D, half, qk_norm."""
    Hq, Hkv, D, half, qk_norm = heads
    if h >= Hq + Hkv:
        return
    if qk_norm == HEAD_NORM:
        weight = norms[0] if h < Hq else norms[1]
        norm_row(1, at, D, weight, 0, eps, at)
    if half > 0:
        cos, sin, turn_bytes = turns
        rotate_row(at, half, cos + m * turn_bytes, sin + m * turn_bytes)


@njit
def _turn_wide(out, M, heads, norms, eps, turns):
    """Norm whole rows of queries and of keys, then rotate."""
    Hq, Hkv, D, _, _ = heads
    row_bytes = 4 * D * (Hq + 2 * Hkv)
    for m in range(M):
        q = out + m * row_bytes
        k = q + 4 * D * Hq
        norm_row(1, q, Hq * D, norms[0], 0, eps, q)
        norm_row(1, k, Hkv * D, norms[1], 0, eps, k)
        for h in range(Hq + Hkv):
            _turn_head(q + 4 * D * h, h, m, heads, norms, eps, turns)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def project_rows(kind, matrix, norm, norms, eps, x, x_bytes, sizes, heads, turns, out, threads):
    """Put queries, keys and values of x into out [M, (Hq + 2 Hkv) D]; sizes: M, H.

    norms: weights of the norms of queries and keys; turns: cos, sin, bytes of a row of them.
    """
    for t in prange(threads):
        M, H = sizes
        Hq, Hkv, D, _, qk_norm = heads
        num = Hq + 2 * Hkv
        a, b = share(num, 1, t, threads), share(num, 1, t + 1, threads)
        rows = _laid_out(x, x_bytes, M, H, norm, eps)
        _some_columns(kind, rows, matrix, out, 4 * num * D, a * D, b * D, H, 0, 0)
        if qk_norm != WIDTH_NORM:
            for m in range(M):
                for h in range(a, b):
                    at = out + 4 * D * (m * num + h)
                    _turn_head(at, h, m, heads, norms, eps, turns)
    if heads[4] == WIDTH_NORM:
        _turn_wide(out, sizes[0], heads, norms, eps, turns)


@njit
def _some_of_mlp(kind, rows, up, act, is_gated, first, last, K, inner, both, hidden):
    """Compute hidden numbers [first, last) of all rows: activation(gate) * up, or of up alone.

    both [M, 2I or inner] is where the products go, hidden [M, row_width(inner)]
    where the result goes.
    """
    M, width = both.shape
    out, out_bytes = np.int64(both.ctypes.data), 4 * width
    _some_columns(kind, rows, up, out, out_bytes, first, last, K, 0, 0)
    if is_gated:
        _some_columns(kind, rows, up, out, out_bytes, inner + first, inner + last, K, 0, 0)
    for m in range(M):
        for i in range(first, last, LANES):
            num = last - i
            y = activate(act, floats_at(out + m * out_bytes + 4 * i, num))
            if is_gated:
                y = mul(y, floats_at(out + m * out_bytes + 4 * (inner + i), num))
            put_floats(np.int64(hidden.ctypes.data) + 4 * (m * hidden.shape[1] + i), num, y)


@njit
def _norm_and_add(norm, eps, y, residual, residual_bytes, M, H):
    """Put residual + norm(y) into y [M,H], an array."""
    at = np.int64(y.ctypes.data)
    for m in range(M):
        row = at + 4 * m * y.shape[1]
        norm_row(norm[0], row, H, norm[1], norm[2], eps, row)
        finish_product(row, 0, 1, 0, H, 0, 0, residual + m * residual_bytes, 0)


@njit
def _settle(hidden, inner):
    """Move what a last vector needs to its end; see put_row. hidden [M, row_width(inner)]."""
    left = inner % LANES
    if left == 0:
        return
    num = inner - left
    for m in range(hidden.shape[0]):
        for i in range(left - 1, -1, -1):
            hidden[m, num + LANES - left + i] = hidden[m, num + i]
        for i in range(LANES - left):
            hidden[m, num + i] = np.float32(0)


@njit
def _address(x):
    return np.int64(x.ctypes.data)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def finish_rows(kind, o, up, down, attn_norm, mlp_norm, eps, x, attended, sizes, mlp, out, threads):
    """Add the attention's output product and the MLP to x [M,H], into out [M,H].

    sizes: M, H, width of attended, inner, bytes of a row of x and of attended; mlp: activation,
    is_gated, is_post (norms are on what leaves attention and MLP).
    """
    M, H, A, inner, x_bytes, a_bytes = sizes
    act, is_gated, is_post = mlp
    middle = np.empty((M, H), np.float32)
    both = np.empty((M, 2 * inner if is_gated else inner), np.float32)
    hidden = np.empty((M, row_width(inner)), np.float32)
    no_norm = (np.int64(NO_NORM), np.int64(0), np.int64(0))
    for t in prange(threads):
        rows = _laid_out(attended, a_bytes, M, A, no_norm, eps)
        a, b = share(H, 4, t, threads), share(H, 4, t + 1, threads)
        residual = np.int64(0 if is_post else x)
        _some_columns(kind, rows, o, _address(middle), 4 * H, a, b, A, residual, x_bytes)
    if is_post:
        _norm_and_add(attn_norm, eps, middle, x, x_bytes, M, H)
    for t in prange(threads):
        before = no_norm if is_post else mlp_norm
        rows = _laid_out(_address(middle), 4 * H, M, H, before, eps)
        a, b = share(inner, LANES, t, threads), share(inner, LANES, t + 1, threads)
        _some_of_mlp(kind, rows, up, act, is_gated, a, b, H, inner, both, hidden)
    _settle(hidden, inner)
    for t in prange(threads):
        a, b = share(H, 4, t, threads), share(H, 4, t + 1, threads)
        residual = np.int64(0) if is_post else _address(middle)
        _some_columns(kind, hidden, down, out, 4 * H, a, b, inner, residual, 4 * H)
    if is_post:
        _post(mlp_norm, eps, out, middle, M, H)


@njit
def _post(norm, eps, out, residual, M, H):
    """Put residual + norm(out) into out [M,H], an address; residual an array."""
    for m in range(M):
        row = out + 4 * m * H
        norm_row(norm[0], row, H, norm[1], norm[2], eps, row)
        finish_product(row, 0, 1, 0, H, 0, 0, _address(residual) + 4 * m * H, 0)
