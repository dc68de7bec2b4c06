"""A slow, plain check of a command trace against the constraints; shares no code with the device.

It keeps no ready times: every command is compared with all commands before it that can bind it,
found by looking back through the trace. Quadratic in the worst case; for tests and small traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kvmmu.accel.dram.controller import Organization, Trace
from kvmmu.accel.dram.gaps import Gaps

__all__ = ["Command", "Violation", "check_trace", "commands_of"]

_NAMES = ("ACT", "RD", "WR", "PRE", "PREab", "REFab")
_ROW_BUS = frozenset({"ACT", "PRE", "PREab", "REFab"})


class Command(NamedTuple):
    """One command: cycle, kind, flat bank (any bank of its rank for PREab and REFab), row."""

    cycle: int
    kind: str
    bank: int
    row: int


@dataclass(frozen=True)
class Violation:
    """A constraint that a trace breaks: its name, the command, cycles needed and found."""

    constraint: str
    command: Command
    needed: int
    found: int


@dataclass(frozen=True)
class _Rule:
    """After `before`, `after` waits `gap` cycles where `binds(earlier bank, later bank)`."""

    name: str
    before: str
    after: str
    gap: int
    binds: Callable[[int, int], bool]


def commands_of(trace: Trace) -> list[Command]:
    """Return a recorded trace as commands."""
    columns = (column.tolist() for column in trace)
    return [Command(t, _NAMES[kind], bank, row) for t, kind, bank, row in zip(*columns)]


def check_trace(
    commands: list[Command], gaps: Gaps, organization: Organization, *, slots: int = 1
) -> list[Violation]:
    """Return every violated gap, window, bus or state rule; an empty list is a clean trace.

    `slots` is 1, or 2 where one row and one column command may share a cycle.
    """
    rules = _rules(gaps, organization)
    furthest = max(gaps.faw, gaps.act_bus, *(rule.gap for rule in rules))
    by_kind = {name: [rule for rule in rules if rule.after == name] for name in _NAMES}
    found: list[Violation] = []
    start = 0
    for index, command in enumerate(commands):
        while command.cycle - commands[start].cycle > furthest:
            start += 1
        window = commands[start:index]
        found += _gap_violations(command, window, by_kind[command.kind])
        found += _window_violations(command, window, gaps, organization)
        found += _bus_violations(command, window, gaps, slots)
    return found + list(_state_violations(commands, organization))


def _rules(g: Gaps, org: Organization) -> list[_Rule]:
    """List every pair of commands with a distance, and the banks it binds."""
    per_group, per_rank = org.banks_per_group, org.banks_per_group * org.bank_groups

    def bank(a: int, b: int) -> bool:
        return a == b

    def group(a: int, b: int) -> bool:
        return a // per_group == b // per_group

    def rank(a: int, b: int) -> bool:
        return a // per_rank == b // per_rank

    def others(a: int, b: int) -> bool:
        return a // per_rank != b // per_rank

    table = [
        ("tRC", "ACT", "ACT", g.act_act_bank, bank),
        ("tRRD_L", "ACT", "ACT", g.act_act_l, group),
        ("tRRD_S", "ACT", "ACT", g.act_act_s, rank),
        ("tRCD", "ACT", "RD", g.act_rd, bank),
        ("tRCD write", "ACT", "WR", g.act_wr, bank),
        ("tRAS", "ACT", "PRE", g.act_pre, bank),
        ("tRAS all", "ACT", "PREab", g.act_pre, rank),
        ("ACT to REF", "ACT", "REFab", g.act_ref, rank),
        ("tCCD_L", "RD", "RD", g.rd_rd_l, group),
        ("tCCD_S", "RD", "RD", g.rd_rd_s, rank),
        ("RD to RD, other rank", "RD", "RD", g.rd_rd_other_rank, others),
        ("RD to WR", "RD", "WR", g.rd_wr, rank),
        ("RD to WR, other rank", "RD", "WR", g.rd_wr_other_rank, others),
        ("tCCD_L write", "WR", "WR", g.wr_wr_l, group),
        ("tCCD_S write", "WR", "WR", g.wr_wr_s, rank),
        ("WR to WR, other rank", "WR", "WR", g.wr_wr_other_rank, others),
        ("tWTR_L", "WR", "RD", g.wr_rd_l, group),
        ("tWTR_S", "WR", "RD", g.wr_rd_s, rank),
        ("WR to RD, other rank", "WR", "RD", g.wr_rd_other_rank, others),
        ("tRTP", "RD", "PRE", g.rd_pre, bank),
        ("tRTP all", "RD", "PREab", g.rd_pre, rank),
        ("tWR", "WR", "PRE", g.wr_pre, bank),
        ("tWR all", "WR", "PREab", g.wr_pre, rank),
        ("tRP", "PRE", "ACT", g.pre_act, bank),
        ("tRP all", "PREab", "ACT", g.pre_act, rank),
        ("tRP to REF", "PRE", "REFab", g.pre_ref, rank),
        ("tRP all to REF", "PREab", "REFab", g.pre_ref, rank),
        ("tPPD", "PRE", "PRE", g.pre_pre, rank),
        ("tPPD all", "PRE", "PREab", g.pre_pre, rank),
        ("tRFC", "REFab", "ACT", g.ref_act, rank),
        ("tRFC to REF", "REFab", "REFab", g.ref_act, rank),
    ]
    return [_Rule(*row) for row in table]


def _gap_violations(
    command: Command, window: list[Command], rules: list[_Rule]
) -> Iterator[Violation]:
    for rule in rules:
        for earlier in reversed(window):
            if command.cycle - earlier.cycle >= rule.gap:
                break
            if earlier.kind == rule.before and rule.binds(earlier.bank, command.bank):
                distance = command.cycle - earlier.cycle
                yield Violation(rule.name, command, rule.gap, distance)
                break


def _window_violations(
    command: Command, window: list[Command], gaps: Gaps, org: Organization
) -> Iterator[Violation]:
    """Find a fifth ACT of a rank inside the four-activate window."""
    if command.kind == "ACT":
        per_rank = org.banks_per_group * org.bank_groups
        rank = command.bank // per_rank
        acts = [c for c in window if c.kind == "ACT" and c.bank // per_rank == rank]
        if len(acts) >= 4 and command.cycle - acts[-4].cycle < gaps.faw:
            yield Violation("tFAW", command, gaps.faw, command.cycle - acts[-4].cycle)


def _bus_violations(
    command: Command, window: list[Command], gaps: Gaps, slots: int
) -> Iterator[Violation]:
    """Find two commands in one slot, or a row command while ACT still holds the row bus."""
    is_row = command.kind in _ROW_BUS
    for earlier in reversed(window):
        distance = command.cycle - earlier.cycle
        if distance >= gaps.act_bus and distance > 0:
            break
        same_slot = slots == 1 or (earlier.kind in _ROW_BUS) == is_row
        if distance <= 0 and same_slot:
            yield Violation("command slot", command, 1, distance)
        elif earlier.kind == "ACT" and is_row and distance < gaps.act_bus:
            yield Violation("row bus", command, gaps.act_bus, distance)


def _state_violations(commands: list[Command], org: Organization) -> Iterator[Violation]:
    """Find commands that the open rows forbid."""
    per_rank = org.banks_per_group * org.bank_groups
    open_rows: dict[int, int] = {}
    for command in commands:
        row = open_rows.get(command.bank)
        mates = [b for b in open_rows if b // per_rank == command.bank // per_rank]
        wrong = {
            "ACT": row is not None,
            "RD": row != command.row,
            "WR": row != command.row,
            "PRE": row is None,
            "PREab": False,
            "REFab": bool(mates),
        }[command.kind]
        if wrong:
            yield Violation("row state", command, command.row, -1 if row is None else row)
        if command.kind == "ACT":
            open_rows[command.bank] = command.row
        for closed in {"PRE": [command.bank], "PREab": mates}.get(command.kind, []):
            open_rows.pop(closed, None)
