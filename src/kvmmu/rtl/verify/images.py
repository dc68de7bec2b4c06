"""The DRAM behind a block with store "dram": it keeps the images and gives them back when asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.lib.data import Layout

from kvmmu.rtl.config import SCORE_BITS, BlockConfig
from kvmmu.rtl.ports import fetch_layout, header_layout, image_layout
from kvmmu.rtl.verify.packing import unpack
from kvmmu.rtl.verify.scoreboard import SeenTable

__all__ = ["ImageStore"]


class ImageStore:
    """Hold the image of each table that is not on chip, beat by beat.

    take keeps a beat of image_out; fetch returns the beats that image_in owes for a request.
    Both return what broke the contract, "" if nothing did.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        self._layout: Layout = image_layout(config)
        self._images: dict[int, list[int]] = {}
        self._coming: list[int] = []
        self._is_void = False  # of the image that is coming: its lane was released
        self.num_fetches = self.num_images = 0

    @property
    def tables(self) -> tuple[int, ...]:
        """Numbers of the tables whose newest state is here."""
        return tuple(self._images)

    def take(self, bits: int) -> str:
        """Keep one beat; an image is complete with the beat marked last."""
        beat = unpack(self._layout, bits)
        is_first = not self._coming
        if bool(beat["is_header"]) != is_first:
            return "an image must begin with its header and hold no other"
        self._coming.append(bits)
        if beat["last"]:
            if not self._is_void:
                self._images[self._coming_table] = self._coming
            self._coming, self._is_void = [], False
            self.num_images += 1
        return ""

    def fetch(self, bits: int) -> tuple[list[int], str]:
        """Give an image back; from then on the newest state is on chip."""
        table = unpack(fetch_layout(self.config), bits)["table"]
        self.num_fetches += 1
        if table not in self._images:
            return [], f"table {table} was fetched but never sent out"
        return self._images.pop(table), ""

    def table(self, number: int) -> SeenTable:
        """Read an image as a table; slots past its rows are left out."""
        header, *rows = (unpack(self._layout, bits) for bits in self._images[number])
        fields = unpack(header_layout(self.config), header["header"])
        return SeenTable(
            positions=self._slots(rows, "positions", self.config.position_bits),
            mantissas=self._slots(rows, "scores", SCORE_BITS),
            exponent=fields["exponent"],
            num_seen=fields["position"],
            victim=fields["victim"],
        )

    def forget(self, number: int) -> None:
        """Drop a released lane's image, also one whose last row is still to come."""
        self._images.pop(number, None)
        self._is_void = self._is_void or (bool(self._coming) and self._coming_table == number)

    @property
    def _coming_table(self) -> int:
        return unpack(self._layout, self._coming[0])["table"]

    def _slots(self, rows: list[dict[str, int]], name: str, bits: int) -> Any:
        mask = (1 << bits) - 1
        cut = [row[name] >> (bits * way) & mask for row in rows for way in range(self.config.ways)]
        return np.array(cut, dtype=np.int64)
