"""generate() in all its ways gives what it gives with the full cache, as long as all fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import drive, full, make, ours, prompt, shared, worst
from transformers import DynamicCache, LogitsProcessor

import kvmmu

ATOL = 1e-5  # fp32, sums in another order


def _cache(num_slots: int = 80, **settings: Any) -> kvmmu.SlotCache:
    return kvmmu.SlotCache(num_slots, **settings)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_sampling_with_a_seed_draws_the_same_tokens(name: str) -> None:
    model = shared(name)
    ids, mask = prompt()
    how = {"attention_mask": mask, "do_sample": True, "temperature": 0.9, "top_k": 20}
    torch.manual_seed(5)
    want = full(model, ids, **how)
    torch.manual_seed(5)
    got = ours(model, _cache(), ids, **how)
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL


@pytest.mark.parametrize("positions", ["original", "in_cache"])
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_beams_find_the_same_sequences_and_scores(name: str, positions: str) -> None:
    model = shared(name)
    ids, mask = prompt()
    how = {
        "attention_mask": mask,
        "num_beams": 3,
        "num_return_sequences": 2,
        "max_new_tokens": 16,
        "output_scores": True,
    }
    want = full(model, ids, **how)
    cache = _cache(positions=positions)
    got = ours(model, cache, ids, **how)
    assert torch.equal(got.sequences, want.sequences)
    assert torch.allclose(got.sequences_scores, want.sequences_scores, atol=ATOL)
    assert cache.batch == 9
    cache.check_integrity()


@pytest.mark.parametrize("policy", ["rce", "tova", "keydiff"])
def test_beams_reorder_what_an_evicting_cache_holds(policy: str) -> None:
    """A beam's score is what its own text gets when it is fed alone."""
    model = shared("llama")
    ids, _ = prompt(12, pads=(0,))
    cache = _cache(10, num_sinks=2, policy=policy)
    out = ours(
        model,
        cache,
        ids,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=20,
        output_scores=True,
    )
    cache.check_integrity()
    assert bool((cache.num_evicted == 12 + 19 - 10).all())
    for text, score in zip(out.sequences, out.sequences_scores):
        alone = _cache(10, num_sinks=2, policy=policy)
        logits = drive(model, alone, text[None, :-1], sizes=[12] + [1] * 19)[0, 11:]
        chances = logits.log_softmax(-1).gather(1, text[12:, None])
        assert torch.allclose(chances.mean(), score, atol=1e-4)


def test_output_scores_are_the_full_cache_s() -> None:
    model = shared("qwen2")
    ids, mask = prompt()
    how = {"attention_mask": mask, "output_scores": True, "repetition_penalty": 1.2}
    want, got = full(model, ids, **how), ours(model, _cache(), ids, **how)
    assert worst(got.scores, want.scores) < ATOL


@pytest.mark.parametrize("prefill_chunk_size", [None, 1, 5])
def test_a_second_prompt_continues_the_same_cache(prefill_chunk_size: int | None) -> None:
    model = shared("llama")
    ids, mask = prompt(20, pads=(0, 4, 9))
    more, _ = prompt(11, pads=(0, 0, 0), seed=8)

    def talk(run: Any, cache: Any) -> tuple[Any, Any]:
        first = run(cache, ids, attention_mask=mask, max_new_tokens=10)
        told = torch.cat([first.sequences, more], dim=1)
        seen = torch.cat([mask, torch.ones(3, told.shape[1] - 20, dtype=mask.dtype)], dim=1)
        return first, run(
            cache,
            told,
            attention_mask=seen,
            max_new_tokens=10,
            prefill_chunk_size=prefill_chunk_size,
        )

    mine = _cache()
    _, want = talk(lambda c, x, **how: full(model, x, past_key_values=c, **how), DynamicCache())
    _, got = talk(lambda c, x, **how: ours(model, c, x, **how), mine)
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL
    assert mine.get_seq_length() == 20 + 10 + 11 + 10 - 1


