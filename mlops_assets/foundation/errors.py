"""The one error family for mistakes that a user can mend.

What belongs here: errors that name the place and the remedy. What does not: programming errors, which stay
ordinary exceptions with a traceback.
"""


class UserError(Exception):
    """A mistake in data, specification or use; the command line prints it without a traceback.

    Parameters
    ----------
    what
        What is wrong, with the offending value.
    where
        The file, table, column, row or setting it was found in.
    remedy
        What the reader can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(
            "".join([f"{where}: " if where else "", what.rstrip("."), ".", f" Remedy: {remedy}" if remedy else ""])
        )
