"""Operations on vectors and addresses, for use inside numba functions; see vectors.py."""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvmmu.kernels.native.vectors import (
    _ELEMENT,
    FLOATS,
    FLOATS_IR,
    INTS,
    INTS_IR,
    LANES,
    TRUTHS,
    emit_fma,
    emit_load,
    emit_narrow,
    emit_splat,
    emit_sums,
    emit_widen,
)

__all__ = [
    "add",
    "as_floats",
    "bits",
    "both",
    "div",
    "either",
    "fma",
    "from_bits",
    "greater",
    "greatest",
    "iota",
    "is_nan",
    "less",
    "load",
    "load_ints",
    "mul",
    "order_key",
    "pick",
    "read",
    "shift_left",
    "smallest",
    "splat",
    "store",
    "store_ints",
    "sub",
    "total",
    "write",
]

Emit = Callable[[Any, Any, Any], Any]


def _code(emit: Emit) -> Any:
    """Adapt emit(builder, types, values) to what numba calls."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return emit(builder, signature.args, values)

    return generate


def _arithmetic(floats: str, ints: str, a: Any) -> Any:
    """Emit the builder's method for floats or for ints."""
    name = floats if a == FLOATS else ints
    return a(a, a), _code(lambda builder, kinds, v: getattr(builder, name)(*v))


@intrinsic
def add(context, a, b):
    """Add, lane by lane."""
    return _arithmetic("fadd", "add", a)


@intrinsic
def sub(context, a, b):
    """Subtract, lane by lane."""
    return _arithmetic("fsub", "sub", a)


@intrinsic
def mul(context, a, b):
    """Multiply, lane by lane."""
    return _arithmetic("fmul", "mul", a)


@intrinsic
def div(context, a, b):
    """Divide floats, lane by lane."""
    return _arithmetic("fdiv", "sdiv", a)


@intrinsic
def fma(context, a, b, c):
    """Return a * b + c of floats."""
    return a(a, a, a), _code(lambda builder, kinds, v: emit_fma(builder, *v))


@intrinsic
def splat(context, x):
    """Repeat a float32 or an int32 in all lanes."""
    kind = FLOATS if x == types.float32 else INTS
    return kind(x), _code(lambda builder, kinds, v: emit_splat(builder, v[0]))


@intrinsic
def iota(context):
    """Return 0, 1, 2, ..."""
    return INTS(), _code(lambda builder, kinds, v: ir.Constant(INTS_IR, list(range(LANES))))


def _compare(sign: str, a: Any) -> Any:
    """Emit an ordered comparison: false where a side is NaN."""

    def emit(builder: Any, kinds: Any, v: Any) -> Any:
        compare = builder.fcmp_ordered if kinds[0] == FLOATS else builder.icmp_signed
        return compare(sign, *v)

    return TRUTHS(a, a), _code(emit)


@intrinsic
def less(context, a, b):
    """Say where a < b."""
    return _compare("<", a)


@intrinsic
def greater(context, a, b):
    """Say where a > b."""
    return _compare(">", a)


@intrinsic
def is_nan(context, a):
    """Say where a float is NaN."""
    return TRUTHS(a), _code(lambda builder, kinds, v: builder.fcmp_unordered("uno", v[0], v[0]))


@intrinsic
def both(context, a, b):
    """Say where both are true."""
    return TRUTHS(a, a), _code(lambda builder, kinds, v: builder.and_(*v))


@intrinsic
def either(context, a, b):
    """Say where one is true."""
    return TRUTHS(a, a), _code(lambda builder, kinds, v: builder.or_(*v))


@intrinsic
def pick(context, truths, a, b):
    """Take a where true, else b."""
    return a(truths, a, a), _code(lambda builder, kinds, v: builder.select(*v))


@intrinsic
def bits(context, a):
    """Return the floats' bits as ints."""
    return INTS(a), _code(lambda builder, kinds, v: builder.bitcast(v[0], INTS_IR))


