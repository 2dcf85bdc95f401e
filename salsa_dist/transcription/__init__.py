"""Recordings of any length to text: `salsa-dist transcribe` and `salsa_dist.transcribe`."""
