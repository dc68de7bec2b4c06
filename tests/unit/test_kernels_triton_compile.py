"""Do the Triton kernels compile for a GPU? The compiler needs none, and sees what matters there.

The kernels' own host code runs on CPU tensors, with a driver that says it is a GPU of the
given capability and a launch that stops once the program is compiled; the limits of shared
memory are those of the chips, and no variant may spill registers.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from kvmmu.kernels.contract import PLANES, AttendSpec
from kvmmu.kernels.step import LaneState, StepRule, StepSpec

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import JITFunction, driver  # noqa: E402

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
"""Shared memory that a block may have, by compute capability (CUDA C++ Programming Guide)."""


class NoDevice:
    """Be the driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Compiled:
    """What the launches of one test were compiled to, in order."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.kernels: list[Any] = []

    @property
    def names(self) -> list[str]:
        return [kernel.metadata.name for kernel in self.kernels]

    def check(self, *names: str, stack_bytes: int = 0) -> None:
        """Hold the chip's limits; by default no register goes to local memory."""
        assert self.names == list(names)
        for kernel in self.kernels:
            assert kernel.metadata.shared <= SHARED_BYTES[self.capability], kernel.metadata.name
            assert usage(kernel)["STACK"] <= stack_bytes, kernel.metadata.name


def usage(kernel: Any) -> dict[str, int]:
    """Read the resource table of the machine code: REG, STACK bytes a thread, ..."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    text = subprocess.run(
        [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text)}


@pytest.fixture(params=[90], ids=lambda n: f"sm_{n}")
def compiled(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compiled:
    """Compile every launch for a capability and launch nothing."""
    found = Compiled(request.param)
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.kernels.append(kernel)
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", NoDevice(request.param))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return found


def fused(
    dtype: torch.dtype,
    *,
    rows: int = 2,
    heads: int = 2,
    group: int = 4,
    slots: int = 512,
    dim: int = 128,
    **spec: Any,
) -> None:
    """Launch one fused step on empty lanes."""
    from kvmmu.kernels.triton import step

    shape = (rows, heads, slots)
    k, v = (torch.zeros(*shape, dim, dtype=dtype) for _ in "kv")
    lanes = torch.arange(rows, dtype=torch.int32)
    state = LaneState(
        k,
        v,
        torch.full(shape, -1, dtype=torch.int32),
        torch.zeros(shape),
        torch.zeros_like(lanes),
        torch.zeros(shape[:2], dtype=torch.int32),
    )
    q = torch.zeros(rows, heads * group, dim, dtype=dtype)
    rule = StepSpec(**{"rule": StepRule("mass"), "scale": 0.1, "num_sinks": 4, "window": 64} | spec)
    step(q, k[:, :, 0], v[:, :, 0], lanes, lanes, state, rule, torch.empty_like(q))


def chunk(
    dtype: torch.dtype,
    *,
    rows: int = 2,
    heads: int = 2,
    group: int = 4,
    queries: int = 256,
    keys: int = 768,
    dim: int = 128,
    sinks: bool = False,
    **spec: Any,
) -> None:
    """Launch one chunk's attention on zeros."""
    from kvmmu.kernels.triton import attend

    k = torch.zeros(rows, heads, keys, dim, dtype=dtype)
    at = torch.zeros(rows, queries, dtype=torch.int32)
    attend(
        torch.zeros(rows, heads * group, queries, dim, dtype=dtype),
        k,
        k,
        torch.zeros(rows, heads, keys, dtype=torch.int32),
        at,
        at.float(),
        spec=AttendSpec(**{"scale": 0.1, "planes": PLANES} | spec),
        last_weights=at.float(),
        sinks=torch.zeros(heads * group) if sinks else None,
    )


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split the slots in four."""
    from kvmmu.kernels.triton import fused

    monkeypatch.setattr(fused, "choose_splits", lambda *_: 4)


def test_step_compiles_to_one_launch(compiled):
    fused(torch.bfloat16, horizon=300)
    compiled.check("attend_slots")
    (kernel,) = compiled.kernels
    assert "barrier" in kernel.asm["ttir"]  # between writing the logits and reading them
    assert re.search(
        r"cp\.async\.cg\.shared\.global.* 0x10", kernel.asm["ptx"]
    )  # 16 bytes a thread
    assert "mma.sync" in kernel.asm["ptx"]


def test_split_step_with_one_victim_a_layer_compiles_to_three_launches(compiled, split):
    fused(torch.float16, per_layer=True)
    compiled.check("attend_slots", "finish_slots", "choose_slots")


def test_chunk_compiles_to_two_launches(compiled):
    chunk(torch.bfloat16)
    compiled.check("attend_queries", "reduce_keys")
    assert all("mma" in kernel.asm["ptx"] for kernel in compiled.kernels)
    assert not any(re.search(r"\b(atom|red)\.", k.asm["ptx"]) for k in compiled.kernels)


RULES = [
    StepRule("max", decay=0.9, grace=1),
    StepRule("newest"),
    StepRule(None, rank="age"),
    StepRule("mass", grace=2, rank="age"),
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("per_layer", [False, True], ids=["per head", "per layer"])
def test_every_rule_compiles(compiled, rule, per_layer, split):
    fused(torch.bfloat16, rule=rule, per_layer=per_layer, horizon=300, window=0)
    compiled.check("attend_slots", "finish_slots", *(["choose_slots"] if per_layer else []))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (1, 80), (3, 96), (8, 256)])
def test_every_shape_of_heads_compiles(compiled, dtype, group, dim):
    fused(dtype, group=group, dim=dim, slots=500)
    chunk(dtype, group=group, dim=dim)
    # a chunk's padded dimensions cost a few words of addresses; float32, which has no tensor cores
    # to hold its operands, keeps a tile of K in local memory at some widths: right, but slow
    stack_bytes = 4096 if dtype == torch.float32 else 64
    compiled.check("attend_slots", "attend_queries", "reduce_keys", stack_bytes=stack_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", SHARED_BYTES, indirect=True, ids=lambda n: f"sm_{n}")
def test_every_chip_is_compiled_for(compiled):
    fused(torch.float16)
    chunk(torch.float16)
    compiled.check("attend_slots", "attend_queries", "reduce_keys")


@pytest.mark.slow
@pytest.mark.parametrize("planes", [(), ("mass",), ("last_sq", "newest")])
def test_every_choice_of_planes_compiles(compiled, planes):
    chunk(torch.bfloat16, planes=planes, softcap=30.0, horizon=99, grace=1, sinks=True)
    names = ["attend_queries", "reduce_keys"]
    compiled.check(*names[: 1 + bool(planes)], stack_bytes=64)


def test_writing_and_choosing_slots_compile(compiled):
    from kvmmu.kernels.triton import select_victims, write_slots

    store, slots = torch.zeros(2, 3, 100, 80), torch.zeros(2, 3, dtype=torch.int64)
    write_slots(store, slots, store[:, :, 0], None)
    write_slots(store[..., 0].int(), slots, slots.int(), torch.tensor([True, False]))
    select_victims(torch.zeros(2, 3, 5000))
    compiled.check("_write_row", "_write_row", "_least_rank")
