"""Real text as token ids, cut only where a word ends, so that records can stand between words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encode", "Filler", "encode_filler"]

Encode = Callable[[str], list[int]]

_PIECE = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Filler:
    """Hold a text as ids [N] int32 and is_start [N] bool, True where a word begins.

    Contract: words are whole; a slice taken between two starts encodes as the text does there.
    """

    ids: NDArray[np.int32]
    is_start: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.ids.size)

    def take(
        self, num_tokens: int, *, rng: np.random.Generator
    ) -> tuple[list[int], NDArray[np.int64]]:
        """Copy num_tokens ids from a random word on; also the indices where words begin.

        Raises ValueError if the text is shorter than num_tokens.
        """
        if num_tokens > len(self):
            raise ValueError(
                f"num_tokens must not exceed the filler's {len(self)} tokens, got {num_tokens}; "
                "use a longer text"
            )
        first = int(rng.integers(0, len(self) - num_tokens + 1))
        while first > 0 and not self.is_start[first]:
            first -= 1
        window = slice(first, first + num_tokens)
        return self.ids[window].tolist(), np.flatnonzero(self.is_start[window])


def encode_filler(text: str, encode: Encode) -> Filler:
    """Encode a text word by word, each word with the white space before it."""
    known: dict[str, list[int]] = {}
    ids: list[int] = []
    starts: list[int] = []
    for piece in _PIECE.findall(text):
        if piece not in known:
            known[piece] = encode(piece)
        starts.append(len(ids))
        ids.extend(known[piece])
    is_start = np.zeros(len(ids), dtype=np.bool_)
    is_start[starts] = True
    return Filler(ids=np.asarray(ids, dtype=np.int32), is_start=is_start)
