"""Checkpoints as safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_checkpoint(
    directory: Path,
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    progress: dict[str, Any],
) -> None:
    """Write weights, optimizer states and progress beside the old ones, then swap."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    for n, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{n}/{index}/{name}"] = torch.as_tensor(value)
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    temporary = directory / "checkpoint.tmp"
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    os.replace(temporary, directory / "checkpoint.safetensors")


def load_checkpoint(
    directory: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Fill model and optimizers from the checkpoint and return the progress.

    Raises FileNotFoundError if there is none.
    """
    from safetensors import safe_open

    path = directory / "checkpoint.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    prefix = "model/"
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    for n, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        whole["state"] = {}
        for key, value in tensors.items():
            kind, *rest = key.split("/")
            if kind == "optimizer" and rest[0] == str(n):
                whole["state"].setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict(whole)
    return progress
