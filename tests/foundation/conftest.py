"""What the tests of the foundation share: an object store on this machine, and roots on a disk and in that store."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from upath import UPath


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an empty object store."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> UPath:
    """A bucket of one's own in the object store."""
    path = UPath(f"s3://bucket-{uuid4().hex}", endpoint_url=s3_endpoint, key="key", secret="secret")
    path.fs.mkdir(path.path)
    return path


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A folder that is still to be made, and a bucket."""
    if request.param == "local":
        return UPath(tmp_path / "store")
    path: UPath = request.getfixturevalue("bucket")
    return path
