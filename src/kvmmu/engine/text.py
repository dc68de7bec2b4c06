"""Token ids to text pieces: whole characters only, and never a part of a stop string.

`Detokenizer` turns tokens into pieces whose concatenation is the text of all tokens. A token may
hold part of a character (bytes of UTF-8), so what ends in a replacement character waits.
`StopStrings` lets through what can no longer become part of a stop string. The text ends before
the stop string that is complete first, wherever the borders between tokens and pieces fall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "Detokenizer", "StopStrings", "TextStream"]

Decode = Callable[[list[int]], str]
"""Text of token ids, without special tokens; a part of a character is U+FFFD."""

_BROKEN = "\ufffd"
_MOST_PARTS = 3
"""Tokens that may hold the begun part of a character: UTF-8 has four bytes at most."""
_MAX_WAITING = 32
"""Tokens after which bytes that never become a character are let go."""


class Detokenizer:
    """Turn one request's tokens into text as they come."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._before = 0  # ids[before:done] give the new ones what stands before them
        self._done = 0  # ids[:done] have been let out

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take tokens, return the text that is now certain."""
        self._ids.extend(token_ids)
        num_waiting = len(self._ids) - self._done
        for num_parts in range(min(_MOST_PARTS, num_waiting) + 1):
            end = len(self._ids) - num_parts
            text = self._rest(end)
            if not text.endswith(_BROKEN):
                break
        else:
            if num_waiting < _MAX_WAITING:
                return ""
            end = len(self._ids) - _MOST_PARTS
            text = self._rest(end)
        if not text and num_waiting >= _MAX_WAITING:
            del self._ids[self._done : end]  # special tokens without end would make this slow
        return self._let_out(text, end)

    def flush(self) -> str:
        """Return what still waits, parts of characters included."""
        end = len(self._ids)
        return self._let_out(self._rest(end), end)

    def _rest(self, end: int) -> str:
        """Return the text of ids[done:end] as it reads after the others."""
        known = self._decode(self._ids[self._before : self._done])
        both = self._decode(self._ids[self._before : end])
        if both.startswith(known):
            return both[len(known) :]
        return self._decode(self._ids[self._done : end])  # the new bytes changed what stood before

    def _let_out(self, text: str, end: int) -> str:
        if text:  # tokens without text give the next ones nothing to stand after
            self._before = self._done
            self._done = end
        return text


class StopStrings:
    """Pass text on up to the first stop string. stops: strings that are not empty."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.is_over = False

    def feed(self, text: str) -> str:
        """Take text, return what is surely before any stop string; sets is_over at one."""
        if self.is_over:
            return ""
        if not self._stops:
            return text
        self._waiting += text
        ends = [
            (at + len(stop), at) for stop in self._stops if (at := self._waiting.find(stop)) >= 0
        ]
        if ends:  # the first to be complete; of those that end there, the longest
            self.is_over = True
            sent, self._waiting = self._waiting[: min(ends)[1]], ""
            return sent
        keep = max(_overlap(self._waiting, stop) for stop in self._stops)
        cut = len(self._waiting) - keep
        sent, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return sent

    def flush(self) -> str:
        """Return what waits: it did not become a stop string."""
        sent, self._waiting = self._waiting, ""
        return sent


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class TextStream:
    """One request's text: tokens in, pieces out, over at a stop string."""

    def __init__(self, decode: Decode | None, stops: Sequence[str]) -> None:
        self._tokens = None if decode is None else Detokenizer(decode)
        self._stops = StopStrings(stops)

    @property
    def is_over(self) -> bool:
        """Tell whether a stop string was reached."""
        return self._stops.is_over

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take tokens, return the next piece, perhaps empty. Without a tokenizer there is none."""
        return "" if self._tokens is None else self._stops.feed(self._tokens.feed(token_ids))

    def flush(self) -> str:
        """Return all that waits, up to a stop string."""
        if self._tokens is None:
            return ""
        text = self._stops.feed(self._tokens.flush())
        return text + self._stops.flush()
