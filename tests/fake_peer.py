"""A benchmark's candidate of the standard library alone: its settings say how it behaves."""

from __future__ import annotations

import os
import sys
import time


class Peer:
    """Count up; sleep, print, fail or die as the settings ask."""

    def __init__(self, settings):
        self.settings = settings
        print("noise on stdout")
        if settings.get("refuses"):
            raise ValueError("this peer\nrefuses the model")
        self.facts = {"version": "1.0", "weight_bytes": 1000, "fans_out": settings["fans_out"]}
        self.rows, self.last = [], 0

    def prefill(self, prompts):
        self.rows = [prompt[-1] for prompt in prompts]
        if self.settings.get("log"):
            with open(self.settings["log"], "a") as file:
                file.write(f"prefill {len(prompts)} x {len(prompts[0])}\n")
        return list(self.rows)

    def spread(self, count):
        self.rows = self.rows * count

    def decode(self, count):
        if self.settings.get("dies"):
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.settings.get("hangs"):
            time.sleep(60)
        deadline = time.perf_counter() + self.settings.get("step_s", 0.0005) * count
        while time.perf_counter() < deadline:  # works, as a candidate does
            pass
        shift = self.settings.get("shift", 0)
        made = [[row + n + shift for n in range(count)] for row in self.rows]
        self.rows = [row + count for row in self.rows]
        return made

    def clear(self):
        self.rows = []

    def kv_bytes(self):
        return 123

    def serve(self, prompts, new_tokens, cap_tokens):
        missing = self.settings.get("missing", 0)
        return {"num_tokens": len(prompts) * new_tokens - missing, "most_users": 2}
