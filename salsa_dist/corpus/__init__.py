"""Corpora made into tar shards: recipes, splits, writing, lint, statistics, the card."""
