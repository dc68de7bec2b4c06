"""What runs in child processes, with the peer's own Python: these files import no kvmmu."""

from __future__ import annotations
