"""The journal: DIR/trials.jsonl, one line for every point tried, written when it is priced.

The first line says what is searched; a search for something else is refused. A process that dies
loses the point it was pricing and no other: its line is missing or cut, and the point is tried
again. Lines are numbered for each cache, so that none can be lost or doubled unseen. The file is
held under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["FILE_NAME", "Journal"]

FILE_NAME = "trials.jsonl"


class Journal:
    """Hold the lines of each cache; without a folder, in memory only."""

    def __init__(self, about: dict[str, Any], file: BinaryIO | None, path: Path) -> None:
        self._about, self._file, self._path = about, file, path
        self._lines: dict[str, list[dict[str, Any]]] = {}
        if file is not None:
            self._load(file)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path | None, about: dict[str, Any]) -> Iterator[Journal]:
        """Open or begin the journal of a folder.

        Raises ValueError if it is damaged, of another search, or in use.
        """
        about = json.loads(json.dumps(about))
        if folder is None:
            yield cls(about, None, Path())
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"{path} must not be in use by another search, got one that is writing to it; "
                    "wait for it to end or choose another --output"
                ) from error
            yield cls(about, file, path)

    def lines(self, cache: str) -> tuple[dict[str, Any], ...]:
        """Return what was tried for a cache, in order."""
        return tuple(self._lines.get(cache, ()))

    def append(self, cache: str, line: dict[str, Any]) -> None:
        """Write one line and wait until it is on the disk."""
        own = self._lines.setdefault(cache, [])
        line = {"cache": cache, "number": len(own)} | line
        if self._file is not None:
            self._write(line)
        own.append(line)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self, file: BinaryIO) -> None:
        """Read whole lines, cut off what a kill left of the last one."""
        file.seek(0)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        lines = [self._parsed(n, text) for n, text in enumerate(whole.splitlines(), 1)]
        if not lines and data and not b'{"about": '.startswith(data[:10]):
            raise ValueError(f"{self._path} must be the journal of a search, got {data[:40]!r}")
        if lines:
            self._check(lines[0])
        file.truncate(len(whole))
        if not lines:
            self._write({"about": self._about})
        for number, line in enumerate(lines[1:], 2):
            own = self._lines.setdefault(str(line.get("cache")), [])
            if line.get("number") != len(own):
                raise ValueError(
                    f"{self._path} must number its trials without a gap, {len(own)} next, got "
                    f"{line.get('number')!r} in line {number}; choose another --output"
                )
            own.append(line)

    def _parsed(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise ValueError(
                f"{self._path} must hold a JSON object in every line, got {text[:40]!r} in line "
                f"{number}; choose another --output"
            )
        return line

    def _check(self, first: dict[str, Any]) -> None:
        """Raise ValueError, by name, unless the first line says what this search would say."""
        told = first.get("about")
        if not isinstance(told, dict):
            raise ValueError(f"{self._path} must begin with what is searched, got {first!r:.60}")
        for name in {*self._about, *told}:
            if told.get(name) != self._about.get(name):
                raise ValueError(
                    f"{self._path} holds a search with {name} {told.get(name)!r}, got "
                    f"{self._about.get(name)!r}; choose another --output"
                )