def test_a_second_prompt_finds_an_evicting_cache_at_its_size() -> None:
    model = shared("llama")
    ids, _ = prompt(20, pads=(0,))
    cache = _cache(12, num_sinks=2)
    first = ours(model, cache, ids, max_new_tokens=10)
    told = torch.cat([first.sequences, ids], dim=1)
    ours(model, cache, told, max_new_tokens=10)
    cache.check_integrity()
    assert cache.positions(0).shape[-1] == 12
    assert bool((cache.num_evicted == 20 + 10 + 20 + 10 - 1 - 12).all())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_inputs_embeds_give_the_same_text(name: str) -> None:
    model = shared(name)
    ids, mask = prompt()
    embeds = model.get_input_embeddings()(ids).detach()
    want = full(model, None, inputs_embeds=embeds, attention_mask=mask)
    got = ours(model, _cache(), None, inputs_embeds=embeds, attention_mask=mask)
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL


def test_an_unbound_cache_binds_to_the_batch_that_comes_first() -> None:
    ids, mask = prompt()
    cache = _cache()
    assert not cache.is_bound
    ours(shared("llama"), cache, ids, attention_mask=mask)
    assert cache.batch == 3


def test_a_row_s_answer_does_not_depend_on_its_padding() -> None:
    model = shared("gpt_neox")
    ids, mask = prompt()
    together = ours(model, _cache(), ids, attention_mask=mask)
    for row, pad in enumerate((0, 7, 15)):
        alone = ours(model, _cache(), ids[row : row + 1, pad:])
        assert torch.equal(alone.sequences[0], together.sequences[row, pad:])
        for a, b in zip(alone.logits, together.logits):
            assert torch.allclose(a[0], b[row], atol=ATOL)


class _EndAt(LogitsProcessor):
    """Force row r to say `eos` as its step[r]-th new token."""

    def __init__(self, prompt_length: int, eos: int, step: list[int]) -> None:
        self._prompt_length, self._eos, self._step = prompt_length, eos, step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        now = input_ids.shape[1] - self._prompt_length
        scores[:, self._eos] = -torch.inf
        for row, step in enumerate(self._step):
            if step == now:
                scores[row] = -torch.inf
                scores[row, self._eos] = 0.0
        return scores


@pytest.mark.parametrize("pads", [(0, 7, 15), (0, 0, 0)], ids=["padded", "equally_long"])
@pytest.mark.parametrize("pad_token_id", [0, 2])
@pytest.mark.parametrize("num_slots", [80, 16])
def test_a_row_that_has_ended_keeps_no_pads(
    num_slots: int, pad_token_id: int, pads: tuple[int, int, int]
) -> None:
    """Row 1 ends after 3 tokens, row 2 after 10; they are fed pads (0), or eos again (2)."""
    model = make("llama", eos_token_id=2, pad_token_id=pad_token_id)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = pad_token_id
    ids, mask = prompt(pads=pads)
    ids[mask == 0] = pad_token_id
    how = {"attention_mask": mask, "logits_processor": [_EndAt(40, 2, [99, 3, 10])]}
    cache = _cache(num_slots, num_sinks=2)
    got = ours(model, cache, ids, **how)
    cache.check_integrity()
    # prompt, new tokens, the end-of-sequence token; the last token of row 0 is never fed
    news = (23, 3 + 1, 10 + 1)
    lengths = [40 - pad + new for pad, new in zip(pads, news, strict=True)]
    assert cache.mmus[0].table.num_seen.tolist() == lengths
    assert cache.num_evicted.tolist() == [[max(0, n - num_slots) for n in lengths]] * 2
    if num_slots == 80:
        want = full(model, ids, **how)
        assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize("prefill_chunk_size", [None, 1, 4])
