"""Watch a cache with integer scores: would fp32 scores have chosen its victims?

Beside every KV-MMU run two tables of scores, one of its own policy and one of the same policy in
fp32, from the attention weights as the kernel returns them, unrounded. Both hold what the cache
holds: the integers decide (kvmmu.trace.agreement says what is counted).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvmmu.codecs.base import Rows
from kvmmu.hf.cache import SlotCache
from kvmmu.policies.base import Policy, Seen, SlotView
from kvmmu.policies.rce import RCE
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.table import SlotTable
from kvmmu.trace.agreement import VictimTally

__all__ = ["VictimWatch", "has_integer_scores", "watch"]


def has_integer_scores(policy: Policy) -> bool:
    """Tell whether a policy's scores are the hardware's integers."""
    return isinstance(policy, RCE) and policy.fixed_point


def watch(cache: SlotCache, tally: VictimTally) -> list[VictimWatch]:
    """Count the evictions of a bound, empty cache with integer scores, until it is gone."""
    return [VictimWatch(mmu, tally) for mmu in cache.mmus]


class VictimWatch:
    """Observe one KV-MMU. Raises ValueError unless its scores are integers."""

    def __init__(self, mmu: KVMMU, tally: VictimTally) -> None:
        policy = mmu.policy
        if not (isinstance(policy, RCE) and policy.fixed_point):
            raise ValueError(f"the policy must have integer scores, got {policy.name!r}")
        self._mmu, self._tally = mmu, tally
        held = mmu.table.positions
        shape = (*held.shape, mmu.spec.head_dim)
        self._policies: tuple[RCE, RCE] = (replace(policy, fixed_point=False), policy)
        self._tables = [SlotTable(shape, p, held.device, mmu.kernel) for p in self._policies]
        mmu.observer = self

    @property
    def exact_scores(self) -> Tensor:
        """The scores that fp32 would have, had it held the same. [B,Hkv,C]."""
        return self._tables[0].scores

    @property
    def integer_scores(self) -> Tensor:
        """The integer scores that were followed, which are the KV-MMU's own. [B,Hkv,C]."""
        return self._tables[1].scores

    def decode(
        self, layer_idx: int, slots: Tensor, evicted: Tensor, valid: Tensor | None, seen: Seen
    ) -> None:
        """Judge a decode's victims slots [B,Hkv] and take the new token in."""
        num_seen = self._mmu.table.num_seen
        newest = num_seen - 1  # [B]; of a row without a token it is not looked at
        self._judge(slots, evicted, valid, newest)
        for policy, table in zip(self._policies, self._tables, strict=True):
            table.admit(slots, newest, valid)
            view = self._view(table.positions, table.scores, num_seen, dict(table.state))
            table.put(*policy.update(view, seen))

    def chunk(
        self, layer_idx: int, at: Rows, evicted: Tensor, came: Tensor, valid: Tensor, seen: Seen
    ) -> None:
        """Judge who lost in a chunk and let the rest stay. came [R], valid bool [B,T]."""
        num_seen, T = self._mmu.table.num_seen, valid.shape[1]
        order = valid.cumsum(1, dtype=torch.int32)
        first = num_seen - order[:, -1]
        new = torch.where(valid, first[:, None] + order - 1, -1)  # [B,T]
        C = self._mmu.spec.num_slots
        source = C + (new[at.lane] == came[:, None]).int().argmax(1)  # [R]
        held = self._tables[0].positions
        positions = torch.cat([held, new[:, None].expand(-1, held.shape[1], -1)], dim=2)
        exact = None
        for policy, table in zip(self._policies, self._tables, strict=True):
            state = {
                name: pad(value, (0, T)) if table.per[name] == "slot" else value
                for name, value in table.state.items()
            }
            view = self._view(positions, pad(table.scores, (0, T)), num_seen, state)
            scores, state_after = policy.update(view, seen)
            if exact is None:
                priority = policy.priority(replace(view, scores=scores, state=state_after))
                exact = self._mmu.ranks(priority, positions, (num_seen - 1).view(-1, 1, 1))
            table.put_chunk(positions, scores, state_after, at, source)
        assert exact is not None
        H = exact.shape[1]
        after = self._tables[0].positions[:, :H]
        is_held = (positions[:, :H, :, None] == after[:, :, None]).any(-1)
        is_lost = ~is_held & (positions[:, :H] >= 0)
        flat = (-1, C + T)
        self._tally.chunk(
            exact.reshape(flat).numpy(force=True),
            is_lost.reshape(flat).numpy(force=True),
            num_new=T,
        )

    def _judge(self, slots: Tensor, evicted: Tensor, valid: Tensor | None, newest: Tensor) -> None:
        """Count the rows in which a token left. slots, evicted [B,Hkv], newest [B]."""
        ranks, masses = [], None
        for policy, table in zip(self._policies, self._tables, strict=True):
            view = self._view(table.positions, table.scores, newest, dict(table.state))
            priority = policy.priority(view)
            masses = self._mass(priority) if masses is None else masses
            ranks.append(self._mmu.ranks(priority, table.positions, newest.view(-1, 1, 1)))
        assert masses is not None
        H = masses.shape[1]
        left = evicted[:, :H] >= 0  # [B,H]
        if valid is not None:
            left &= valid[:, None]
        exact, integer, mass = (x[left].numpy(force=True) for x in (*ranks, masses))
        self._tally.decode(exact, integer, slots=slots[:, :H][left].numpy(force=True), masses=mass)

    def _mass(self, priority: Tensor) -> Tensor:
        """Average fp32 scores over a table's query heads. [B,Hkv,C] -> [B,H,C]."""
        mean = priority.mean(1, keepdim=True) if self._is_shared else priority
        return mean / self._mmu.spec.group_size

    @property
    def _is_shared(self) -> bool:
        return self._mmu.spec.granularity == "layer"

    def _view(
        self, positions: Tensor, scores: Tensor, num_seen: Tensor, state: dict[str, Tensor]
    ) -> SlotView:
        return self._mmu.view(positions, scores, num_seen.view(-1, 1, 1), state)
