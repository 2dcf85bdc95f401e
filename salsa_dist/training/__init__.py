"""Training a bank: the loop, the optimizer over packed adapters, the state on disk."""
