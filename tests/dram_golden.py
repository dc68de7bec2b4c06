"""The golden cases: streams from their written formulas, devices from their configuration."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.controller import ChannelResult, Organization, Policy, run_channel
from kvmmu.accel.dram.gaps import Gaps
from kvmmu.accel.dram.mapping import AddressMapping

DATA = Path(__file__).parent / "accel" / "data" / "dram_golden.json"
WRITE_BASE = 2**28


@cache
def load_cases() -> list[dict[str, Any]]:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return [case | {"config": data["configs"][case["config"]]} for case in data["cases"]]


def stream(case: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Byte addresses [N] and writes [N] of a case's stream, as `generators` of the file states."""
    name, burst = case["stream"], case["bytes_per_request"]
    config = case["config"]
    if name in ("S8", "S8B"):
        step = config["row_bytes"]
        if name == "S8":
            step *= config["bankgroups"] * config["banks_per_bankgroup"]
        return np.arange(20000) * step, np.zeros(20000, bool)
    return STREAMS[name](burst)


def _reads(addresses: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return addresses, np.zeros(len(addresses), bool)


def _s1(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return _reads(np.arange(40000) * burst)


def _s2(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    k, j = np.divmod(np.arange(48000), 64)
    q, m = np.divmod(k, 3)
    is_write = m == 2
    read, write = ((2 * q + m) * 64 + j) * burst, WRITE_BASE + (q * 64 + j) * burst
    return np.where(is_write, write, read), is_write


def _s3(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return _reads(np.random.default_rng(3).integers(0, 2**30 // burst, 30000) * burst)


def _s4(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    generator = np.random.default_rng(4)
    addresses = generator.integers(0, 2**30 // burst, 30000) * burst
    return addresses, generator.random(30000) < 0.2


def _s5(burst: int, slots: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    slots = slots or (28 if burst == 64 else 13)
    victims = np.random.default_rng(5).integers(0, 256, 16)
    per_slot = 8192 // burst
    slot = np.stack([np.append(np.arange(slots), victim) for victim in victims])  # [16, slots + 1]
    base = (np.arange(16)[:, None] * 256 + slot) * 8192
    addresses = base[:, :, None] + np.arange(per_slot) * burst
    is_write = np.zeros(addresses.shape, bool)
    is_write[:, -1] = True
    return addresses.ravel(), is_write.ravel()


def _s5f(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return _s5(burst, 256)


def _s6(burst: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    chunks = 10000 if burst == 64 else 5000
    generator = np.random.default_rng(6)
    draws = [generator.permutation(256)[:64] for _ in range(-(-chunks // 64))]
    slot = np.concatenate(draws)[:chunks]
    k = np.arange(chunks)
    base = ((k // 2048 % 16) * 256 + slot) * 8192 + (k // 64 % 32) * 256
    return _reads((base[:, None] + np.arange(256 // burst) * burst).ravel())


STREAMS = {"S1": _s1, "S2": _s2, "S3": _s3, "S4": _s4, "S5": _s5, "S5F": _s5f, "S6": _s6}


def mapping(case: dict[str, Any]) -> AddressMapping:
    """The case's address mapping."""
    config = case["config"]
    plan = config["mapping"]
    bits = plan["field_bits"]
    sizes = {"channel": 1, "rank": 1, "column": 1 << bits["column_burst"]}
    sizes |= {name: 1 << bits[name] for name in ("bankgroup", "bank", "row")}
    if plan["name"] == "mop4_xor":
        order = ("column:2", "bankgroup", "bank", "column", "row")
        xor = ("bankgroup ^= column[1:0]", "bank ^= column[3:2]", "row ^= column[6:4]")
    else:
        fields = ["column" if f == "column_burst" else f for f in plan["fields_lsb_to_msb"]]
        order, xor = tuple(fields), ()
    order = (*order[:-1], "rank", "channel", order[-1])
    return AddressMapping(order, sizes=sizes, burst_bytes=config["bytes_per_burst"], xor=xor)


def gaps(case: dict[str, Any]) -> Gaps:
    """The distances that were really kept."""
    config = case["config"]
    return Gaps.from_effective(
        config["effective_gaps"],
        refi_cycles=config["timing"]["t_refi_cycles"],
        act_bus_cycles=config.get("act_command_bus_cycles", 1),
        ppd_cycles=config["timing"].get("t_ppd_cycles", 1)
        if case["simulator"] == "dramsim3"
        else 1,
    )


def policy(case: dict[str, Any]) -> Policy:
    """The case's queues and scheduler, as far as this controller has them."""
    queues = case["config"]["queues"]
    return Policy(
        protect_row_hits="row_hit_protecting" in queues["scheduler"],
        dual_command=queues["command_slots_per_cycle"] != "one",
        per_bank_entries=queues.get("command_queue_entries_per_bank", 0),
    )


def run(case: dict[str, Any], *, with_trace: bool = False) -> ChannelResult:
    """Run a case."""
    config = case["config"]
    addresses, is_write = stream(case)
    place = mapping(case).decode(addresses)
    groups, banks = config["bankgroups"], config["banks_per_bankgroup"]
    return run_channel(
        place.bankgroup * banks + place.bank,
        place.row,
        is_write,
        gaps=gaps(case),
        organization=Organization(1, groups, banks),
        policy=policy(case),
        with_trace=with_trace,
    )
