"""Mutants of the hardware KV-MMU: its source with a text replaced, as a package of its own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvmmu.rtl

CORE = Path(kvmmu.rtl.__file__).parent / "core"


@dataclass(frozen=True)
class Mutant:
    """Replace `old` (found once) by `new` in one file of the core, and what `also` pairs."""

    name: str
    file: str
    old: str
    new: str
    also: tuple[tuple[str, str], ...] = ()
    store: str = "sram"


MUTANTS = (
    # what the issue names
    Mutant("tie goes to the higher way", "scores.py", "left <= right", "left < right"),
    Mutant(
        "tie goes to the later row", "pipeline.py", "(score < held.score)", "(score <= held.score)"
    ),
    Mutant(
        "window one token short",
        "admission.py",
        "Mux(reach > window, reach - window, 0)",
        "Mux(reach > window, reach - window + 1, 0)",
    ),
    Mutant(
        "window one token long",
        "admission.py",
        "Mux(reach > window, reach - window, 0)",
        "Mux(reach > window + 1, reach - window - 1, 0)",
    ),
    Mutant(
        "beats of the row in flight not added",
        "sums.py",
        "held = Mux(starts, 0, sums[way])",
        "held = 0",
    ),
    Mutant(
        "newcomer not laid over its slot",
        "scores.py",
        "Mux(arrives, 0, self.words[way])",
        "self.words[way]",
    ),
    Mutant(
        "newcomer not protected as victim",
        "scores.py",
        "Mux(is_new, self.settings.window > 1, stays)",
        "stays",
    ),
    Mutant(
        "word wraps",
        "scores.py",
        "Mux(shifted[SCORE_BITS:].any(), LARGEST, shifted[:SCORE_BITS])",
        "shifted[:SCORE_BITS]",
    ),
    Mutant(
        "protected score wraps",
        "scores.py",
        "Mux(word[SCORE_BITS], LARGEST, word[:SCORE_BITS])",
        "word[:SCORE_BITS]",
    ),
    Mutant("table not cleared", "store.py", "Mux(was_fresh, 0, headers.rdata)", "headers.rdata"),
    Mutant(
        "touched tables kept over RELEASE and ADMIT",
        "lane_table.py",
        "[active[lane].eq(1), counts[lane].eq(0)]",
        "active[lane].eq(1)",
        also=(("[active[lane].eq(0), counts[lane].eq(0)]", "active[lane].eq(0)"),),
    ),
    # ours, but the first, whose long rows take their time
    Mutant("sum wraps", "sums.py", "Mux(wide[-1], (1 << SUM_BITS) - 1, wide)", "wide"),
    Mutant("decay rounds down", "scores.py", " + rest.any(), 0)", ", 0)"),
    Mutant(
        "decay where none was asked for",
        "scores.py",
        "settings.decays & ~self.stage.rescales",
        "~self.stage.rescales",
    ),
    Mutant(
        "decay taken again in a rescale",
        "scores.py",
        "settings.decays & ~self.stage.rescales",
        "settings.decays",
    ),
    Mutant(
        "rescale leaves the exponent",
        "pipeline.py",
        "context.exponent + stage.rescales",
        "context.exponent",
    ),
    Mutant(
        "exponent shifts no mass", "scores.py", "word >> self.arriving_context.exponent", "word"
    ),
    Mutant(
        "protected slot sets off a rescale",
        "scores.py",
        "may_rescale[way].eq(held & ~kept.now)",
        "may_rescale[way].eq(held)",
    ),
    Mutant(
        "slot not held may leave",
        "scores.py",
        "may_leave[way].eq(held & ~kept.after)",
        "may_leave[way].eq(~kept.after)",
    ),
    Mutant(
        "victim by this step's protection",
        "scores.py",
        "may_leave[way].eq(held & ~kept.after)",
        "may_leave[way].eq(held & ~kept.now)",
    ),
    Mutant(
        "rescale by the next step's protection",
        "scores.py",
        "may_rescale[way].eq(held & ~kept.now)",
        "may_rescale[way].eq(held & ~kept.after)",
    ),
    Mutant(
        "sinks one too many",
        "scores.py",
        "slot < self.settings.num_sinks",
        "slot <= self.settings.num_sinks",
    ),
    Mutant(
        "masses added again in a rescale",
        "scores.py",
        "Mux(self.arriving.rescales, 0, self._added(m, way))",
        "self._added(m, way)",
    ),
    Mutant(
        "evicts one token late",
        "admission.py",
        "evicts.eq(header.position >= num_slots)",
        "evicts.eq(header.position > num_slots)",
    ),
    Mutant(
        "full one token late",
        "admission.py",
        "is_full.eq(reach >= num_slots)",
        "is_full.eq(reach > num_slots)",
    ),
    Mutant(
        "last way one too few",
        "admission.py",
        "context.last_way.eq(last[: config.way_bits])",
        "context.last_way.eq(last[: config.way_bits] - 1)",
    ),
    Mutant("highest free lane", "lane_table.py", "reversed(range(lanes))", "range(lanes)"),
    Mutant(
        "release frees no lane",
        "lane_table.py",
        "[active[lane].eq(0), counts[lane].eq(0)]",
        "counts[lane].eq(0)",
    ),
    Mutant(
        "all lanes share a table",
        "admission.py",
        "self._command.lane * config.tables_per_lane + self._index",
        "self._index",
    ),
    Mutant(
        "position not written",
        "pipeline.py",
        "Mux(holds_newcomer & ~third.rescales, newcomer, 0)",
        "0",
    ),
    Mutant(
        "position written in every row",
        "pipeline.py",
        "Mux(holds_newcomer & ~third.rescales, newcomer, 0)",
        "newcomer",
    ),
    Mutant(
        "least score kept from the step before", "pipeline.py", "Mux(fifth.is_last, 0, now)", "now"
    ),
    Mutant(
        "same table may follow at once",
        "admission.py",
        "self.busy[n] & (self.tables[n] == self.open_table)",
        "0",
    ),
    Mutant(
        "lanes without a stride",
        "address.py",
        "target.write.lane * settings.lane_stride[:LIMB]",
        "target.write.lane * 0",
    ),
    Mutant(
        "heads share their rows",
        "address.py",
        "target.write.head * target.num_slots + target.write.slot",
        "target.write.slot",
    ),
    Mutant("slots without a stride", "address.py", "index * settings.slot_stride[:HALF]", "index"),
    Mutant(
        "write does not wait for ready", "address.py", "~self.write.valid | self.write.ready", "1"
    ),
    Mutant(
        "decay of the next shift",
        "scores.py",
        "(score >> settings.decay_shift) +",
        "(score >> (settings.decay_shift + 1)) +",
    ),
    Mutant("address drops a carry", "address.py", "high + kept_low[LIMB:]", "high"),
    Mutant("lane's offset drops a carry", "address.py", "lane_high + lane_low[LIMB:]", "lane_high"),
    # the tables that swap with DRAM
    Mutant(
        "image not sent",
        "swap.py",
        "self._dirty.bit_select(self.close_place, 1).eq(1)",
        "self._dirty.bit_select(self.close_place, 1).eq(0)",
        store="dram",
    ),
    Mutant(
        "released table found on chip",
        "swap.py",
        "self._holds[n].eq(0)",
        "self._holds[n].eq(1)",
        store="dram",
    ),
    Mutant(
        "image one row short",
        "swap.py",
        "is_last = self._row == self._last_rows[self._swapped]",
        "is_last = self._row + 1 >= self._last_rows[self._swapped]",
        store="dram",
    ),
    Mutant(
        "carry lost on the way to DRAM",
        "swap.py",
        ".eq(clamped(word))",
        ".eq(word[:16])",
        store="dram",
    ),
    Mutant(
        "table in use swapped out",
        "swap.py",
        "Mux(self._used.any(), self._used[0], ~last_opened)",
        "~last_opened ^ self._used.any()",
        store="dram",
    ),
    Mutant(
        "fresh table with an old header",
        "swap.py",
        "self._headers[buffer].eq(0)",
        "self._headers[buffer].eq(self._headers[buffer])",
        store="dram",
    ),
    Mutant(
        "payload of an image not held",
        "swap.py",
        "is_free = ~out.valid | out.ready",
        "is_free = 1",
        store="dram",
    ),
)
NAMED = MUTANTS[:11]


def load(mutant: Mutant | None, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Return the block's class of the core in which one text was replaced."""
    package = folder / name
    package.mkdir()
    for source in CORE.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        if mutant is not None and source.name == mutant.file:
            for old, new in ((mutant.old, mutant.new), *mutant.also):
                assert text.count(old) == 1, f"{old!r} must stand once in {mutant.file}"
                text = text.replace(old, new)
        text = text.replace("kvmmu.rtl.core", name)
        (package / source.name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module(f"{name}.kv_mmu").KvMmu
