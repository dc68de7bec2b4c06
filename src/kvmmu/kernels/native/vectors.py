"""A vector type for numba: LANES floats or ints, and what emits LLVM IR for them.

Everything is generic IR (vector types, llvm.fmuladd, shuffles): LLVM lowers it for any CPU, with
as many registers a vector as it takes. No operation carries fast-math flags, so every sum has one
order, the same wherever it is inlined, and NaN keeps its meaning.

Data is named by address, an int, and by a token that stands for its type: np.float32(0),
np.int8(0), np.uint16(0) for bfloat16 and np.int16(0) for float16, which numba does not take.
numba caches what calls these functions by the caller's file: after an edit here, delete the
caches of this folder (__pycache__/*.nb?).
"""

# mypy: ignore-errors
# numba's extension points and LLVM's builder have no types
from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

__all__ = ["FLOATS", "INTS", "LANES", "REGISTERS", "TRUTHS", "Vector"]


def _has_wide() -> bool:
    """Say whether numba compiles for a CPU with vectors of 512 bits."""
    if numba.config.CPU_FEATURES is not None:
        return "+avx512f" in numba.config.CPU_FEATURES
    if numba.config.CPU_NAME not in (None, "host"):
        return False
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


LANES = 16 if _has_wide() else 8
"""Floats in a vector: 512 bits where the CPU has them, else 256 (two registers on NEON)."""
REGISTERS = 32 if _has_wide() else 16
"""Vectors of LANES floats that the register file holds."""

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
_F32 = ir.FloatType()
_ELEMENT = {types.float32: _F32, types.int16: _I16, types.uint16: _I16, types.int8: _I8}
_ELEMENT[types.int32] = _I32


class Vector(types.Type):
    """LANES numbers, float32, int32 or truth values."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(name=f"vector({element}x{LANES})")


FLOATS, INTS, TRUTHS = Vector("float32"), Vector("int32"), Vector("bool")
_LLVM = {
    "float32": ir.VectorType(_F32, LANES),
    "int32": ir.VectorType(_I32, LANES),
    "bool": ir.VectorType(ir.IntType(1), LANES),
}
FLOATS_IR, INTS_IR = _LLVM["float32"], _LLVM["int32"]


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    """Held in LLVM as itself."""

    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _LLVM[kind.element])


# What emits IR: shared with tiles.py ------------------------------------------------------------
def emit_splat(builder: Any, scalar: Any) -> Any:
    """Repeat one number in all lanes."""
    kind = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def emit_constant(value: float) -> Any:
    """Return a vector of one float."""
    return ir.Constant(FLOATS_IR, [value] * LANES)


def _int_constant(value: int, kind: Any = None) -> Any:
    """Return a vector of one int."""
    kind = INTS_IR if kind is None else kind
    return ir.Constant(kind, [value] * kind.count)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit a * b + c, rounded once where the CPU can."""
    kind = ir.FunctionType(FLOATS_IR, [FLOATS_IR] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def emit_widen(builder: Any, token: Any, raw: Any) -> Any:
    """Make floats of raw numbers of the token's type; scalars or vectors."""
    is_vector = isinstance(raw.type, ir.VectorType)
    n = raw.type.count if is_vector else 0
    floats = ir.VectorType(_F32, n) if is_vector else _F32
    ints = ir.VectorType(_I32, n) if is_vector else _I32
    if token == types.float32:
        return raw
    if token == types.int16:
        halves = ir.VectorType(ir.HalfType(), n) if is_vector else ir.HalfType()
        return builder.fpext(builder.bitcast(raw, halves), floats)
    if token == types.int8:
        return builder.sitofp(builder.sext(raw, ints), floats)
    shift = _int_constant(16, ints) if is_vector else ir.Constant(_I32, 16)
    return builder.bitcast(builder.shl(builder.zext(raw, ints), shift), floats)


def emit_narrow(builder: Any, token: Any, x: Any) -> Any:
    """Round floats to the nearest of the token's type, ties to even; NaN stays NaN."""
    is_vector = isinstance(x.type, ir.VectorType)
    n = x.type.count if is_vector else 0

    def kind(element: Any) -> Any:
        return ir.VectorType(element, n) if is_vector else element

    def number(value: int) -> Any:
        return _int_constant(value, kind(_I32)) if is_vector else ir.Constant(_I32, value)

    if token == types.float32:
        return x
    if token == types.int16:
        return builder.bitcast(builder.fptrunc(x, kind(ir.HalfType())), kind(_I16))
    raw = builder.bitcast(x, kind(_I32))
    is_odd = builder.and_(builder.lshr(raw, number(16)), number(1))
    rounded = builder.add(raw, builder.add(is_odd, number(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", x, x)
    rounded = builder.select(is_nan, number(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, number(16)), kind(_I16))


def emit_load(builder: Any, token: Any, address: Any) -> Any:
    """Load LANES numbers from any address as floats."""
    kind = ir.VectorType(_ELEMENT[token], LANES)
    pointer = builder.inttoptr(address, kind.as_pointer())
    return emit_widen(builder, token, builder.load(pointer, align=1))


def emit_prefetch(builder: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which may be beyond any memory."""
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    f = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    one = ir.Constant(_I32, 1)
    to_read, keep = ir.Constant(_I32, 0), ir.Constant(_I32, 3)
    builder.call(f, [builder.inttoptr(address, pointer), to_read, keep, one])


def emit_sums(builder: Any, vectors: list[Any]) -> list[Any]:
    """Add up the lanes of each vector, neighbours first. Its order is the same for any number.

    Two vectors share one tree of additions: lanes 0 + 1, 2 + 3, ... of both fill one vector.
    """
    even = ir.Constant(ir.VectorType(_I32, LANES), list(range(0, 2 * LANES, 2)))
    odd = ir.Constant(ir.VectorType(_I32, LANES), list(range(1, 2 * LANES, 2)))
    level = list(vectors)
    width = 1  # vectors whose sums share one vector
    while width < LANES:
        pairs = [
            (a, level[i + 1] if i + 1 < len(level) else a)
            for i, a in enumerate(level)
            if i % 2 == 0
        ]
        level = [
            builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
            for a, b in pairs
        ]
        width *= 2
    return [
        builder.extract_element(level[i // LANES], ir.Constant(_I32, i % LANES))
        for i in range(len(vectors))
    ]
