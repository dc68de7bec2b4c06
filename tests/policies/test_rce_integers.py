"""RCE(fixed_point=True) equals kvmmu.fixed_point bit for bit: positions, mantissas, exponents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_driver import Text, call, make_mmu, make_text

from kvmmu.fixed_point import FixedPointConfig, FixedPointMMU, quantize_masses
from kvmmu.policies.rce import RCE


class Twin:
    """An observer that does in numpy what the KV-MMU it watches has just done, and compares."""

    def __init__(self, mmu: Any, batch: int) -> None:
        spec, policy = mmu.spec, mmu.policy
        self.mmu = mmu
        self.is_layer = spec.granularity == "layer"
        config = FixedPointConfig(spec.num_slots, spec.num_sinks, spec.window, policy.decay_shift)
        shape = (batch,) if self.is_layer else (batch, spec.num_kv_heads)
        self.reference = FixedPointMMU(config, shape=shape)
        self.steps = self.rescales = self.ties = 0

    def words(self, seen: Any) -> np.ndarray:
        words = self.mmu.policy.mass_words(seen, granularity=self.mmu.spec.granularity)
        return self.tables(words.numpy())

    def tables(self, x: np.ndarray) -> np.ndarray:
        """One table a layer: all heads must say the same. x [B,Hkv,...]."""
        if not self.is_layer:
            return x
        assert (x == x[:, :1]).all()
        return x[:, 0]

    def flags(self, valid: torch.Tensor) -> np.ndarray:
        """Repeat bool [B,...] for each head's table."""
        flags = valid.numpy()
        return flags if self.is_layer else flags[:, None].repeat(self.mmu.spec.num_kv_heads, 1)

    def decode(self, layer_idx: int, slots: Any, evicted: Any, valid: Any, seen: Any) -> None:
        real = torch.ones(slots.shape[0], dtype=torch.bool) if valid is None else valid
        want = self.reference
        self.count_ties()
        left = np.take_along_axis(
            want.positions, want.victim()[..., None].astype(np.int64), axis=-1
        )[..., 0]
        chosen = want.admit(self.flags(real))
        want.accumulate(self.words(seen))
        is_real = self.flags(real)
        np.testing.assert_array_equal(self.tables(slots.numpy())[is_real], chosen[is_real])
        np.testing.assert_array_equal(self.tables(evicted.numpy())[is_real], left[is_real])

    def chunk(
        self, layer_idx: int, at: Any, evicted: Any, came: Any, valid: Any, seen: Any
    ) -> None:
        # quantize_masses states the word's range; the torch words must already lie in it
        words = self.words(seen)
        writes = self.reference.commit_chunk(words, valid=self.flags(valid))
        got = zip(*(x.tolist() for x in (at.lane, at.head, at.slot, evicted, came)))
        found = []
        heads = self.mmu.spec.num_kv_heads
        for lane in range(len(valid)):
            for head in range(heads):
                table = (lane,) if self.is_layer else (lane, head)
                rows = zip(writes.slots[table], writes.evicted[table], writes.positions[table])
                found += [(lane, head, *map(int, row)) for row in rows if row[0] >= 0]
        assert list(got) == found

    def count_ties(self) -> None:
        man, pos = self.reference.mantissas, self.reference.positions
        is_full = (pos >= 0).all(-1)
        least = np.where(pos >= 0, man.astype(np.int64), 1 << 20)
        self.ties += int(((least == least.min(-1, keepdims=True)).sum(-1) > 1)[is_full].sum())

    def compare(self) -> None:
        """Assert equality bit for bit of everything that the integer KV-MMU keeps."""
        table, want = self.mmu.table, self.reference
        np.testing.assert_array_equal(self.tables(table.positions.numpy()), want.positions)
        scores = self.tables(table.scores.numpy())
        assert (scores == np.floor(scores)).all()
        np.testing.assert_array_equal(scores.astype(np.int64), want.mantissas)
        exponents = self.tables(table.state["exponent"].numpy())
        self.rescales = max(self.rescales, int(exponents.max()))
        np.testing.assert_array_equal(exponents, want.exponents)
        seen = want.num_seen if self.is_layer else want.num_seen[:, 0]
        np.testing.assert_array_equal(table.num_seen.numpy(), seen)
        self.steps += 1


def rce(decay_shift: int | None) -> RCE:
    decay = 1.0 if decay_shift is None else 1 - 2.0**-decay_shift
    return RCE(decay=decay, normalize="none", fixed_point=True)


def run(text: Text, calls: list[int], decay_shift: int | None, **options: Any) -> Twin:
    """Feed a text and compare after each call, then token by token."""
    mmu = make_mmu(rce(decay_shift), text, **options)
    twin = Twin(mmu, text.k.shape[0])
    mmu.observer = twin
    a = 0
    for size in [*calls, *[1] * text.length]:
        b = min(a + size, text.length)
        if b == a:
            break
        call(mmu, text, a, b)
        twin.compare()
        a = b
    return twin


def long_text(seed: int, length: int) -> Text:
    """A text whose second third sees every token alike, and whose last third sees one alone."""
    text = make_text(seed, length, lengths=[length, length - 100], dim=4)
    third = length // 3
    text.q[:, :, third : 2 * third] = 0
    text.q[:, :, 2 * third :] *= 40  # most masses round to 0: ties
    return text


