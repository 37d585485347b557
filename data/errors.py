"""The one exception that a mistake in the data, or in what was asked of it, ends in."""


class DataError(ValueError):
    """What was wrong, where, and what to do about it, in one line."""
