"""AddressMapping: a byte address as channel, rank, bank group, bank, row and column.

The mapping is a list of fields from the least significant bit up, e.g.
    ["column:1", "channel", "bankgroup", "column", "bank", "rank", "row"]
A field with `:n` takes its next n bits, one without takes all it still has, which need not be a
power of two (192 channels). The bits below the first field address bytes inside a burst. `xor`
lines such as "bank ^= column[3:2]" fold address bits into a field afterwards; bits are those of
the whole field.
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
    radix: int  # how many values this part has
    lsb: int  # place of its bits inside the field


class AddressMapping:
    """Map byte addresses to places. `sizes` gives how many values each field has.

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
        self._xors = tuple(_parse_xor(line, self.sizes) for line in self.xor)
        self.capacity_bytes = burst_bytes * int(np.prod([sizes[name] for name in FIELDS]))

    def decode(self, addresses: NDArray[np.int64]) -> Location:
        """Return the place of each byte address, int64 [N]; addresses wrap at the capacity."""
        values = self._fields(addresses, self._slices)
        for target, source, high, low in self._xors:
            values[target] = values[target] ^ (
                (values[source] >> low) & ((1 << (high - low + 1)) - 1)
            )
        return Location(**values)

    def channels_of(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the channel of each byte address, int64 [N]; cheaper than all of its place."""
        if any(target == "channel" for target, *_ in self._xors):
            return self.decode(addresses).channel
        if self.sizes["channel"] == 1:
            return np.zeros_like(addresses)
        last = max(i for i, part in enumerate(self._slices) if part.name == "channel")
        return self._fields(addresses, self._slices[: last + 1])["channel"]

    def _fields(
        self, addresses: NDArray[np.int64], slices: tuple[_Slice, ...]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the fields that the slices fill, before any xor."""
        rest = (addresses % self.capacity_bytes) >> self._offset_bits
        values: dict[str, NDArray[np.int64]] = dict.fromkeys(FIELDS, np.zeros_like(rest))
        for part in slices:
            if part.radix & (part.radix - 1):
                rest, digit = np.divmod(rest, part.radix)
            else:
                digit = rest & (part.radix - 1)
                rest = rest >> (part.radix.bit_length() - 1)
            values[part.name] = values[part.name] | (digit << part.lsb)
        return values

    def with_order(self, order: tuple[str, ...], xor: tuple[str, ...] = ()) -> AddressMapping:
        """Return the same device under another field order."""
        return AddressMapping(order, sizes=self.sizes, burst_bytes=self.burst_bytes, xor=xor)


def _log2(what: str, value: int) -> int:
    if value < 1 or value & (value - 1):
        raise SpecError(f"{what} must be a power of two, got {value!r}")
    return value.bit_length() - 1


def _slices(order: tuple[str, ...], sizes: dict[str, int]) -> tuple[_Slice, ...]:
    """Give every entry of the order its values."""
    for name in FIELDS:
        if sizes.get(name, 0) < 1:
            raise SpecError(f"number of {name}s must be at least 1, got {sizes.get(name)!r}")
    left, used = dict(sizes), dict.fromkeys(FIELDS, 0)
    slices = []
    for entry in order:
        match = _FIELD.match(entry)
        if match is None or match[1] not in FIELDS:
            raise SpecError(
                f"mapping field must be one of {', '.join(FIELDS)} with optional :bits, "
                f"got {entry!r}"
            )
        name = match[1]
        radix = 1 << int(match[2]) if match[2] else left[name]
        if left[name] % radix or (radix == 1 and sizes[name] > 1):
            raise SpecError(
                f"mapping must split {sizes[name]} {name}s into whole parts, got {order!r}"
            )
        slices.append(_Slice(name, radix, used[name]))
        left[name] //= radix
        used[name] += radix.bit_length() - 1
    short = [name for name in FIELDS if left[name] != 1]
    if short:
        raise SpecError(f"mapping must place every bit of {', '.join(short)}, got {order!r}")
    return tuple(slices)


def _parse_xor(line: str, sizes: dict[str, int]) -> tuple[str, str, int, int]:
    """Return target, source, high and low bit of an xor line."""
    match = _XOR.match(line)
    if match is None or {match[1], match[2]} - set(FIELDS) or int(match[3]) < int(match[4]):
        raise SpecError(f"xor must read 'field ^= field[high:low]', got {line!r}")
    target, source, high, low = match[1], match[2], int(match[3]), int(match[4])
    if _log2(f"{target}s of an xor", sizes[target]) < high - low + 1 or target == source:
        raise SpecError(f"xor must fold no more bits than another field has, got {line!r}")
    return target, source, high, low
