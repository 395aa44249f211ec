"""What a person sees: Dagster's own pages about a credit model that ran, in a real browser without a window."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.guarded import BIN, call
from tests.contract.lender import FIRST, NAME, SECOND, Lender, lender, serving
from tests.ui.browser import SECONDS, Page, browser, program

pytestmark = pytest.mark.skipif(program() is None, reason="no chromium on the path, for instance of Debian's package")

DEFINITIONS = """
from pathlib import Path

import dagster as dg

from mlops_assets.definitions import build_defs
from mlops_assets.systems import load_any_spec


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs(specs=[load_any_spec(Path("lender.yaml"))])
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Lender:
    """A copy: what the pages keep in the instance is not seen by other tests."""
    return lender(tmp_path_factory).copied(tmp_path_factory.mktemp("ui") / "lender")


@pytest.fixture(scope="module")
def ui(world: Lender) -> Iterator[str]:
    """The address of Dagster's web server on the lender's home."""
    (world.folder / "lender_definitions.py").write_text(DEFINITIONS, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [str(BIN / "dagster-webserver"), "-h", "127.0.0.1", "-p", port, "-f", "lender_definitions.py"]
    env = {**world.env, "DAGSTER_HOME": str(world.home / "dagster")}
    log = world.folder / "webserver.log"
    with (
        log.open("w") as handle,
        subprocess.Popen(command, cwd=world.folder, env=env, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle)
        as process,
    ):  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/server_info", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 3 * SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_the_champions_page_shows_the_verdict_and_its_reason(page: Page, ui: str) -> None:
    page.open(
        f"{ui}/assets/{NAME}/champion", "verdict", "proposed", f"better than version {FIRST}",
        "only a person approves it", f"{NAME}.pd_model", "trained_by",
    )  # fmt: skip


def test_the_checks_page_shows_what_is_judged_and_how_it_came_out(page: Page, ui: str) -> None:
    shown = page.open(
        f"{ui}/assets/{NAME}/decisions?view=checks",
        "every_application_is_decided", "every_rejection_has_a_reason", "the_log_is_unbroken", "decisions_replay",
        "Evaluation result",
    )  # fmt: skip
    assert "Failed" not in shown


def test_the_card_is_linked_and_opens(page: Page, ui: str, world: Lender) -> None:
    shown = page.open(f"{ui}/assets/{NAME}/model_card", "card_sha256", f"/{NAME}/cards/")
    path = next(line for line in shown.split() if line.startswith(f"{NAME}/cards/"))
    with serving("reports", "--port", "0", cwd=world.folder, env=world.env) as (_, url):
        card = page.open(f"{url}/{path}", "Model card")
    assert f"version {SECOND}" in card


@pytest.mark.parametrize("decision", ["approve", "reject", "rollback", "acknowledge_incident", "freeze_training"])
def test_people_decide_from_the_launchpad(page: Page, ui: str, decision: str) -> None:
    where = "__repository__@lender_definitions.py"
    page.open(f"{ui}/locations/{where}/jobs/{NAME}_{decision}/playground", "Launch Run", "reason")


def test_the_lineage_shows_every_group(page: Page, ui: str) -> None:
    groups = ("data", "models", "model_risk", "decisions", "monitoring", "review")
    page.open(f"{ui}/asset-groups", *(f"{NAME}__{group}" for group in groups))


def test_an_approval_on_the_command_line_is_seen_at_once(page: Page, ui: str, world: Lender) -> None:
    events = f"{ui}/assets/{NAME}/champion?view=events"
    page.open(events, "proposed", f"{NAME}.pd_model")
    approval = ("--version", str(SECOND), "--by", "ada <risk>", "--reason", "the card is read <b>twice</b>")
    done = call(str(BIN / "mlops-assets"), "approve", NAME, *approval, cwd=world.folder, env=world.env)
    assert done.returncode == 0, done.stderr
    page.open(events, "promoted", "ada <risk>", "the card is read <b>twice</b>")
