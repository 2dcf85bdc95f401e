"""Zero-shot: the base without an adapter; nothing is trained."""

from __future__ import annotations

from salsa_dist.config import ZeroShotMethod
from salsa_dist.methods.base import Method


class ZeroShot(Method):
    """The base without an adapter; other methods are compared with it."""

    section = ZeroShotMethod
    title = "zero-shot"