@pytest.mark.parametrize("says_pads", [True, False])
def test_a_row_that_has_ended_takes_part_in_the_next_turn(
    says_pads: bool, prefill_chunk_size: int | None
) -> None:
    """The mask may call what was fed after the end padding, as it is, or real, as generate()."""
    model = make("llama")
    model.generation_config.eos_token_id = 2
    ids, mask = prompt(20, pads=(0, 4, 9))
    more, _ = prompt(11, pads=(0, 0, 0), seed=8)

    def talk(run: Any, cache: Any) -> Any:
        ends = [_EndAt(20, 2, [99, 3, 6])]
        first = run(
            cache, ids, attention_mask=mask, max_new_tokens=10, logits_processor=ends
        ).sequences
        new = torch.ones_like(first[:, 20:])
        if says_pads:
            new = (first[:, 20:] != 0).long()
        told, seen = torch.cat([first, more], 1), torch.cat([mask, new, torch.ones_like(more)], 1)
        return run(
            cache,
            told,
            attention_mask=seen,
            max_new_tokens=8,
            logits_processor=[_EndAt(41, 2, [99, 99, 99])],
            prefill_chunk_size=prefill_chunk_size,
        )

    mine = _cache()
    got = talk(lambda c, x, **how: ours(model, c, x, **how), mine)
    mine.check_integrity()
    assert mine.mmus[0].table.num_seen.tolist() == [20 + 10 + 18, 16 + 4 + 18, 11 + 7 + 18]
    if says_pads:  # the full cache, too, then leaves the pads out
        want = talk(lambda c, x, **how: full(model, x, past_key_values=c, **how), DynamicCache())
        assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize("prefill_chunk_size", [None, 1, 2, 3, 4, 5])
def test_a_start_token_that_is_also_end_and_pad_is_kept(prefill_chunk_size: int | None) -> None:
    """GPT-2 and GPT-NeoX have one token for all three; pads and starts then look alike."""
    model = make("llama")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    ids, mask = prompt(20, pads=(0, 3, 7))
    ids[mask == 0] = 2
    for row, pad in enumerate((0, 3, 7)):
        ids[row, pad] = 2
    how = {"attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8}
    want = full(model, ids, **how)
    got = ours(model, _cache(), ids, prefill_chunk_size=prefill_chunk_size, **how)
    assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize("call", [1, 4, 5, 24])
def test_a_bare_forward_keeps_every_token_that_its_mask_calls_real(call: int) -> None:
    model = make("llama")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    ids, mask = prompt(24, pads=(0, 4))
    ids[:, 10:13] = 2  # ends in the middle of a text, as in packed documents
    ids[1, :5] = 2
    cache, logits = _cache(), []
    with kvmmu.enabled(model), torch.no_grad():
        for a in range(0, 24, call):
            b = min(24, a + call)
            out = model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache)
            logits.append(out.logits)
    assert cache.mmus[0].table.num_seen.tolist() == [24, 20]
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits
    real = mask.bool()
    assert torch.allclose(torch.cat(logits, 1)[real], want[real], atol=1e-5)


def test_ends_that_generate_alone_knows_can_be_told_to_the_cache() -> None:
    model = make("llama")
    model.generation_config.eos_token_id = None
    ids, mask = prompt()
    cache = _cache(eos_token_id=5, pad_token_id=0)
    ends = [_EndAt(40, 5, [99, 3, 10])]
    ours(
        model, cache, ids, attention_mask=mask, logits_processor=ends,
        eos_token_id=5, pad_token_id=0,
    )  # fmt: skip
    assert cache.mmus[0].table.num_seen.tolist() == [40 + 23, 33 + 4, 25 + 11]


def test_a_row_that_seemed_to_end_and_goes_on_is_refused() -> None:
    """With one token for end and pad, two in a row in a prompt fed one by one look like an end."""
    model = make("llama")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    ids, mask = prompt(20, pads=(0, 3))
    ids[0, 8:10] = 2
    with pytest.raises(ValueError, match="row 0 must not go on after an end-of-sequence"):
        ours(model, _cache(), ids, attention_mask=mask, prefill_chunk_size=1)
