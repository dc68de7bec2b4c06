"""Explore: the best design of a chip under an area budget, with the KV-MMU and without it.

    space       what may be chosen, and how a choice changes a specification
    objective   area, delay and energy of one choice, or why it cannot be
    journal     every choice tried, one line each: a killed search goes on where it ended
    search      optuna's TPE over the space (extra `search`)
    summary     best, runners-up, ratios, what binds: plain JSON

Searched for RCE and for the full cache alike, so that best stands beside best.
"""

from __future__ import annotations
