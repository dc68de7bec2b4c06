"""Every task of the registry: drawn to the token, solvable from its text, scored as it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_solvers import solve
from tokenizers import Tokenizer

from kvmmu.evals.cases import PERPLEXITY, SUITES
from kvmmu.evals.keys import KEY_WORDS
from kvmmu.evals.source import Source, shipped_book
from kvmmu.evals.streams import draw
from kvmmu.evals.tasks.babi import PLACES
from kvmmu.evals.tasks.base import CAPABILITIES, TASKS, Instance, Query
from kvmmu.evals.tasks.common_words import CommonWords
from kvmmu.evals.tasks.frequent_words import FrequentWords
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.evals.tasks.niah_single import SingleNeedle
from kvmmu.evals.tasks.passkey import Passkey
from kvmmu.evals.tasks.recite import Recite
from kvmmu.evals.tasks.variable_tracking import VariableTracking

MODEL = Path(__file__).resolve().parents[2] / "src" / "kvmmu" / "models" / "kvmmu-ref-1m"
CASES = [(name, mode) for name in TASKS.names() for mode in TASKS.get(name).modes]
BY_KEYS = [name for name in TASKS.names() if "babi" not in name]
BY_KEYS = [name for name in BY_KEYS if name not in ("passkey", "key_value")]
SEEDS = st.integers(0, 2**32 - 1)
every_task = pytest.mark.parametrize("name", TASKS.names())
every_case = pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{n}-{m}" for n, m in CASES])


class Bytes:
    """One token a byte: no word is whole, and words differ in length."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any) -> str:
        return bytes(ids).decode(errors="replace")


class Shipped:
    """The shipped models' tokenizer."""

    def __init__(self) -> None:
        self._own = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._own.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Any) -> str:
        return str(self._own.decode(list(ids), skip_special_tokens=False))


class World:
    """A tokenizer, a source, and lengths at which every task fits."""

    def __init__(self, tokenizer: Bytes | Shipped, lengths: tuple[int, int]) -> None:
        self.decode = tokenizer.decode
        keys = None if isinstance(tokenizer, Shipped) else KEY_WORDS  # few are equally long
        self.source = Source.make(shipped_book()[:150_000], tokenizer, keys=keys)
        self.lengths = st.integers(*lengths)

    def draw(self, name: str, mode: Any, num_tokens: int, seed: int) -> Instance:
        task = TASKS.make(name)
        rng = np.random.default_rng(seed)
        return task.draw(self.source, num_tokens=num_tokens, mode=mode, rng=rng)


@pytest.fixture(scope="module")
def shipped() -> World:
    return World(Shipped(), (256, 2048))


@pytest.fixture(scope="module", params=["shipped", "bytes"])
def world(request: pytest.FixtureRequest, shipped: World) -> World:
    return shipped if request.param == "shipped" else World(Bytes(), (1536, 3072))


def holds(ids: Any, part: tuple[int, ...]) -> bool:
    """Tell whether part stands in ids without a gap."""
    text, wanted = (" ".join(map(str, i)) for i in (ids, part))
    return f" {wanted} " in f" {text} "


# ---------------------------------------------------------------------------------------- drawing
@every_case
@settings(max_examples=6)
@given(data=st.data(), seed=SEEDS)
def test_instance_is_drawn_to_the_token_and_by_its_seed(
    name: str, mode: str, world: World, data: st.DataObject, seed: int
) -> None:
    num_tokens = data.draw(world.lengths)
    one, two, other = (world.draw(name, mode, num_tokens, s) for s in (seed, seed, seed + 1))
    ids, starts = one.stream()
    assert len(ids) == num_tokens
    assert one == two
    assert one != other
    for start, query in zip(starts, one.queries, strict=True):
        assert tuple(ids[start : start + len(query.answer_ids)]) == query.answer_ids
        assert tuple(ids[start - len(query.prompt_ids) : start]) == query.prompt_ids
        assert start > len(one.context_ids)


@every_case
@settings(max_examples=6)
@given(data=st.data(), seed=SEEDS)
def test_solver_finds_every_answer_in_the_context(
    name: str, mode: str, world: World, data: st.DataObject, seed: int
) -> None:
    made = world.draw(name, mode, data.draw(world.lengths), seed)
    context = world.decode(made.context_ids)
    for query in made.queries:
        found = solve(
            name,
            context,
            world.decode(query.prompt_ids),
            keys=KEY_WORDS,
            length=len(query.answer_ids),
        )
        ids = world.source.encode(found)[: len(query.answer_ids)]
        assert tuple(ids) == query.answer_ids


