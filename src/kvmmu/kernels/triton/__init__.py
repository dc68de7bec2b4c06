"""The Triton kernels: the fused decode step and the attention of a prompt's chunks, for CUDA.

    fused.py      step, refresh: the contract of kernels/step.py
    prefill.py    attend: the contract of kernels/contract.py
    places.py     write_slots, select_victims
    *_kernels.py  the programs that they launch; ranking.py: what some of them share
    launch.py     block shapes, splits, scratch

They run on a CUDA device; with TRITON_INTERPRET=1, set before triton is first imported, on the
CPU through Triton's interpreter, slowly and for tests.
"""

from __future__ import annotations

try:
    import triton as _triton  # noqa: F401
except ImportError as error:
    raise ImportError("the Triton kernels need triton; pip install 'kvmmu[triton]'") from error

from kvmmu.kernels.triton.fused import refresh, step
from kvmmu.kernels.triton.places import select_victims, write_slots
from kvmmu.kernels.triton.prefill import attend

__all__ = ["attend", "refresh", "select_victims", "step", "write_slots"]
