"""ModelSpec: the shapes of a decoder-only transformer, its weights and its parameters.

Counts are of numbers, not bytes: what a number costs is the accelerator's `bits`. Attention is
full, MLPs are dense; sliding windows and experts are refused where a configuration is read.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from kvmmu.accel.spec.sourced import Source, SpecModel

__all__ = ["ModelSpec"]


class ModelSpec(SpecModel):
    """One model. `embedding_size` differs from `hidden_size` where a projection stands between."""

    name: str
    title: str
    model_type: str
    source: Source
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    embedding_size: int = Field(gt=0)
    is_gated_mlp: bool
    num_norms_per_layer: int = Field(ge=0)  # over the hidden size; norms of q and k are apart
    num_norm_vectors: int = Field(ge=0, le=2)  # weight, or weight and bias
    has_final_norm: bool
    qk_norm_weights: int = Field(ge=0)  # a layer's, 0 without norms of q and k
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    has_tied_embeddings: bool
    max_positions: int = Field(gt=0)
    num_position_rows: int = Field(ge=0)  # of a learned position table, 0 without one

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads = {self.num_kv_heads}, "
                f"got {self.num_heads}"
            )
        return self

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all KV heads together: of one token's K, and again of its V."""
        return self.num_kv_heads * self.head_dim

    @property
    def has_learned_positions(self) -> bool:
        """Whether positions are a table added to the embedding."""
        return self.num_position_rows > 0

    @property
    def num_weights_per_layer(self) -> dict[str, int]:
        """Weights of a layer's matrices: qkv, o, mlp_up (gate and up), mlp_down; no biases."""
        mlp = self.hidden_size * self.intermediate_size
        return {
            "qkv": self.hidden_size * (self.q_size + 2 * self.kv_size),
            "o": self.q_size * self.hidden_size,
            "mlp_up": mlp * (2 if self.is_gated_mlp else 1),
            "mlp_down": mlp,
        }

    @property
    def num_layer_weights(self) -> int:
        """Weights of all matrices of one layer."""
        return sum(self.num_weights_per_layer.values())

    @property
    def num_embedding_weights(self) -> int:
        """Entries of the token table."""
        return self.vocab_size * self.embedding_size

    @property
    def num_projection_weights(self) -> int:
        """Weights between the embedding's width and the hidden size, one way; 0 if they agree."""
        return self.hidden_size * self.embedding_size * (self.embedding_size != self.hidden_size)

    @property
    def num_lm_head_weights(self) -> int:
        """Weights a step reads for the output, tied or not, the projection before it included."""
        return self.num_embedding_weights + self.num_projection_weights

    @property
    def num_weights_per_step(self) -> int:
        """Weights of matrices that one step reads once for its whole batch."""
        return self.num_layers * self.num_layer_weights + self.num_lm_head_weights

    @property
    def num_kv_per_token(self) -> int:
        """Numbers of K and V of one token in all layers."""
        return 2 * self.num_layers * self.kv_size

    @property
    def num_parameters(self) -> int:
        """Parameters as counted by the framework: tied tables once, biases and norms included."""
        biases = (self.q_size + 2 * self.kv_size) * self.has_qkv_bias
        biases += self.hidden_size * self.has_o_bias
        mlp_width = self.intermediate_size * (2 if self.is_gated_mlp else 1)
        biases += (mlp_width + self.hidden_size) * self.has_mlp_bias
        norm = self.num_norm_vectors * self.hidden_size
        layer = self.num_layer_weights + biases
        layer += self.num_norms_per_layer * norm + self.qk_norm_weights
        ends = self.num_embedding_weights * (1 if self.has_tied_embeddings else 2)
        ends += 2 * self.num_projection_weights + self.num_position_rows * self.hidden_size
        return self.num_layers * layer + ends + norm * self.has_final_norm