@every_case
@settings(max_examples=4)
@given(data=st.data(), seed=SEEDS)
def test_answers_tokens_stand_in_the_context_and_records_where_said(
    name: str, mode: str, world: World, data: st.DataObject, seed: int
) -> None:
    made = world.draw(name, mode, data.draw(world.lengths), seed)
    for key, place in made.positions.items():
        record = made.records[key]
        assert made.context_ids[place : place + len(record)] == record
    for query in made.queries:
        told = query.prompt_ids if name == "recite" else made.context_ids
        for target in query.targets or (query.answer_ids,):
            assert holds(told, target)
        if made.positions and query.key in made.positions:
            record = made.records[query.key]
            assert holds(query.answer_ids + query.prompt_ids + record, query.answer_ids[:1])


@every_case
@settings(max_examples=4)
@given(data=st.data(), seed=SEEDS)
def test_question_is_in_the_context_only_if_seen(
    name: str, mode: str, world: World, data: st.DataObject, seed: int
) -> None:
    made = world.draw(name, mode, data.draw(world.lengths), seed)
    context = world.decode(made.context_ids)
    for query in made.queries:
        question = world.decode(query.prompt_ids)
        assert (question in context) == (mode == "seen")
        assert query.key == "" or question.strip()
    if mode == "seen":
        assert context.endswith(world.decode(made.queries[0].prompt_ids))
        assert len(made.queries) == 1


@pytest.mark.parametrize("make", [MultiKey, SingleNeedle, Passkey])
def test_question_seen_first_begins_the_context(make: Any, world: World) -> None:
    rng = np.random.default_rng(0)
    made = make(is_first=True).draw(world.source, num_tokens=1024, mode="seen", rng=rng)
    question = made.queries[0].prompt_ids
    assert made.context_ids[: len(question)] == question
    for key, place in made.positions.items():
        assert made.context_ids[place : place + len(made.records[key])] == made.records[key]


@pytest.mark.parametrize("num_hops", [1, 2, 3])
def test_chain_is_followed_over_all_its_hops(num_hops: int, shipped: World) -> None:
    rng = np.random.default_rng(num_hops)
    task = VariableTracking(num_chains=4, num_hops=num_hops)
    made = task.draw(shipped.source, num_tokens=512, mode="late", rng=rng)
    for query in made.queries:
        context, asked = shipped.decode(made.context_ids), shipped.decode(query.prompt_ids)
        found = solve(task.name, context, asked, keys=KEY_WORDS, length=0)
        assert found == shipped.decode(query.answer_ids)
        assert len(found.split()) == num_hops + 1


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_needle_stands_at_its_depth(depth: float, world: World) -> None:
    rng = np.random.default_rng(5)
    task = SingleNeedle(depth=depth)
    made = task.draw(world.source, num_tokens=1024, mode="late", rng=rng)
    (place,) = made.positions.values()
    (record,) = made.records.values()
    room = len(made.context_ids) - len(record)
    assert abs(place - depth * room) <= 24  # the longest word, in bytes


def test_every_case_of_every_suite_can_be_drawn(shipped: World) -> None:
    cases = {c.key: c for name in SUITES.names() for c in SUITES[name].cases}
    drawn = 0
    for case in cases.values():
        if case.task != PERPLEXITY and case.task in TASKS.names():
            stream = draw(
                case.make(), [shipped.source], num_tokens=case.num_tokens, num_rows=1, seed=0,
                mode=case.mode,
            )  # fmt: skip
            assert stream.num_tokens == case.num_tokens
            drawn += 1
    assert drawn > 100


@every_task
def test_task_says_what_it_measures(name: str) -> None:
    task = TASKS.get(name)
    assert task.capability in CAPABILITIES
    assert task.question
    assert task.modes


# ---------------------------------------------------------------------------------------- scoring
NONSENSE = 0  # the byte and the token 0 are in no answer


def spoilt(query: Query, kept: int) -> list[int]:
    """Write the first `kept` targets and nonsense for the rest."""
    ids = [token for target in query.targets[:kept] for token in target]
    return ids + [NONSENSE] * (len(query.answer_ids) - len(ids))


@every_case
def test_truth_scores_one_and_nonsense_zero(name: str, mode: str, world: World) -> None:
    task = TASKS.make(name)
    made = world.draw(name, mode, 2048, 7)
    rng = np.random.default_rng(0)
    for query in made.queries:
        assert task.score(query, query.answer_ids) == 1
        assert task.score(query, [NONSENSE] * len(query.answer_ids)) == 0
        assert task.score(query, []) == 0
        assert task.score(query, query.answer_ids[:-1]) < 1 or name == "recite"
        strange = [t for t in range(33, 96) if t not in query.answer_ids]
        noise = rng.choice(strange, size=len(query.answer_ids)).tolist()
        assert task.score(query, noise) == 0


