"""The schema of a line of transcripts, and its names for what was decoded without an adapter."""

SCHEMA = "salsa-dist/hypotheses/1"
ZERO_SHOT = "zero-shot"
BARE = "no-adapters"
"""By the base with no adapters beside it, not even ones that are off."""
