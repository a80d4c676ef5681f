"""The one exception that a user's mistake raises."""


class UsageError(Exception):
    """Something the user can put right. The message is one sentence: what, where, how to fix it.

    The command-line programs print it on stderr without a traceback and exit with status 2.
    """
