"""Where the tasks take their words from: a text, a tokenizer and a set of keys."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from kvmmu.evals.filler import Encode, Filler, encode_filler
from kvmmu.evals.keys import key_words

__all__ = ["Source", "shipped_book", "shipped_text"]


@dataclass(frozen=True)
class Source:
    """A text as filler, the tokenizer's encode, and the keys that name records."""

    filler: Filler
    encode: Encode
    keys: tuple[str, ...]

    @classmethod
    def make(cls, text: str, tokenizer: Any, *, keys: Sequence[str] | None = None) -> Source:
        """Encode a text; keys default to those held out of the shipped models' training.

        Of the keys only those of the most common token count are used: questions are then
        equally long, and a batch's rows advance together. Raises ValueError without keys.
        """

        def encode(piece: str) -> list[int]:
            ids: list[int] = tokenizer.encode(piece, add_special_tokens=False)
            return ids

        keys = key_words("held_out") if keys is None else keys
        if not keys:
            raise ValueError("keys must name at least one word, got none")
        lengths = [len(encode(f" {key}")) for key in keys]
        usual = max(sorted(set(lengths)), key=lengths.count)
        even = tuple(key for key, length in zip(keys, lengths, strict=True) if length == usual)
        return cls(encode_filler(text, encode), encode, even)


def shipped_text(name: str) -> str:
    """Return a text of the package's data folder; no shipped model was trained on any of them."""
    packed = files("kvmmu").joinpath("data", f"{name}.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")


def shipped_book() -> str:
    """Return the text of Frankenstein."""
    return shipped_text("frankenstein")
