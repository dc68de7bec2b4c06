"""The results file: JSON lines, appended as each cell ends, so that a kill loses one cell at most.

    about      what was evaluated, the first line; a run with another model or size is refused
    answers    one cell: rows [[score sum, answers], ...], a pair for each context
    pages      one cell: rows [[loss sum in nats, tokens], ...]
    survivors  share of the tokens of an age still held at the end of the pages
    agreement  of integer scores: how many of the pages' victims fp32 scores would have chosen
    speed      tokens/s and their ratio to StaticCache, measured in turns
    skipped    a case that was not measured, and why: one that the full cache does not solve
Every line but the first has a `key`; a key stands once. `size` is the number of answers (of
tokens, in perplexity) that a case was asked for. The file is read and written under its lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["ResultsFile"]

NAME = "results.jsonl"
_HEAD = b'{"kind": "about"'
_FIXED = ("model", "fingerprint", "dtype", "kvmmu_version")
"""What a resumed run must share with the run that began the file."""


class ResultsFile:
    """Append to DIR/results.jsonl; `done` holds the lines there are, by key."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Open or begin the file.

        Raises ValueError if it is of another run, not ours, or in use by another process.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.done: dict[str, dict[str, Any]] = {}
        self._about = {"kind": "about"} | about
        self._file: BinaryIO | None = None
        with self.locked():
            pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out and read what they wrote; a process that dies lets go.

        Raises ValueError as the file is opened.
        """
        if self._file is not None:
            yield
            return
        with self.path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"{self.path} must not be in use by another run, got one that is writing to "
                    "it; wait for it to end or choose another --output"
                ) from error
            self._file = file
            try:
                self._load(file)
                yield
            finally:
                self._file = None

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Write the lines of one cell in one go and wait until they are on the disk.

        A line whose key stands in the file already is left out.
        """
        with self.locked():
            assert self._file is not None
            lines = [line for line in lines if line.get("key") not in self.done]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.done |= {line["key"]: line for line in lines if "key" in line}

    def _load(self, file: BinaryIO) -> None:
        """Read the lines that there are; cut off what a kill left of the last one."""
        file.seek(0)
        lines, num_bytes = self._read(file.read())
        if lines:
            self._check(lines[0], self._about)
        file.truncate(num_bytes)
        self.done = {line["key"]: line for line in lines if "key" in line}
        if not lines:
            self.append([self._about])

    def _check(self, first: dict[str, Any], about: dict[str, Any]) -> None:
        """Raise ValueError unless the file's first line says what this run would say."""
        if first.get("kind") != "about":
            raise ValueError(
                f"{self.path} must begin with a line of kind 'about', got "
                f"{first.get('kind')!r}; choose another --output"
            )
        for name in _FIXED:
            if first.get(name) != about.get(name):
                raise ValueError(
                    f"{self.path} holds results of {name} {first.get(name)!r}, got "
                    f"{about.get(name)!r}; choose another --output"
                )

    def _read(self, data: bytes) -> tuple[list[dict[str, Any]], int]:
        """Read all whole lines and count their bytes. Raises ValueError if they are not ours."""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and not (data.startswith(_HEAD) or _HEAD.startswith(data)):
            raise ValueError(
                f"{self.path} must begin with a line of kind 'about', got {data[:40]!r}; choose "
                "another --output"
            )
        lines = []
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise ValueError(
                    f"{self.path} must hold a JSON object in every line, got {text[:40]!r} in "
                    f"line {number}; repair it or choose another --output"
                )
            lines.append(line)
        return lines, len(whole)
