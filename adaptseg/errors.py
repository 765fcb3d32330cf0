"""The error users see: one readable line that says what was given, what is allowed, and which key or file to change."""


class AdaptSegError(ValueError):
    """Something the user can mend: a wrong value, a broken file, a run directory of another config.

    The command line prints its message alone, without a traceback, and exits with status 2. Bugs of ours are never
    raised as this class.
    """


def of_ours(error: BaseException | None) -> AdaptSegError | None:
    """The outermost error of ours in a chain: while jsonargparse builds an object it wraps errors in its own."""
    while error is not None and not isinstance(error, AdaptSegError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error
