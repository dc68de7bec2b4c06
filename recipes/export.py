"""Write the trained weights as a plain Hugging Face Llama."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from model import Llama, ModelConfig
from safetensors.torch import save_file
from tokenizer import save_tokenizer
from tokenizers import Tokenizer


def hub_config(config: ModelConfig) -> dict[str, object]:
    """Describe the model as LlamaForCausalLM expects it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "bfloat16",
        "use_cache": True,
    }


def export_model(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """Write config, weights in bfloat16 and tokenizer beside directory, then swap them in."""
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {
        f"model.{name}": value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "config.json").write_text(json.dumps(hub_config(model.config), indent=2) + "\n")
    generation = {"eos_token_id": 0, "pad_token_id": 0, "do_sample": False}
    (fresh / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, fresh, max_length=model.config.max_positions)
    directory.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        path.chmod(0o644)
        os.replace(path, directory / path.name)
    fresh.rmdir()
