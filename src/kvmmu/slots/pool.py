"""LanePool: lanes of constant size, one a request, claimed and released; nothing ever moves.

A lane is one row of every layer's KV-MMU: C slots, their scores, their policy's state. Decode
takes one new token for each of several lanes at once; prefill takes a prompt's chunk into one
lane, whose KV-MMU is a view of the pool's own tensors. Where the policy's step is a StepRule,
K and V are stored plainly and keys keep their places in the text, decode is one fused kernel;
else it is the KV-MMU's own decode over all lanes, idle ones masked.

Contract. The caller claims a lane before it writes there, gives each lane its tokens in order,
and releases it in the end. A released lane is cleared at once: no score, key or value of the
last tenant is left for the next one. What one lane is given never shows in another.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvmmu.errors import CapacityError, IntegrityError
from kvmmu.kernels import dispatch
from kvmmu.kernels.step import FusedKernel
from kvmmu.policies.base import is_count
from kvmmu.slots.fused import FusedLayer
from kvmmu.slots.integrity import check_lanes
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.settings import CacheOptions
from kvmmu.slots.spec import ModelShape, Rotary

__all__ = ["LanePool"]


class LanePool:
    """Hold `num_lanes` lanes of C slots in every layer of a model, allocated once.

    `fused` names the fused kernel, None for the fastest where there is one, "off" for none.
    rotary holds each layer's rotation and is needed where keys are numbered "in_cache".
    Raises ValueError for settings that do not fit, CapacityError where memory is short.
    """

    def __init__(
        self,
        settings: CacheOptions,
        shape: ModelShape,
        *,
        num_lanes: int,
        scale: float,
        rotary: Sequence[Rotary | None] | None = None,
        fused: str | None = None,
    ) -> None:
        if not is_count(num_lanes) or num_lanes < 1:
            raise ValueError(f"num_lanes must be an integer of at least 1, got {num_lanes!r}")
        self.settings = settings.fitted(shape, num_lanes)
        self.shape, self.num_lanes, self.scale = shape, num_lanes, scale
        is_renumbered = self.settings.positions == "in_cache"
        if is_renumbered and (not shape.is_rotary or rotary is None):
            raise ValueError(
                "positions must be 'original' for a model without rotary positions, got 'in_cache'"
            )
        turns = rotary if is_renumbered and rotary else [None] * shape.num_layers
        with torch.inference_mode(mode=False):
            self._allocate(turns, self._resolve_fused(fused))
        self._free = list(range(num_lanes))
        self._claimed: set[int] = set()
        self._pointers = [tensor.data_ptr() for tensor in self._tensors()]

    def _resolve_fused(self, name: str | None) -> FusedKernel | None:
        """Return the fused kernel that decodes, None where the policy or codec has none."""
        options, device = self.settings, self.shape.device
        fits = options.policy.step_rule is not None and options.codec.name == "plain"
        fits = fits and options.positions == "original"
        if name == "off" or (name is None and not (fits and dispatch.fastest(device) != "cpu")):
            return None
        if not fits:
            raise ValueError(
                f"fused must be None or 'off' with policy {options.policy.name!r}, codec "
                f"{options.codec.name!r} and positions {options.positions!r}, got {name!r}"
            )
        return dispatch.resolve_fused(name, device)

    def _allocate(self, rotary: Sequence[Rotary | None], fused: FusedKernel | None) -> None:
        """Make every layer's KV-MMU, the lanes' views of it, and what fused kernels take."""
        options, shape, B, device = self.settings, self.shape, self.num_lanes, self.shape.device
        kernel = dispatch.resolve(options.kernel or dispatch.fastest(device))
        kernel = replace(kernel, fused=fused)  # one for all, a chunk of one token included
        specs = options.layer_specs(shape)
        try:
            self.mmus = [
                KVMMU(
                    spec,
                    options.policy,
                    options.codec,
                    kernel,
                    batch=B,
                    dtype=shape.dtype,
                    device=device,
                    rotary=turn,
                )
                for spec, turn in zip(specs, rotary, strict=True)
            ]
        except (RuntimeError, MemoryError) as error:  # torch says either when memory is short
            raise CapacityError(
                f"the lanes must fit in memory, got num_lanes={B} of num_slots={options.slots}: "
                f"{str(error).splitlines()[0]}; lower one of them"
            ) from None
        self._views = [[mmu.lane(b) for b in range(B)] for mmu in self.mmus]
        self._ids = torch.arange(B, dtype=torch.int32, device=device)
        self._fused: list[FusedLayer] = []
        if fused is not None:
            self._fused = [FusedLayer.of(mmu, self.scale) for mmu in self.mmus]
            self._refresh(self._ids)

    # Lanes ------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Count the lanes that may be claimed."""
        return len(self._free)

    @property
    def claimed(self) -> list[int]:
        """List the lanes that are claimed, in order."""
        return sorted(self._claimed)

    @property
    def num_seen(self) -> Tensor:
        """Count the tokens that each lane was given. -> int32 [B]."""
        return self.mmus[0].table.num_seen.clone()

    @property
    def is_fused(self) -> bool:
        """Tell whether decode is one fused kernel a layer."""
        return bool(self._fused)

    def claim(self) -> int | None:
        """Take the lowest free lane, None if there is none."""
        if not self._free:
            return None
        lane = heapq.heappop(self._free)
        self._claimed.add(lane)
        return lane

    def release(self, lane: int) -> None:
        """Clear a lane and give it back. Raises IntegrityError if it is not claimed."""
        self._check_claimed(lane)
        for views in self._views:
            views[lane].clear()
        self._refresh(self._ids[lane : lane + 1])
        self._claimed.remove(lane)
        heapq.heappush(self._free, lane)

    def _check_claimed(self, lane: int) -> None:
        if lane not in self._claimed:
            raise IntegrityError(f"lane must be one that is claimed, got {lane!r}")

    def _refresh(self, lanes: Tensor) -> None:
        """Find the next victims of lanes int32 [N] that were filled or cleared, in all layers."""
        for layer in self._fused:
            layer.refresh(lanes)

    # Tokens -----------------------------------------------------------------------------------

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, lanes: Tensor, at: Tensor
    ) -> Tensor:
        """Take one token into each of N lanes and attend. q [N,Hq,D], k, v [N,Hkv,D] -> [N,Hq,D].

        lanes int32 [N] are different, -1 = no token in this row, whose output is 0; at int32 [N]
        are the tokens' logical positions, the number of tokens that each lane has seen.
        """
        if self._fused:
            return self._fused[layer].step(q, k, v, lanes, at)
        return self._decode(layer, q, k, v, lanes)

    def _decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor, lanes: Tensor) -> Tensor:
        """Decode all lanes by the KV-MMU, those without a token masked."""
        B = self.num_lanes
        is_real = lanes >= 0  # [N]
        rows = torch.where(is_real, lanes, B).long()  # row B takes what belongs to no lane

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(B + 1, *x.shape[1:]).index_copy_(0, rows, x)[:B, :, None]

        valid = spread(is_real[:, None])[:, 0]  # [B,1]
        index = torch.zeros_like(valid, dtype=torch.int64)
        q, k, v = spread(q), spread(k), spread(v)  # [B,H,1,D]
        out = self.mmus[layer].forward(q, k, v, valid, scale=self.scale, index=index)
        return out[:, :, 0][rows.clamp(max=B - 1)] * is_real[:, None, None]

    def prefill(self, layer: int, lane: int, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """Take T tokens of one lane in and attend. q [T,Hq,D], k, v [T,Hkv,D] -> [T,Hq,D].

        `start` is the first one's place in the request; chunks are cut at multiples of the
        class's chunk size, counted from the request's first token. A selector's is never cut.
        """
        T = q.shape[0]
        ids = self._ids[lane : lane + 1]
        if T == 1 and self._fused:
            at = self.mmus[layer].table.num_seen[lane : lane + 1].clone()
            return self.decode(layer, q, k, v, ids, at)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1,H,T,D]
        index = torch.zeros(1, T, dtype=torch.int64, device=q.device)
        view = self._views[layer][lane]
        out = view.forward(q, k, v, None, scale=self.scale, start=start, index=index)
        if self._fused:
            self._fused[layer].refresh(ids)
        return out[0].transpose(0, 1)

    # What it holds ----------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of all persistent tensors: K, V, positions, scores, state, victims."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the tensors that hold K and V."""
        stores = [store for mmu in self.mmus for store in (mmu.keys, mmu.values)]
        return sum(t.nbytes for store in stores for t in store.tensors().values())

    @property
    def workspace_nbytes(self) -> int:
        """Bytes of the largest transient of a layer's prefill so far: candidates' K, V, output."""
        return max(view.workspace_nbytes for views in self._views for view in views)

    @property
    def num_evicted(self) -> Tensor:
        """Count the tokens that left or were never written. -> int64 [L,B]."""
        return torch.stack([m.table.num_seen - m.table.num_valid()[:, 0] for m in self.mmus]).long()

    def positions(self, layer: int, lane: int) -> Tensor:
        """Return the logical positions that a lane holds, -1 = empty. -> int32 [Hkv,C]."""
        return self.mmus[layer].table.positions[lane].clone()

    def _tensors(self) -> list[Tensor]:
        held = [tensor for mmu in self.mmus for tensor in mmu.tensors().values()]
        return [*held, *(layer.state.victims for layer in self._fused)]

    def _lane_tensors(self, lane: int) -> dict[str, Tensor]:
        """Name the persistent tensors of one lane, layer by layer; they are views."""
        return {
            f"layers.{i}.{name}": tensor[0]
            for i, views in enumerate(self._views)
            for name, tensor in views[lane].tensors().items()
        }

    def lane_state(self, lane: int) -> dict[str, Tensor]:
        """Copy a claimed lane, tokens, scores and state: always the same number of bytes."""
        self._check_claimed(lane)
        return {name: tensor.clone() for name, tensor in self._lane_tensors(lane).items()}

    def load_lane_state(self, lane: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite a claimed lane by what lane_state returned, here or in an equal pool.

        Raises IntegrityError, with the lane unchanged, if it is another pool's.
        """
        self._check_claimed(lane)
        own = self._lane_tensors(lane)
        if own.keys() != state.keys():
            raise IntegrityError("state must be of a lane of such a pool, got other tensors")
        for name, tensor in own.items():
            if (tensor.shape, tensor.dtype) != (state[name].shape, state[name].dtype):
                raise IntegrityError(
                    f"{name} must be {list(tensor.shape)} in {tensor.dtype}, got "
                    f"{list(state[name].shape)} in {state[name].dtype}"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._refresh(self._ids[lane : lane + 1])

    def check_integrity(self) -> None:
        """Raise IntegrityError if an invariant of the lanes does not hold."""
        if [tensor.data_ptr() for tensor in self._tensors()] != self._pointers:
            raise IntegrityError("storage must stay where it was allocated, got a moved tensor")
        check_lanes(self.mmus, sorted(self._free), self.claimed)
