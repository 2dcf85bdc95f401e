"""The update rules, how a vector changes an activation: one file each, by name in `registry.py`."""
