"""lm-eval on a cache of constant size: its tasks, scored through the slots.

Nothing of lm-eval is imported before `evaluate` or `kvmmu.evals.lm_harness.model` is used.
"""
