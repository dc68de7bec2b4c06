"""Token ids to text: whole characters, and nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from kvmmu.engine.text import Detokenizer, StopStrings, TextStream
from kvmmu.hf.load import load_tokenizer


def by_bytes(ids):
    """A tokenizer of bytes: token i is byte i, 256 a special token without text."""
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def sentencepiece():
    """A Llama 2 sort of tokenizer: pieces with a mark for the space, bytes as a fallback."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)}
    vocab |= {"▁Hi": 256, "▁": 257, "x": 258, "▁there": 259}
    made = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="x"))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made.decode


def pieces(decode, ids, size=1):
    made = Detokenizer(decode)
    found = [made.feed(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [*found, made.flush()]


# ------------------------------------------------------------------------ characters
@example(text="a🙂é", size=1)
@example(text="0" + "é" * 40, size=2)  # no token ends where a character does
@given(text=st.text(max_size=30), size=st.integers(1, 3))
def test_pieces_make_up_the_text(text, size):
    ids = list(text.encode())
    assert "".join(pieces(by_bytes, ids, size)) == text


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_text_before_a_begun_character_does_not_wait_for_it(num_parts):
    made = Detokenizer(by_bytes)
    ids = list("ab🙂".encode())
    assert made.feed(ids[: 2 + num_parts]) == "ab"
    assert made.feed(ids[2 + num_parts :]) == "🙂"


@given(text=st.text(alphabet="aé🙂 €", max_size=12))
def test_no_piece_holds_a_part_of_a_character(text):
    made = pieces(by_bytes, list(text.encode()))
    assert "\ufffd" not in "".join(made)


@given(ids=st.lists(st.integers(0, 256), max_size=12), size=st.integers(1, 3))
def test_bytes_that_are_no_text_come_out_in_the_end(ids, size):
    made = "".join(pieces(by_bytes, ids, size))
    assert made.replace("\ufffd", "") == by_bytes(ids).replace("\ufffd", "")
    assert ("\ufffd" in made) == ("\ufffd" in by_bytes(ids))


def test_bytes_that_never_become_a_character_are_let_go():
    made = Detokenizer(by_bytes)
    assert any(made.feed([0xFF]) for _ in range(40))


def test_endless_special_tokens_do_not_pile_up():
    made = Detokenizer(by_bytes)
    for _ in range(200):
        assert made.feed([256]) == ""
    assert len(made._ids) < 20
    assert made.feed([ord("a")]) == "a"


@pytest.mark.parametrize(
    "ids",
    [
        [256, 259, 258],
        [259, 256],
        [257, 257, 258],
        [0xF0, 0x9F, 0x99, 0x82, 259],
        [0xF0, 0x9F, 0x99, 0x82, 0xF0, 0x9F, 0x99, 0x82, 258],
        [256, 0xC3, 0xA9, 257, 258],
    ],
)
def test_spaces_and_fallback_bytes_come_out_as_in_one_piece(ids):
    decode = sentencepiece()
    assert "".join(pieces(decode, ids)) == decode(ids)


@given(text=st.text(max_size=40))
def test_shipped_tokenizer_streams_what_it_decodes_at_once(text):
    tokenizer = load_tokenizer("kvmmu-ref-1m")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    assert "".join(pieces(decode, ids)) == decode(ids)


# ------------------------------------------------------------------------ stop strings
def cut(text, stops):
    """The text before the stop string that is complete first; of equals the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def through(text, stops, sizes):
    made, found, at = StopStrings(stops), [], 0
    for size in [*sizes, len(text) + 1]:
        found.append(made.feed(text[at : at + size]))
        at += size
    return [*found, made.flush()], made.is_over


@example(text="abx", stops=["abc", "b"], sizes=[])
@example(text="abc", stops=["abc", "b"], sizes=[])
@example(text="aab", stops=["ab"], sizes=[1, 1, 1])
@example(text="abab!", stops=["abb", "ab!"], sizes=[1] * 5)
@given(
    text=st.text(alphabet="abc", max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(0, 4), max_size=8),
)
def test_text_ends_at_the_stop_string_wherever_the_borders_fall(text, stops, sizes):
    found, is_over = through(text, stops, sizes)
    assert ("".join(found), is_over) == cut(text, stops)


@given(
    text=st.text(alphabet="ab", max_size=10),
    stop=st.text(alphabet="ab", min_size=1, max_size=4),
)
def test_text_that_cannot_become_a_stop_string_does_not_wait(text, stop):
    made, sent = StopStrings([stop]), ""
    for i, letter in enumerate(text):
        sent += made.feed(letter)
        if made.is_over:
            break
        rest = text[: i + 1][len(sent) :]
        assert stop.startswith(rest)
        assert len(rest) < len(stop)


def test_nothing_comes_after_the_stop_string():
    made = StopStrings(["\n"])
    assert made.feed("one\ntwo") == "one"
    assert made.is_over
    assert made.feed("three") == made.flush() == ""


# ------------------------------------------------------------------------ both
def test_stop_string_across_token_borders_and_in_the_middle_of_a_token():
    stream = TextStream(by_bytes, ["🙂!"])
    sent = "".join(stream.feed([b]) for b in "hé🙂 🙂!x".encode())
    assert sent == "hé🙂 "
    assert stream.is_over
    assert stream.flush() == ""


def test_flush_lets_out_what_waited():
    stream = TextStream(by_bytes, ["END"])
    assert stream.feed(list(b"the EN")) == "the "
    assert stream.flush() == "EN"


def test_flush_can_complete_a_stop_string():
    stream = TextStream(by_bytes, ["\ufffd"])
    assert stream.feed([ord("a"), 0xC3]) == "a"
    assert stream.flush() == ""
    assert stream.is_over


def test_without_a_tokenizer_there_is_no_text():
    stream = TextStream(None, [])
    assert stream.feed([1, 2]) == stream.flush() == ""
