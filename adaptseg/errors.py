"""The error users see: one readable line that says what was given, what is allowed, and which key or file to change."""


class AdaptSegError(ValueError):
    """Something the user can mend: a wrong value, a broken file, a run directory of another config.

    The command line prints its message alone, without a traceback, and exits with status 2. Bugs of ours are never
    raised as this class.
    """