@pytest.mark.parametrize(
    ("granularity", "decay_shift"),
    [("head", None), ("head", 5), ("layer", None), ("layer", 1)],
)
def test_hundreds_of_decode_steps_are_equal(granularity, decay_shift, seed):
    twin = run(long_text(seed, 450), [], decay_shift, num_slots=12, granularity=granularity)
    assert twin.steps == 450
    assert twin.ties > 10 or decay_shift is None
    assert twin.rescales > 0


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("decay_shift", [None, 1, 5, 12])
def test_thousands_of_decode_steps_are_equal(granularity, decay_shift, seed):
    twin = run(long_text(seed, 4000), [], decay_shift, num_slots=12, granularity=granularity)
    assert twin.steps == 4000
    assert twin.rescales >= (5 if decay_shift is None else 0)


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("decay_shift", [None, 4])
def test_mixed_chunks_and_pads_are_equal(granularity, decay_shift, seed):
    text = make_text(seed, 500, lengths=[500, 331, 37], dim=4, heads=2, group=3)
    calls = [100, 1, 1, 7, 64, 1, 33, 2, 90, 1, 1, 1, 128]
    twin = run(text, calls, decay_shift, num_slots=12, granularity=granularity, chunk_size=12)
    assert twin.rescales > 0 or decay_shift


@pytest.mark.parametrize("chunk_size", [2, 3, 12, 100, 256])
def test_chunks_of_any_size_are_equal(chunk_size, seed):
    text = make_text(seed, 700, lengths=[700, 350], dim=4)
    run(text, [600], 6, num_slots=12, chunk_size=chunk_size)


def test_slots_barely_enough_are_equal(seed):
    text = make_text(seed, 120, lengths=[120, 70], dim=4)
    for sinks, window in ((0, 0), (0, 1), (1, 1), (2, 0)):
        slots = sinks + max(window, 1)
        run(text, [40], None, num_slots=slots, num_sinks=sinks, window=window)
        run(text, [40], None, num_slots=slots + 1, num_sinks=sinks, window=window)


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_sinks_with_all_the_mass_clamp_and_force_no_rescale(granularity, seed):
    text = make_text(seed, 300, dim=4)
    text.q[..., 0] = 40.0
    text.k[..., 0] = 0.0
    text.k[:, :, 0, 0] = 40.0  # the first token takes all
    twin = run(text, [40], None, num_slots=10, granularity=granularity)
    assert twin.rescales == 0
    assert bool((twin.mmu.table.scores.amax(-1) == 65535).all())


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_finished_rows_are_equal(granularity, seed):
    text = make_text(seed, 300, lengths=[300, 300], dim=4)
    text.valid[1, 120:] = False
    run(text, [50], 3, num_slots=10, granularity=granularity)
    run(text, [50, *[4] * 20], 3, num_slots=10, granularity=granularity, chunk_size=4)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_words_are_those_of_the_reference_quantiser(group, num_queries, seed):
    text = make_text(seed, 24, group=group)
    checked = []

    class Watcher:
        def decode(self, layer_idx: int, slots: Any, evicted: Any, valid: Any, seen: Any) -> None:
            words = policy.mass_words(seen, granularity="head").numpy()
            exact = seen.planes["mass"].double().numpy() / seen.group_size
            want = np.floor(exact * 65536 + 0.5).clip(0, 65535 * num_queries)
            np.testing.assert_array_equal(words, want.astype(np.int64))
            if group & (group - 1) == 0:  # the mean is exact in float32
                mean = (seen.planes["mass"] / group).numpy()
                np.testing.assert_array_equal(words, quantize_masses(mean, num_queries))
            checked.append(1)

        def chunk(self, layer_idx: int, at: Any, evicted: Any, came: Any, valid: Any, seen: Any):
            assert int(seen.num_queries.max()) == num_queries
            self.decode(layer_idx, None, None, None, seen)

    policy = rce(None)
    mmu = make_mmu(policy, text, num_slots=10, chunk_size=num_queries)
    mmu.observer = Watcher()
    for a in range(0, 20, num_queries):
        call(mmu, text, a, a + num_queries)
    assert len(checked) == 20 // num_queries


@settings(max_examples=25)
@given(data=st.data())
def test_any_text_any_calls_are_equal(data):
    draw = data.draw
    sinks, window = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    slots = sinks + max(window, 1) + draw(st.integers(0, 8))
    length = draw(st.integers(1, 90))
    lengths = draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    text = make_text(
        draw(st.integers(0, 2**31)),
        length,
        lengths=lengths,
        heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 2, 3, 8])),
        dim=4,
    )
    if draw(st.booleans()):
        text.q.zero_()  # equal masses: every choice is a tie
    run(
        text,
        draw(st.lists(st.integers(1, 40), max_size=8)),
        draw(st.sampled_from([None, 1, 3, 16])),
        num_slots=slots,
        num_sinks=sinks,
        window=window,
        chunk_size=draw(st.integers(1, 30)),
        granularity=draw(st.sampled_from(["head", "layer"])),
    )
