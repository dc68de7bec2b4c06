"""Tiles: the inner loops of all products, several sums at once in registers.

A sum runs over its terms in vectors of LANES, in order, and ends in the tree of `emit_sums`:
its bits do not depend on how many sums a tile computes side by side. Sizes of tiles are the
lengths of tuples that the caller hands in, since numba makes one kernel for each type.
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvmmu.kernels.native.vectors import (
    _F32,
    _I64,
    FLOATS_IR,
    LANES,
    emit_constant,
    emit_fma,
    emit_load,
    emit_prefetch,
    emit_splat,
    emit_sums,
)

__all__ = ["dots", "weighted_rows"]


_LINE_BYTES = 64
_AHEAD_BYTES = 4096
"""How far ahead memory is asked for: what a core reads in the time that memory takes to answer.

CPUs fetch ahead by themselves, but not across the ends of short rows: worth a factor of 2 with
int8 weights of 768 columns.
"""


def element_bytes(token: Any) -> int:
    """Size of the numbers that a token names."""
    return {types.float32: 4, types.int32: 4, types.int8: 1}.get(token, 2)


def _int(value: int) -> Any:
    return ir.Constant(_I64, value)


def _accumulators(builder: Any, num: int) -> list[Any]:
    """Allocate vectors that LLVM will keep in registers, zero."""
    made = [cgutils.alloca_once(builder, FLOATS_IR) for _ in range(num)]
    for vector in made:
        builder.store(emit_constant(0.0), vector)
    return made


def _add_product(builder: Any, sum_: Any, a: Any, b: Any) -> None:
    builder.store(emit_fma(builder, a, b, builder.load(sum_)), sum_)


def _at_most(builder: Any, first: Any, more: int, last: Any) -> Any:
    """Return min(first + more, last)."""
    i = builder.add(first, _int(more))
    return builder.select(builder.icmp_signed("<", i, last), i, last)


def _at_least(builder: Any, x: Any, least: int) -> Any:
    """Return max(x, least)."""
    return builder.select(builder.icmp_signed(">", x, _int(least)), x, _int(least))


@intrinsic
def dots(context, rows, columns, kind, x, x_tile, w, w_tile, span, out, out_bytes):
    """Store the products of R rows of x with S rows of w at out, S float32 side by side.

    rows, columns: tuples of R and S ints, of which only the lengths count. kind is the token of
    w's numbers, x holds float32. x_tile, w_tile: (first row, last row that exists, bytes a row);
    a row past the last is the last again. span: (terms, tail): terms is a multiple of LANES; with
    tail >= 0, LANES more terms follow, in x after the others, in w from element `tail`.
    """
    R, S = rows.count, columns.count

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, _, x, x_tile, w, w_tile, span, out, out_bytes = values

        def starts(base: Any, tile: Any, count: int) -> list[Any]:
            first, last, step = cgutils.unpack_tuple(builder, tile)
            at = [_at_most(builder, first, i, last) for i in range(count)]
            return [builder.add(base, builder.mul(i, step)) for i in at]

        x_rows, w_rows = starts(x, x_tile, R), starts(w, w_tile, S)
        num, tail = cgutils.unpack_tuple(builder, span)
        sums = _accumulators(builder, R * S)

        def add_terms(at_x: Any, at_w: Any) -> None:
            at = builder.mul(at_w, _int(element_bytes(kind)))
            loaded = [emit_load(builder, kind, builder.add(a, at)) for a in w_rows]
            at = builder.mul(at_x, _int(4))
            for r, a in enumerate(x_rows):
                row = emit_load(builder, types.float32, builder.add(a, at))
                for s, column in enumerate(loaded):
                    _add_product(builder, sums[r * S + s], row, column)

        # a cache line of each row at a time, while the same line of the next tile comes
        size = element_bytes(kind)
        line = max(1, _LINE_BYTES // (LANES * size)) * LANES
        rest = builder.srem(num, _int(line))
        end = builder.sub(num, rest)
        _, _, step = cgutils.unpack_tuple(builder, w_tile)
        ahead = _at_least(builder, builder.mul(step, _int(S)), _AHEAD_BYTES)
        with cgutils.for_range_slice(builder, _int(0), end, _int(line), _I64) as (i, _):
            at = builder.add(builder.mul(i, _int(size)), ahead)
            for a in w_rows:
                emit_prefetch(builder, builder.add(a, at))
            for more in range(0, line, LANES):
                at = builder.add(i, _int(more))
                add_terms(at, at)
        with cgutils.for_range_slice(builder, end, num, _int(LANES), _I64) as (i, _):
            add_terms(i, i)
        with builder.if_then(builder.icmp_signed(">=", tail, _int(0))):
            add_terms(num, tail)
        found = emit_sums(builder, [builder.load(x) for x in sums])
        for i, value in enumerate(found):
            at = builder.add(out, builder.mul(out_bytes, _int(i // S)))
            at = builder.add(at, _int(4 * (i % S)))
            builder.store(value, builder.inttoptr(at, _F32.as_pointer()), align=1)
        return context.get_dummy_value()

    long = types.int64
    tile = types.UniTuple(long, 3)
    return types.void(
        rows, columns, kind, long, tile, long, tile, types.UniTuple(long, 2), long, long
    ), generate


@intrinsic
def weighted_rows(context, heads, columns, kind, weights, index, values, num, first, out):
    """Store, for each head, the sum over c of weights[head, c] * values[index[c]], some columns.

    heads, columns: tuples of which only the lengths count; the columns are that many vectors of
    LANES elements from element `first` of a row. weights, values, out: (address, bytes a row);
    weights and out hold float32, index int32 [num], values numbers that the token `kind` names.
    """
    G, num_columns = heads.count, columns.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index, num, first = args[4], args[6], args[7]
        weights, weights_bytes = cgutils.unpack_tuple(builder, args[3])
        rows, row_bytes = cgutils.unpack_tuple(builder, args[5])
        out, out_bytes = cgutils.unpack_tuple(builder, args[8])
        starts = [builder.add(first, _int(j * LANES)) for j in range(num_columns)]
        sums = _accumulators(builder, G * num_columns)
        heads_at = [builder.add(weights, builder.mul(weights_bytes, _int(g))) for g in range(G)]

        def number(kind: Any, base: Any, i: Any) -> Any:
            at = builder.add(base, builder.mul(i, _int(4)))
            return builder.load(builder.inttoptr(at, kind.as_pointer()), align=1)

        size = _int(element_bytes(kind))
        with cgutils.for_range_slice(builder, _int(0), num, _int(1), _I64) as (c, _):
            slot = builder.sext(number(ir.IntType(32), index, c), _I64)
            row = builder.add(rows, builder.mul(slot, row_bytes))
            loaded = [
                emit_load(builder, kind, builder.add(row, builder.mul(d, size))) for d in starts
            ]
            soon = builder.add(row, _int(_AHEAD_BYTES))
            for line in range(0, num_columns * LANES * element_bytes(kind), _LINE_BYTES):
                at = builder.add(builder.mul(first, size), _int(line))
                emit_prefetch(builder, builder.add(soon, at))
            for g, at in enumerate(heads_at):
                weight = emit_splat(builder, number(_F32, at, c))
                for j, value in enumerate(loaded):
                    _add_product(builder, sums[g * num_columns + j], weight, value)
        for g in range(G):
            base = builder.add(out, builder.mul(out_bytes, _int(g)))
            for j, d in enumerate(starts):
                at = builder.inttoptr(
                    builder.add(base, builder.mul(d, _int(4))), FLOATS_IR.as_pointer()
                )
                builder.store(builder.load(sums[g * num_columns + j]), at, align=1)
        return context.get_dummy_value()

    long, place = types.int64, types.UniTuple(types.int64, 2)
    return types.void(heads, columns, kind, place, long, place, long, long, place), generate
