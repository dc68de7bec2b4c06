"""Loader: a published benchmark in its published files. The contract of every file of this room.

A loader is a frozen dataclass of a folder and its options. It reads, and never downloads: a file
that is missing is named together with where to get it and where it goes.

Contract.
    `documents()` yields Documents in the files' order, each with everything that a run needs.
    `score(document, text)` judges what was written for a document, in [0, 1]; None where the
        judge is somebody else's tool. `text` has no stop string in it any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from kvmmu.errors import KVMMUError
from kvmmu.registry import Registry

__all__ = ["LOADERS", "Document", "Loader", "MissingDataError"]


class MissingDataError(KVMMUError, FileNotFoundError):
    """Say which file of a benchmark is missing, where to get it and where it goes."""


@dataclass(frozen=True)
class Document:
    """One question of a benchmark: `prompt` is read, then at most max_new_tokens are written.

    Writing ends at a string of `stop`, which is cut off. With mode "continue" nothing is written:
    references[0] is what follows the prompt, and its likelihood is the result. `task` is the
    data set within the benchmark, `classes` the labels that there are to choose from.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    metric: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    task: str = ""
    classes: tuple[str, ...] = ()
    mode: Literal["generate", "continue"] = "generate"

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"the prompt of document {self.id!r} must not be empty")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True)
class Loader(ABC):
    """Read one benchmark from a folder; see the module's contract."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Where to get the files: a public name and address."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents in order. Raises MissingDataError, or ValueError for a bad row."""

    @abstractmethod
    def score(self, document: Document, text: str) -> float | None:
        """Judge what was written for a document, in [0, 1]; None where it cannot be judged here."""


LOADERS: Registry[Loader] = Registry(
    "benchmark",
    Loader,  # type: ignore[type-abstract]
    "kvmmu.evals.loaders",
    group="kvmmu.loaders",
)
