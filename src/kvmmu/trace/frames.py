"""The bytes of a trace file: a header, then framed and checksummed blocks, then an end block.

    file    magic 8 | version u32 | header length u32 | checksum u32 | header (JSON)
    block   kind u8 | flags u8 | 0 u16 | length u64 | checksum of payload u32 | checksum of the
            16 bytes before u32 | payload (zlib if flag 1)
    payload length u32 | JSON {"fields", "arrays": [[name, dtype, shape], ...]} | the arrays

Little endian throughout. Magic and version keep their place in every version to come.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import TraceError
from kvmmu.trace.schema import VERSION

__all__ = [
    "CHUNK",
    "DECODE",
    "END",
    "LANE",
    "MASSES",
    "Frame",
    "pack",
    "read_frames",
    "read_header",
    "read_payload",
    "unpack",
    "write_frame",
    "write_header",
]

MAGIC = b"KVMMUTRC"
DECODE, CHUNK, LANE, MASSES, END = 1, 2, 3, 4, 9
ZLIB = 1
PREFIX = struct.Struct("<8sII")  # magic, version, header length
HEAD = struct.Struct("<BBHQI")  # kind, flags, 0, length, checksum of payload
WORD = struct.Struct("<I")
DTYPES = frozenset({"<i8", "<i4", "<u4", "<u2", "|b1"})


@dataclass(frozen=True)
class Frame:
    """Where one block lies in its file; number counts from 1."""

    number: int
    kind: int
    flags: int
    offset: int
    length: int
    checksum: int


def write_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    """Begin a file with its magic, version and header."""
    text = json.dumps(header, allow_nan=False, sort_keys=True).encode()
    prefix = PREFIX.pack(MAGIC, VERSION, len(text))
    file.write(prefix + WORD.pack(zlib.crc32(prefix + text)) + text)


def read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Return the header; raises TraceError with the reason if this is no readable trace."""
    prefix = file.read(PREFIX.size)
    if not prefix or not MAGIC.startswith(prefix[: len(MAGIC)]):
        raise TraceError(f"{path} is not a kvmmu trace")
    if len(prefix) < PREFIX.size:
        raise TraceError(f"{path} ends inside its header: truncated")
    _, version, length = PREFIX.unpack(prefix)
    if version != VERSION:
        raise TraceError(
            f"{path} was written as trace version {version}, this reads version {VERSION}"
        )
    checksum, text = file.read(WORD.size), file.read(length)
    if len(checksum) < WORD.size or len(text) < length:
        raise TraceError(f"{path} ends inside its header: truncated")
    if WORD.unpack(checksum)[0] != zlib.crc32(prefix + text):
        raise TraceError(f"checksum of the header of {path} does not match")
    header: dict[str, Any] = json.loads(text)
    return header


def write_frame(file: BinaryIO, kind: int, *, payload: bytes) -> None:
    """Append one block, compressed where that makes it smaller."""
    packed = zlib.compress(payload, 1)
    flags, stored = (ZLIB, packed) if len(packed) < len(payload) else (0, payload)
    head = HEAD.pack(kind, flags, 0, len(stored), zlib.crc32(stored))
    file.write(head + WORD.pack(zlib.crc32(head)) + stored)


def read_frames(file: BinaryIO, path: Path, *, size: int) -> Iterator[Frame]:
    """Yield the blocks up to and with the end block, reading their heads alone.

    Raises TraceError if the file of `size` bytes stops early or goes on after the end.
    """
    done = 0
    while True:
        head = file.read(HEAD.size + WORD.size)
        if len(head) < HEAD.size + WORD.size:
            raise TraceError(f"{path} ends after block {done}: truncated")
        kind, flags, _, length, checksum = HEAD.unpack_from(head)
        if WORD.unpack_from(head, HEAD.size)[0] != zlib.crc32(head[: HEAD.size]):
            raise TraceError(f"checksum of block {done + 1} of {path} does not match")
        offset = file.tell()
        if offset + length > size:
            raise TraceError(f"{path} ends after block {done}: truncated")
        done += 1
        yield Frame(done, kind, flags, offset, length, checksum)
        if kind == END:
            break
        file.seek(offset + length)
    if offset + length != size:
        raise TraceError(f"{path} has {size - offset - length} bytes after its end block")


def read_payload(file: BinaryIO, frame: Frame, *, path: Path) -> bytes:
    """Return a block's payload, its checksum verified."""
    file.seek(frame.offset)
    stored = file.read(frame.length)
    if len(stored) < frame.length:
        raise TraceError(f"{path} ends after block {frame.number - 1}: truncated")
    if zlib.crc32(stored) != frame.checksum:
        raise TraceError(f"checksum of block {frame.number} of {path} does not match")
    return zlib.decompress(stored) if frame.flags & ZLIB else stored


def pack(fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Put plain fields and arrays into one payload."""
    table = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    text = json.dumps({"fields": fields, "arrays": table}).encode()
    return b"".join([WORD.pack(len(text)), text, *(a.tobytes() for a in arrays.values())])


def unpack(payload: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what pack put together; raises ValueError if the sizes do not add up."""
    start = WORD.size + WORD.unpack_from(payload)[0]
    content = json.loads(payload[WORD.size : start])
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in content["arrays"]:
        if dtype not in DTYPES:
            raise ValueError(f"array {name} has type {dtype}")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(payload, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    if start != len(payload):
        raise ValueError(f"{len(payload) - start} bytes are left over")
    return content["fields"], arrays
