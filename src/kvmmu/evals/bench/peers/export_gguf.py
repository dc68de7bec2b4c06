"""Write a Llama's Hugging Face folder as GGUF: python export_gguf.py FOLDER OUT f32|f16|q8_0.

Runs in an environment that has the gguf package; imports nothing of kvmmu. Matrices take the
format named, vectors stay float32. GGUF's llama turns neighbouring pairs of a head where Hugging
Face turns halves, so the rows of q and k are laid out anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_KINDS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Read every tensor of the safetensors files as float32."""
    for path in sorted(folder.glob("*.safetensors")):
        data = np.memmap(path, dtype=np.uint8, mode="r")
        size = int.from_bytes(data[:8].tobytes(), "little")
        head = json.loads(data[8 : 8 + size].tobytes())
        for name, about in head.items():
            if name != "__metadata__":
                start, stop = (8 + size + x for x in about["data_offsets"])
                yield name, _float32(data[start:stop], about["dtype"]).reshape(about["shape"])


def _float32(data: Any, dtype: str) -> Any:
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds = {"F32": np.float32, "F16": np.float16}
    if dtype not in kinds:
        raise ValueError(f"weights must be F32, F16 or BF16, got {dtype}")
    return data.view(kinds[dtype]).astype(np.float32)


def new_name(name: str) -> str:
    """Return GGUF's name of a tensor. Raises ValueError for one that llama has not."""
    if name in _TOP:
        return _TOP[name]
    parts = name.removeprefix("model.layers.").split(".", 1)
    part = parts[-1].removesuffix(".weight")
    if part not in _NAMES:
        raise ValueError(f"a llama's tensors must be known ones, got {name!r}")
    return f"blk.{parts[0]}.{_NAMES[part]}.weight"


def in_pairs(weight: Any, heads: int) -> Any:
    """Lay the rows [heads * D, hidden] out so that pairs (i, i + D/2) are neighbours."""
    rows, hidden = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, hidden)
    return halves.swapaxes(1, 2).reshape(rows, hidden)


def export(folder: str, out: str, kind: str) -> None:
    """Convert the weights and the tokenizer."""
    source = Path(folder)
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("rope_scaling"):
        raise ValueError(
            "the GGUF writer takes model_type llama without rope_scaling, got "
            f"{config['model_type']!r}, {config.get('rope_scaling')!r}"
        )
    writer = gguf.GGUFWriter(out, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    _about(writer, config, kind)
    _tokens(writer, json.loads((source / "tokenizer.json").read_text()), config)
    for name, read in tensors(source):
        weight = read
        if "q_proj" in name or "k_proj" in name:
            weight = in_pairs(read, heads if "q_proj" in name else kv_heads)
        quantised = _KINDS[kind][0] if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(weight), quantised)
        writer.add_tensor(new_name(name), data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _about(writer: Any, config: dict[str, Any], kind: str) -> None:
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_file_type(_KINDS[kind][1])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 1e4)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])


def _tokens(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """Write a byte-level tokenizer: texts by id, added ones as control tokens."""
    texts = [f"[unused{n}]" for n in range(config["vocab_size"])]
    for text, n in tokenizer["model"]["vocab"].items():
        texts[n] = text
    kinds = [gguf.TokenType.NORMAL] * len(texts)
    for added in tokenizer["added_tokens"]:
        texts[added["id"]], kinds[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    end = config.get("eos_token_id")
    if isinstance(end, int):
        writer.add_eos_token_id(end)


if __name__ == "__main__":
    export(*sys.argv[1:4])
