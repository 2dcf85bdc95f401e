"""Zero-shot: the base without an adapter; nothing is trained."""

from __future__ import annotations

from salsa_dist.config import ZeroShotMethod
from salsa_dist.methods.base import Method


class ZeroShot(Method):
    """What every other method is measured against."""

    section = ZeroShotMethod
    title = "zero-shot"
