"""What a step tries again: faults of storage, and never a user's mistake."""

import errno
import gzip
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from mlops_assets.discover_weekly.ingestion import ingest_listens
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.retries import IO_RETRY, may_pass, mistakes_are_final


def _mistake(cause: BaseException | None = None) -> UserError:
    error = UserError("cannot be read", where="listens.csv", remedy="mend it.")
    error.__cause__ = cause
    return error


def _attempts(error: Exception) -> int:
    """How often a step with the package's way of retrying runs that fails from ``error`` every time."""
    seen: list[int] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=IO_RETRY.max_retries, delay=0))
    def listens() -> None:
        seen.append(1)
        with mistakes_are_final():
            raise error

    assert not dg.materialize([listens], raise_on_error=False).success
    return len(seen)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "input/output error"),
        ConnectionResetError(errno.ECONNRESET, "connection reset"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        duckdb.IOException("could not set lock on file"),
        _mistake(OSError(errno.EIO, "input/output error")),
        _mistake(duckdb.IOException("could not set lock on file")),
    ],
    ids=repr,
)
def test_a_fault_of_storage_is_tried_again(error: Exception) -> None:
    assert _attempts(error) == 1 + IO_RETRY.max_retries == 3


@pytest.mark.parametrize(
    "error",
    [
        _mistake(),
        _mistake(ValueError("no number")),
        _mistake(FileNotFoundError(errno.ENOENT, "no such file")),
        _mistake(PermissionError(errno.EACCES, "permission denied")),
        _mistake(IsADirectoryError(errno.EISDIR, "is a directory")),
        _mistake(gzip.BadGzipFile("not a gzipped file")),
    ],
    ids=lambda error: repr(error.__cause__),
)
def test_a_users_mistake_is_not_tried_again(error: UserError) -> None:
    assert _attempts(error) == 1


def test_a_lost_connection_to_s3_may_pass_and_a_wrong_bucket_does_not() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

    assert may_pass(_mistake(EndpointConnectionError(endpoint_url="s3")))
    assert may_pass(_mistake(ReadTimeoutError(endpoint_url="s3")))
    assert not may_pass(_mistake(NoCredentialsError()))
    assert not may_pass(_mistake(ClientError({"Error": {"Code": "NoSuchBucket"}}, "ListObjects")))


def test_a_fault_behind_another_mistake_is_seen() -> None:
    assert may_pass(_mistake(_mistake(OSError(errno.EIO, "input/output error"))))


def test_the_failure_of_a_mistake_keeps_its_message_and_its_cause() -> None:
    mistake = _mistake()
    with pytest.raises(dg.Failure, match=r"listens\.csv: cannot be read\. Remedy: mend it\.") as caught, \
            mistakes_are_final():  # fmt: skip
        raise mistake
    assert not caught.value.allow_retries
    assert caught.value.__cause__ is mistake


def test_a_held_warehouse_is_a_fault_that_may_pass(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    path.mkdir()
    with pytest.raises(UserError) as caught:
        Warehouse(database=str(path)).query("select 1")
    assert may_pass(caught.value)


def test_a_missing_source_is_final(place: Environment, make_spec: Callable[..., Spec], tmp_path: Path) -> None:
    spec = make_spec(base=tmp_path)
    files = {"listens": {"kind": "files", "path": "gone.csv", "columns": {"user_id": "user"}}}
    broken = Spec.model_validate({**spec.model_dump(), "data": files, "base": tmp_path})
    with pytest.raises(UserError) as caught:
        ingest_listens(broken, ["2024-01-01"], Warehouse(database=str(place.warehouse_file)))
    assert not may_pass(caught.value)
