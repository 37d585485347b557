"""The one exception that a user's mistake ends in, whatever part of the toolkit finds it."""


class UserError(ValueError):
    """What was wrong, where, and what to do about it, in one line."""
