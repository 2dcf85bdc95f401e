"""The command line's groups of commands, one file per group."""
