"""Commands in processes of their own that may talk to nobody, and one small world that was run that way."""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import SMALL, WEEKS, merged

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Loaded by every Python process below the guarded one, dbt's included. The audit hook sees sockets of any library that
# uses Python's, whatever it imported them as.
_GUARD = """
import os, sys

def _note(text):
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(text + "\\n")

def _is_here(host):
    if isinstance(host, bytes):
        host = host.decode()
    return not host or host == "localhost" or host == "::1" or host.startswith("127.")

def _hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if address is None or isinstance(address, (str, bytes)) or _is_here(address[0]):
            return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if _is_here(args[0]):
            return
    else:
        return
    _note("attempt " + event + " " + repr(args[1:] if event.startswith("socket.connect") else args))
    raise OSError(101, "the guard forbids " + event)

_note("process " + " ".join(sys.orig_argv[:3]))
sys.addaudithook(_hook)
"""


def guarded_env(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which Python processes start with the guard; it writes to ``folder``/guard.log."""
    guard = folder / "guard"
    guard.mkdir(parents=True, exist_ok=True)
    (guard / "sitecustomize.py").write_text(_GUARD, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER", "MLOPS_ASSETS"))}
    return {**kept, "PYTHONPATH": str(guard), "GUARD_LOG": str(folder / "guard.log"), **more}


def call(*command: str, cwd: Path, env: dict[str, str], timeout: float = 400) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class GuardedWorld:
    """A home in which the command line ran the small world: three weeks of history, two weeks with playlists."""

    folder: Path
    spec: Path
    done: "subprocess.CompletedProcess[str]"
    weeks: tuple[str, str] = (WEEKS[3], WEEKS[4])

    @property
    def home(self) -> Path:
        """What MLOPS_ASSETS_HOME was."""
        return self.folder / "home"

    def lend_dbt(self, home: Path) -> None:
        """Give another home the parsed dbt project, which takes seconds to make."""
        shutil.copytree(self.home / "dbt", home / "dbt", ignore=shutil.ignore_patterns("target"))

    @property
    def log(self) -> list[str]:
        """What the guard wrote: processes it was in, and attempts that it stopped."""
        return (self.folder / "guard.log").read_text(encoding="utf-8").splitlines()


def guarded_world(tmp_path_factory: pytest.TempPathFactory) -> GuardedWorld:
    """Return the world, which is made once for all tests of a session."""
    return _made(tmp_path_factory.getbasetemp())


@functools.cache
def _made(base: Path) -> GuardedWorld:
    folder = base / "guarded_world"
    folder.mkdir()
    spec = folder / "spec.yaml"
    # An old champion is replaced by one that is as good: the second week's promotion gives a rollback its target.
    easy = {"evaluation": {"champion_max_age": 1, "margin": 0.9}}
    spec.write_text(yaml.safe_dump(merged(SMALL, easy)), encoding="utf-8")
    done = call(
        str(BIN / "mlops-assets"), "run", "spec.yaml", "--from", WEEKS[0], "--to", WEEKS[4], "--publish", "2",
        cwd=folder, env=guarded_env(folder, MLOPS_ASSETS_HOME="home"),
    )  # fmt: skip
    return GuardedWorld(folder, spec, done)
