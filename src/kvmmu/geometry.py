"""CacheGeometry: the shape of a KV cache, its bytes and its addresses. Floor 0: no torch.

Two layouts are named:
    tensor  [B, Hkv, C, D] for K and again for V, one pair per layer        software
    dram    [lane, layer, slot, {K, V}, Hkv, D]: one slot is one row        hardware
With a constant number of slots an address is arithmetic: no page table is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CacheGeometry"]


@dataclass(frozen=True)
class CacheGeometry:
    """Shape of a cache: `slots[l]` slots per KV head in layer l. Sizes are bytes.

    Raises ValueError if a count is not positive or `slots` does not list every layer.
    """

    num_layers: int
    batch: int
    num_kv_heads: int
    head_dim: int
    slots: tuple[int, ...]
    dtype: str
    itemsize: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "batch", "num_kv_heads", "head_dim", "itemsize"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.slots) != self.num_layers or min(self.slots) < 1:
            raise ValueError(
                f"slots must list a positive count for each of the {self.num_layers} layers, "
                f"got {self.slots!r}"
            )

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of K and V of one token in one layer, all KV heads."""
        return 2 * self.num_kv_heads * self.head_dim * self.itemsize

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V of the whole cache."""
        return self.batch * sum(self.slots) * self.bytes_per_slot

    def full_kv_bytes(self, num_tokens: int) -> int:
        """Bytes of K and V of a cache that keeps all `num_tokens` tokens of each row."""
        return self.batch * self.num_layers * num_tokens * self.bytes_per_slot

    def dram_address(self, lane: int, layer: int, slot: int) -> int:
        """Byte offset of a slot's row in the `dram` layout. Raises IndexError out of range."""
        inside = 0 <= lane < self.batch and 0 <= layer < self.num_layers
        if not inside or not 0 <= slot < self.slots[layer]:
            raise IndexError(
                f"(lane, layer, slot) must lie in the cache, got {(lane, layer, slot)}"
            )
        rows_before = lane * sum(self.slots) + sum(self.slots[:layer]) + slot
        return rows_before * self.bytes_per_slot

    def tensor_address(self, lane: int, head: int, slot: int, *, layer: int) -> int:
        """Byte offset of a key in its layer's K tensor [B, Hkv, C, D] (V alike).

        Raises IndexError out of range.
        """
        inside = 0 <= lane < self.batch and 0 <= head < self.num_kv_heads
        inside = inside and 0 <= layer < self.num_layers
        if not inside or not 0 <= slot < self.slots[layer]:
            raise IndexError(
                "(lane, head, slot) of the layer must lie in the cache, "
                f"got {(lane, head, slot)} of layer {layer}"
            )
        row = (lane * self.num_kv_heads + head) * self.slots[layer] + slot
        return row * self.head_dim * self.itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self) | {"slots": list(self.slots)}
