"""A grid of adapters, packed into jobs, and one table of results."""
