"""Up to how many rows the native products are faster than PyTorch's."""

from __future__ import annotations

import torch

__all__ = ["MOST_ROWS"]

MOST_ROWS = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4, torch.int8: 16}
"""By the weights' type (docs/results/cpu_paths.json: two cores with AVX-512 and AMX)."""