@pytest.mark.parametrize(
    "name", ["niah_multiquery", "niah_multivalue", "common_words", "frequent_words"]
)
def test_each_target_found_is_an_equal_share(name: str, world: World) -> None:
    task = TASKS.make(name)
    for query in world.draw(name, "late", 2048, 7).queries:
        assert len(query.targets) == 3
        assert [task.score(query, spoilt(query, n)) for n in range(4)] == [0, 1 / 3, 2 / 3, 1]
        backwards = [token for target in query.targets[::-1] for token in target]
        assert task.score(query, backwards) == 1


@every_case
def test_one_wrong_token_is_no_exact_answer(name: str, mode: str, shipped: World) -> None:
    task = TASKS.make(name)
    for query in shipped.draw(name, mode, 1024, 3).queries:
        for at in range(0, len(query.answer_ids), 37):
            wrong = list(query.answer_ids)
            wrong[at] = NONSENSE
            assert task.score(query, wrong) < 1


def test_reciting_scores_steps_of_the_list_and_no_others(world: World) -> None:
    task = Recite()
    (query,) = world.draw("recite", "online", 2048, 1).queries
    size = len(query.targets[0])
    num = len(query.answer_ids)
    half = num // 2
    later = [*query.answer_ids[3 * size :], *query.answer_ids[: 3 * size]]
    broken = list(query.answer_ids[:half]) + [NONSENSE] * (num - half)
    assert task.score(query, broken) == pytest.approx(0.5, abs=0.02)
    assert task.score(query, later) >= 1 - 2 * size / num  # entered anywhere, one seam
    for word in query.targets:
        same = (word * num)[:num]
        # a word repeated is no list; in bytes, the space is right, and what the next begins with
        assert task.score(query, same) <= (0.6 if size > 1 else 0)
        assert task.score(query, word[-1:] * num) == 0
    backwards = [token for word in query.targets[::-1] for token in word] * num
    assert task.score(query, backwards[:num]) < 0.95 * (size - 1) / size + 0.05


@every_task
def test_chance_is_what_one_gets_who_copies_at_random(name: str, shipped: World) -> None:
    task = TASKS.make(name)
    num_tokens, mode = 512, task.modes[0]
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(150 if "babi" in name else 12):
        made = shipped.draw(name, mode, num_tokens, seed)
        for query in made.queries:
            ids = map(shipped.source.encode, guesses(task, made, query, shipped, rng))
            found = [task.score(query, guess[: len(query.answer_ids)]) for guess in ids]
            scores.append(np.mean(found))
    assert np.mean(scores) == pytest.approx(task.chance(num_tokens), rel=0.2, abs=0.015)


def guesses(task: Any, made: Instance, query: Query, world: World, rng: Any) -> list[str]:
    """Guess without counting or finding: words, records' digits or places told, or any digits."""
    told, asked = world.decode(made.context_ids), world.decode(query.prompt_ids)
    if "babi" in task.name:
        last = re.findall(rf" ({'|'.join(PLACES)})\.", told)[-1]
        return (
            [f" {p}" for p in PLACES if p not in asked] if task.name == "babi_qa3" else [f" {last}"]
        )
    records = [world.decode(ids) for ids in made.records.values()]
    values = [digits for text in records for digits in re.findall(r"(\d{3})\.", text)]
    match task.name:
        case "common_words" | "frequent_words":
            (listed,) = re.findall(r" List:((?: \w+)+)\.", told)
            return [_words(rng.choice(listed.split(), len(query.targets))) for _ in range(100)]
        case "recite":
            return [_words(rng.choice(made.keys, len(query.answer_ids))) for _ in range(10)]
        case "niah_multivalue":
            return [_words(rng.permutation(values)[:3]) for _ in range(100)]
        case "niah_multiquery":
            keys = asked.rstrip(":").split()[1:]
            return [_words(f"{key} {value}" for key in keys) for value in values]
        case "variable_tracking":
            return re.findall(r"( \w+ \d{3})\.", "".join(records))
        case "mixed":
            is_needle = "number of the" in asked
            kind = [text for text in records if ("number of the" in text) == is_needle]
            if "pass key" not in asked:
                values = [d for text in kind for d in re.findall(r"\b(\d{3})\.", text)]
                return [f" {value}" for value in values]
        case _ if len(values) > 1:
            return [f" {value}" for value in values]
    return [f" {rng.integers(1000):03d}" for _ in range(10)]


