"""The same weights in each peer's format, made once and kept in a folder.

A conversion runs in a child process with the peer's Python: it needs optimum-intel (OpenVINO) or
the gguf package (llama.cpp).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import kvmmu.evals.bench.peers as peers
from kvmmu.errors import KVMMUError

__all__ = ["ConversionError", "converted", "fingerprint"]

_END_BYTES = 1 << 20
_SCRIPTS = {"openvino": "export_openvino.py", "gguf": "export_gguf.py"}


class ConversionError(KVMMUError):
    """A model could not be converted; the message is the converter's last line."""


def fingerprint(model: Path) -> str:
    """Name a folder's model by its configuration and both ends of its files of weights."""
    made = hashlib.sha256((model / "config.json").read_bytes())
    for path in sorted(model.glob("*.safetensors")):
        made.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            made.update(file.read(_END_BYTES))
            file.seek(-min(_END_BYTES, path.stat().st_size), 2)
            made.update(file.read())
    return made.hexdigest()[:12]


def converted(model: Path, source: str, folder: Path, python: str) -> Path:
    """Return the model as `source` ("hf" or FORMAT-WEIGHTS), converted where it is not yet.

    Raises ConversionError with one line.
    """
    if source == "hf":
        return model
    kind, weights = source.split("-", 1)
    out = folder / fingerprint(model) / (f"{source}.gguf" if kind == "gguf" else source)
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name("part-" + out.name)
    script = Path(peers.__file__).parent / _SCRIPTS[kind]
    try:
        # -P: the script's folder holds files that must not hide packages
        command = [python, "-P", str(script), str(model.resolve()), str(part), weights]
        made = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionError(f"conversion to {source} did not run: {error}") from error
    if made.returncode:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
        lines = made.stderr.strip().splitlines() or [f"exit code {made.returncode}"]
        raise ConversionError(f"conversion to {source} failed: {lines[-1][:200]}")
    part.rename(out)
    return out
