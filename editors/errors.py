"""The one exception that a user's mistake ends in."""


class EditingError(ValueError):
    """What was wrong, where, and what to do about it, in one line."""
