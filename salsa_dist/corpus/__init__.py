"""From corpora to tar shards: recipes, splits, writing, lint, statistics, the card."""
