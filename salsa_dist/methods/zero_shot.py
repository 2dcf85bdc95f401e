"""The base as it is: nothing is trained, nothing is put on it."""

from __future__ import annotations

from salsa_dist.methods.base import Method


class ZeroShot(Method):
    """What every other method is measured against."""
