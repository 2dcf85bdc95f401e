"""Every update rule by the name that a config calls it: a further one is a file, and a line here.

    salsa   s = h + v,  h' = s * (|h| / |s|)     turns the activation, keeps its norm
    add     h' = h + v
    gain    h' = h * (1 + g) + v                 a gain per channel beside the vector

Configs are also read where nothing is computed, by the launcher, so torch is not imported here.
"""

from __future__ import annotations

from salsa_dist.errors import UserError
from salsa_dist.steering.rules.add import ADD
from salsa_dist.steering.rules.gain import GAIN
from salsa_dist.steering.rules.rule import UpdateRule
from salsa_dist.steering.rules.salsa import SALSA

RULES = {"salsa": SALSA, "add": ADD, "gain": GAIN}


def rule_named(name: str) -> UpdateRule:
    """The rule of that name, or a `UserError` with those that are known."""
    if name not in RULES:
        raise UserError(f"unknown update rule {name!r}: known are {', '.join(RULES)}")
    return RULES[name]
