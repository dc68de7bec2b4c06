"""Vectors that may hang over the end of what there is.

The part that hangs over is moved number by number, by functions that LLVM is told not to inline:
they stand in many places, are seldom called, and would make compiling several times longer.
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kvmmu.kernels.native.operations import bits, from_bits, load, load_ints, store
from kvmmu.kernels.native.vectors import INTS, INTS_IR, LANES

__all__ = ["floats_at", "ints_at", "put_floats"]

F4 = np.float32(0)

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _function(module: Any, name: str, kind: Any, fill: Callable[[Any, Any], None]) -> Any:
    """Return a function of the module that is called, never inlined; `fill` builds its body."""
    found = cgutils.get_or_insert_function(module, kind, name)
    if found.is_declaration:
        found.linkage = "linkonce_odr"
        found.attributes.add("noinline")
        fill(ir.IRBuilder(found.append_basic_block()), found.args)
    return found


def _number(builder: Any, base: Any, i: Any) -> Any:
    """Point at the i-th int32 from an address."""
    at = builder.add(base, builder.mul(i, ir.Constant(_I64, 4)))
    return builder.inttoptr(at, _I32.as_pointer())


def _fill_load(builder: Any, args: Any) -> None:
    """Build: load `num` numbers, `rest` in the other lanes."""
    address, num, rest = args
    held = builder.alloca(INTS_IR)
    base = builder.ptrtoint(held, _I64)
    end = ir.Constant(_I64, LANES)
    with cgutils.for_range(builder, end, intp=_I64) as loop:
        builder.store(rest, _number(builder, base, loop.index))
    with cgutils.for_range(builder, num, intp=_I64) as loop:
        value = builder.load(_number(builder, address, loop.index), align=1)
        builder.store(value, _number(builder, base, loop.index))
    builder.ret(builder.load(held))


def _fill_store(builder: Any, args: Any) -> None:
    """Build: store the first `num` lanes."""
    address, num, vector = args
    held = builder.alloca(INTS_IR)
    builder.store(vector, held)
    base = builder.ptrtoint(held, _I64)
    with cgutils.for_range(builder, num, intp=_I64) as loop:
        value = builder.load(_number(builder, base, loop.index))
        builder.store(value, _number(builder, address, loop.index), align=1)
    builder.ret_void()


@intrinsic
def _load_part(context, address, num, rest):
    kind = ir.FunctionType(INTS_IR, [_I64, _I64, _I32])

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _function(builder.module, f"kvmmu_load_part_{LANES}", kind, _fill_load)
        return builder.call(function, values)

    return INTS(types.int64, types.int64, types.int32), generate


@intrinsic
def _store_part(context, address, num, vector):
    kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, INTS_IR])

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _function(builder.module, f"kvmmu_store_part_{LANES}", kind, _fill_store)
        builder.call(function, values)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, INTS), generate


@njit
def ints_at(address, num, rest):
    """Load LANES ints, or the `num` that there are; the other lanes hold `rest`."""
    if num >= LANES:
        return load_ints(address)
    return _load_part(address, num, rest)


@njit
def floats_at(address, num):
    """Load LANES floats, or the `num` that there are; the other lanes hold 0."""
    if num >= LANES:
        return load(F4, address)
    return from_bits(_load_part(address, num, np.int32(0)))


@njit
def put_floats(address, num, x):
    """Store LANES floats, or the first `num` of them."""
    if num >= LANES:
        store(F4, address, x)
    else:
        _store_part(address, num, bits(x))
