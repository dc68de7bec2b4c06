"""The model that is timed: its folder, its size, and its conversions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kvmmu.evals.bench.convert import converted, fingerprint
from kvmmu.evals.bench.shapes import make_model, parse_shape

__all__ = ["BenchModel"]


@dataclass(frozen=True)
class BenchModel:
    """A Hugging Face folder and what its configuration says."""

    name: str
    folder: Path
    vocab: int
    kv_elements_per_token: int
    weight_bytes: int
    fingerprint: str

    @classmethod
    def open(cls, name: str, convert_dir: Path) -> BenchModel:
        """Make a random model ("random:88m") in convert_dir, or take a folder.

        Raises ValueError for a shape, or a folder, that is none.
        """
        shape = parse_shape(name)
        if shape is not None:
            body = name.replace("random:", "").replace("=", "").replace(",", "-")
            folder = make_model(shape, convert_dir / f"random-{body}")
        else:
            folder = Path(name)
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise ValueError(
                "MODEL must be random:88m, random:layers=4,... or a Hugging Face folder with "
                f"config.json and safetensors files, got {name!r}"
            )
        config = json.loads((folder / "config.json").read_text())
        heads = config.get("num_attention_heads") or config.get("n_head")
        kv_heads = config.get("num_key_value_heads") or heads
        hidden = config.get("hidden_size") or config.get("n_embd")
        dim = config.get("head_dim") or hidden // heads
        layers = config.get("num_hidden_layers") or config.get("n_layer")
        return cls(
            name=name,
            folder=folder,
            vocab=config["vocab_size"],
            kv_elements_per_token=2 * layers * kv_heads * dim,
            weight_bytes=sum(p.stat().st_size for p in folder.glob("*.safetensors")),
            fingerprint=fingerprint(folder),
        )

    def converted(self, source: str, folder: Path, python: str) -> Path:
        """Return the model in a peer's format. Raises ConversionError."""
        return (
            self.folder if source in ("hf", "-") else converted(self.folder, source, folder, python)
        )

    @staticmethod
    def free_bytes() -> int:
        """Return the memory that processes can still have; 8 GB where it is not told."""
        info = Path("/proc/meminfo")
        if not info.exists():
            return 8_000_000_000
        lines = [x for x in info.read_text().splitlines() if x.startswith("MemAvailable")]
        return int(lines[0].split()[1]) * 1024
