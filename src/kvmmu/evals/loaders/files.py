"""Find and read rows of JSON, one a line, plain or compressed."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from kvmmu.evals.loaders.base import MissingDataError

__all__ = ["find", "lines", "missing", "rows", "texts"]

_ENDINGS = ("", ".gz", ".xz")


def find(folder: Path, names: Sequence[str], *, what: str, source: str) -> Path:
    """Return the first file of these names, plain, .gz or .xz. Raises MissingDataError."""
    for name in names:
        for ending in _ENDINGS:
            path = folder / f"{name}{ending}"
            if path.is_file():
                return path
    raise missing(folder / names[0], what=what, source=source)


def missing(path: Path, *, what: str, source: str) -> MissingDataError:
    """Word what is not there."""
    return MissingDataError(
        f"{what} must be at {str(path)!r} (.gz and .xz will do), got no such file; get it from "
        f"{source}"
    )


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers from 1. Raises ValueError."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(f"{str(path)!r} must be UTF-8 text, whole: {error}") from error


def rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield JSON objects that have the keys. Raises ValueError that names the line."""
    for number, line in lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {str(path)!r} must be JSON: {error}") from error
        lacks = [key for key in keys if not isinstance(row, dict) or key not in row]
        if lacks:
            raise ValueError(
                f"line {number} of {str(path)!r} must be an object with {', '.join(keys)}, got "
                f"none of name {lacks[0]!r}"
            )
        yield row


def texts(value: Any) -> tuple[str, ...]:
    """Return a string or a list of them as a tuple; other values as text."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value or ())


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
