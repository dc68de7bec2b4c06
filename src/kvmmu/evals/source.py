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
    """A text as filler, the tokenizer's encode, and the keys that name records.

    written are the keys of tasks whose answers hold keys; by default the same.
    """

    filler: Filler
    encode: Encode
    keys: tuple[str, ...]
    written: tuple[str, ...] | None = None

    @classmethod
    def make(cls, text: str, tokenizer: Any, *, keys: Sequence[str] | None = None) -> Source:
        """Encode a text; keys default to those held out of the shipped models' training.

        Then keys that must be written are the training keys: the small models find held-out words,
        but were never asked to write them. Of the keys only those of the most common token count
        are used: questions are then equally long, and a batch's rows advance together. Raises
        ValueError without keys.
        """

        def encode(piece: str) -> list[int]:
            ids: list[int] = tokenizer.encode(piece, add_special_tokens=False)
            return ids

        def even(words: Sequence[str]) -> tuple[str, ...]:
            lengths = [len(encode(f" {word}")) for word in words]
            usual = max(sorted(set(lengths)), key=lengths.count)
            return tuple(w for w, length in zip(words, lengths, strict=True) if length == usual)

        if keys is not None and not keys:
            raise ValueError("keys must name at least one word, got none")
        filler = encode_filler(text, encode)
        if keys is not None:
            return cls(filler, encode, even(keys))
        return cls(filler, encode, even(key_words("held_out")), even(key_words("train")))


def shipped_text(name: str) -> str:
    """Return a text of the package's data folder; no shipped model was trained on any of them."""
    packed = files("kvmmu").joinpath("data", f"{name}.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")


def shipped_book() -> str:
    """Return the text of Frankenstein."""
    return shipped_text("frankenstein")
