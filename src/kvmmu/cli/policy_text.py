"""A policy as it is written on the command line, and as it is listed there."""

from __future__ import annotations

import sys
from typing import Any

from kvmmu.evals.policy_text import parse_policy
from kvmmu.policies.base import POLICIES

__all__ = ["describe_policy", "parse_policy"]


def describe_policy(name: str) -> dict[str, Any]:
    """Return a policy's name, kind, rule, needs and parameters as JSON values."""
    made = POLICIES.get(name)
    policy = made()
    doc = (sys.modules[made.__module__].__doc__ or made.__doc__ or "").strip()
    paper, rule = _paper_and_rule(doc)
    return {
        "name": name,
        "kind": policy.kind,
        "paper": paper,
        "rule": rule,
        "needs": sorted(policy.needs),
        "parameters": policy.params(),
    }


def _paper_and_rule(doc: str) -> tuple[str, str]:
    """Take the first line, and the sentence after "Rule:" up to the next section."""
    lines = doc.splitlines()
    paper = lines[0] if lines else ""
    rule: list[str] = []
    for line in lines[1:]:
        if line.startswith("Rule:"):
            rule = [line.removeprefix("Rule:").strip()]
        elif rule and (not line.strip() or line.startswith(("Parameters", "Differs from"))):
            break
        elif rule:
            rule.append(line.strip())
    return paper, " ".join(rule) or paper
