"""Documents for people: where they lie, how they are linked, and a server that shows these and nothing else."""

from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
import uvicorn
from upath import UPath

from mlops_assets.foundation import reports
from mlops_assets.foundation.files import sha256_hex

PAGE = b"<!doctype html><title>A card</title><p>\xc3\x84pfel"
LEAVING = (
    "../secret.txt", "a/../../secret.txt", "/etc/passwd", "a//b", "", "/", ".", "..", ".hidden", "a/.hidden", "a b",
    "a\\b", "a\n", "a/b\0", "a:b", "~root", "%2e%2e/secret.txt", "cards/", "ä.html",
)  # fmt: skip


def test_what_is_written_is_read_and_named_by_its_hash(root: UPath) -> None:
    assert reports.write(root, "lender/cards/a-1.html", PAGE) == sha256_hex(PAGE)
    assert reports.read(root, "lender/cards/a-1.html") == PAGE
    assert (root / "reports" / "lender" / "cards" / "a-1.html").read_bytes() == PAGE


def test_the_same_place_holds_the_latest(root: UPath) -> None:
    reports.write(root, "lender/drift/2024-01-01.json", b"{}")
    reports.write(root, "lender/drift/2024-01-01.json", b"[]")
    assert reports.read(root, "lender/drift/2024-01-01.json") == b"[]"


@pytest.mark.parametrize("path", LEAVING)
def test_no_path_leaves_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.txt").write_bytes(b"secret")
    with pytest.raises(ValueError, match="is no path of a report"):
        reports.write(UPath(tmp_path), path, PAGE)
    assert reports.read(UPath(tmp_path), path) is None
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["secret.txt"]


@pytest.mark.parametrize(
    "path", ["absent.html", "lender", "lender/cards", "lender/a.html/b.html", "x" * 300, "none/at/all"]
)
def test_what_is_not_there_is_none(tmp_path: Path, path: str) -> None:
    reports.write(UPath(tmp_path), "lender/a.html", PAGE)
    reports.write(UPath(tmp_path), "lender/cards/b.html", PAGE)
    assert reports.read(UPath(tmp_path), path) is None


# --- Links ---


def test_links_point_to_the_server_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reports.URL_VARIABLE, raising=False)
    assert reports.link("lender/a.html") == "http://localhost:3070/lender/a.html"


@pytest.mark.parametrize("base", ["https://reports.bank.example/risk", "https://reports.bank.example/risk/"])
def test_links_point_to_a_server_of_ones_own(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.setenv(reports.URL_VARIABLE, base)
    assert reports.link("lender/a.html") == "https://reports.bank.example/risk/lender/a.html"


# --- The server ---


Ask = Callable[..., tuple[HTTPResponse, bytes]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Ask a server for a path exactly as it is written: a client that tidies paths up would ask something else."""
    folder = tmp_path_factory.mktemp("served")
    store = folder / "store"
    (store / "models").mkdir(parents=True)
    (store / "models" / "model.json").write_bytes(b"secret")
    (folder / "secret.txt").write_bytes(b"secret")
    for name in ("a.html", "a.json", "a.md", "a.bin"):
        reports.write(UPath(store), f"lender/{name}", PAGE)
    config = uvicorn.Config(reports.reports_app(UPath(store)), host="127.0.0.1", port=0, log_level="warning")
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while thread.is_alive() and not server.started:
        sleep(0.01)

    def made(path: str, method: str = "GET") -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=20)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    yield made
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.md", "text/markdown; charset=utf-8"),
        ("a.bin", "application/octet-stream"),
    ],
)
def test_a_document_is_shown_as_what_it_is(ask: Ask, name: str, kind: str) -> None:
    answer, content = ask(f"/lender/{name}")
    assert (answer.status, answer.headers["content-type"], content) == (200, kind, PAGE)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/lender", "/lender/", "/absent.html", "/../models/model.json", "/%2e%2e/models/model.json",
        "/lender/..%2f..%2fmodels/model.json", "/..%2f..%2fsecret.txt", "//etc/passwd", "/lender/a.html/b", "/%00",
        "/lender%5ca.html", f"/{'x' * 300}",
    ],
)  # fmt: skip
def test_nothing_else_is_shown(ask: Ask, path: str) -> None:
    answer, content = ask(path)
    assert answer.status == 404
    assert b"secret" not in content


@pytest.mark.parametrize("path", ["/lender/a.html", "/absent.html"])
def test_a_document_may_not_reach_out_whatever_it_says(ask: Ask, path: str) -> None:
    headers = ask(path)[0].headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy) == {"default-src", "style-src", "img-src", "script-src", "font-src"}
    assert not any("http" in value or "*" in value for value in policy.values())
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_is_changed_over_http(ask: Ask, method: str) -> None:
    assert ask("/lender/a.html", method)[0].status == 405
    assert ask("/lender/a.html")[1] == PAGE
