"""kvmmu's engine in a benchmark's child process, asked for one step at a time.

Loaded by file by peers/child.py, whose docstring is the contract of Peer. Settings: model
(folder), threads, num_slots, policy, max_batch, context, weights ("float32", "bfloat16", "int8").
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from kvmmu import __version__
from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.model import Transformer
from kvmmu.engine.request import SamplingParams
from kvmmu.policies.base import POLICIES, Policy

__all__ = ["Peer"]


class Peer:
    """An engine that is made anew for each batch of prompts; the model is loaded once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model."""
        self.settings = settings
        torch.set_num_threads(settings["threads"])
        is_int8 = settings["weights"] == "int8"
        self._model = Transformer.load(
            settings["model"],
            dtype="float32" if is_int8 else settings["weights"],
            weights="int8" if is_int8 else "plain",
            num_threads=settings["threads"],
        )
        self.facts = {
            "version": __version__,
            "weight_bytes": self._model.weight_nbytes,
            "fans_out": False,
        }
        self._engine: Engine | None = None
        self._made: dict[str, list[int]] = {}

    def _open(self, num_lanes: int) -> None:
        """Make an engine of `num_lanes` lanes."""
        lanes = LaneClass(
            num_slots=self.settings["num_slots"],
            num_lanes=num_lanes,
            policy=self._policy(),
        )
        self._engine = Engine(self._model, lanes)

    def _policy(self) -> Policy:
        """Make the policy of the settings."""
        about = self.settings["policy"]
        made: Policy = POLICIES.get(about["name"])(**about["params"])
        return made

    def clear(self) -> None:
        """Drop the engine and its lanes: the next prompt's growth then counts them."""
        self._engine, self._made = None, {}
        gc.collect()

    def _add(self, prompt: list[int], count: int) -> None:
        assert self._engine is not None
        params = SamplingParams(max_new_tokens=count, ignore_eos=True)
        self._made[self._engine.add(prompt, params)] = []

    def _step(self) -> None:
        """Take one step and collect what it made. Raises RuntimeError for a request's error."""
        assert self._engine is not None
        for output in self._engine.step():
            if output.error:
                raise RuntimeError(output.error)
            self._made[output.request_id].extend(output.token_ids)

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read the prompts until every row has its first token."""
        if self._engine is not None:
            self.clear()
        self._open(max(1, self.settings["max_batch"]))
        for prompt in prompts:
            self._add(prompt, max(1024, self.settings["context"] - len(prompt)))
        while not all(self._made.values()):
            self._step()
        firsts = [made[-1] for made in self._made.values()]
        for made in self._made.values():
            made.clear()
        return firsts

    def decode(self, count: int) -> list[list[int]]:
        """Take `count` steps. Raises RuntimeError if a row did not get a token in each."""
        for _ in range(count):
            self._step()
        made = [list(tokens) for tokens in self._made.values()]
        for tokens in self._made.values():
            tokens.clear()
        if any(len(tokens) != count for tokens in made):
            raise RuntimeError(f"{count} steps must give {count} tokens a row")
        return made

    def kv_bytes(self) -> int | None:
        """Count the bytes of K and V of all lanes."""
        return None if self._engine is None else int(self._engine.stats().kv_nbytes)

    def serve(
        self, prompts: list[list[int]], new_tokens: int, cap_tokens: int | None
    ) -> dict[str, Any]:
        """Answer all requests with as many lanes as the cap holds. Raises ValueError for none."""
        lanes = len(prompts)
        if cap_tokens is not None:
            lanes = min(lanes, cap_tokens // self.settings["num_slots"])
        if lanes < 1:
            raise ValueError(f"a cap of {cap_tokens} tokens must hold one lane")
        self.clear()
        self._open(lanes)
        for prompt in prompts:
            self._add(prompt, new_tokens)
        assert self._engine is not None
        while self._engine.has_work:
            self._step()
        return {"num_tokens": sum(len(m) for m in self._made.values()), "most_users": lanes}
