"""The reference models' tokenizer: byte-level BPE, single digits, key words as single tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kvmmu.evals.keys import KEY_WORDS

END = "<|endoftext|>"
_SPLIT = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FORCED = ("?", "pass", "key", "is", "The", "What")


def _forced_tokens() -> list[str]:
    words = [f"Ġ{word}" for word in (*KEY_WORDS, *_FORCED, *"0123456789")]
    return list(dict.fromkeys(words))


def train_tokenizer(texts: list[str], *, vocab_size: int) -> Tokenizer:
    """Train the BPE merges on texts, then add the forced tokens up to exactly vocab_size."""
    forced = _forced_tokens()
    num_merged = vocab_size - len(forced)
    while True:
        tokenizer = _train_merges(texts, vocab_size=num_merged)
        state = json.loads(tokenizer.to_str())
        vocab: dict[str, int] = state["model"]["vocab"]
        missing = [token for token in forced if token not in vocab]
        if len(vocab) + len(missing) >= vocab_size:
            break
        num_merged += vocab_size - len(vocab) - len(missing)
    for token in missing:
        vocab[token] = len(vocab)
    state["model"]["ignore_merges"] = True  # a whole word in the vocabulary is one token
    result = Tokenizer.from_str(json.dumps(state))
    if result.get_vocab_size() != vocab_size:
        raise ValueError(f"vocab_size must be {vocab_size}, got {result.get_vocab_size()}")
    return result


def _train_merges(texts: list[str], *, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as AutoTokenizer reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
