"""What every test shares: one thread a worker, no network, and seeds that are printed."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before torch is imported: two workers then share two cores. Values already set are kept.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# `HF_HUB_OFFLINE=0 pytest -m network` opts in to the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch

# A shared machine makes wall-clock deadlines lie; a failure prints how to repeat it.
settings.register_profile(
    "kvmmu", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kvmmu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that is the test's own and the same on every run, printed when the test fails.

    KVMMU_TEST_SEED=n replaces it, to explore or to repeat.
    """
    chosen = os.environ.get("KVMMU_TEST_SEED")
    value = int(chosen) if chosen else zlib.crc32(request.node.nodeid.encode())
    print(f"KVMMU_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A numpy generator started from `seed`."""
    return np.random.default_rng(seed)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A torch generator on the CPU started from `seed`."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was() -> Iterator[None]:
    """No code that was tried switches gradients or threads for what runs after it.

    Two workers of two threads each on two cores make every test many times slower.
    """
    before = None if (torch := sys.modules.get("torch")) is None else torch.get_num_threads()
    yield
    if (torch := sys.modules.get("torch")) is not None:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        after = torch.get_num_threads()
        if before is not None and after != before:
            torch.set_num_threads(before)
            pytest.fail(f"a test must leave {before} threads, got {after}")
