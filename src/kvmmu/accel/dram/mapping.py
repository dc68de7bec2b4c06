"""AddressMapping: a byte address as channel, rank, bank group, bank, row and column, field by field.

The mapping is a list of fields from the least significant bit up, e.g.
    ["column:1", "channel", "bankgroup", "column", "bank", "rank", "row"]
A field with `:n` takes its next n bits, one without takes all bits it still has. The bits below the
first field address bytes inside a burst. `xor` lines such as "bank ^= column[3:2]" fold address bits
into a field afterwards; bits are those of the whole field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError

__all__ = ["AddressMapping", "Location", "FIELDS"]

FIELDS = ("channel", "rank", "bankgroup", "bank", "row", "column")
_FIELD = re.compile(r"^([a-z]+)(?::(\d+))?$")
_XOR = re.compile(r"^([a-z]+) \^= ([a-z]+)\[(\d+):(\d+)\]$")


class Location(NamedTuple):
    """Where bursts lie; every array is int64 [N]."""

    channel: NDArray[np.int64]
    rank: NDArray[np.int64]
    bankgroup: NDArray[np.int64]
    bank: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


@dataclass(frozen=True)
class _Slice:
    name: str
    bits: int
    lsb: int  # place of these bits inside the field


class AddressMapping:
    """Map byte addresses to places. `sizes` gives how many values each field has.

    Only the last field of the order may have a size that is not a power of two.
    Raises SpecError for an unknown, missing or overfull field.
    """

    def __init__(
        self,
        order: tuple[str, ...],
        *,
        sizes: dict[str, int],
        burst_bytes: int,
        xor: tuple[str, ...] = (),
    ) -> None:
        self.order, self.xor = tuple(order), tuple(xor)
        self.sizes, self.burst_bytes = dict(sizes), burst_bytes
        self._offset_bits = _log2("burst_bytes", burst_bytes)
        self._slices = _slices(self.order, self.sizes)
        self._xors = tuple(_parse_xor(line) for line in self.xor)
        self.capacity_bytes = burst_bytes * int(np.prod([sizes[name] for name in FIELDS]))

    def decode(self, addresses: NDArray[np.int64]) -> Location:
        """Return the place of each byte address, int64 [N]; addresses wrap at the capacity."""
        rest = (addresses % self.capacity_bytes) >> self._offset_bits
        values = {name: np.zeros_like(rest) for name in FIELDS}
        for part in self._slices[:-1]:
            values[part.name] |= (rest & ((1 << part.bits) - 1)) << part.lsb
            rest = rest >> part.bits
        values[self._slices[-1].name] |= rest << self._slices[-1].lsb
        for target, source, high, low in self._xors:
            values[target] = values[target] ^ (
                (values[source] >> low) & ((1 << (high - low + 1)) - 1)
            )
        return Location(**values)

    def with_order(self, order: tuple[str, ...], xor: tuple[str, ...] = ()) -> AddressMapping:
        """Return the same device under another field order."""
        return AddressMapping(order, sizes=self.sizes, burst_bytes=self.burst_bytes, xor=xor)


def _log2(what: str, value: int) -> int:
    if value < 1 or value & (value - 1):
        raise SpecError(f"{what} must be a power of two, got {value!r}")
    return value.bit_length() - 1


def _slices(order: tuple[str, ...], sizes: dict[str, int]) -> tuple[_Slice, ...]:
    """Give every entry of the order its bits."""
    for name in FIELDS:
        if sizes.get(name, 0) < 1:
            raise SpecError(f"number of {name}s must be at least 1, got {sizes.get(name)!r}")
    last = _FIELD.match(order[-1]) if order else None
    width = {
        name: (size - 1).bit_length() if last and last[1] == name else _log2(f"{name}s", size)
        for name, size in sizes.items()
    }
    used = dict.fromkeys(FIELDS, 0)
    slices = []
    for entry in order:
        match = _FIELD.match(entry)
        if match is None or match[1] not in FIELDS:
            raise SpecError(f"mapping field must be one of {FIELDS} with optional :bits, got {entry!r}")
        name = match[1]
        bits = int(match[2]) if match[2] else width[name] - used[name]
        if used[name] + bits > width[name]:
            raise SpecError(f"mapping must give {name} {width[name]} bits, got more in {order!r}")
        slices.append(_Slice(name, bits, used[name]))
        used[name] += bits
    short = [name for name in FIELDS if used[name] != width[name]]
    if short:
        raise SpecError(f"mapping must place every bit of {short}, got {order!r}")
    return tuple(slices)


def _parse_xor(line: str) -> tuple[str, str, int, int]:
    match = _XOR.match(line)
    if match is None or {match[1], match[2]} - set(FIELDS) or int(match[3]) < int(match[4]):
        raise SpecError(f"xor must read 'field ^= field[high:low]', got {line!r}")
    return match[1], match[2], int(match[3]), int(match[4])
