"""Peers of the KV-MMU: machines others published, each with its dataflow and a figure it must meet.

A profile is data (configs/profiles/*.yaml, a source beside every number) and the name of a
dataflow, one file each in this package. `reproduce()` computes what its paper measured, from the
facts alone; a profile that meets no published figure within 15 % is shown as "roofline".
"""

from __future__ import annotations

from kvmmu.accel.profiles.base import (
    TOLERANCE,
    DecodeWorkload,
    Profile,
    Reproduction,
    StepEstimate,
    list_profiles,
    load_profile,
)

__all__ = [
    "TOLERANCE",
    "DecodeWorkload",
    "Profile",
    "Reproduction",
    "StepEstimate",
    "list_profiles",
    "load_profile",
]
