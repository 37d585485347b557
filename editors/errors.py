"""The exception that a user's mistake ends in, under the name that it has among the editors' users."""

from common.errors import UserError as EditingError

__all__ = ["EditingError"]
