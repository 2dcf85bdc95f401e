"""Decoding, error rates with their normalisers, and the report of a run."""
