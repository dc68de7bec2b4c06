"""Words that name a record in the retrieval tasks, split into training and held-out keys."""

from __future__ import annotations

import hashlib
from typing import Literal

__all__ = ["KEY_WORDS", "Split", "key_words", "split_of"]

Split = Literal["train", "held_out"]

_WORDS = """
absence actions active adjutant affair affection afternoon agitation aide angel anger anteroom
anxiety approach armchair arrival artillery aunt autumn baby ball ballroom bank bare base
battalion battery beast beautiful behaviour belief bench bird blubber boat body book bottle
bottom bows brain bridge brilliant broad brows bulwarks cabin campaign campfires candle cannon
capital card carpenter carriage cart case cause cavalry center chair chamber character chase
cheek child choice church city cloud club coach coachman coffin commander common companion
complete comrade constant contrary corner council country couple courage course court coward
crew crowd crown custom customary dark darkness daughters deck deep departure design desperate
direction dish distance doctor doors double dread dream earth east edge effect effort elbow
elder enormous entire entrance essence estate eternal event example execution exercise existence
external eyebrows fact famous fatal fate fault favorite feast feelings field fiery final fine
fire fishery flames floor flower fool footman footmen forehead foreign fortnight fourth freedom
frost future gale gallop game garden gate generals genius gentleman glass glory gods golden
governor grain grave green ground group guests guns habit hair hall hammer hammock hare harpoon
hearts heat heavy height helm herd hero hill hint history hollow honor horizon horses hounds
hour huge humanity hurry husband hussar icon illness immense infantry influence inner instant
intention interview island ivory journey keen kindness kingdom knee knoll lamp land landlord
large laws legs level library liege lips list lofty loss lower maid main mankind mariners
marriage mast master match memory merchant mere middle midst mighty mile military militia
millions minds minute mist modern monster month moon moral mouth movement mystery narrow nations
native necessity neck nephew niece noise nose note number oath ocean office official opinion
ordinary original pair palace paper parents partner passage path peasant peculiar peoples period
personal physical picture piece pipe pistol plan planks plump pocket point police political
porch portrait position post prayer presence present previous prisoners private profound proper
property public pure purpose purse quarter question rage rank rare real rear reception regiment
regular relation result river road rope rules saber saddle sailor scene seamen seat secret serfs
sergeant service shade shadow sharp shirt shock short shoulder sigh sight silver single sister
situation skeleton skin skull sleigh slender slight smell smoke snow social sofa soft soldier
sole solitary song sort sound sovereign special species speech spirits spot squadron square
staff stage state stern stick stomach storm story stranger street stroke study subject subtle
sudden suite surface sword table tail tale tall taste teeth tent terrible theory thin throat
throne title town trial troops trunk truth universal upper valet vanity vast vessel vice victory
view village visitor wall water watery waves wealth week welfare whaleman wheels whip whisper
whiteness wild wind window wine winter wolf wondrous wood wooden worst yard year younger
"""

KEY_WORDS: tuple[str, ...] = tuple(_WORDS.split())


def split_of(word: str) -> Split:
    """Name the split of a key word: one word in five, by hash, is held out of training."""
    return "held_out" if hashlib.sha256(word.encode()).digest()[0] % 5 == 0 else "train"


def key_words(split: Split) -> tuple[str, ...]:
    """List the key words of one split.

    Raises ValueError for an unknown split.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    return tuple(word for word in KEY_WORDS if split_of(word) == split)
