"""SlotLayer: one layer of a SlotCache, in transformers' words."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvmmu.errors import IntegrityError
from kvmmu.slots.mmu import KVMMU

if TYPE_CHECKING:
    from kvmmu.hf.cache import SlotCache

__all__ = ["SlotLayer"]


class SlotLayer(CacheLayerMixin):
    """One layer of a SlotCache, in transformers' words; its KV-MMU does the work."""

    is_sliding = False
    is_croppable = False
    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: SlotCache, layer_idx: int, mmu: KVMMU) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self._owner = weakref.ref(cache)  # no cycle: a dropped cache is freed at once
        self._layer_idx = layer_idx
        self.mmu = mmu

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotLayer:
        """Copy for the copy of the cache, which is being made."""
        owner = self._cache
        return SlotLayer(memo[id(owner)], self._layer_idx, copy.deepcopy(self.mmu, memo))

    @property
    def _cache(self) -> SlotCache:
        """The cache that this layer belongs to. Raises IntegrityError once that is gone."""
        cache = self._owner()
        if cache is None:
            raise IntegrityError(
                "a SlotLayer must be used with its SlotCache alive, got one without; keep the cache"
            )
        return cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: a SlotCache allocates when it is bound."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Leave the new tokens for the attention function. k, v [B,Hkv,Q,D] -> the same."""
        return self._cache.update(key_states, value_states, self._layer_idx)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length that a mask would have if there were one, and its offset 0."""
        return self._cache.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Count the columns seen, pads included: the logical length."""
        return self._cache.get_seq_length()

    def get_max_length(self) -> int:
        """Return -1: the logical length has no limit of the cache's."""
        return -1
