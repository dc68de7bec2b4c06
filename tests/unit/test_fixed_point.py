"""Is the integer KV-MMU the arithmetic it documents? Checked against plain Python integers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.errors import IntegrityError
from kvmmu.fixed_point import (
    EMPTY,
    FixedPointConfig,
    FixedPointMMU,
    accumulate,
    decay,
    is_protected,
    quantize_masses,
    rescale,
    select_victim,
)


class SlowMMU:
    """One table in Python integers, written from the rules and sharing no code with the library."""

    def __init__(self, config: FixedPointConfig) -> None:
        self.c = config
        self.pos: list[int] = [-1] * config.num_slots
        self.man: list[int] = [0] * config.num_slots
        self.exp = 0
        self.seen = 0

    def safe(self, pos: int, newest: int) -> bool:
        recent = max(self.c.window, 1)
        return 0 <= pos < self.c.num_sinks or pos > newest - recent

    def fade(self, value: int) -> int:
        if self.c.decay_shift is None:
            return value
        share = Fraction(value, 2**self.c.decay_shift)
        return value - (-(-share.numerator // share.denominator))  # ceil

    def score(self, pos: list[int], man: list[int], masses: list[int], tokens: int) -> list[int]:
        accs = []
        for p, m, w in zip(pos, man, masses):
            for _ in range(tokens):
                m = self.fade(m)
            accs.append(m + w // 2**self.exp if p >= 0 else 0)
        newest = self.seen - 1
        while any(a > 65535 and p >= 0 and not self.safe(p, newest) for p, a in zip(pos, accs)):
            accs = [a // 2 for a in accs]
            self.exp += 1
        return [min(a, 65535) for a in accs]

    def admit(self) -> int:
        best = None
        for slot, (p, m) in enumerate(zip(self.pos, self.man)):
            if p < 0:
                best = slot
                break
            if not self.safe(p, self.seen) and (best is None or m < self.man[best]):
                best = slot
        assert best is not None
        self.pos[best], self.man[best] = self.seen, 0
        self.seen += 1
        return best

    def accumulate(self, masses: list[int]) -> None:
        self.man = self.score(self.pos, self.man, masses, 1)

    def commit(self, masses: list[int], valid: list[bool]) -> tuple[list[tuple[int, ...]], int]:
        size = self.c.num_slots
        real = [i for i, ok in enumerate(valid) if ok]
        fresh = [self.seen + i for i in range(len(real))]
        pos = self.pos + fresh
        words = masses[:size] + [masses[size + i] for i in real]
        self.seen += len(real)
        if not real:
            return [], 0
        man = self.score(pos, self.man + [0] * len(real), words, len(real))
        ranked = sorted(
            (i for i in range(len(pos)) if pos[i] < 0 or not self.safe(pos[i], self.seen - 1)),
            key=lambda i: (pos[i] >= 0, man[i] if pos[i] >= 0 else 0, i),
        )
        lost = set(ranked[: len(real)])
        assert len(lost) == len(real)
        freed = [i for i in range(size) if i in lost and pos[i] < 0]
        freed += [i for i in range(size) if i in lost and pos[i] >= 0]
        stay = [i for i in range(size, len(pos)) if i not in lost]
        writes = [(slot, pos[i], pos[slot]) for slot, i in zip(freed, stay)]
        self.pos, self.man = pos[:size], man[:size]
        for (slot, p, _), i in zip(writes, stay):
            self.pos[slot], self.man[slot] = p, man[i]
        return writes, len(real) - len(stay)


@st.composite
def configs(draw: st.DrawFn) -> FixedPointConfig:
    num_sinks = draw(st.integers(0, 3))
    window = draw(st.integers(0, 4))
    spare = draw(st.integers(0, 5))  # 0: every slot but one is protected when a victim is named
    shift = draw(st.sampled_from([None, 0, 1, 3, 7, 16]))
    return FixedPointConfig(num_sinks + max(window, 1) + spare, num_sinks, window, shift)


def assert_same(fast: FixedPointMMU, slow: SlowMMU) -> None:
    assert fast.positions.tolist() == slow.pos
    assert fast.mantissas.tolist() == slow.man
    assert int(fast.exponents) == slow.exp
    assert int(fast.num_seen) == slow.seen


word = st.one_of(st.just(0), st.just(65535), st.integers(0, 9), st.integers(0, 65535))


def decode(fast: FixedPointMMU, slow: SlowMMU, data: st.DataObject) -> None:
    if data.draw(st.integers(0, 9)) == 0:
        assert int(fast.admit(valid=False)) == EMPTY  # a pad: nothing may change
        fast.accumulate(np.full(fast.config.num_slots, 65535, np.uint16))
        return
    masses = data.draw(st.lists(word, min_size=len(slow.pos), max_size=len(slow.pos)))
    assert int(fast.admit()) == slow.admit()
    fast.accumulate(np.array(masses, np.uint16))
    slow.accumulate(masses)


def chunk(fast: FixedPointMMU, slow: SlowMMU, data: st.DataObject) -> None:
    valid = data.draw(st.lists(st.booleans(), min_size=1, max_size=12))
    width = len(slow.pos) + len(valid)
    peak = 65535 * max(sum(valid), 1)
    masses = data.draw(
        st.lists(st.one_of(word, st.integers(0, peak)), min_size=width, max_size=width)
    )
    masses = [min(m, peak) for m in masses]
    writes = fast.commit_chunk(np.array(masses, np.uint32), valid=valid)
    expected, dropped = slow.commit(masses, valid)
    rows = zip(writes.slots.tolist(), writes.positions.tolist(), writes.evicted.tolist())
    found = [row for row in rows if row[0] >= 0]
    assert found == expected
    assert int(writes.num_dropped) == dropped
    assert all(e == -2 for s, e in zip(writes.slots, writes.evicted) if s < 0)


@settings(max_examples=120, deadline=None)
@given(configs(), st.data())
def test_every_step_equals_plain_integers(config: FixedPointConfig, data: st.DataObject) -> None:
    fast, slow = FixedPointMMU(config), SlowMMU(config)
    for _ in range(data.draw(st.integers(1, 20))):
        action = decode if data.draw(st.integers(0, 2)) else chunk
        action(fast, slow, data)
        assert_same(fast, slow)


@pytest.mark.parametrize("seed", range(6))
def test_long_runs_equal_plain_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = FixedPointConfig(24, seed % 3, seed, (None, 4, 7)[seed % 3])
    fast, slow = FixedPointMMU(config), SlowMMU(config)
    for step in range(250):
        if step % 40 == 0:
            masses = rng.integers(0, 65535 * 16, 24 + 16)
            fast.commit_chunk(masses)
            slow.commit(masses.tolist(), [True] * 16)
        masses = quantize_masses(rng.dirichlet(np.full(24, 0.2)))
        assert int(fast.admit()) == slow.admit(), f"seed {seed}, step {step}"
        fast.accumulate(masses)
        slow.accumulate(masses.tolist())
        assert_same(fast, slow)
    assert seed % 3 or slow.exp > 0  # without decay a long run must have rescaled


@settings(max_examples=50, deadline=None)
@given(configs(), st.integers(0, 2**32 - 1))
def test_tables_side_by_side_do_not_mix(config: FixedPointConfig, seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = FixedPointMMU(config, shape=(2, 3))
    ones = [FixedPointMMU(config) for _ in range(6)]
    for _ in range(12):
        if rng.random() < 0.3:
            valid = rng.random((2, 3, 5)) < 0.7
            masses = rng.integers(0, 65536, (2, 3, config.num_slots + 5))
            got: Any = many.commit_chunk(masses, valid=valid).slots.reshape(6, -1)
            for i, one in enumerate(ones):
                row = one.commit_chunk(
                    masses.reshape(6, -1)[i], valid=valid.reshape(6, -1)[i]
                ).slots
                assert (got[i] == row).all()
        valid = rng.random((2, 3)) < 0.8
        masses = rng.integers(0, 65536, (2, 3, config.num_slots))
        slots = many.admit(valid).reshape(6)
        many.accumulate(masses)
        for i, one in enumerate(ones):
            assert slots[i] == int(one.admit(valid.reshape(6)[i]))
            one.accumulate(masses.reshape(6, -1)[i])
    assert (many.positions.reshape(6, -1) == [one.positions for one in ones]).all()
    assert (many.mantissas.reshape(6, -1) == [one.mantissas for one in ones]).all()
    assert (many.exponents.reshape(6) == [one.exponents for one in ones]).all()


# ---------------------------------------------------------------- words


def test_half_a_unit_rounds_up() -> None:
    unit = 1 / 65536
    weights = np.array([0, 0.49 * unit, 0.5 * unit, unit, 1.5 * unit, 0.5, 1.0], np.float32)
    assert quantize_masses(weights).tolist() == [0, 0, 1, 1, 2, 32768, 65535]
    assert quantize_masses(weights).dtype == np.uint16


def test_rounding_happens_in_double_precision() -> None:
    just_below = np.nextafter(np.float32(0.5 / 65536), np.float32(0))
    assert np.float32(just_below * np.float32(65536) + np.float32(0.5)) == 1  # float32 would err
    assert quantize_masses(just_below[None]).tolist() == [0]


def test_chunk_words_fit_24_bits() -> None:
    words = quantize_masses(np.array([256.0, 0.5]), num_queries=256)
    assert words.tolist() == [65535 * 256, 32768]
    assert words.max() < 2**24
    assert words.dtype == np.uint32


def test_chunk_words_are_clipped_per_table() -> None:
    words = quantize_masses(np.full((2, 1), 3.0), np.array([1, 3]))
    assert words.tolist() == [[65535], [3 * 65535]]


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
def test_masses_that_are_no_masses_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="attention masses must be numbers >= 0"):
        quantize_masses(np.array([0.1, bad]))


def test_a_chunk_of_257_queries_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_queries must be in \[0, 256\], got 257"):
        quantize_masses(np.array([0.1]), 257)


# ---------------------------------------------------------------- decay, rescale


@pytest.mark.parametrize("shift", [0, 1, 7, 16])
def test_decay_reaches_zero(shift: int) -> None:
    left = np.array([65535, 1, 0], np.uint16)
    for _ in range(70000):
        left = decay(left, shift).astype(np.uint16)
        if not left.any():
            return
    raise AssertionError(f"still {left} after 70,000 tokens")


def test_decay_counts_tokens() -> None:
    start = np.array([[60000, 77], [60000, 77]], np.uint16)
    once = start
    for _ in range(5):
        once = decay(once, 3)
    assert (decay(start, 3, num_tokens=[5, 0]) == [once[0], start[1]]).all()


@given(st.lists(st.integers(0, 2**24 + 65535), min_size=1, max_size=8), st.integers(0, 255))
def test_a_rescale_keeps_order_and_is_the_smallest(values: list[int], bits: int) -> None:
    accs = np.array(values)
    eligible = np.array([(bits >> i) & 1 == 1 for i in range(len(values))])
    mantissas, shift = rescale(accs, eligible)
    order = np.argsort(accs, kind="stable")
    assert (np.diff(mantissas[order].astype(int)) >= 0).all()
    peak = int(max([v for v, ok in zip(values, eligible) if ok], default=0))
    assert peak >> int(shift) <= 65535
    assert int(shift) == 0 or peak >> (int(shift) - 1) > 65535
    assert mantissas.dtype == np.uint16


def test_a_protected_slot_clamps_and_never_rescales() -> None:
    mantissas, shift = rescale(np.array([65536, 65535, 7]), np.array([False, True, True]))
    assert mantissas.tolist() == [65535, 65535, 7]
    assert int(shift) == 0


def test_one_unit_above_16_bits_rescales() -> None:
    mantissas, shift = rescale(np.array([65536, 65537, 7]), np.array([False, True, True]))
    assert mantissas.tolist() == [32768, 32768, 3]
    assert int(shift) == 1


def test_the_exponent_stops_at_24() -> None:
    mantissas, exponent = np.zeros(2, np.uint16), np.zeros((), np.uint8)
    masses = np.array([2**24 - 1, 0])
    for _ in range(2**17):
        before = int(exponent)
        mantissas, exponent = accumulate(
            mantissas, exponent, masses=masses, eligible=np.array([True, True]), decay_shift=None
        )
        if int(exponent) == before and before >= 8:  # jump to the edge: one more unit rescales
            mantissas = np.array([65535, 0], np.uint16)
        if int(exponent) == 24:
            break
    assert int(exponent) == 24
    full = np.array([65535, 0], np.uint16)
    _, exponent = accumulate(
        full, exponent, masses=masses, eligible=np.array([True, True]), decay_shift=None
    )
    assert int(exponent) == 24


# ---------------------------------------------------------------- victims


@settings(max_examples=150, deadline=None)
@given(configs(), st.data())
def test_exactly_one_victim_and_it_is_never_protected(
    config: FixedPointConfig, data: st.DataObject
) -> None:
    mmu = FixedPointMMU(config)
    for step in range(config.num_slots + 12):
        before = mmu.positions.copy()
        slot = int(mmu.admit())
        assert (np.flatnonzero(mmu.positions != before) == [slot]).all()
        assert mmu.positions[slot] == step
        left = int(before[slot])
        assert left == EMPTY or not is_protected(
            np.array([left]), step, num_sinks=config.num_sinks, window=config.window
        )
        masses = data.draw(st.lists(word, min_size=config.num_slots, max_size=config.num_slots))
        mmu.accumulate(np.array(masses, np.uint16))
        held = sorted(p for p in mmu.positions.tolist() if p >= 0)
        assert len(held) == min(step + 1, config.num_slots) == len(set(held))
        kept = set(range(min(config.num_sinks, step + 1)))
        kept |= set(range(max(0, step + 1 - max(config.window, 1)), step + 1))
        assert kept <= set(held)


def test_empty_slots_are_filled_first_in_order() -> None:
    mmu = FixedPointMMU(FixedPointConfig(4, 0, 1))
    slots = []
    for _ in range(4):
        slots.append(int(mmu.admit()))
        mmu.accumulate(np.array([0, 9, 9, 9], np.uint16))
    assert slots == [0, 1, 2, 3]


def test_equal_scores_lose_the_lowest_slot() -> None:
    mantissas, positions = np.full(5, 40), np.array([8, 3, 2, 7, 0])
    victim = select_victim(mantissas, positions, newest=9, num_sinks=1, window=3)
    assert int(victim) == 1  # position 8 is recent


def test_the_window_counts_the_token_being_written() -> None:
    mantissas, positions = np.array([5, 0]), np.array([6, 7])
    victim = [
        int(select_victim(mantissas, positions, newest=8, num_sinks=0, window=w)) for w in (0, 1, 2)
    ]
    assert victim == [1, 1, 0]  # window 2 protects positions 7 and 8


def test_the_only_unprotected_slot_leaves_whatever_its_score() -> None:
    mmu = FixedPointMMU(FixedPointConfig(4, 2, 2))
    for _ in range(4):
        mmu.admit()
        mmu.accumulate(np.array([0, 0, 65535, 0], np.uint16))
    assert mmu.positions.tolist() == [0, 1, 2, 3]
    assert int(mmu.victim()) == 2


def test_one_slot_holds_the_newest_token() -> None:
    mmu = FixedPointMMU(FixedPointConfig(1, 0, 0))
    for step in range(5):
        assert int(mmu.admit()) == 0
        mmu.accumulate(np.array([65535], np.uint16))
        assert mmu.positions.tolist() == [step]
    assert (int(mmu.mantissas[0]), int(mmu.exponents)) == (65535, 0)  # protected: no rescale
    writes = mmu.commit_chunk(np.array([9, 9, 0, 0], np.uint32))
    assert (writes.slots.tolist(), writes.evicted.tolist()) == ([0], [4])
    assert (mmu.positions.tolist(), int(writes.num_dropped)) == ([7], 2)


# ---------------------------------------------------------------- chunks, pads, state


def test_a_chunk_of_one_ranks_after_its_own_attention() -> None:
    config = FixedPointConfig(2, 0, 1)
    step, chunked = FixedPointMMU(config), FixedPointMMU(config)
    for mmu in (step, chunked):
        for _ in range(2):
            mmu.admit()
            mmu.accumulate(np.array([1, 2], np.uint16))
    assert step.mantissas.tolist() == [2, 2]
    assert int(step.admit()) == 0
    writes = chunked.commit_chunk(np.array([5, 0, 7], np.uint32))
    assert writes.slots.tolist() == [1]  # the chunk's own masses count, and 7 stays with the token
    assert chunked.mantissas.tolist() == [7, 7]


def test_pads_change_nothing() -> None:
    mmu = FixedPointMMU(FixedPointConfig(3, 0, 1, 2))
    for _ in range(5):
        mmu.admit()
        mmu.accumulate(np.array([100, 200, 300], np.uint16))
    before = (mmu.positions.tolist(), mmu.mantissas.tolist(), int(mmu.num_seen))
    assert int(mmu.admit(valid=False)) == EMPTY
    mmu.accumulate(np.array([9, 9, 9], np.uint16))
    writes = mmu.commit_chunk(np.full(5, 9, np.uint32), valid=[False, False])
    assert writes.slots.tolist() == [-1, -1]
    assert (mmu.positions.tolist(), mmu.mantissas.tolist(), int(mmu.num_seen)) == before


def test_pads_of_a_chunk_take_no_position() -> None:
    mmu = FixedPointMMU(FixedPointConfig(4, 0, 1))
    mmu.commit_chunk(np.full(4 + 5, 50, np.uint32), valid=[False, False, True, False, True])
    assert mmu.positions.tolist() == [0, 1, -1, -1]
    assert mmu.mantissas.tolist() == [50, 50, 0, 0]


def test_survivors_of_a_chunk_do_not_move() -> None:
    mmu = FixedPointMMU(FixedPointConfig(5, 1, 1))
    mmu.commit_chunk(np.array([0] * 5 + [9, 5, 30, 20, 10], np.uint32))
    writes = mmu.commit_chunk(np.array([0] * 5 + [1, 99, 2], np.uint32))
    # [9, 5, 30, 20, 10 | 1, 99, 2]: the first is a sink, the last recent; 1, 5 and 10 lose
    assert mmu.positions.tolist() == [0, 6, 2, 3, 7]
    assert (writes.slots.tolist(), writes.evicted.tolist()) == ([1, 4, -1], [1, 4, -2])
    assert int(writes.num_dropped) == 1


def test_clear_leaves_no_old_score() -> None:
    mmu = FixedPointMMU(FixedPointConfig(3, 0, 1), shape=(2,))
    for _ in range(9):
        mmu.admit()
        mmu.accumulate(np.full((2, 3), 65535, np.uint16))
    assert mmu.exponents.any()
    mmu.clear([True, False])
    fresh = FixedPointMMU(FixedPointConfig(3, 0, 1))
    for name in ("positions", "mantissas", "exponents", "num_seen"):
        assert (getattr(mmu, name)[0] == getattr(fresh, name)).all()
        assert (getattr(mmu, name)[1] != getattr(fresh, name)).any()


def test_reorder_carries_scores_and_positions() -> None:
    mmu = FixedPointMMU(FixedPointConfig(3, 0, 1), shape=(2,))
    mmu.admit([True, False])
    mmu.accumulate(np.full((2, 3), 7, np.uint16))
    mmu.reorder(np.array([1, 0]))
    assert mmu.positions.tolist() == [[-1, -1, -1], [0, -1, -1]]
    assert mmu.mantissas.tolist() == [[0, 0, 0], [7, 0, 0]]
    assert mmu.num_seen.tolist() == [0, 1]


# ---------------------------------------------------------------- refusals


def test_a_table_without_a_free_slot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_slots must be at least .* = 7, got 6; raise"):
        FixedPointConfig(6, 4, 3)
    FixedPointConfig(7, 4, 3)


def test_steps_out_of_order_are_refused() -> None:
    mmu = FixedPointMMU(FixedPointConfig(3, 0, 1))
    with pytest.raises(IntegrityError, match="accumulate must follow admit"):
        mmu.accumulate(np.zeros(3, np.uint16))
    mmu.admit()
    with pytest.raises(IntegrityError, match="second admit"):
        mmu.admit()
    with pytest.raises(IntegrityError, match="between admit and accumulate"):
        mmu.commit_chunk(np.zeros(5, np.uint32))


@pytest.mark.parametrize(
    ("masses", "error", "message"),
    [
        (np.zeros(4, np.uint16), ValueError, r"shape \(3,\), got \(4,\)"),
        (np.zeros(3, np.float32), TypeError, "integer words, got float32"),
        (np.full(3, 65536), ValueError, r"in \[0, 65535\], got up to 65536"),
    ],
)
def test_wrong_masses_are_refused(
    masses: np.ndarray[Any, Any], error: type[Exception], message: str
) -> None:
    mmu = FixedPointMMU(FixedPointConfig(3, 0, 1))
    mmu.admit()
    with pytest.raises(error, match=message):
        mmu.accumulate(masses)
