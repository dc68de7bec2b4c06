"""Draw the pictures of rtl.md as SVG: the block, and waveforms taken from its simulation.

    python docs/draw_rtl.py        write docs/img/rtl-*.svg

Every waveform is a run of `kvmmu.rtl.core.kv_mmu.KvMmu` in Amaranth's simulator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amaranth.sim import Simulator
from draw import IMAGES, _box, _Sheet

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu

LEFT, STEP, HIGH, PITCH = 128, 40, 16, 30
"""Pixels: of the names, of a cycle, of a wave, from wave to wave."""


def block() -> _Sheet:
    """Draw the block: its streams, its parts and what passes between them."""
    sheet = _Sheet(960, 470, "The KV-MMU block: five streams, four parts, and its SRAM")
    sheet.rect("unit", 176, 24, 612, 336, round_=12)
    sheet.text(192, 50, "KV-MMU", "strong")
    _box(
        sheet,
        (200, 66, 180, 84),
        "admission",
        "lanes, layers' C and base,",
        "order and range checks",
    )
    _box(
        sheet, (560, 66, 200, 84), "address pipe", "base + lane, head, slot", "times their strides"
    )
    _box(
        sheet,
        (200, 230, 180, 104),
        "score pipeline",
        "sum of a row's beats, decay,",
        "add, clamp, write back",
    )
    sheet.text(290, 316, "running argmin", "small mid")
    _box(
        sheet,
        (560, 230, 200, 104),
        "table store",
        "scores, positions: two banks",
        "headers: exponent, token",
    )
    sheet.text(660, 316, "count, next victim", "small mid")
    _stream(sheet, (20, 96), (198, 96), "cmd")
    _stream(sheet, (198, 126), (20, 126), "rsp")
    _stream(sheet, (20, 282), (198, 282), "mass")
    _stream(sheet, (760, 108), (940, 108), "write")
    sheet.text(866, 126, "slot, position, address", "small faint mid")
    sheet.arrow((380, 96), (558, 96))
    sheet.text(468, 88, "victim's slot, position", "small faint mid")
    sheet.arrow((290, 150), (290, 228))
    sheet.text(298, 206, "context of a step (two)", "small faint")
    sheet.arrow((660, 230), (660, 180), (340, 180), (340, 152))
    sheet.text(500, 173, "header", "small faint mid")
    sheet.arrow((558, 262), (382, 262))
    sheet.text(470, 254, "row read", "small faint mid")
    sheet.arrow((380, 290), (558, 290))
    sheet.text(470, 308, "row, position, header", "small faint mid")
    _stream(sheet, (640, 334), (640, 420), "")
    _stream(sheet, (690, 420), (690, 336), "")
    sheet.text(632, 394, "image_out", "small faint end")
    sheet.text(700, 394, "image_in (after fetch)", "small faint")
    sheet.text(660, 446, "DRAM: the tables that are not on chip, store “dram” only", "small mid")
    return sheet


def _stream(sheet: _Sheet, start: tuple[float, float], end: tuple[float, float], name: str) -> None:
    sheet.arrow(start, end)
    if name:
        sheet.text(min(start[0], end[0]) + 60, start[1] - 8, name, "strong")


@dataclass
class Run:
    """What was seen at each clock edge, and what the testbench feeds the block."""

    config: BlockConfig
    commands: list[tuple[int, int]]
    beats: list[tuple[list[int], bool, int]]
    num_slots: int
    window: int = 6
    seen: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def simulate(run: Run, *, cycles: int) -> list[dict[str, Any]]:
    """Run the block for some cycles after set-up and return what its ports did."""
    block = KvMmu(run.config)
    simulator = Simulator(block)
    simulator.add_clock(1e-6)

    async def set_up(context: Any) -> None:
        context.set(block.settings.window, run.window)
        context.set(block.settings.slot_stride, 256)
        context.set(block.settings.lane_stride, 65536)
        for layer in range(run.config.layers):
            context.set(block.layer_settings.enable, 1)
            context.set(block.layer_settings.layer, layer)
            context.set(block.layer_settings.num_slots, run.num_slots)
            context.set(block.layer_settings.base, layer * 4096)
            await context.tick()
        context.set(block.layer_settings.enable, 0)
        context.set(block.write.ready, 1)
        context.set(block.rsp.ready, 1)
        await _feed(context, block, run)

    async def masses(context: Any) -> None:
        for words, row_end, after in run.beats:
            while sum(cycle["wrote"] for cycle in run.seen) < after:
                await context.tick()
            context.set(block.mass.payload.row_end, row_end)
            for way, word in enumerate(words):
                context.set(block.mass.payload.masses[way], word)
            context.set(block.mass.valid, 1)
            await context.tick().until(block.mass.ready)
            context.set(block.mass.valid, 0)

    async def watch(context: Any) -> None:
        while True:
            run.seen.append(_sample(context, block, run.config))
            await context.tick()

    async def stop(context: Any) -> None:
        await context.tick().repeat(cycles)

    benches = [masses, set_up]
    if run.config.store == "dram":
        benches.append(_memory(block, run))
    for bench in (*benches, watch):  # the watch sees what the others have set in its cycle
        simulator.add_testbench(bench, background=True)
    simulator.add_testbench(stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # benches that wait for ever are dropped at the end
        simulator.run()
    return run.seen


async def _feed(context: Any, block: Any, run: Run) -> None:
    for op, layer in run.commands:
        context.set(block.cmd.payload.op, op)
        context.set(block.cmd.payload.layer, layer)
        context.set(block.cmd.valid, 1)
        await context.tick().until(block.cmd.ready)
        context.set(block.cmd.valid, 0)


def _memory(block: Any, run: Run) -> Callable[[Any], Any]:
    """Answer a fetch after four cycles with the image that went out last."""

    async def bench(context: Any) -> None:
        context.set(block.image_out.ready, 1)
        context.set(block.fetch.ready, 1)
        asked: list[tuple[int, int]] = []
        beats: list[Any] = []
        now = 0
        while True:
            if context.get(block.image_out.valid):
                beat = context.get(block.image_out.payload)
                rows = run.images.setdefault(beat.table, [])
                if beat.is_header:
                    rows.clear()
                rows.append(beat)
            if context.get(block.fetch.valid):
                asked.append((now + 4, context.get(block.fetch.payload.table)))
            if asked and asked[0][0] <= now and not beats:
                beats = list(run.images[asked.pop(0)[1]])
            if context.get(block.image_in.valid) and context.get(block.image_in.ready):
                beats.pop(0)
            await context.tick()
            context.set(block.image_in.valid, bool(beats))
            if beats:
                context.set(block.image_in.payload, beats[0])
            now += 1

    return bench


def _sample(context: Any, block: Any, config: BlockConfig) -> dict[str, Any]:
    """Read the ports of one cycle: 0 or 1 of a wave; a word of a bus, None where it is silent."""
    get = context.get
    seen: dict[str, Any] = {}
    for name in ("cmd", "write", "mass"):
        stream = getattr(block, name)
        seen[f"{name}.valid"], seen[f"{name}.ready"] = get(stream.valid), get(stream.ready)
    command, write = get(block.cmd.payload), get(block.write.payload)
    seen["cmd"] = f"{command.op.name[:4]} {command.layer}" if seen["cmd.valid"] else None
    seen["write"] = f"t{write.layer} s{write.slot}" if seen["write.valid"] else None
    seen["mass.row_end"] = get(block.mass.payload.row_end) & seen["mass.valid"]
    seen["done"] = get(block.done)
    seen["wrote"] = seen["write.valid"] & seen["write.ready"]
    if config.store == "dram":
        for name in ("image_out", "image_in"):
            stream = getattr(block, name)
            moves = get(stream.valid) & get(stream.ready)
            beat = get(stream.payload)
            kind = "hd" if beat.is_header else "row"
            seen[name] = f"{kind}" if moves else None
        seen["fetch"] = get(block.fetch.valid)
    return seen


def waves(title: str, seen: list[dict[str, Any]], names: list[str]) -> _Sheet:
    """Draw the named waves, one column a cycle."""
    width = LEFT + STEP * len(seen) + 20
    sheet = _Sheet(width, 60 + PITCH * len(names) + 8, title)
    sheet.text(16, 28, title, "strong")
    for cycle in range(len(seen)):
        x = LEFT + STEP * cycle
        sheet.text(x + STEP / 2, 48, str(cycle), "small faint mid")
    for row, name in enumerate(names):
        y = 60 + PITCH * row
        sheet.text(LEFT - 10, y + HIGH - 2, name, "small end")
        if isinstance(next((c[name] for c in seen if c[name] is not None), None), str):
            _bus(sheet, [c[name] for c in seen], y)
        else:
            _wave(sheet, [int(c[name]) for c in seen], y)
    return sheet


def _wave(sheet: _Sheet, levels: list[int], y: float) -> None:
    points, before = [], levels[0]
    for cycle, level in enumerate(levels):
        x = LEFT + STEP * cycle
        if level != before:
            points.append((x, y + HIGH * (1 - before)))
        points += [(x, y + HIGH * (1 - level)), (x + STEP, y + HIGH * (1 - level))]
        before = level
    path = " L ".join(f"{a:g} {b:g}" for a, b in points)
    sheet.parts.append(f'<path class="line" d="M {path}"/>')


def _bus(sheet: _Sheet, words: list[str | None], y: float) -> None:
    """Draw a box over the cycles in which a bus holds the same word."""
    cycle = 0
    while cycle < len(words):
        end = cycle + 1
        while end < len(words) and words[end] == words[cycle] and words[cycle] is not None:
            end += 1
        x = LEFT + STEP * cycle
        if words[cycle] is None:
            sheet.parts.append(
                f'<path class="line" d="M {x:g} {y + HIGH / 2:g} L {x + STEP:g} {y + HIGH / 2:g}"/>'
            )
        else:
            sheet.rect("box", x + 1, y - 2, STEP * (end - cycle) - 2, HIGH + 4, round_=3)
            middle = x + STEP * (end - cycle) / 2
            sheet.text(middle, y + HIGH - 3, words[cycle] or "", "small mid")
        cycle = end


def _beats(steps: list[int], *, ways: int, heads: int, word: int) -> list[Any]:
    """Return the beats of steps; steps [n] tells how many rows each has."""
    found = []
    for index, rows in enumerate(steps):
        for row in range(rows):
            words = [word + (37 * (row * ways + way) + 11 * index) % 50 for way in range(ways)]
            found += [(words, head == heads - 1, index + 1) for head in range(heads)]
    return found


def step_waves() -> _Sheet:
    """Show two tables' steps in a row: commands, writes, masses without a gap, victims."""
    config = BlockConfig(slots=16, ways=4, lanes=1, layers=2, position_bits=8)
    steps = 2 * 18  # full after 16 tokens of each table
    rows = [min(token // 2, 15) // 4 + 1 for token in range(steps)]
    commands = [(0, 0)] + [(2, token % 2) for token in range(steps)]
    run = Run(config, commands, _beats(rows, ways=4, heads=1, word=9), num_slots=16)
    seen = simulate(run, cycles=420)
    start = _nth(seen, "wrote", steps - 3) - 6
    return waves(
        "Steps of two tables, 16 slots in rows of 4, one head: a row every cycle",
        seen[start : start + 24],
        ["cmd", "cmd.ready", "write", "mass.valid", "mass.ready", "mass.row_end", "done"],
    )


def rescale_waves() -> _Sheet:
    """Show a step whose largest score carries: its rows pass again while the stream waits."""
    config = BlockConfig(slots=16, ways=4, lanes=1, layers=1, position_bits=8)
    steps = 40
    rows = [min(token, 15) // 4 + 1 for token in range(steps)]
    beats = [
        ([word * 300 for word in words], row_end, after)
        for words, row_end, after in _beats(rows, ways=4, heads=1, word=4)
    ]
    run = Run(config, [(0, 0)] + [(2, 0)] * steps, beats, num_slots=16)
    seen = simulate(run, cycles=1000)
    done = [cycle for cycle, now in enumerate(seen) if now["done"]]
    ends = [_last_beat(seen, cycle) for cycle in done]
    late = next(end for end, cycle in zip(ends, done) if cycle - end > 6 and cycle > done[17])
    return waves(
        "A rescale: the largest score carries, the step's rows pass a second time",
        seen[late - 6 : late + 20],
        ["cmd", "write", "mass.valid", "mass.ready", "mass.row_end", "done"],
    )


def swap_waves() -> _Sheet:
    """Show a step whose table lies in DRAM: the old table out, the new one in, then the step."""
    config = BlockConfig(slots=16, ways=4, lanes=1, layers=3, position_bits=8, store="dram")
    steps = 3 * 18
    rows = [min(token // 3, 15) // 4 + 1 for token in range(steps)]
    commands = [(0, 0)] + [(2, token % 3) for token in range(steps)]
    run = Run(config, commands, _beats(rows, ways=4, heads=2, word=9), num_slots=16)
    seen = simulate(run, cycles=1700)
    start = _nth(seen, "wrote", steps - 3) - 2
    return waves(
        "Three tables, two on chip: swapped while the table before is worked on",
        seen[start : start + 28],
        ["cmd", "image_out", "fetch", "image_in", "write", "mass.valid", "mass.ready", "done"],
    )


def _nth(seen: list[dict[str, Any]], name: str, count: int) -> int:
    return [cycle for cycle, now in enumerate(seen) if now[name]][count - 1]


def _last_beat(seen: list[dict[str, Any]], before: int) -> int:
    moves = [c for c in range(before) if seen[c]["mass.valid"] and seen[c]["mass.ready"]]
    return moves[-1]


def pictures(*, theme: str = "auto") -> dict[str, str]:
    """Return every picture by file name."""
    sheets = {
        "rtl-block.svg": block(),
        "rtl-step.svg": step_waves(),
        "rtl-rescale.svg": rescale_waves(),
        "rtl-swap.svg": swap_waves(),
    }
    return {name: sheet.svg(theme=theme) for name, sheet in sheets.items()}


def main() -> None:
    """Write the pictures."""
    for name, svg in pictures().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
