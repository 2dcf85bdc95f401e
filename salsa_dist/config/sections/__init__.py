"""The sections of a config. Import them from `salsa_dist.config`."""
