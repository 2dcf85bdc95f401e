"""Adapters in the formats of other engines' own steering, where their arithmetic is ours."""
