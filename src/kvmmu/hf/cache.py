"""SlotCache: a transformers Cache of constant size, whose layers are KV-MMUs."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvmmu.budgets.base import Budget
from kvmmu.codecs.base import Codec
from kvmmu.errors import CapacityError, IntegrityError, UnsupportedModelError
from kvmmu.geometry import CacheGeometry
from kvmmu.hf.handoff import current, running_model
from kvmmu.hf.layer import SlotLayer
from kvmmu.hf.support import ModelShape, describe
from kvmmu.kernels import dispatch
from kvmmu.policies.base import Policy
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.recorder import Recorder
from kvmmu.slots.settings import CacheOptions, Granularity, Positions

__all__ = ["SlotCache"]


_ROWS = {
    "num_attended": torch.int64,  # columns that the mask has called real
    "num_skipped": torch.int64,  # pads fed since the row's last real token
    "offset": torch.int64,  # RoPE place minus logical position
    "was_eos": torch.bool,  # the last token was an end-of-sequence that was fed alone
    "is_finished": torch.bool,  # the last token was a pad after the row's end
    "has_ended": torch.bool,  # so it was at some time
}
"""Counters of each row of the batch (see forward.py)."""


class SlotCache(Cache):
    """Hold C slots per layer, row and KV head, whatever the length of the text.

    Give `num_slots`, or `max_bytes` for K and V. Unbound, it binds to the model of the first
    forward inside `kvmmu.enabled(model)`; `for_model` binds and checks at once.

        policy       a name or a Policy: who leaves                       default RCE()
        num_sinks    first real tokens of a row, never evicted            default 4
        window       most recent tokens, never evicted                    default max(1, C // 8)
        granularity  one victim per KV "head", or one per "layer"
        positions    keys keep their "original" place in the text, or are numbered "in_cache"
        chunk_size   T, tokens attended to at once in a prefill           default min(256, C)
        budget, codec, merger, kernel    the other exchangeable parts
        allow_extrapolation              go past the model's trained length
        eos_token_id, pad_token_id       those of generate(), if not the model's own: rows of a
                                         batch that have ended are fed pads, which are not kept

    Raises ValueError with what must hold, what was given and what to do.
    """

    def __init__(
        self,
        num_slots: int | None = None,
        *,
        max_bytes: int | None = None,
        policy: str | Policy = "rce",
        budget: str | Budget = "uniform",
        codec: str | Codec = "plain",
        merger: None = None,
        num_sinks: int | None = None,
        window: int | None = None,
        granularity: Granularity = "head",
        positions: Positions = "original",
        chunk_size: int | None = None,
        kernel: str | None = None,
        allow_extrapolation: bool = False,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.options = CacheOptions.make(
            num_slots,
            max_bytes,
            policy,
            budget,
            codec,
            merger,
            num_sinks,
            window,
            granularity,
            positions,
            chunk_size,
            kernel,
            allow_extrapolation=allow_extrapolation,
        )
        self.is_batch_explicit = False
        self.is_in_forward = False
        self.shape: ModelShape | None = None
        self.batch = 0
        self._mmus: list[KVMMU] = []
        self.columns = torch.zeros((), dtype=torch.int64)
        self.rows: dict[str, Tensor] = {}
        self._end = (eos_token_id, pad_token_id)
        self.eos_ids: Tensor | None = None
        self.pad_id: int | None = None
        self.is_end_pad = False
        self.recorder: Recorder | None = None
        self._scratch: dict[tuple[Any, ...], Tensor] = {}

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        num_slots: int | None = None,
        *,
        batch_size: int | None = None,
        max_bytes: int | None = None,
        **parts: Any,
    ) -> SlotCache:
        """Make a cache, check it against `model` and allocate it for `batch_size` rows.

        Without batch_size it is allocated for one row, and again by the first forward if that
        brings more. Other arguments are those of SlotCache. Raises ValueError, CapacityError or
        UnsupportedModelError.
        """
        cache = cls(num_slots, max_bytes=max_bytes, **parts)
        cache.is_batch_explicit = batch_size is not None or max_bytes is not None
        cache.bind(model, batch=1 if batch_size is None else batch_size)
        return cache

    # What it holds ----------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """C, the slots per layer and KV head (their mean, if a budget makes them differ)."""
        return self.options.slots

    @property
    def policy(self) -> Policy:
        """Who leaves."""
        return self.options.policy

    @property
    def prefill_chunk_size(self) -> int | None:
        """What to give generate() for the least memory: T, or None for a prompt in one call.

        A selector chooses from the whole prompt, so it wants one call.
        """
        return None if self.policy.kind == "selector" else self.options.chunk_size

    @property
    def mmus(self) -> list[KVMMU]:
        """The KV-MMU of each layer, first layer first."""
        return self._mmus

    @property
    def is_bound(self) -> bool:
        """Tell whether storage is allocated for a model."""
        return self.shape is not None

    @property
    def geometry(self) -> CacheGeometry:
        """The shape of K and V in plain numbers. Raises IntegrityError before binding."""
        shape = self._bound()
        return CacheGeometry(
            num_layers=shape.num_layers,
            batch=self.batch,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            slots=tuple(mmu.spec.num_slots for mmu in self.mmus),
            dtype=str(shape.dtype).removeprefix("torch."),
            itemsize=shape.dtype.itemsize,
        )

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the tensors that hold K and V."""
        parts = [
            t for mmu in self.mmus for s in (mmu.keys, mmu.values) for t in s.tensors().values()
        ]
        return sum(t.nbytes for t in parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all persistent tensors: K, V, positions, scores, state, the reorder buffer."""
        held = [t for mmu in self.mmus for t in mmu.tensors().values()]
        return sum(t.nbytes for t in [*held, *self.rows.values(), *self._scratch.values()])

    @property
    def workspace_nbytes(self) -> int:
        """Bytes of the largest transient of a layer's prefill so far: candidates' K, V, output."""
        return max((mmu.workspace_nbytes for mmu in self.mmus), default=0)

    @property
    def num_evicted(self) -> Tensor:
        """Count the tokens that left or were never written. -> int64 [L,B]."""
        self._bound()
        counts = [m.table.num_seen - m.table.num_valid()[:, 0] for m in self.mmus]
        return torch.stack(counts).long()

    def positions(self, layer_idx: int) -> Tensor:
        """Return the logical positions that a layer holds, -1 = empty. -> int32 [B,Hkv,C]."""
        self._bound()
        return self.mmus[layer_idx].table.positions.clone()

    def check_integrity(self) -> None:
        """Raise IntegrityError if a token is held twice, not yet seen, or the newest is lost."""
        for mmu in self.mmus:
            held = mmu.table.positions.sort(dim=-1).values
            seen = mmu.table.num_seen[:, None, None]
            at = f"layer {mmu.spec.layer_idx}"
            if bool(((held[..., 1:] == held[..., :-1]) & (held[..., 1:] >= 0)).any()):
                raise IntegrityError(f"{at} must hold each token once, got a token twice")
            if bool((held >= seen).any()):
                raise IntegrityError(f"{at} must hold only tokens seen, got a later position")
            if bool(((held[..., -1:] != seen - 1) & (seen > 0)).any()):
                raise IntegrityError(f"{at} must hold the newest token, got a row without it")

    # Binding ----------------------------------------------------------------------------------

    def bind(self, model: PreTrainedModel, *, batch: int) -> None:
        """Check against a model and allocate. Raises ValueError, CapacityError, Unsupported..."""
        self.bind_shape(describe(model), batch=batch)
        self.attach(model)
        config = getattr(model, "generation_config", None)  # a bare decoder has none
        eos, pad = self._end
        eos = getattr(config, "eos_token_id", None) if eos is None else eos
        self.eos_ids = None if eos is None else torch.tensor(eos, device=model.device).view(-1)
        self.pad_id = getattr(config, "pad_token_id", None) if pad is None else pad
        if self.pad_id is None and self.eos_ids is not None:  # generate() falls back to it too
            self.pad_id = int(self.eos_ids[0])
        self.is_end_pad = self.eos_ids is not None and self.pad_id in self.eos_ids.tolist()

    def bind_shape(self, shape: ModelShape, *, batch: int) -> None:
        """Allocate for a model's shape, as `bind` does. Raises CapacityError or ValueError."""
        self.options = self.options.fitted(shape, batch)
        self.shape = shape
        self._allocate(batch)

    def attach(self, model: PreTrainedModel) -> None:
        """Take the model's rotation, if keys are numbered "in_cache". Raises Unsupported..."""
        if self.options.positions == "original":
            return
        from kvmmu.hf.rotary import rotations

        for mmu, rotary in zip(self.mmus, rotations(model), strict=True):
            mmu.rotary = rotary

    def _allocate(self, batch: int) -> None:
        """Make every layer's KV-MMU for `batch` rows, as ordinary (not inference) tensors."""
        if self.recorder is not None:
            raise IntegrityError(
                f"the batch must stay {self.batch} while a trace is recorded, got {batch}; give "
                "SlotCache.for_model the batch_size"
            )
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch!r}")
        try:
            with torch.inference_mode(mode=False):
                self._make_tensors(self._bound(), batch)
        except (RuntimeError, MemoryError) as error:  # torch says either when memory is short
            self.layers, self._mmus, self.shape = [], [], None
            raise CapacityError(
                f"the cache must fit in memory, got num_slots={self.num_slots} for {batch} rows: "
                f"{str(error).splitlines()[0]}; lower num_slots"
            ) from None
        self.batch = batch

    def _make_tensors(self, shape: ModelShape, batch: int) -> None:
        """Allocate slots, row counters and the buffer that beams are reordered through."""
        options, kernel = self.options, dispatch.resolve(self.options.kernel)
        mmus = [
            KVMMU(
                spec,
                options.policy,
                options.codec,
                kernel,
                batch=batch,
                dtype=shape.dtype,
                device=shape.device,
            )
            for spec in options.layer_specs(shape)
        ]
        self._mmus = mmus
        self.layers = [SlotLayer(self, i, mmu) for i, mmu in enumerate(mmus)]
        self.columns = torch.zeros((), dtype=torch.int64, device=shape.device)
        self.rows = {
            name: torch.zeros(batch, dtype=dtype, device=shape.device)
            for name, dtype in _ROWS.items()
        }
        shared = {(tuple(t.shape), t.dtype): t for t in self._row_tensors() if batch > 1}
        self._scratch = {key: torch.empty_like(t) for key, t in shared.items()}

    def _bound(self) -> ModelShape:
        """Return the model's shape. Raises IntegrityError before binding."""
        if self.shape is None:
            raise IntegrityError(
                "a SlotCache must be bound before it is read, got an unbound one; "
                "use SlotCache.for_model(model, ...) or run the model inside kvmmu.enabled(model)"
            )
        return self.shape

    # What transformers calls ------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Leave a layer's new tokens for its attention function. k, v [B,Hkv,Q,D] -> the same.

        Raises IntegrityError outside `kvmmu.enabled(model)`.
        """
        forward = current()
        kind = running_model()
        if forward is None and kind is not None:
            raise UnsupportedModelError(
                f"model type {kind!r} is not supported: its layers do not run in the module that "
                "its get_decoder() names"
            )
        if forward is None or forward.cache is not self:
            raise IntegrityError(
                "a SlotCache must be used inside `with kvmmu.enabled(model):`, got a forward "
                "outside of it"
            )
        if forward.keys is not None:
            raise UnsupportedModelError(
                f"layer {forward.layer_idx} must attend through transformers' attention interface "
                f"before layer {layer_idx} is updated, got an attention function of its own"
            )
        forward.layer_idx, forward.keys, forward.values = layer_idx, key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Count the columns seen, pads and evicted tokens included: the logical length."""
        if torch.compiler.is_compiling():
            return self.columns  # type: ignore[return-value]  # as transformers' StaticLayer does
        return int(self.columns)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length that a mask would have if there were one, and its offset 0."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: the logical length has no limit of the cache's."""
        return -1

    @property
    def batch_size(self) -> int:
        """Rows of the storage, -1 before binding."""
        return self.batch or -1

    @property
    def is_compileable(self) -> bool:
        """Return False: generate() shall not build masks or compile by itself."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Return False: an evicted token cannot come back."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Tell whether storage is allocated."""
        return self.is_bound

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: evicted tokens cannot come back. Raises IntegrityError."""
        raise IntegrityError(
            "a SlotCache cannot be cropped: a slot that was overwritten does not come back; "
            "turn assisted decoding off, or use a full cache"
        )

    def activate_past_recording(self) -> None:
        """Refuse, as `crop` does. Raises IntegrityError."""
        self.crop(0)

    def reset(self) -> None:
        """Forget every token, in place: positions, scores, state, row counters."""
        if self.recorder is not None:
            self.recorder.lanes("reset")
        for mmu in self.mmus:
            mmu.clear()
        self.columns.zero_()
        for tensor in self.rows.values():
            tensor.zero_()
        self.is_in_forward = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take row beam_idx[b] as row b: K, V, positions, scores and state. beam_idx [B]."""
        if self.recorder is not None:
            self.recorder.lanes("reorder", sources=beam_idx)
        for tensor in self._row_tensors():
            if self.batch > 1:  # of one row there is one order
                buffer = self._scratch[tuple(tensor.shape), tensor.dtype]
                torch.index_select(tensor, 0, beam_idx.to(tensor.device), out=buffer)
                tensor.copy_(buffer)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if self.is_bound:
            self._rebatch(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        if self.is_bound:
            self._rebatch(torch.arange(self.batch)[indices.cpu()])

    def _rebatch(self, rows: Tensor) -> None:
        """Allocate for len(rows) rows and copy; row i is the old row rows[i]."""
        old, columns, rotary = self._row_tensors(), self.columns, [m.rotary for m in self.mmus]
        self._allocate(len(rows))
        self.columns.copy_(columns)
        for mmu, turn in zip(self.mmus, rotary, strict=True):
            mmu.rotary = turn
        for new, tensor in zip(self._row_tensors(), old, strict=True):
            new.copy_(tensor.index_select(0, rows.to(tensor.device)))

    def _row_tensors(self) -> list[Tensor]:
        """List every persistent tensor whose first dimension is the batch, in a fixed order."""
        return [tensor for name, tensor in self.named_tensors().items() if name != "columns"]

    def named_tensors(self) -> dict[str, Tensor]:
        """Name every tensor that makes up the cache's state, layer by layer."""
        layers = {
            f"layers.{i}.{name}": tensor
            for i, mmu in enumerate(self.mmus)
            for name, tensor in mmu.tensors().items()
        }
        rows = {f"rows.{name}": tensor for name, tensor in self.rows.items()}
        return layers | rows | {"columns": self.columns}

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotCache:
        """Copy the storage and the state; a recording goes on with the original alone."""
        twin = SlotCache.__new__(SlotCache)
        memo[id(self)] = twin
        recorder, observers = self.recorder, [mmu.observer for mmu in self.mmus]
        self.recorder = None
        for mmu in self.mmus:
            mmu.observer = None
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        self.recorder = recorder
        for mmu, observer in zip(self.mmus, observers, strict=True):
            mmu.observer = observer
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to a safetensors file."""
        from kvmmu.hf.snapshot import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SlotCache:
        """Read a cache from a safetensors file. Raises IntegrityError with the reason."""
        from kvmmu.hf.snapshot import load

        return load(path)
