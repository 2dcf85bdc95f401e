"""A grid of adapters, packed into jobs, and one table of what became of them."""
