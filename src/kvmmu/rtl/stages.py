"""Stages of a build: one whose inputs and outputs have not changed is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Stages", "digest_of"]


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stages:
    """Run stages in one folder, and remember there what each was made from.

    A record that cannot be read, or was made by another layout, counts as none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[], dict[str, Any]],
        *,
        outputs: Iterable[Path] = (),
    ) -> dict[str, Any]:
        """Return what `make` returned, now or when it last ran on the same inputs.

        Adds `seconds`, how long `make` took. The record is written last, so a build that is killed
        repeats its stage.
        """
        files = list(outputs)
        wanted = json.loads(json.dumps(dict(inputs)))
        record = self._read(name)
        if record.get("inputs") == wanted and record.get("outputs") == _digests(files):
            return dict(record["result"])
        self._path(name).unlink(missing_ok=True)
        began = time.perf_counter()
        result = make() | {"seconds": round(time.perf_counter() - began, 3)}
        self._write(name, {"inputs": wanted, "outputs": _digests(files), "result": result})
        return result

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.stage.json"

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and isinstance(found.get("result"), dict) else {}

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._path(name).with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path(name))


def _digests(files: Iterable[Path]) -> dict[str, str]:
    """Map each file's name to its digest, "" for one that is not there."""
    return {path.name: digest_of(path) if path.is_file() else "" for path in files}
