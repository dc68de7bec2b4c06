"""Your own policy: one frozen class that ranks the tokens, under one name.

Rule of this one: the token with the longest key leaves (keys that draw attention tend to be
short; Devoto et al., arXiv:2406.11430). It is compared with others on the same page of a book,
fed eight tokens at a time, so that each is predicted from the slots and at most seven more. Loss on
a book differs little between policies; tasks that ask for facts tell them apart.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

import kvmmu
from kvmmu.policies.base import Policy, SlotView


@kvmmu.register("short_keys")
@dataclass(frozen=True)
class ShortKeys(Policy):
    """Evict the token with the longest key."""

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the keys held."""
        return frozenset({"k"})

    def priority(self, view: SlotView) -> Tensor:
        """Rank by minus the key's length, larger stays. -> [B,Hkv,N]."""
        assert view.k is not None
        return -view.k.float().norm(dim=-1)


def loss(lm: kvmmu.LM, ids: Tensor, num_slots: int, policy: str) -> float:
    """Return the mean loss in nats per token. ids [1,S]."""
    cache = kvmmu.SlotCache.for_model(lm.model, num_slots, policy=policy, chunk_size=8)
    with kvmmu.enabled(lm.model), torch.inference_mode():
        logits = lm.model(ids, past_key_values=cache).logits  # [1,S,V]
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


def main() -> None:
    """Print a table of losses."""
    with lzma.open(str(files("kvmmu") / "data" / "frankenstein.txt.xz"), "rt") as file:
        page = file.read()[20_000:22_000]
    lm = kvmmu.load("kvmmu-ref-1m")
    ids = lm.encode(page)["input_ids"]
    print(f"nats per token on {ids.shape[1]} tokens of a book, by number of slots")
    sizes = (32, 64, 128, ids.shape[1])
    print(f"{'policy':<15}" + "".join(f"{size:>8}" for size in sizes))
    for policy in ("short_keys", "rce", "streaming_llm", "random"):
        losses = [loss(lm, ids, size, policy) for size in sizes]
        print(f"{policy:<15}" + "".join(f"{value:8.3f}" for value in losses))


if __name__ == "__main__":
    main()
