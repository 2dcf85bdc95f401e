"""The one exception that a user is meant to read.

Raise `UserError` for whatever a user can put right: a wrong path, a typo in a config, an adapter of
another base. Its text says what was wrong, where, and what to do. The command line prints it as one
line and exits with status 2; every other exception is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """An error of the user, in one line: what was wrong, where, and what to do."""


class StartAgain(UserError):
    """An error after which a new start of the same command does better; launchers start it again."""
