"""Designs: how K and V of past tokens are kept and read. RCE, and every baseline on the same chip.

A baseline differs from the design it is compared with in this alone: batch, chunk, overlap and
hardware are the same. What each keeps, of a lane that has seen n tokens:

    rce              C slots, a score for each                     reads C, writes one slot
    full             all n                                         reads n, appends
    paged            all n in blocks of 16 tokens                  reads blocks, and their numbers
    window           sinks and the last tokens, C in all           reads C, no score hardware
    irregular        all n in memory, the best C read where they lie    gathers rows
    irregular_head   the same, other tokens for each head    gathers one head's K, or V
    varying          n / compression, grows (VEDA-like vote)       reads n / compression, scores
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvmmu.units import bytes_of_bits

__all__ = ["PAGE_TOKENS", "Design", "baselines", "rce"]

PAGE_TOKENS = 16
"""Tokens a block of a paged cache: vLLM's default block size."""

Keeps = Literal["slots", "all", "share"]
Reads = Literal["region", "pages", "gather"]
Form = Literal["online", "two_pass", "three_pass"]


@dataclass(frozen=True)
class Design:
    """One way to keep K and V. kv_bits a value; num_slots C; share = kept / seen tokens."""

    name: str
    title: str
    kv_bits: int
    num_slots: int
    keeps: Keeps = "all"
    reads: Reads = "region"
    has_scores: bool = False
    softmax_form: Form = "online"
    granularity: Literal["layer", "head"] = "layer"
    layout: Literal["slot", "split", "head"] = "slot"
    share: float = 1.0

    @property
    def is_ours(self) -> bool:
        """Say whether steps are those of the workload itself, not derived from seen tokens."""
        return self.name == "rce"

    def live(self, seen: int, num_slots: int) -> int:
        """Return how many tokens' K and V a lane of `seen` tokens reads in a layer."""
        if self.keeps == "slots":
            return min(seen, num_slots)
        if self.reads == "gather":
            return min(seen, num_slots)
        if self.keeps == "share":
            return min(seen, max(-(-seen // round(1 / self.share)), min(seen, 1)))
        return seen

    def stored(self, seen: int, num_slots: int) -> int:
        """Return how many tokens' K and V a lane of `seen` tokens holds in memory in a layer."""
        if self.reads == "gather":
            return seen
        held = self.live(seen, num_slots)
        return -(-held // PAGE_TOKENS) * PAGE_TOKENS if self.reads == "pages" else held

    def row_bytes(self, num_kv_heads: int, head_dim: int) -> int:
        """Bytes of K and V of one token in one layer."""
        return bytes_of_bits(2 * num_kv_heads * head_dim, self.kv_bits)


def rce(
    *,
    num_slots: int,
    kv_bits: int,
    form: Form,
    granularity: Literal["layer", "head"],
    layout: Literal["slot", "split", "head"],
) -> Design:
    """Return the design of this project: C slots a lane and layer, the least relevant replaced."""
    return Design(
        name="rce",
        title=f"RCE, {num_slots} slots",
        kv_bits=kv_bits,
        num_slots=num_slots,
        keeps="slots",
        has_scores=True,
        softmax_form=form,
        granularity=granularity,
        layout=layout,
    )


def baselines(ours: Design, *, num_tokens: int) -> tuple[Design, ...]:
    """Return every baseline of `ours` for lanes of at most `num_tokens` tokens.

    The full cache comes in the same bits first, then in the other widths of {16, 8, 4}.
    """
    plain = replace(ours, has_scores=False, softmax_form="online", granularity="layer")
    widths = [ours.kv_bits, *(b for b in (16, 8, 4) if b != ours.kv_bits)]
    full = [
        replace(plain, name=f"full_{b}bit", title=f"full KV, {b} bit", keeps="all", kv_bits=b)
        for b in widths
    ]
    scored = replace(ours, has_scores=True)  # these choose by attention, whatever ours does
    C = ours.num_slots
    # A whole number, so that lengths divide exactly: kept = ceil(seen / compression).
    share = 1.0 / max(1, round(num_tokens / C))
    return (
        *full,
        replace(plain, name="paged", title="paged full KV", keeps="all", reads="pages"),
        replace(plain, name="window", title=f"sinks + window, {C} slots"),
        replace(
            scored, name="irregular", title=f"irregular, {C} of all", keeps="all", reads="gather"
        ),
        replace(
            scored,
            name="irregular_head",
            title=f"irregular by head, {C} of all",
            keeps="all",
            reads="gather",
            granularity="head",
        ),
        replace(
            scored, name="varying", title="varying size (VEDA-like)", keeps="share", share=share
        ),
    )
