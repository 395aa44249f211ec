"""What is tried again by itself, and what is not.

What belongs here: the retry policy of steps that read and write elsewhere, and the line between a fault that may pass
and a mistake that stays. What does not: retrying inside a reader (sources.py), or of whole runs (dagster.yaml).
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from mlops_assets.foundation.errors import UserError

IO_RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)

# Storage says these of a path or a permission that is wrong: it will say the same in a minute.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG}
# Named and not imported: DuckDB and botocore are loaded only where they are used.
_PASSING = {"duckdb.IOException", "botocore.HTTPClientError", "botocore.ConnectionError"}


def may_pass(error: BaseException) -> bool:
    """Tell whether trying again can help.

    A user's mistake stays, unless storage is behind it: a fault of reading or writing, a lock, a lost connection. What
    is no `UserError` is taken for a fault that may pass.
    """
    if not isinstance(error, UserError):
        return True
    return any(_is_fault_of_storage(cause) for cause in _causes(error))


@contextmanager
def mistakes_are_final() -> Iterator[None]:
    """Keep a step's retry policy from trying a user's mistake again: the step fails at once with its message."""
    try:
        yield
    except UserError as error:
        if may_pass(error):
            raise
        raise dg.Failure(str(error), allow_retries=False) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_fault_of_storage(error: BaseException) -> bool:
    names = {f"{kind.__module__.strip('_').partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if names & _PASSING:
        return True
    # Without a number it is about content, such as a file that is no gzip file.
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING
