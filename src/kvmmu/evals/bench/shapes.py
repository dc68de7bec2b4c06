"""A random Llama of a given shape, made once as a Hugging Face folder with a tokenizer.

Speed does not depend on what the weights say, only on their shape: every peer gets these same
numbers, so greedy tokens can be compared. The tokenizer is a byte-level one whose further words
nobody writes; prompts are token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = [
    "MERGE",
    "END",
    "SHAPES",
    "Shape",
    "byte_letters",
    "make_model",
    "parse_shape",
    "token_texts",
]

PREFIX = "random:"
MERGE = ("t", "h")
"""The tokenizer's only merge; some readers refuse one without merges or special tokens."""
END = "<end>"
_BYTES = 256


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama; the head is the embedding's transpose."""

    layers: int = 12
    hidden: int = 768
    intermediate: int = 2048
    heads: int = 12
    kv_heads: int = 4
    head_dim: int = 64
    vocab: int = 16384

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that no Llama has."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} must be at least 1, got {getattr(self, field.name)}"
                )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, got {self.heads}, {self.kv_heads}"
            )
        if self.head_dim % 2 or self.hidden % 32 or self.intermediate % 32:
            raise ValueError(
                "hidden and intermediate must be multiples of 32 (q8_0's blocks) and head_dim "
                f"even, got {self.hidden}, {self.intermediate}, {self.head_dim}"
            )
        if self.vocab < _BYTES + 2:
            raise ValueError(
                f"vocab must be at least {_BYTES + 2} (the bytes and two), got {self.vocab}"
            )

    @property
    def num_parameters(self) -> int:
        """Count the weights."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.hidden * (2 * q + 2 * kv + 3 * self.intermediate + 2)
        return self.layers * layer + self.vocab * self.hidden + self.hidden


SHAPES: dict[str, Shape] = {
    "88m": Shape(),
    "28m": Shape(layers=8, hidden=512, intermediate=1536, heads=8, kv_heads=2, vocab=8192),
    "tiny": Shape(
        layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocab=320
    ),
}


def parse_shape(text: str) -> Shape | None:
    """Read "random:88m" or "random:layers=4,hidden=256"; None for another kind of model.

    Raises ValueError for an unknown name or number.
    """
    if not text.startswith(PREFIX):
        return None
    body = text.removeprefix(PREFIX)
    if body in SHAPES:
        return SHAPES[body]
    known = [field.name for field in fields(Shape)]
    found: dict[str, int] = {}
    for part in body.split(","):
        name, _, value = part.partition("=")
        if name not in known or not re.fullmatch(r"\d+", value):
            raise ValueError(
                f"a random model must be one of {', '.join(SHAPES)} or NAME=NUMBER with commas "
                f"(names: {', '.join(known)}), got {part!r}"
            )
        found[name] = int(value)
    return Shape(**found)


def make_model(shape: Shape, folder: Path) -> Path:
    """Write config.json, model.safetensors and tokenizer.json once; returns the folder."""
    done = folder / "shape.json"  # written last
    if done.is_file() and json.loads(done.read_text()) == asdict(shape):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    for name, made in _tokenizer(shape).items():
        (folder / name).write_text(json.dumps(made, ensure_ascii=False))
    (folder / "generation_config.json").write_text(
        json.dumps({"pad_token_id": shape.vocab - 1, "eos_token_id": shape.vocab - 1})
    )
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1))
    done.write_text(json.dumps(asdict(shape)))
    return folder


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 1 << 17,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": shape.vocab - 1,
        "pad_token_id": shape.vocab - 1,
        "torch_dtype": "float32",
    }


def _weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Draw the weights, normal; norms are 1.

    The deviations are such that greedy tokens differ from step to step and hang on the context;
    at transformers' own 0.02 a random model repeats one token, and any peer would agree.
    """
    random = torch.Generator().manual_seed(0)
    usual = 0.04 * (768 / shape.hidden) ** 0.5

    def draw(rows: int, columns: int, deviation: float = usual) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * deviation

    q, kv, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
    made = {"model.embed_tokens.weight": draw(shape.vocab, hidden, 0.02)}
    sizes: dict[str, Callable[[], torch.Tensor]] = {
        "self_attn.q_proj": lambda: draw(q, hidden, 2 * usual),
        "self_attn.k_proj": lambda: draw(kv, hidden, 2 * usual),
        "self_attn.v_proj": lambda: draw(kv, hidden),
        "self_attn.o_proj": lambda: draw(hidden, q),
        "mlp.gate_proj": lambda: draw(shape.intermediate, hidden),
        "mlp.up_proj": lambda: draw(shape.intermediate, hidden),
        "mlp.down_proj": lambda: draw(hidden, shape.intermediate),
        "input_layernorm": lambda: torch.ones(hidden),
        "post_attention_layernorm": lambda: torch.ones(hidden),
    }
    for layer in range(shape.layers):
        for name, make in sizes.items():
            made[f"model.layers.{layer}.{name}.weight"] = make()
    made["model.norm.weight"] = torch.ones(hidden)
    return made


def byte_letters() -> list[str]:
    """Return the printable letter of each byte, as byte-level tokenizers write them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(_BYTES)]


def token_texts(shape: Shape) -> list[str]:
    """Return every token's text: bytes, the merged pair, words that no text contains, the end."""
    words = (f"<t{n}>" for n in range(_BYTES + 1, shape.vocab - 1))
    return [*byte_letters(), "".join(MERGE), *words, END]


def _tokenizer(shape: Shape) -> dict[str, dict[str, Any]]:
    """Make a byte-level tokenizer of one merge, and what transformers wants beside it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocab = {text: n for n, text in enumerate(token_texts(shape))}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": shape.vocab - 1, "content": END, "special": True, **flags}
    fast = {
        "version": "1.0",
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(MERGE)]},
    }
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1 << 17,
    }
    about |= {"pad_token": END, "eos_token": END}
    return {"tokenizer.json": fast, "tokenizer_config.json": about}
