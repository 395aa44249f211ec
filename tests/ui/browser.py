"""A browser without a window, driven over its DevTools protocol: pages are opened, read and photographed."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0
"""How long a page may take to show what is waited for; a page that does not fails with what it shows instead."""

_QUIET = (
    "--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-gpu", "--hide-scrollbars",
    # A container has no user namespaces for a sandbox, and a small /dev/shm; only this machine's own pages are opened.
    "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


def program() -> str | None:
    """Return the path of a browser, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """The one tab of a browser; without a session, the browser itself."""

    def __init__(self, socket: Any, numbers: Iterator[int], session: str | None = None) -> None:
        self._socket, self._numbers, self._session = socket, numbers, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events that come in between are dropped."""
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def text(self) -> str:
        """Return the text that the page shows."""
        found = self.call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return str(found["result"].get("value", ""))

    def open(self, url: str, *expected: str) -> str:
        """Open an address, wait until the page shows all of these texts, and return all that it shows."""
        self.call("Page.navigate", url=url)
        until = time.monotonic() + SECONDS
        while True:
            shown = self.text()
            missing = [each for each in expected if each not in shown]
            if not missing:
                return shown
            assert time.monotonic() < until, f"{url} does not show {missing}, but:\n{shown}"
            time.sleep(0.2)

    def photograph(self, path: Path) -> None:
        """Write what the window shows to a PNG."""
        taken = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser(folder: Path, width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """Start a browser with a profile of its own below a folder; yields its page."""
    from websockets.sync.client import connect

    found = program()
    assert found is not None
    profile = folder / "profile"
    command = [found, *_QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
    with (
        (folder / "browser.log").open("w") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            with connect(_address(process, profile, folder / "browser.log"), max_size=None) as socket:
                yield _page(socket, width, height)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: "subprocess.Popen[bytes]", profile: Path, log: Path) -> str:
    until = time.monotonic() + SECONDS
    while True:
        with_port = profile / "DevToolsActivePort"
        told = with_port.read_text().split() if with_port.is_file() else []
        if len(told) == 2:
            return f"ws://127.0.0.1:{told[0]}{told[1]}"
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def _page(socket: Any, width: int, height: int) -> Page:
    numbers = count(1)
    whole = Page(socket, numbers)
    target = whole.call("Target.createTarget", url="about:blank")["targetId"]
    session = whole.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Page(socket, numbers, session)
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    return page
