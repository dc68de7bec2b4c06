"""Native CPU kernels: numba functions on the memory of PyTorch's tensors.

    fused.py       step, refresh: the fused step's contract on tensors
    attention.py   the fused step over rows and heads, on threads
    heads.py       the fused step of one KV head
    chunk.py       attend of a chunk: the kernel contract on tensors
    softmax.py     what lies between a chunk's two products, on threads
    block.py       project, finish, linear: a decoder layer on tensors
    halves.py      the two halves of a layer and a product alone, on threads
    products.py    one thread's share of a product
    rows.py        norms, rotation
    functions.py   exp, activations
    tiles.py       the inner loops of all products
    access.py      vectors that hang over the end
    operations.py  operations on vectors and addresses
    vectors.py     a vector type for numba, and what emits LLVM IR for it
    threads.py     how many threads a call runs on

Each kernel is compiled when it is first called with new types, some seconds each, and kept in
numba's cache for later processes.

Threads. numba's OpenMP layer binds to the libgomp that PyTorch loaded, where PyTorch came with one,
and sets its number of threads once (threads.py puts it back). Even so, on two cores about 40 us are
lost at each change between a native call and an operator that PyTorch makes parallel; the cause was
not found. So between native calls of a step nothing may run that PyTorch makes parallel; its
operators on a few rows (below about 32,768 numbers) are not.
"""

from __future__ import annotations

from kvmmu.kernels.cpu import select_victims, write_slots
from kvmmu.kernels.native.block import Block, Matrix, Norm, finish, linear, project
from kvmmu.kernels.native.chunk import attend
from kvmmu.kernels.native.fused import refresh, step
from kvmmu.kernels.native.threads import num_threads, set_threads

__all__ = [
    "Block",
    "Matrix",
    "Norm",
    "attend",
    "finish",
    "linear",
    "num_threads",
    "project",
    "refresh",
    "select_victims",
    "set_threads",
    "step",
    "write_slots",
]
