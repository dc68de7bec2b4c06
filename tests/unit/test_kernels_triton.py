"""Are the Triton kernels right? Against the references, in Triton's interpreter, on the CPU.

The interpreter must be chosen before triton is imported, so the tests marked `interpreted`, here
and in test_kernels_triton_step.py, run in a process that the first tests here start. What only a
compiler sees (types, shapes of products, shared memory) is tested by compiling every kernel for a
GPU that need not be there: test_kernels_triton_compile.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_steps import IS_INTERPRETED, interpreted

from kvmmu.kernels import dispatch
from kvmmu.kernels.contract import PLANES, AttendSpec

pytest.importorskip("triton")
HERE = Path(__file__)


def run_interpreted(*args: str) -> None:
    """Run tests in a process of their own, and show what they print if they fail."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *args],
        env={**env, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_fused_step_and_chunks_hold_in_the_interpreter():
    run_interpreted(str(HERE), str(HERE.with_name("test_kernels_triton_step.py")))


@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_contract_of_all_kernels_holds_in_the_interpreter():
    run_interpreted(str(HERE.with_name("test_kernels.py")), "-k", "triton")


@pytest.mark.slow
@pytest.mark.skipif(IS_INTERPRETED, reason="starts the interpreter's process")
def test_any_chunk_is_right_in_the_interpreter():
    run_interpreted(str(HERE.with_name("test_kernels.py")), "-k", "any_shape")


@pytest.mark.skipif(IS_INTERPRETED, reason="runs where nothing is interpreted")
def test_tensors_on_a_cpu_are_not_for_triton():
    assert "triton" not in dispatch.available()
    assert "triton" not in dispatch.available(torch.device("cpu"))


@pytest.mark.skipif(IS_INTERPRETED or torch.cuda.is_available(), reason="the kernels run here")
def test_without_a_device_the_lack_is_named():
    assert "triton" not in dispatch.available("cuda")
    with pytest.raises(ValueError, match="need a CUDA device, and torch finds none"):
        dispatch.resolve("triton")


# A chunk's attention, where the contract tests of all kernels do not look -------------------------


@interpreted
def test_attend_reads_any_strides_and_values_of_another_width(seed):
    from kvmmu.kernels import reference
    from kvmmu.kernels.triton import attend

    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 7, 6, 20, generator=g).transpose(1, 2)  # [B,Hq,Q,D]
    k = torch.randn(2, 20, 3, 37, generator=g).permute(0, 2, 3, 1)
    v = torch.randn(3, 2, 37, 24, generator=g).transpose(0, 1)
    keys = torch.arange(37).expand(2, 3, -1).int()
    queries = torch.arange(30, 37).expand(2, -1).int()
    args = (q, k, v, keys, queries, torch.rand(7, generator=g).expand(2, -1))
    spec = AttendSpec(0.3, PLANES, grace=2)
    for ours, want in zip(
        attend(*args, spec=spec, last_weights=args[-1]),
        reference.attend(*args, spec=spec, last_weights=args[-1]),
    ):
        assert ours.shape == want.shape
        assert float((ours - want).abs().max()) < 2e-6


@interpreted
def test_attend_in_blocks_is_right(seed, monkeypatch):
    from kvmmu.kernels import reference
    from kvmmu.kernels.triton import attend, prefill

    monkeypatch.setattr(prefill, "block_rows", lambda *_: 16)  # many blocks of queries and keys
    g = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(1, 4, 41, 16, generator=g), torch.randn(2, 1, 2, 75, 16, generator=g)
    keys = torch.randperm(75, generator=g).expand(1, 2, -1).int()
    queries = torch.arange(34, 75)[None].int()
    args = (q, k, v, keys, queries, torch.rand(1, 41, generator=g))
    last = (queries > 70).float()
    spec = AttendSpec(0.3, PLANES, horizon=60)
    pairs = zip(
        attend(*args, spec=spec, last_weights=last),
        reference.attend(*args, spec=spec, last_weights=last),
    )
    for ours, want in pairs:
        assert float((ours - want).abs().max()) < 4e-6


@interpreted
def test_empty_slots_may_hold_anything(seed):
    from kvmmu.kernels.triton import attend

    g = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(1, 4, 3, 16, generator=g), torch.randn(2, 1, 2, 20, 16, generator=g)
    keys = torch.arange(20).expand(1, 2, -1).int().clone()
    keys[:, :, 5:9] = -1
    queries = torch.arange(17, 20)[None].int()
    rest = (keys, queries, torch.ones(1, 3))
    first = attend(q, k, v, *rest, spec=AttendSpec(0.3))
    k[:, :, 5:9], v[:, :, 5:9] = torch.nan, torch.nan
    second = attend(q, k, v, *rest, spec=AttendSpec(0.3))
    assert all(torch.equal(*pair) for pair in zip(first, second))


@interpreted
def test_what_attend_cannot_do_is_refused(seed):
    from kvmmu.kernels.triton import attend

    q = torch.zeros(1, 2, 3, 4)
    at = torch.zeros(1, 3, dtype=torch.int32)
    args = (q, q, q, at[:, None].expand(-1, 2, -1), at, at.float())
    with pytest.raises(ValueError, match=r"plane must be one of .*, got 'most'"):
        attend(*args, spec=AttendSpec(1.0, ("most",)))
    with pytest.raises(ValueError, match="last_weights must be given for the plane 'last'"):
        attend(*args, spec=AttendSpec(1.0, ("last",)))
    with pytest.raises(ValueError, match=r"q, k and v must have one dtype, got torch.float16"):
        attend(q.half(), *args[1:], spec=AttendSpec(1.0))


# Shapes ---------------------------------------------------------------------------------------


def test_slots_are_split_only_for_idle_multiprocessors():
    from kvmmu.kernels.triton.launch import choose_splits

    assert choose_splits(132, 4096, 132) == 1
    assert choose_splits(8, 4096, 132) == 32  # of 128 slots
    assert choose_splits(8, 512, 132) == 4
    assert choose_splits(100, 4096, 132) == 2
    assert choose_splits(8, 100, 132) == 1
    assert choose_splits(1, 1, 1) == 1
