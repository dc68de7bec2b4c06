"""Structured initialisation: the two layers of an induction circuit, sketched; all trainable.

Layer 0 starts with heads that look one, two and three tokens back and write what they see into
the residual stream; layer 1 starts with heads that look for the place whose past equals the
present, and copy the token there. Plain normal initialisation learns retrieval late or never.
"""

from __future__ import annotations

import math

import torch
from model import Llama
from torch import Tensor, nn

CONSTANT = 1.0  # embedding channel 0 holds it for every token
EMBED_STD = 0.1  # the other channels; large beside the learning rate, so that names survive it
GAIN = 0.85
NUM_PAIRS = 8  # the fastest rotary pairs tell neighbours apart
OFFSETS = (1, 2, 3)  # tokens back, by query head of layer 0
RANK = 31  # channels that carry a token's name
SLOW = 16  # rotary pairs from here on hardly turn within the trained length
WRITE = 0.4  # gain of what layer 0 writes into the residual stream
MATCH = 3.0  # gain of the comparison: the right place gets .94 of the attention at step 0
PAST = 0.3  # of it for the tokens before the present one, which layer 0 wrote louder
COPY = 0.3  # gain of the copied token
SIZES = ((31, 0, 0), (14, 9, 9))  # channels for present, last, second-last token, by KV head


@torch.no_grad()
def initialise(model: Llama, *, seed: int, is_induction: bool = True) -> None:
    """Fill all weights: normal, then the positional heads, then the matching heads."""
    torch.manual_seed(seed)
    config = model.config
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            is_output = name.endswith(("o_proj", "down_proj"))
            std = 0.02 / math.sqrt(2 * config.num_layers) if is_output else 0.04
            nn.init.normal_(module.weight, std=std)
    nn.init.normal_(model.embed_tokens.weight, std=EMBED_STD)
    model.embed_tokens.weight[:, 0] = CONSTANT
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            module.weight[:, 0] *= 0.1
    _look_back(model)
    if is_induction:
        _match(model, _write_past(model))


def _look_back(model: Llama) -> None:
    config = model.config
    dim, half = config.head_dim, config.head_dim // 2
    group = config.num_heads // config.num_kv_heads
    attention = model.layers[0].self_attn
    frequencies = [config.rope_theta ** (-2 * i / dim) for i in range(NUM_PAIRS)]
    for head, offset in enumerate(OFFSETS):
        rows = attention.q_proj.weight[head * dim : (head + 1) * dim]
        rows *= 0.1
        rows[:, 0] = 0
        for i, frequency in enumerate(frequencies):
            rows[i, 0] = GAIN * math.cos(-frequency * offset)
            rows[i + half, 0] = GAIN * math.sin(-frequency * offset)
    for kv_head in {head // group for head in range(len(OFFSETS))}:
        rows = attention.k_proj.weight[kv_head * dim : (kv_head + 1) * dim]
        rows *= 0.1
        rows[:, 0] = 0
        rows[:NUM_PAIRS, 0] = GAIN


def _write_past(model: Llama) -> list[Tensor]:
    """Let layer 0 write past tokens into spaces of their own; all spaces [RANK,d], names first.

    The four spaces are orthogonal: a name is a token embedding's part in the first of them.
    """
    config = model.config
    dim, width = config.head_dim, config.hidden_size
    group = config.num_heads // config.num_kv_heads
    attention = model.layers[0].self_attn
    basis = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    basis = torch.cat((torch.zeros(width - 1, 1), basis), dim=1)  # [d-1,d], channel 0 left out
    spaces = list(basis.split(min(RANK, (width - 1) // 4)))[:4]
    for head, space in enumerate(spaces[1:]):
        rank = space.shape[0]
        kv_head = head // group
        attention.v_proj.weight[kv_head * dim : kv_head * dim + rank] = spaces[0]
        attention.o_proj.weight[:, head * dim : head * dim + rank] = WRITE * space.T
    return spaces


def _match(model: Llama, spaces: list[Tensor]) -> None:
    """Compare present, last and second-last token with the three tokens before each place."""
    config = model.config
    dim, half = config.head_dim, config.head_dim // 2
    group = config.num_heads // config.num_kv_heads
    attention = model.layers[1].self_attn
    rows = [i for pair in range(SLOW, half) for i in (pair, pair + half)]
    for kv_head, sizes in enumerate(SIZES):
        head = kv_head * group
        query = attention.q_proj.weight[head * dim : (head + 1) * dim]
        key = attention.k_proj.weight[kv_head * dim : (kv_head + 1) * dim]
        query *= 0.1
        key *= 0.1
        free = iter(rows)
        for ask, tell, size in zip(spaces[:3], spaces[1:], sizes, strict=True):
            scale = MATCH if ask is spaces[0] else MATCH * PAST
            for channel in range(size):
                row = next(free)
                query[row] = scale * ask[channel]
                key[row] = MATCH * tell[channel]
        values = torch.randn(dim, config.hidden_size) / math.sqrt(config.hidden_size)
        values[:, 0] = 0
        attention.v_proj.weight[kv_head * dim : (kv_head + 1) * dim] = values
        attention.o_proj.weight[:, head * dim : (head + 1) * dim] = COPY * values.T