def _words(words: Iterable[str]) -> str:
    return "".join(f" {word}" for word in words)


@pytest.mark.parametrize("num_tokens", [256, 512, 1024, 4096])
@pytest.mark.parametrize("task", [CommonWords(), CommonWords(2, 10, 1), FrequentWords()])
def test_chance_counts_the_words_that_are_listed(
    task: Any, num_tokens: int, shipped: World
) -> None:
    rng = np.random.default_rng(0)
    made = task.draw(shipped.source, num_tokens=num_tokens, mode="late", rng=rng)
    (text,) = re.findall(r" List:((?: \w+)+)\.", shipped.decode(made.context_ids))
    words = text.split()
    shares = sorted((words.count(word) / len(words) for word in set(words)), reverse=True)
    num = len(made.queries[0].targets)
    found = [1 - (1 - share) ** num for share in shares[:num]]
    assert task.chance(num_tokens) == pytest.approx(sum(found) / num, rel=0.05)


# ------------------------------------------------------------------------------------- bad input
@every_case
def test_short_texts_are_drawn_whole_or_refused_in_one_line(
    name: str, mode: str, world: World
) -> None:
    for num_tokens in (1, 2, 8, 16, 24, 32, 48, 64, 96, 128, 192):
        made, error = attempt(lambda n=num_tokens: world.draw(name, mode, n, n))
        if made is None:
            assert re.fullmatch(r"num_tokens must .*\d.*; \w.*", error), error
            assert mode == "online" or f", got {num_tokens};" in error
        else:
            assert len(made.stream()[0]) == num_tokens
            assert num_tokens > 8


def attempt(make: Callable[[], Instance]) -> tuple[Instance | None, str]:
    """Draw, or return what the refusal says."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("num_tokens", [16, 48, 64, 96, 128])
def test_words_equally_frequent_are_never_asked_for(num_tokens: int, shipped: World) -> None:
    task = FrequentWords(num_words=32, exponent=1.2)
    rng = np.random.default_rng(0)
    made, error = attempt(
        lambda: task.draw(shipped.source, num_tokens=num_tokens, mode="late", rng=rng)
    )
    if made is None:
        assert "num_tokens must let 4 of 32 words come at different rates" in error
        return
    context = shipped.decode(made.context_ids)
    found = solve(task.name, context, "", keys=(), length=0)  # asserts that the order is told
    assert found == shipped.decode(made.queries[0].answer_ids)


def test_needle_at_a_depth_needs_room_for_text(world: World) -> None:
    for num_tokens in range(1, 60):
        task = SingleNeedle(depth=0.5)
        rng = np.random.default_rng(0)
        made, error = attempt(
            lambda n=num_tokens, r=rng, t=task: t.draw(
                world.source, num_tokens=n, mode="late", rng=r
            )
        )
        assert made is None or len(made.stream()[0]) == num_tokens
        assert made or re.match(rf"num_tokens must exceed \d+ .* got {num_tokens};", error)


@pytest.mark.parametrize("name", BY_KEYS)
@pytest.mark.parametrize("num_keys", [0, 1, 2, 3, 5])
def test_too_few_keys_are_refused_by_name(name: str, num_keys: int, shipped: World) -> None:
    few = Source(shipped.source.filler, shipped.source.encode, shipped.source.keys[:num_keys])
    task = TASKS.make(name)
    rng = np.random.default_rng(0)
    made, error = attempt(
        lambda: task.draw(few, num_tokens=1024, mode=task.modes[0], rng=rng),
    )
    if made is None:
        assert re.fullmatch(r"number of keys asked for must be in .*got \d+; add keys .*", error)
    else:
        assert num_keys >= 1


def test_source_needs_a_key() -> None:
    with pytest.raises(ValueError, match="keys must name at least one"):
        Source.make("some text", Bytes(), keys=())


@every_case
def test_text_that_is_too_short_is_refused(name: str, mode: str) -> None:
    source = Source.make("Some few words. " * 20, Bytes(), keys=KEY_WORDS)
    with pytest.raises(ValueError, match="num_tokens must"):
        TASKS.make(name).draw(
            source,
            num_tokens=4096,
            mode=mode,
            rng=np.random.default_rng(0),  # type: ignore[arg-type]
        )


@every_task
def test_mode_that_a_task_lacks_is_refused_by_name(name: str, shipped: World) -> None:
    task = TASKS.make(name)
    for mode in {"late", "seen", "online", "never"} - set(task.modes):
        with pytest.raises(ValueError, match=f"mode of task {name} must be one of .*got '{mode}'"):
            shipped.draw(name, mode, 512, 0)
