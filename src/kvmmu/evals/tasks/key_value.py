"""Key-value retrieval in the format of Lost in the Middle (Liu et al., TACL 2024).

    context            {"UUID": "UUID", "UUID": "UUID", ...}     random 128-bit UUIDs
    question, answer    Key: "UUID" -> the value's UUID
`num_hex` shortens both (8 = the first group of a UUID alone), for models too small for 36
characters; the published task is num_hex = 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Query, Task, compose

__all__ = ["KeyValue"]

_GROUPS = (8, 4, 4, 4, 12)


@TASKS.register("key_value")
@dataclass(frozen=True)
class KeyValue(Task):
    """Find the value of a key in a JSON object of random keys and values."""

    capability = "string retrieval"
    modes = ("late", "seen")
    question = "what is the value of this key?"

    num_hex: int = 32
    num_queries: int = 2
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.num_hex not in (8, 12, 16, 20, 32):
            raise ValueError(f"num_hex must be 8, 12, 16, 20 or 32, got {self.num_hex!r}")

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw as many pairs as fill `share` of the tokens; text fills the rest."""
        self.check_mode(mode)
        encode = source.encode
        room = int(self.share * num_tokens)
        pairs: list[tuple[str, str]] = []
        body = ""
        used = 0
        while True:
            key, value = self._uuid(rng), self._uuid(rng)
            text = f'"{key}": "{value}",'
            used += len(encode(" " + text))
            if pairs and used + 4 * len(encode(f' Key: "{key}": "{value}"')) > room:
                break
            pairs.append((key, value))
            body += " " + text
        order = rng.permutation(len(pairs)).tolist()[: self.num_queries]
        queries = [
            Query(
                tuple(encode(f' Key: "{pairs[i][0]}": "')),
                tuple(encode(pairs[i][1])),
                key=pairs[i][0],
            )
            for i in order
        ]
        piece = tuple(encode(" {" + body[1:-1] + "}"))
        return compose(source, [piece], queries, num_tokens=num_tokens, mode=mode, rng=rng)

    def _uuid(self, rng: np.random.Generator) -> str:
        text = "".join("0123456789abcdef"[i] for i in rng.integers(0, 16, size=32))
        groups, at = [], 0
        for size in _GROUPS:
            if at < self.num_hex:
                groups.append(text[at : at + size])
            at += size
        return "-".join(groups)
