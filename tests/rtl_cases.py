"""Cosimulations of the hardware KV-MMU that several tests run: small blocks, a seed each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.verify.driver import Pace, cosimulate
from kvmmu.rtl.verify.scoreboard import CosimReport
from kvmmu.rtl.verify.stimuli import Mix, draw_items, draw_settings

SIZES = ((4, 2), (8, 2), (8, 4), (16, 4), (32, 8))
PACES = (
    Pace(),
    Pace(cmd_gap=0.3, mass_gap=0.3, rsp_stall=0.3, write_stall=0.3, image_gap=0.3),
    Pace(mass_gap=0.6, image_stall=0.5),
    Pace(rsp_stall=0.8, write_stall=0.8, image_gap=0.8, image_stall=0.8),
)


@dataclass(frozen=True)
class Case:
    """One block, its settings and items drawn from `seed`, at one pace."""

    seed: int
    num_steps: int
    mix: Mix = field(default_factory=Mix)
    store: Any = "sram"

    @property
    def config(self) -> BlockConfig:
        slots, ways = SIZES[self.seed % len(SIZES)]
        return BlockConfig(
            slots=slots,
            ways=ways,
            lanes=1 + self.seed % 3,
            layers=1 + self.seed // 2 % 3,
            heads=1 + self.seed // 3 % 2,
            position_bits=18,
            store=self.store,
        )

    def run(self, block: Any, *, check_every: int | None = 50) -> CosimReport:
        """Cosimulate block(config) and return what differed."""
        print(f"seed {self.seed}")
        rng = np.random.default_rng(self.seed)
        config = self.config
        settings = draw_settings(rng, config)
        return cosimulate(
            block(config),
            config,
            settings=settings,
            items=draw_items(
                rng, config, settings=settings, num_steps=self.num_steps, mix=self.mix
            ),
            rng=rng,
            pace=PACES[self.seed % len(PACES)],
            check_every=check_every,
        )
