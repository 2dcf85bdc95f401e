"""Names in transcripts of what was decoded without an adapter."""

ZERO_SHOT = "zero-shot"
BARE = "no-adapters"
"""By the base with no adapters beside it, not even ones that are off."""
