"""Decoding, and the report of a run."""
