"""Native CPU kernels: numba functions on the memory of PyTorch's tensors.

vectors.py     a vector type for numba, and what emits LLVM IR for it
operations.py  operations on vectors and addresses
tiles.py       the inner loops of all products
functions.py   exp and what activations need
heads.py       the fused step of one KV head
attention.py   the fused step over rows and heads, on threads
fused.py       step, refresh: the fused step's contract on tensors
threads.py     how many threads a call runs on
"""

from __future__ import annotations

from kvmmu.kernels.native.fused import refresh, step
from kvmmu.kernels.native.threads import num_threads, set_threads

__all__ = ["num_threads", "refresh", "set_threads", "step"]
