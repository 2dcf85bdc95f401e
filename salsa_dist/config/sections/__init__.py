"""The sections of a config; `salsa_dist.config` is where to import them from."""
