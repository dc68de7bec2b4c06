"""Reading a config.json so that nothing that changes the result goes unread."""

from __future__ import annotations

from typing import Any

from kvmmu.errors import UnsupportedModelError

__all__ = ["Settings"]

# fmt: off
_HARMLESS = frozenset(
    {
        "_attn_implementation", "_commit_hash", "_name_or_path", "architectures",
        "attention_dropout", "attn_pdrop", "auto_map", "bad_words_ids", "begin_suppress_tokens",
        "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id",
        "diversity_penalty", "do_sample", "dropout", "dtype", "early_stopping", "embd_pdrop",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
        "init_std", "initializer_range", "is_decoder", "label2id", "layerdrop",
        "length_penalty", "max_length", "min_length", "n_ctx", "name_or_path",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
        "pretraining_tp", "problem_type", "pruned_heads", "remove_invalid_values",
        "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate",
        "sep_token_id", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "summary_type", "summary_use_proj", "suppress_tokens", "task_specific_params",
        "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype",
        "torchscript", "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version",
        "use_bfloat16", "use_cache"
    }
)
# fmt: on
"""Keys that training, sampling or other programs read, but no forward of these families."""

_EXPECTED: dict[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_causal": True,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "use_mrope": False,
}
"""Keys with the one value that these families have."""

_REASONS = {
    "quantization_config": "its checkpoint is quantised; load the plain one with weights='int8'",
    "compression_config": "its checkpoint is quantised; load the plain one with weights='int8'",
    "attn_logit_softcapping": "it soft-caps its attention logits",
    "final_logit_softcapping": "it soft-caps its logits",
    "num_local_experts": "it is a mixture of experts",
    "num_experts": "it is a mixture of experts",
    "n_routed_experts": "it is a mixture of experts",
    "kv_lora_rank": "it uses multi-head latent attention",
    "attention_chunk_size": "it has layers of kind 'chunked_attention'",
    "num_kv_shared_layers": "it shares K and V between layers",
}


class Settings:
    """A config.json whose every key must be read, known to be harmless, or null."""

    def __init__(self, model_type: str, given: dict[str, Any]) -> None:
        self.model_type = model_type
        self._given = given
        self._seen = {"model_type"}
        for key, reason in _REASONS.items():
            if given.get(key) is not None:
                raise self.refusal(reason)

    def refusal(self, why: str) -> UnsupportedModelError:
        """Word a refusal."""
        return UnsupportedModelError(
            f"model type {self.model_type!r} is not supported by the engine: {why}"
        )

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting, or the default if it is absent or null."""
        self._seen.add(key)
        value = self._given.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer. Raises UnsupportedModelError for anything else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(f"its {key} must be an integer of at least 1, got {value!r}")
        return value

    def window(self, key: str, default: int | None = None) -> int | None:
        """Return a sliding window: the default if the key is absent, None if it is null."""
        if key in self._given and self.get(key) is None:
            return None
        return None if self.get(key, default) is None else self.integer(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number. Raises UnsupportedModelError for anything else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(f"its {key} must be a number, got {value!r}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean. Raises UnsupportedModelError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(f"its {key} must be true or false, got {value!r}")
        return value

    def expect(self, key: str, wanted: Any) -> None:
        """Refuse the model if a setting is given and is not the wanted one."""
        value = self.get(key, wanted)
        if value != wanted:
            raise self.refusal(f"its {key} is {value!r}, the engine knows {wanted!r}")

    def eos_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text, none if the configuration names none."""
        value = self.get("eos_token_id", [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise self.refusal(f"its eos_token_id must be an id or a list of ids, got {value!r}")
        return tuple(ids)

    def finish(self) -> None:
        """Refuse the model if a key was not read. Raises UnsupportedModelError that names it."""
        for key, value in _EXPECTED.items():
            if key not in self._seen:
                self.expect(key, value)
        rest = set(self._given) - self._seen - _HARMLESS
        unread = sorted(key for key in rest if self._given[key] is not None)
        if unread:
            named = ", ".join(f"{key} = {self._given[key]!r}" for key in unread)
            raise self.refusal(
                f"its config.json says {named}, which the engine does not know; "
                "take out what does not change the result"
            )