@intrinsic
def from_bits(context, a):
    """Return the floats of which these are the bits."""
    return FLOATS(a), _code(lambda builder, kinds, v: builder.bitcast(v[0], FLOATS_IR))


@intrinsic
def as_floats(context, a):
    """Convert ints to floats."""
    return FLOATS(a), _code(lambda builder, kinds, v: builder.sitofp(v[0], FLOATS_IR))


@intrinsic
def shift_left(context, a, places):
    """Shift ints left by `places` bits each."""
    return INTS(a, INTS), _code(lambda builder, kinds, v: builder.shl(*v))


@intrinsic
def order_key(context, a):
    """Return ints in the order of the floats, -0 before 0."""

    def emit(builder: Any, kinds: Any, v: Any) -> Any:
        raw = builder.bitcast(v[0], INTS_IR)
        sign = builder.ashr(raw, ir.Constant(INTS_IR, [31] * LANES))
        return builder.xor(raw, builder.and_(sign, ir.Constant(INTS_IR, [0x7FFFFFFF] * LANES)))

    return INTS(a), _code(emit)


@intrinsic
def total(context, a):
    """Add up the lanes, neighbours first. -> float32."""
    return types.float32(a), _code(lambda builder, kinds, v: emit_sums(builder, [v[0]])[0])


def _reduction(name: str) -> Any:
    """Emit one of LLVM's reductions of a vector."""

    def emit(builder: Any, kinds: Any, v: Any) -> Any:
        kind = ir.FunctionType(v[0].type.element, [v[0].type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), v)

    return _code(emit)


@intrinsic
def smallest(context, a):
    """Return the least lane of ints. -> int32."""
    return types.int32(a), _reduction(f"llvm.vector.reduce.smin.v{LANES}i32")


@intrinsic
def greatest(context, a):
    """Return the greatest lane of floats, NaN left out where it can be. -> float32."""
    return types.float32(a), _reduction(f"llvm.vector.reduce.fmax.v{LANES}f32")


# Memory: an address is an int64 ------------------------------------------------------------------
def _at(builder: Any, address: Any, kind: Any) -> Any:
    """Make a pointer of an address."""
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load(context, token, address):
    """Load LANES numbers of the token's type as floats."""
    return FLOATS(token, types.int64), _code(lambda b, kinds, v: emit_load(b, kinds[0], v[1]))


@intrinsic
def store(context, token, address, x):
    """Store floats as LANES numbers of the token's type."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        raw = emit_narrow(builder, signature.args[0], values[2])
        builder.store(raw, _at(builder, values[1], raw.type), align=1)
        return context.get_dummy_value()

    return types.void(token, types.int64, FLOATS), generate


@intrinsic
def load_ints(context, address):
    """Load LANES numbers of type int32."""
    return INTS(types.int64), _code(lambda b, k, v: b.load(_at(b, v[0], INTS_IR), align=1))


@intrinsic
def store_ints(context, address, x):
    """Store LANES numbers of type int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store(values[1], _at(builder, values[0], INTS_IR), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, INTS), generate


@intrinsic
def read(context, token, address):
    """Read one number of the token's type as float32, or an int32 as int32."""
    result = types.int32 if token == types.int32 else types.float32

    def emit(builder: Any, kinds: Any, v: Any) -> Any:
        raw = builder.load(_at(builder, v[1], _ELEMENT[kinds[0]]), align=1)
        return raw if kinds[0] == types.int32 else emit_widen(builder, kinds[0], raw)

    return result(token, types.int64), _code(emit)


@intrinsic
def write(context, token, address, x):
    """Write one float32 as a number of the token's type, or an int32 as int32."""
    kind = types.int32 if token == types.int32 else types.float32

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, address, x = values
        raw = x if kind == types.int32 else emit_narrow(builder, signature.args[0], x)
        builder.store(raw, _at(builder, address, raw.type), align=1)
        return context.get_dummy_value()

    return types.void(token, types.int64, kind), generate
