"""llama.cpp as a peer, through llama-cpp-python's C interface: batches of tokens, greedy.

Settings: model (GGUF file), threads, context (tokens a row has room for), max_batch, kv_type
("f32", "f16").
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_CHUNK = 512


class Peer:
    """A context with one sequence a row; made anew after `clear`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model. Raises RuntimeError where llama.cpp refuses it."""
        self.settings = settings
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        path = str(settings["model"]).encode()
        self._model = llama_cpp.llama_model_load_from_file(
            path, llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {settings['model']}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.facts = {
            "version": llama_cpp.__version__,
            "weight_bytes": Path(settings["model"]).stat().st_size,
            "fans_out": True,
        }
        self._context: Any = None
        self._batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)
        self._tokens: list[int] = []
        self._at = 0

    def clear(self) -> None:
        """Drop the context."""
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = None

    def _open(self) -> None:
        self.clear()
        params = llama_cpp.llama_context_default_params()
        rows = max(self.settings["max_batch"], 1)
        room = -(-self.settings["context"] // 256) * 256
        params.n_ctx = room * rows
        params.n_batch = params.n_ubatch = _CHUNK
        params.n_seq_max = rows
        params.n_threads = params.n_threads_batch = self.settings["threads"]
        kind = getattr(llama_cpp, f"GGML_TYPE_{self.settings['kv_type'].upper()}")
        params.type_k = params.type_v = kind
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context of {params.n_ctx} tokens")

    def _run(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Decode a batch of (token, position, row, wants logits)."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for n, (token, position, row, is_wanted) in enumerate(entries):
            batch.token[n], batch.pos[n] = token, position
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
            batch.logits[n] = is_wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode must return 0, got {code}")

    def _best(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read prompts of one length, one after another."""
        self._open()
        self._tokens = []
        for row, prompt in enumerate(prompts):
            for start in range(0, len(prompt), _CHUNK):
                part = prompt[start : start + _CHUNK]
                last = len(prompt) - 1 - start
                self._run([(x, start + n, row, n == last) for n, x in enumerate(part)])
            self._tokens.append(self._best(last))
        self._at = len(prompts[0])
        return list(self._tokens)

    def spread(self, count: int) -> None:
        """Copy the row that was read to `count` rows."""
        memory = llama_cpp.llama_get_memory(self._context)
        for row in range(1, count):
            llama_cpp.llama_memory_seq_cp(memory, 0, row, -1, -1)
        self._tokens *= count

    def decode(self, count: int) -> list[list[int]]:
        """Take `count` steps."""
        made: list[list[int]] = [[] for _ in self._tokens]
        for _ in range(count):
            self._run([(x, self._at, row, True) for row, x in enumerate(self._tokens)])
            self._tokens = [self._best(row) for row in range(len(self._tokens))]
            self._at += 1
            for row, token in zip(made, self._tokens):
                row.append(token)
        return made

    def kv_bytes(self) -> int | None:
        """Return None: llama.cpp does not say."""
        return None
