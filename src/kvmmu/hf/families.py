"""Which families of models are known to be right, and which are refused and why.

The table states what tests show: tests/parity compares every "exact" family with the full cache,
and tests/unit/test_docs.py builds every "refused" one and reads the refusal. docs/models.md is
made from it. A family that is in neither part runs if it passes the checks of support.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers, and what is known of it.

    exact     logits equal the full cache's while the text fits; the note says what is special
    refused   raises UnsupportedModelError; the note is the reason that the message gives
    in_cache tells whether positions="in_cache" is right as well.
    """

    model_type: str
    status: Literal["exact", "refused"]
    in_cache: bool
    note: str


_NO_INTERFACE = "it does not use transformers' attention interface"
_MLA = "it uses multi-head latent attention (MLA): keys and values differ in width"
_ENCODER_DECODER = "it is an encoder-decoder; kvmmu caches decoder-only models"

FAMILIES: tuple[Family, ...] = (
    Family("llama", "exact", True, "RoPE default, linear, llama3 and yarn; 1 to 8 heads a group"),
    Family("mistral", "exact", True, "with and without a sliding window"),
    Family("mixtral", "exact", True, "mixture of experts; sliding window"),
    Family("qwen2", "exact", True, "with and without layers that slide"),
    Family("qwen3", "exact", True, "normalised queries and keys"),
    Family("phi3", "exact", True, "whole or partial rotation; with and without a sliding window"),
    Family("olmo2", "exact", True, "normalised queries and keys"),
    Family("smollm3", "exact", True, "some layers without rotation"),
    Family("gpt_neox", "exact", True, "partial rotation; no GQA"),
    Family("gemma2", "exact", True, "softcapped logits; layers that slide and layers that do not"),
    Family(
        "gpt_oss", "exact", True, "learned sink logits; layers that slide and layers that do not"
    ),
    Family("gemma3_text", "exact", False, "two sets of angles: sliding layers have their own"),
    Family("gpt2", "exact", False, "learned positions, so no text past the trained length"),
    Family("opt", "exact", False, "learned positions, so no text past the trained length"),
    Family("bloom", "refused", False, _NO_INTERFACE),
    Family("falcon", "refused", False, _NO_INTERFACE),
    Family("mpt", "refused", False, _NO_INTERFACE),
    Family("gptj", "refused", False, _NO_INTERFACE),
    Family("codegen", "refused", False, _NO_INTERFACE),
    Family("mamba", "refused", False, _NO_INTERFACE),
    Family("jamba", "refused", False, _NO_INTERFACE),
    Family("qwen3_next", "refused", False, _NO_INTERFACE),
    Family("deepseek_v2", "refused", False, _MLA),
    Family("deepseek_v3", "refused", False, _MLA),
    Family("t5", "refused", False, _ENCODER_DECODER),
    Family("bart", "refused", False, _ENCODER_DECODER),
    Family("bert", "refused", False, "it attends in both directions"),
    Family("minimax", "refused", False, "it has layers of kind 'linear_attention'"),
    Family("lfm2", "refused", False, "it has layers of kind 'conv'"),
    Family("llama4_text", "refused", False, "it has layers of kind 'chunked_attention'"),
    Family("gemma4_text", "refused", False, "it shares K and V between layers"),
)
"""Every family that a test covers, exact ones first."""
