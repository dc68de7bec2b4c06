"""One page of a run: accuracy, memory, speed and accelerator figures, whatever its folder holds."""

from __future__ import annotations

from kvmmu.report.joint.write import write_joint

__all__ = ["write_joint"]
